"""The GPU tier's copies: several sizes, what is forgotten, what fails; and in the store."""

import pytest
from idle_world import BLOCK, ENGINE, World, keys, proof
from mirror_desk import HALF, MIB, Desk

from kvtier import mirror as mirror_module
from kvtier.transfer import Erase, Finished


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- several sizes -----------------------------------------------------------------------------------------------


def test_another_size_gets_a_slab_of_which_all_was_used_before():
    desk = Desk(capacity=4 * MIB)
    desk.save("abcdefgh")
    desk.save("XY", MIB)
    for letter in "abcdefgh":
        desk.turn(letter)
    assert desk.turn("X") == "X"
    assert desk.copied("abcdefgh") == "efgh"
    assert desk.turn("Y") == "Y", "its slab has room for two"


def test_a_slab_that_is_being_read_stays():
    desk = Desk(capacity=4 * MIB)
    desk.save("abcdefgh")
    desk.save("X", MIB)
    for letter in "abcdefgh":
        desk.turn(letter)
    desk.ram.pin(desk.slots("a"))
    desk.turn("X")
    assert desk.copied("abcdefgh") == "abcd"


def test_a_slab_that_is_being_copied_into_stays():
    desk = Desk(capacity=2 * MIB)
    desk.save("abcd")
    desk.save("X", MIB)
    desk.ask("abcd")
    desk.over("abcd")
    orders = desk.start()
    desk.ask("X")
    desk.over("X")
    assert desk.start() == []  # too much is under way
    desk.finish(orders[:3])
    assert [type(order) for order in desk.start()] == [] and desk.stats["refused_gpu"] == 1


def test_a_size_that_is_used_more_keeps_its_slabs():
    desk = Desk(capacity=4 * MIB)
    desk.save("abcdefgh")
    desk.save("XYZ", MIB)
    for letter in "abcdefghXY":
        desk.turn(letter)
    desk.turn("efgh")
    desk.turn("Z")
    assert desk.copied("efgh") == "efgh" and len(desk.copied("XYZ")) == 2


# --- what is forgotten by wish, and what fails -------------------------------------------------------------------


def test_the_copy_of_what_is_forgotten_is_overwritten_before_anybody_gets_its_place(desk):
    desk.save("a")
    desk.turn("a")
    place = desk.place("a")
    assert desk.mirror.doom(desk.slots("a")[0]) == (place, HALF)
    desk.ram.drop(desk.slots("a").tolist(), is_secret=True)
    (erase,) = desk.start()
    assert erase == Erase(erase.ticket, place, HALF)
    assert desk.mirror.is_unerased(place) and desk.mirror.places.taken_bytes == HALF
    desk.finish([erase])
    assert not desk.mirror.is_unerased(place) and desk.mirror.places.taken_bytes == 0
    assert desk.mirror.is_idle


@pytest.mark.parametrize("fault", ["", "io"])
def test_a_copy_that_is_on_its_way_is_overwritten_when_it_is_there_or_half_there(desk, fault):
    desk.save("a")
    desk.ask("a")
    desk.over("a")
    (demote,) = desk.start()
    assert desk.mirror.doom(desk.slots("a")[0]) == (demote.place, HALF)
    desk.ram.drop(desk.slots("a").tolist(), is_secret=True)
    assert desk.start() == []
    desk.finish([demote], fault)
    assert [(type(order), order.place) for order in desk.start()] == [(Erase, demote.place)]


def test_an_erasure_that_failed_is_tried_until_it_is_done(desk):
    desk.save("a")
    desk.turn("a")
    place, _ = desk.mirror.doom(desk.slots("a")[0])
    desk.ram.drop(desk.slots("a").tolist(), is_secret=True)
    for _ in range(3):
        desk.finish(desk.start(), "io")
        assert desk.mirror.is_unerased(place)
    desk.run()
    assert not desk.mirror.is_unerased(place)


def test_what_has_no_copy_is_not_erased(desk):
    desk.save("a")
    assert desk.mirror.doom(desk.slots("a")[0]) is None


def test_erasures_come_so_many_at_a_time(desk, monkeypatch):
    monkeypatch.setattr(mirror_module, "ERASING_MAX", 1)
    desk.save("ab")
    desk.turn("ab")
    for slot in desk.slots("ab").tolist():
        desk.mirror.doom(slot)
        desk.ram.drop([slot], is_secret=True)
    first = desk.start()
    assert len(first) == 1 and desk.start() == []
    desk.finish(first)
    assert len(desk.start()) == 1


def test_a_copy_that_failed_is_nowhere_and_is_tried_again(desk):
    desk.save("a")
    desk.ask("a")
    desk.over("a")
    desk.finish(desk.start(), "io")
    assert desk.copied("a") == "" and desk.mirror.places.taken_bytes == 0
    assert desk.stats["failed_gpu_copies"] == 1
    desk.run()
    assert desk.copied("a") == "a"


def test_after_a_fault_nothing_is_read_from_the_device_until_something_was_good(desk):
    desk.save("ab")
    desk.turn("a")
    desk.ask("b")
    desk.over("b")
    desk.finish(desk.start(), "io")
    assert desk.ask("a") == desk.slots("a").tolist()
    desk.run()
    assert desk.ask("a") == [256 + desk.place("a")]


# --- in the store ------------------------------------------------------------------------------------------------


class Gpu(World):
    """A world whose device carries out orders when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.store.attach_gpu(4 * MIB)
        assert self.store.mirror is not None
        self.mirror = self.store.mirror
        self.mirror.readers.add(ENGINE)

    def mirrors(self) -> int:
        """How much it was told to do."""
        done = 0
        while orders := self.mirror.transfers(self.now):
            for order in orders:
                self.store.gpu_finished(Finished(order.ticket), self.now)
            done += len(orders)
        return done

    def answer(self, prompt: str) -> list[int]:
        self._requests += 1
        slots = self.store.lookup(ENGINE, self._requests, keys(prompt), 0, self.now)
        assert slots is not None
        return self.store.answered(ENGINE, self._requests, slots).tolist()


def answered(world: Gpu, prompt: str) -> list[int]:
    """Whatever the server would send."""
    answer = world.answer(prompt)
    world.store.release(ENGINE, world._requests, 0, world.now)
    return answer


def test_a_conversation_that_returned_is_read_from_the_device():
    world = Gpu()
    world.turn("abc", session="chat")
    assert world.mirrors() == 0
    answered(world, "abc")
    world.turn("abc", session="chat")
    assert world.mirrors() == 3
    assert min(answered(world, "abc")) >= world.mirror.base
    world.store.leave(ENGINE, world.now)
    assert world.mirror.readers == set()


def test_a_reset_leaves_no_copy():
    world = Gpu()
    world.turn("abc")
    answered(world, "abc")
    world.turn("abc")
    world.mirrors()
    world.store.reset(ENGINE, b"red".ljust(32))
    assert (world.mirror.copies, world.mirror.places.taken_bytes) == (0, 0)


def test_the_proof_that_a_session_is_forgotten_counts_what_was_overwritten_on_the_device():
    world = Gpu()
    world.turn("abc", session="chat")
    answered(world, "ab")
    world.turn("abc", session="chat")
    assert world.mirrors() == 2
    ticket = world.store.retention.forget("chat", "", world.now)
    world.run()
    assert world.store.retention.forgotten() == [], "the device has not done it yet"
    assert world.mirrors() == 2
    expected = proof(1, 3)
    expected["blocks"]["gpu"], expected["bytes_zeroed"]["gpu"] = 2, 2 * BLOCK
    assert world.store.retention.forgotten() == [(ticket, expected)]


def test_observers_see_what_the_device_holds():
    world = Gpu()
    world.turn("ab")
    answered(world, "ab")
    world.turn("ab")
    world.mirrors()
    assert world.store.snapshot(world.now)["tiers"]["gpu"] == {
        "capacity_bytes": 4 * MIB,
        "used_bytes": 2 * BLOCK,
        "blocks": 2,
        "copying_bytes": 0,
        "candidates": 0,
        "readers": 1,
        "is_well": True,
    }
