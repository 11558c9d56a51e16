"""Erase, by the contract of kvtier/tiers/base.py: the bytes are zeros, the record is gone, and nothing else is touched."""

import random

import pytest
from contract.caller import Caller, Stored, key_of, keys_of

from kvtier.block import SLOT_UNIT
from kvtier.transfer import Flush

A, B, C = (key_of(number) for number in range(3))
survives = pytest.mark.usefixtures("a_tier_that_survives")


def recovered(caller: Caller) -> list[Stored]:
    """All that a crash left, as the store knows it then."""
    found = caller.crash()
    numbers = {key_of(number): number for number in range(300)}
    rows = zip(keys_of(found), found.places.tolist(), found.sizes.tolist(), found.checksums.tolist(), strict=True)
    return [Stored(key, place, size, 7, 0, checksum, numbers[key]) for key, place, size, checksum in rows]


@pytest.mark.parametrize("units", [1, 5, 32])
def test_an_erased_place_reads_as_zeros_from_the_drive(caller, units):
    block = caller.demote(A, 32, units, content=1)
    assert caller.lies_there(block)
    caller.erase(block)
    assert caller.is_zero(block)


def test_its_neighbours_are_untouched(caller):
    left, block, right = (caller.demote(key_of(n), 32 + 3 * n, 3, content=n) for n in range(3))
    caller.erase(block)
    assert caller.lies_there(left) and caller.lies_there(right)
    assert caller.comes_back(left) and caller.comes_back(right)


@survives
def test_what_was_erased_is_not_recovered(caller):
    blocks = [caller.demote(key_of(n), n, content=n) for n in range(4)]
    caller.flush()
    caller.erase(blocks[1])
    assert keys_of(caller.reopen()) == [key_of(0), key_of(2), key_of(3)]
    caller.erase(blocks[3])
    assert keys_of(caller.crash()) == [key_of(0), key_of(2)]
    assert caller.comes_back(blocks[0]) and caller.comes_back(blocks[2])


@survives
def test_a_block_is_erased_before_its_record_was_due(caller):
    caller.erase(caller.demote(A, 20))
    assert keys_of(caller.crash()) == []


@survives
def test_a_recovered_block_is_erased(caller):
    caller.demote(A, 5, 2, content=0)
    caller.demote(B, 7, 2, content=1)
    caller.flush()
    first, second = recovered(caller)
    caller.erase(first)
    assert caller.is_zero(first) and caller.comes_back(second)
    assert keys_of(caller.crash()) == [B]


def test_an_erase_may_be_said_again(caller):
    block = caller.demote(A, 0)
    caller.erase(block)
    caller.erase(block)
    assert caller.is_zero(block)
    if caller.factory.survives:
        assert keys_of(caller.crash()) == []


@survives
def test_a_place_that_was_erased_is_written_again_after_a_forget(caller):
    caller.erase(caller.demote(A, 0, 4, content=1))
    caller.forget(0, 32)
    block = caller.demote(B, 2, 2, content=2)
    caller.flush()
    assert keys_of(caller.crash()) == [B] and caller.comes_back(block)


def test_an_erase_among_writes_and_reads_of_others(caller):
    """Whatever the order in which they finish: each block that is left comes back, none that was erased does."""
    chance = random.Random(3)
    blocks = [caller.demote(key_of(n), n, content=n) for n in range(128)]
    doomed, kept = blocks[::2], blocks[1::2]
    orders = [lambda block=block: caller.start_erase(block) for block in doomed]
    orders += [lambda n=n: caller.start_demote(key_of(n), n, slot=n - 128, content=n) for n in range(128, 192)]
    chance.shuffle(orders)
    tickets = []
    for order in orders:
        tickets.append(order())
        if chance.random() < 0.2:
            assert caller.comes_back(chance.choice(kept))
    assert {caller.wait(ticket).fault for ticket in tickets} == {""}
    caller.flush()
    assert all(caller.is_zero(block) for block in doomed) and all(caller.comes_back(block) for block in kept)
    if caller.factory.survives:
        left = recovered(caller)
        assert sorted(block.place for block in left) == [*range(1, 128, 2), *range(128, 192)]
        assert all(caller.comes_back(block) for block in left)


@survives
def test_a_crash_while_it_is_erased_leaves_the_block_a_miss_or_nothing(caller):
    blocks = [caller.demote(key_of(n), 32 * n, 32, content=n) for n in range(8)]
    caller.flush()
    tickets = {caller.start_erase(block): block for block in blocks}
    caller.wait(next(iter(tickets)))
    over = {tickets[ticket].key for ticket in tickets if ticket in caller.finished}
    for block in recovered(caller):
        assert block.key not in over, "an erased block is back"
        done = caller.promote(block)
        assert done.fault == "corrupt" or (not done.fault and caller.lies_there(block))


@survives
def test_close_finishes_an_erase(caller):
    block = caller.demote(A, 0, 8, content=1)
    ticket = caller.start_erase(block)
    caller.tier.close()
    caller.collect()
    assert caller.finished[ticket].fault == ""
    assert caller.is_zero(block) and keys_of(caller.reopen()) == []


@survives
def test_after_close_nothing_is_erased(caller):
    block = caller.demote(A, 0, content=1)
    caller.tier.close()
    ticket = caller.start_erase(block)
    caller.collect()
    assert caller.finished[ticket].fault == "closed" and caller.lies_there(block)
    caller.reopen()
    assert caller.comes_back(block)


@survives
def test_a_flush_after_an_erase_does_not_bring_the_block_back(caller):
    block, other = caller.demote(A, 0, content=1), caller.demote(B, 1, content=2)
    tickets = [caller.start_erase(block), caller.start(Flush(caller.ticket()))]
    assert {caller.wait(ticket).fault for ticket in tickets} == {""}
    assert keys_of(caller.crash()) == [B] and caller.comes_back(other)
    assert other.size == SLOT_UNIT
