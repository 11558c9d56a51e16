"""Returns: what a category begins with, what it learns, and what its sessions are worth."""

from math import exp, log
from random import Random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import returns as returns_module
from kvtier.returns import BINS, CATEGORIES_MAX, OTHERS, Returns, bin_of, lognormal_hazard

SESSIONS = 4096
TOOL = (0.9, 3.0, 1.2)


@pytest.fixture
def returns() -> Returns:
    return Returns(SESSIONS)


def live(returns: Returns, category: int, gaps: list[float], gone: int = 0, at: float = 0.0) -> None:
    """Sessions are away for these gaps and come back; so many others don't, for a day."""
    for session, gap in enumerate(gaps):
        returns.went(session, category, at)
        returns.came(session, at + gap)
    for session in range(len(gaps), len(gaps) + gone):
        returns.went(session, category, at - 86_000.0)


def chatting(share: float) -> float:
    """The gap that so many of those who chat don't exceed."""
    return 123.0 * exp(1.05 * NormalDist().inv_cdf(share))


def brute_index(hazard: np.ndarray, first: int) -> float:
    """The most returns a second of keeping, over all times until which one might keep."""
    widths = np.diff(BINS, append=BINS[-1] * 2)
    best = came = kept = 0.0
    stay = 1.0
    for at in range(first, len(hazard)):
        comes = stay * hazard[at]
        came += comes
        kept += widths[at] * (stay - comes / 2)
        stay -= comes
        best = max(best, came / kept)
    return best


# --- bins ----------------------------------------------------------------------------------------------------


def test_bins_begin_at_none_and_half_a_second_and_end_after_a_day():
    assert [bin_of(age) for age in (0.0, 0.49, 0.5, 1e9)] == [0, 0, 1, len(BINS) - 1]
    assert BINS[-1] == pytest.approx(86_400.0)


def test_a_bin_begins_where_the_table_says():
    assert [bin_of(age) for age in BINS.tolist()] == list(range(len(BINS)))


@given(st.floats(0, 1e6))
def test_a_bin_is_the_last_that_began(age):
    assert BINS[bin_of(age)] <= age * (1 + 1e-9)
    assert bin_of(age) == len(BINS) - 1 or age < BINS[bin_of(age) + 1]


def test_a_clock_that_goes_back_is_no_age(returns):
    assert bin_of(-1.0) == 0
    assert returns.index(OTHERS, -1.0) == returns.index(OTHERS, 0.0)


# --- what a category begins with ---------------------------------------------------------------------------------


def test_people_who_chat_return_with_45_percent_after_two_minutes(returns):
    turn = returns.category("turn 1")
    assert returns.chance(turn, 0.0) == pytest.approx(0.45, abs=0.01)
    assert returns.after(turn, 0.0) == pytest.approx(123.0, rel=0.15)


def test_a_prior_of_its_own_is_what_it_says(returns):
    tool = returns.category("tool search", TOOL)
    assert returns.chance(tool, 0.0) == pytest.approx(0.9, abs=0.01)
    assert returns.after(tool, 0.0) == pytest.approx(3.0, rel=0.25)
    assert returns.index(tool, 0.0) > 10 * returns.index(OTHERS, 0.0)


@given(st.floats(0.01, 0.95), st.floats(1.0, 10_000.0), st.floats(0.3, 2.0))
def test_a_hazard_made_of_chance_median_and_spread_has_them(chance, median_s, spread):
    hazard = lognormal_hazard(chance, median_s, spread)
    assert ((hazard >= 0) & (hazard <= 0.9)).all()
    assert 1 - np.prod(1 - hazard) <= chance + 1e-9
    by_median = 1 - np.prod(1 - hazard[: bin_of(median_s)])
    assert by_median <= chance / 2 + 1e-9


def test_the_longer_someone_is_away_the_less_likely_he_returns(returns):
    chances = [returns.chance(OTHERS, age) for age in (0.0, 100.0, 1000.0, 10_000.0)]
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.02


def test_a_chance_within_some_time_grows_to_that_of_ever(returns):
    chances = [returns.chance(OTHERS, 10.0, within) for within in (0.0, 60.0, 600.0, 1e9)]
    assert chances == sorted(chances)
    assert chances[-1] == returns.chance(OTHERS, 10.0)


def test_nobody_knows_when_one_returns_who_hardly_ever_does(returns):
    assert returns.after(OTHERS, 80_000.0) is None
    assert returns.after(returns.category("never", (0.001, 10.0, 1.0)), 0.0) is None


def test_most_of_those_that_return_take_longer_than_half_of_them(returns):
    half, most = returns.after(OTHERS, 0.0), returns.after(OTHERS, 0.0, 0.9)
    assert half is not None and most is not None and 100 < half < most < 2000


# --- which categories there are ----------------------------------------------------------------------------------


def test_a_category_is_known_by_its_name(returns):
    assert returns.category("turn 1") == returns.category("turn 1") == 1
    assert returns.names[returns.category("turn 2")] == "turn 2"


def test_what_there_is_no_room_for_is_among_the_others(returns):
    numbers = [returns.category(f"turn {n}") for n in range(CATEGORIES_MAX + 5)]
    assert numbers[: CATEGORIES_MAX - 1] == list(range(1, CATEGORIES_MAX))
    assert numbers[CATEGORIES_MAX - 1 :] == [OTHERS] * 6
    assert returns.category("turn 3") == 4, "those that had one keep it"


# --- what it learns ------------------------------------------------------------------------------------------------


def test_nothing_seen_changes_nothing(returns):
    before = returns.hazard.copy()
    returns.learn(0.0)
    assert np.allclose(returns.hazard, before)


def test_a_few_returns_say_little_beside_many_of_others_and_many_say_all(returns):
    chat, turn = returns.category("turn 1"), returns.category("turn 2")
    live(returns, chat, [chatting(n / 900) for n in range(1, 900)], gone=1100, at=86_400.0)
    returns.learn(90_000.0)
    before = returns.chance(turn, 0.0)
    assert before == pytest.approx(0.45, abs=0.05)
    live(returns, turn, [10.0] * 3, at=90_000.0)
    returns.learn(90_010.0)
    assert before < returns.chance(turn, 0.0) < 0.9
    live(returns, turn, [10.0] * 2000, at=90_000.0)
    returns.learn(90_010.0)
    assert returns.chance(turn, 0.0) > 0.95
    assert returns.after(turn, 0.0) == pytest.approx(10.0, rel=0.3)


def test_those_who_stay_away_make_a_return_unlikely(returns):
    turn = returns.category("turn 1")
    live(returns, turn, [100.0] * 100, gone=1900, at=86_400.0)
    returns.learn(86_500.0)
    assert returns.chance(turn, 0.0) == pytest.approx(0.05, abs=0.02)


def test_those_who_have_just_left_say_nothing_yet(returns):
    turn = returns.category("turn 1")
    for session in range(2000):
        returns.went(session, turn, 0.0)
    returns.learn(0.4)
    assert returns.chance(turn, 0.0) == pytest.approx(0.45, abs=0.03)


@pytest.mark.parametrize("how", ["lost", "ended"])
def test_who_is_not_followed_any_more_does_not_bias_what_is_learnt(returns, how):
    """Half of all are dropped from sight after 5 s, for no reason; of those that are seen longer 60 % return at 100 s."""
    turn = returns.category("turn 1")
    for session in range(4000):
        returns.went(session, turn, 0.0)
        if session % 2 == 0:
            returns.lost(session, 5.0) if how == "lost" else returns.ended(session)
        elif session % 10 in (1, 3, 5):
            returns.came(session, 100.0)
    returns.learn(80_000.0)
    assert returns.chance(turn, 0.0) == pytest.approx(0.6, abs=0.03)


def test_who_has_not_left_cannot_come_back_or_get_lost(returns):
    returns.came(1, 10.0)
    returns.lost(1, 10.0)
    returns.ended(1)
    returns.learn(10.0)
    assert returns.snapshot() == []


def test_who_came_back_is_followed_no_more(returns):
    turn = returns.category("turn 1")
    returns.went(1, turn, 0.0)
    returns.came(1, 10.0)
    returns.came(1, 20.0)
    (row,) = returns.snapshot()
    assert (row["returns"], row["open"]) == (1.0, 0)


def test_a_category_with_little_of_its_own_takes_after_all_the_others(returns):
    live(returns, returns.category("turn 1"), [8.0] * 2000, at=86_400.0)
    young = returns.category("turn 2")
    returns.learn(86_410.0)
    assert returns.chance(young, 0.0) > 0.8
    assert returns.after(young, 0.0) == pytest.approx(8.0, rel=0.3)


def test_a_category_with_a_prior_of_its_own_does_not_take_after_the_others_nor_they_after_it(returns):
    tool, turn = returns.category("tool search", TOOL), returns.category("turn 1")
    live(returns, turn, [5000.0] * 1000, at=86_400.0)
    returns.learn(86_410.0)
    assert returns.after(tool, 0.0) == pytest.approx(3.0, rel=0.25)
    live(returns, tool, [1.0] * 3000, at=86_400.0)
    returns.learn(86_410.0)
    assert returns.after(turn, 0.0) == pytest.approx(5000.0, rel=0.3)


def test_what_was_seen_fades_by_half_a_day(returns):
    turn = returns.category("turn 1")
    live(returns, turn, [10.0] * 100)
    returns.learn(0.0)
    returns.learn(86_400.0)
    (row,) = returns.snapshot()
    assert row["returns"] == 50.0


def test_what_was_seen_is_told(returns):
    turn = returns.category("turn 1")
    live(returns, turn, [10.0] * 3)
    returns.went(9, turn, 0.0)
    assert returns.snapshot() == [
        {"category": "turn 1", "returns": 3.0, "open": 1, "chance": 0.45,
         "median_s": pytest.approx(123.0, rel=0.15)}
    ]  # fmt: skip


# --- what room is worth ------------------------------------------------------------------------------------------------


def test_the_index_is_the_most_returns_a_second_of_keeping(returns):
    tool = returns.category("tool", TOOL)
    for category in (OTHERS, tool):
        expected = [brute_index(returns.hazard[category], first) for first in range(len(BINS))]
        found = [returns.index(category, float(at) * (1 + 1e-9)) for at in BINS]
        assert found == pytest.approx(expected, rel=1e-6)


def test_every_category_has_the_index_of_its_hazard_with_a_name_or_without(returns):
    tool = returns.category("tool", TOOL)
    live(returns, tool, [1.0, 2.0, 400.0], gone=3)
    for now in (90_000.0, 90_005.0, 90_010.0):  # where nothing happens in between, too
        returns.learn(now)
        whole = returns_module._gittins(returns.hazard)
        assert [returns.index(number, 0.0) for number in range(CATEGORIES_MAX)] == whole[:, 0].tolist()


@given(st.floats(0, 1e6))
@settings(max_examples=50, deadline=None)
def test_between_the_begins_of_two_bins_it_is_in_between(age):
    returns = Returns(8)
    bin_ = bin_of(age)
    ends = [brute_index(returns.hazard[OTHERS], first) for first in (bin_, min(bin_ + 1, len(BINS) - 1))]
    assert min(ends) * (1 - 1e-6) <= returns.index(OTHERS, age) <= max(ends) * (1 + 1e-6)


@given(st.lists(st.floats(0, 0.9), min_size=len(BINS), max_size=len(BINS)))
@settings(max_examples=50, deadline=None)
def test_so_it_is_for_any_hazard(hazard):
    index = returns_module._gittins(np.array([hazard]))
    expected = [brute_index(np.array(hazard), first) for first in range(len(BINS))]
    assert index[0] == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)


def test_the_index_looks_ahead(returns):
    """Nobody returns in the first seconds, and yet the youngest are worth keeping."""
    turn = returns.category("turn 1")
    assert returns.hazard[turn, 0] < 1e-4
    now_alone = returns.hazard[turn, 0] / (BINS[1] - BINS[0])
    assert returns.index(turn, 0.0) > 100 * now_alone
    assert returns.index(turn, 0.0) > returns.index(turn, 600.0) > returns.index(turn, 20_000.0)


SEEN = st.tuples(st.sampled_from(["went", "came", "lost", "ended", "learn"]), st.integers(0, 7), st.floats(0, 5000))


@given(st.lists(SEEN, max_size=60))
@settings(max_examples=100, deadline=None)
def test_whatever_is_seen_hazards_stay_chances(events):
    returns, now = Returns(8), 0.0
    tool = returns.category("tool", TOOL)
    for what, session, later in events:
        now += later
        if what == "went":
            returns.went(session, session % (tool + 1), now)
        elif what in ("came", "lost"):
            getattr(returns, what)(session, now)
        elif what == "ended":
            returns.ended(session)
        else:
            returns.learn(now)
    returns.learn(now)
    assert ((returns.hazard >= 0) & (returns.hazard <= 0.9)).all()
    assert all(0 <= returns.chance(category, age) <= 1 for category in (OTHERS, tool) for age in (0.0, 50.0, 1e6))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 0.9), st.floats(5.0, 2000.0), st.integers(0, 99))
def test_a_category_with_many_returns_learns_how_many_and_when(chance, median_s, seed):
    returns, n, random = Returns(SESSIONS), 3000, Random(seed)
    turn = returns.category("turn 1")
    for session in range(n):
        returns.went(session, turn, 0.0)
    for session in range(n):
        if random.random() < chance:
            returns.came(session, median_s * exp(random.gauss(0.0, 0.5)))
    returns.learn(80_000.0)
    assert returns.chance(turn, 0.0) == pytest.approx(chance, abs=0.05)
    after = returns.after(turn, 0.0)
    assert after is not None and abs(log(after / median_s)) < 0.35
