"""Bugs planted in what the store does with the remote; see planted_bugs.py."""

import numpy as np

from kvtier.store import BlockStore
from kvtier.transfer import Erase, Promote

from .planting import Blind, bugs_of, lie_about_faults, see_ram_otherwise

# --- what goes there ---------------------------------------------------------------------------------------------


def what_is_to_stay_on_its_node_is_written(store: BlockStore) -> None:
    see_ram_otherwise(store.away, store.ram, stays_here=np.zeros(store.ram.slots.units, bool))


def what_a_reset_ended_is_written(store: BlockStore) -> None:
    store.away._room.serves = lambda namespace: True


def what_is_written_is_not_pinned(store: BlockStore) -> None:
    see_ram_otherwise(store.away, store.ram, pin=lambda slots: None, unpin=lambda slots: None)


def what_was_written_stays_pinned(store: BlockStore) -> None:
    see_ram_otherwise(store.away, store.ram, unpin=lambda slots: None)


def more_is_written_than_the_rate_allows(store: BlockStore) -> None:
    store.away.demotions.budget.is_short = lambda size, now: False


# --- what comes from there -----------------------------------------------------------------------------------------


def what_did_not_come_whole_is_offered(store: BlockStore) -> None:
    lie_about_faults(store.away, Promote)


def what_is_read_from_there_is_read_twice_at_a_time(store: BlockStore) -> None:
    store.staging._reads = Blind()


def what_came_is_taken_to_be_on_the_drives(store: BlockStore) -> None:
    store.staging._sources["remote"].keeps = True


def a_question_is_asked_twice_at_a_time(store: BlockStore) -> None:
    store.away.known._asked = Blind()


def what_is_awaited_from_there_is_awaited_for_ever(store: BlockStore) -> None:
    sound = store.leases.replan
    store.leases.replan = lambda now: None if store.leases.waiting() else sound(now)


# --- what is forgotten there ---------------------------------------------------------------------------------------


def what_is_forgotten_stays_there(store: BlockStore) -> None:
    store.away.erase = lambda key, namespace: None


def an_erasure_there_that_failed_is_taken_for_done(store: BlockStore) -> None:
    lie_about_faults(store.away, Erase)


BUGS_FAR = bugs_of(globals())
