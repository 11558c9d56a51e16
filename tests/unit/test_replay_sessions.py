"""Whose a request of a trace is, and whether it is the last of its session."""

import json

from conversations import lines, trace_of

from kvtier.replay.sessions import told
from kvtier.replay.trace import Request, Trace


def trace_over(*paths: tuple[int, ...], sessions: str = "") -> Trace:
    names = sessions or [""] * len(paths)
    return Trace("tiny", 1, tuple(Request(float(n), len(p), 0, p, s) for n, (p, s) in enumerate(zip(paths, names))))


def whose(trace: Trace) -> str:
    """A letter a request, in capitals where a session ends."""
    letters: dict[str, str] = {}
    said = [(letters.setdefault(t.session, chr(ord("a") + len(letters))), t.ends) for t in told(trace)]
    return "".join(letter.upper() if ends else letter for letter, ends in said)


def test_a_trace_that_names_its_sessions_is_believed():
    assert whose(trace_over((1, 2), (1, 2, 3), (9,), sessions="xyx")) == "aBA"


def test_who_goes_on_from_the_end_of_a_prompt_is_its_session():
    assert whose(trace_over((0, 1), (0, 1, 2), (0, 1, 2, 3))) == "aaA"


def test_the_first_block_joins_nobody():
    assert whose(trace_over((0, 1), (0, 2))) == "AB"


def test_who_tells_the_end_with_other_words_is_still_the_same_session():
    assert whose(trace_over((0, 1, 2), (0, 1, 3), (0, 1, 3, 4))) == "aaA"


def test_two_branches_that_both_go_on_are_two_sessions():
    assert whose(trace_over((0, 1, 2), (0, 1, 3), (0, 1, 2, 4), (0, 1, 3, 5))) == "abAB"


def test_a_former_turn_that_is_told_anew_begins_a_session_if_the_old_one_goes_on():
    assert whose(trace_over((0, 1, 2), (0, 1, 2, 3), (0, 1, 5), (0, 1, 2, 3, 4))) == "aaBA"
    assert whose(trace_over((0, 1, 2), (0, 1, 2, 3), (0, 1, 5))) == "aaA"


def test_made_up_conversations_are_recovered(tmp_path):
    """All share their first block; the sessions are known by how they were made."""
    trace = trace_of(tmp_path, seed=11, sessions=200)
    true = [json.loads(line)["hash_ids"] for line in lines(11, 200)]
    by_session: dict[str, set[int]] = {}
    for one, ids in zip(told(trace), true):
        by_session.setdefault(one.session, set()).update(block // 10_000 for block in ids[1:] if block < 1_000_000)
    assert all(len(sessions) <= 1 for sessions in by_session.values())
    of_many = [session for sessions in by_session.values() for session in sessions]
    assert len(of_many) - len(set(of_many)) == 0
