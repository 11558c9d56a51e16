"""Do no harm: a tier that costs more than it saves is turned off, and comes back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.guard import JUDGED_S, LOADS_MIN, PROBE_EVERY_S, Guard

at_leisure = settings(deadline=None)  # the machine may be busy

WITHOUT_S = 1.0  # what is predicted for doing without loads


def loads(guard: Guard, took_s: float, begin: float = 0.0, seconds: float = 65.0, per_s: float = 2.0) -> float:
    """So many requests that load from the tier while they may; the time afterwards."""
    for i in range(int(seconds * per_s)):
        now = begin + i / per_s
        if guard.is_on("nvme", now):
            guard.note_loaded("nvme", took_s, WITHOUT_S, now)
    return begin + seconds


def test_a_tier_that_nobody_judged_is_on():
    assert Guard(0.01).is_on("nvme", 0.0)


def test_a_tier_that_saves_stays_on():
    guard = Guard(0.01)
    loads(guard, 0.5, seconds=600)
    assert guard.is_on("nvme", 601.0)
    assert guard.changes() == []


def test_a_tier_that_cost_more_than_it_saved_for_a_minute_goes_off_and_says_so_once():
    guard = Guard(0.01)
    now = loads(guard, 1.5)
    assert not guard.is_on("nvme", now)
    [(tier, on, saved_s)] = guard.changes()
    assert (tier, on) == ("nvme", False) and saved_s < 0
    assert guard.changes() == []


def test_less_than_a_minute_is_not_enough():
    guard = Guard(0.01)
    now = loads(guard, 0.5, seconds=20)
    now = loads(guard, 1.5, begin=now + 600, seconds=JUDGED_S - 10, per_s=10)
    assert guard.changes() == []


def test_few_loads_are_not_enough():
    guard = Guard(0.01)
    loads(guard, 5.0, seconds=600, per_s=(LOADS_MIN - 4) / JUDGED_S)
    assert guard.changes() == []


def test_one_request_that_hung_does_not_speak_for_a_minute():
    guard = Guard(0.01)
    loads(guard, 0.5)
    guard.note_loaded("nvme", 3600.0, WITHOUT_S, 70.0)
    loads(guard, 0.5, begin=70.5)
    assert guard.changes() == []


def test_what_is_off_is_probed_now_and_then_and_comes_back_when_it_saves_again():
    guard = Guard(0.01)
    now = loads(guard, 1.5)
    guard.changes()
    probed = [t for t in range(int(now), int(now) + 100) if guard.is_on("nvme", float(t))]
    assert 3 <= len(probed) <= 100 / PROBE_EVERY_S
    now = loads(guard, 0.5, begin=now + 100)
    assert guard.is_on("nvme", now)
    assert [(tier, on) for tier, on, _ in guard.changes()] == [("nvme", True)]


def test_probes_that_lose_leave_it_off():
    guard = Guard(0.01)
    now = loads(guard, 1.5)
    guard.changes()
    now = loads(guard, 1.5, begin=now, seconds=1000)
    assert guard.changes() == []
    assert guard.snapshot()["tiers"]["nvme"]["on"] is False


def test_one_tier_does_not_answer_for_another():
    guard = Guard(0.01)
    now = loads(guard, 1.5)
    assert guard.is_on("cpu", now) and not guard.is_on("nvme", now)


def test_held_out_requests_are_the_yardstick_of_the_prediction():
    """Doing without takes twice what is predicted: a load that takes 1.5 times that is still a saving."""
    guard = Guard(0.01)
    for i in range(20):
        guard.note_held_out(2 * WITHOUT_S, WITHOUT_S, float(i))
    assert guard.yardstick == pytest.approx(2.0)
    loads(guard, 1.5, begin=20.0, seconds=300)
    assert guard.changes() == []


def test_a_prediction_that_flatters_the_tier_is_seen_through():
    """Doing without takes half of what is predicted: a load that takes three quarters of that is a loss."""
    guard = Guard(0.01)
    for i in range(20):
        guard.note_held_out(0.5 * WITHOUT_S, WITHOUT_S, float(i))
    loads(guard, 0.75, begin=20.0)
    assert [(tier, on) for tier, on, _ in guard.changes()] == [("nvme", False)]


def test_a_few_held_out_requests_are_no_yardstick():
    guard = Guard(0.01)
    guard.note_held_out(9 * WITHOUT_S, WITHOUT_S, 0.0)
    assert guard.yardstick == 1.0


def test_the_share_that_is_held_out_is_as_configured_and_a_request_stays_what_it_is():
    guard = Guard(0.05)
    names = [f"chatcmpl-{i:08x}-0" for i in range(0, 20_000 * 977, 977)]
    held_out = [name for name in names if guard.is_held_out(name)]
    assert len(held_out) / len(names) == pytest.approx(0.05, rel=0.2)
    assert all(Guard(0.05).is_held_out(name) for name in held_out)


@at_leisure
@given(st.text())
def test_none_or_all_may_be_held_out(name):
    assert not Guard(0.0).is_held_out(name)
    assert Guard(1.0).is_held_out(name)


@at_leisure
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 30)), max_size=60))
def test_whatever_is_noted_it_goes_off_and_on_in_turn(notes):
    guard, now, turns = Guard(0.5), 0.0, []
    for loaded, actual_s, predicted_s, later in notes:
        now += later
        if loaded:
            guard.note_loaded("nvme", actual_s, predicted_s, now)
        else:
            guard.note_held_out(actual_s, predicted_s, now)
        guard.is_on("nvme", now)
        turns += [on for _, on, _ in guard.changes()]
    assert turns == [bool(i % 2) for i in range(len(turns))]
    assert 0.25 <= guard.yardstick <= 4
