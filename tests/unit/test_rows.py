"""Runs of rows: what is handed out again, and when there are new ones."""

from kvtier.rows import Rows


def test_a_run_that_was_given_back_is_taken_by_whoever_needs_as_many_or_fewer():
    rows = Rows()
    assert [rows.take(8), rows.take(16)] == [(0, 8), (8, 16)]
    rows.give_back(0, 8)
    rows.give_back(8, 16)
    assert rows.take(7) == (0, 8), "the shortest that is long enough"
    assert rows.take(7) == (8, 16)
    assert (rows.take(7), rows.end) == ((24, 7), 31)


def test_runs_that_are_too_short_stay_for_others():
    rows = Rows()
    rows.give_back(*rows.take(4))
    assert (rows.take(5), rows.take(4), rows.end) == ((4, 5), (0, 4), 9)


def test_however_lengths_drift_there_are_no_more_rows_than_the_longest_runs_took():
    rows, runs = Rows(), []
    for length in (*range(40, 20, -1), *range(20, 41)):
        for first, kept in runs:
            rows.give_back(first, kept)
        runs = [rows.take(length) for _ in range(10)]
    assert rows.end == 400
