"""Lookups that were put aside: which questions they wait for, and how long."""

from kvtier.block import Kind
from kvtier.decision import Ask
from kvtier.lookup import Lookup
from kvtier.seeking import Aside, Seeking


def aside(lease: int, *questions: int, until: float = 1.0, backlog_s: float = 0.0, engine: str = "a") -> Aside:
    one = Lookup((engine, lease), b"", Kind(65536, 16, True), 0, None, 0, Ask("r", backlog_s=backlog_s), 0.0)
    return Aside(one, until, set(questions), 1)


def test_it_waits_until_the_last_of_its_questions_is_answered():
    seeking = Seeking()
    seeking.put(aside(1, 7, 8))
    seeking.put(aside(2, 8))
    assert seeking.answered([8]) == [("a", 2)]
    seeking.take(("a", 2))
    assert seeking.answered([9]) == [] and seeking.answered([7]) == [("a", 1)]


def test_it_waits_no_longer_than_until():
    seeking = Seeking()
    seeking.put(aside(1, 7, until=1.0))
    seeking.put(aside(2, 7, until=2.0))
    assert seeking.late(0.9) == [] and seeking.late(1.0) == [("a", 1)]


def test_what_was_ahead_of_it_is_partly_done_when_it_is_looked_up_again():
    assert aside(1, backlog_s=0.5).again(0.2).ask.backlog_s == 0.3
    assert aside(1, backlog_s=0.5).again(0.7).ask.backlog_s == 0.0


def test_who_is_taken_waits_no_more():
    seeking = Seeking()
    seeking.put(aside(1, 7))
    seeking.put(aside(1, 7, engine="b"))
    assert seeking.askers("a") == [("a", 1)] and len(seeking.askers()) == 2
    assert seeking.take(("a", 1)) is not None and seeking.take(("a", 1)) is None
    assert ("a", 1) not in seeking and seeking.answered([7]) == [("b", 1)]
