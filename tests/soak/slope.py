"""Whether something grows: the slope of noisy samples, and between which bounds it lies. No I/O.

Samples are first made into medians of short windows, for a process's memory goes up and down with what it does just then.
Of all pairs of those the slopes are taken; their median is the slope (Theil and Sen), and how many pairs lie around it is
known from Kendall's test: no outlier moves it, and no shape of the noise is asked for. But noise is taken for independent:
memory that is taken once and kept looks like a slope, the more so the shorter one looks.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

Z_95 = 1.96


class Slope(NamedTuple):
    per_hour: float
    low: float  # with 95 % confidence
    high: float


def medians(samples: Sequence[tuple[float, float]], window_s: float) -> list[tuple[float, float]]:
    """One sample a window: its middle, the median of what was seen."""
    first = samples[0][0]
    windows = itertools.groupby(samples, key=lambda sample: (sample[0] - first) // window_s)
    return [(first + (n + 0.5) * window_s, statistics.median(value for _, value in seen)) for n, seen in windows]


def slope_of(samples: Sequence[tuple[float, float]]) -> Slope:
    """Of (seconds, value); for ten and more."""
    n = len(samples)
    steps = sorted((b[1] - a[1]) / (b[0] - a[0]) * 3600 for a, b in itertools.combinations(samples, 2) if b[0] > a[0])
    width = Z_95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((len(steps) - width) / 2))
    high = min(len(steps) - 1, math.ceil((len(steps) + width) / 2))
    return Slope(statistics.median(steps), steps[low], steps[high])
