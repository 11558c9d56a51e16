"""Bugs planted in the mirror; see planted_bugs.py."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from kvtier.block import ABSENT
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Erase, Finished


def a_copy_is_read_before_it_is_finished(store: BlockStore) -> None:
    mirror = store.mirror
    sound = mirror.transfers

    def transfers(now: float, writable: bool = True) -> list:
        orders = sound(now, writable)
        for order in orders:
            if isinstance(order, Demote):
                mirror._place[order.slot] = order.place
        return orders

    mirror.transfers = transfers


def what_an_engine_may_be_reading_makes_room(store: BlockStore) -> None:
    ram = store.mirror._ram
    index = SimpleNamespace(is_pinned=lambda slot: False, holds=ram.index.holds, key=ram.index.key)
    store.mirror._ram = SimpleNamespace(index=index, slots=ram.slots, policy=ram.policy, pin=ram.pin, unpin=ram.unpin)


def a_copy_outlives_its_block(store: BlockStore) -> None:
    store.ram.on_give = lambda slot: None


def a_copy_goes_with_its_block_though_it_is_being_read(store: BlockStore) -> None:
    sound = store.ram._drop

    def drop(slot: int) -> None:
        sound(slot)
        if store.mirror._place[slot] != ABSENT:
            store.mirror._drop(slot)

    store.ram._drop = drop


def a_slot_is_not_pinned_while_it_is_copied(store: BlockStore) -> None:
    ram = store.mirror._ram
    nothing = lambda slots: None  # noqa: E731
    store.mirror._ram = SimpleNamespace(index=ram.index, slots=ram.slots, policy=ram.policy, pin=nothing, unpin=nothing)


def a_copy_that_failed_is_taken_for_good(store: BlockStore) -> None:
    lie_about_faults_of_the_device(store, Demote)


def an_erasure_on_the_device_that_failed_is_taken_for_done(store: BlockStore) -> None:
    lie_about_faults_of_the_device(store, Erase)


def places_are_told_to_those_who_can_not_read_them(store: BlockStore) -> None:
    mirror = store.mirror
    sound = mirror.answered

    def answered(lease: tuple[str, int], answer: np.ndarray) -> np.ndarray:
        readers, mirror.readers = mirror.readers, {lease[0]}
        said = sound(lease, answer)
        mirror.readers = readers
        return said

    mirror.answered = answered


def the_place_of_what_is_forgotten_is_given_free_and_then_overwritten(store: BlockStore) -> None:
    mirror = store.mirror

    def let_go(place: int) -> None:
        if place in mirror._doomed:
            mirror._to_erase.append((place, mirror.places.size_of(place)))
        mirror.places.give(place)

    mirror._let_go = let_go


def what_is_forgotten_while_it_is_copied_stays_on_the_device(store: BlockStore) -> None:
    mirror = store.mirror
    sound = mirror.doom
    mirror.doom = lambda slot: sound(slot) if mirror._place[slot] != ABSENT else None


def a_block_that_has_gone_is_copied(store: BlockStore) -> None:
    """Its slot may hold another one."""
    mirror = store.mirror

    def given(slot: int) -> None:
        mirror._found[slot] = False
        if mirror._place[slot] != ABSENT:
            mirror._drop(slot)

    store.ram.on_give = given


def what_was_used_once_is_copied(store: BlockStore) -> None:
    store.mirror._found[:] = True
    store.mirror._found = np.ones_like(store.mirror._found)
    store.ram.on_give = lambda slot: (store.mirror.given(slot), store.mirror._found.__setitem__(slot, True))


def lie_about_faults_of_the_device(store: BlockStore, kind: type) -> None:
    mirror = store.mirror
    sound = mirror.finished

    def finished(done: Finished) -> None:
        orders = {**mirror._copying, **mirror._erasing}
        sound(Finished(done.ticket) if isinstance(orders[done.ticket], kind) else done)

    mirror.finished = finished


BUGS_ON_THE_GPU: list[Callable[[BlockStore], None]] = [
    a_copy_is_read_before_it_is_finished,
    what_an_engine_may_be_reading_makes_room,
    a_copy_outlives_its_block,
    a_copy_goes_with_its_block_though_it_is_being_read,
    a_slot_is_not_pinned_while_it_is_copied,
    a_copy_that_failed_is_taken_for_good,
    an_erasure_on_the_device_that_failed_is_taken_for_done,
    places_are_told_to_those_who_can_not_read_them,
    the_place_of_what_is_forgotten_is_given_free_and_then_overwritten,
    what_is_forgotten_while_it_is_copied_stays_on_the_device,
    a_block_that_has_gone_is_copied,
    what_was_used_once_is_copied,
]
