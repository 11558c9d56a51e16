"""Where the blocks of sessions stand: categories, trunks, what is common and what is left."""

import pytest
from idle_world import World

from kvtier import standing as standing_module


@pytest.fixture
def world() -> World:
    return World()


def test_sessions_are_told_apart_by_their_turn(world):
    found = []
    for _ in range(12):
        world.turn("abc", session="chat")
        found.append(world.row("chat")["category"])
    assert found == ["turn 1", "turn 2", "turn 3", "turn 4", *["turns 5-7"] * 3, *["turns 8-11"] * 4, "turns 12 and more"]


def test_a_branch_its_trunk_and_what_is_left_of_the_other_have_categories_of_their_own(world):
    world.turn("abc")
    world.turn("abxy")
    assert world.kinds("abxyc") == ["trunk", "trunk", "branch", "branch", "left"]
    world.turn("abxyz")
    assert world.kinds("abxyz") == ["turn 2"] * 5


def test_whose_client_names_it_leaves_nothing_to_another_that_begins_alike(world):
    world.turn("abc", session="chat")
    world.turn("abxy", session="another")
    assert world.kinds("abxyc") == ["trunk", "trunk", "branch", "branch", "turn 1"]
    assert world.row("chat")["state"] == "idle"


def test_who_was_away_for_long_is_late(world):
    world.turn("abc", session="chat")
    world.now += 600.0
    world.turn("abc", session="chat")
    assert world.kinds("abc") == ["late"] * 3


def test_a_system_prompt_is_common_and_says_nothing_of_those_who_have_it(world, monkeypatch):
    monkeypatch.setattr(standing_module, "COMMON_MIN", 3)
    for last in "pqrs":
        world.turn("ab" + last, session=last)
    assert world.kinds("ab") == ["common"] * 2
    assert world.kinds("s") == ["turn 1"]


def test_what_is_gone_for_others_is_what_is_worth_least(world):
    """Twelve turns, a parked session and a first turn: RAM is full, and an engine needs slots."""
    world.turn("abcd", session="parked")
    world.turn("efgh", session="ended")
    world.turn("ijkl", session="chat", tool="search")
    world.store.retention.park("parked", world.now)
    world.store.retention.end("ended", world.now)
    for number in range(24):
        world.turn(chr(0x100 + number), session="crowd", end=True)
    assert world.here("ijkl") == "ijkl"


def test_who_runs_or_announced_its_return_is_not_left_when_another_parts_from_it(world):
    world.ask("r", "abc", session="chat")
    world.save("r", "abc")
    world.turn("abx", session="branch")
    assert world.kinds("c") == ["active"]
    world.turn("pqr", session="agent", expect_return_s=10.0, tool="search")
    world.turn("pqy", session="sub-agent")
    assert world.kinds("r") == ["expected"]
    assert world.row("agent")["category"] == "tool search"


def test_nor_is_who_waits_for_a_tool_or_was_parked(world):
    world.turn("pqr", session="agent", tool="search")
    world.turn("pqy", session="sub-agent")
    assert world.kinds("r") == ["tool search"]
    world.turn("klm", session="later")
    world.store.retention.park("later", world.now)
    world.turn("klz", session="branch")
    assert world.kinds("m") == ["parked"]


def test_common_blocks_have_a_quota(world, monkeypatch):
    monkeypatch.setattr(standing_module, "COMMON_MIN", 2)
    monkeypatch.setattr(standing_module, "COMMON_SHARE", 3 / 32)
    world.turn("abcdef", session="one")
    world.turn("abcdefg", session="two")
    assert world.kinds("abc") == ["common"] * 3
    assert "common" not in world.kinds("defg")
