"""What does kvtierd take of a machine while nobody asks it anything, and how soon is it there?

    python benchmarks/bench_footprint.py            a table
    python benchmarks/bench_footprint.py --json     one JSON object: idle_cpu_share, rss_beside_arena_mb, ready_s,
                                                    ready_of_numpy, lookup_after_idle_us, ..., spreads, machine

kvtierd is started from the installed command, with an arena of 256 MiB and settings as they come. In each round:

    ready      from the start of the process to its Welcome: a client that has it has a whole arena. Beside it, in the
               same round, `python -c "import numpy"` from start to end: what a start costs on this machine
    idle       two daemons stand still for IDLE_S: one without an engine, one with an engine that has saved blocks and
               says nothing more. CPU: user and system time of all threads, by the process's own clock. Memory: Rss of
               all mappings but the arena's; Pss, and the most that it ever was, beside it
    lookup     the first lookup after the daemon stood still, and those right after it

The headline is the greater of the two daemons.

Confessions. Written by the authors of kvtier. An engine that stands still says nothing here; vLLM's says nothing either
until its next request. Remote and NVMe tiers are off, and a remote looks at its server now and then. Rss counts pages of
libraries that other processes share; Pss doesn't, and is less the more Python processes a machine runs. On shared noisy
cores the start takes as long as the neighbours let it: hence numpy's, in the same round.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_control import connected
from spreads import print_spreads

from kvtier import observer
from kvtier.block import ABSENT, block_key, pack_keys
from kvtier.client import SchedulerClient
from kvtier.errors import DaemonError

ARENA = "256 MiB"
ROUNDS = 5
IDLE_S = 30.0
SETTLE_S = 3.0  # after the start, before it counts as idle
PATIENCE_S = 60.0
BLOCKS = 256  # that the idle engine has saved
LOOKUPS = 20  # right after the first
BARS = {"idle_cpu_share": 0.002, "rss_beside_arena_mb": 80, "ready_s": 1.0}


class KVTierd:
    """A daemon in a folder of its own. `ready_s`: how long its first Welcome took."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self.socket = folder / "kvtierd.sock"
        settings = {"cpu.capacity": ARENA, "server.socket": self.socket, "cost.state": folder / "state"}
        if os.geteuid():
            settings["security.dumpable"] = "yes"  # or only root may look at its memory
        command = [str(Path(sys.executable).with_name("kvtierd")), *(f"--set={n}={v}" for n, v in settings.items())]
        begun = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.process.poll() is None and time.perf_counter() < begun + PATIENCE_S:
            with contextlib.suppress(DaemonError):
                observer.ask(self.socket, timeout_s=PATIENCE_S)
                break
            time.sleep(0.002)
        self.ready_s = time.perf_counter() - begun

    def cpu_s(self) -> float:
        """User and system time so far, of all threads."""
        clock = (~self.process.pid << 3) | 2  # as clock_getcpuclockid(3) makes it
        return time.clock_gettime(clock)

    def memory_mb(self) -> dict[str, float]:
        """Rss and Pss of all mappings but the arena's; the most Rss that there ever was."""
        sums = {"Rss": 0, "Pss": 0}
        is_arena = False
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                is_arena = "kvtier-arena" in line
            elif not is_arena and (name := line.partition(":")[0]) in sums:
                sums[name] += int(line.split()[1])
        return {name.lower(): kib / 1024 for name, kib in sums.items()}

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self._folder.cleanup()


@contextlib.contextmanager
def started() -> Iterator[KVTierd]:
    daemon = KVTierd()
    try:
        yield daemon
    finally:
        daemon.close()


def numpy_s() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return time.perf_counter() - begun


def saved_by(client: SchedulerClient) -> bytes:
    """The packed keys of blocks that the engine has saved."""
    keys = [block_key(b"footprint", f"block {i}".encode()) for i in range(BLOCKS)]
    left, until = list(keys), time.monotonic() + PATIENCE_S
    while left and time.monotonic() < until:
        client.wait(time.monotonic() + 0.05)
        client.poll(time.monotonic())
        slots = client.borrow(len(left))
        client.commit(pack_keys(left[: len(slots)]), slots, client.generation, time.monotonic())
        del left[: len(slots)]
    assert not left, "the daemon lends no more slots"
    return pack_keys(keys)


def lookup_us(client: SchedulerClient, keys: bytes) -> float:
    """From the question to its answer: all hits."""
    begun = time.perf_counter()
    lease = client.lookup(keys, 0, time.monotonic())
    while (answer := client.answer(lease)) is None:
        client.wait(time.monotonic() + 1)
        client.poll(time.monotonic())
    elapsed = time.perf_counter() - begun
    assert (answer != ABSENT).all()
    client.release(lease, len(answer), time.monotonic())
    return elapsed * 1e6


def idle_round(idle_s: float) -> dict[str, float]:
    """Of the two daemons that stand still, by key; what is counted once is the greater."""
    with started() as alone, started() as with_engine:
        client = connected(with_engine.socket, "idle", b"i" * 32)
        keys = saved_by(client)
        time.sleep(SETTLE_S)
        before = [daemon.cpu_s() for daemon in (alone, with_engine)]
        begun = time.perf_counter()
        time.sleep(idle_s)
        elapsed = time.perf_counter() - begun
        used = [daemon.cpu_s() - was for daemon, was in zip((alone, with_engine), before)]
        memory = [daemon.memory_mb() for daemon in (alone, with_engine)]
        first = lookup_us(client, keys)
        client.close()
        return {
            "idle_cpu_share": max(used) / elapsed,
            "idle_cpu_share_without_engine": used[0] / elapsed,
            "rss_beside_arena_mb": max(found["rss"] for found in memory),
            "pss_beside_arena_mb": max(found["pss"] for found in memory),
            "threads": max(alone.threads(), with_engine.threads()),
            "lookup_after_idle_us": first,
        }


def busy_us(daemon: KVTierd) -> list[float]:
    """Lookups right after each other, as an engine's that is busy."""
    client = connected(daemon.socket, "busy", b"b" * 32)
    keys = saved_by(client)
    taken = [lookup_us(client, keys) for _ in range(LOOKUPS)]
    client.close()
    return taken


# --- the report --------------------------------------------------------------------------------------------------


def report(rounds: int, idle_s: float) -> dict[str, Any]:
    numpy_s()  # files are in the page cache from here on
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        starting = numpy_s()
        with started() as daemon:
            measured = {"ready_s": daemon.ready_s, "numpy_s": starting, "ready_of_numpy": daemon.ready_s / starting}
            measured["lookup_busy_us"] = statistics.median(busy_us(daemon))
        for name, value in (measured | idle_round(idle_s)).items():
            found.setdefault(name, []).append(value)
    spreads = {
        name: {"median": round(statistics.median(of), 5), "min": round(min(of), 5), "max": round(max(of), 5)}
        for name, of in found.items()
    }
    medians = {name: spread["median"] for name, spread in spreads.items()}
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    return {**medians, "arena": ARENA, "rounds": rounds, "idle_s": idle_s, "spreads": spreads, "machine": machine}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="(%(default)s)")
    parser.add_argument("--idle", type=float, default=IDLE_S, metavar="S", help="stand still so long (%(default)g)")
    given = parser.parse_args()
    outcome = report(given.rounds, given.idle)
    print(json.dumps(outcome)) if given.json else print_spreads(outcome, f"arena {ARENA}", BARS)


if __name__ == "__main__":
    main()
