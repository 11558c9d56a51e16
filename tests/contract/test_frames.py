"""Frames, by the contract of kvtier/tiers/base.py: of every tier that keeps them, by each codec, beside raw blocks."""

from dataclasses import replace

import pytest
from coded_blocks import of_noise
from contract.caller import NAMESPACE, Caller, Stored, key_of, keys_of

from kvtier.block import SLOT_UNIT
from kvtier.codec import RAW, Codec, read_codec
from kvtier.tiers.encoders import why_not
from kvtier.transfer import Demote, Promote

A, B, C = (key_of(number) for number in range(3))
EXP12 = Codec("exp12")
survives = pytest.mark.usefixtures("a_tier_that_survives")
has_places = pytest.mark.usefixtures("a_tier_with_places")
pytestmark = pytest.mark.usefixtures("a_tier_that_keeps_frames")


@pytest.fixture(params=["exp12", "expz", "int8:bf16:64"])
def codec(request) -> Codec:
    found = read_codec(request.param)
    if why_not(found):
        pytest.skip(why_not(found))
    return found


def between_neighbours(caller: Caller, codec: Codec, units: int = 20) -> tuple[Stored, Stored, Stored]:
    """On the drives it begins and ends where they do."""
    left = caller.demote(A, 32, 2, content=1)
    block = caller.demote_coded(B, 34, units, codec, content=2)
    return left, block, caller.demote(C, 34 + block.place_bytes // SLOT_UNIT, 2, content=3)


@pytest.mark.parametrize("units", [5, 32])
def test_a_coded_block_takes_less_and_comes_back(caller, codec, units):
    block = caller.demote_coded(A, 32, units, codec, content=1)
    assert block.place_bytes < block.size and caller.lies_there(block)
    assert caller.comes_back(block) and caller.comes_back(block)


def test_a_read_says_that_there_was_a_frame_and_what_it_took(caller, codec):
    done = caller.promote(caller.demote_coded(A, 0, 20, codec))
    assert not done.fault and done.coded_s > 0 and 0 < done.stored < 20 * SLOT_UNIT
    assert done.codec in ("", codec.name)


def test_of_blocks_as_they_are_nothing_is_coded(caller):
    block = caller.demote(A, 0, 4, content=1)
    done = caller.promote(block)
    assert (done.coded_s, done.codec) == (0.0, "") and done.stored in (0, block.size)


def test_neighbours_are_untouched(caller, codec):
    left, block, right = between_neighbours(caller, codec)
    assert all(caller.comes_back(one) for one in (left, block, right))


@survives
def test_both_sizes_are_recovered_and_the_block_comes_back(caller, codec):
    blocks = between_neighbours(caller, codec)
    caller.flush()
    for end in (caller.reopen, caller.crash):
        found = end()
        assert keys_of(found) == [A, B, C]
        assert found.sizes.tolist() == [block.size for block in blocks]
        assert found.stored.tolist() == [block.place_bytes for block in blocks]
        assert all(caller.comes_back(block) for block in blocks)


def test_what_is_erased_is_the_place_and_no_more(caller, codec):
    left, block, right = between_neighbours(caller, codec)
    caller.erase(block)
    assert caller.is_zero(block) and caller.comes_back(left) and caller.comes_back(right)
    if caller.factory.survives:
        caller.flush()
        assert keys_of(caller.crash()) == [A, C]


@has_places
def test_what_does_not_fit_leaves_nothing_there_and_is_taken_as_it_is(caller, codec):
    block = Stored(A, 40, 20 * SLOT_UNIT, NAMESPACE, 0, 0, 1, stored=5 * SLOT_UNIT)
    caller.factory.memory(0, block.size)[:] = of_noise(block.size).tobytes()
    order = Demote(caller.ticket(), A, 0, block.place, block.size, NAMESPACE, 0, b"", codec, block.stored)
    done = caller.do(order)
    assert (done.fault, done.stored, done.checksum) == ("larger", 0, 0)
    assert caller.is_zero(block) and not caller.tier.read_only
    assert caller.comes_back(caller.demote(A, block.place, 20, content=2))
    if caller.factory.survives:
        caller.flush()
        assert caller.crash().stored.tolist() == [20 * SLOT_UNIT]


@has_places
@pytest.mark.parametrize("where", [0.0, 0.5, 0.9, 1.0])
def test_a_flipped_bit_anywhere_is_seen(caller, codec, where):
    block = caller.demote_coded(A, 32, 20, codec, content=1)
    offset = int(where * (block.place_bytes - 1))
    caller.factory.flip_bit(caller.tier, block.place, offset)
    done = caller.promote(block)
    is_lost = done.fault == "corrupt"
    assert is_lost or (not done.fault and caller.comes_back(block)), "it may have hit a byte that nobody needs"
    assert is_lost or 0.5 < where < 1.0
    caller.factory.flip_bit(caller.tier, block.place, offset)
    assert caller.comes_back(block)


@has_places
def test_a_frame_in_another_place_or_under_another_key_is_seen(caller, codec):
    first = caller.demote_coded(A, 0, 20, codec, content=1)
    second = caller.demote_coded(B, 32, 20, codec, content=2)
    for wrong in (replace(first, place=second.place), replace(first, key=B), replace(first, checksum=second.checksum)):
        seen = caller.promote(wrong).fault == "corrupt"
        assert seen or (wrong.place, wrong.key) == (first.place, first.key), "a seal needs no checksum"


@has_places
def test_whoever_takes_a_frame_for_a_block_or_a_block_for_a_frame_gets_nothing(caller):
    frame, block = caller.demote_coded(A, 0, 20, EXP12, content=1), caller.demote(B, 32, 20, content=2)
    assert caller.promote(replace(frame, stored=0)).fault == "corrupt"
    assert caller.promote(replace(frame, size=frame.place_bytes, stored=0)).fault == "corrupt"
    assert caller.promote(replace(frame, size=frame.size + SLOT_UNIT)).fault == "corrupt"
    assert caller.promote(replace(block, stored=15 * SLOT_UNIT)).fault == "corrupt"


def test_many_of_all_kinds_at_once(caller):
    """Written and read at the same time; each is what it was."""
    codecs = [RAW, EXP12, Codec("int8", "bf16", 64), RAW]
    blocks, tickets = [], {}
    for n in range(48):
        codec, place = codecs[n % 4], 8 * n
        if codec == RAW:
            tickets[caller.start_demote(key_of(n), place, 8, slot=8 * n, content=n)] = n
        else:
            tickets[caller.start_demote_coded(key_of(n), place, 8, codec, n, slot=8 * n)] = n
        if blocks and n % 5 == 0:
            assert caller.comes_back(blocks[-1], slot=900)
        if n % 8 == 7:
            for ticket, number in tickets.items():
                done = caller.wait(ticket)
                assert not done.fault
                blocks.append(caller.stored_of(key_of(number), 8 * number, 8, codecs[number % 4], number, done))
            tickets.clear()
    assert len(blocks) == 48 and all(caller.comes_back(block) for block in blocks)


def test_close_finishes_frames_that_are_under_way(caller):
    tickets = [caller.start_demote_coded(key_of(n), 8 * n, 8, EXP12, n, slot=8 * n) for n in range(20)]
    caller.tier.close()
    caller.collect()
    assert {caller.finished[ticket].fault for ticket in tickets} <= {"", "closed"}


def test_a_frame_is_read_beside_writes_of_frames(caller):
    block = caller.demote_coded(A, 0, 16, EXP12, content=5)
    writes = [caller.start_demote_coded(key_of(n), 16 * n, 16, EXP12, n, slot=16 * n + 200) for n in range(1, 30)]
    order = Promote(caller.ticket(), A, 100, 0, block.size, block.checksum, NAMESPACE, block.stored)
    assert not caller.do(order).fault and all(caller.wait(ticket).fault == "" for ticket in writes)
