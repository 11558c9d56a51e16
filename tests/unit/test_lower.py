"""The tier below the arena, order by order: what is written first, what is read, what is told after a failure. What any
order of events does is the simulator's business (tests/sim)."""

import numpy as np
import pytest

from kvtier import demotion
from kvtier.admission import Budget
from kvtier.block import ABSENT, BELOW, pack_keys
from kvtier.extents import Extents
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Finished, Flush, Forget, Promote, Remember, Transfer

MIB = 1024**2
BLOCK = MIB // 4
RED = b"red".ljust(32)
STAGE_S = 1.0


class Daemon:
    """A store with drives below it, whose transfers finish when a test says so."""

    def __init__(self, budget: float = 2**40, extents: int = 8, slabs: int = 8) -> None:
        self.store = BlockStore(slabs * 2 * MIB, lend_share=0.5, lease_share=0.5)
        self.store.attach(Extents(extents, 2 * MIB), Budget(budget, 0.0), STAGE_S, {})
        self.store.join("a", RED, BLOCK, 16, 16, 0.0)
        self.store.lends()
        self.run()

    def start(self, writable: bool = True) -> list[Transfer]:
        return self.store.transfers(0.0, writable)

    def finish(self, orders: list[Transfer], fault: str = "") -> None:
        for order in orders:
            self.store.finished(Finished(order.ticket, fault, checksum=order.ticket), 0.0)

    def run(self) -> list[Transfer]:
        """Until nothing is to be done any more."""
        done: list[Transfer] = []
        while orders := self.start():
            self.finish(orders)
            done += orders
        return done

    def save(self, *numbers: int) -> None:
        slots = sorted(self.store.lending.engines["a"].lent)[: len(numbers)]
        self.store.commit("a", keys(*numbers), np.array(slots, np.uint32))
        self.store.lends()

    def evict(self, *numbers: int) -> None:
        for number in numbers:
            self.store.ram._evict(int(self.store.ram.index.find(keys(number))[0]), "others came")

    def look_up(self, lease: int, *numbers: int, skip: int = 0) -> list[int] | None:
        answer = self.store.lookup("a", lease, keys(*numbers), skip, 0.0)
        return None if answer is None else answer.tolist()

    def answers(self) -> dict[int, list[int]]:
        return {lease: slots.tolist() for _, lease, slots in self.store.leases.answers()}


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys(*numbers: int) -> bytes:
    return pack_keys(map(key, numbers))


def written(orders: list[Transfer]) -> list[int]:
    return [int.from_bytes(order.key, "big") for order in orders if isinstance(order, Demote)]


# --- writes --------------------------------------------------------------------------------------------------


def test_what_was_used_again_is_written_first(daemon):
    daemon.save(1, 2, 3)
    daemon.look_up(1, 3)
    assert written(daemon.start()) == [3, 1, 2]


def test_a_conversation_that_returned_takes_its_new_blocks_along(daemon):
    daemon.save(1, 2, 3, 4)
    daemon.look_up(1, 1, 2)
    daemon.store.touch("a", keys(1, 2, 3, 4))
    daemon.save(5)
    assert written(daemon.start()) == [1, 2, 3, 4, 5]


def test_a_block_used_again_may_take_what_is_left_of_the_budget():
    daemon = Daemon(budget=4 * BLOCK)
    daemon.save(1, 2, 3)
    assert written(daemon.run()) == [1, 2]
    assert daemon.store.stats["refused_first_use"] == 1
    daemon.look_up(1, 3)
    assert written(daemon.run()) == [3]


def test_writes_wait_while_enough_of_ram_is_pinned_by_them():
    daemon = Daemon(slabs=4)
    daemon.save(1, 2, 3, 4)
    daemon.save(5, 6)
    orders = daemon.start()
    assert written(orders) == [1, 2, 3, 4]
    daemon.finish(orders)
    assert written(daemon.start()) == [5, 6]


def test_a_write_that_failed_comes_behind_all_others_and_to_another_place(daemon):
    daemon.save(1)
    failed = daemon.start()
    daemon.save(2)
    daemon.finish(failed, "io")
    again = daemon.start()
    assert written(again) == [2, 1]
    assert failed[0].place not in {order.place for order in again}


def test_a_block_that_was_saved_anew_after_a_reset_is_written_anew(daemon):
    """Another engine goes on under the former keys. The write of before the reset is still under way when it saves."""
    daemon.save(1)
    before = daemon.start()
    daemon.store.reset("a", RED)
    daemon.save(1)
    daemon.finish(before)
    assert written(daemon.run()) == [1]


def test_too_many_candidates_push_out_the_oldest(daemon, monkeypatch):
    monkeypatch.setattr(demotion, "CANDIDATES_MAX", 2)
    daemon.save(1, 2, 3)
    assert written(daemon.start()) == [2, 3]
    assert daemon.store.stats["refused_queue"] == 1


def test_nothing_is_written_while_the_tier_takes_no_writes(daemon):
    daemon.save(1)
    assert daemon.start(writable=False) == []
    assert written(daemon.start()) == [1]


def test_a_block_whose_extent_was_forgotten_gets_another_place_when_it_is_used_once_more():
    daemon = Daemon(extents=2)
    daemon.save(0)
    daemon.look_up(1, 0)
    daemon.run()
    orders = []
    for first in range(1, 16, 5):
        daemon.save(*range(first, first + 5))
        orders += daemon.run()
    assert any(isinstance(order, Forget) for order in orders)
    assert 0 not in written(orders), "or drives smaller than RAM would be written for ever"
    daemon.look_up(2, 0)
    assert written(daemon.run()) == [0]


# --- namespaces and flushes ----------------------------------------------------------------------------------


def test_a_failed_remember_is_tried_again_but_never_with_a_former_epoch(daemon):
    daemon.store.reset("a", RED)
    first = daemon.start()
    daemon.store.reset("a", RED)
    second = daemon.start()
    daemon.finish(second + first, "io")
    again = daemon.start()
    assert [order.epoch for order in first + second + again if isinstance(order, Remember)] == [1, 2, 2]


def test_a_flush_waits_for_a_write_of_a_block_that_stands_among_both_kinds(daemon):
    daemon.save(1)
    daemon.look_up(1, 1)
    daemon.store.flush(7)
    orders = daemon.start()
    assert [type(order) for order in orders] == [Demote]
    daemon.finish(orders)
    flush = daemon.start()
    assert [type(order) for order in flush] == [Flush]
    daemon.finish(flush)
    assert daemon.store.flushed() == [(7, True)]


def test_a_flush_waits_until_the_namespace_is_remembered(daemon):
    daemon.store.reset("a", RED)
    remember = daemon.start()
    daemon.store.flush(7)
    assert daemon.start() == []
    daemon.finish(remember)
    assert [type(order) for order in daemon.start()] == [Flush]


# --- reads ---------------------------------------------------------------------------------------------------


def below(daemon: Daemon, *numbers: int) -> None:
    """These lie on the drives only."""
    daemon.save(*numbers)
    daemon.run()
    daemon.evict(*numbers)


def test_a_lookup_waits_for_what_lies_below_and_its_lease_has_it(daemon):
    below(daemon, 1, 2)
    assert daemon.look_up(1, 1, 2) is None
    daemon.run()
    (answer,) = daemon.answers().values()
    assert answer == daemon.store.ram.index.find(keys(1, 2)).tolist()
    assert daemon.store.leases.of("a")[1].tolist() == answer


def test_what_the_engine_has_is_not_staged(daemon):
    below(daemon, 1, 2)
    assert daemon.look_up(1, 1, 2, skip=2) == [BELOW, BELOW]
    assert daemon.start() == []


def test_what_lies_behind_a_hole_of_a_chain_is_not_staged(daemon):
    below(daemon, 1, 3)
    assert daemon.look_up(1, 1, 2, 3) is None
    assert [order.key for order in daemon.start()] == [key(1)]


def test_two_lookups_share_a_read(daemon):
    below(daemon, 1)
    daemon.look_up(1, 1)
    daemon.look_up(2, 1)
    reads = daemon.start()
    assert len(reads) == 1
    daemon.finish(reads)
    assert list(daemon.answers()) == [1, 2]


def test_a_lookup_whose_time_is_over_is_answered_with_what_is_there(daemon):
    below(daemon, 1)
    daemon.save(2)
    daemon.look_up(1, 2, 1)
    reads = [order for order in daemon.start() if isinstance(order, Promote)]
    daemon.store.leases.replan(STAGE_S - 0.01)
    assert daemon.answers() == {}
    daemon.store.leases.replan(STAGE_S)
    here = daemon.store.ram.index.find(keys(2)).tolist()
    assert daemon.answers() == {1: [*here, BELOW]}
    daemon.finish(reads)
    assert daemon.answers() == {}
    assert key(1) in daemon.store.ram.index, "the next one finds it"


@pytest.mark.parametrize(("fault", "said"), [("corrupt", ABSENT), ("io", BELOW)])
def test_a_read_that_failed_shortens_the_answer(daemon, fault, said):
    below(daemon, 1)
    daemon.look_up(1, 1)
    daemon.finish(daemon.start(), fault)
    assert daemon.answers() == {1: [said]}


def test_what_is_reset_while_a_lookup_waits_is_absent_from_its_answer(daemon):
    below(daemon, 1)
    daemon.save(2)
    daemon.look_up(1, 2, 1)
    daemon.start()
    daemon.store.reset("a", RED)
    daemon.store.leases.replan(STAGE_S)
    assert daemon.answers() == {1: [ABSENT, BELOW]}
    daemon.store.release("a", 1, 0)
    daemon.store.leave("a", 0.0)
    assert not daemon.store.ram.policy.blocks_in_slab.any()


def test_a_released_lookup_hears_nothing(daemon):
    below(daemon, 1)
    daemon.look_up(1, 1)
    daemon.store.release("a", 1, 0)
    daemon.run()
    assert daemon.answers() == {}


def test_a_lookup_that_is_released_before_its_answer_was_sent_hears_nothing(daemon):
    below(daemon, 1, 2)
    daemon.look_up(1, 1)
    daemon.look_up(2, 2)
    daemon.run()
    daemon.store.release("a", 1, 0)  # in the same breath, as a request that was due and then given up
    assert list(daemon.answers()) == [2]


def test_what_lies_below_is_nowhere_for_another_namespace_or_another_size_whatever_keys_are_asked_for(daemon):
    daemon.save(1, 2)
    daemon.run()
    daemon.evict(1, 2)
    daemon.store.join("other", b"blue".ljust(32), BLOCK, 16, 16, 0.0)
    daemon.store.join("larger", RED, 2 * BLOCK, 16, 16, 0.0)
    for engine in ("other", "larger"):
        assert daemon.store.lookup(engine, 1, keys(1, 2), 0, 0.0).tolist() == [ABSENT, ABSENT]
    assert daemon.look_up(1, 1, 2, skip=2) == [BELOW, BELOW]
