"""Pins: what is kept in RAM because somebody wishes it, within a quota."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idle_world import BLOCK, World

from kvtier.rankings import POLICIES


@pytest.fixture
def world() -> World:
    """RAM of 32 blocks; pins may take eight."""
    return World()


def pin(world: World, name: str, seconds: float = 600.0) -> int:
    return world.store.retention.pin(name, seconds, world.now)


def kept(world: World, chain: str) -> str:
    return "".join(letter for letter, kind in zip(world.here(chain), world.kinds(world.here(chain))) if kind is None)


def pinned_blocks(world: World) -> int:
    return world.store.retention.pins.bytes // BLOCK


def test_what_is_pinned_never_goes(world):
    world.turn("abc", session="chat")
    world.turn("xyz", session="other")
    assert pin(world, "chat") == 3
    assert world.evict(32) == "zyx"
    assert pinned_blocks(world) == 3


def test_nobody_is_pinned_whom_nobody_knows(world):
    assert pin(world, "who") == 0
    assert pin(world, "", 60.0) == 0


def test_a_client_may_pin_its_session_with_a_request(world):
    world.turn("abc", session="chat", pin=True)
    assert kept(world, "abc") == "abc"


def test_what_a_pinned_session_adds_is_pinned_when_its_request_is_over(world):
    world.turn("abc", session="chat", pin=True)
    world.turn("abc", "de", session="chat")
    assert kept(world, "abcde") == "abcde"


def test_what_a_pinned_session_went_on_without_is_pinned_no_more(world):
    world.turn("abcd", session="chat", pin=True)
    world.turn("abx", session="chat")
    assert kept(world, "abcdx") == "abx"
    assert world.evict(32) == "dc"


def test_a_pin_ends_when_it_is_said(world):
    world.turn("abc", session="chat")
    pin(world, "chat")
    assert pin(world, "chat", 0.0) == 3
    assert world.evict(32) == "cba"
    assert world.row("chat")["pinned"] is False


def test_a_pin_ends_with_its_time(world):
    world.turn("abc", session="chat")
    pin(world, "chat", 60.0)
    world.wait(59.0)
    assert (world.row("chat")["pinned"], world.row("chat")["pin_left_s"]) == (True, 1.0)
    world.wait(2.0)
    assert world.row("chat")["pinned"] is False
    assert kept(world, "abc") == ""


def test_a_pin_of_a_client_lasts_as_long_as_the_daemon_says_or_its_time_to_live(world):
    world.store.retention.pins.usual_s = 100.0
    world.turn("abc", session="chat", pin=True)
    world.turn("xyz", session="other", pin=True, ttl_s=30.0)
    assert world.row("chat")["pin_left_s"] == 99.0
    assert world.row("other")["pin_left_s"] == 30.0


def test_a_pin_does_not_end_while_a_request_of_the_session_runs(world):
    world.turn("abc", session="chat")
    pin(world, "chat", 60.0)
    world.ask("long", "abc", session="chat")
    world.wait(100.0, step=10.0)
    assert kept(world, "abc") == "abc"
    world.over("long", "abc")
    world.wait(1.0)
    assert kept(world, "abc") == ""


def test_a_pin_ends_when_its_session_does(world):
    world.turn("abc", session="chat")
    pin(world, "chat")
    world.store.retention.end("chat", world.now)
    assert world.kinds("abc") == ["ended"] * 3


def test_what_is_missing_in_ram_is_not_pinned_nor_what_stands_behind_it(world):
    world.turn("abcd", session="chat")
    world.push_out("cd")
    assert pin(world, "chat") == 2


# --- several sessions ----------------------------------------------------------------------------------------------


def test_what_two_pinned_sessions_have_is_kept_until_neither_is_pinned(world):
    world.turn("abc", session="one")
    world.turn("abx", session="two")
    assert (pin(world, "one"), pin(world, "two")) == (3, 3)
    assert pinned_blocks(world) == 4
    assert pin(world, "one", 0.0) == 1
    assert kept(world, "abcx") == "abx"
    assert pin(world, "two", 0.0) == 3
    assert kept(world, "abcx") == ""


def test_pinning_twice_is_pinning_once(world):
    world.turn("abc", session="chat")
    assert [pin(world, "chat"), pin(world, "chat"), pin(world, "chat", 0.0)] == [3, 3, 3]
    assert kept(world, "abc") == ""


def test_what_is_beyond_the_quota_is_not_pinned_from_the_end_of_the_session_on(world):
    world.turn("abcdef", session="one")
    world.turn("pqrstu", session="two")
    assert (pin(world, "one"), pin(world, "two")) == (6, 2)
    assert kept(world, "abcdefpqrstu") == "abcdefpq"


def test_what_others_have_pinned_already_takes_no_room(world):
    world.turn("abcdef", session="one")
    world.turn("abcdefgh", session="two")
    world.turn("abcdefghi", session="three")
    assert [pin(world, name) for name in ("one", "two", "three")] == [6, 8, 8]


def test_a_smaller_quota_takes_nothing_from_those_who_have_a_pin(world):
    world.turn("abcd", session="one")
    pin(world, "one")
    world.store.retention.pins.share = 1 / 16
    world.turn("pqr", session="two")
    assert pin(world, "two") == 0
    assert pinned_blocks(world) == 4


def test_a_namespace_that_is_reset_leaves_no_pins(world):
    world.turn("abc", session="chat")
    pin(world, "chat", 60.0)
    world.store.reset("a", b"red".ljust(32))
    assert pinned_blocks(world) == 0
    world.turn("abc", session="other", pin=True)
    world.wait(100.0, step=10.0)
    assert kept(world, "abc") == "abc", "the former session's pin takes nothing from it when it ends"


@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_policy_a_block_that_is_pinned_no_more_may_go(policy):
    world = World(policy=policy)
    world.turn("abc", session="chat", pin=True)
    assert world.evict(32) == ""
    pin(world, "chat", 0.0)
    assert world.evict(32) == "cba"


@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_policy_a_pin_ends_with_its_time(policy):
    world = World(policy=policy)
    world.turn("abc", session="chat")
    pin(world, "chat", 60.0)
    world.wait(61.0)
    assert world.evict(32) == "cba"


CHAINS = {"one": "abcd", "two": "abxy", "three": "pqrstuvw"}
EVENTS = st.lists(
    st.tuples(st.just("turn"), st.sampled_from(sorted(CHAINS)), st.integers(1, 8))
    | st.tuples(st.just("pin"), st.sampled_from(sorted(CHAINS)), st.integers(0, 50))
    | st.tuples(st.just("wait"), st.just(""), st.integers(1, 40))
    | st.tuples(st.sampled_from(["end", "forget"]), st.sampled_from(sorted(CHAINS)), st.just(0))
    | st.tuples(st.just("evict"), st.just(""), st.integers(1, 3)),
    max_size=25,
)


@given(EVENTS, st.sampled_from(POLICIES), st.sampled_from([0.03, 0.1, 0.25]))
@settings(max_examples=150, deadline=None)
def test_whatever_comes_what_is_kept_is_what_is_pinned_within_the_quota(events, policy, share):
    world = World(policy=policy)
    world.store.retention.pins.share = share
    for what, name, n in events:
        if what == "turn":
            world.turn(CHAINS[name][:n], session=name)
        elif what == "pin":
            pin(world, name, float(n))
        elif what == "wait":
            world.wait(float(n), step=5.0)
        elif what == "evict":
            gone = world.evict(n)
            assert not set(gone) & {letter for s in sessions(world) for letter in s.pinned.decode().replace(" ", "")}
        elif what == "end":
            world.store.retention.end(name, world.now)
        else:
            world.forget(name)
        policy_ = world.store.ram.policy
        pinned = {letter for session in sessions(world) for letter in session.pinned.decode().replace(" ", "")}
        assert all(letter == world.here(letter) for letter in pinned)
        assert {letter for letter in world.here("abcdxypqrstuvw") if policy_.queues([world.slot(letter)])[0] == 0} == pinned
        assert world.store.retention.pins.bytes == len(pinned) * BLOCK <= world.store.retention.pins.bytes_max


def sessions(world: World):
    return list(world.store.retention._sessions)
