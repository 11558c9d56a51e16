"""Lru: exactly least recently used, leaf first."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvtier.policy import Lru

SIZE = 1  # of every slot, where it does not matter


def made_of(*slots: int) -> Lru:
    lru = Lru(units=32, slab_units=8)
    for slot in slots:
        lru.add(slot, SIZE)
    return lru


def anything(slot: int) -> bool:
    return True


def take_all(lru: Lru) -> list[int]:
    """Every slot, the first to go first."""
    taken = []
    while (slot := lru.oldest(SIZE, anything)) is not None:
        lru.remove(slot)
        taken.append(slot)
    return taken


def touch(lru: Lru, *slots: int) -> None:
    lru.touch(np.array(slots, dtype=np.uint32))


def test_nothing_is_the_oldest_of_nothing():
    assert made_of().oldest(SIZE, anything) is None


def test_blocks_go_in_the_order_they_came():
    assert take_all(made_of(3, 1, 2)) == [3, 1, 2]


def test_asking_for_the_oldest_changes_nothing():
    lru = made_of(3, 1, 2)
    assert [lru.oldest(SIZE, anything) for _ in range(3)] == [3, 3, 3]


def test_a_block_that_was_used_goes_later():
    lru = made_of(3, 1, 2)
    touch(lru, 3)
    assert take_all(lru) == [1, 2, 3]


def test_of_a_prefix_the_leaf_goes_first_and_the_head_last():
    lru = made_of(9, 1, 2, 3)
    touch(lru, 1, 2, 3)
    assert take_all(lru) == [9, 3, 2, 1]


def test_a_shorter_prefix_that_was_used_later_keeps_the_head_and_leaves_the_tail_to_go():
    lru = made_of(1, 2, 3)
    touch(lru, 1, 2, 3)
    touch(lru, 1)
    assert take_all(lru) == [3, 2, 1]


def test_what_was_removed_does_not_come_up():
    lru = made_of(1, 2)
    lru.remove(1)
    assert take_all(lru) == [2]


def test_a_slot_that_comes_back_with_another_block_is_new():
    lru = made_of(1, 2)
    lru.remove(1)
    lru.add(1, SIZE)
    assert take_all(lru) == [2, 1]


def test_what_is_not_acceptable_is_put_aside_until_it_is_restored_to_its_place():
    lru = made_of(1, 2, 3)
    assert lru.oldest(SIZE, lambda slot: slot != 1) == 2
    assert lru.oldest(SIZE, anything) == 2
    lru.restore(np.array([3, 1, 1]))
    assert take_all(lru) == [1, 2, 3]


def test_what_was_put_aside_is_not_asked_about_again():
    asked = []

    def nothing(slot: int) -> bool:
        asked.append(slot)
        return False

    lru = made_of(1, 2)
    assert [lru.oldest(SIZE, nothing) for _ in range(3)] == [None, None, None]
    assert asked == [1, 2]


def test_what_was_put_aside_and_removed_can_be_added_again():
    lru = made_of(1, 2)
    lru.oldest(SIZE, lambda slot: slot == 2)
    lru.remove(1)
    lru.restore(np.array([1]))
    assert lru.oldest(SIZE, anything) == 2
    lru.add(1, SIZE)
    assert take_all(lru) == [2, 1]


def test_each_size_has_an_order_of_its_own_and_its_stamps_are_of_one_clock():
    lru = made_of()
    for slot, size in ((0, 4), (8, 2), (4, 4), (10, 2)):
        lru.add(slot, size)
    assert (lru.oldest(4, anything), lru.oldest(2, anything), lru.oldest(3, anything)) == (0, 8, None)
    assert lru.stamp(0) < lru.stamp(8) < lru.stamp(4)


def test_a_slot_that_comes_back_with_another_size_is_of_that_size_only():
    lru = made_of(1, 2)
    lru.remove(1)
    lru.add(1, 3)
    assert take_all(lru) == [2]
    assert lru.oldest(3, anything) == 1


def test_a_heap_does_not_grow_however_often_slots_are_cut_anew():
    lru = made_of()
    lru.add(31, 1)  # never goes, so no other entry ever comes up
    for _ in range(100):
        for size in (1, 2):
            for slot in range(0, 30, 2):
                lru.add(slot, size)
                lru.remove(slot)
    assert all(len(heap) <= 2 * 32 // size + 1 for size, heap in lru._heaps.items())
    assert take_all(lru) == [31]


def test_the_mean_of_a_slab_is_that_of_its_blocks():
    lru = made_of(0, 1, 2, 9)  # stamps 1 to 4; slabs of 8 units
    assert lru.mean_stamps().tolist() == [2, 4, np.inf, np.inf]
    touch(lru, 1, 0, 1)  # up to stamp 7; 1 is named twice
    assert lru.mean_stamps()[0] == (6 + 5 + 3) / 3
    lru.remove(2)
    assert lru.mean_stamps()[0] == (6 + 5) / 2
    assert lru.blocks_in_slab.tolist() == [2, 1, 0, 0]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 9).map(lambda slot: [slot]))
    | st.tuples(st.just("touch"), st.lists(st.integers(0, 9), unique=True)),
    max_size=60,
)


@given(EVENTS)
def test_after_any_events_the_order_is_exactly_that_of_a_list(events):
    lru, order = made_of(), []
    for what, slots in events:
        alive = [slot for slot in slots if slot in order]
        if what == "add" and not alive:
            lru.add(slots[0], SIZE)
            order.append(slots[0])
        elif what == "remove" and alive:
            lru.remove(slots[0])
            order.remove(slots[0])
        elif what == "touch":
            touch(lru, *alive)
            order = [slot for slot in order if slot not in alive] + alive[::-1]
        assert lru.oldest(SIZE, anything) == (order[0] if order else None)
    assert take_all(lru) == order
