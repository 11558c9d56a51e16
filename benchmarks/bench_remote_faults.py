"""Do local hits become slower while the remote is slow, frozen, failing, or busy?

    python benchmarks/bench_remote_faults.py [--json] [--seconds N] [--rounds N]

A real kvtierd with a real Redis or Valkey behind a proxy that does to it what networks do. One engine looks up 256 blocks
that are in RAM, all the time, and is timed; another one asks for blocks that only the remote has. In each round, in an
order that changes, each state for N seconds (2, if not given), and `asked` and `idle` again before each of them:

    idle        nobody asks for anything remote
    asked       the remote is well; the other engine asks for 8 MiB five times a second
    busy        the same as fast as it goes
    latency     as `asked`, and each answer takes 0.2 s longer
    slow        ... at 1 MB/s, all together
    blackhole   ... nothing comes any more, nor does an error
    frozen      ... the server is stopped by a signal
    reset       ... every connection is reset at once; refused: nobody listens
    flapping    ... reset() half of each second
    errors      ... one piece of twenty ends in a reset
    flips       ... one piece of twenty has a bit flipped

    without_waiting_for_a_core   the same, less what client and kvtierd's main thread stood in line for a core (schedstat):
                what is left is what the remote's threads do to the daemon's, where neighbours don't hide it
    up          p99 of a state by p99 of `asked` just before it, the median over rounds: what the fault adds
    up_of_idle  the same by `idle`: what the fault and being asked add
    worst_up    the most of `up` over the faults, and busy_up what being busy adds to being asked

Confessions. Written by the authors of kvtier. Client, kvtierd, server, proxy and the other engine share this machine's
cores: on few of them, `busy` and `asked` show mostly who computes beside the daemon. A p99 of some thousand lookups is
noisy: look at the spreads, and at `up` of `again`, which is `asked` once more, with nothing changed.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench_copy import machine
from kvtierd import Engine, KVTierd, eventually, root_file
from remote.proxy import FaultProxy
from remote.servers import LOOPBACK, Absent, Redis, redis_or_valkey
from rich.console import Console
from rich.table import Table

from kvtier import protocol
from kvtier.block import BELOW, block_key, pack_keys, unpack_keys, unpack_slots

MIB = 1 << 20
LOCAL_BLOCKS = 256  # of 64 KiB
FAR_BLOCKS, FAR_CHATS = 8, 24  # of 1 MiB each; RAM has room for half of them
PAUSE_S = 0.001
ASKED_A_SECOND = 5.0
PATIENCE_S = 30.0
BARS = {"worst_up": "<= 1.05"}

# What the proxy is told, and how often the other engine asks in a second.
STATES: dict[str, tuple[str, float]] = {
    "again": ("heal", ASKED_A_SECOND),
    "busy": ("heal", 1e9),
    "latency": ("latency 0.2", ASKED_A_SECOND),
    "slow": ("throttle 1e6", ASKED_A_SECOND),
    "blackhole": ("blackhole", ASKED_A_SECOND),
    "frozen": ("heal", ASKED_A_SECOND),
    "reset": ("reset", ASKED_A_SECOND),
    "refused": ("refuse", ASKED_A_SECOND),
    "flapping": ("flap 1", ASKED_A_SECOND),
    "errors": ("errors 0.05", ASKED_A_SECOND),
    "flips": ("flip 0.05", ASKED_A_SECOND),
}
NO_FAULTS = ("again", "busy")


class Told:
    """A process of this file that does what it is told, a line each, and says when it has done so."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "it ended"
        return line.strip()

    def tell(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def be_proxy(port: int) -> None:
    with FaultProxy(LOOPBACK, port) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            fault, *given = line.split()
            proxy.heal()
            getattr(proxy, fault)(*map(float, given))
            print("done", flush=True)


def be_other_engine(socket: Path) -> None:
    """First it saves all; then it asks so many times a second as the last line says."""
    import select

    engine = Engine(socket, "other", model="other", block_bytes=MIB, lend=16)
    chats = [keys_of(engine, f"chat {n}", FAR_BLOCKS) for n in range(FAR_CHATS)]
    for keys in chats:
        save(engine, keys)
        for _ in range(2):
            engine.lookup(keys)
            engine.release(FAR_BLOCKS)
        time.sleep(0.3)
    print("saved", flush=True)
    rate = 0.0
    while True:
        if select.select([sys.stdin], [], [], 1 / rate if rate else None)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            rate = float(line)
            print("done", flush=True)
        elif rate:
            slots = engine.lookup(random.choice(chats))
            engine.release(sum(slot < BELOW for slot in slots))


def keys_of(engine: Engine, name: str, n: int) -> bytes:
    return pack_keys(block_key(engine.welcome.secret, f"{name} {i}".encode()) for i in range(n))


def save(engine: Engine, keys: bytes) -> None:
    for key in unpack_keys(keys):
        while not engine.lent:
            engine.lent += unpack_slots(engine.hear(protocol.Lend).slots).tolist()
        engine.save(key)


class Times(NamedTuple):
    """Of lookups, in microseconds, sorted: as they were, and without what client and daemon waited for a core."""

    whole: list[float]
    without: list[float]


class World:
    def __init__(self, daemon: KVTierd, server: Redis, proxy: Told, other: Told) -> None:
        self._daemon, self._server, self._proxy, self._other = daemon, server, proxy, other
        self._engine = Engine(daemon.socket, "timed", model="timed", lend=64)
        self._keys = keys_of(self._engine, "local", LOCAL_BLOCKS)
        save(self._engine, self._keys)
        self.misses = 0
        self._schedstats = [os.open(f"/proc/{pid}/task/{pid}/schedstat", os.O_RDONLY) for pid in (os.getpid(), daemon.pid)]
        self._holder = Engine(daemon.socket, "holder", model="timed")
        self._holder.lookup(self._keys)  # and holds the lease: they stay in RAM

    def timed(self, seconds: float) -> Times:
        whole, without, until = [], [], time.monotonic() + seconds
        while time.monotonic() < until:
            queued, begun = self._queued_us(), time.perf_counter()
            slots = self._engine.lookup(self._keys)
            took = (time.perf_counter() - begun) * 1e6
            whole.append(took)
            without.append(took - (self._queued_us() - queued))
            self._engine.release(LOCAL_BLOCKS)
            self.misses += max(slots) >= BELOW
            time.sleep(PAUSE_S)
        return Times(sorted(whole), sorted(without))

    def _queued_us(self) -> float:
        """That this process and kvtierd's main thread have waited for a core."""
        return sum(int(os.pread(each, 100, 0).split()[1]) for each in self._schedstats) / 1e3

    @contextlib.contextmanager
    def state(self, name: str) -> Iterator[None]:
        told, asks = STATES[name]
        self._proxy.tell(told)
        if name == "frozen":
            self._server.freeze()
        self._other.tell(str(asks))
        yield
        self._server.thaw()
        self._proxy.tell("heal")
        self._other.tell("0")
        eventually(lambda: self.remote()["breaker"] == "closed", within=PATIENCE_S)

    @contextlib.contextmanager
    def well(self, asks: float) -> Iterator[None]:
        self._other.tell(str(asks))
        yield
        self._other.tell("0")

    def remote(self) -> dict[str, Any]:
        return self._daemon.snapshot()["tiers"]["remote"]


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Absent: no server."""
    with contextlib.ExitStack() as undone:
        folder = Path(undone.enter_context(tempfile.TemporaryDirectory(prefix="kvtier-bench-faults-")))
        server = undone.enter_context(Redis(folder / "server", redis_or_valkey()))
        proxy = Told("--proxy", server.port)
        undone.callback(proxy.end)
        settings = {"cpu.capacity": "128 MiB", "remote.url": f"redis://{LOOPBACK}:{proxy.said}",
                    "remote.secret_file": root_file(folder), "remote.write_rate": "1 GiB"}  # fmt: skip
        daemon = undone.enter_context(KVTierd(folder, settings))
        other = Told("--other", daemon.socket)
        undone.callback(other.end)
        made = World(daemon, server, proxy, other)
        yield made


def p99(sorted_times: list[float]) -> float:
    return sorted_times[int(len(sorted_times) * 0.99)]


class Ups:
    """How much slower the lookups were in a state than just before it, round by round."""

    def __init__(self) -> None:
        self.of_asked: dict[str, list[float]] = {}
        self.of_idle: dict[str, list[float]] = {}
        self.times: dict[str, list[float]] = {}

    def add(self, name: str, took: list[float], idle: list[float], asked: list[float]) -> None:
        self.of_asked.setdefault(name, []).append(p99(took) / p99(asked))
        self.of_idle.setdefault(name, []).append(p99(took) / p99(idle))
        for state, found in (("idle", idle), ("asked", asked), (name, took)):
            self.times.setdefault(state, []).extend(found)

    def outcome(self) -> dict[str, Any]:
        up = medians(self.of_asked)
        return {
            "worst_up": max(by for name, by in up.items() if name not in NO_FAULTS),
            "busy_up": up["busy"],
            "up": up,
            "up_of_idle": medians(self.of_idle),
            "spreads": {name: [round(min(found), 3), round(max(found), 3)] for name, found in self.of_asked.items()},
            "p50_us": {name: round(statistics.median(found)) for name, found in self.times.items()},
            "p99_us": {name: round(p99(sorted(found))) for name, found in self.times.items()},
        }


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(all_of), 3) for name, all_of in found.items()}


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    whole, without = Ups(), Ups()
    opened = dict.fromkeys(STATES, 0)
    load = os.getloadavg()[0]
    with world() as here:
        here.timed(1.0)
        for _ in range(rounds):
            for name in random.sample(sorted(STATES), len(STATES)):
                calm = {}
                for before, asks in random.sample([("idle", 0.0), ("asked", ASKED_A_SECOND)], 2):
                    with here.well(asks):
                        calm[before] = here.timed(seconds)
                former = here.remote()["breaker_opened"]
                with here.state(name):
                    took = here.timed(seconds)
                opened[name] += here.remote()["breaker_opened"] - former
                whole.add(name, took.whole, calm["idle"].whole, calm["asked"].whole)
                without.add(name, took.without, calm["idle"].without, calm["asked"].without)
                print(f"... {name} {whole.of_asked[name][-1]:.2f} {without.of_asked[name][-1]:.2f}", file=sys.stderr)
        facts = {"misses": here.misses, "remote": {name: here.remote()[name] for name in ("read_bytes", "failed")}}
    load = round((load + os.getloadavg()[0]) / 2, 2)
    return {**whole.outcome(), "without_waiting_for_a_core": without.outcome(), "breaker_opened": opened, **facts,
            "load_average": load, "machine": machine()}  # fmt: skip


def print_table(outcome: dict[str, Any]) -> None:
    facts = outcome["machine"]
    title = f"{facts['cpu']}, {facts['cores']} cores, load average {outcome['load_average']}"
    table = Table("state", "p50 us", "p99 us", "up", "spread", "p99 us*", "up*", "spread*", title=title)
    without = outcome["without_waiting_for_a_core"]
    for name in ("idle", "asked", *STATES):
        row = [name, str(outcome["p50_us"][name])]
        for found in (outcome, without):
            row += [str(found["p99_us"][name]), str(found["up"].get(name, ""))]
            row += ["-".join(f"{each:.2f}" for each in found["spreads"].get(name, ()))]
        table.add_row(*row)
    Console().print(table)
    Console().print(f"* without waiting for a core. Lookups that missed: {outcome['misses']}")
    Console().print(f"worst_up {outcome['worst_up']} ({BARS['worst_up']}); * {without['worst_up']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--seconds", type=float, default=2, help="how long one state goes on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proxy", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--other", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.proxy:
        return be_proxy(given.proxy)
    if given.other:
        return be_other_engine(given.other)
    try:
        outcome = measure(given.seconds, given.rounds)
    except Absent as reason:
        print(reason, file=sys.stderr)
        sys.exit(3)
    print(json.dumps(outcome)) if given.json else print_table(outcome)


if __name__ == "__main__":
    main()
