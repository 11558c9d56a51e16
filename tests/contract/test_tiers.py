"""What kvtier/tiers/base.py says, sentence by sentence, of every tier in conftest.FACTORIES."""

import os
import random
import select
import time
from dataclasses import replace

import pytest
from contract.caller import DIGEST, NAMESPACE, WAIT_S, Caller, Stored, key_of, keys_of

from kvtier.block import SLOT_UNIT
from kvtier.tiers.base import Recovered
from kvtier.transfer import Demote, Erase, Flush, Forget, Promote, Remember

AT_ONCE_S = 0.1
OTHER_DIGEST = b"o" * 32

A, B, C = (key_of(number) for number in range(3))
survives = pytest.mark.usefixtures("a_tier_that_survives")
has_places = pytest.mark.usefixtures("a_tier_with_places")


# --- bytes ---------------------------------------------------------------------------------------------------


def test_a_new_tier_has_nothing_to_recover(factory, folder):
    caller = Caller(factory, folder)
    assert keys_of(caller.tier.recovered) == [] and caller.tier.recovered.remembered == {}
    assert not caller.tier.read_only
    caller.tier.close()


@pytest.mark.parametrize("units", [1, 5, 32])
def test_the_bytes_come_back(caller, units):
    block = caller.demote(A, 32, units, content=1)
    assert caller.comes_back(block)


def test_blocks_all_over_the_space_come_back(caller):
    last = caller.units - 1
    blocks = [caller.demote(key_of(n), place, content=n) for n, place in enumerate([0, 31, 32, 33, 64, last // 2, last])]
    assert all(caller.comes_back(block) for block in blocks)


@has_places
def test_a_flipped_bit_is_seen(caller):
    block = caller.demote(A, 40, 3)
    for offset in (0, SLOT_UNIT, 3 * SLOT_UNIT - 1):
        caller.factory.flip_bit(caller.tier, block.place, offset)
        assert caller.promote(block).fault == "corrupt"
        caller.factory.flip_bit(caller.tier, block.place, offset)
    assert caller.comes_back(block)


@has_places
def test_the_bytes_of_another_place_are_seen(caller):
    first, second = caller.demote(A, 0, content=1), caller.demote(B, 1, content=2)
    assert caller.promote(replace(first, place=second.place)).fault == "corrupt"
    assert caller.promote(replace(second, place=first.place)).fault == "corrupt"


@has_places
def test_the_bytes_under_another_key_are_seen(caller):
    block = caller.demote(A, 0)
    assert caller.promote(replace(block, key=B)).fault == "corrupt"
    equal = caller.demote(B, 1)  # the same bytes
    assert caller.promote(replace(block, key=B)).fault == "corrupt"
    assert caller.comes_back(equal)


# --- transfers -----------------------------------------------------------------------------------------------


def test_every_transfer_is_finished_exactly_once(caller):
    tickets = [caller.start_demote(key_of(n), n, slot=n % 64, content=n % 64) for n in range(256)]
    flushes = [caller.start(Flush(caller.ticket())) for _ in range(3)]
    tickets += [caller.start(Forget(caller.ticket(), 300 + n, 301 + n)) for n in range(20)]
    tickets += [caller.start(Erase(caller.ticket(), 400 + n, SLOT_UNIT, key_of(n), NAMESPACE)) for n in range(20)]
    tickets += [caller.start(Remember(caller.ticket(), OTHER_DIGEST, 8, n)) for n in range(20)]
    assert all(caller.wait(ticket).fault == "" for ticket in tickets)
    assert all(caller.wait(ticket).fault == caller.factory.flush_fault for ticket in flushes)
    time.sleep(0.05)
    caller.collect()  # asserts that there is no second one
    assert not caller.under_way


def test_nothing_waits_for_the_drive(caller):
    """Neither `start` nor `poll`, whatever is under way."""
    slowest = 0.0
    demotes = [Demote(caller.ticket(), key_of(n), 0, 8 * n, 8 * SLOT_UNIT, NAMESPACE, 0) for n in range(32)]
    for transfer in [*demotes, *(Flush(caller.ticket()) for _ in range(100))]:
        before = time.monotonic()
        caller.start(transfer)
        caller.collect()
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < AT_ONCE_S
    while caller.under_way:
        caller.wait(next(iter(caller.under_way)))


def test_the_descriptor_is_readable_only_when_there_is_something_to_collect(caller):
    caller.flush()
    time.sleep(0.05)
    caller.collect()
    assert select.select([caller.tier.fileno()], [], [], 0)[0] == []
    ticket = caller.start(Flush(caller.ticket()))
    assert select.select([caller.tier.fileno()], [], [], WAIT_S)[0]
    caller.wait(ticket)


def test_a_read_waits_for_few_of_the_writes(caller):
    block = caller.demote(A, 0, 16, content=5)
    demotes = [Demote(caller.ticket(), key_of(n), 200, 16 * n, block.size, NAMESPACE, 0) for n in range(1, 30)]
    writes = {caller.start(demote) for demote in demotes}
    caller.collect()
    before = set(caller.order)  # of those it didn't wait for: who starts them may be slower than the drive
    read = caller.start(Promote(caller.ticket(), A, 100, 0, block.size, block.checksum, NAMESPACE))
    assert not caller.wait(read).fault
    waited_for = (writes & set(caller.order[: caller.order.index(read)])) - before
    assert len(waited_for) < len(writes) / 2
    assert all(caller.wait(ticket).fault == "" for ticket in writes)


def test_close_finishes_what_is_under_way(caller):
    tickets = {caller.start_demote(key_of(n), n, slot=n) for n in range(60)}
    tickets.add(caller.start(Forget(caller.ticket(), 100, 200)))
    tickets.add(caller.start(Erase(caller.ticket(), 70, SLOT_UNIT, A, NAMESPACE)))
    tickets.add(caller.start(Flush(caller.ticket())))
    caller.tier.close()
    caller.collect()
    assert all(caller.finished[ticket].fault in ("", "closed", caller.factory.flush_fault) for ticket in tickets)


def test_after_close_no_file_is_open_and_nothing_is_taken(caller, folder):
    caller.demote(A, 0)
    caller.tier.close()
    open_ = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [file for file in open_ if file.startswith(str(folder.parent))]
    tickets = [caller.start(Flush(caller.ticket())), caller.start(Promote(caller.ticket(), A, 0, 0, SLOT_UNIT, 0))]
    caller.collect()
    assert [caller.finished[ticket].fault for ticket in tickets] == ["closed", "closed"]
    caller.tier.close()  # again


# --- what survives -------------------------------------------------------------------------------------------


@survives
def test_all_is_recovered_after_a_clean_end_in_the_order_of_demotion(caller):
    places = [50, 3, 90, 31, 64]
    blocks = [caller.demote(key_of(n), place, content=n) for n, place in enumerate(places)]
    recovered = caller.reopen()
    assert recovered.places.tolist() == places
    assert keys_of(recovered) == [block.key for block in blocks]
    assert recovered.checksums.tolist() == [block.checksum for block in blocks]
    assert set(recovered.sizes.tolist()) == {SLOT_UNIT} and set(recovered.namespaces.tolist()) == {NAMESPACE}
    assert recovered.epochs.tolist() == [0] * 5
    assert recovered.remembered == {DIGEST: (NAMESPACE, 0)}
    assert all(caller.comes_back(block) for block in blocks)


@survives
def test_the_origin_of_a_block_comes_back_and_is_zeros_where_there_was_none(caller):
    for number, origin in enumerate([b"\1" * 8 + b"\2" * 8, b"", bytes(8) + b"tenant.."]):
        caller.demote(key_of(number), number, origin=origin)
    assert caller.reopen().origins.tolist() == [[1] * 8 + [2] * 8, [0] * 16, [0] * 8 + list(b"tenant..")]


@survives
def test_the_order_goes_on_over_restarts(caller):
    caller.demote(A, 9)
    caller.reopen()
    caller.demote(B, 5)
    assert keys_of(caller.reopen()) == [A, B]
    caller.demote(C, 1)
    assert keys_of(caller.reopen()) == [A, B, C]


@survives
def test_what_was_flushed_survives_a_crash(caller):
    blocks = [caller.demote(key_of(n), n, content=n) for n in range(40)]
    caller.flush()
    assert keys_of(caller.crash()) == [block.key for block in blocks]
    assert all(caller.comes_back(block) for block in blocks)


@survives
def test_what_was_not_flushed_is_recovered_whole_or_not_at_all(caller):
    blocks = {key_of(n): caller.demote(key_of(n), n, content=n) for n in range(40)}
    kept = keys_of(caller.crash())
    assert all(caller.comes_back(blocks[key]) for key in kept)


@survives
def test_what_was_forgotten_is_not_recovered_after_a_crash(caller):
    for n in range(64):
        caller.demote(key_of(n), n)
    caller.flush()
    caller.forget(16, 48)
    assert sorted(caller.crash().places.tolist()) == [*range(16), *range(48, 64)]


@survives
def test_a_block_is_forgotten_before_its_record_was_due(caller):
    caller.demote(A, 20)
    caller.forget(0, 32)
    assert keys_of(caller.crash()) == []


@survives
def test_a_place_that_was_written_again_comes_back_as_the_new_block(caller):
    caller.demote(A, 0, 4, content=1)
    caller.flush()
    caller.forget(0, 4)
    block = caller.demote(B, 1, 2, content=2)
    caller.flush()
    assert keys_of(caller.crash()) == [B]
    assert caller.comes_back(block)


def test_forgetting_what_is_not_there_is_no_fault(caller):
    caller.forget(0, 512)
    caller.forget(5, 5)


@survives
def test_a_block_is_not_recovered_without_its_namespace(factory, folder):
    caller = Caller(factory, folder)
    caller.demote(A, 0)
    caller.flush()
    assert keys_of(caller.crash()) == []
    caller.tier.close()


@survives
def test_a_block_of_an_earlier_epoch_is_not_recovered(caller):
    caller.demote(A, 0, epoch=0)
    caller.remember(epoch=1)
    caller.demote(B, 1, epoch=1)
    caller.flush()
    recovered = caller.crash()
    assert keys_of(recovered) == [B]
    assert recovered.remembered == {DIGEST: (NAMESPACE, 1)}


@survives
def test_an_epoch_is_remembered_without_a_block_too(caller):
    caller.remember(3, OTHER_DIGEST, 8)
    for _ in range(2):
        assert caller.crash().remembered == {OTHER_DIGEST: (8, 3)}


@survives
def test_a_namespace_that_was_never_reset_is_remembered_as_long_as_it_has_a_block(caller):
    caller.demote(A, 0)
    caller.remember(0, OTHER_DIGEST, 8)
    assert caller.reopen().remembered == {DIGEST: (NAMESPACE, 0)}
    caller.forget(0, 32)
    assert caller.crash().remembered == {}
    caller.demote(B, 0)
    assert keys_of(caller.reopen()) == [B]


# --- a model -------------------------------------------------------------------------------------------------

CELL = 4  # units; the model puts at most one block into each stretch of so many places


class Model:
    """What the tier must hold, told by the contract alone."""

    def __init__(self, caller: Caller, seed: int) -> None:
        self.caller, self.chance = caller, random.Random(seed)
        self.cells = min(48, caller.units // CELL)
        self.blocks: dict[int, Stored] = {}  # by cell
        self.durable: set[int] = set()
        self.used: set[int] = set()  # cells that must be forgotten before they are written
        self.erased: dict[int, Stored] = {}  # and not forgotten yet
        self.epoch = self.number = 0

    def step(self) -> None:
        verbs = [self.demote, self.promote, self.forget, self.erase, self.flush, self.next_epoch, self.reopen, self.crash]
        ends = [2, 3] if self.caller.factory.survives else [0, 0]
        self.chance.choices(verbs, [50, 30, 10, 5, 4, 1, *ends])[0]()

    def demote(self) -> None:
        free = [cell for cell in range(self.cells) if cell not in self.used]
        if not free:
            return self.forget()
        cell = self.chance.choice(free)
        self.used.add(cell)
        self.number += 1
        units = self.chance.randint(1, CELL)
        place = cell * CELL + self.chance.randint(0, CELL - units)
        origin = self.chance.choice([b"", self.chance.randbytes(16)])
        self.blocks[cell] = self.caller.demote(key_of(self.number), place, units, self.number, self.epoch, origin)

    def promote(self) -> None:
        if self.blocks:
            assert self.caller.comes_back(self.chance.choice(list(self.blocks.values())))

    def forget(self) -> None:
        first = self.chance.randrange(self.cells)
        end = min(self.cells, first + self.chance.randint(1, 6))
        self.caller.forget(first * CELL, end * CELL)
        for cell in range(first, end):
            self.blocks.pop(cell, None)
            self.durable.discard(cell)
            self.used.discard(cell)
            self.erased.pop(cell, None)

    def erase(self) -> None:
        if self.blocks:
            cell = self.chance.choice(list(self.blocks))
            self.durable.discard(cell)
            self.erased[cell] = self.blocks.pop(cell)
            self.caller.erase(self.erased[cell])

    def flush(self) -> None:
        self.caller.flush()
        self.durable = set(self.blocks)

    def next_epoch(self) -> None:
        if self.caller.factory.only_epoch_0:
            return
        self.epoch += 1
        self.caller.remember(self.epoch)

    def reopen(self) -> None:
        self.durable = set(self.blocks)
        self.check(self.caller.reopen())

    def crash(self) -> None:
        self.check(self.caller.crash())

    def check(self, recovered: Recovered) -> None:
        columns = (recovered.places, recovered.sizes, recovered.namespaces, recovered.epochs, recovered.checksums)
        origins = [origin.tobytes() for origin in recovered.origins]
        found = {row[1] // CELL: row for row in zip(keys_of(recovered), *(column.tolist() for column in columns), origins)}
        current = {cell: block for cell, block in self.blocks.items() if block.epoch == self.epoch}
        assert set(found) <= set(current), "recovered what was forgotten"
        assert self.durable & set(current) <= set(found), "lost what was durable"
        for cell, row in found.items():
            block = current[cell]
            origin = block.origin or bytes(16)
            assert row == (block.key, block.place, block.size, block.namespace, block.epoch, block.checksum, origin)
        assert all(self.caller.is_zero(block) for block in self.erased.values()), "what was erased is legible"
        self.blocks = {cell: current[cell] for cell in found}
        self.durable, self.used, self.erased = set(found), set(found), {}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 6))])
def test_500_random_steps_agree_with_a_model(caller, seed):
    model = Model(caller, seed)
    for _ in range(500):
        model.step()
    if caller.factory.survives:
        model.crash()
    assert all(caller.is_zero(block) for block in model.erased.values())
    assert all(caller.comes_back(block) for block in model.blocks.values())
