"""Extents: where blocks go on the drives, and what goes for others. That it agrees with itself whatever happens is the
simulator's business (tests/sim)."""

import time

import numpy as np
import pytest

from kvtier.block import ABSENT, SLOT_UNIT, pack_keys
from kvtier.extents import Extents, extent_bytes_for

MIB, GIB = 1024**2, 1024**3
EXTENT = 2 * MIB
BLOCK = MIB // 2  # 4 of them fill an extent
UNITS = EXTENT // SLOT_UNIT


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def write(extents: Extents, number: int, size: int = BLOCK, namespace: int = 0) -> int:
    place = extents.take(size)
    assert place is not None
    extents.add(place, key(number), namespace, checksum=number)
    return place


def fill(extents: Extents, *numbers: int) -> list[int]:
    return [write(extents, number) // UNITS for number in numbers]


def known(extents: Extents, *numbers: int) -> list[int]:
    return [number for number in numbers if key(number) in extents]


def column(*numbers: int, dtype=np.uint32) -> np.ndarray:
    return np.array(numbers, dtype)


def recover(extents: Extents, *rows: tuple[int, int, int], stored: tuple[int, ...] = ()) -> int:
    """Rows: key, place, size. `stored`: bytes of each place, if there are frames."""
    keys, places, sizes = zip(*rows, strict=True)
    return extents.recover(
        pack_keys(map(key, keys)),
        column(*places),
        column(*sizes, dtype=np.int64),
        column(*[0] * len(rows), dtype=np.int32),
        column(*keys),
        None,
        column(*stored, dtype=np.int64) if stored else None,
    )


# --- size ----------------------------------------------------------------------------------------------------


def test_a_drive_has_at_least_16_extents_and_none_is_larger_than_it_must_be():
    assert extent_bytes_for(1024 * GIB, 1) == 256 * MIB
    assert extent_bytes_for(1 * GIB, 1) == 64 * MIB
    assert extent_bytes_for(1 * GIB, 4) == 16 * MIB
    assert extent_bytes_for(1 * MIB, 1) == 2 * MIB


# --- filling -------------------------------------------------------------------------------------------------


def test_an_extent_is_filled_place_after_place():
    extents = Extents(4, EXTENT)
    assert [write(extents, number) for number in range(4)] == [0, 8, 16, 24]
    assert fill(extents, 4) == [1]


def test_drives_are_written_in_turn():
    extents = Extents(6, EXTENT, drives=3)
    drives = [number % 3 for number in fill(extents, *range(6))]
    assert sorted(drives[:3]) == sorted(drives[3:]) == [0, 1, 2]


def test_blocks_of_two_sizes_share_no_extent():
    extents = Extents(4, EXTENT)
    assert write(extents, 1) // UNITS != write(extents, 2, size=MIB) // UNITS


def test_a_block_that_is_larger_than_an_extent_has_no_place():
    assert Extents(4, EXTENT).take(EXTENT + SLOT_UNIT) is None


def test_the_place_of_a_failed_write_stays_empty():
    extents = Extents(4, EXTENT)
    place = extents.take(BLOCK)
    extents.give_up(place)
    assert write(extents, 1) != place
    assert not extents.holds(place)


def test_it_knows_place_checksum_and_namespace_of_a_block_and_the_bytes_of_all():
    extents = Extents(4, EXTENT)
    place = write(extents, 7, namespace=3)
    assert extents.find(key(7) + key(8)).tolist() == [place, ABSENT]
    assert (extents.checksum(place), extents.namespace(place), extents.used_bytes) == (7, 3, BLOCK)
    assert extents.drop_namespace(3) == 1
    assert (len(extents), extents.used_bytes, extents.holds(place)) == (0, 0, False)


# --- room ----------------------------------------------------------------------------------------------------


def full(extents: int = 3) -> Extents:
    """Blocks 0 to 3 lie in extent 0, 4 to 7 in extent 1, and so on."""
    made = Extents(extents, EXTENT)
    fill(made, *range(4 * extents))
    return made


def test_of_each_place_it_says_whether_a_block_of_this_namespace_and_size_lies_there():
    extents = Extents(4, EXTENT)
    places = [write(extents, 1, namespace=1), write(extents, 2, 2 * BLOCK, 1), write(extents, 3, namespace=2)]
    assert extents.are_of(column(*places), 1, BLOCK).tolist() == [True, False, False]
    assert extents.are_of(column(*reversed(places)), 1, 2 * BLOCK).tolist() == [False, True, False]
    assert extents.are_of(column(), 1, BLOCK).tolist() == []


def test_room_is_short_when_no_drive_has_a_free_extent():
    extents = Extents(3, EXTENT)
    fill(extents, *range(8))
    assert not extents.is_short()
    fill(extents, 8)
    assert extents.is_short()


def test_what_was_used_the_longest_ago_goes_with_its_whole_extent():
    extents = full()
    extents.touch(extents.find(b"".join(key(n) for n in range(4))))
    first, end, keys = extents.reclaim()
    assert (first, end) == (UNITS, 2 * UNITS)
    assert keys == [key(n) for n in range(4, 8)]
    assert known(extents, *range(12)) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_one_use_does_not_save_an_extent_of_old_blocks():
    extents = full()
    extents.touch(extents.find(key(0)))
    assert extents.reclaim()[0] == 0


def test_an_extent_without_a_block_goes_first():
    extents = full()
    for number in range(8, 12):
        extents.drop(int(extents.find(key(number))[0]))
    assert extents.reclaim() == (2 * UNITS, 3 * UNITS, [])


def test_an_extent_in_use_stays():
    extents = full()
    extents.hold(0)
    assert extents.reclaim()[0] == UNITS
    extents.let_go(0)
    assert extents.reclaim()[0] == 0


def test_a_reclaimed_extent_is_filled_again_only_after_it_was_freed():
    extents = full()
    first, _, _ = extents.reclaim()
    assert not extents.is_short(), "one is on its way"
    assert extents.take(BLOCK) is None
    extents.freed(first)
    assert extents.take(BLOCK) == first


def test_more_sizes_than_extents_take_from_each_other():
    extents = Extents(2, EXTENT)
    write(extents, 1, size=BLOCK)
    write(extents, 2, size=MIB)
    assert extents.take(SLOT_UNIT) is None
    first, _, keys = extents.reclaim()
    assert keys == [key(1)]
    extents.freed(first)
    assert extents.take(SLOT_UNIT) == first


def test_rows_of_an_extent_that_was_freed_are_used_again():
    extents = full()
    for number in range(100, 400):
        if extents.is_short():
            extents.freed(extents.reclaim()[0])
        write(extents, number)
    assert extents._columns.rows.end == 12


# --- after a restart -----------------------------------------------------------------------------------------


def test_what_was_recovered_is_where_it_was_and_its_extent_is_filled_on():
    extents = Extents(4, EXTENT)
    assert recover(extents, (1, UNITS, BLOCK), (2, UNITS + 8, BLOCK), (3, 3 * UNITS, MIB)) == 0
    assert extents.find(key(1) + key(2) + key(3)).tolist() == [UNITS, UNITS + 8, 3 * UNITS]
    assert [extents.checksum(UNITS + 8), extents.used_bytes] == [2, 2 * BLOCK + MIB]
    assert extents.take(BLOCK) == UNITS + 16
    assert extents.take(MIB) == 3 * UNITS + 16


def test_a_hole_among_what_was_recovered_is_not_filled():
    extents = Extents(4, EXTENT)
    recover(extents, (1, 16, BLOCK))
    assert [extents.take(BLOCK) for _ in range(2)] == [24, UNITS]


def test_of_what_was_recovered_the_oldest_goes_first():
    extents = Extents(2, EXTENT)
    recover(extents, *((n, UNITS + 8 * n, BLOCK) for n in range(4)), *((4 + n, 8 * n, BLOCK) for n in range(4)))
    assert extents.reclaim()[0] == UNITS


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param((2, 16, MIB), id="of another size than the rest of its extent"),
        pytest.param((2, 9, BLOCK), id="between two places"),
        pytest.param((1, 8, BLOCK), id="twice"),
    ],
)
def test_a_row_that_does_not_fit_in_is_left_out(odd):
    extents = Extents(4, EXTENT)
    assert recover(extents, (1, 0, BLOCK), odd) == 1
    assert known(extents, 1, 2) == [1]
    assert extents.used_bytes == BLOCK


def test_a_row_behind_the_last_place_of_its_extent_is_left_out():
    """Six blocks of five units fill an extent; a seventh would have the row of the next extent's first."""
    extents, size = Extents(4, EXTENT), 5 * SLOT_UNIT
    assert recover(extents, (1, 0, size), (2, 30, size), (3, UNITS, size)) == 1
    assert known(extents, 1, 2, 3) == [1, 3]
    assert extents.checksum(UNITS) == 3


# --- memory --------------------------------------------------------------------------------------------------


class CountedTable:
    """Counts, and keeps nothing."""

    def __init__(self) -> None:
        self.n = 0

    def __len__(self) -> int:
        return self.n

    def add_many(self, keys: bytes, slots: np.ndarray) -> np.ndarray:
        self.n += len(slots)
        return np.ones(len(slots), bool)


def a_million(origins: np.ndarray) -> Extents:
    blocks, extent_bytes, size = 1_000_000, 256 * MIB, SLOT_UNIT
    n = extent_bytes // size
    extents = Extents(-(-blocks // n), extent_bytes, table=CountedTable())
    zeros = np.zeros(blocks, np.int32)
    places = np.arange(blocks, dtype=np.uint32)
    columns = places, np.full(blocks, size), zeros, zeros.astype(np.uint32), origins
    assert extents.recover(bytes(16 * blocks), *columns) == 0
    assert len(extents) == blocks
    return extents


def columns_of(extents: Extents) -> list[np.ndarray]:
    return [value for value in vars(extents._columns).values() if isinstance(value, np.ndarray)]


def test_a_million_blocks_take_less_than_40_bytes_each_beside_the_key_table():
    extents = a_million(np.zeros((1_000_000, 16), np.uint8))
    assert sum(c.nbytes for c in columns_of(extents)) < 40e6, "80 are the key table's: 120 in all"


def test_of_a_million_blocks_origins_take_16_bytes_each_and_those_of_one_are_found_at_once():
    origins = np.zeros((1_000_000, 16), np.uint8)
    origins[::1000] = np.frombuffer(b"session.tenant..", np.uint8)
    extents = a_million(origins)
    rows = sum(c[..., : extents._columns.rows.end].nbytes for c in columns_of(extents))  # what is ahead was never touched
    assert rows == 44 * extents._columns.rows.end
    before = time.perf_counter()
    found = extents.of_origin(b"session.", b"")
    assert time.perf_counter() - before < 0.1
    assert found.tolist() == list(range(0, 1_000_000, 1000))
