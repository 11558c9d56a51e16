"""Counters and durations: declared once, only ever growing."""

import pytest

from kvtier.stats import BUCKETS_S, COUNTERS, DURATIONS, REPORTED, Stats


def test_every_counter_begins_at_nothing():
    assert Stats().snapshot() == dict.fromkeys(COUNTERS, 0)


def test_counts_add_up():
    stats = Stats()
    stats.add("lookups")
    stats.add("lookups", 2)
    stats.add("lookups", 0)
    assert stats["lookups"] == 3


def test_a_snapshot_does_not_change_later():
    stats = Stats()
    before = stats.snapshot()
    stats.add("lookups")
    assert before["lookups"] == 0


def test_a_counter_that_is_not_declared_and_one_that_would_fall_are_programmer_errors():
    with pytest.raises(KeyError):
        Stats().add("lookup")
    with pytest.raises(AssertionError):
        Stats().add("lookups", -1)


def test_every_counter_says_in_one_line_what_it_counts():
    assert all(meaning and "\n" not in meaning for meaning in COUNTERS.values())


def test_a_connector_reports_only_what_the_daemon_can_not_see():
    assert set(COUNTERS) > REPORTED
    assert {"skipped_no_slot", "failed_loads", "lookups_late", "connector_faults"} <= REPORTED
    assert REPORTED.isdisjoint({"lookups", "saved_blocks", "loaded_tokens", "engines_gone", "clients_joined"})


def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed():
    stats = Stats()
    for seconds in (0.0, BUCKETS_S[0], BUCKETS_S[3], BUCKETS_S[3] * 1.01, 10 * BUCKETS_S[-1]):
        stats.observe("load", seconds)
    took = stats.durations()["load"]
    assert {i: n for i, n in enumerate(took["counts"]) if n} == {0: 2, 3: 1, 4: 1, len(BUCKETS_S): 1}
    assert took["sum_s"] == pytest.approx(BUCKETS_S[0] + 2.01 * BUCKETS_S[3] + 10 * BUCKETS_S[-1], abs=1e-5)
    assert sum(stats.durations()["answer"]["counts"]) == 0


def test_a_clock_that_stands_still_makes_no_duration_negative():
    stats = Stats()
    stats.observe("load", -0.001)
    assert (stats.durations()["load"]["counts"][0], stats.durations()["load"]["sum_s"]) == (1, 0.0)


def test_durations_are_declared_with_what_they_are():
    assert all(meaning and "\n" not in meaning for meaning in DURATIONS.values())
    assert list(BUCKETS_S) == sorted(set(BUCKETS_S))
    with pytest.raises(KeyError):
        Stats().observe("lode", 1.0)
