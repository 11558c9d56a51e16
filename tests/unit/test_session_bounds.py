"""Sessions: how many are remembered and what they take; and that whatever comes counts are right."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from idle_world import TENANT, key, keys, letters
from talk import CHAIN, HEAP, Talk

from kvtier import session as session_module
from kvtier.session import NOTHING, Hints, Session, Sessions, common_keys


@pytest.fixture
def talk() -> Talk:
    return Talk()


def test_of_too_many_sessions_the_least_recently_used_is_forgotten(talk, monkeypatch):
    monkeypatch.setattr(session_module, "SESSIONS_MAX", 3)
    for prompt in ("ab", "pq", "xy", "abc"):  # the last is the first again
        talk.turn(prompt)
    talk.turn("kl")
    assert talk.chains() == {"~0": "abc", "~2": "xy", "~1": "kl"}
    assert [(letters(s.keys), letters(gone)) for s, gone in talk.sessions.take_forgotten()] == [("pq", "pq")]
    assert talk.sessions.take_forgotten() == []


def test_those_with_requests_under_way_or_pins_are_forgotten_last(talk, monkeypatch):
    monkeypatch.setattr(session_module, "SESSIONS_MAX", 3)
    talk.begin("ab")
    talk.turn("pq").session.pinned = keys("p")
    for prompt in ("xy", "kl", "mn"):
        talk.turn(prompt)
    assert sorted(talk.chains().values()) == ["ab", "mn", "pq"]


def test_where_all_are_busy_even_they_are_forgotten(talk, monkeypatch):
    monkeypatch.setattr(session_module, "SESSIONS_MAX", 2)
    for prompt in ("ab", "pq", "xy"):
        talk.begin(prompt)
    assert sorted(talk.chains().values()) == ["pq", "xy"]
    assert talk.sessions.over(("a", "1"), keys("ab"), 9.0) is None


def test_keys_of_all_sessions_together_are_bounded_also_those_that_many_have(talk, monkeypatch):
    monkeypatch.setattr(session_module, "KEYS_MAX", 40)
    for last in "ABCDEFGHIJKLMNOPQRST":
        talk.turn("abcdefgh" + last)
    assert sum(session.blocks for session in talk.sessions) <= 40 + 9


def test_one_session_with_too_many_keys_is_remembered_alone(talk, monkeypatch):
    monkeypatch.setattr(session_module, "KEYS_MAX", 4)
    talk.turn("ab")
    talk.turn("pqrstu")
    talk.turn("xy")
    assert list(talk.chains().values()) == ["xy"]


def test_a_session_takes_at_most_a_kilobyte_beyond_its_keys():
    n, blocks = 10_000, 2
    chains = [b"".join((n * blocks + b).to_bytes(16, "big") for b in range(blocks)) for n in range(n)]
    tracemalloc.start()
    sessions = Sessions()
    for number, chain in enumerate(chains):
        hints = Hints(session=f"a chat with a long name, number {number}", tenant=number.to_bytes(16, "big"), tool="search")
        request = ("engine", f"request {number}")
        sessions.begin(request, chain, 1, CHAIN, hints, float(number))
        sessions.over(request, chain, float(number))
    # Of the table from key to row, which is a dict here and 24 bytes a key in the daemon, nothing counts.
    sessions.lineage._table.clear()  # type: ignore[attr-defined]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / n - 16 * blocks <= 1024


def test_sessions_that_part_from_one_another_for_ever_keep_none_of_the_former_alive(talk, monkeypatch):
    monkeypatch.setattr(session_module, "SESSIONS_MAX", 4)
    chain = [chr(0x100 + n) for n in range(60)]
    for n in range(1, 60):
        talk.sessions.begin(("a", str(n)), keys([*chain[:n], f"!{n}"]), 1, CHAIN, NOTHING, float(n))
        talk.sessions.over(("a", str(n)), b"", float(n))
        talk.sessions.take_forgotten()
    seen, found = set(), list(talk.sessions)
    while found:
        session = found.pop()
        seen.add(id(session))
        attributes = (getattr(session, name) for name in Session.__slots__)
        found += [other for other in attributes if isinstance(other, Session) and id(other) not in seen]
    assert len(seen) == 4


# --- whatever comes ----------------------------------------------------------------------------------------------


def test_common_keys_are_those_that_both_begin_with():
    assert [common_keys(keys(a), keys(b)) for a, b in [("", "a"), ("ab", "ab"), ("abc", "abx"), ("xa", "ya")]] == [
        0,
        2,
        2,
        0,
    ]


NAMES = st.sampled_from(["", "", "chat", "work"])
PROMPTS = st.lists(st.sampled_from("abcd"), max_size=6).map("".join)  # with blocks named twice, as only liars do
EVENTS = st.lists(
    st.tuples(st.just("begin"), PROMPTS, NAMES, st.integers(1, 2), st.booleans())
    | st.tuples(st.just("over"), PROMPTS, st.integers(0, 9))
    | st.tuples(st.just("drop"), st.integers(0, 9)),
    max_size=40,
)


@given(EVENTS, st.sampled_from([CHAIN, HEAP]))
@settings(max_examples=200, deadline=None)
def test_whatever_comes_counts_are_those_of_what_sessions_have(events, kind):
    """Namespaces share no keys: here theirs are capital letters."""
    talk = Talk()
    running: list[tuple[tuple[str, str], int]] = []
    for event in events:
        if event[0] == "begin":
            prompt = event[1].upper() if event[3] == 2 else event[1]
            begun = talk.begin(prompt, namespace=event[3], kind=kind, session=event[2], tenant=TENANT if event[4] else b"")
            gone = begun.superseded
            running.append((talk.last, event[3]))
        elif event[0] == "over" and running:
            request, namespace = running.pop(event[2] % len(running))
            found = talk.sessions.over(request, keys(event[1].upper() if namespace == 2 else event[1]), talk.now)
            gone = found[1] if found else b""
        elif event[0] == "drop" and len(talk.sessions):
            gone = talk.sessions.drop(list(talk.sessions)[event[1] % len(talk.sessions)])
        else:
            continue
        sessions = list(talk.sessions)
        for letter in "abcdABCD":
            having = [session for session in sessions if letter in letters(session.keys)]
            assert bool(talk.sessions.lineage.members(key(letter))[0]) == bool(having)
            whose = talk.sessions.whose(key(letter))
            assert whose is None or whose.namespace == (2 if letter.isupper() else 1)
        assert not any(letter in letters(session.keys) for letter in letters(gone) for session in sessions)
        assert len({session.number for session in sessions}) == len(sessions)
        assert {s.number for s in sessions} <= set(range(len(sessions) + len(talk.sessions._numbers)))
        assert set(talk.sessions._of_request.values()) <= set(sessions)
    for session in list(talk.sessions):
        talk.sessions.drop(session)
    assert len(talk.sessions.lineage) == 0 and not talk.sessions._named and not talk.sessions._of_request
