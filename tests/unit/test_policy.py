"""Policy: leaves first, of the queue whose first is worth least."""

import heapq

import numpy as np
import pytest
from policy_model import NOW, SIZE, UNITS, Wanted, add, anything, array, key, lru, made, take_all, use, victim

from kvtier.policy import ENTRIES_SPARE, KEPT, NONE, QUEUES_MAX, Policy
from kvtier.ranking import Lru

# --- least recently used -------------------------------------------------------------------------------------


def test_nothing_goes_of_nothing():
    assert victim(lru()) is None


def test_blocks_go_in_the_order_they_came():
    assert take_all(lru(3, 1, 2)) == [3, 1, 2]


def test_asking_who_goes_changes_nothing():
    policy = lru(3, 1, 2)
    assert [victim(policy) for _ in range(3)] == [3, 3, 3]


def test_a_block_that_was_used_goes_later():
    policy = lru(3, 1, 2)
    use(policy, 3)
    assert take_all(policy) == [1, 2, 3]


def test_of_one_use_the_last_goes_first():
    policy = lru(9, 1, 2, 3)
    use(policy, 1, 2, 3)
    assert take_all(policy) == [9, 3, 2, 1]


def test_a_block_named_twice_in_one_use_counts_where_it_is_named_last():
    policy = lru(1, 2, 3)
    use(policy, 1, 2, 3, 1)
    assert take_all(policy) == [1, 3, 2]


def test_what_was_removed_does_not_come_up():
    policy = lru(1, 2)
    policy.remove(1, key(1))
    assert take_all(policy) == [2]


def test_a_slot_that_comes_back_with_another_block_is_new():
    policy = lru(1, 2)
    policy.remove(1, key(1))
    add(policy, 1)
    assert take_all(policy) == [2, 1]


# --- a parent never before its child ----------------------------------------------------------------------------


def test_a_parent_goes_after_its_children_however_old_it_is():
    assert take_all(made(Lru(), (1, NONE, 1), (2, 1, 1), (3, 1, 1), (4, NONE, 1))) == [2, 3, 1, 4]


def test_of_two_branches_the_older_goes_first_and_their_trunk_last():
    policy = made(Lru(), (1, NONE, 1), (2, 1, 1), (3, 2, 1), (4, 2, 1))
    use(policy, 1, 2, 3)
    assert take_all(policy) == [4, 3, 2, 1]


def test_a_parent_worth_nothing_is_kept_by_a_child_worth_much():
    assert take_all(made(Wanted(), (1, NONE, 2), (2, 1, 9), (3, NONE, 5))) == [3, 2, 1]


def test_a_block_attached_later_protects_its_parent_from_then_on():
    policy = lru(1, 2)
    policy.attach(2, 1)
    assert (policy.is_leaf(1), policy.is_leaf(2)) == (False, True)
    assert take_all(policy) == [2, 1]


def test_children_of_what_is_removed_have_no_parent_any_more():
    policy = made(Lru(), (1, NONE, 1), (2, 1, 1), (3, 1, 1))
    policy.remove(1, key(1))
    assert [policy.root(slot) for slot in (2, 3)] == [2, 3]
    add(policy, 1)
    assert policy.children(1) == []


def test_the_family_of_a_block_is_known():
    policy = made(Lru(), (1, NONE, 1), (2, 1, 1), (3, 2, 1), (4, 2, 1))
    assert (policy.root(4), policy.root(1)) == (1, 1)
    assert sorted(policy.children(2)) == [3, 4]
    below = policy.subtree(1)
    assert sorted(below) == [1, 2, 3, 4] and below[2:] == [2, 1]


# --- queues ------------------------------------------------------------------------------------------------------


def test_the_first_of_the_queue_worth_least_goes():
    policy = made(Wanted(), (1, NONE, 3), (2, NONE, 2), (3, NONE, 2), (4, NONE, 7))
    assert take_all(policy) == [2, 3, 1, 4]


def test_what_stands_in_no_queue_never_goes_and_is_counted_by_slab():
    policy = made(Wanted(), (1, NONE, KEPT), (2, NONE, 5), (9, NONE, KEPT))
    assert policy.kept_in_slab.tolist() == [1, 1, 0, 0]
    assert take_all(policy) == [2]
    policy.remove(9, key(9))
    assert policy.kept_in_slab.tolist() == [1, 0, 0, 0]


def test_what_is_kept_stays_so_when_it_is_used():
    policy = made(Wanted(), (1, NONE, KEPT), (2, NONE, 5))
    use(policy, 1, 2, queue=[6, 7])
    assert policy.queues(array(1, 2)).tolist() == [KEPT, 7]


def test_a_block_is_moved_to_another_queue_without_being_used():
    policy = made(Wanted(), (1, NONE, 5), (2, NONE, 3), (3, NONE, 3))
    policy.move(array(1), 3)
    assert take_all(policy) == [1, 2, 3]


def test_blocks_are_moved_each_to_its_own_queue_or_kept_or_no_longer_kept():
    policy = made(Wanted(), (1, NONE, 5), (2, NONE, KEPT), (3, NONE, 3))
    policy.move(array(1, 2, 3), np.array([KEPT, 4, 2]))
    assert policy.kept_in_slab[0] == 1
    assert take_all(policy) == [3, 2]
    policy.move(array(1), 1)
    assert (policy.kept_in_slab[0], take_all(policy)) == (0, [1])


def test_a_block_is_moved_to_a_place_of_its_own_in_a_queue():
    policy = made(Wanted(), (1, NONE, 3), (2, NONE, 3))
    policy.move(array(2), 3, order=-7.0)
    assert take_all(policy) == [2, 1]


def test_a_new_block_may_stand_before_all_others():
    policy = made(Wanted(), (1, NONE, 3))
    add(policy, 2, queue=3, order=-7.0)
    assert take_all(policy) == [2, 1]


def test_a_block_that_comes_below_stands_at_the_same_place_of_another_queue():
    policy = made(Wanted(), (1, NONE, 3), (2, NONE, 3))
    policy.tell_below(1, True)
    assert policy.queues(array(1, 2)).tolist() == [103, 3]
    policy.ranking.worths = {103: 0.5}
    assert victim(policy) == 1
    policy.tell_below(1, False)
    assert take_all(policy) == [1, 2]


def test_what_is_kept_stays_so_when_it_comes_below():
    policy = made(Wanted(), (1, NONE, KEPT))
    policy.tell_below(1, True)
    assert policy.queues(array(1)).tolist() == [KEPT]


def test_a_ranking_hears_what_went_but_not_what_was_kept():
    policy = made(ranking := Wanted(), (1, NONE, 3), (2, NONE, KEPT))
    policy.remove(1, key(1))
    policy.remove(2, key(2))
    assert ranking.went == [(1, 3)]


def test_a_victim_may_get_a_second_chance_at_the_end_of_a_queue():
    policy = made(ranking := Wanted(), (1, NONE, 3), (2, NONE, 3), (3, NONE, 5))
    ranking.chances = {1: 5, 2: 3}
    assert take_all(policy) == [2, 3, 1]


def test_worths_are_looked_up_anew_after_a_while_and_not_before():
    policy = made(ranking := Wanted(refresh_s=1.0), (1, NONE, 3), (2, NONE, 5))
    assert policy.victim(SIZE, anything, 10.0) == 1
    ranking.worths = {3: 9.0}
    assert policy.victim(SIZE, anything, 10.9) == 1
    assert policy.victim(SIZE, anything, 11.0) == 2
    ranking.worths = {}
    assert policy.victim(SIZE, anything, 2.0) == 1, "a clock that goes back"


def test_the_worth_of_who_goes_next_is_told_of_those_who_may():
    policy = made(Wanted(), (1, NONE, 3), (2, NONE, 5))
    assert policy.worth(victim(policy)) == 3.0
    policy.remove(1, key(1))
    assert policy.worth(victim(policy)) == 5.0


# --- those that may not go ----------------------------------------------------------------------------------------


def test_what_is_refused_is_put_aside_until_it_is_restored_to_its_place():
    policy = lru(1, 2, 3)
    assert victim(policy, acceptable=lambda slot: slot != 1) == 2
    assert victim(policy) == 2
    policy.restore(array(3, 1, 1))
    assert take_all(policy) == [1, 2, 3]


def test_what_was_put_aside_is_not_asked_about_again():
    asked: list[int] = []
    policy = lru(1, 2)
    assert [victim(policy, acceptable=lambda slot: asked.append(slot)) for _ in range(3)] == [None, None, None]
    assert asked == [1, 2]


def test_what_was_put_aside_and_moved_comes_back_where_it_stands_now():
    policy = made(Wanted(), (1, NONE, 3), (2, NONE, 5))
    assert victim(policy, acceptable=lambda slot: slot != 1) == 2
    policy.move(array(1), 9)
    policy.restore(array(1))
    assert take_all(policy) == [2, 1]


def test_what_was_put_aside_and_removed_can_be_added_again():
    policy = lru(1, 2)
    victim(policy, acceptable=lambda slot: slot == 2)
    policy.remove(1, key(1))
    policy.restore(array(1))
    assert victim(policy) == 2
    add(policy, 1)
    assert take_all(policy) == [2, 1]


# --- sizes and slabs -------------------------------------------------------------------------------------------


def test_each_size_has_an_order_of_its_own_and_its_stamps_are_of_one_clock():
    policy = lru()
    for slot, size in ((0, 4), (8, 2), (4, 4), (10, 2)):
        add(policy, slot, size=size)
    assert (victim(policy, 4), victim(policy, 2), victim(policy, 3)) == (0, 8, None)
    assert policy.stamp(0) < policy.stamp(8) < policy.stamp(4)


def test_a_slot_that_comes_back_with_another_size_is_of_that_size_only():
    policy = lru(1, 2)
    policy.remove(1, key(1))
    add(policy, 1, size=3)
    assert take_all(policy) == [2]
    assert victim(policy, 3) == 1


def test_the_mean_of_a_slab_is_that_of_its_blocks():
    policy = lru(0, 1, 2, 9)  # stamps 1 to 4
    assert policy.mean_stamps().tolist() == [2, 4, np.inf, np.inf]
    use(policy, 1, 0, 1)  # up to stamp 7; 1 is named twice
    assert policy.mean_stamps()[0] == (6 + 5 + 3) / 3
    policy.remove(2, key(2))
    assert policy.mean_stamps()[0] == (6 + 5) / 2
    assert policy.blocks_in_slab.tolist() == [2, 1, 0, 0]


# --- what a decision costs ----------------------------------------------------------------------------------------


def test_heaps_do_not_grow_however_often_blocks_come_and_go_and_move():
    policy = made(Wanted(), (31, NONE, 1))  # never goes, so no other entry ever comes up
    policy.move(array(31), 1, order=-1e9)
    for turn in range(1000):
        for slot in range(0, 30, 2):
            add(policy, slot, queue=1 + turn % 7, size=1 + turn % 2)
            policy.move(array(slot), 2 + turn % 5)
            policy.swap(slot, 1)
            policy.remove(slot, key(slot))
    for size, queues in policy._sizes.items():
        entries = sum(map(len, queues.heaps.values()))
        assert entries == queues.entries <= 4 * UNITS // size + ENTRIES_SPARE + 1
    assert take_all(policy) == [31]


@pytest.mark.parametrize("blocks", [1000, 30_000])
def test_a_decision_costs_the_same_with_many_blocks(blocks, monkeypatch):
    """What is counted: pushes and pops, and looks at what a queue's first is worth."""
    operations = 0

    def counted(operation):
        def call(*args):
            nonlocal operations
            operations += 1
            return operation(*args)

        return call

    ranking = Wanted(refresh_s=0.25)
    policy = Policy(blocks, blocks, ranking)
    for slot in range(blocks):
        policy.add(slot, 1, key(slot), NONE, 1 + slot % 300, NOW)
    victim(policy)
    for name in ("heappush", "heappop", "heapreplace"):
        monkeypatch.setattr(heapq, name, counted(getattr(heapq, name)))
    ranking.worth = counted(ranking.worth)
    for _ in range(500):
        slot = victim(policy)
        policy.remove(slot, key(slot))
        policy.add(slot, 1, key(slot), NONE, 1 + slot % 300, NOW)
    assert operations <= 5 * 500


def test_a_decision_passes_each_block_that_was_used_since_at_most_once():
    policy = made(Wanted(), *((slot, NONE, 1) for slot in range(32)))
    for _ in range(10):
        use(policy, *range(31))
    assert [victim(policy) for _ in range(2)] == [31, 31]
    queues = policy._sizes[SIZE]
    assert queues.entries == 32


def test_a_queue_has_a_number_below_its_limit():
    policy = made(Wanted(), (1, NONE, QUEUES_MAX - 1), (2, NONE, 1))
    assert take_all(policy) == [2, 1]
