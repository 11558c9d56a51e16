"""What a scheduler says becomes a call of the store, with what the frames can't check checked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import a

from kvtier import dispatch, protocol
from kvtier.block import pack_slots
from kvtier.errors import FrameError, ProtocolError
from kvtier.session import Hints

KEYS, NOW = b"a" * 16 + b"b" * 16, 12.5


class FakeStore:
    """Remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def call_of(message: Any) -> tuple[Any, ...]:
    """The one that this message makes, without the engine."""
    store = FakeStore()
    dispatch.carry_out(store, "engine", b"namespace", message, NOW)
    ((name, engine, *arguments),) = store.calls
    assert engine == "engine"
    return (name, *arguments)


def test_a_touch_says_whose_it_is_and_when():
    assert call_of(protocol.Touch(KEYS, "request")) == ("touch", KEYS, "request", NOW)
    assert call_of(protocol.Touch(b"")) == ("touch", b"", "", NOW)


@pytest.mark.parametrize("parents", [b"", bytes(16) + b"a" * 16])
def test_a_commit_has_one_parent_a_key_or_none_at_all(parents):
    name, keys, slots, *rest = call_of(protocol.Commit(KEYS, pack_slots([7, 8]), parents, "request"))
    assert (name, keys, slots.tolist(), rest) == ("commit", KEYS, [7, 8], [parents, "request", NOW])


def test_a_commit_with_another_number_of_parents_or_slots_is_refused():
    with pytest.raises(FrameError, match="Commit has one parent a key, or none at all"):
        call_of(protocol.Commit(KEYS, pack_slots([7, 8]), bytes(16)))
    with pytest.raises(FrameError, match="Commit has one slot a key"):
        call_of(protocol.Commit(KEYS, pack_slots([7])))


def test_a_begin_becomes_hints():
    counts = {"end": 1, "pin": 1, "no_disk": 1, "expect_return_ms": 1500, "ttl_ms": 3_600_000, "of a later version": 3}
    name, request, found = call_of(protocol.Begin("request", "a chat", b"t" * 16, "search", counts))[:3]
    assert (name, request) == ("begin", "request")
    assert found == Hints("a chat", b"t" * 16, "search", True, 1.5, 3600.0, True, True)
    assert call_of(protocol.Begin("request", counts={"no_remote": 1}))[2] == Hints(no_remote=True)
    assert call_of(protocol.Begin("request")) == ("begin", "request", Hints(), NOW)


def test_seconds_beyond_all_measure_are_cut():
    counts = {"expect_return_ms": protocol.COUNT_MAX, "ttl_ms": protocol.COUNT_MAX}
    found = call_of(protocol.Begin("request", counts=counts))[2]
    assert (found.expect_return_s, found.ttl_s) == (86_400, 604_800)


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "~1f", "s" * 129])
def test_a_name_that_can_t_be_shown_or_is_one_of_ours_is_refused(name):
    with pytest.raises(FrameError, match=r"Begin\.session is no name of up to 128 printable characters"):
        call_of(protocol.Begin("request", session=name))
    with pytest.raises(FrameError, match=r"Begin\.tool is no name of up to 64 printable characters"):
        call_of(protocol.Begin("request", tool=name))


@given(st.sampled_from(dispatch.FROM_SCHEDULERS).flatmap(a))
def test_whatever_a_scheduler_says_is_one_call_or_refused(message):
    store = FakeStore()
    store.lookup = lambda *arguments: store.calls.append(("lookup", *arguments))
    try:
        dispatch.carry_out(store, "engine", b"namespace", message, NOW)
    except ProtocolError as error:
        assert error.code == "bad_frame" and not store.calls
    else:
        assert len(store.calls) == 1
