"""Retention through the store: what goes first and what stays because of sessions. Pins: test_pins.py; forget:
test_forgetting.py; what is announced and fetched: test_retention_returns.py."""

import numpy as np
import pytest
from idle_world import BLOCK, ENGINE, RED, TENANT, World, key, keys, written

from kvtier import hearing
from kvtier.decision import Ask
from kvtier.rankings import POLICIES
from kvtier.session import Hints


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def deep() -> World:
    return World(drives=True)


# --- while requests are under way ----------------------------------------------------------------------------------


def test_what_a_request_asks_for_and_saves_is_active_until_it_is_over(world):
    world.turn("abc", session="chat")
    world.ask("r", "abc", session="chat")
    world.save("r", "abcd")
    assert world.kinds("abcd") == ["active"] * 4
    world.over("r", "abcd")
    assert world.kinds("abcd") == ["turn 2"] * 4


def test_it_stays_active_while_another_request_of_its_session_is_under_way(world):
    world.ask("one", "ab", session="chat")
    world.save("one", "ab")
    world.ask("two", "ab", session="chat")
    world.over("one", "ab")
    assert world.kinds("ab") == ["active"] * 2
    world.over("two", "ab")
    assert world.kinds("ab") == ["turn 2"] * 2


def test_what_is_active_goes_after_all_that_is_idle(world):
    world.ask("r", "ab", session="chat")
    world.save("r", "ab")
    world.turn("xyz", session="other")
    assert world.evict(5) == "zyxba"


def test_what_one_of_two_requests_generated_that_the_session_did_not_go_on_with_is_not_active_for_ever(world):
    world.ask("one", "ab", session="chat")
    world.save("one", "ab")
    world.ask("two", "abx", session="chat")
    world.save("one", "abc")
    world.over("one", "abc")
    world.over("two", "abx")
    assert world.kinds("c") != ["active"]


def test_when_an_engine_is_gone_its_requests_are_over(world):
    world.ask("r", "ab", session="chat")
    world.save("r", "abc")
    world.store.leave(ENGINE, world.now)
    assert world.kinds("abc") == ["turn 1"] * 3
    assert (world.row("chat")["state"], world.row("chat")["tokens"]) == ("idle", 48)


def test_a_request_that_never_asked_is_a_session_from_its_end_on(world):
    """Its client wants no loads, or its engine's own cache had it all."""
    world.store.begin(ENGINE, "r", Hints(session="chat"), world.now)
    world.save("r", "abc")
    world.over("r", "abc")
    assert world.kinds("abc") == ["turn 1"] * 3
    assert world.names() == ["chat"]


def test_blocks_of_which_nobody_says_whose_they_are_are_not_active_for_ever(world):
    world.save("", "abc")
    world.over("", "abc")
    assert world.kinds("abc") == ["others"] * 3


def test_a_read_that_comes_after_its_request_is_over_stands_where_its_session_does(deep):
    deep.turn("abc", session="chat")
    deep.run()
    deep.push_out("abc")
    deep.store.lookup(ENGINE, 99, keys("abc"), 0, deep.now, Ask("r", 49))
    reads = deep.start()
    deep.store.release(ENGINE, 99, 0, deep.now)
    deep.over("r", "")
    deep.finish(reads)
    assert "active" not in deep.kinds("abc")


# --- it is over ------------------------------------------------------------------------------------------------------


def test_a_session_that_ended_goes_first(world):
    world.turn("abc", session="done", end=True)
    world.turn("xyz", session="chat")
    world.turn("pqr", session="gone")
    world.store.retention.end("gone", world.now)
    assert world.kinds("abcpqr") == ["ended"] * 6
    assert set(world.evict(6)) == set("abcpqr")


def test_how_many_ended_is_told(world):
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("xyz", session="chat")
    assert world.store.retention.end("who", world.now) == world.store.retention.end("", world.now) == 0
    assert world.store.retention.end("chat", world.now) == 2
    assert world.store.retention.end("chat", world.now) == 0


def test_a_trunk_survives_the_end_of_its_branch(world):
    world.turn("abc", session="chat")
    world.turn("abxy", session="branch", end=True)
    assert world.kinds("xy") == ["ended"] * 2
    assert "ended" not in world.kinds("abc")
    assert world.evict(3) == "yxc"


def test_and_the_branch_the_end_of_the_other_whole(world):
    world.turn("abc", session="chat")
    world.turn("abxy", session="branch")
    world.store.retention.end("chat", world.now)
    assert world.kinds("c") == ["ended"]
    assert "ended" not in world.kinds("abxy")


def test_what_a_session_went_on_without_goes_first(world):
    world.turn("abcd", "ef", session="chat")
    world.turn("abcdx", session="chat")
    world.turn("pq", session="old")
    assert world.kinds("ef") == ["ended"] * 2
    assert world.evict(2) == "fe"


def test_a_session_that_is_ended_while_its_request_runs_ends_with_it(world):
    world.ask("r", "ab", session="chat")
    world.save("r", "ab")
    assert world.store.retention.end("chat", world.now) == 1
    assert (world.kinds("ab"), world.row("chat")["state"]) == (["active"] * 2, "active")
    world.over("r", "ab")
    assert (world.kinds("ab"), world.row("chat")["state"]) == (["ended"] * 2, "ended")


def test_who_ended_and_comes_back_is_a_new_session_whose_blocks_are_here(world):
    world.turn("abc", session="chat", end=True)
    assert world.turn("abcd", session="chat") == "abc"
    assert world.row_of_living("chat")["turns"] == 1
    assert world.kinds("abcd") == ["turn 1"] * 4


def test_after_a_reset_nothing_is_left_of_its_sessions(world):
    world.turn("abc", session="chat", expect_return_s=10.0, pin=True)
    world.ask("r", "abcd", session="chat")
    world.store.reset(ENGINE, RED)
    world.wait(30.0)
    assert (world.names(), world.here("abc")) == ([], "")
    world.over("r", "")
    world.turn("abc", session="chat")
    assert world.row("chat")["turns"] == 1


def test_an_announcement_of_before_a_reset_says_nothing_of_later_sessions(world):
    world.turn("abc", session="chat", expect_return_s=10.0)
    world.store.reset(ENGINE, RED)
    world.turn("pqr", session="other")
    world.wait(300.0, step=100.0)
    world.turn("pqr", session="other")
    world.turn("xyz", session="new", expect_return_s=10.0)
    assert world.row("new")["expected_return_s"] == 10.0


# --- time to live ----------------------------------------------------------------------------------------------------


def test_when_its_time_to_live_is_over_what_it_alone_has_is_dropped_everywhere(deep):
    deep.turn("abc", session="chat", ttl_s=10.0)
    deep.turn("abx", session="other")
    deep.run()
    deep.wait(8.0)
    assert deep.here("abcx") == deep.below("abcx") == "abcx"
    deep.wait(3.0)
    assert deep.here("abcx") == deep.below("abcx") == "abx"
    assert deep.row("chat")["state"] == "ended"


def test_a_use_begins_its_time_to_live_anew(world):
    world.turn("ab", session="chat", ttl_s=10.0)
    world.wait(8.0)
    world.turn("ab", session="chat", ttl_s=10.0)
    world.wait(8.0)
    assert world.here("ab") == "ab"
    world.wait(3.0)
    assert world.here("ab") == ""


def test_a_later_request_that_says_nothing_of_it_takes_it_back(world):
    world.turn("ab", session="chat", ttl_s=10.0)
    world.turn("ab", session="chat")
    world.wait(30.0)
    assert world.here("ab") == "ab"


# --- never on a disk ---------------------------------------------------------------------------------------------------


def test_what_may_not_touch_a_disk_is_never_written_not_even_later(deep):
    deep.turn("abc", session="chat", no_disk=True)
    deep.turn("abcd", session="chat")
    deep.store.retention.park("chat", deep.now)
    deep.store.flush(1)
    assert written(deep.run()) == "" and deep.below("abcd") == ""
    assert deep.row("chat")["no_disk"] is True
    assert deep.store.flushed() == [(1, True)], "a flush does not wait for it"


def test_also_if_its_request_never_asked(deep):
    deep.store.begin(ENGINE, "r", Hints(session="chat", no_disk=True), deep.now)
    deep.save("r", "abc")
    deep.run()
    deep.over("r", "abc")
    assert written(deep.run()) == "" and deep.below("abc") == ""


def test_also_what_was_saved_by_the_time_it_is_said(deep):
    """What was written before is written."""
    deep.turn("abc", session="chat")
    deep.turn("abc", session="chat", no_disk=True)
    assert written(deep.run()) == ""


def test_others_are_written_as_ever(deep):
    deep.turn("abc", session="chat", no_disk=True)
    deep.turn("xyz", session="other")
    assert written(deep.run()) == "xyz"


def test_what_is_over_is_not_written_and_what_is_pinned_is(deep):
    deep.turn("abc", session="done", end=True)
    deep.turn("xyz", session="chat", pin=True)
    assert written(deep.run()) == "xyz"


# --- parked ----------------------------------------------------------------------------------------------------------


def test_what_is_parked_goes_before_what_is_idle_but_after_what_is_over(world):
    for name, prompt in (("done", "abc"), ("chat", "xyz"), ("later", "pqr")):
        world.turn(prompt, session=name)
    world.store.retention.end("done", world.now)
    assert world.store.retention.park("later", world.now) == 3
    assert world.evict(9) == "cba" + "rqp" + "zyx"


def test_what_is_parked_is_written_first(deep):
    deep.turn("abc", session="chat")
    deep.turn("xyz", session="later")
    deep.store.retention.park("later", deep.now)
    assert sorted(written(deep.run())[:3]) == list("xyz")


def test_parking_leaves_alone_what_others_share(world):
    world.turn("abc", session="chat")
    world.turn("abx", session="later")
    assert world.store.retention.park("later", world.now) == 1
    assert world.kinds("x") == ["parked"]
    assert "parked" not in world.kinds("abc")


def test_neither_a_running_nor_a_pinned_session_is_parked(world):
    world.ask("r", "abc", session="chat")
    world.save("r", "abc")
    world.turn("xyz", session="kept", pin=True)
    assert [world.store.retention.park(name, world.now) for name in ("chat", "kept", "who", "")] == [0, 0, 0, 0]


def test_who_was_parked_and_comes_back_is_as_it_was(world):
    world.turn("abc", session="chat")
    world.store.retention.park("chat", world.now)
    assert world.turn("abc", session="chat") == "abc"
    assert (world.row("chat")["state"], world.kinds("abc")) == ("idle", ["turn 2"] * 3)


# --- bounds ------------------------------------------------------------------------------------------------------------


def test_of_hints_without_a_request_the_oldest_are_forgotten(world, monkeypatch):
    monkeypatch.setattr(hearing, "SAID_MAX", 2)
    for request in ("one", "two", "three"):
        world.store.begin(ENGINE, request, Hints(session=request), world.now)
    for request in ("one", "two", "three"):
        world.ask(request, f"a{request[:2]}")
    assert sorted(world.names()) == ["three", "two", "~0"]


def test_what_no_request_ever_came_for_is_forgotten_with_its_engine(world):
    world.store.begin(ENGINE, "r", Hints(session="chat"), world.now)
    world.store.leave(ENGINE, world.now)
    world.join()
    world.ask("r", "abc")
    assert world.names() == ["~0"]


def test_liars_harm_only_themselves(world):
    """Blocks named twice; a block before itself; a ring of blocks."""
    world.turn("abc", session="chat")
    world.ask("r", "aab", session="liar")
    for letter, before in (("x", "x"), ("p", "q"), ("q", "p")):
        slot = min(world.store.lending.engines[ENGINE].lent)
        world.store.commit(ENGINE, key(letter), np.array([slot], np.uint32), key(before), "r", world.now)
        world.store.lends()
    world.over("r", "aabbaxpq")
    world.turn("aab", session="liar", end=True)
    world.forget("liar")
    assert world.here("abc") == "abc"
    assert world.row("chat")["blocks"] == {"cpu": 3, "nvme": 0, "gone": 0}
    world.evict(32)
    assert len(world.store.ram.index) == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_policy_a_session_ends_and_comes_back_and_is_overdue(policy):
    world = World(policy=policy)
    world.turn("abc", session="chat", expect_return_s=2.0, tool="search")
    before = world.store.ram.policy.queues(np.array([world.slot(letter) for letter in "abc"])).tolist()
    world.wait(10.0)
    after = world.store.ram.policy.queues(np.array([world.slot(letter) for letter in "abc"])).tolist()
    assert policy == "value" or after == before
    assert world.turn("abc", session="chat", ttl_s=5.0) == "abc"
    world.turn("xyz", session="other", end=True)
    world.wait(10.0)
    assert world.here("abc") == ""
    assert set(world.evict(32)) == set("xyz")
    assert world.store.ram.slots.taken_bytes == world.store.lending.lent_bytes == 4 * BLOCK
