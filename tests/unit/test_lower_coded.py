"""The drives, where what is written there was made smaller. Which codec, and how large a place: test_coding.py."""

import numpy as np
import pytest

from kvtier.admission import Budget
from kvtier.block import BELOW, SLOT_UNIT
from kvtier.codec import RAW, Codec
from kvtier.coding import Coding
from kvtier.estimators import Link
from kvtier.lower import DriveSource
from kvtier.staging import Wanted
from kvtier.transfer import Demote, Erase, Finished, Flush, Promote, Transfer

from ..far_store import BLOCK, ENGINE, FRAME, RED, FarStore, key

EXP12, INT8 = Codec("exp12"), Codec("int8", "bf16", 64)


class Always(Coding):
    """Makes a frame of every block, but where a namespace wishes something else."""

    def choose(self, namespace: int, size: int) -> tuple[Codec, int]:
        wished = self._wishes.get(namespace, EXP12)
        return (wished, FRAME) if size > FRAME else (RAW, size)


@pytest.fixture
def node() -> FarStore:
    return FarStore(coding=Always(unit=SLOT_UNIT, link=Link(0.0, 1e9)))


def writes(orders: list[Transfer]) -> list[tuple[int, str, int]]:
    """Numbers of blocks, what they are written with, bytes of their places."""
    found = [order for order in orders if isinstance(order, Demote)]
    return [(int.from_bytes(order.key, "big"), order.codec.name, order.place_bytes) for order in found]


def saved(node: FarStore, *these: int) -> list[Demote]:
    """The orders to write them."""
    node.save(*these)
    return [order for order in node.start() if isinstance(order, Demote)]


def finish(node: FarStore, order: Transfer, fault: str) -> None:
    node.store.finished(Finished(order.ticket, fault), node.now)


def counted(node: FarStore, *names: str) -> list[int]:
    return [node.store.stats[name] for name in names]


# --- what fits -------------------------------------------------------------------------------------------------------


def test_a_frame_takes_the_place_that_was_cut_for_it_and_its_block_comes_back_whole(node):
    orders = saved(node, 1)
    assert writes(orders) == [(1, "exp12", FRAME)]
    node.finish(orders)
    extents, place = node.store.lower.extents, orders[0].place
    assert (extents.size(place), extents.stored(place), extents.used_bytes) == (BLOCK, FRAME, FRAME)
    node.evict(1)
    assert node.look_up(1, 1) is None
    (read,) = node.start()
    assert isinstance(read, Promote) and (read.size, read.stored, read.place) == (BLOCK, FRAME, place)
    node.finish([read])
    assert node.answers() == {1: [node.slot(1)]}


def test_counters_tell_what_moved_and_what_was_spared(node):
    node.below(1)
    node.look_up(1, 1)
    node.run()
    assert counted(node, "demoted_bytes", "spared_write_bytes") == [FRAME, BLOCK - FRAME]
    assert counted(node, "promoted_bytes", "spared_read_bytes") == [FRAME, BLOCK - FRAME]


def test_the_link_and_the_write_budget_count_what_lies_below(node):
    budget = node.store.lower.demotions.budget = Budget(2**30, 0.0)
    node.below(1, 2)
    assert budget.spent == 2 * FRAME
    node.look_up(1, 1, 2)
    assert node.store.lower.link.queued_bytes == 2 * FRAME
    node.run()
    assert node.store.lower.link.queued_bytes == 0


def test_what_is_read_ahead_and_dropped_leaves_nothing_in_the_link(node):
    node.below(1, 2)
    node.look_up(1, 1, 2)
    node.store.release(ENGINE, 1, 0)
    assert node.store.lower.link.queued_bytes == 0
    node.look_up(2, 1, 2)
    node.finish(node.start(), "io")
    assert node.store.lower.link.queued_bytes == 0 and node.answers() == {2: [BELOW, BELOW]}


def test_a_decision_knows_that_frames_come_sooner():
    waits = {}
    for coding in (None, Always(unit=SLOT_UNIT)):
        node = FarStore(coding=coding)
        node.below(*range(16))
        node.look_up(1, *range(16), request="chat")
        (asked,) = node.store.decisions.explain("chat", 1)
        waits[coding is None] = asked["predicted"]["load_ms"]
    spared_s = 16 * (BLOCK - FRAME) / 2e9
    assert waits[True] - waits[False] == pytest.approx(spared_s * 1e3, rel=0.05)


def test_a_lookup_s_outlook_goes_by_what_is_still_to_come(node):
    node.below(*range(8))
    node.look_up(1, *range(8))
    ((_, before),) = node.store.staging.outlook(0.0)
    node.finish(node.start()[:4])
    ((_, after),) = node.store.staging.outlook(0.0)
    link = node.store.lower.link
    assert before["nvme"] == pytest.approx(0.002 + 8 * FRAME / 2e9, rel=0.01)
    assert after["nvme"] == pytest.approx(link.seconds(4 * FRAME, 0, 0.0))


def test_what_is_forgotten_is_erased_as_large_as_it_lies_there(node):
    node.below(1)
    place = int(node.store.lower.extents.find(key(1))[0])
    node.store.lower.erase(place)
    (order,) = node.start()
    assert isinstance(order, Erase) and (order.place, order.size) == (place, FRAME)


def test_what_a_promotion_brought_is_written_to_the_remote_by_the_rule_of_the_remote():
    node = FarStore(coding=Always(unit=SLOT_UNIT))
    node.below(1)
    node.look_up(1, 1)
    node.run()
    assert node.remote.blocks == {(0, key(1)): BLOCK}


# --- what doesn't ----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_written_at_once_as_it_is_before_all_others(node, monkeypatch):
    monkeypatch.setattr("kvtier.transfer.MOVES_MAX", 2)
    first, second = saved(node, 1, 2, 3)
    finish(node, first, "larger")
    again = node.start()
    assert writes(again) == [(1, "none", BLOCK)] and again[0].stored == 0
    assert counted(node, "larger_frames", "failed_demotions") == [1, 0]
    node.finish([second, *again])
    node.run()
    assert node.store.lower.extents.used_bytes == 2 * FRAME + BLOCK
    assert writes(saved(node, 4)) == [(4, "exp12", FRAME)]


def test_nothing_was_written_then_so_neither_budget_nor_rate_pays_for_it(node):
    budget = node.store.lower.demotions.budget = Budget(2**30, 0.0)
    tenants = node.store.ram.tenants
    tenants.limits.write_rate = BLOCK / 5  # of one block, in its burst
    (order,) = saved(node, 1)
    assert budget.spent == FRAME
    finish(node, order, "larger")
    assert budget.spent == 0 and budget.left == 2**30
    (again,) = node.start()
    assert writes([again]) == [(1, "none", BLOCK)] and budget.spent == BLOCK
    node.finish([again])
    assert counted(node, "refused_tenant_rate", "demoted_blocks") == [0, 1]


def test_a_block_that_does_not_fit_is_tried_with_a_codec_another_time(node):
    (order,) = saved(node, 1)
    finish(node, order, "larger")
    node.finish(node.start())
    node.evict(1)
    node.store.lower.erase(int(node.store.lower.extents.find(key(1))[0]))
    node.run()
    assert writes(saved(node, 1)) == [(1, "exp12", FRAME)]


def test_a_flush_waits_for_what_is_written_again(node):
    (order,) = saved(node, 1)
    node.store.flush(7)
    finish(node, order, "larger")
    (again,) = node.start()
    assert isinstance(again, Demote)
    node.finish([again])
    assert [type(order) for order in node.start()] == [Flush]


def test_what_nobody_wants_any_more_is_not_written_again(node):
    (order,) = saved(node, 1)
    node.store.lower.demotions.forget_key(key(1))
    finish(node, order, "larger")
    assert [(type(order), order.size) for order in node.start()] == [(Erase, FRAME)]


def test_what_a_reset_dropped_meanwhile_is_not_written_again(node):
    (order,) = saved(node, 1)
    node.store.reset(ENGINE, RED)
    finish(node, order, "larger")
    assert writes(node.start()) == [] and counted(node, "unwritten_blocks", "larger_frames") == [1, 1]


def test_a_write_that_fails_is_tried_again_as_after_any_fault(node):
    (order,) = saved(node, 1)
    finish(node, order, "io")
    assert writes(node.start()) == [(1, "exp12", FRAME)]
    assert counted(node, "failed_demotions", "larger_frames") == [1, 0]


# --- wishes ----------------------------------------------------------------------------------------------------------


def test_a_namespace_s_wish_is_for_its_blocks_alone(node):
    node.store.join("b", b"blue".ljust(32), BLOCK, 16, 4, 0.0)
    node.store.lends()
    node.run()
    node.store.lower.coding.wish(1, INT8)
    node.save(1)
    slot = min(node.store.lending.engines["b"].lent)
    node.store.commit("b", key(2), np.array([slot], np.uint32))
    assert writes(node.start()) == [(1, "exp12", FRAME), (2, "int8", FRAME)]


def test_what_there_is_says_how_it_is_written(node):
    node.below(1)
    said = node.store.snapshot(0.0)["tiers"]["nvme"]
    assert (said["used_bytes"], said["block_bytes"]) == (FRAME, BLOCK)
    assert said["coding"]["codecs"]["exp12"]["blocks"] == 1


def test_a_place_that_has_another_size_by_now_is_not_where_a_read_was_to_go(node):
    """Its extent was reclaimed since, and the block written again as it is."""
    node.below(1)
    extents, place = node.store.lower.extents, int(node.store.lower.extents.find(key(1))[0])
    source = DriveSource(extents, node.store.lower.link)
    wanted = Wanted(0, key(1), b"", place, BLOCK, stored=FRAME)
    assert source.has(wanted, 0.0)
    assert not source.has(wanted._replace(stored=0), 0.0)


def test_where_no_place_is_to_be_had_for_a_frame_its_block_is_written_as_it_is(node):
    node.store.lower.extents.place_bytes = lambda size, stored: size
    orders = saved(node, 1)
    assert writes(orders) == [(1, "none", BLOCK)]
    node.finish(orders)
    assert counted(node, "demoted_bytes", "spared_write_bytes") == [BLOCK, 0]
