"""Counters: declared once, only ever growing."""

import pytest

from kvtier.stats import COUNTERS, REPORTED, Stats


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
