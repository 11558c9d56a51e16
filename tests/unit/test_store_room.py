"""BlockStore: which engine gets slots, and what goes for them."""

import itertools

import numpy as np
import pytest

from kvtier.store import BlockStore

from .test_store import BLOCK, BLUE, CAPACITY, MIB, RED, column, join, keys, known, lent_to, save

LARGE = MIB
ALL = CAPACITY // BLOCK


@pytest.fixture
def store() -> BlockStore:
    """All engines are lent at most 4 small slots; leases pin at most 16."""
    return BlockStore(CAPACITY, lend_share=0.125, lease_share=0.5)


def lent(store: BlockStore, engine: str) -> set[int]:
    return store.lending.engines[engine].lent


def slabs_of(store: BlockStore, slots) -> set[int]:
    return {store.ram.slots.slab_of(int(slot)) for slot in slots}


def scatter(store: BlockStore, engine: str) -> None:
    """Saves until the slots lent to the engine lie in all slabs: none of these can be cut anew at once."""
    save(store, engine, *range(28))
    slots = store.ram.index.find(keys(*range(28)))
    store.touch(engine, keys(*(int(i) for i in np.argsort(slots % 32, kind="stable"))))  # the slabs' blocks go by turns
    for number in range(100, 140):
        save(store, engine, number)
        if len(slabs_of(store, lent(store, engine))) == 4:
            return
    raise AssertionError("the lent slots do not lie in all slabs: this test says nothing")


# --- what goes -----------------------------------------------------------------------------------------------


def test_a_full_arena_forgets_what_was_used_least_recently(store):
    join(store, "a")
    save(store, "a", *range(28))
    assert known(store, *range(28)) == list(range(28))
    store.touch("a", keys(3))
    save(store, "a", 100, 101, 102, 103, 104, 105)
    evicted = store.stats["evicted_blocks"]
    assert evicted >= 5
    assert known(store, *range(28)) == [3, *range(evicted + 1, 28)], "3 was used later"


def test_a_conversation_loses_its_tail_first(store):
    join(store, "a")
    save(store, "a", *range(28))
    store.touch("a", keys(*range(28)))
    save(store, "a", 100, 101, 102)
    evicted = 28 - len(known(store, *range(28)))
    assert evicted > 0
    assert known(store, *range(28)) == list(range(28 - evicted))


def test_a_leased_block_is_never_evicted(store):
    join(store, "a")
    save(store, "a", *range(28))
    before = store.lookup("a", 1, keys(0, 1)).tolist()
    save(store, "a", *range(100, 150))
    assert known(store, *range(28)) == [0, 1]
    assert store.lookup("a", 2, keys(0, 1)).tolist() == before
    store.release("a", 1, 2)
    store.release("a", 2, 2)
    save(store, "a", *range(200, 250))
    assert known(store, 0, 1) == []


def test_an_engine_with_larger_blocks_gets_the_slab_that_was_used_least_recently(store):
    join(store, "a")
    save(store, "a", *range(28))
    store.leave("a", 0.0)
    join(store, "c", lend=4)  # takes what is free
    oldest = store.ram.slots.slab_of(int(store.ram.index.find(keys(0))[0]))
    large = join(store, "b", BLUE, LARGE, lend=1)
    assert [store.ram.slots.slab_of(slot) for slot in large] == [oldest]
    assert store.ram.slots.size_of(large[0]) == LARGE
    assert len(store.ram.index) == 28 - 8


def test_a_hot_slab_is_not_lost_for_one_old_block(store):
    join(store, "a")
    save(store, "a", *range(28))
    store.leave("a", 0.0)
    join(store, "c")
    oldest_slab = slabs_of(store, store.ram.index.find(keys(0)))
    slots = store.ram.index.find(keys(*range(28)))
    store.touch("c", keys(*(i for i in range(1, 28) if slabs_of(store, slots[i : i + 1]) == oldest_slab)))
    large = join(store, "b", BLUE, LARGE, lend=1)
    assert slabs_of(store, large) and not slabs_of(store, large) & oldest_slab
    assert known(store, 0) == [0]


def test_a_size_in_demand_gets_the_slabs_of_one_that_is_not():
    store = BlockStore(CAPACITY, lend_share=0.25, lease_share=0.5)
    join(store, "idle", lend=1)
    save(store, "idle", *range(30))
    store.want("idle", 0)
    store.give_back("idle", column(*lent(store, "idle")))
    join(store, "busy", BLUE, LARGE, lend=1)
    save(store, "busy", *range(100, 120))
    assert known(store, *range(30)) == []
    assert len(known(store, *range(100, 120))) == 7, "all but the one slot that is lent"


def test_two_sizes_in_equal_demand_keep_blocks_of_about_the_same_age():
    store = BlockStore(8 * CAPACITY, lend_share=0.0625, lease_share=0.5)  # 16 slabs
    join(store, "a", RED, BLOCK, lend=2)
    join(store, "b", BLUE, 4 * BLOCK, lend=2)
    for number in range(2000):
        save(store, "ab"[number % 2], number)
    ages = [2000 - known(store, *range(first, 2000, 2))[0] for first in (0, 1)]  # of the oldest block of each size
    fair = 2 * 8 * CAPACITY // (BLOCK + 4 * BLOCK)  # if blocks went one by one
    assert all(0.7 * fair < age < 1.3 * fair for age in ages), (ages, fair)


def test_there_is_something_to_evict_behind_any_number_of_blocks_that_are_leased():
    store = BlockStore(100 * 2 * MIB, lend_share=0.01, lease_share=0.9)
    join(store, "a", block=64 * 1024, lend=1)
    save(store, "a", *range(3000))
    store.lookup("a", 1, keys(*range(2000)))
    store.touch("a", keys(*range(2000, 3000)))  # so that those leased come up first
    while store.stats["evicted_blocks"] == 0:
        save(store, "a", 10_000 + store.stats["saved_blocks"])
    assert known(store, *range(2000)) == list(range(2000))
    assert lent(store, "a") != set()


# --- a slab that closes --------------------------------------------------------------------------------------


def test_an_engine_with_other_blocks_gets_slots_when_the_idle_one_wants_fewer_and_gives_back(store):
    join(store, "idle")
    scatter(store, "idle")
    assert join(store, "b", BLUE, LARGE) == []
    closing = store.ram.slots.closing
    assert closing is not None
    store.want("idle", 0)
    store.give_back("idle", column(*lent(store, "idle")))
    assert slabs_of(store, lent_to(store, "b")) == {closing}
    assert store.ram.slots.closing is None


def test_an_engine_with_other_blocks_gets_slots_while_the_first_one_stays_active(store):
    join(store, "active")
    scatter(store, "active")
    assert join(store, "b", BLUE, LARGE) == []
    for number in itertools.count(1000):
        save(store, "active", number)  # the lowest of its slots first, so that each comes to its turn
        assert number < 1100
        if lent(store, "b"):
            break
    save(store, "active", 2000)
    assert known(store, 2000) == [2000]


def test_a_closing_slab_keeps_no_block(store):
    join(store, "a")
    scatter(store, "a")
    join(store, "b", BLUE, LARGE)
    assert store.ram.policy.blocks_in_slab[store.ram.slots.closing] == 0
    slot = next(slot for slot in lent(store, "a") if store.ram.slots.is_closing(slot))
    evicted, saved = store.stats["evicted_blocks"], store.stats["saved_blocks"]
    store.commit("a", keys(1000), column(slot))
    assert known(store, 1000) == []
    assert store.stats["evicted_blocks"] == evicted + 1
    assert store.stats["saved_blocks"] == saved + 1


def test_a_leased_block_in_a_closing_slab_is_not_found_any_more_and_its_slot_stays_until_the_lease_ends():
    store = BlockStore(CAPACITY, lend_share=0.25, lease_share=0.5)
    join(store, "a", lend=1)
    save(store, "a", *range(31))
    slots = store.ram.index.find(keys(*range(31)))
    heads = [int(np.flatnonzero(slots // 32 == slab)[0]) for slab in range(4)]  # one block of each slab
    store.lookup("a", 1, keys(*heads))
    assert join(store, "b", BLUE, LARGE, lend=1) == []
    gone = [head for head in heads if head not in known(store, *heads)]
    assert len(gone) == 1
    assert not store.ram.slots.is_free(int(slots[gone[0]]))
    store.release("a", 1, 0)
    assert slabs_of(store, lent_to(store, "b")) == slabs_of(store, slots[gone])


def test_while_one_slab_is_closing_another_goes_that_may_go_at_once(store):
    join(store, "a")
    scatter(store, "a")
    join(store, "b", BLUE, LARGE)
    closing = store.ram.slots.closing
    free = next(slot for slot in sorted(lent(store, "a")) if not store.ram.slots.is_closing(slot))
    store.want("a", 0)
    store.give_back("a", column(free))
    assert slabs_of(store, lent_to(store, "b")) == slabs_of(store, [free])
    assert store.ram.slots.closing == closing


def test_a_slab_goes_to_the_size_that_it_was_closed_for(store):
    join(store, "a")  # before "b" in every order
    scatter(store, "a")
    join(store, "b", BLUE, LARGE)
    closing = store.ram.slots.closing
    store.give_back("a", column(*lent(store, "a")))
    assert {name: slabs_of(store, slots) for name, slots in store.lends()}["b"] == {closing}


# --- how many ------------------------------------------------------------------------------------------------


def test_slots_lent_to_many_engines_leave_room_for_blocks(store):
    for number in range(8):
        assert join(store, f"engine-{number}") != [], "everybody has one"
    assert store.lending.lent_bytes == (4 + 7) * BLOCK


def test_who_joins_later_has_an_equal_part_when_those_before_have_used_theirs(store):
    first = join(store, "a")
    assert store.join("b", BLUE, BLOCK, 16, 4, now=0.0) == (0, 2)
    assert len(lent_to(store, "b")) == 1
    store.commit("a", keys(1, 2, 3), column(*first[:3]))
    assert {name: len(slots) for name, slots in store.lends()} == {"b": 1}
    store.leave("b", 0.0)
    store.commit("a", keys(4), column(first[3]))
    assert len(lent_to(store, "a")) == 4, "all is its own again"


def test_an_engine_that_wants_fewer_is_not_topped_up_and_never_gets_more_than_it_joined_with(store):
    slots = join(store, "a", lend=3)
    store.want("a", 1)
    store.give_back("a", column(*slots[:2]))
    assert lent_to(store, "a") == []
    store.give_back("a", column(slots[2]))
    assert len(lent_to(store, "a")) == 1
    store.want("a", 99)
    assert len(lent_to(store, "a")) == 2
    assert store.snapshot(0.0)["engines"][0]["lend_target"] == 3


def test_an_engine_that_wants_nothing_is_lent_nothing(store):
    slots = join(store, "a")
    store.want("a", 0)
    store.give_back("a", column(*slots))
    assert lent_to(store, "a") == []
    assert store.ram.slots.taken_bytes == 0


def test_an_engine_that_is_leaving_is_lent_nothing_and_keeps_what_it_holds(store):
    slots = join(store, "a")
    store.leaving("a", 0.0)
    store.commit("a", keys(1, 2, 3), column(*slots[:3]))
    store.want("a", 4)
    assert lent_to(store, "a") == []
    assert lent(store, "a") == {slots[3]}
    store.leave("a", 0.0)
    assert store.lending.lent_bytes == 0


# --- when ----------------------------------------------------------------------------------------------------


def test_a_starved_engine_costs_nothing_while_nothing_changes(store, monkeypatch):
    join(store, "a")
    scatter(store, "a")
    assert join(store, "b", BLUE, LARGE) == []
    tried = []
    for part, name in (
        (store.lending, "_top_up"),
        (store.ram, "_clear_slab"),
        (store.ram.policy, "victim"),
        (store.ram.slots, "take"),
    ):
        sound = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *args, name=name, sound=sound: (tried.append(name), sound(*args))[1])
    store.lookup("a", 1, keys(*range(28)))
    store.touch("a", keys(*range(28)))
    store.report({})
    assert [store.lends() for _ in range(5)] == [[]] * 5
    assert tried == []
    store.release("a", 1, 0)
    assert store.lends() == []
    assert sorted(set(tried)) == ["_clear_slab", "_top_up", "take", "victim"]
    assert len(tried) == 4, "each once"
