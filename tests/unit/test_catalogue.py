"""The catalogue of the drives: what a damaged one may cost (blocks), and what it may not (a wrong one, a process)."""

import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from kvtier import _native
from kvtier.block import PLACE_GRAIN, SLOT_UNIT, place_at
from kvtier.errors import DaemonError
from kvtier.tiers import survivors
from kvtier.tiers.base import Recovered
from kvtier.tiers.catalogue import QUARANTINED_MAX, Catalogue, record_of
from kvtier.transfer import Demote, Forget, Remember

STORE = bytes(range(16))
UNITS = 32  # in an extent of 2 MiB
EXTENTS = 256
DIGEST = b"d" * 32
DAMAGES, DAMAGES_LONG = 8, 30  # of each kind


def opened(folder: Path, extents: int = EXTENTS, **more) -> Catalogue:
    return Catalogue(folder / "catalogue.mdb", STORE, extents, UNITS, **more)


def record(
    place: int,
    key: int,
    sequence: int,
    units: int = 1,
    namespace: int = 1,
    epoch: int = 0,
    origin: bytes = b"",
    stored: float = 0,
) -> bytes:
    """`stored`: units of its place; 0: as many as the block has."""
    size = units * SLOT_UNIT
    demote = Demote(0, key.to_bytes(16, "big"), 0, place, size, namespace, epoch, origin, stored=int(stored * SLOT_UNIT))
    return record_of(demote, checksum_of(key), sequence)


def checksum_of(key: int) -> int:
    return key * 2654435761 % 2**32


def remember(epoch: int = 0, number: int = 1, digest: bytes = DIGEST) -> Remember:
    return Remember(0, digest, number, epoch)


def commit(folder: Path, *entries, **more) -> None:
    """One life of a catalogue."""
    it = opened(folder, **more)
    it.commit(entries)
    it.close()


def recovered(folder: Path, **more) -> Recovered:
    it = opened(folder, **more)
    it.close()
    return it.recovered


def places(folder: Path, **more) -> list[int]:
    return recovered(folder, **more).places.tolist()


# --- what comes back -----------------------------------------------------------------------------------------


def test_records_come_back_in_the_order_of_their_sequence(tmp_path):
    commit(tmp_path, remember(), record(9, 100, 1), record(3, 101, 3), record(40, 102, 2, units=4))
    found = recovered(tmp_path)
    assert found.places.tolist() == [9, 40, 3]
    assert found.keys == b"".join(key.to_bytes(16, "big") for key in (100, 102, 101))
    assert found.sizes.tolist() == [SLOT_UNIT, 4 * SLOT_UNIT, SLOT_UNIT]
    assert found.checksums.tolist() == [checksum_of(key) for key in (100, 102, 101)]
    assert found.remembered == {DIGEST: (1, 0)}
    assert [c.dtype for c in (found.places, found.sizes, found.namespaces, found.epochs, found.checksums)] == [
        np.uint32, np.int64, np.int32, np.int64, np.uint32,
    ]  # fmt: skip
    assert found.stored.dtype == np.int64 and found.stored.tolist() == found.sizes.tolist()


def test_what_a_frame_takes_comes_back_life_after_life(tmp_path):
    commit(tmp_path, remember(), record(9, 100, 2, units=4, stored=3), record(3, 101, 1, units=4))
    for _ in range(2):
        found = recovered(tmp_path)
        assert found.places.tolist() == [3, 9]
        assert found.sizes.tolist() == [4 * SLOT_UNIT, 4 * SLOT_UNIT]
        assert found.stored.tolist() == [4 * SLOT_UNIT, 3 * SLOT_UNIT]


def test_origins_come_back_with_their_blocks_life_after_life(tmp_path):
    tags = b"s" * 8 + b"t" * 8
    commit(tmp_path, remember(), record(9, 100, 3, origin=tags), record(3, 101, 1))
    recovered(tmp_path)
    found = recovered(tmp_path)
    assert found.places.tolist() == [3, 9]
    assert (found.origins.dtype, [origin.tobytes() for origin in found.origins]) == (np.uint8, [bytes(16), tags])
    commit(tmp_path, Forget(0, 0, 10))
    assert Recovered().origins.shape == recovered(tmp_path).origins.shape == (0, 16)


def test_the_root_stays_and_is_another_one_for_another_store(tmp_path):
    first = opened(tmp_path)
    first.close()
    again = opened(tmp_path)
    again.close()
    other = Catalogue(tmp_path / "catalogue.mdb", bytes(16), EXTENTS, UNITS)
    other.close()
    assert first.root == again.root != other.root and len(first.root) == 32
    assert "another store" in other.notes[0]


def test_a_catalogue_of_another_root_begins_empty_with_one_note_and_goes_on_with_the_new_one(tmp_path):
    """What lies there answers to no key any more."""
    commit(tmp_path, remember(), record(9, 100, 3), record(3, 101, 1))
    wanted = b"w" * 32
    it = opened(tmp_path, root=wanted)
    it.close()
    assert (it.root, it.recovered.keys, it.recovered.remembered, it.records, it.quarantined) == (wanted, b"", {}, 0, 0)
    assert it.notes == [f"{it.path} is of another root secret: 2 blocks there are forgotten"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["catalogue.mdb"], "the former root is nowhere any more"
    commit(tmp_path, remember(), record(5, 102, 1), root=wanted)
    again = opened(tmp_path, root=wanted)
    again.close()
    assert again.recovered.keys == (102).to_bytes(16, "big") and not again.notes
    later = opened(tmp_path)
    later.close()
    assert (later.root, later.recovered.places.tolist()) == (wanted, [5]), "who names none goes on with what is there"


def test_a_new_catalogue_has_the_root_that_is_wanted(tmp_path):
    it = opened(tmp_path, root=b"w" * 32)
    it.close()
    assert it.root == b"w" * 32 and not it.notes


def test_the_sequence_goes_on(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 41))
    it = opened(tmp_path)
    it.close()
    assert it.next_sequence == 42


@pytest.mark.parametrize(("first", "end"), [(0, 1024), (0, 0), (500, 501), (1, 8191), (31, 33), (8000, 9000)])
def test_forget_removes_exactly_its_range(tmp_path, first, end):
    commit(tmp_path, remember(), *(record(place, place, place) for place in range(8192)))
    commit(tmp_path, Forget(0, first, end))
    assert places(tmp_path) == [*range(first), *range(end, 8192)]


def test_entries_take_effect_in_their_order(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 1), Forget(0, 0, 32), record(0, 2, 2), record(1, 3, 3), Forget(0, 1, 2))
    found = recovered(tmp_path)
    assert found.keys == (2).to_bytes(16, "big")


def test_of_two_places_of_a_block_the_newer_counts(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 2), record(5, 1, 3), record(9, 1, 1))
    assert places(tmp_path) == [5]


def test_overlapping_blocks_are_both_given_up(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 1, units=8), record(4, 2, 2), record(7, 3, 3, units=2), record(9, 4, 4))
    assert places(tmp_path) == [9]


def test_where_a_place_ends_and_not_how_large_its_block_is_decides_whom_it_overlaps(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 1, units=8, stored=6), record(6, 2, 2, units=8, stored=6), record(12, 3, 3))
    assert places(tmp_path) == [0, 6, 12]
    commit(tmp_path, record(11, 4, 4))
    assert places(tmp_path) == [0, 12]


def test_frames_may_lie_at_the_end_of_an_extent_where_their_blocks_would_not_fit(tmp_path):
    commit(tmp_path, remember(), record(UNITS - 3, 1, 1, units=4, stored=3), record(2 * UNITS - 3, 2, 2, units=5, stored=4))
    assert places(tmp_path) == [UNITS - 3]


def test_frames_of_some_pages_more_than_units_lie_side_by_side(tmp_path):
    stored = 21 / 16  # pages
    at = [place_at(n, 21 * PLACE_GRAIN) for n in range(24)]
    commit(tmp_path, remember(), *(record(place, n, n, units=2, stored=stored) for n, place in enumerate(at)))
    found = recovered(tmp_path)
    assert found.places.tolist() == at and set(found.stored.tolist()) == {21 * PLACE_GRAIN}
    commit(tmp_path, record(at[3], 99, 99))  # a unit, which begins before its predecessor ends
    assert places(tmp_path) == at[:2] + at[4:]


def test_where_no_such_frame_can_lie_none_is_believed(tmp_path):
    """Of 21 pages: no place has the number 4; and the last that has room begins at 24."""
    numbers = {place_at(n, 21 * PLACE_GRAIN) for n in range(25)}
    assert 4 not in numbers and 31 in numbers
    commit(tmp_path, remember(), *(record(place, place, place, units=2, stored=21 / 16) for place in (0, 4, 31)))
    commit(tmp_path, record(8, 8, 8, units=2, stored=3))  # more than the block has
    assert places(tmp_path) == [0]


def test_places_beyond_the_space_or_across_extents_are_given_up(tmp_path):
    commit(tmp_path, remember(), record(UNITS - 1, 1, 1, units=2), record(EXTENTS * UNITS, 2, 2), record(3, 3, 3, units=0))
    assert places(tmp_path) == []
    commit(tmp_path, remember(), record(EXTENTS * UNITS - 1, 4, 4))
    assert places(tmp_path) == [EXTENTS * UNITS - 1]
    assert places(tmp_path, extents=EXTENTS - 1) == []


def test_blocks_of_unknown_namespaces_and_of_other_epochs_are_given_up(tmp_path):
    commit(tmp_path, remember(epoch=5), record(0, 1, 1, epoch=5), record(1, 2, 2, epoch=4), record(2, 3, 3, namespace=2))
    it = opened(tmp_path)
    it.close()
    assert it.recovered.places.tolist() == [0] and it.bad_records == 2


def test_each_start_compacts(tmp_path):
    commit(tmp_path, remember(), *(record(place, place, place) for place in range(8192)))
    large = (tmp_path / "catalogue.mdb").stat().st_size
    commit(tmp_path, Forget(0, 0, 8000))
    opened(tmp_path).close()
    assert (tmp_path / "catalogue.mdb").stat().st_size < large / 2
    assert (tmp_path / "catalogue.mdb").stat().st_mode & 0o777 == 0o600


# --- damage --------------------------------------------------------------------------------------------------


def flip_bit(file: bytearray, chance: random.Random) -> None:
    file[chance.randrange(len(file))] ^= 1 << chance.randrange(8)


def flip_bit_of_a_header(file: bytearray, chance: random.Random) -> None:
    page = chance.randrange(len(file) // 4096) * 4096
    file[page + chance.randrange(200)] ^= 1 << chance.randrange(8)


def zero_a_page(file: bytearray, chance: random.Random) -> None:
    page = chance.randrange(len(file) // 4096) * 4096
    file[page : page + 4096] = bytes(4096)


def swap_pages(file: bytearray, chance: random.Random) -> None:
    one, other = (chance.randrange(len(file) // 4096) * 4096 for _ in range(2))
    file[one : one + 4096], file[other : other + 4096] = file[other : other + 4096], file[one : one + 4096]


def truncate(file: bytearray, chance: random.Random) -> None:
    del file[chance.randrange(len(file)) :]


def scribble(file: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(file))
    file[at : at + 64] = chance.randbytes(64)


def append_garbage(file: bytearray, chance: random.Random) -> None:
    file += chance.randbytes(chance.randrange(1, 20000))


KINDS: list[Callable[[bytearray, random.Random], None]] = [
    flip_bit, flip_bit_of_a_header, zero_a_page, swap_pages, truncate, scribble, append_garbage,
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """A file with a past: 3000 records, written and forgotten in many commits."""
    folder = tmp_path_factory.mktemp("good")
    it = opened(folder)
    it.commit([remember()])
    for sequence in range(0, 6000, 200):
        it.commit([record(place % 8192, place, place) for place in range(sequence, sequence + 200)])
        it.commit([Forget(0, sequence, sequence + 100)])
    it.close()
    return (folder / "catalogue.mdb").read_bytes()


@pytest.mark.parametrize("seeds", [range(DAMAGES), pytest.param(range(DAMAGES, DAMAGES_LONG), marks=pytest.mark.long)],
                         ids=["few", "many"])  # fmt: skip
@pytest.mark.parametrize("damage", KINDS)
def test_damage_never_gives_a_wrong_record_and_never_ends_the_process(good, tmp_path, damage, seeds):
    survived = 0
    for seed in seeds:
        file, chance = bytearray(good), random.Random(seed)
        damage(file, chance)
        (tmp_path / "catalogue.mdb").write_bytes(file)
        it = opened(tmp_path)
        it.commit([record(8191, 9999, it.next_sequence)])
        it.close()
        for at, (place, checksum) in enumerate(zip(it.recovered.places.tolist(), it.recovered.checksums.tolist())):
            assert it.recovered.keys[16 * at : 16 * at + 16] == place.to_bytes(16, "big"), seed
            assert checksum == checksum_of(place), seed
        assert it.quarantined or it.recovered.remembered in ({DIGEST: (1, 0)}, {}), seed
        survived += len(it.recovered.places)
    print(f"{damage.__name__}: {survived / len(seeds):.0f} of 3000 records survive on the mean")


def test_a_file_that_ends_its_reader_is_kept_beside_and_the_tier_begins_empty(good, tmp_path):
    (tmp_path / "catalogue.mdb").write_bytes(good[: len(good) // 4096 // 3 * 4096])
    it = opened(tmp_path)
    it.close()
    assert it.quarantined == 1 and it.recovered.keys == b"" and it.recovered.remembered == {}
    assert "is no good" in it.notes[0] and len(it.notes) == 1
    assert places(tmp_path) == []


def test_only_the_newest_files_are_kept_beside(tmp_path):
    for n in range(QUARANTINED_MAX + 3):
        (tmp_path / "catalogue.mdb").write_bytes(bytes([n]) * 9000)
        opened(tmp_path).close()
    kept = sorted(tmp_path.glob("catalogue.mdb.corrupt-*"))
    assert [file.read_bytes()[0] for file in kept] == list(range(3, QUARANTINED_MAX + 3))


def test_a_reader_that_hangs_is_given_up(good, tmp_path, monkeypatch):
    monkeypatch.setattr(survivors, "READ_TIMEOUT_S", 0.0)
    monkeypatch.setattr(survivors, "READ_BYTES_PER_S", 1e12)
    (tmp_path / "catalogue.mdb").write_bytes(good)
    it = opened(tmp_path)
    it.close()
    assert "took more than" in it.notes[0] and it.recovered.keys == b""


def rewrite(file: Path, table: bytes, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(file), subdir=False, lock=False, max_dbs=3) as env, env.begin(write=True) as txn:
        opened_table = env.open_db(table, txn=txn)
        txn.delete(key, db=opened_table) if value is None else txn.put(key, value, db=opened_table)


@pytest.mark.parametrize("version", [0, 1, 2, 4, 2**32 - 1])
def test_a_file_of_an_unknown_version_is_set_aside(tmp_path, version):
    commit(tmp_path, remember(), record(0, 1, 1))
    meta = struct.pack("<I16s32s", version, STORE, b"r" * 32)
    seal = struct.pack("<I", _native.crc32c(b"meta" + meta))
    rewrite(tmp_path / "catalogue.mdb", b"meta", b"meta", meta + seal)
    it = opened(tmp_path)
    it.close()
    assert it.recovered.keys == b"" and f"version {version}" in it.notes[0]
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


def test_a_file_that_does_not_say_whose_it_is_is_set_aside(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 1))
    rewrite(tmp_path / "catalogue.mdb", b"meta", b"meta", None)
    assert places(tmp_path) == []


def test_rows_of_a_wrong_size_are_given_up(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 1), record(1, 2, 2))
    rewrite(tmp_path / "catalogue.mdb", b"records", b"\0\0\0\1", b"short")
    it = opened(tmp_path)
    it.close()
    assert it.recovered.places.tolist() == [0] and it.bad_records == 1


def test_a_record_at_another_place_is_given_up(tmp_path):
    commit(tmp_path, remember(), record(0, 1, 1))
    rewrite(tmp_path / "catalogue.mdb", b"records", b"\0\0\0\5", record(0, 1, 1)[4:])
    assert places(tmp_path) == [0]


# --- limits --------------------------------------------------------------------------------------------------


def test_a_full_map_is_an_error_until_the_limit_is_raised(tmp_path):
    it = opened(tmp_path, map_bytes_max=256 * 1024)
    records = [record(place, place, place) for place in range(8000)]
    with pytest.raises(lmdb.MapFullError):
        it.commit([remember(), *records])
    it.commit([remember(), *records[:500]])
    it.map_bytes_max = 16 * 1024**2
    it.commit(records[500:])
    it.close()
    assert places(tmp_path) == list(range(8000))


def test_a_limit_too_small_for_what_is_there_is_said_at_start(tmp_path):
    commit(tmp_path, remember(), *(record(place, place, place) for place in range(8000)))
    with pytest.raises(DaemonError, match=r"catalogue\.mdb"):
        opened(tmp_path, map_bytes_max=64 * 1024)
    assert places(tmp_path) == list(range(8000))


def test_200_000_records_are_recovered(tmp_path):
    count = 200_000
    extents = count // UNITS
    commit(tmp_path, remember(), *(record(place, place, place) for place in range(count)), extents=extents)
    shutil.copyfile(tmp_path / "catalogue.mdb", tmp_path / "copy")
    before = time.monotonic()
    it = opened(tmp_path, extents=extents)
    print(f"{count} records: {time.monotonic() - before:.2f} s")
    it.close()
    assert it.recovered.places.tolist() == list(range(count)) and it.bad_records == 0
