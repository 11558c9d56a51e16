"""Drain: before maintenance, what is worth keeping is written below and to the remote."""

import pytest
from idle_world import BLOCK, World, key, read, written

from kvtier import draining as draining_module
from kvtier.draining import FLUSH
from kvtier.transfer import Demote, Flush


class Node(World):
    """A world that can be drained to its end."""

    def begin_drain(self) -> None:
        self.store.retention.draining.begin(self.now)

    def state(self) -> dict[str, object]:
        return self.store.retention.draining.state()

    def drain(self) -> dict[str, object]:
        self.begin_drain()
        for _ in range(100):
            if self.state()["is_over"]:
                break
            self.tick()
            self.store.flushed()
        return self.state()


@pytest.fixture
def shared() -> Node:
    return Node(remote=True)


@pytest.fixture
def deep() -> Node:
    return Node(drives=True)


@pytest.fixture
def wide() -> Node:
    return Node(drives=True, remote=True)


def of(tiers: str, n: int) -> dict[str, int]:
    return dict.fromkeys(tiers.split(), n)


def test_what_is_idle_and_was_used_once_is_written_to_the_remote(shared):
    shared.turn("abc", session="chat")
    shared.run()
    assert shared.away("abc") == ""
    assert shared.drain() == {
        "is_over": True,
        "is_safe": True,
        "left": {"remote": 0},
        "left_bytes": {"remote": 0},
        "written": {"remote": 3},
        "written_bytes": {"remote": 3 * BLOCK},
        "refused": {},
    }
    assert shared.away("abc") == "abc"


def test_with_drives_alone_what_waits_for_them_is_written_and_lasts():
    deep = Node(drives=True, budget=8 * BLOCK)
    deep.turn("abcdef", session="chat")
    deep.run()
    assert deep.below("abcdef") == "abcd", "the rest of the budget is for what is used again"
    assert deep.drain()["written"] == {"nvme": 2}
    assert deep.below("abcdef") == "abcdef"
    assert deep.state()["is_safe"] is True


def test_both_tiers_get_what_they_lack(wide):
    wide.turn("abc", session="chat")
    wide.run()
    assert (wide.below("abc"), wide.away("abc")) == ("abc", "")
    wide.turn("xy", session="young")
    state = wide.drain()
    assert state["written"] == {"nvme": 2, "remote": 5}
    assert state["left"] == of("nvme remote", 0) and state["is_safe"]
    assert wide.below("abcxy") == wide.away("abcxy") == "abcxy"


def test_what_only_the_drives_have_is_read_and_written_to_the_remote(wide):
    wide.turn("abcdef", session="chat")
    wide.run()
    wide.push_out("bcdef")
    state = wide.drain()
    assert (state["written"], state["left"]) == ({"nvme": 0, "remote": 6}, of("nvme remote", 0))
    assert wide.away("abcdef") == "abcdef"


def test_it_is_read_in_pieces_that_ram_has_room_for(wide):
    wide.turn("abcdef", session="chat")
    wide.run()
    wide.push_out("abcdef")
    wide.begin_drain()
    assert wide.state()["left"]["remote"] == 6
    assert read(wide.start()) == "ab", "a sixteenth of the arena"


def test_what_the_remote_has_is_not_read_for_it(wide):
    wide.turn("ab", session="chat")
    wide.run()
    wide.push_out("ab")
    wide.store.away.known.there(key("a"), BLOCK, wide.now)
    wide.begin_drain()
    assert read(wide.start()) == "b"


def test_the_session_that_was_used_last_goes_first_and_each_from_its_beginning(shared):
    shared.turn("abc", session="old")
    shared.turn("xyz", session="young")
    shared.begin_drain()
    orders = shared.start_remote()
    assert written(orders) == "xyz"
    shared.finish_remote(orders)
    assert written(shared.start_remote()) == "abc"


def test_what_no_session_has_is_written_too(shared):
    shared.turn("ab", session="chat")
    shared.store.retention._sessions.drop(shared.session("chat"))
    assert shared.drain()["written"] == {"remote": 2}


def test_it_goes_piece_by_piece(shared, monkeypatch):
    monkeypatch.setattr(draining_module, "PIECE_BLOCKS", 2)
    shared.turn("abcde", session="chat")
    shared.begin_drain()
    orders = shared.start_remote()
    assert written(orders) == "ab"
    assert shared.state()["left"] == {"remote": 5}
    shared.finish_remote(orders)
    assert shared.drain()["written"] == {"remote": 5}


def test_one_step_looks_at_so_many_blocks(shared, monkeypatch):
    monkeypatch.setattr(draining_module, "LOOKED_AT_MAX", 2)
    for prompt in ("ab", "cd", "ef"):
        shared.turn(prompt, session=prompt)
        for letter in prompt:
            shared.store.away.known.there(key(letter), BLOCK, shared.now)
    shared.begin_drain()
    assert shared.state()["left"] == {"remote": 4}
    shared.tick()
    assert shared.state()["left"] == {"remote": 2}


# --- what is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "below", "reason"), [({"no_disk": True}, "", "no_disk"), ({"no_remote": True}, "abc", "max_tier")]
)
def test_what_its_session_forbids_is_not_written_and_counted(wide, hints, below, reason):
    wide.turn("abc", session="chat", **hints)
    state = wide.drain()
    assert (wide.below("abc"), wide.away("abc")) == (below, "")
    assert state["refused"] == {reason: 3}
    assert state["is_safe"] and state["left"] == of("nvme remote", 0)


def test_nor_is_it_read_from_the_drives_for_that(wide):
    wide.turn("abc", session="chat", no_remote=True)
    wide.run()
    wide.push_out("abc")
    wide.begin_drain()
    assert read(wide.start()) == ""
    assert wide.drain()["refused"] == {"max_tier": 3}


def test_what_is_over_is_not_written(shared):
    shared.turn("abc", session="chat", end=True)
    state = shared.drain()
    assert (shared.away("abc"), state["refused"], state["is_safe"]) == ("", {"ended": 3}, True)


# --- when something goes wrong ---------------------------------------------------------------------------------------


def test_a_remote_that_is_away_is_given_up_at_once_and_nothing_is_safe(shared):
    shared.turn("abc", session="chat")
    shared.store.set_remote_away(True)
    state = shared.drain()
    assert (state["is_over"], state["is_safe"]) == (True, False)
    assert (state["left"], state["left_bytes"]) == ({"remote": 3}, {"remote": 3 * BLOCK})


def test_with_drives_it_is_safe_without_the_remote(wide):
    wide.turn("abc", session="chat")
    wide.run()
    wide.push_out("c")
    wide.turn("xy", session="young")
    wide.store.set_remote_away(True)
    state = wide.drain()
    assert wide.below("abcxy") == "abcxy" and wide.away("abcxy") == ""
    assert (state["is_safe"], state["left"]) == (True, {"nvme": 0, "remote": 5})


def test_a_remote_that_goes_away_meanwhile_is_given_up(shared):
    shared.turn("abc", session="chat")
    shared.begin_drain()
    orders = shared.start_remote()
    shared.finish_remote(orders[:1])
    shared.store.set_remote_away(True)
    state = shared.drain()
    assert (state["is_over"], state["is_safe"]) == (True, False)
    assert (state["written"], state["left"]) == ({"remote": 1}, {"remote": 2})


def test_a_tier_that_gets_on_with_nothing_is_given_up(shared):
    shared.turn("abc", session="chat")
    shared.begin_drain()
    shared.start_remote()
    shared.now += draining_module.PATIENCE_S
    shared.store.tick(shared.now)
    assert shared.state()["is_over"] is False
    shared.now += 1.0
    shared.store.tick(shared.now)
    assert (shared.state()["is_over"], shared.state()["left"]) == (True, {"remote": 3})


def test_what_left_ram_before_it_was_written_is_lost_and_said_to_be(shared):
    shared.turn("abc", session="chat")
    shared.begin_drain()
    shared.push_out("c")
    state = shared.drain()
    assert (state["written"], state["left"], state["is_safe"]) == ({"remote": 2}, {"remote": 1}, False)


def test_a_flush_of_the_drives_that_failed_is_no_safety(deep):
    deep.turn("abc", session="chat")
    deep.begin_drain()
    deep.finish([order for order in deep.start() if isinstance(order, Demote)])
    deep.store.tick(deep.now)
    flushes = [order for order in deep.start() if isinstance(order, Flush)]
    assert len(flushes) == 1
    deep.finish(flushes, "io")
    assert deep.store.flushed() == [], "nobody else asked for it"
    assert (deep.state()["is_over"], deep.state()["is_safe"]) == (True, False)


def test_without_a_tier_below_it_is_over_and_not_safe():
    node = Node()
    node.turn("abc", session="chat")
    assert node.drain() == {
        "is_over": True, "is_safe": False, "left": {}, "left_bytes": {}, "written": {}, "written_bytes": {}, "refused": {},
    }  # fmt: skip


# --- beginnings and ends ---------------------------------------------------------------------------------------------


def test_before_the_first_nothing_is_safe(shared):
    assert (shared.state()["is_over"], shared.state()["is_safe"]) == (True, False)


def test_who_asks_again_joins_the_one_that_runs(shared):
    shared.turn("abc", session="chat")
    shared.begin_drain()
    orders = shared.start_remote()
    shared.begin_drain()
    assert shared.start_remote() == []
    shared.finish_remote(orders)
    assert shared.state()["written"] == {"remote": 3}


def test_after_one_is_over_another_looks_anew(shared):
    shared.turn("abc", session="chat")
    shared.drain()
    shared.turn("xy", session="other")
    assert shared.drain()["written"] == {"remote": 2}


def test_when_nobody_waits_any_more_what_was_begun_is_written_nevertheless(shared):
    shared.turn("abc", session="chat")
    shared.begin_drain()
    shared.store.retention.draining.end()
    shared.run()
    assert shared.away("abc") == "abc"


def test_others_flushes_are_theirs(deep):
    deep.turn("ab", session="chat")
    deep.store.flush(7)
    deep.run()
    assert deep.store.flushed() == [(7, True)]
    assert deep.store.retention.draining.flushed(FLUSH, True) is True, "of a drain that nobody waits for"
