"""The soak's judgement: what grows is found, what only goes up and down is not."""

import random

import pytest
from soak.slope import medians, slope_of


def noisy(per_hour: float, seed: int, seconds: int = 180) -> list[tuple[float, float]]:
    """A sample a second, with peaks as of a process that works."""
    chance = random.Random(seed)
    return [(float(at), 100 + at * per_hour / 3600 + chance.expovariate(5)) for at in range(seconds)]


def test_a_straight_line_has_its_slope_and_no_doubt():
    slope = slope_of([(10.0 * n, 5 + n * 2.0) for n in range(12)])
    assert slope == pytest.approx((720.0, 720.0, 720.0))


def test_what_stays_has_no_slope_whatever_peaks_there_are():
    for seed in range(20):
        slope = slope_of(medians(noisy(0.0, seed), 10))
        assert slope.low < 1.0 and abs(slope.per_hour) < 4


def test_what_grows_is_found():
    for seed in range(20):
        slope = slope_of(medians(noisy(30.0, seed), 10))
        assert slope.low > 1.0 and slope.per_hour == pytest.approx(30, rel=0.25)


def test_in_nineteen_of_twenty_the_bounds_hold_the_slope():
    inside = [slope.low <= 10 <= slope.high for seed in range(200) for slope in [slope_of(medians(noisy(10.0, seed), 10))]]
    assert sum(inside) >= 180


def test_a_window_is_its_middle_and_its_median():
    assert medians([(100, 5), (101, 9), (104, 7), (111, 1), (119, 3)], 10) == [(105.0, 7), (115.0, 2)]
