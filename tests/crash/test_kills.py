"""kill -9 at random moments and at every named point, under load: nothing wrong is served, nothing acknowledged is lost.

`series.py` says what a seed means; to see a failure again, run the test of its seed.
"""

import random
from collections.abc import Iterator

import pytest
from series import AFTER_FLUSH, RANDOM, REACHED, Series, Tally

SERIES, KILLS, HITS = 10, 200, 5


@pytest.fixture(scope="module")
def tally() -> Iterator[Tally]:
    yield Tally()


def test_each_point_once_and_a_few_moments(tmp_path):
    """Small drives, so that all points can be reached."""
    tally = Tally()
    series = Series(tmp_path, 1, tally)
    series.run([*series.points(), RANDOM])
    print(tally)
    assert set(tally.kills) == {*REACHED, RANDOM}
    assert not tally.wrong
    assert tally.acknowledged > 0


def test_what_was_acknowledged_survives(tmp_path):
    """Drives with room for all."""
    tally = Tally()
    Series(tmp_path, 2, tally).run([AFTER_FLUSH, RANDOM, AFTER_FLUSH, RANDOM])
    print(tally)
    assert not tally.wrong and not tally.lost
    assert tally.acknowledged > 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(SERIES))
def test_a_series(seed, tmp_path, tally):
    series = Series(tmp_path, seed, tally)
    points = series.points()
    more = [AFTER_FLUSH] * 3
    more += [RANDOM] * (KILLS // SERIES - len(points) - len(more))
    later = points[1:] + more  # the first is only reached in a new folder
    series.run(points[:1] + random.Random(seed).sample(later, len(later)))


@pytest.mark.long
def test_of_all_series_together(tally):
    print(tally)
    if len(tally.ready_s) == 0:
        pytest.skip("the series did not run")
    assert tally.kills.total() >= KILLS
    assert min(tally.kills[point] for point in REACHED) >= HITS
    assert not tally.wrong and not tally.lost
    assert tally.acknowledged > KILLS
