"""Which extent goes first: as a look at all of them would tell, whatever happened to them meanwhile."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kvtier import reclaim_order
from kvtier.reclaim_order import ReclaimOrder


@dataclass
class Extent:
    blocks: int = 1
    used: float = 0.0
    busy: bool = False


def order_of(*extents: Extent) -> ReclaimOrder:
    order = ReclaimOrder()
    for number, extent in enumerate(extents):
        order.put(number, extent)
    return order


def take(order: ReclaimOrder, *extents: Extent) -> int | None:
    return order.take(extents.__getitem__, lambda number: not extents[number].busy)


def test_the_one_that_was_used_the_longest_ago_goes_first_but_one_without_a_block_before_it():
    extents = Extent(used=3.0), Extent(used=2.0), Extent(blocks=0, used=9.0)
    order = order_of(*extents)
    assert [take(order, *extents) for _ in range(4)] == [2, 1, 0, None]


def test_it_may_begin_with_all_of_a_former_life():
    extents = Extent(used=2.0), Extent(used=1.0)
    order = order_of(*extents)
    order.begin(enumerate(extents))
    assert [take(order, *extents) for _ in range(3)] == [1, 0, None]


def test_what_was_used_since_it_was_put_in_goes_later():
    extents = Extent(used=1.0), Extent(used=2.0)
    order = order_of(*extents)
    extents[0].used = 3.0
    assert [take(order, *extents), take(order, *extents)] == [1, 0]


def test_what_may_not_go_now_keeps_its_turn():
    extents = Extent(used=1.0, busy=True), Extent(used=2.0), Extent(used=3.0)
    order = order_of(*extents)
    assert take(order, *extents) == 1
    extents[0].busy = False
    assert take(order, *extents) == 0


def test_of_very_many_that_may_not_go_now_only_some_are_looked_at(monkeypatch):
    monkeypatch.setattr(reclaim_order, "LOOKED_AT_MAX", 2)
    extents = Extent(used=1.0, busy=True), Extent(used=2.0, busy=True), Extent(used=3.0)
    order = order_of(*extents)
    assert take(order, *extents) is None
    extents[0].busy = False
    assert take(order, *extents) == 0


events = st.tuples(st.integers(0, 5), st.sampled_from(["use", "empty", "fill", "busy", "idle", "take"]))


@given(st.lists(events, max_size=60))
def test_it_is_always_the_one_that_a_look_at_all_finds(events):
    """`put` again when an extent is taken into use, or has lost its last block."""
    extents = [Extent() for _ in range(6)]
    order = order_of(*extents)
    now = 0.0
    for number, what in events:
        extent, now = extents[number], now + 1.0
        if what == "use" and extent.blocks:
            extent.used += (now - extent.used) / 2
        elif what == "fill":
            extent.blocks, extent.used = extent.blocks + 1, now
        elif what == "empty" and extent.blocks:
            extent.blocks = 0
            order.put(number, extent)
        elif what in ("busy", "idle"):
            extent.busy = what == "busy"
        elif what == "take":
            idle = [n for n, one in enumerate(extents) if not one.busy]
            expected = min(idle, key=lambda n: (extents[n].blocks > 0, extents[n].used), default=None)
            assert take(order, *extents) == expected
            if expected is not None:
                extents[expected] = Extent(0)
                order.put(expected, extents[expected])
