"""What is written to the remote, and what isn't. What goes to the drives: test_lower.py."""

import pytest
from idle_world import BLOCK, ENGINE, World, key, letters, written

from kvtier import demotion
from kvtier.admission import Budget
from kvtier.transfer import Demote


@pytest.fixture
def world() -> World:
    return World(remote=True)


@pytest.fixture
def deep() -> World:
    return World(drives=True, remote=True)


def counts(world: World) -> dict[str, int]:
    """Of what became of writes to the remote."""
    found = world.store.stats.snapshot()
    return {
        name.removeprefix("remote_"): n
        for name, n in found.items()
        if n and name.startswith(("remote_demoted_blocks", "remote_refused", "remote_failed", "remote_unwritten"))
    }


# --- by value: the second touch ------------------------------------------------------------------------------------


def test_what_was_used_once_stays_here(world):
    world.turn("abc", "d", session="chat")
    world.run()
    assert (world.away("abcd"), counts(world)) == ("", {})


def test_what_is_used_again_is_written_and_takes_along_what_is_new(world):
    world.turn("abc", "d", session="chat")
    world.turn("abcde", "f", session="chat")
    world.run()
    assert world.away("abcdef") == "abcdef"
    assert counts(world) == {"demoted_blocks": 6}


def test_what_two_sessions_begin_with_is_written_and_what_each_has_alone_is_not(world):
    world.turn("abxyz", session="one")
    world.turn("abpqr", session="two")
    world.run()
    assert world.away("abxyzpqr") == "ab"


def test_what_is_there_is_not_written_again(world):
    world.turn("ab", session="chat")
    world.store.away.known.there(key("a"), BLOCK, world.now)
    world.turn("ab", session="chat")
    assert written(world.start_remote()) == "b"


def test_who_announced_its_return_is_taken_at_its_word(world):
    world.turn("ab", session="chat", expect_return_s=600.0)
    world.turn("xy", session="tool", tool="search")
    world.run()
    assert world.away("abxy") == "abxy"


def test_what_is_parked_is_written_first_and_from_its_beginning(world):
    world.turn("yz", session="parked")
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    world.store.retention.park("parked", world.now)
    assert written(world.start_remote()) == "yzab"


def test_what_comes_from_the_drives_is_written(deep):
    deep.turn("ab", session="chat")
    deep.run()
    deep.push_out("ab")
    assert deep.away("ab") == ""
    deep.turn("ab", session="chat")
    deep.run()
    assert deep.away("ab") == "ab"


def test_what_comes_from_the_remote_is_written_to_the_drives_and_not_back(deep):
    deep.remote = {key(letter): BLOCK for letter in "ab"}
    deep.ask("r", "ab", session="chat")
    deep.run()
    assert deep.here("ab") == "ab" == deep.below("ab")
    assert counts(deep) == {}


# --- what is not written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "below"), [({"no_disk": True}, ""), ({"no_disk": True, "no_remote": True}, ""), ({"no_remote": True}, "abc")]
)
def test_what_is_to_stay_on_this_node_stays(deep, hints, below):
    deep.turn("abc", session="chat", **hints)
    deep.turn("abc", session="chat", **hints)
    deep.run()
    assert (deep.here("abc"), deep.below("abc"), deep.away("abc")) == ("abc", below, "")
    assert counts(deep) == {"refused_max_tier": 3}


def test_also_when_it_comes_back_from_the_drives(deep):
    deep.turn("abc", session="chat", no_remote=True)
    deep.run()
    deep.push_out("abc")
    deep.turn("abc", session="chat", no_remote=True)
    deep.run()
    assert (deep.here("abc"), deep.away("abc")) == ("abc", "")


def test_also_what_was_saved_before_that_was_said(world):
    world.turn("abc", session="chat")
    world.turn("abc", session="chat", no_remote=True)
    world.turn("abc", session="chat")
    world.run()
    assert world.away("abc") == ""


def test_what_another_session_saved_without_a_word_may_go(world):
    world.turn("ab", session="free")
    world.turn("abc", session="kept", no_remote=True)
    world.run()
    assert world.away("abc") == "ab"


def test_what_is_over_is_not_written(world):
    world.turn("ab", session="chat")
    world.turn("ab", session="chat", end=True)
    world.run()
    assert (world.away("ab"), counts(world)) == ("", {"refused_ended": 2})


def test_what_an_engine_saves_after_a_reset_is_not_written(world):
    world.store.reset(ENGINE, b"red".ljust(32))
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    world.run()
    assert (world.away("ab"), counts(world)) == ("", {"refused_reset": 2})


def test_what_left_ram_before_its_turn_is_counted(world):
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    world.push_out("ab")
    assert world.start_remote() == []
    assert counts(world) == {"unwritten_blocks": 2}


def test_too_many_candidates_push_out_the_oldest(world, monkeypatch):
    monkeypatch.setattr(demotion, "CANDIDATES_MAX", 2)
    world.turn("abc", session="chat")
    world.turn("abc", session="chat")
    assert written(world.start_remote()) == "bc"
    assert counts(world) == {"refused_queue": 1}


# --- when ------------------------------------------------------------------------------------------------------------


def test_what_the_rate_leaves_no_room_for_waits(world):
    world.store.away.demotions.budget = Budget.of_rate(BLOCK / 10, world.now)  # a bucket of one block
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    orders = world.start_remote()
    assert written(orders) == "a"
    world.finish_remote(orders)
    world.now += 9.0
    assert world.start_remote() == []
    world.now += 2.0
    assert written(world.start_remote()) == "b"


def test_a_write_that_failed_is_tried_again_behind_the_others(world):
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    orders = [order for order in world.start_remote() if isinstance(order, Demote)]
    world.turn("x", session="other")
    world.turn("x", session="other")
    world.finish_remote(orders, "unreachable")
    assert written(world.start_remote()) == "xab"
    assert counts(world) == {"failed_demotions": 2}


def test_while_it_is_away_nothing_is_written_and_nothing_lost(world):
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    world.store.set_remote_away(True)
    assert world.start_remote() == []
    world.store.set_remote_away(False)
    world.run()
    assert world.away("ab") == "ab"


def test_what_is_there_does_not_hold_anything_in_ram(world):
    """It may go from there without a word: RAM takes it for not being below."""
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    world.run()
    assert world.away("ab") == "ab"
    assert not world.store.ram.is_below[[world.slot(letter) for letter in "ab"]].any()
    assert letters(world.store.ram.index.key(world.slot("b"))) == "b"


# --- while nothing can be written ----------------------------------------------------------------------------------


def test_however_often_a_session_is_parked_while_the_remote_is_away_so_many_wait_at_most(world, monkeypatch):
    monkeypatch.setattr(demotion, "CANDIDATES_MAX", 4)
    world.turn("abc", session="chat")
    for _ in range(5):
        world.store.retention.park("chat", world.now)
    assert world.store.away.demotions.waiting == 4
    world.run()
    assert world.away("abc") == "abc"


def test_of_what_has_gone_while_nothing_was_written_so_much_is_looked_at_at_one_time(world, monkeypatch):
    monkeypatch.setattr(demotion, "LOOKED_AT_MAX", 2)
    world.turn("abcd", session="chat")
    world.store.retention.park("chat", world.now)
    world.store.ram.drop([world.slot("a")])
    assert world.start_remote() == [] and world.store.away.demotions.waiting == 2
    assert world.start_remote() == [] and world.store.away.demotions.waiting == 0
