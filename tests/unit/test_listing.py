"""Sessions as people and programs see them."""

import json

import pytest
from idle_world import BLOCK, OTHER_TENANT, RED, TENANT, World, key

from kvtier import listing as listing_module
from kvtier.known import Known


@pytest.fixture
def world() -> World:
    return World()


def test_without_sessions_there_are_no_rows(world):
    assert world.store.retention.sessions(0.0) == []


def test_a_row_says_all_that_is_known_of_a_session(world):
    world.turn("abc", "d", session="chat", tenant=TENANT)
    world.now += 10.0
    assert world.row("chat") == {
        "session": "chat",
        "tenant": TENANT[:6].hex(),
        "model": RED.hex()[:12],
        "state": "idle",
        "idle_s": 10.0,
        "turns": 1,
        "tokens": 64,
        "bytes": {"cpu": 4 * BLOCK, "nvme": 0},
        "blocks": {"cpu": 4, "nvme": 0, "gone": 0},
        "expected_return_s": pytest.approx(115.0, abs=10.0),
        "return_chance": pytest.approx(0.45, abs=0.02),
        "pinned": False,
        "pin_left_s": 0.0,
        "ttl_left_s": None,
        "no_disk": False,
        "tool": "",
        "category": f"turn 1, tenant {TENANT[:6].hex()}",
    }


def test_a_row_is_made_of_json_values(world):
    world.turn("abc", session="chat", tenant=TENANT, pin=True, ttl_s=60.0, tool="search", expect_return_s=5.0)
    assert json.loads(json.dumps(world.row("chat"))) == world.row("chat")


def test_a_session_without_a_name_is_shown_by_its_number(world):
    for number in range(11):
        world.turn(chr(0x100 + number))
    assert world.names(sort="name")[:3] == ["~0", "~1", "~2"]
    assert "~a" in world.names()


# --- states --------------------------------------------------------------------------------------------------------


def test_what_is_under_way_is_active_and_not_idle_and_expected_by_nobody(world):
    world.turn("abc", session="chat")
    world.now += 10.0
    world.ask("r", "abc", session="chat")
    world.now += 10.0
    row = world.row("chat")
    assert (row["state"], row["idle_s"], row["expected_return_s"], row["return_chance"]) == ("active", 0.0, None, 1.0)


def test_what_waits_for_a_tool_says_so(world):
    world.turn("abc", session="chat", tool="search")
    row = world.row("chat")
    assert (row["state"], row["tool"], row["category"]) == ("waiting", "search", "tool search")
    assert row["return_chance"] == pytest.approx(0.9, abs=0.01)


def test_what_announced_its_return_is_expected_then(world):
    world.turn("abc", session="chat", expect_return_s=30.0)
    world.now += 10.0
    assert (world.row("chat")["state"], world.row("chat")["expected_return_s"]) == ("waiting", 20.0)


def test_what_is_overdue_is_idle_again(world):
    world.turn("abc", session="chat", expect_return_s=30.0)
    world.wait(61.0)
    assert world.row("chat")["state"] == "idle"


def test_what_was_parked_says_so_and_what_ended_is_shown_for_a_while_and_comes_back_never(world):
    world.turn("abc", session="chat")
    world.turn("xyz", session="done", end=True)
    world.store.retention.park("chat", world.now)
    assert world.row("chat")["state"] == "parked"
    row = world.row("done")
    assert (row["state"], row["return_chance"], row["expected_return_s"]) == ("ended", 0.0, None)


def test_times_to_live_and_of_pins_run_out(world):
    world.turn("abc", session="chat", pin=True, ttl_s=60.0)
    world.now += 10.0
    row = world.row("chat")
    assert (row["pinned"], row["pin_left_s"], row["ttl_left_s"]) == (True, 50.0, 50.0)


def test_where_its_blocks_are_is_counted_by_tier():
    world = World(drives=True)
    world.turn("abcd", session="chat")
    world.run()
    world.push_out("cd")
    assert world.row("chat")["blocks"] == {"cpu": 2, "nvme": 4, "gone": 0}
    world.store.lower.drop([b"d".ljust(16)])
    assert world.row("chat")["blocks"] == {"cpu": 2, "nvme": 3, "gone": 1}
    assert world.row("chat")["bytes"] == {"cpu": 2 * BLOCK, "nvme": 3 * BLOCK}


# --- which, and in what order ----------------------------------------------------------------------------------------


@pytest.fixture
def three(world) -> World:
    """Old and long; young with three turns; announced for soon, and the shortest. Equal ones: used last first."""
    world.turn("abcdef", session="long")
    for prompt in ("p", "pq", "pqr"):
        world.turn(prompt, session="young")
    world.turn("x", session="soon", expect_return_s=20.0)
    return world


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("idle", ["soon", "young", "long"]),
        ("tokens", ["long", "young", "soon"]),
        ("bytes", ["long", "young", "soon"]),
        ("turns", ["young", "soon", "long"]),
        ("name", ["long", "soon", "young"]),
        ("what", ["soon", "young", "long"]),
    ],
)
def test_rows_are_sorted_as_it_is_wished(three, sort, names):
    assert three.names(sort=sort) == names


def test_by_return_comes_first_who_is_expected_first(three):
    assert three.names(sort="return")[0] == "soon"
    three.turn("klm", session="never", end=True)
    assert three.names(sort="return")[-1] == "never"


def test_every_sort_that_is_named_is_known(three):
    assert {sort: len(three.names(sort=sort)) for sort in listing_module.SORTS} == dict.fromkeys(listing_module.SORTS, 3)


def test_what_is_under_way_comes_before_what_was_used_last(three):
    three.ask("r", "abcdef", session="long")
    three.now += 1.0
    three.turn("x", session="soon")
    assert three.names(sort="idle")[0] == "long"


def test_no_more_rows_than_wished_or_allowed(three, monkeypatch):
    assert three.names(limit=2) == ["soon", "young"]
    assert three.names(limit=0) == three.names(limit=-1) == []
    monkeypatch.setattr(listing_module, "LIMIT_MAX", 1)
    assert three.names(limit=100) == ["soon"]


def test_by_bytes_those_are_looked_at_that_were_used_last(three, monkeypatch):
    monkeypatch.setattr(listing_module, "LOOKED_AT_MAX", 2)
    assert three.names(sort="bytes") == ["young", "soon"]


def test_only_those_of_a_name_or_a_tenant_are_shown(world):
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("pqr", session="chat", tenant=OTHER_TENANT)
    world.turn("xyz", session="work", tenant=TENANT)
    tenant = TENANT[:6].hex()
    assert sorted(world.names(tenant=tenant)) == ["chat", "work"]
    assert len(world.names(name="chat")) == 2
    assert len(world.names(name="chat", tenant=tenant)) == 1
    assert world.names(name="who") == []


def test_how_many_sessions_are_in_which_state_is_counted(three):
    three.ask("r", "abcdef", session="long")
    three.wait(6.0)
    states = three.store.retention.snapshot(three.now)["sessions"]
    assert {state: n for state, n in states.items() if n} == {"active": 1, "idle": 1, "waiting": 1}


# --- the remote ------------------------------------------------------------------------------------------------------


def test_what_the_remote_is_known_to_have_is_counted_with_the_other_tiers():
    world = World(remote=True)
    world.turn("abcd", session="chat")
    for letter in "abx":
        world.store.away.known.there(key(letter), BLOCK, world.now)
    world.push_out("bcd")
    row = world.row("chat")
    assert row["bytes"] == {"cpu": BLOCK, "nvme": 0, "remote": 2 * BLOCK}
    assert row["blocks"] == {"cpu": 1, "nvme": 0, "remote": 2, "gone": 2}


def test_of_very_long_sessions_a_share_is_looked_at(monkeypatch):
    monkeypatch.setattr(listing_module, "KNOWN_MAX", 4)
    world = World(remote=True)
    world.turn("abcdefgh", session="chat")
    for letter in "abcd":
        world.store.away.known.there(key(letter), BLOCK, world.now)
    assert world.row("chat")["blocks"] == {"cpu": 8, "nvme": 0, "remote": 4, "gone": 0}
    world.turn("xyz", session="other")
    assert {row["session"]: row["blocks"]["remote"] for row in world.store.retention.sessions(world.now)} == {
        "chat": 4,
        "other": 0,
    }


def test_a_look_at_what_is_known_keeps_nothing_there_for_longer():
    known = Known(there_max=2)
    known.there(b"a", 1, 0.0)
    known.there(b"b", 1, 0.0)
    assert known.which([b"a", b"b", b"c"], 1.0) == [True, True, False]
    known.there(b"c", 1, 1.0)
    assert known.which([b"a", b"b", b"c"], 1.0) == [False, True, True]
