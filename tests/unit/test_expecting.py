"""Expecting: when an announced return is believed, is near, was wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from idle_world import OTHER_TENANT, TENANT
from talk import CHAIN

from kvtier import expecting as expecting_module
from kvtier.expecting import RATIO_MAX, Expecting
from kvtier.session import Hints, Session, Sessions


class Desk:
    """Sessions that announce themselves at a desk."""

    def __init__(self) -> None:
        self.expecting = Expecting()
        self.sessions = Sessions()
        self.gone: set[Session] = set()
        self._requests = 0

    def session(self, name: str, tenant: bytes = b"", tool: str = "", said_s: float = 0.0, ttl_s: float = 0.0) -> Session:
        hints = Hints(session=name, tenant=tenant, tool=tool, expect_return_s=said_s, ttl_s=ttl_s)
        self._requests += 1
        request = ("a", str(self._requests))
        session = self.sessions.begin(request, b"", 1, CHAIN, hints, 0.0).session
        self.sessions.over(request, b"", 0.0)
        return session

    def announce(self, name: str, said_s: float, now: float = 0.0, lead_s: float = 0.0, **source) -> Session:
        session = self.session(name, said_s=said_s, **source)
        session.used_at = now
        self.expecting.expect(session, now, lead_s)
        return session

    def back(self, session: Session, now: float) -> None:
        self.expecting.came(session, now)
        session.used_at, session.expected_at = now, None

    def due(self, now: float) -> list[tuple[str, str]]:
        found = self.expecting.due(now, lambda session: session not in self.gone)
        return [(what, session.name) for what, session in found]


@pytest.fixture
def desk() -> Desk:
    return Desk()


# --- one session -----------------------------------------------------------------------------------------------


def test_who_announces_itself_is_expected_then(desk):
    assert desk.announce("chat", 30.0, now=100.0).expected_at == 130.0


def test_it_is_near_at_its_time_and_overdue_as_long_after(desk):
    desk.announce("chat", 30.0)
    assert desk.due(29.9) == []
    assert desk.due(30.0) == [("near", "chat")]
    assert desk.due(59.9) == []
    assert desk.due(60.0) == [("overdue", "chat")]
    assert desk.due(1e6) == []


def test_it_is_near_so_much_earlier_as_fetching_takes(desk):
    desk.announce("chat", 30.0, lead_s=4.0)
    assert desk.due(25.9) == []
    assert desk.due(26.0) == [("near", "chat")]


def test_where_fetching_takes_longer_than_it_is_away_it_is_near_at_once(desk):
    desk.announce("chat", 30.0, lead_s=400.0)
    assert desk.due(0.0) == [("near", "chat")]


def test_it_is_known_when_something_is_due_next(desk):
    assert desk.expecting.due_at == float("inf")
    desk.announce("late", said_s=100.0)
    desk.announce("soon", said_s=10.0, lead_s=2.0)
    assert desk.expecting.due_at == 8.0
    assert desk.due(8.0) == [("near", "soon")]
    assert desk.expecting.due_at == 20.0  # when it is overdue


def test_a_short_time_is_overdue_no_sooner_than_a_second_after(desk):
    desk.announce("chat", 0.1)
    desk.due(0.1)
    assert desk.due(1.09) == []
    assert desk.due(1.11) == [("overdue", "chat")]


def test_while_it_is_near_one_looks_again_sooner_and_sooner(desk):
    session = desk.announce("chat", 30.0, lead_s=8.0)
    looks = []
    for tenth in range(220, 330):
        if ("near", "chat") in desk.due(tenth / 10):
            looks.append(tenth / 10)
            desk.expecting.look_again(session, tenth / 10)
    assert looks[:4] == [22.0, 26.0, 28.0, 29.0]
    assert looks[-1] >= 32.8, "until it is there"


def test_who_is_back_is_neither_near_nor_overdue(desk):
    session = desk.announce("chat", 30.0)
    desk.back(session, 10.0)
    assert desk.due(1e6) == []


def test_who_is_forgotten_is_neither_near_nor_overdue(desk):
    desk.gone.add(desk.announce("chat", 30.0))
    assert desk.due(1e6) == []


def test_who_is_expected_no_more_is_neither_near_nor_overdue(desk):
    desk.expecting.drop(session := desk.announce("chat", 30.0))
    assert session.expected_at is None
    assert desk.due(1e6) == []


def test_a_time_to_live_ends_if_the_session_is_not_used_until_then(desk):
    session = desk.session("chat", ttl_s=60.0)
    desk.expecting.age(session, 60.0)
    assert desk.due(59.9) == []
    assert desk.due(60.0) == [("old", "chat")]
    desk.expecting.age(session, 120.0)
    session.turns += 1
    assert desk.due(120.0) == []


def test_nobody_is_old_whose_request_is_under_way(desk):
    session = desk.session("chat", ttl_s=60.0)
    desk.expecting.age(session, 60.0)
    session.requests[("a", "2")] = []
    assert desk.due(60.0) == []


# --- what is learnt of announcements -------------------------------------------------------------------------------


def test_who_always_comes_ten_times_later_is_expected_ten_times_later(desk):
    for now in range(0, 3000, 100):
        desk.back(desk.announce("chat", 10.0, now=float(now)), now + 100.0)
    assert desk.announce("chat", 10.0, now=5000.0).expected_at == pytest.approx(5100.0, rel=0.001)


def test_who_always_comes_ten_times_sooner_is_expected_ten_times_sooner(desk):
    for now in range(0, 3000, 100):
        desk.back(desk.announce("chat", 100.0, now=float(now)), now + 10.0)
    expected_at = desk.announce("chat", 100.0, now=5000.0).expected_at
    assert expected_at is not None and expected_at - 5000.0 == pytest.approx(10.0, rel=0.15)


def test_one_wrong_announcement_is_half_believed(desk):
    desk.back(desk.announce("chat", 10.0), 90.0)
    assert desk.announce("chat", 10.0).expected_at == pytest.approx(30.0), "between the two, as logarithms are"


def test_who_keeps_his_word_is_believed(desk):
    for _ in range(10):
        desk.back(desk.announce("chat", 10.0), 10.0)
    assert desk.announce("chat", 10.0).expected_at == pytest.approx(10.0)


def test_one_source_says_nothing_of_another(desk):
    """A source is a tenant and a tool; sessions of one source are alike."""
    for _ in range(10):
        desk.back(desk.announce("chat", 10.0, tenant=TENANT, tool="search"), 100.0)

    def expected(**source) -> float | None:
        return desk.announce("new", 10.0, **source).expected_at

    assert expected(tenant=TENANT, tool="search") == pytest.approx(80.0, rel=0.4)
    assert expected(tenant=TENANT, tool="shell") == expected(tenant=OTHER_TENANT, tool="search") == expected() == 10.0


def test_who_was_overdue_is_learnt_from_nevertheless(desk):
    session = desk.announce("chat", 10.0)
    desk.due(20.0)
    session.expected_at = None
    desk.back(session, 1000.0)
    assert desk.announce("chat", 10.0).expected_at > 50.0


def test_a_return_without_announcement_teaches_nothing(desk):
    session = desk.session("chat")
    desk.back(session, 1000.0)
    assert desk.announce("chat", 10.0).expected_at == 10.0


def test_an_announcement_that_was_dropped_teaches_nothing(desk):
    session = desk.announce("chat", 10.0)
    desk.expecting.drop(session)
    desk.back(session, 1000.0)
    assert desk.announce("chat", 10.0).expected_at == 10.0


def test_further_sources_than_there_is_room_for_are_believed_literally(desk, monkeypatch):
    monkeypatch.setattr(expecting_module, "SOURCES_MAX", 2)
    for tool in ("one", "two", "three"):
        for _ in range(5):
            desk.back(desk.announce(tool, 10.0, tool=tool), 100.0)
    expected = [desk.announce("new", 10.0, tool=tool).expected_at for tool in ("one", "two", "three")]
    assert expected[0] == expected[1] > 20.0 and expected[2] == 10.0


@given(st.lists(st.tuples(st.floats(1e-3, 86_400.0), st.floats(0, 1e7)), max_size=30))
def test_whatever_is_announced_the_correction_is_bounded(returns):
    desk = Desk()
    for said_s, real_s in returns:
        desk.back(desk.announce("chat", said_s), real_s)
    expected_at = desk.announce("chat", 100.0).expected_at
    assert expected_at is not None and 100.0 / RATIO_MAX * 0.999 <= expected_at <= 100.0 * RATIO_MAX * 1.001


# --- bounds ------------------------------------------------------------------------------------------------------


def test_what_is_to_be_looked_at_does_not_grow_with_the_turns_of_a_session(desk):
    for turn in range(20_000):
        session = desk.announce("chat", 86_400.0, now=float(turn), ttl_s=604_800.0)
        desk.expecting.age(session, turn + 604_800.0)
        desk.due(float(turn))
        desk.expecting.sweep(lambda session: True, 1)
    assert len(desk.expecting._wakes) <= 2000
    assert desk.due(19_999.0 + 86_400.0) == [("near", "chat")], "the last one counts"
