"""Bugs planted in what the store does with the tier below it; see planted_bugs.py."""

from dataclasses import replace

from kvtier.store import BlockStore
from kvtier.transfer import Demote, Finished, Forget, Promote, Remember

from .planting import Blind, bugs_of, lie_about_faults, see_ram_otherwise

# --- writes --------------------------------------------------------------------------------------------------


def a_write_does_not_pin(store: BlockStore) -> None:
    see_ram_otherwise(store.lower, store.ram, pin=lambda slots: None, unpin=lambda slots: None)


def a_write_pins_for_ever(store: BlockStore) -> None:
    see_ram_otherwise(store.lower, store.ram, unpin=lambda slots: None)


def a_key_is_written_twice_at_a_time(store: BlockStore) -> None:
    store.lower.demotions._writing = Blind()


def writes_have_no_bound(store: BlockStore) -> None:
    store.lower.demotions._bytes_max = 2**60


def a_failed_write_is_taken_for_done(store: BlockStore) -> None:
    lie_about_faults(store.lower, Demote)


def a_failed_write_is_not_tried_again(store: BlockStore) -> None:
    store.lower.demotions.retry = lambda demote: store.lower.demotions._handled(demote.key)


def a_write_of_a_reset_namespace_is_added(store: BlockStore) -> None:
    demotions = store.lower.demotions
    sound = demotions.finished

    def finished(demote: Demote, done: Finished) -> None:
        sound(replace(demote, epoch=demotions._epochs[demote.namespace]), done)

    demotions.finished = finished


def the_budget_is_not_spent(store: BlockStore) -> None:
    store.lower.demotions.budget.spend = lambda size: None


def the_budget_is_not_asked(store: BlockStore) -> None:
    store.lower.demotions.budget.refusal = lambda size, used_again, now: ""


def every_block_may_take_the_whole_budget(store: BlockStore) -> None:
    sound = store.lower.demotions.budget.refusal
    store.lower.demotions.budget.refusal = lambda size, used_again, now: sound(size, True, now)


def a_new_block_inherits_what_its_slot_was_used_for(store: BlockStore) -> None:
    demotions = store.lower.demotions

    def saved(keys, slots):
        for key in keys:
            demotions._queue(demotions._first, key)

    demotions.saved = saved


# --- reads ---------------------------------------------------------------------------------------------------


def a_failed_read_gives_its_slot_back_twice(store: BlockStore) -> None:
    staging = store.lower.staging
    sound = staging.finished

    def finished(order: Promote, done: Finished, now: float) -> int | None:
        kept = sound(order, done, now)
        if done.fault:
            store.ram.slots.give(order.slot)
        return kept

    staging.finished = finished


def a_failed_read_leaks_its_slot(store: BlockStore) -> None:
    staging = store.lower.staging
    sound, give = staging.finished, store.ram.slots.give

    def finished(order: Promote, done: Finished, now: float) -> int | None:
        store.ram.slots.give = lambda slot: None
        kept = sound(order, done, now)
        store.ram.slots.give = give
        return kept

    staging.finished = finished


def a_failed_read_is_served(store: BlockStore) -> None:
    sound = store.lower.staging.finished
    store.lower.staging.finished = lambda order, done, now: sound(order, replace(done, fault=""), now)


def a_corrupt_block_is_not_dropped(store: BlockStore) -> None:
    sound = store.lower.finished
    store.lower.finished = lambda done, now: sound(replace(done, fault=done.fault and "io"), now)


def a_read_of_a_reset_namespace_is_kept(store: BlockStore) -> None:
    staging = store.lower.staging
    sound = staging.finished

    def finished(order: Promote, done: Finished, now: float) -> int | None:
        read = staging._reads[order.key]
        read.epoch = staging._epochs[read.namespace]
        return sound(order, done, now)

    staging.finished = finished


def a_key_is_read_twice_at_a_time(store: BlockStore) -> None:
    store.lower.staging._reads = Blind()


def reads_have_no_bound(store: BlockStore) -> None:
    store.lower.staging.bytes_max = 2**60


def a_read_is_checked_by_the_checksum_of_its_neighbour(store: BlockStore) -> None:
    extents = store.lower.extents
    extents.checksum = lambda place: int(extents._columns.checksum[extents._row(place) - 1])


# --- lookups that wait ---------------------------------------------------------------------------------------


def a_waiting_lookup_is_answered_twice(store: BlockStore) -> None:
    sound = store.leases._answer

    def answer(*waited):
        sound(*waited)
        store.leases._answers *= 2

    store.leases._answer = answer


def a_waiting_lookup_is_never_answered(store: BlockStore) -> None:
    store.leases._answer = lambda asker, now, reason="": store.lower.staging.forget(asker, now) and None


def a_deadline_is_forgotten(store: BlockStore) -> None:
    store.leases.replan = lambda now: None


def a_staged_block_is_not_pinned(store: BlockStore) -> None:
    sound, pin = store.leases.note_arrivals, store.leases._pin

    def note_arrivals(now):
        store.leases._pin = lambda slots, slot_bytes: None
        sound(now)
        store.leases._pin = pin

    store.leases.note_arrivals = note_arrivals


def a_released_lookup_still_waits(store: BlockStore) -> None:
    sound, waiting = store.leases.release, store.lower.staging.waiting

    def release(asker, now):
        before = waiting.get(asker)
        loaded = sound(asker, now)
        if before is not None:
            waiting[asker] = before
        return loaded

    store.leases.release = release


def an_engine_that_is_leaving_still_waits(store: BlockStore) -> None:
    store.leases.leaving = lambda engine, now: None


def an_answer_names_what_was_dropped_meanwhile(store: BlockStore) -> None:
    sound, holds = store.leases._answer, store.ram.index.holds

    def answer(*waited):
        store.ram.index.holds = lambda slot: True
        sound(*waited)
        store.ram.index.holds = holds

    store.leases._answer = answer


def what_an_engine_has_is_staged_too(store: BlockStore) -> None:
    sound = store.leases._wanted
    store.leases._wanted = lambda one, *where: sound(replace(one, skip=0), *where)


def what_is_behind_a_hole_is_staged_too(store: BlockStore) -> None:
    sound = store.leases._wanted
    store.leases._wanted = lambda one, *where: sound(replace(one, kind=one.kind._replace(is_chain=False)), *where)


# --- places --------------------------------------------------------------------------------------------------


def an_extent_is_filled_again_before_it_is_forgotten(store: BlockStore) -> None:
    extents = store.lower.extents
    reclaim, freed = extents.reclaim, extents.freed

    def reclaim_and_free():
        if reclaimed := reclaim():
            freed(reclaimed[0])
        return reclaimed

    extents.reclaim, extents.freed = reclaim_and_free, lambda first: None


def a_forget_that_failed_is_taken_for_done(store: BlockStore) -> None:
    lie_about_faults(store.lower, Forget)


def an_extent_is_reclaimed_while_it_is_read(store: BlockStore) -> None:
    store.lower.extents.hold = store.lower.extents.let_go = lambda place: None


def a_reclaimed_extent_keeps_its_keys(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.reclaim

    def reclaim():
        before = dict(extents._table)
        reclaimed = sound()
        extents._table.update(before)
        return reclaimed

    extents.reclaim = reclaim


def what_was_forgotten_is_written_again_at_once(store: BlockStore) -> None:
    demotions = store.lower.demotions

    def forgotten(keys):
        for key in keys:
            if key in store.ram.index:
                demotions._queue(demotions._again, key)

    demotions.forgotten = forgotten


def a_place_is_handed_out_twice(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.take

    def take(size, stored=0):
        place = sound(size, stored)
        if place is not None and extents._extents[place // extents._units].taken == 2:
            extents._extents[place // extents._units].taken = 1
        return place

    extents.take = take


def the_place_of_a_failed_write_is_used_again(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.give_up

    def give_up(place, *origin):
        sound(place, *origin)
        extent = extents._extents[place // extents._units]
        if place // extents._units in extents._open.get((extent.size, extent.stored), ()):
            extent.taken -= 1

    extents.give_up = give_up


def used_bytes_only_grow(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.drop

    def drop(place):
        before = extents.used_bytes
        sound(place)
        extents.used_bytes = before

    extents.drop = drop


def a_freed_extent_goes_to_another_drive(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.freed

    def freed(first):
        sound(first)
        extents._free[-1].append(extents._free[first // extents._units % extents._drives].pop())

    extents.freed = freed


def a_recovered_block_is_not_known(store: BlockStore) -> None:
    table = store.lower.extents._table
    if table:
        table.popitem()


# --- namespaces and flushes ----------------------------------------------------------------------------------


def a_reset_leaves_what_lies_below(store: BlockStore) -> None:
    store.lower.extents.drop_namespace = lambda namespace: 0


def the_tier_is_not_told_of_a_reset(store: BlockStore) -> None:
    sound = store.lower.remember

    def remember(digest, number, epoch):
        if epoch:
            store.lower.epochs[number] = epoch
        else:
            sound(digest, number, epoch)

    store.lower.remember = remember


def a_remember_that_failed_is_taken_for_done(store: BlockStore) -> None:
    lie_about_faults(store.lower, Remember)


def a_flush_is_over_before_the_last_write(store: BlockStore) -> None:
    demotions = store.lower.demotions

    def awaited():
        flushes = list(demotions._awaited)
        demotions._awaited.clear()
        return flushes

    demotions.awaited = awaited


def a_flush_does_not_wait_for_what_waits_twice(store: BlockStore) -> None:
    demotions = store.lower.demotions

    def handled(key):
        for keys in demotions._awaited.values():
            keys.discard(key)

    demotions._handled = handled


def a_flush_is_never_over(store: BlockStore) -> None:
    store.lower.demotions._handled = lambda key: None


BUGS_BELOW = bugs_of(globals())
