"""What a scheduler says becomes a call of the store, with what the frames can't check checked."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import a

from kvtier import dispatch, protocol
from kvtier.block import pack_slots
from kvtier.codec import RAW, Codec
from kvtier.errors import FrameError, ProtocolError
from kvtier.namespaces import Namespaces
from kvtier.session import Hints
from kvtier.users import namespace_of

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


# --- a Hello that wishes for a codec ---------------------------------------------------------------------------------

MODEL, OTHER = b"model".ljust(32, b"."), b"other".ljust(32, b".")
INT8 = Codec("int8", "bf16", 64)


class Coding:
    def __init__(self) -> None:
        self.wishes: list[tuple[int, Codec]] = []

    def wish(self, namespace: int, codec: Codec) -> None:
        self.wishes.append((namespace, codec))


class JoinedStore:
    """Knows its namespaces, and what was wished of the tiers below."""

    def __init__(self, tiers: int = 2) -> None:
        self.namespaces = Namespaces()
        self.codings = [Coding() for _ in range(tiers)]
        self.lower, self.away = [SimpleNamespace(coding=coding) for coding in self.codings] + [None] * (2 - tiers)

    def join(self, engine: str, namespace: bytes, *rest: Any, **more: Any) -> tuple[int, int]:
        known = self.namespaces.get(namespace) or self.namespaces.add(namespace)
        return known.epoch, 8


def join(store: Any, codec: str, namespace: bytes = MODEL, user: str = "") -> bytes:
    hello = protocol.Hello(protocol.VERSION, protocol.SCHEDULER, "engine", namespace, 1 << 20, 128, 8, 1, codec)
    return dispatch.join(store, hello, user, NOW)[0]


def test_both_tiers_hear_of_a_wish_once_by_the_number_of_its_namespace():
    store = JoinedStore()
    join(store, "", OTHER)
    join(store, "int8:bf16:64")
    join(store, "int8:bf16:64")
    assert [coding.wishes for coding in store.codings] == [[(1, INT8)], [(1, INT8)]]
    assert store.namespaces[MODEL].wish == INT8
    assert store.namespaces[OTHER].wish == RAW


@pytest.mark.parametrize("tiers", [0, 1])
def test_a_wish_is_no_error_where_there_is_no_tier(tiers):
    store = JoinedStore(tiers)
    join(store, "int4:fp16:128")
    assert [coding.wishes for coding in store.codings] == [[(0, Codec("int4", "fp16", 128))]] * tiers


@pytest.mark.parametrize(
    ("first", "second"), [("", "int8:bf16:64"), ("int8:bf16:64", ""), ("int8:bf16:64", "int4:bf16:64")]
)
def test_engines_of_one_namespace_have_one_wish(first, second):
    store = JoinedStore()
    join(store, first)
    before = [list(coding.wishes) for coding in store.codings]
    with pytest.raises(ProtocolError, match="other engines of this namespace have said codec") as caught:
        join(store, second)
    assert caught.value.code == "bad_codec"
    assert [coding.wishes for coding in store.codings] == before


def test_the_same_engine_of_another_user_has_a_namespace_and_a_wish_of_its_own():
    store = JoinedStore()
    join(store, "")
    assert join(store, "int8:bf16:64", user="somebody") == namespace_of("somebody", MODEL)
    assert store.codings[0].wishes == [(1, INT8)]


def test_a_namespace_that_was_recovered_has_the_wish_of_the_first_engine_that_says_it():
    store = JoinedStore()
    store.namespaces.recover({MODEL: (7, 3)})
    join(store, "int8:bf16:64")
    assert store.codings[0].wishes == [(7, INT8)]


@pytest.mark.parametrize(
    ("codec", "complaint"),
    [
        ("int8", "unknown codec 'int8'; known are such as none"),
        ("int8:bf16:63", "unknown codec"),
        ("int9:bf16:64", "unknown codec"),
        ("int8:fp8:64", "unknown codec"),
        ("exp12", "'exp12' loses nothing"),
        ("none", "'none' loses nothing"),
    ],
)
def test_what_is_no_lossy_codec_is_refused_and_nothing_begins(codec, complaint):
    store = JoinedStore()
    with pytest.raises(ProtocolError, match=complaint) as caught:
        join(store, codec)
    assert caught.value.code == "bad_codec"
    assert not store.namespaces
