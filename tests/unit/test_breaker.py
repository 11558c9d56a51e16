"""The breaker: what opens it, what closes it, and what it counts as silence."""

import pytest

from kvtier.tiers.remote.breaker import Breaker, State


def fail(breaker: Breaker, now: float, n: int = 1) -> None:
    for _ in range(n):
        breaker.begun(now)
        breaker.ended(now, "reset")


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(failures_max=3, silent_s=2.0, probe_every_s=4.0)


@pytest.fixture
def open_(breaker) -> Breaker:
    """Since 10.0."""
    fail(breaker, 10.0, 3)
    return breaker


def test_the_third_failure_in_a_row_opens_it(breaker):
    fail(breaker, 1.0, 2)
    assert breaker.is_closed
    fail(breaker, 1.0)
    assert breaker.state is State.OPEN and breaker.opened == 1
    assert breaker.snapshot(1.5) == {
        "breaker": "open",
        "breaker_opened": 1,
        "breaker_seconds": 0.5,
        "breaker_reason": "3 failures in a row: reset",
    }


def test_an_answer_begins_the_row_anew(breaker):
    for _ in range(10):
        fail(breaker, 1.0, 2)
        breaker.begun(1.0)
        breaker.ended(1.0)
    assert breaker.is_closed


def test_two_seconds_without_an_answer_open_it(breaker):
    breaker.begun(5.0)
    assert breaker.silent_at(5.5) == 7.0
    breaker.check(6.99)
    assert breaker.is_closed
    breaker.check(7.0)
    assert breaker.state is State.OPEN and breaker.reason == "no answer for 2.0 s"


def test_a_call_that_never_asked_is_neither_an_answer_nor_a_failure(breaker):
    fail(breaker, 1.0, 2)
    breaker.begun(1.0)
    breaker.begun(1.0)
    breaker.never_asked(2.5)
    assert breaker.silent_at(2.5) == 3.0, "the other one waits as before"
    breaker.never_asked(2.6)
    assert breaker.is_closed and breaker.silent_at(2.6) == float("inf")
    fail(breaker, 3.0)
    assert breaker.state is State.OPEN


def test_an_answer_to_any_call_ends_the_silence(breaker):
    breaker.begun(5.0)
    breaker.begun(5.0)
    breaker.ended(6.5)
    assert breaker.silent_at(6.5) == 8.5
    breaker.check(8.0)
    assert breaker.is_closed


def test_time_without_a_call_is_no_silence(breaker):
    breaker.begun(0.0)
    breaker.ended(1.0, "timeout")
    assert breaker.silent_at(1.0) == float("inf")
    breaker.check(1000.0)
    assert breaker.is_closed
    breaker.begun(1000.0)
    assert breaker.silent_at(1000.0) == 1001.0


def test_short_deadlines_in_a_row_are_one_silence(breaker):
    """1.2 s twice, one after another: there are no three failures, and more than 2 s."""
    breaker.begun(0.0)
    breaker.ended(1.2, "timeout")
    breaker.begun(50.0)
    breaker.ended(51.2, "timeout")
    assert breaker.state is State.OPEN


def test_a_probe_each_four_seconds_and_a_good_one_closes_it(open_):
    assert open_.probe_at == 14.0
    open_.probe(14.0)
    assert open_.state is State.HALF_OPEN and open_.probe_at == float("inf") and not open_.is_closed
    open_.probed(15.0, "refused")
    assert open_.state is State.OPEN and open_.probe_at == 18.0, "four seconds from its begin"
    assert open_.reason == "refused"
    open_.probe(18.0)
    open_.probed(18.1)
    assert open_.is_closed and open_.probe_at == float("inf")


def test_what_was_begun_before_says_nothing_when_it_is_open(breaker):
    for _ in range(5):
        breaker.begun(0.0)
    for _ in range(3):
        breaker.ended(1.0, "reset")
    breaker.ended(1.1)
    assert breaker.state is State.OPEN
    breaker.ended(1.2, "reset")
    assert breaker.opened == 1 and breaker.probe_at == 5.0


def test_after_it_closed_failures_and_silence_are_counted_from_nothing(open_):
    open_.probe(14.0)
    open_.probed(14.0)
    fail(open_, 14.0, 2)
    assert open_.is_closed
    open_.begun(14.0)
    assert open_.silent_at(14.0) == 16.0


def test_flapping_once_a_second_opens_it_within_bounds_and_closes_it_at_a_good_moment(breaker):
    """Half a second up, half a second down; a call each 50 ms."""
    opened_at, closed_at, now = [], [], 0.0
    for step in range(4000):
        now, is_up = step / 20, step % 20 < 10
        was_closed = breaker.is_closed
        if was_closed:
            breaker.begun(now)
            breaker.ended(now, "" if is_up else "reset")
        elif now >= breaker.probe_at:
            breaker.probe(now)
            breaker.probed(now, "" if is_up else "reset")
        if was_closed != breaker.is_closed:
            (opened_at if was_closed else closed_at).append(now)
    assert all(at % 1 == pytest.approx(0.6) for at in opened_at), "at the third failure"
    assert not closed_at, "each probe, four seconds after the begin of the last, meets the same half"
    assert breaker.opened == 1
