"""Returns that are announced, or expected: what is believed, fetched ahead and learnt, through the store."""

import numpy as np
import pytest
from idle_world import ENGINE, World, keys, read

from kvtier.session import Hints


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def deep() -> World:
    return World(drives=True)


def below(world: World, prompt: str, session: str, **hints) -> None:
    """A session of which nothing is left in RAM."""
    world.turn(prompt, session=session, **hints)
    world.run()
    world.push_out(prompt)


def crowd(world: World, **hints) -> None:
    """RAM is full of blocks of others, that were all used just now."""
    for number in range(32):
        world.now -= 1.0
        world.turn(chr(0x100 + number), session=f"crowd {number}", **hints)
    world.run()


# --- what is announced ---------------------------------------------------------------------------------------------


def test_who_waits_for_a_tool_is_worth_more_than_who_thinks(world):
    world.turn("abc", session="agent", tool="search")
    world.turn("xyz", session="chat")
    assert world.evict(6) == "zyxcba"


def test_who_announced_its_return_is_worth_more_the_sooner_it_comes(world):
    world.turn("abc", session="soon", expect_return_s=10.0)
    world.turn("pqr", session="later", expect_return_s=100.0)
    world.turn("xyz", session="chat")
    assert world.kinds("abcpqr") == ["expected"] * 6
    assert world.evict(6) == "zyx" + "rqp"


def test_what_is_shared_stands_where_it_did_when_one_announces_its_return(world):
    world.turn("abc", session="chat")
    world.turn("abx", session="agent", expect_return_s=10.0)
    assert world.kinds("x") == ["expected"]
    assert "expected" not in world.kinds("abc")


def test_who_is_overdue_stands_again_where_it_would_without_a_word(world):
    world.turn("abc", session="agent", expect_return_s=10.0)
    world.wait(19.0)
    assert (world.kinds("abc"), world.row("agent")["state"]) == (["expected"] * 3, "waiting")
    world.wait(2.0)
    assert (world.kinds("abc"), world.row("agent")["state"]) == (["turn 1"] * 3, "idle")
    world.turn("xyz", session="chat")
    assert world.evict(1) in ("c", "z")


def test_an_overdue_session_was_not_used_meanwhile(world):
    world.turn("abc", session="agent", expect_return_s=10.0)
    world.turn("xyz", session="chat")
    used = world.store.ram.policy.stamp(world.slot("x"))
    world.wait(30.0)
    assert world.store.ram.policy.stamp(world.slot("a")) < used


def test_an_end_is_believed_whatever_else_is_said(world):
    world.turn("abc", session="agent", expect_return_s=10.0, tool="search", pin=True, end=True)
    assert world.kinds("abc") == ["ended"] * 3
    assert world.row("agent")["state"] == "ended"


def test_a_pinned_session_that_announces_its_return_stays_pinned(world):
    world.turn("abc", session="agent", expect_return_s=10.0, pin=True)
    assert world.kinds("abc") == [None] * 3
    world.wait(30.0)
    assert world.kinds("abc") == [None] * 3


@pytest.mark.parametrize("wrong", [0.1, 10.0])
def test_who_is_always_wrong_is_expected_when_it_really_comes(world, wrong):
    for _ in range(20):
        world.turn("abc", session="agent", expect_return_s=30.0 * wrong, tool="search")
        world.wait(29.0)
    world.turn("abc", session="agent", expect_return_s=30.0 * wrong, tool="search")
    assert world.row("agent")["expected_return_s"] == pytest.approx(30.0, rel=0.2)


def test_a_wrong_hint_of_one_tool_says_nothing_of_another(world):
    for _ in range(20):
        world.turn("abc", session="agent", expect_return_s=3.0, tool="search")
        world.wait(29.0)
    world.turn("abc", session="agent", expect_return_s=3.0, tool="shell")
    assert world.row("agent")["expected_return_s"] == 3.0


def test_how_tools_return_is_learnt(world):
    for _ in range(60):
        world.turn("abc", session="agent", tool="compile")
        world.wait(200.0, step=50.0)
    world.turn("abc", session="agent", tool="compile")
    row = world.row("agent")
    assert row["expected_return_s"] == pytest.approx(200.0, rel=0.25)
    assert row["return_chance"] > 0.8


def test_two_requests_at_once_are_one_return(world):
    world.turn("abc", session="chat")
    world.now += 10.0
    for request in ("one", "two"):
        world.ask(request, "abc", session="chat")
    for request in ("one", "two"):
        world.over(request, "abc")
    (row,) = [row for row in world.store.retention.snapshot(world.now)["categories"] if row["category"] == "turn 1"]
    assert row["returns"] == 1.0


def test_who_ended_is_not_counted_among_those_that_stay_away(world):
    world.turn("abc", session="chat", end=True)
    world.turn("xyz", session="other")
    world.store.retention.end("other", world.now)
    assert world.store.retention.snapshot(world.now)["categories"] == []


# --- fetched ahead -------------------------------------------------------------------------------------------------


def test_what_is_below_is_in_ram_before_the_announced_return_and_no_sooner_than_it_takes(deep):
    below(deep, "abc", "agent", expect_return_s=60.0)
    deep.wait(58.0)
    assert deep.here("abc") == ""
    deep.wait(1.95, step=0.05)
    assert deep.here("abc") == "abc"
    assert deep.kinds("abc") == ["expected"] * 3
    assert deep.turn("abcd", session="agent") == "abc"


def test_it_is_fetched_though_ram_is_full_of_what_is_worth_less(deep):
    below(deep, "abc", "agent", expect_return_s=60.0)
    crowd(deep)
    assert deep.here("abc") == ""
    deep.wait(59.95, step=0.05)
    assert deep.here("abc") == "abc"


def test_it_is_not_fetched_for_what_is_worth_more(deep):
    below(deep, "abc", "agent", expect_return_s=60.0)
    crowd(deep, expect_return_s=50.0)
    deep.wait(60.0, step=0.05)
    assert deep.here("abc") == ""


def test_what_went_again_before_the_return_is_fetched_again(deep):
    deep.turn("abc", session="agent", expect_return_s=60.0)
    deep.run()
    deep.wait(59.91, step=0.05)
    deep.push_out("c")
    deep.wait(0.06, step=0.05)
    assert deep.here("abc") == "abc"


def test_nothing_is_fetched_for_whom_nobody_expects_any_more(deep):
    below(deep, "abc", "agent", expect_return_s=60.0)
    below(deep, "xyz", "other", expect_return_s=60.0)
    deep.store.retention.end("agent", deep.now)
    deep.store.retention.park("other", deep.now)
    deep.wait(200.0)
    assert deep.here("abcxyz") == ""


def test_what_nobody_came_for_stands_with_the_others_again(deep):
    below(deep, "abc", "agent", expect_return_s=10.0)
    deep.wait(9.95, step=0.05)
    assert deep.kinds("abc") == ["expected"] * 3
    deep.wait(20.0)
    assert deep.kinds("abc") == ["turn 1"] * 3


def test_a_read_ahead_that_comes_too_late_stands_with_the_others(deep):
    below(deep, "abc", "agent", expect_return_s=10.0)
    deep.now += 9.95
    deep.store.tick(deep.now)
    reads = deep.start()
    assert read(reads) == "abc"
    deep.now += 60.0
    deep.store.tick(deep.now)
    deep.finish(reads)
    assert deep.kinds("abc") == ["turn 1"] * 3


def test_each_block_is_read_once_however_often_one_looks(deep):
    below(deep, "abc", "agent", expect_return_s=10.0)
    deep.now += 9.9
    orders = []
    for _ in range(20):
        deep.now += 0.05
        deep.store.tick(deep.now)
        orders += deep.start()
    assert sorted(read(orders)) == list("abc")


# --- warmed ----------------------------------------------------------------------------------------------------------


def test_what_is_warmed_is_read_from_below(deep):
    below(deep, "abc", "chat")
    assert deep.store.retention.warm("chat", deep.now) == 3
    deep.run()
    assert deep.here("abc") == "abc"
    assert deep.store.retention.warm("chat", deep.now) == 0


def test_nothing_is_warmed_that_is_here_or_nowhere_or_nobodys(world, deep):
    world.turn("abc", session="chat")
    assert world.store.retention.warm("chat", world.now) == 0
    assert [deep.store.retention.warm(name, deep.now) for name in ("who", "")] == [0, 0]


def test_what_is_warmed_stays_for_a_while_and_not_for_ever(deep):
    below(deep, "abc", "chat")
    deep.store.retention.warm("chat", deep.now)
    deep.run()
    crowd(deep)
    assert deep.here("abc") == "abc"
    deep.wait(1000.0, step=10.0)
    assert deep.kinds("abc") == ["turn 1"] * 3


def test_who_is_warmed_and_announced_its_return_for_sooner_is_expected_then(deep):
    below(deep, "abc", "agent", expect_return_s=10.0)
    deep.store.retention.warm("agent", deep.now)
    assert deep.row("agent")["expected_return_s"] == 10.0


def test_warming_teaches_nothing_of_announcements(deep):
    below(deep, "abc", "chat")
    deep.store.retention.warm("chat", deep.now)
    deep.wait(500.0, step=10.0)
    deep.turn("abc", session="chat", expect_return_s=10.0)
    assert deep.row("chat")["expected_return_s"] == 10.0


def test_what_is_pinned_and_warmed_is_no_reason_to_take_more_than_there_is(deep):
    """Pins hold a quarter; leases and reads their parts; a warm of more than there is room for reads what it can."""
    for number in range(5):
        below(deep, "".join(chr(0x200 + 8 * number + n) for n in range(8)), f"chat {number}")
    deep.turn("abcdefgh", session="kept", pin=True)
    for number in range(5):
        deep.store.retention.warm(f"chat {number}", deep.now)
    deep.run()
    assert deep.here("abcdefgh") == "abcdefgh"
    assert deep.store.ram.slots.taken_bytes <= deep.store.ram.slots.capacity


# --- engines that come and go ------------------------------------------------------------------------------------------


def test_a_session_outlives_its_engine(deep):
    deep.turn("abc", session="agent", expect_return_s=60.0)
    deep.run()
    deep.store.leave(ENGINE, deep.now)
    deep.push_out("abc")
    deep.wait(59.95, step=0.05)
    assert deep.here("abc") == "abc"
    deep.join("b")
    deep.store.begin("b", "r", Hints(session="agent"), deep.now)
    assert deep.ask("r", "abc", engine="b") == "abc"
    assert deep.row("agent")["turns"] == 2


def test_a_lookup_without_a_request_founds_no_session_and_disturbs_none(world):
    world.turn("abc", session="agent", expect_return_s=60.0)
    before = world.store.ram.policy.queues(np.array([world.slot(letter) for letter in "abc"])).tolist()
    world.store.lookup(ENGINE, 99, keys("abc"), 0, world.now)
    world.store.release(ENGINE, 99, 0, world.now)
    assert world.store.ram.policy.queues(np.array([world.slot(letter) for letter in "abc"])).tolist() == before


def test_nor_is_what_was_announced_worth_more_by_such_a_lookup(world):
    world.turn("abc", session="later", expect_return_s=60.0)
    world.store.lookup(ENGINE, 99, keys("abc"), 0, world.now)
    world.store.release(ENGINE, 99, 0, world.now)
    world.turn("xyz", session="sooner", expect_return_s=20.0)
    assert world.evict(3) == "cba"
