"""The NVMe tier with frames: what it counts, what a changed record costs, and what is no fault of the drive."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
from coded_blocks import forged
from contract.caller import NAMESPACE, Caller, Stored, frame_of, key_of, keys_of
from contract.factories import EncryptedNvmeFactory, NvmeFactory

from kvtier import _native
from kvtier.block import PLACE_GRAIN, SLOT_UNIT, place_at
from kvtier.codec import Codec
from kvtier.tiers import block_io, encoders
from kvtier.tiers.catalogue_reader import RECORDS, SEALED
from kvtier.transfer import Demote, Forget

A, B, C = (key_of(number) for number in range(3))
EXP12 = Codec("exp12")
UNITS, PLACE_UNITS = 20, 16  # of a block and of its frame
STORED_AT = 24  # in a record


@pytest.fixture(params=[NvmeFactory, EncryptedNvmeFactory], ids=["clear", "encrypted"])
def caller(request, tmp_path) -> Iterator[Caller]:
    caller = Caller(request.param(), tmp_path / "life0")
    caller.remember()
    yield caller
    caller.tier.close()


def counts(caller: Caller) -> dict[str, object]:
    state = caller.tier.state()
    return {name: state[name] for name in ("frames_written", "frames_read", "larger_frames", "corrupt_blocks")}


def change_stored(folder: Path, place: int, stored: int) -> None:
    """In the record, with a crc that fits: as somebody does who can write there."""
    with lmdb.open(str(folder / "catalogue.mdb"), subdir=False, lock=False, max_dbs=4) as env, env.begin(write=True) as txn:
        key = place.to_bytes(4, "big")
        for name in (RECORDS, SEALED):
            table = env.open_db(name, txn=txn)
            if (value := txn.get(key, db=table)) is not None:
                row = bytearray(value)
                row[STORED_AT : STORED_AT + 4] = (stored // PLACE_GRAIN).to_bytes(4, "little")
                row[-4:] = _native.crc32c(key + bytes(row[:-4])).to_bytes(4, "little")
                txn.put(key, bytes(row), db=table)


def test_what_is_counted_is_what_moved(caller):
    frame, block = caller.demote_coded(A, 0, UNITS, EXP12), caller.demote(B, 32, UNITS)
    assert frame.place_bytes == PLACE_UNITS * SLOT_UNIT
    assert caller.comes_back(frame) and caller.comes_back(block)
    caller.erase(frame)
    state, moved = caller.tier.state(), (PLACE_UNITS + UNITS) * SLOT_UNIT
    assert (state["written_bytes"], state["read_bytes"]) == (moved, moved)
    assert state["erased_bytes"] == frame.place_bytes
    assert counts(caller) == {"frames_written": 1, "frames_read": 1, "larger_frames": 0, "corrupt_blocks": 0}


def test_a_frame_that_does_not_fit_is_no_fault_of_the_drive(caller):
    order = Demote(caller.ticket(), A, 0, 0, UNITS * SLOT_UNIT, NAMESPACE, 0, b"", EXP12, SLOT_UNIT)
    assert caller.do(order).fault == "larger" and not caller.tier.read_only
    assert counts(caller) == {"frames_written": 0, "frames_read": 0, "larger_frames": 1, "corrupt_blocks": 0}
    assert caller.tier.state()["failed_writes"] == 0
    caller.flush()
    assert keys_of(caller.crash()) == []


def test_where_there_is_no_such_codec_nothing_is_written(caller, monkeypatch):
    monkeypatch.setattr(block_io, "encoder_of", lambda codec: None)
    order = Demote(caller.ticket(), A, 0, 0, UNITS * SLOT_UNIT, NAMESPACE, 0, b"", EXP12, PLACE_UNITS * SLOT_UNIT)
    assert caller.do(order).fault == "larger" and not caller.tier.read_only
    assert encoders.encoder_of(EXP12) is not None


def test_a_block_that_memory_was_too_short_for_is_one_fault_and_the_next_is_taken(caller, monkeypatch):
    with monkeypatch.context() as patched:
        real = caller.tier._io.poll
        patched.setattr(caller.tier._io, "poll", lambda: [(row[0], errno.ENOMEM, 0, 0.0, 0, 0.0, "") for row in real()])
        order = Demote(caller.ticket(), A, 0, 0, UNITS * SLOT_UNIT, NAMESPACE, 0, b"", EXP12, PLACE_UNITS * SLOT_UNIT)
        assert caller.do(order).fault == "io"
    assert not caller.tier.read_only
    assert caller.comes_back(caller.demote_coded(A, 0, UNITS, EXP12))


@pytest.mark.parametrize("units", [1, PLACE_UNITS - 1, PLACE_UNITS + 1, UNITS])
def test_a_record_that_lies_about_its_place_is_a_block_that_is_lost(caller, units):
    block = caller.demote_coded(A, 0, UNITS, EXP12, content=1)
    caller.flush()
    caller.tier.close()
    change_stored(caller.tier._files.paths[0], 0, units * SLOT_UNIT)
    found = caller.reopen()
    assert found.stored.tolist() == [units * SLOT_UNIT]
    assert caller.promote(replace(block, stored=units * SLOT_UNIT)).fault == "corrupt"
    assert counts(caller)["corrupt_blocks"] == 1


@pytest.mark.parametrize("units", [0, UNITS + 1])
def test_a_record_that_can_t_be_true_is_not_believed(caller, units):
    caller.demote_coded(A, 0, UNITS, EXP12)
    caller.flush()
    caller.tier.close()
    change_stored(caller.tier._files.paths[0], 0, units * SLOT_UNIT)
    assert keys_of(caller.reopen()) == [] and caller.tier.bad_records == 1


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"version": 9}, "frames by exp12 can't be read here: another kvtier wrote them"),
        ({"codec": 99}, "frames by codec 99 can't be read here: another kvtier wrote them"),
    ],
    ids=["another version", "another codec"],
)
def test_a_whole_frame_that_nobody_here_knows_is_left_alone(tmp_path, changes, note):
    caller = Caller(NvmeFactory(), tmp_path / "life0")
    caller.remember()
    block = caller.demote_coded(A, 0, UNITS, EXP12)
    frame = np.frombuffer(caller.raw(block), np.uint8)
    other = forged(frame, _native.crc32c(A), **changes)
    put(caller, block, other.tobytes())
    assert [caller.promote(block).fault for _ in range(2)] == ["io", "io"] and not caller.tier.read_only
    assert counts(caller)["corrupt_blocks"] == 0 and caller.tier.state()["failed_reads"] == 2
    assert caller.tier.notes.count(note) == 1
    assert caller.raw(block) == other.tobytes()
    put(caller, block, frame.tobytes())
    assert caller.comes_back(block)
    caller.tier.close()


def put(caller: Caller, block: Stored, frame: bytes) -> None:
    with caller.factory._at(caller.tier, block.place, block.place_bytes) as blocks:
        blocks.write(frame)


def test_places_of_frames_may_lie_side_by_side_closer_than_their_blocks_could(caller):
    blocks = [caller.demote_coded(key_of(n), n * 8, 10, EXP12, content=n) for n in range(4)]
    assert {block.place_bytes for block in blocks} == {8 * SLOT_UNIT}
    caller.flush()
    assert sorted(keys_of(caller.crash())) == sorted(block.key for block in blocks)
    assert all(caller.comes_back(block) for block in blocks)


@pytest.fixture
def side_by_side(caller) -> list[Stored]:
    """Frames in an extent, each as many bytes as it takes, by pages."""
    units, first = 8, caller.tier.extent_bytes // SLOT_UNIT
    stored = -(-max(len(frame_of(n, units * SLOT_UNIT, EXP12)) for n in range(5)) // PLACE_GRAIN) * PLACE_GRAIN
    assert stored % SLOT_UNIT and 5 * stored < caller.tier.extent_bytes
    made = []
    for n in range(5):
        place = first + place_at(n, stored)
        done = caller.wait(caller.start_demote_coded(key_of(n), place, units, EXP12, n, stored=stored))
        assert not done.fault
        made.append(replace(caller.stored_of(key_of(n), place, units, EXP12, n, done), stored=stored))
    return made


def test_frames_lie_as_close_as_their_pages(caller, side_by_side):
    stored = side_by_side[0].stored
    assert all(caller.comes_back(frame) for frame in side_by_side)
    in_file = caller.factory.raw(caller.tier, caller.tier.extent_bytes // SLOT_UNIT, 32 * SLOT_UNIT)
    lying = [in_file[n * stored : (n + 1) * stored] for n in range(5)]
    assert lying == [caller.raw(frame) for frame in side_by_side] and not any(in_file[5 * stored :])


def test_they_are_recovered_where_they_lie(caller, side_by_side):
    caller.flush()
    for end in (caller.reopen, caller.crash):
        found = end()
        assert keys_of(found) == [frame.key for frame in side_by_side]
        assert found.places.tolist() == [frame.place for frame in side_by_side]
        assert set(found.stored.tolist()) == {side_by_side[0].stored}
        assert all(caller.comes_back(frame) for frame in side_by_side)


def test_to_erase_one_of_them_leaves_its_neighbours(caller, side_by_side):
    caller.erase(side_by_side[2])
    left = [frame for n, frame in enumerate(side_by_side) if n != 2]
    assert caller.is_zero(side_by_side[2]) and all(caller.comes_back(frame) for frame in left)
    caller.flush()
    assert keys_of(caller.crash()) == [frame.key for frame in left]


def test_to_forget_one_of_them_leaves_its_neighbours(caller, side_by_side):
    place = side_by_side[2].place
    caller.forget(place, place + side_by_side[2].stored // SLOT_UNIT)
    caller.flush()
    assert keys_of(caller.crash()) == [key_of(n) for n in (0, 1, 3, 4)]
    assert all(caller.comes_back(frame) for n, frame in enumerate(side_by_side) if n != 2)


def test_a_place_that_had_a_block_is_given_to_a_frame_and_back(caller):
    caller.demote(A, 0, UNITS, content=1)
    caller.forget(0, UNITS)
    caller.demote_coded(B, 0, UNITS, EXP12, content=2)
    caller.forget(0, UNITS)
    last = caller.demote_coded(C, 0, UNITS, EXP12, content=3)
    caller.flush()
    assert keys_of(caller.crash()) == [C] and caller.comes_back(last)
    assert caller.do(Forget(caller.ticket(), 0, UNITS)).fault == ""
