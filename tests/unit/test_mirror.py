"""The GPU tier's copies: who gets one, who reads it, how long it stays. Under any order of events: tests/sim."""

import random

import numpy as np
import pytest
from idle_world import key as key_of
from idle_world import keys
from mirror_desk import HALF, MIB, Desk

from kvtier import mirror as mirror_module
from kvtier.block import ABSENT, BELOW
from kvtier.mirror import Mirror
from kvtier.policy import KEPT
from kvtier.ram import Ram
from kvtier.ranking import Lru


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- who gets a copy ---------------------------------------------------------------------------------------------


def test_what_a_lookup_has_found_is_copied_when_its_request_is_over(desk):
    desk.save("ab")
    desk.ask("ab")
    assert desk.start() == []
    desk.over("ab")
    assert [(order.key, order.slot, order.size) for order in desk.start()] == [
        (key_of(letter), desk.slots(letter)[0], HALF) for letter in "ab"
    ]


def test_what_was_used_once_is_not_copied(desk):
    desk.save("ab")
    desk.over("ab")
    assert desk.start() == []
    desk.ask("a")
    desk.over("ab")
    assert [order.key for order in desk.start()] == [key_of("a")]


def test_what_a_user_has_pinned_is_copied_after_its_first_use(desk):
    desk.save("ab")
    desk.ram.policy.move(desk.slots("a"), KEPT)
    desk.over("ab")
    assert [order.key for order in desk.start()] == [key_of("a")]


def test_a_block_is_copied_once(desk):
    desk.save("a")
    desk.ask("a")
    desk.over("a")
    desk.over("a")
    orders = desk.start()
    desk.over("a")  # while it is being copied
    assert len(orders) == 1 and desk.start() == []
    desk.finish(orders)
    desk.over("a")
    assert desk.start() == []


def test_a_block_that_has_gone_before_its_turn_is_not_copied(desk):
    desk.save("ab")
    desk.ask("ab")
    desk.over("ab")
    desk.ram.pin(desk.slots("b"))  # somebody still reads it
    desk.ram.drop(desk.slots("ab").tolist())
    assert desk.start() == []


def test_a_slot_that_another_block_has_now_starts_from_nothing(desk):
    desk.save("a")
    desk.ask("a")
    (slot,) = desk.slots("a").tolist()
    desk.ram.drop([slot])
    desk.ram.slots.take(HALF)
    while desk.ram.slots.is_free(slot):
        desk.ram.slots.take(HALF)
    desk.ram.keep(slot, key_of("b"), 0)
    desk.over("b")
    assert desk.start() == []


def test_a_block_larger_than_a_slab_of_the_device_has_no_copy():
    desk = Desk(capacity=2 * MIB)
    desk.ram = Ram(64 * MIB, desk.stats, Lru())
    desk.mirror = Mirror(desk.ram, 2 * MIB, desk.stats)
    desk.save("a", 4 * MIB)
    assert desk.turn("a") == ""
    assert desk.stats["refused_gpu"] == 1


def test_only_so_much_is_pinned_by_copies_at_a_time(desk):
    """An eighth of RAM: 2 MiB."""
    desk.mirror = Mirror(desk.ram, 16 * MIB, desk.stats)
    desk.save("abcdef")
    desk.ask("abcdef")
    desk.over("abcdef")
    first = desk.start()
    assert len(first) == 4 and desk.mirror.copying_bytes == 2 * MIB
    assert desk.start() == []
    desk.finish(first[:1])
    assert len(desk.start()) == 1


def test_of_too_many_candidates_the_oldest_are_forgotten(desk, monkeypatch):
    monkeypatch.setattr(mirror_module, "CANDIDATES_MAX", 2)
    desk.save("abc")
    assert desk.turn("abc") == "bc"


def test_while_the_device_takes_no_orders_there_are_none(desk):
    desk.save("a")
    desk.ask("a")
    desk.over("a")
    assert desk.mirror.transfers(0.0, writable=False) == []
    assert len(desk.start()) == 1


# --- who reads it ------------------------------------------------------------------------------------------------


def test_an_engine_that_maps_the_device_memory_is_told_the_place_instead_of_the_slot(desk):
    desk.save("abc")
    desk.turn("ac")
    at = {letter: desk.place(letter) for letter in "ac"}
    assert desk.ask("abcx") == [256 + at["a"], desk.slots("b")[0], 256 + at["c"], ABSENT]
    assert desk.mirror.base == 16 * MIB // (64 * 1024) == 256
    assert (desk.stats["found_gpu_keys"], desk.stats["found_gpu_bytes"]) == (2, 2 * HALF)


def test_all_others_are_told_the_slot(desk):
    desk.save("a")
    desk.turn("a")
    assert desk.ask("a", engine="another") == desk.slots("a").tolist()
    desk.mirror.left("reader")
    assert desk.ask("a") == desk.slots("a").tolist()


def test_what_is_not_offered_stays_so(desk):
    desk.save("a")
    desk.turn("a")
    answer = np.array([BELOW, desk.slots("a")[0], ABSENT], np.uint32)
    assert desk.mirror.answered(("reader", 9), answer).tolist() == [BELOW, 256 + desk.place("a"), ABSENT]
    assert answer[1] == desk.slots("a")[0], "the caller's own"


def test_a_copy_is_read_when_it_is_finished_and_not_before(desk):
    desk.save("a")
    desk.ask("a")
    desk.over("a")
    orders = desk.start()
    assert desk.ask("a") == desk.slots("a").tolist()
    desk.finish(orders)
    assert desk.ask("a") == [256 + orders[0].place]


def test_the_time_of_a_load_from_the_device_says_nothing_of_ram(desk):
    desk.save("ab")
    desk.turn("a")
    for lease, letters in ((1, "a"), (2, "b")):
        desk.mirror.answered(("reader", lease), desk.ram.index.find(keys(letters)))
    assert desk.mirror.released(("reader", 1)) and not desk.mirror.released(("reader", 2))
    assert not desk.mirror.released(("reader", 1)), "it is over"


def test_who_may_be_reading_is_known_until_the_lease_is_over_or_the_engine_gone(desk):
    desk.save("a")
    desk.turn("a")
    assert desk.mirror.reading == set(), "there was no copy yet"
    desk.mirror.answered(("reader", 7), desk.ram.index.find(keys("a")))
    desk.mirror.answered(("another", 7), desk.ram.index.find(keys("a")))
    assert desk.mirror.reading == {"reader"}
    desk.mirror.released(("reader", 7))
    assert desk.mirror.reading == set()
    desk.mirror.answered(("reader", 8), desk.ram.index.find(keys("a")))
    desk.mirror.left("reader")
    assert desk.mirror.reading == set()


def test_when_the_daemon_ends_nobody_is_told_of_places_any_more(desk):
    desk.save("a")
    desk.turn("a")
    desk.mirror.end()
    assert desk.ask("a") == desk.slots("a").tolist()


# --- how long it stays -------------------------------------------------------------------------------------------


def test_a_slot_stays_pinned_while_it_is_read(desk):
    desk.save("a")
    desk.ask("a")
    desk.over("a")
    orders = desk.start()
    (slot,) = desk.slots("a").tolist()
    assert desk.ram.index.is_pinned(slot)
    desk.ram.drop([slot])
    assert not desk.ram.slots.is_free(slot)
    desk.finish(orders)
    assert desk.ram.slots.taken_bytes == 0
    assert (desk.mirror.copies, desk.mirror.places.taken_bytes) == (0, 0), "its block was gone when it was finished"


def test_a_block_that_leaves_ram_leaves_the_device(desk):
    desk.save("ab")
    desk.turn("ab")
    desk.ram.drop(desk.slots("a").tolist())
    assert desk.mirror.places.taken_bytes == HALF and desk.copied("b") == "b"


def test_a_copy_that_may_be_read_stays_when_its_block_is_dropped(desk):
    desk.save("a")
    desk.turn("a")
    slots = desk.slots("a")
    desk.ram.pin(slots)
    desk.ram.drop(slots.tolist())
    assert desk.mirror.places.taken_bytes == HALF
    desk.ram.unpin(slots)
    assert desk.mirror.places.taken_bytes == 0


def test_the_copy_that_was_used_least_recently_makes_room(desk):
    desk.save("abcdef")
    for letter in "abcd":
        desk.turn(letter)
    desk.ask("a")
    desk.turn("e")
    assert desk.copied("abcdef") == "acde"
    desk.turn("f")
    assert desk.copied("abcdef") == "adef" and desk.stats["dropped_gpu_copies"] == 2


def test_a_copy_that_an_engine_may_be_reading_makes_no_room(desk):
    desk.save("abcdef")
    for letter in "abcd":
        desk.turn(letter)
    desk.ram.pin(desk.slots("ab"))
    desk.turn("e")
    assert desk.copied("abcdef") == "abde"
    desk.ram.pin(desk.slots("de"))
    assert desk.turn("f") == "" and desk.stats["refused_gpu"] == 1
    desk.ram.unpin(desk.slots("b"))
    assert desk.turn("f") == "f" and desk.copied("abcdef") == "adef"


def test_of_a_request_that_is_too_long_the_first_blocks_stay(desk):
    """Those that more conversations share. They don't push out each other."""
    desk.save("abcdef")
    assert desk.turn("abcdef") == "abcd"
    assert desk.turn("abcdef") == ""
    assert desk.copied("abcdef") == "abcd" and desk.stats["refused_gpu"] == 4


def test_it_is_the_least_recently_used_whatever_happened_before():
    """Against a list in the order of use."""
    for seed in range(20):
        chance, desk, order = random.Random(seed), Desk(capacity=2 * MIB), list[str]()
        names = "abcdefghijkl"
        desk.save(names)
        for letter in (chance.choice(names) for _ in range(200)):
            if chance.random() < 0.1:
                desk.ram.drop(desk.slots(letter).tolist())
                desk.save(letter)
                order = [other for other in order if other != letter]
            desk.turn(letter)
            order = [*[other for other in order if other != letter], letter][-4:]
            assert desk.copied(names) == "".join(sorted(order)), f"seed {seed}"
        entries = sum(map(len, desk.mirror._oldest.values()))
        assert entries <= 2 * desk.mirror.copies + mirror_module.ENTRIES_SPARE
