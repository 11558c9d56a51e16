"""Bugs planted in what the store does with frames, on the drives and in a remote; see planted_bugs.py."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from kvtier.block import PLACE_GRAIN, SLOT_UNIT, BlockKey
from kvtier.codec import RAW
from kvtier.coding import Coding
from kvtier.known import Look
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Erase, Finished, Promote

from .planting import Blind, bugs_of


class Deaf(set):
    """Hears what is put in, and knows nothing of it."""

    def __contains__(self, item: object) -> bool:
        return False


# --- which codec -----------------------------------------------------------------------------------------------


def a_wish_is_not_heard(store: BlockStore) -> None:
    store.lower.coding._wishes = Blind()


def all_goes_through_what_one_engine_wishes(store: BlockStore) -> None:
    coding = store.lower.coding
    sound = coding._allowed
    coding._allowed = lambda namespace: list(coding._wishes.values())[:1] or sound(namespace)


def what_this_machine_has_not_is_chosen(store: BlockStore) -> None:
    store.lower.coding._without = Blind(store.lower.coding._without)


def a_codec_that_became_slow_is_used_on(store: BlockStore) -> None:
    store.lower.coding._slow = lambda *question: None


def a_place_that_is_too_small_is_never_given_up(store: BlockStore) -> None:
    coding = store.lower.coding
    sound = coding._reckon

    def reckon(fit, codec, size):
        if not fit.place:
            sound(fit, codec, size)

    coding._reckon = reckon


# --- what does not fit -----------------------------------------------------------------------------------------


def what_did_not_fit_is_tried_the_same_way_again(store: BlockStore) -> None:
    store.lower.demotions._larger = Deaf()


def what_did_not_fit_is_forgotten(store: BlockStore) -> None:
    demotions = store.lower.demotions

    def give_up(key: BlockKey) -> None:
        demotions._handled(key)

    demotions._write_as_it_is = give_up


def what_did_not_fit_is_taken_for_written(store: BlockStore) -> None:
    sound = store.lower.demotions.finished

    def finished(demote: Demote, done: Finished) -> None:
        sound(demote, replace(done, fault="") if done.fault == "larger" else done)

    store.lower.demotions.finished = finished


def what_was_never_written_wears_the_drives_out(store: BlockStore) -> None:
    store.lower.demotions.budget.give_back = lambda size: None


# --- places ----------------------------------------------------------------------------------------------------


def places_of_frames_overlap(store: BlockStore) -> None:
    sound = store.lower.extents.take

    def take(size: int, stored: int = 0) -> int | None:
        return sound(size, stored - PLACE_GRAIN if SLOT_UNIT < stored < size else stored)

    store.lower.extents.take = take


def frames_lie_where_there_are_places_of_another_size(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.take

    def take(size: int, stored: int = 0) -> int | None:
        other = next((it for (of, it), numbers in extents._open.items() if of == size and numbers), stored)
        return sound(size, other)

    extents.take = take


def an_erasure_covers_as_much_as_a_slot(store: BlockStore) -> None:
    lower = store.lower
    sound = lower._erasures

    def erasures() -> Iterator[Erase]:
        return (replace(order, size=lower.extents.size(order.place)) for order in sound())

    lower._erasures = erasures


def a_frame_that_was_recovered_is_no_frame(store: BlockStore) -> None:
    for extent in store.lower.extents._extents:
        extent.stored = extent.size


def used_bytes_count_whole_blocks(store: BlockStore) -> None:
    extents = store.lower.extents
    sound = extents.add

    def add(place: int, *of: object) -> None:
        sound(place, *of)
        extents.used_bytes += extents.size(place) - extents.stored(place)

    extents.add = add


# --- how much --------------------------------------------------------------------------------------------------


def a_frame_is_read_as_a_whole_block(store: BlockStore) -> None:
    sound = store.lower.wanted
    store.lower.wanted = lambda *question: [one._replace(stored=0) for one in sound(*question)]


def the_link_learns_from_whole_blocks(store: BlockStore) -> None:
    sound = store.lower.staging.finished

    def finished(order: Promote, done: Finished, now: float) -> int | None:
        return sound(replace(order, stored=0), done, now)

    store.lower.staging.finished = finished


def the_budget_pays_for_whole_blocks(store: BlockStore) -> None:
    demotions = store.lower.demotions
    sound = demotions._begin

    def begin(*of: object) -> Demote:
        demote = sound(*of)
        demotions.budget.spend(demote.size - demote.place_bytes)
        return demote

    demotions._begin = begin


def a_frame_that_is_written_takes_less_of_ram(store: BlockStore) -> None:
    demotions = store.lower.demotions
    sound = demotions._begin

    def begin(*of: object) -> Demote:
        demote = sound(*of)
        demotions._bytes -= demote.size - demote.place_bytes
        return demote

    demotions._begin = begin


def whole_blocks_are_said_to_be_written(store: BlockStore) -> None:
    store.lower.demotions._written = lambda demote, done: demote.size


BUGS_IN_CODING = bugs_of(globals())


# --- in a remote -----------------------------------------------------------------------------------------------


def a_wish_is_not_heard_of_there(store: BlockStore) -> None:
    store.away.coding._wishes = Blind()


def a_peer_is_sent_frames(store: BlockStore) -> None:
    if store.away.demotions.coding.wanted == RAW.name:
        store.away.demotions.coding = Coding("exp12", link=store.away.link)


def what_is_known_of_a_frame_is_how_large_its_block_is(store: BlockStore) -> None:
    sound = store.away._room.add

    def add(*of: object) -> None:
        sound(*of[:5])

    store.away._room.add = add


def a_size_that_somebody_made_up_is_believed(store: BlockStore) -> None:
    sound = store.away.known.look

    def look(*question: object) -> Look:
        seen = sound(*question)
        return seen._replace(sizes=[size if size < 2**30 else 1 for size in seen.sizes])

    store.away.known.look = look


def what_became_smaller_is_taken_from_the_rate_whole(store: BlockStore) -> None:
    store.away.demotions.budget.give_back = lambda size: None


def a_frame_from_there_is_read_as_a_whole_block(store: BlockStore) -> None:
    sound = store.leases._wanted
    store.leases._wanted = lambda *of: [one._replace(stored=0) for one in sound(*of)]


BUGS_IN_CODING_FAR: list[Callable[[BlockStore], None]] = bugs_of(globals(), *BUGS_IN_CODING)
