"""Bugs planted on purpose, to see that the simulator would notice them.

Each function takes a sound store and breaks one line of it: by hand on the store's own parts, never in the module, so
that no other store is touched. Its name says what is wrong and shows in the test's id.
"""

import numpy as np

from kvtier.block import ABSENT, SLOT_UNIT
from kvtier.store import BlockStore

from .habits import Habits
from .planting import bugs_of


def release_forgets_to_unpin(store: BlockStore) -> None:
    store.ram.index.unpin = lambda slots: []


def unpin_frees_a_slot_that_still_holds_a_block(store: BlockStore) -> None:
    sound = store.ram.index.unpin

    def unpin(slots: np.ndarray) -> list[int]:
        sound(slots)
        return [slot for slot in np.unique(slots).tolist() if not store.ram.index.is_pinned(slot)]

    store.ram.index.unpin = unpin


def unpin_names_a_freed_slot_once_a_pin(store: BlockStore) -> None:
    sound = store.ram.index.unpin

    def unpin(slots: np.ndarray) -> list[int]:
        freed = sound(slots)
        return [slot for slot in slots.tolist() if slot in freed]

    store.ram.index.unpin = unpin


def commit_of_a_known_key_leaks_the_slot(store: BlockStore) -> None:
    commit, give = store.commit, store.ram.slots.give

    def leaking(*saved):
        store.ram.slots.give = lambda slot: None
        commit(*saved)
        store.ram.slots.give = give

    store.commit = leaking


def commit_does_not_check_that_the_slot_was_lent(store: BlockStore) -> None:
    store.lending._require_lent = lambda engine, slots: None


def give_back_leaves_the_slot_lent_too(store: BlockStore) -> None:
    sound = store.give_back

    def give_back(engine, slots):
        sound(engine, slots)
        store.lending.engines[engine].lent.update(slots.tolist())

    store.give_back = give_back


def leave_gives_lent_slots_back_twice(store: BlockStore) -> None:
    sound = store.leave

    def leave(engine, now):
        lent = set(store.lending.engines[engine].lent)
        sound(engine, now)
        for slot in lent:
            store.ram.slots.give(slot)

    store.leave = leave


def leave_forgets_the_leases(store: BlockStore) -> None:
    sound = store.leave

    def leave(engine, now):
        store.leases._of.get(engine, {}).clear()
        sound(engine, now)

    store.leave = leave


def leave_forgets_lent_slots(store: BlockStore) -> None:
    sound = store.leave

    def leave(engine, now):
        store.lending.engines[engine].lent.clear()
        sound(engine, now)

    store.leave = leave


def reset_drops_only_what_is_not_leased(store: BlockStore) -> None:
    sound = store.ram.index.of_namespace
    store.ram.index.of_namespace = lambda number: np.array(
        [slot for slot in sound(number).tolist() if not store.ram.index.is_pinned(slot)], dtype=np.int64
    )


def reset_forgets_the_epoch(store: BlockStore) -> None:
    sound = store.reset

    def reset(engine, namespace):
        sound(engine, namespace)
        store.namespaces[namespace].epoch -= 1

    store.reset = reset


def eviction_ignores_leases(store: BlockStore) -> None:
    store.ram.index.is_pinned = lambda slot: False


def a_block_dropped_while_leased_is_free_at_once(store: BlockStore) -> None:
    sound = store.ram.index.drop

    def drop(slot):
        sound(slot)
        return True

    store.ram.index.drop = drop


def lookup_answers_the_slot_of_the_neighbour(store: BlockStore) -> None:
    sound = store.ram.index.find
    store.ram.index.find = lambda keys: np.roll(sound(keys), 1)


def lookup_answers_a_slot_that_is_one_off(store: BlockStore) -> None:
    sound = store.lookup
    store.lookup = lambda *question: np.where((answer := sound(*question)) == ABSENT, ABSENT, answer + np.uint32(1))


def lookup_leases_only_the_first_key(store: BlockStore) -> None:
    sound = store.ram.index.pin
    store.ram.index.pin = lambda slots: sound(slots[:1])


def a_slot_leased_twice_has_one_pin(store: BlockStore) -> None:
    def pin(slots):
        store.ram.index._pins[slots] = 1

    store.ram.index.pin = pin


def the_lease_limit_is_not_applied(store: BlockStore) -> None:
    store.leases._bytes_max = store.ram.slots.capacity * 100


def leased_bytes_only_grow(store: BlockStore) -> None:
    sound = store.leases._unpin

    def unpin(lease):
        before = store.leases.bytes
        sound(lease)
        store.leases.bytes = before

    store.leases._unpin = unpin


def lend_goes_over_its_target(store: BlockStore) -> None:
    sound = store.lending._may_lend
    store.lending._may_lend = lambda engine: sound(engine) or len(engine.lent) == store.lending.target(engine)


def lend_goes_over_the_share_of_all(store: BlockStore) -> None:
    store.lending._may_lend = lambda engine: len(engine.lent) < store.lending.target(engine)


def lend_forgets_that_others_joined(store: BlockStore) -> None:
    store.lending.target = lambda engine: min(engine.wish, max(1, store.lending._bytes_max // engine.kind.slot_bytes))


def an_engine_that_ran_out_of_slots_is_forgotten(store: BlockStore) -> None:
    sound, marked = store.lending.mark_hungry, set()
    store.lending.mark_hungry = lambda name: None if name in marked else (marked.add(name), sound(name))


def a_wish_is_forgotten(store: BlockStore) -> None:
    store.want = lambda engine, slots: None


def a_wish_is_not_limited(store: BlockStore) -> None:
    sound = store.want

    def want(engine, slots):
        store.lending.engines[engine].wish_max = slots
        sound(engine, slots)

    store.want = want


def an_engine_that_is_leaving_is_lent_to(store: BlockStore) -> None:
    store.leaving = lambda engine, now: None


def nobody_is_served_after_a_release(store: BlockStore) -> None:
    sound = store.release

    def release(*lease):
        before = store.lending.can_help
        sound(*lease)
        store.lending.can_help = before

    store.release = release


def nobody_is_served_after_a_leave(store: BlockStore) -> None:
    sound = store.leave

    def leave(engine, now):
        before = store.lending.can_help
        sound(engine, now)
        store.lending.can_help = before

    store.leave = leave


def a_slab_is_cut_anew_while_slots_of_it_are_lent(store: BlockStore) -> None:
    def close(slab):
        store.ram.slots.size_of_slab[slab] = 0
        store.ram.slots._unassigned.append(slab)

    store.ram.slots.close = close


def a_slab_that_should_close_stays_open(store: BlockStore) -> None:
    store.ram.slots.close = lambda slab: None


def a_closing_slab_hands_out_its_free_slots(store: BlockStore) -> None:
    def close(slab):
        store.ram.slots.closing, store.ram.slots._shut = slab, set()

    store.ram.slots.close = close


def a_closing_slab_hands_out_what_comes_back(store: BlockStore) -> None:
    sound = store.ram.slots.give

    def give(slot):
        closing, size = store.ram.slots.is_closing(slot), store.ram.slots.size_of(slot)
        sound(slot)
        if closing and store.ram.slots.size_of(slot):
            store.ram.slots._free[size].add(slot)

    store.ram.slots.give = give


def a_closing_slab_is_never_whole(store: BlockStore) -> None:
    sound = store.ram.slots.give

    def give(slot):
        closing = store.ram.slots.closing
        sound(slot)
        store.ram.slots.closing = closing

    store.ram.slots.give = give


def a_commit_into_the_closing_slab_is_kept(store: BlockStore) -> None:
    store.ram.slots.is_closing = lambda slot: False


def for_whom_a_slab_was_closed_is_forgotten(store: BlockStore) -> None:
    sound = store.ram._clear_slab

    def clear_slab(*wanted):
        before = store.ram._closing_for
        whole = sound(*wanted)
        store.ram._closing_for = before
        return whole

    store.ram._clear_slab = clear_slab


def a_slab_goes_for_its_oldest_block(store: BlockStore) -> None:
    def oldest_stamps():
        stamps = np.where(store.ram.policy._stamp > 0, store.ram.policy._stamp, np.inf)
        return stamps.reshape(store.ram.slots.slabs, -1).min(axis=1)

    store.ram.policy.mean_stamps = oldest_stamps


def pins_by_slab_only_grow(store: BlockStore) -> None:
    sound = store.ram.unpin

    def unpin(slots):
        before = store.ram._pins_in_slab.copy()
        sound(slots)
        store.ram._pins_in_slab = before

    store.ram.unpin = unpin


def give_puts_the_slot_into_the_wrong_size(store: BlockStore) -> None:
    sound = store.ram.slots.give

    def give(slot):
        size = store.ram.slots.size_of(slot)
        sound(slot)
        if store.ram.slots.size_of(slot):
            store.ram.slots._free[size].discard(slot)
            store.ram.slots._free.setdefault(size + SLOT_UNIT, set()).add(slot)

    store.ram.slots.give = give


def give_counts_a_slot_twice(store: BlockStore) -> None:
    sound = store.ram.slots.give

    def give(slot):
        taken, slab = store.ram.slots.taken_in_slab, store.ram.slots.slab_of(slot)
        taken[slab] -= taken[slab] > 1
        sound(slot)

    store.ram.slots.give = give


def an_emptied_slab_leaves_its_slots_free(store: BlockStore) -> None:
    sound = store.ram.slots.give

    def give(slot):
        size = store.ram.slots.size_of(slot)
        others = set(store.ram.slots.slots_of(store.ram.slots.slab_of(slot)))
        sound(slot)
        if not store.ram.slots.size_of(slot):
            store.ram.slots._free[size].update(others)

    store.ram.slots.give = give


def the_policy_forgets_touches(store: BlockStore) -> None:
    store.ram.policy.use = lambda slots, wanted, now: None


def the_policy_keeps_the_leaf_longest(store: BlockStore) -> None:
    sound = store.ram.policy.use

    def use(slots, wanted, now):
        sound(slots[::-1], wanted if isinstance(wanted, int) else wanted[::-1], now)

    store.ram.policy.use = use


def the_policy_keeps_what_was_dropped(store: BlockStore) -> None:
    store.ram.policy.remove = lambda slot, key: None


def the_policy_forgets_what_was_put_aside(store: BlockStore) -> None:
    store.ram.policy.restore = lambda slots: None


STORE_BUGS = bugs_of(globals())

# What surrounds the store: here only the content of the arena can tell, for the store does nothing wrong.
HABIT_BUGS = {
    "slots_are_free_when_only_the_scheduler_is_gone": Habits(leaves_when_copies_are_over=False),
    "a_save_is_committed_when_the_first_rank_is_done": Habits(commits_when_all_ranks_are_done=False),
    "a_failed_save_is_given_back_when_the_first_rank_failed": Habits(gives_back_when_all_ranks_are_done=False),
    "a_load_is_released_when_the_first_rank_is_done": Habits(releases_when_all_ranks_are_done=False),
}
