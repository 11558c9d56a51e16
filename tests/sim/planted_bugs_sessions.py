"""Bugs planted in what the store does because of sessions; see planted_bugs.py."""

from types import SimpleNamespace

import numpy as np

from kvtier.block import ABSENT
from kvtier.policy import KEPT
from kvtier.store import BlockStore
from kvtier.transfer import Erase

from .planting import bugs_of, lie_about_faults

# --- who goes ------------------------------------------------------------------------------------------------------


def a_parent_goes_before_its_child(store: BlockStore) -> None:
    store.ram.policy.attach = lambda slot, parent: None


def an_orphan_is_accepted(store: BlockStore) -> None:
    store.ram.has_use_for = lambda parent: True


def what_is_behind_a_reclaimed_block_stays(store: BlockStore) -> None:
    ram = store.ram

    def lost_below(keys):
        for key in keys:
            if key in ram.index:
                ram.note_below(int(ram.index.find(key)[0]), False)
        return 0

    ram.lost_below = lost_below


def what_only_an_ended_session_had_is_worth_as_much_as_ever(store: BlockStore) -> None:
    store.retention._standing.retire = lambda keys: None


def what_an_ended_session_shared_is_taken_for_dead(store: BlockStore) -> None:
    sessions = store.retention._sessions
    sound = sessions._leave

    def leave(keys):
        sound(keys)
        return keys

    sessions._leave = leave


def what_nobody_asked_for_takes_the_room_of_something_dearer(store: BlockStore) -> None:
    sound = store.ram.take_for
    store.ram.take_for = lambda size, worth: sound(size, float("inf"))


def a_session_whose_time_is_up_leaves_its_blocks(store: BlockStore) -> None:
    store.retention._expire = store.retention._end


# --- pins ----------------------------------------------------------------------------------------------------------


def a_pin_does_not_keep(store: BlockStore) -> None:
    sound = store.ram.policy.move

    def move(slots, queue, order=None):
        if not (isinstance(queue, int) and queue == KEPT):
            sound(slots, queue, order)

    store.ram.policy.move = move


def a_slab_with_a_pinned_block_is_cleared(store: BlockStore) -> None:
    sound = store.ram._clear_slab

    def clear_slab(*wanted):
        kept = store.ram.policy.kept_in_slab
        store.ram.policy.kept_in_slab = np.zeros_like(kept)
        whole = sound(*wanted)
        store.ram.policy.kept_in_slab = kept
        return whole

    store.ram._clear_slab = clear_slab


def the_quota_of_pins_is_ignored(store: BlockStore) -> None:
    store.retention.pins.share = 1.0


def to_unpin_one_session_unpins_another(store: BlockStore) -> None:
    pins, index = store.retention.pins, store.ram.index
    sound = pins.unpin

    def unpin(session):
        slots = index.find(session.pinned)
        slots = slots[slots != ABSENT].astype(np.intp)
        kept = slots[store.ram.policy.queues(slots) == KEPT]
        sound(session)
        return kept

    pins.unpin = unpin


def a_pin_lasts_for_ever(store: BlockStore) -> None:
    store.retention.pins.expired = lambda now: []


# --- what is to be forgotten ---------------------------------------------------------------------------------------


def a_forgotten_block_stays_in_ram(store: BlockStore) -> None:
    store.retention._forgetting._remove_from_ram = lambda ticket, slots, keys=(): None


def a_forgotten_block_stays_below(store: BlockStore) -> None:
    store.retention._forgetting._remove_below = lambda ticket, places: None


def a_forgotten_block_is_written_to_the_end(store: BlockStore) -> None:
    store.lower.demotions.forget_key = lambda key: False


def a_forgotten_block_is_read_to_the_end(store: BlockStore) -> None:
    store.lower.staging.forget_key = lambda key: None


def a_forgotten_request_saves_on(store: BlockStore) -> None:
    store.retention._forgetting.is_barred = lambda engine, request: False


def a_failed_save_of_a_forgotten_request_is_not_wiped(store: BlockStore) -> None:
    store.retention.hide = lambda engine, slots: None


def what_a_forgotten_session_had_once_stays(store: BlockStore) -> None:
    store.ram.of_origin = lambda *tags: []


def what_is_on_its_way_of_a_forgotten_session_arrives(store: BlockStore) -> None:
    store.lower.moving_of_origin = lambda *tags: []


def what_others_share_is_forgotten_too(store: BlockStore) -> None:
    store.retention._forgetting._has = lambda key: False


def a_slot_is_free_before_it_is_wiped(store: BlockStore) -> None:
    store.ram.wipe_later = lambda slot: None


def a_slot_is_wiped_while_it_is_read(store: BlockStore) -> None:
    sound = store.ram.wipe_later

    def wipe_later(slot):
        sound(slot)
        store.ram.to_wipe.append((slot, store.ram.slots.size_of(slot)))

    store.ram.wipe_later = wipe_later


def it_is_through_before_all_is_wiped(store: BlockStore) -> None:
    store.retention._forgetting._is_through = lambda number: True


def it_is_never_through(store: BlockStore) -> None:
    store.retention._forgetting._is_through = lambda number: False


def an_erasure_that_failed_is_taken_for_done(store: BlockStore) -> None:
    lie_about_faults(store.lower, Erase)


def a_place_is_erased_while_it_is_read(store: BlockStore) -> None:
    store.lower.staging.is_reading = lambda place: False


# --- what is to touch no disk --------------------------------------------------------------------------------------


def what_is_to_touch_no_disk_is_written(store: BlockStore) -> None:
    ram = store.ram
    names = ("index", "slots", "tenants", "origin", "note_below", "pin", "unpin")
    stays = np.zeros_like(ram.stays)
    store.lower.demotions._ram = SimpleNamespace(stays=stays, **{name: getattr(ram, name) for name in names})


BUGS_IN_SESSIONS = bugs_of(globals())
