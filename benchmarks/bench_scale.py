"""How does kvtierd carry 1 million blocks, and 10: memory, restart, lookups, many engines at once, pauses?

    python benchmarks/bench_scale.py            tables
    python benchmarks/bench_scale.py --json     one JSON object
    ... --quick                                 1 million blocks only

For each number of blocks a store of drives is made as a former kvtierd left it (scale_store.py), and kvtierd is started
on it, once for lookups and once for pauses:

    restart    from the start of the process to the answer to an engine's first lookup
    memory     Rss of all mappings but the arena's, above that of a kvtierd whose drives are as large and empty; a block
    lookup     16 to 4,096 keys of a random conversation, all on the drives, in random order of sizes, with pings between:
               the request behind it is new, so a session begins, and the choice between loading and computing is made
    clients    1 to 64 engines at once, each in a process, that ask for 256 keys one request after the other
    pauses     while two engines save and load conversations, so that blocks are written and read, evicted and forgotten
               with whole extents, and while sessions are forgotten by name: each step of the event loop, by its own CPU
               time, and a ping each millisecond, beside one of a bare echo in the same moment. Apart from that, what a
               reset of the namespace that all blocks are of takes: one step, which no bar covers

Confessions. Written by the authors of kvtier, on what they then made fast. The payload files are holes: no block was ever
written by an engine, `cost.mode = shadow` offers none of the blocks that lookups find, and what is read while pauses are
sought are zeros, which cost no drive anything. So nothing here is said of drives, nor of how long a load takes. Blocks of
64 KiB are the smallest that there are; at 2 MiB 10 million are 20 TB, and extents are many more. Keys are of one model.
Sessions are as many as the benchmark begins, not the 65,536 that there may be. A lookup's time is that of a client that
sleeps until its answer is there, in Python, on the cores that kvtierd uses too. On a busy machine pings wait for the
neighbours: hence the echo, and CPU time for what is counted as a pause.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scale_load
import scale_store
from machine import command, machine, versions
from scale_load import Asker, Worker
from scale_store import SESSION_BLOCKS, KVTierd
from spreads import spread

from kvtier import protocol

BLOCK_BYTES = 64 * 1024
BLOCKS = (1_000_000, 10_000_000)
SIZES = [16, 64, 256, 1024, 4096]  # keys of a lookup
ROUNDS, LOOKUPS = 5, 100  # and lookups of each size in one
CLIENTS = (1, 4, 16, 64)
CLIENT_KEYS, CLIENT_S = 256, 4.0
PAUSES_S, QUICK_PAUSES_S = 60.0, 15.0
ENGINES = 2  # that save and load meanwhile
ARENA = "512 MiB"
PAUSE_S = 0.02
BARS = {"bytes_per_block": 200, "lookup_256_p99_us": 1000, "pause_max_ms": 20, "restart_s": 60}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- one store -----------------------------------------------------------------------------------------------------


class Store:
    """So many blocks below RAM, in a folder, and kvtierds on it."""

    def __init__(self, folder: Path, blocks: int) -> None:
        self.blocks, self._folder, self._drive = blocks, folder, folder / "drive"
        self.restarts: list[float] = []  # seconds
        begun = time.perf_counter()
        scale_store.make([self._drive], blocks, BLOCK_BYTES)
        self.make_s = time.perf_counter() - begun

    @property
    def catalogue_mib(self) -> float:
        return (self._drive / scale_store.CATALOGUE).stat().st_size / 2**20

    @contextmanager
    def served(self, mode: str, *extra: str) -> Iterator[KVTierd]:
        """By a kvtierd that has just been started."""
        capacity = scale_store.capacity_for(self.blocks, BLOCK_BYTES)
        settings = {"cpu.capacity": ARENA, "cost.mode": mode}
        begun = time.perf_counter()
        with KVTierd(self._folder, [self._drive], capacity, settings, *extra) as daemon:
            with self.asker(daemon, "first", seed=1) as first:
                first.lookup_s(SIZES[0])
            self.restarts.append(time.perf_counter() - begun)
            yield daemon

    def asker(self, daemon: KVTierd, name: str, seed: int) -> Asker:
        return Asker(daemon.socket, name, self.blocks, BLOCK_BYTES, seed)


def empty_bytes(folder: Path, blocks: int) -> int:
    """Rss beside the arena where the drives have room for so many blocks, and none."""
    drive, settings = folder / "empty", {"cpu.capacity": ARENA, "cost.mode": "shadow"}
    with KVTierd(folder, [drive], scale_store.capacity_for(blocks, BLOCK_BYTES), settings) as daemon:
        return daemon.memory()["rss"]


def lookups(store: Store, daemon: KVTierd) -> dict[str, Any]:
    with store.asker(daemon, "looks", seed=2) as asker:
        rounds = scale_load.rounds_of_lookups(asker, SIZES, ROUNDS, LOOKUPS)
    return {str(n): percentiles(taken) for n, taken in rounds.items()}


def percentiles(rounds: list[list[float]]) -> dict[str, dict[str, float]]:
    """Microseconds, spread over the rounds."""
    return {f"p{at}": in_us(np.percentile(taken, at) for taken in rounds) for at in (50, 99)}


def in_us(seconds: Any) -> dict[str, float]:
    return {name: round(value * 1e6, 1) for name, value in spread(map(float, seconds)).items()}


def clients(store: Store, daemon: KVTierd) -> dict[str, Any]:
    found = {}
    for n in CLIENTS:
        taken = scale_load.many(daemon.socket, n, CLIENT_KEYS, CLIENT_S, store.blocks, BLOCK_BYTES)
        every = np.array([one for mine in taken for one in mine]) * 1e6
        rate = sum(len(mine) / sum(mine) for mine in taken)
        found[str(n)] = {
            "lookups_per_s": round(rate),
            "p50_us": round(float(np.percentile(every, 50)), 1),
            "p99_us": round(float(np.percentile(every, 99)), 1),
        }
        say(f"  {n} clients: {found[str(n)]}")
    return found


def pauses(store: Store, daemon: KVTierd, seconds: float) -> dict[str, Any]:
    path, before = daemon.socket, len(daemon.log.read_text())
    first = daemon.snapshot()["counters"]
    pings = Worker(lambda stop: scale_load.ping(path, BLOCK_BYTES, stop))
    engines = [
        Worker(lambda stop, seed=seed: scale_load.churn(path, store.blocks, BLOCK_BYTES, seed, stop))
        for seed in range(ENGINES)
    ]
    forgets = Worker(lambda stop: scale_load.forget(path, store.blocks // SESSION_BLOCKS, stop))
    time.sleep(seconds)
    last = daemon.snapshot()["counters"]
    for worker in (*engines, forgets, pings):
        worker.stop()
    done = [worker.result() for worker in engines]
    forgot, pinged = forgets.result(), pings.result()
    names = ("saved_blocks", "demoted_blocks", "promoted_blocks", "evicted_blocks", "forgotten_blocks")
    return {
        **pause_figures(daemon.log.read_text()[before:]),
        **ping_figures(pinged),
        "seconds": seconds,
        "turns": sum(one["turns"] for one in done),
        "forgotten_sessions": len(forgot["forget_s"]),
        **{name: last[name] - first[name] for name in names},
    }


def reset_ms(store: Store, daemon: KVTierd) -> float:
    """What it takes to drop all of them at once, because their engine got new weights: one step of the loop."""
    before = len(daemon.log.read_text())
    with store.asker(daemon, "resets", seed=3) as engine:
        engine.say(protocol.Reset())
        engine.ping_s()
        engine.ping_s()  # the step that it was done in is over, and in the log
    return float(pause_figures(daemon.log.read_text()[before:])["pause_max_ms"])


def pause_figures(log: str) -> dict[str, Any]:
    """Of a log with steps of the event loop: the longest by its own CPU time, and what it was."""
    steps = sorted(scale_store.steps_over(log, 0.0), reverse=True)
    longest = steps[0] if steps else (0.0, 0.0, "")
    return {
        "pause_max_ms": round(longest[0] * 1e3, 2),
        "pause_was": longest[2],
        "pauses_over_20_ms": sum(cpu > PAUSE_S for cpu, _, _ in steps),
        "step_by_clock_max_ms": round(max((wall for _, wall, _ in steps), default=0.0) * 1e3, 2),
    }


def ping_figures(pinged: dict[str, list[float]]) -> dict[str, float]:
    """By whom: the 99th percentile and the longest, in milliseconds."""
    found = {}
    for name, taken in pinged.items():
        found[f"{name}_ping_p99_ms"] = round(float(np.percentile(taken, 99)) * 1e3, 3)
        found[f"{name}_ping_max_ms"] = round(max(taken) * 1e3, 2)
    return found


# --- the report ----------------------------------------------------------------------------------------------------


def measure(blocks: int, pauses_s: float, with_clients: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of so many blocks; and of many clients, if they are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        empty = empty_bytes(Path(folder), blocks)
        store = Store(Path(folder), blocks)
        say(f"{blocks:,} blocks: made in {store.make_s:.0f} s")
        with store.served("shadow") as daemon:
            memory = daemon.memory()
            say(f"  started in {store.restarts[-1]:.1f} s, {memory['rss'] / 2**20:.0f} MiB beside the arena")
            asked = lookups(store, daemon)
            together = clients(store, daemon) if with_clients else {}
        with store.served("always", "--steps") as daemon:
            paused = pauses(store, daemon, pauses_s)
            rss_after = daemon.memory()["rss"]
            paused["reset_ms"] = reset_ms(store, daemon)
        say(f"  longest step of the loop: {paused['pause_max_ms']} ms of CPU, {paused['pause_was']}")
        found = {
            "bytes_per_block": round((memory["rss"] - empty) / blocks, 1),
            "rss_mib": round(memory["rss"] / 2**20, 1),
            "rss_empty_mib": round(empty / 2**20, 1),
            "rss_after_pauses_mib": round(rss_after / 2**20, 1),
            "start_peak_mib": round(memory["peak"] / 2**20),
            "restart_s": {name: round(value, 2) for name, value in spread(store.restarts).items()},
            "catalogue_mib": round(store.catalogue_mib, 1),
            "make_s": round(store.make_s, 1),
            "pause_max_ms": paused.pop("pause_max_ms"),
            "pauses": paused,
            "ping_us": asked.pop("0"),
            "lookup_us": asked,
        }
    return found, together


def goals_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the issue asks of 10 million blocks, or of as many as there are."""
    measured = {
        "bytes_per_block": found["bytes_per_block"],
        "lookup_256_p99_us": found["lookup_us"]["256"]["p99"]["median"],
        "pause_max_ms": found["pause_max_ms"],
        "restart_s": found["restart_s"]["max"],
    }
    said = {
        "bytes_per_block": ("bytes a block", "{:.0f} B"),
        "lookup_256_p99_us": ("lookup of 256 keys, p99", "{:.0f} us"),
        "pause_max_ms": ("longest step of the event loop, its own CPU time", "{:.1f} ms"),
        "restart_s": ("start to first answered lookup", "{:.1f} s"),
    }
    return [
        {
            "goal": goal,
            "bar": "at most " + form.replace("{:.1f}", "{:.0f}").format(BARS[name]),
            "measured": form.format(measured[name]),
            "best_peer": None,
            "holds": measured[name] <= BARS[name],
        }
        for name, (goal, form) in said.items()
    ]


def report(quick: bool) -> dict[str, Any]:
    begun, found, together = time.perf_counter(), {}, {}
    numbers = BLOCKS[:1] if quick else BLOCKS
    for blocks in numbers:
        is_last = blocks == numbers[-1]
        found[str(blocks)], together = measure(blocks, PAUSES_S if is_last and not quick else QUICK_PAUSES_S, is_last)
    return {
        "machine": machine(),
        "versions": versions("numpy", "lmdb"),
        "command": command(),
        "quick": quick,
        "seconds": round(time.perf_counter() - begun),
        "block_bytes": BLOCK_BYTES,
        "blocks": found,
        "clients": together,
        "goals": goals_of(found[str(numbers[-1])]),
    }


def print_tables(outcome: dict[str, Any]) -> None:
    machine_ = outcome["machine"]
    print(f"{machine_['cpu']}, {machine_['cores']} cores, load {machine_['load_average']}")
    for blocks, found in outcome["blocks"].items():
        restart = found["restart_s"]
        print(f"\n{int(blocks):,} blocks: {found['bytes_per_block']} bytes each, catalogue {found['catalogue_mib']} MiB")
        print(f"  restart {restart['median']} s ({restart['min']}-{restart['max']}), at most {found['start_peak_mib']} MiB")
        print(f"  {'keys':>6}{'p50 us':>10}{'p99 us (least-most of a round)':>36}")
        for keys, taken in {"ping": found["ping_us"], **found["lookup_us"]}.items():
            p99 = taken["p99"]
            print(f"  {keys:>6}{taken['p50']['median']:>10}{p99['median']:>14} ({p99['min']}-{p99['max']})")
        print(f"  longest step {found['pause_max_ms']} ms of CPU; {found['pauses']}")
    for n, taken in outcome["clients"].items():
        print(f"  {n:>3} clients: {taken['lookups_per_s']:,} lookups/s, p50 {taken['p50_us']} us, p99 {taken['p99_us']} us")
    for goal in outcome["goals"]:
        print(f"{'holds' if goal['holds'] else 'MISSED':8}{goal['goal']}: {goal['measured']}, {goal['bar']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help=f"{BLOCKS[0]:,} blocks only")
    given = parser.parse_args()
    outcome = report(given.quick)
    print(json.dumps(outcome)) if given.json else print_tables(outcome)


if __name__ == "__main__":
    main()
