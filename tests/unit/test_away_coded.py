"""The remote, where what lies there may be smaller than its block: by us, or by another node."""

import pytest

from kvtier.admission import Budget
from kvtier.block import ABSENT
from kvtier.coding import Coding
from kvtier.transfer import Demote, Finished, Promote

from ..far_store import BLOCK, FRAME, FarStore, key, numbers
from .test_lower_coded import EXP12


class Always(Coding):
    """Makes a frame of every block; how large it becomes is not known before."""

    def choose(self, namespace, size):
        return EXP12, size


@pytest.fixture
def node() -> FarStore:
    return FarStore(drives=False, far_coding=Always())


def used_again(node: FarStore, *these: int) -> list[Demote]:
    """The orders to write them."""
    node.save(*these)
    node.look_up(99, *these)
    node.store.release("a", 99, 0)
    return [order for order in node.start_far() if isinstance(order, Demote)]


def test_a_block_is_written_as_a_frame_and_known_as_large_as_that_became(node):
    orders = used_again(node, 1)
    assert [(order.codec, order.size, order.stored) for order in orders] == [(EXP12, BLOCK, BLOCK)]
    node.finish_far(orders)
    assert node.away.look([key(1)], 0, True, 0.0).sizes == [FRAME]


def test_what_the_frame_spared_goes_back_to_the_rate(node):
    budget = node.away.demotions.budget = Budget.of_rate(2**20, 0.0)
    orders = used_again(node, 1)
    left = budget.left
    node.finish_far(orders)
    assert budget.left == left + BLOCK - FRAME and budget.spent == FRAME
    counters = [node.store.stats[f"remote_{name}"] for name in ("demoted_bytes", "spared_write_bytes")]
    assert counters == [FRAME, BLOCK - FRAME]


def test_a_frame_is_read_as_large_as_it_is_there(node):
    node.remote.put(1, size=FRAME)
    node.away.known.there(key(1), FRAME, 0.0)
    assert node.look_up(1, 1) is None
    (order,) = [order for order in node.start_far() if isinstance(order, Promote)]
    assert (order.size, order.stored, node.away.link.queued_bytes) == (BLOCK, FRAME, FRAME)
    node.finish_far([order])
    assert node.answers() == {1: [node.slot(1)]} and node.away.link.queued_bytes == 0
    assert node.store.stats["remote_spared_read_bytes"] == BLOCK - FRAME


def test_what_another_node_wrote_since_is_known_as_it_is_now(node):
    node.remote.put(1)
    node.away.known.there(key(1), FRAME, 0.0)
    node.look_up(1, 1)
    node.finish_far(node.start_far())
    assert node.away.look([key(1)], 0, True, 0.0).sizes == [BLOCK]


@pytest.mark.parametrize(("size", "is_found"), [(1, True), (FRAME, True), (BLOCK, True), (BLOCK + 1, False)])
def test_what_is_larger_than_its_block_somebody_made_up(node, size, is_found):
    node.away.known.there(key(1), size, 0.0)
    answer = node.look_up(1, 1)
    assert answer == (None if is_found else [ABSENT])
    assert numbers(node.start_far()) == ([1] if is_found else [])


def test_behind_what_was_made_up_nothing_is_read(node):
    for number, size in ((1, FRAME), (2, BLOCK + 1), (3, FRAME)):
        node.away.known.there(key(number), size, 0.0)
    node.look_up(1, 1, 2, 3)
    assert numbers(node.start_far()) == [1]


def test_what_no_codec_can_do_is_written_as_it_is_and_nobody_doubts_that_it_is_not_there(node):
    (order,) = used_again(node, 1)
    node.store.remote_finished(Finished(order.ticket, "larger"), 0.0)
    (again,) = [order for order in node.start_far() if isinstance(order, Demote)]
    assert (again.codec.name, again.stored) == ("none", 0)
    node.finish_far([again])
    assert node.remote.blocks == {(0, key(1)): BLOCK} and node.store.stats["remote_larger_frames"] == 1
    node.away.erase(key(1), 0)
    node.run()
    assert not node.away.is_erasing(key(1)), "once is enough"


def test_a_decision_knows_that_frames_come_sooner(node):
    for number in range(20):
        node.away.known.there(key(number), FRAME, 0.0)
    node.look_up(1, *range(20), request="chat")
    (asked,) = node.store.decisions.explain("chat", 1)
    frames, blocks = 20 * FRAME / 1e9, 20 * BLOCK / 8e9
    assert asked["predicted"]["load_ms"] == pytest.approx((0.001 + frames + 0.02 + blocks) * 1e3, rel=0.01)
