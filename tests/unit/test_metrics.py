"""What Prometheus is shown: all that is counted, from the start, under names that it takes and labels that stay few."""

import re
from math import inf

import pytest

from kvtier.deciding import Decisions
from kvtier.ghosts import Ghosts
from kvtier.metrics import FAMILIES, exposition, rows
from kvtier.metrics.counters import ALONE
from kvtier.stats import BUCKETS_S, COUNTERS, DURATIONS, Stats

SAMPLE = re.compile(r'(?P<name>[a-z_]+)(?:\{(?P<labels>[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*)\})? (?P<value>\S+)')
LABELS = {"tier", "result", "src", "dst", "choice", "reason", "operation", "role", "state", "le", "version"}


def snapshot(stats: Stats | None = None, **more: object) -> dict:
    """Of a kvtierd that has just begun and has no tier but RAM."""
    stats = stats or Stats()
    cpu = {"capacity_bytes": 1000, "used_bytes": 10, "lent_bytes": 0, "leased_bytes": 0, "blocks": 0, "hit_tokens": 0}
    process = {"cpu_s": 0.1, "resident_bytes": 1, "open_fds": 9, "max_fds": 99, "started_s": 1.5}
    return {
        "version": "0.1.0",
        "uptime_s": 0.5,
        "arena": {"huge_bytes": 0, "pinned": True, "notes": []},
        "tiers": {"cpu": cpu},
        "engines": [],
        "clients": [],
        "decisions": Decisions(Ghosts(), stats).snapshot(),
        "retention": {"sessions": {"active": 0}, "pinned_bytes": 0, "pin_quota_bytes": 250},
        "counters": stats.snapshot(),
        "durations": stats.durations(),
        "process": process,
        **more,
    }


def samples(state: dict) -> dict[tuple[str, str], float]:
    """By name and labels."""
    found = {}
    for line in exposition(state).splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            key = match["name"], match["labels"] or ""
            assert key not in found, line
            found[key] = float(match["value"])
    return found


@pytest.mark.parametrize("name", COUNTERS)
def test_every_counter_changes_a_series_and_no_series_falls(name):
    stats = Stats()
    stats.add("lookup_keys", 100)  # of which others are a part
    before = samples(snapshot(stats))
    stats.add(name)
    after = samples(snapshot(stats))
    changed = {key: after[key] - before[key] for key in after if after[key] != before[key]}
    if name not in ("found_keys", "found_below_keys"):  # counted with lookup_keys, of which they are a part
        assert changed
        assert set(changed.values()) == {1.0}, changed
    assert sum(changed.values()) != 0 or len(changed) > 1


def test_a_lookup_never_makes_a_series_fall():
    stats = Stats()
    before = samples(snapshot(stats))
    for keys, found, below in ((4, 4, 0), (4, 1, 3), (4, 1, 1), (4, 0, 0)):
        stats.add("lookup_keys", keys)
        stats.add("found_keys", found)
        stats.add("found_below_keys", below)
        after = samples(snapshot(stats))
        assert all(after[key] >= before[key] for key in after)
        before = after
    asked = {labels: n for (name, labels), n in before.items() if name == "kvtier_lookups_total"}
    assert asked['tier="cpu",result="hit"'] + asked['tier="cpu",result="miss"'] == 16
    assert asked['tier="nvme",result="hit"'] == 4
    assert asked['tier="nvme",result="miss"'] == 6


def test_a_counter_that_no_family_groups_has_one_of_its_own():
    grouped = frozenset[str]().union(*(family.counters for family in FAMILIES))
    assert grouped == set(COUNTERS)
    assert "kvtier_hints_ignored_total" in {family.name for family in ALONE}
    assert "kvtier_saved_bytes_total" not in {family.name for family in ALONE}


@pytest.mark.parametrize("name", DURATIONS)
def test_every_duration_changes_a_histogram(name):
    stats = Stats()
    before = samples(snapshot(stats))
    stats.observe(name, 0.3)
    after = samples(snapshot(stats))
    changed = {key for key in after if after[key] != before[key]}
    assert {key[0].rsplit("_", 1)[1] for key in changed} == {"bucket", "sum", "count"}
    bounds = {re.search(r'le="([^"]*)"', labels)[1] for series, labels in changed if series.endswith("_bucket")}
    assert {float(bound) for bound in bounds} == {bound for bound in (*BUCKETS_S, inf) if bound >= 0.3}


def test_all_series_are_there_from_the_start():
    at_start = set(samples(snapshot()))
    stats = Stats()
    for name in COUNTERS:
        stats.add(name, 1000)
    for name in DURATIONS:
        stats.observe(name, 1.0)
    nvme = {"capacity_bytes": 5, "used_bytes": 4, "blocks": 3, "candidates": 2, "days_of_life": 2.0, "read_only": True}
    remote = {"known_there": 7, "breaker": "open"}
    engine = {"engine": "some-engine", "leases": 2, "unpinned_bytes": 5}
    later = snapshot(stats, engines=[engine], clients=[{"role": "worker", "engine": "some-engine"}])
    later["tiers"] |= {"nvme": nvme, "remote": remote}
    assert set(samples(later)) == at_start
    assert "some-engine" not in exposition(later)


def test_what_a_snapshot_says_stands_there():
    state = snapshot()
    state["tiers"] |= {"nvme": {"days_of_life": 2.0, "read_only": True}, "remote": {"breaker": "half-open"}}
    state["decisions"]["guard"]["tiers"] = {"nvme": {"on": False}}
    state["clients"] = [{"role": "worker"}, {"role": "worker"}, {"role": "observer"}]
    state["engines"] = [{"leases": 2, "unpinned_bytes": 5}, {"leases": 1, "unpinned_bytes": 0}]
    seen = samples(state)
    assert seen["kvtier_build_info", 'version="0.1.0"'] == 1
    assert seen["kvtier_pinned_bytes", ""] == 1000
    assert seen["kvtier_drive_life_seconds", ""] == 2 * 86_400
    assert seen["kvtier_tier_read_only", 'tier="nvme"'] == 1
    assert seen["kvtier_breaker_state", 'tier="remote"'] == 1
    assert seen["kvtier_tier_on", 'tier="nvme"'] == 0
    assert seen["kvtier_tier_on", 'tier="cpu"'] == 1
    assert seen["kvtier_clients", 'role="worker"'] == 2
    assert seen["kvtier_leases", ""] == 3
    assert seen["kvtier_engine_unpinned_bytes", ""] == 5
    assert seen["kvtier_engine_connected", ""] == 2


def test_the_codec_in_use_stands_there_with_its_ratio_and_its_speeds():
    done = {"ratio": 1.31, "encode_bytes_per_s": 9, "decode_bytes_per_s": 15}
    state = snapshot()
    state["tiers"]["nvme"] = {
        "block_bytes": 131,
        "coding": {"codec": "int8:bf16:64", "codecs": {"int8": done, "exp12": {}}},
    }
    state["tiers"]["remote"] = {"coding": {"codec": "none", "codecs": {"exp12": done}}}
    seen = samples(state)
    assert seen["kvtier_tier_block_bytes", 'tier="nvme"'] == 131
    ratios = [seen["kvtier_codec_ratio", f'tier="{tier}"'] for tier in ("nvme", "remote")]
    assert ratios == [1.31, 1]
    speeds = [seen["kvtier_codec_bytes_per_second", f'tier="nvme",operation="{way}code"'] for way in ("en", "de")]
    assert speeds == [9, 15] and seen["kvtier_codec_bytes_per_second", 'tier="remote",operation="encode"'] == 0


def test_drives_that_are_not_written_to_last_for_ever():
    assert samples(snapshot())["kvtier_drive_life_seconds", ""] == inf


def test_labels_are_few_and_of_our_words():
    for family in FAMILIES:
        assert set(family.labels) <= LABELS, family.name
    values = {value for _, labels in samples(snapshot()) for value in re.findall(r'"([^"]*)"', labels)}
    assert all(re.fullmatch(r"[a-z_]+|[0-9.]+|\+Inf", value) for value in values), values


def test_names_are_as_prometheus_wants_them():
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert re.fullmatch(r"(kvtier|process)_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.meaning and "\n" not in family.meaning, family.name
        assert family.source, family.name


def test_the_documentation_gets_a_row_of_each_family():
    assert len(rows()) == len(FAMILIES)
    row = next(row for row in rows() if row.name == "kvtier_evictions_total")
    assert (row.kind, row.labels) == ("counter", "tier, reason")
    assert "evicted_blocks" in row.source


def test_large_numbers_are_exact():
    stats = Stats()
    stats.add("saved_bytes", 2**60 + 1)
    assert f'kvtier_transfer_bytes_total{{src="engine",dst="cpu"}} {2**60 + 1}\n' in exposition(snapshot(stats))
