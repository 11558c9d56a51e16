"""What a kvtierd takes of a machine while nobody asks it anything. Figures: benchmarks/bench_footprint.py."""

import time
from pathlib import Path

from kvtierd import KVTierd, eventually

from kvtier.beat import OFTEN_S, RESTLESS_S, SELDOM_S

QUIET_S = 4.0
BESIDE_ARENA_MB_MAX = 80


def looks(daemon: KVTierd) -> int:
    """At the clock, so far. The question itself makes them frequent for a while."""
    return sum(daemon.snapshot()["durations"]["tick"]["counts"])


def test_where_nothing_happens_it_looks_at_the_clock_seldom(kvtierd):
    before, began = looks(kvtierd), time.monotonic()
    time.sleep(QUIET_S)
    after, took_s = looks(kvtierd), time.monotonic() - began
    assert after > before
    assert after - before < (RESTLESS_S + OFTEN_S) / OFTEN_S + (took_s - RESTLESS_S) / SELDOM_S + 10


def test_its_memory_beside_the_arena_is_small(kvtierd):
    kvtierd.snapshot()
    status = Path(f"/proc/{kvtierd.pid}/status").read_text()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Rss")}
    assert (kib["RssAnon"] + kib["RssFile"]) / 1024 < BESIDE_ARENA_MB_MAX  # the arena is RssShmem


def test_an_idle_daemon_answers_and_goes_on(kvtierd):
    time.sleep(RESTLESS_S + 2 * OFTEN_S)
    first = looks(kvtierd)
    eventually(lambda: looks(kvtierd) > first + 1)
