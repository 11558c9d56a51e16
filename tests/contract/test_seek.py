"""Tiers that find blocks by their keys, by the contract of kvtier/tiers/base.py: what is there is learnt by asking."""

import time
from dataclasses import replace

import pytest
from contract.caller import NAMESPACE, Caller, key_of
from contract.test_tiers import AT_ONCE_S

from kvtier.block import KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.transfer import SEEK_KEYS_MAX, Promote, Seek

pytestmark = pytest.mark.usefixtures("a_tier_that_finds_by_keys")
A, B, C = (key_of(number) for number in range(3))


def seek(caller: Caller, *keys: bytes) -> tuple[int, ...]:
    done = caller.do(Seek(caller.ticket(), NAMESPACE, pack_keys(keys)))
    assert not done.fault
    return done.sizes


def test_a_new_tier_has_nothing(caller):
    assert seek(caller, A, B) == (0, 0) and seek(caller) == ()


def test_each_block_is_found_with_its_size_in_the_order_of_the_question(caller):
    caller.demote(A, 0, units=3)
    caller.demote(C, 5)
    assert seek(caller, C, B, A, C) == (SLOT_UNIT, 0, 3 * SLOT_UNIT, SLOT_UNIT)


def test_as_many_keys_as_a_question_may_have(caller):
    caller.demote(key_of(SEEK_KEYS_MAX - 1), 0)
    sizes = seek(caller, *(key_of(n) for n in range(SEEK_KEYS_MAX)))
    assert sizes == (*(0,) * (SEEK_KEYS_MAX - 1), SLOT_UNIT)


def test_what_was_written_is_found_and_read_after_a_crash_and_an_end(caller):
    blocks = [caller.demote(key_of(n), n, content=n) for n in range(20)]
    for end in (caller.crash, caller.reopen):
        assert end().keys == b""
        caller.remember()
        assert seek(caller, *(block.key for block in blocks)) == (SLOT_UNIT,) * 20
        assert all(caller.comes_back(block) for block in blocks)


def test_neither_the_place_nor_the_checksum_matters_to_a_read(caller):
    block = caller.demote(A, 0, content=1)
    assert caller.comes_back(replace(block, place=77, checksum=0))


def test_a_read_says_the_checksum_of_what_it_read(caller):
    block = caller.demote(A, 0, content=1)
    assert caller.promote(block).checksum == block.checksum


def test_what_is_erased_is_not_found_and_gone(caller):
    block = caller.demote(A, 0)
    caller.erase(block)
    assert seek(caller, A) == (0,) and caller.promote(block).fault == "gone"


def test_what_never_was_there_is_gone(caller):
    assert caller.do(Promote(caller.ticket(), B, 0, 0, SLOT_UNIT, 0, NAMESPACE)).fault == "gone"


def test_a_flipped_bit_is_seen_and_the_block_is_not_found_again(caller):
    for n, offset in enumerate((0, SLOT_UNIT, 3 * SLOT_UNIT - 1)):
        block = caller.demote(key_of(n), 4 * n, units=3)
        caller.factory.flip_bit(caller.tier, block.place, offset)
        assert caller.promote(block).fault == "corrupt"
        until = time.monotonic() + 5
        while seek(caller, block.key) != (0,):
            assert time.monotonic() < until
        caller.demote(key_of(9), 40)
        assert caller.comes_back(caller.demote(block.key, 50, units=3)), "and it may be written again"


@pytest.mark.usefixtures("a_tier_that_overwrites")
def test_a_key_that_is_written_twice_is_there_once(caller):
    caller.demote(A, 0, content=1)
    second = caller.demote(A, 1, content=2)
    assert caller.comes_back(second)
    caller.erase(second)
    assert seek(caller, A) == (0,)


def test_many_questions_are_started_at_once_and_each_is_answered_once(caller):
    took_s = []
    for first in range(0, 200, 40):  # the machine may be busy in one of these, not in all
        begun = time.monotonic()
        tickets = [caller.start(Seek(caller.ticket(), NAMESPACE, bytes([n]) * KEY_BYTES)) for n in range(first, first + 40)]
        took_s.append(time.monotonic() - begun)
        assert all(caller.wait(ticket).sizes == (0,) for ticket in tickets)
    assert min(took_s) < AT_ONCE_S


def test_after_close_nothing_is_asked(caller):
    caller.tier.close()
    ticket = caller.start(Seek(caller.ticket(), NAMESPACE, A))
    caller.collect()
    assert caller.finished[ticket].fault == "closed" and caller.finished[ticket].sizes == ()
