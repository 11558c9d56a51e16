"""How near do stores of KV blocks come to memcpy in memory, and to O_DIRECT on a disk: kvtier's, LMCache's, Mooncake's?

    python benchmarks/bench_storage.py [--json] [--quick] [--folder DIR]

Written by the authors of kvtier. DIR, the system's folder for temporary files if it is not given, must lie on the drive
that is meant, with 3 GB free and O_DIRECT. Peers run in the environments of compare/environments.py, each contender in
a process of its own (storage_engines.py), a line for each that can't be had, with the reason.

In a round each contender puts and gets a CELL of 256 MiB in blocks of 1, 2 and 16 MiB, one contender after the other, in
an order that rotates. A share is a quotient of one round: the contender's speed by the limit's; the median over rounds
counts, and stands beside the least and the most. The first rounds aren't counted; in one of them what was read is
compared. What was put is forgotten before the next put, outside of the time: so nobody evicts.

    memory    from a flat buffer into the store and back to another. The limit: memcpy of the same bytes, one thread.
              put, get: requests of 64 MiB; put_one, get_one: a block a request
    disk      from the store's memory to the disk and back, as much at once as each takes. The limit: O_DIRECT, 8 requests
              at once, by threads or io_uring, whichever is faster on the median. All read by O_DIRECT: nothing is cached
    cpu_s_per_gb    seconds of processor, daemons' included; waiting without sleep is in it

What is compared isn't alike. kvtier in memory: every request goes to kvtierd and back over its socket, a put counts when
the daemon has taken it in; LMCache's stores lie in the process that asks, and what its server and connector would say to
each other is left out; Mooncake's lie in another process, or (mooncake_local) in this one with its master aside. On disk
a turn of kvtier, as one of the limit, ends when all is durable, with checksums, which are compared at each read; LMCache
syncs nothing and has no checksum. "durable" says for each what a put means when it is counted.

Where kvtier loses: a request for one small block is a question to another process and its answer, which on a virtual
machine take longer than to copy 1 MiB; what lies in the caller's process doesn't pay them. On disk a turn ends with a
record of each block and a sync of these, some ms that nobody else pays; checksums take time of cores that others leave
to themselves. With two threads it may be faster than memcpy with one: that row isn't like for like. What this doesn't
show: gathering pages of layers (bench_copy.py), eviction, a busy engine beside, several clients, a network. Who waits
for a turn is idle, but not always quiet: LMCache's threads wake up each 5 ms.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_copy import machine
from compare.environments import LMCACHE, MOONCAKE
from spreads import spread
from storage_engines import PATIENCE_S, REQUEST

MIB = 1 << 20
SIZES_MIB = (1, 2, 16)
ROUNDS_MIN, ROUNDS_MIN_QUICK = 7, 3
SECONDS, SECONDS_QUICK = 90, 10  # of the rounds of a medium, unless the least number of them takes longer
WARM_UPS = {"memory": 1, "disk": 2}  # rounds: kvtier and raw_block write one half of their space while the other is read
HERE = Path(__file__).parent
# LMCache writes a line a request otherwise, and reports its use to its makers.
QUIET = {"LMCACHE_LOG_LEVEL": "WARNING", "LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    medium: str
    python: Path = Path(sys.executable)
    sizes_mib: tuple[int, ...] = SIZES_MIB


LIMITS = {"memory": ("memcpy",), "disk": ("raw_threads", "raw_io_uring")}
CONTENDERS = (
    Contender("memcpy", "memcpy", "memory"),
    Contender("kvtier", "kvtier, RAM tier", "memory"),
    Contender("kvtier_two_threads", "kvtier, RAM tier, two threads", "memory"),
    Contender("lmcache", "LMCache, StorageManager's L1", "memory", LMCACHE.python),
    Contender("lmcache_inprocess", "LMCache, LocalCPUBackend", "memory", LMCACHE.python),
    Contender("mooncake", "Mooncake Store, another process", "memory", MOONCAKE.python),
    Contender("mooncake_local", "Mooncake Store, the same process", "memory", MOONCAKE.python),
    Contender("raw_threads", "O_DIRECT, threads", "disk"),
    Contender("raw_io_uring", "O_DIRECT, io_uring", "disk"),
    Contender("kvtier_nvme", "kvtier, NVMe tier", "disk"),
    Contender("kvtier_nvme_exp12", "kvtier, NVMe tier, exp12", "disk", sizes_mib=(2,)),
    Contender("lmcache_fs_native", "LMCache, fs_native", "disk", LMCACHE.python),
    Contender("lmcache_raw_block", "LMCache, raw_block", "disk", LMCACHE.python),
)
STEPS = {
    "memory": (("put", REQUEST), ("get", REQUEST), ("put_one", 0), ("get_one", 0)),  # bytes a request; 0: one block
    "disk": (("put", REQUEST), ("get", REQUEST)),
}


class Absent(Exception):
    """A contender can't go on; the message is the exact reason."""


# --- a process each ----------------------------------------------------------------------------------------------


class Process:
    """Answers questions of storage_engines.py. Raises Absent."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        if not contender.python.is_file():
            raise Absent(f"no {contender.python.relative_to(HERE.parent)}: python benchmarks/compare/environments.py")
        folder.mkdir()
        self._log = folder / "log"
        paths = [str(HERE), str(HERE.parent / "tests")]
        if str(contender.python) == sys.executable:  # kvtier may be on the path alone
            paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        environment = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [str(contender.python), str(HERE / "storage_engines.py"), contender.name, str(folder / "store")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise Absent(said[-1] if said else f"it ended with {self._process.wait()}")
        answer = json.loads(line)
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer

    def ask(self, *question: str | int) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # why, `hear` finds out
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.hear()

    def close(self) -> None:
        try:
            self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(contenders: Sequence[Contender], folder: Path) -> Iterator[tuple[dict[str, Process], dict[str, Any]]]:
    """Those that can be had, and what each says of itself: its version, or why it is absent. They start together."""
    processes: dict[str, Process] = {}
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        for each in contenders:
            try:
                processes[each.name] = Process(each, folder / each.name)
                stack.callback(processes[each.name].close)
            except Absent as reason:
                facts[each.name] = {"absent": str(reason)}
        for name, process in list(processes.items()):
            try:
                facts[name] = process.hear() | {"absent": None}
            except Absent as reason:
                del processes[name]
                facts[name] = {"absent": str(reason)}
        yield processes, facts


# --- rounds ------------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    """Of one contender, block size and step: a value a round."""

    gib_s: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)

    def add(self, answer: Mapping[str, float]) -> None:
        self.gib_s.append(answer["bytes"] / answer["seconds"] / (1 << 30))
        self.cpu_s_per_gb.append(answer["cpu_s"] / answer["bytes"] * 1e9)


Cells = dict[tuple[str, int, str], Cell]  # contender, MiB, step


def rotated(names: Sequence[str], turn: int) -> list[str]:
    at = turn % len(names)
    return [*names[at:], *names[:at]]


class Rounds:
    """All contenders of a medium, one after the other. Who fails in one is out of all, and `failed` says why."""

    def __init__(self, contenders: Sequence[Contender], processes: Mapping[str, Process], medium: str) -> None:
        self.failed: dict[str, str] = {}
        self._processes, self._steps, self._warm_ups = dict(processes), STEPS[medium], WARM_UPS[medium]
        self._sizes = {each.name: each.sizes_mib for each in contenders}
        self._turn = itertools.count()

    def run(self, seconds: float, rounds_min: int) -> Cells:
        """The first don't count: memory and files are touched for the first time, and what is read is compared."""
        for number in range(self._warm_ups):
            self._round({}, checked=not number)
        cells: Cells = {}
        begun, count = time.monotonic(), 0
        while count < rounds_min or time.monotonic() < begun + seconds:
            self._round(cells)
            count += 1
        return {cell: found for cell, found in cells.items() if cell[0] not in self.failed}

    def _round(self, cells: Cells, checked: bool = False) -> None:
        turn = next(self._turn)
        for size in SIZES_MIB:
            for step, request in self._steps:
                for name in rotated(list(self._sizes), turn):
                    if name in self._processes and size in self._sizes[name]:
                        try:
                            self._step(cells.setdefault((name, size, step), Cell()), name, size * MIB, step, request)
                            if checked and step.startswith("get"):
                                self._processes[name].ask("check", size * MIB)
                        except Absent as reason:
                            self.failed[name] = str(reason)
                            del self._processes[name]

    def _step(self, cell: Cell, name: str, size: int, step: str, request: int) -> None:
        process, what = self._processes[name], step.removesuffix("_one")
        if what == "put":
            process.ask("clear", size)
        cell.add(process.ask(what, size, max(1, request // size)))


# --- shares ------------------------------------------------------------------------------------------------------


def limit_of(cells: Cells, medium: str, size: int, step: str) -> Cell:
    """The fastest on the median."""
    there = [cells[name, size, step] for name in LIMITS[medium] if (name, size, step) in cells]
    return max(there, key=lambda cell: statistics.median(cell.gib_s))


def by_contender(cells: Cells, value: Callable[[int, str, Cell], Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Contender, MiB, step -> what `value` makes of it; contenders in their order, whose turn ever came first."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    order = [each.name for each in CONTENDERS]
    for (name, size, step), cell in sorted(cells.items(), key=lambda each: order.index(each[0][0])):
        found.setdefault(name, {}).setdefault(str(size), {})[step] = value(size, step, cell)
    return found


def shares(cells: Cells, medium: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Spreads over the rounds, of all but the limits."""

    def share(size: int, step: str, cell: Cell) -> dict[str, float]:
        limit = limit_of(cells, medium, size, step).gib_s
        return spread(mine / of for mine, of in zip(cell.gib_s, limit, strict=True))

    return by_contender({cell: found for cell, found in cells.items() if cell[0] not in LIMITS[medium]}, share)


def cpu_of(cells: Cells) -> dict[str, dict[str, dict[str, float]]]:
    return by_contender(cells, lambda _, __, cell: statistics.median(cell.cpu_s_per_gb))


def speeds(cells: Cells, medium: str, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of the limit, in GiB/s."""
    return {str(size): {step: spread(limit_of(cells, medium, size, step).gib_s) for step in steps} for size in SIZES_MIB}


def row_of(contender: Contender, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Of "engines": also for one that is absent."""
    known = {"version": "", "mode": "", "durable": "", "absent": None} | facts
    return {"name": contender.name, "title": contender.title, "medium": contender.medium} | known


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    begun, load = time.monotonic(), os.getloadavg()[0]
    seconds, rounds_min = (SECONDS_QUICK, ROUNDS_MIN_QUICK) if quick else (SECONDS, ROUNDS_MIN)
    outcome: dict[str, Any] = {"sizes_mib": list(SIZES_MIB), "engines": [], "limits": {}, "cpu_s_per_gb": {}, "rounds": {}}
    found: dict[str, Cells] = {}
    for medium in LIMITS:
        contenders = [each for each in CONTENDERS if each.medium == medium]
        print(f"... {medium}: starting {len(contenders)} processes", file=sys.stderr)
        with started(contenders, folder) as (processes, facts):
            rounds = Rounds(contenders, processes, medium)
            print("... rounds", file=sys.stderr)
            found[medium] = cells = rounds.run(seconds, rounds_min)
        for name, reason in rounds.failed.items():
            facts[name]["absent"] = reason
        outcome["engines"] += [row_of(each, facts[each.name]) for each in contenders]
        outcome[medium] = shares(cells, medium)
        outcome["cpu_s_per_gb"] |= cpu_of(cells)
        outcome["rounds"][medium] = max(len(cell.gib_s) for cell in cells.values())
    disk = speeds(found["disk"], "disk", ("put", "get"))
    outcome["limits"] = {
        "memcpy_gib_s": speeds(found["memory"], "memory", ("put", "get")),
        "o_direct_read_gib_s": {size: of["get"] for size, of in disk.items()},
        "o_direct_write_gib_s": {size: of["put"] for size, of in disk.items()},
    }
    load = round((load + os.getloadavg()[0]) / 2, 2)
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1)
    return outcome | {
        "machine": machine() | {"memory_gib": memory, "load_average": load},
        "versions": dict(row["version"].split() for row in outcome["engines"] if row["version"]),
        "command": "python benchmarks/bench_storage.py --json" + " --quick" * quick,
        "quick": quick,
        "seconds": round(time.monotonic() - begun, 1),
    }


# --- the report --------------------------------------------------------------------------------------------------


def print_tables(outcome: Mapping[str, Any]) -> None:
    facts = outcome["machine"]
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_average']}, {outcome['seconds']} s")
    for medium, steps in STEPS.items():
        print(f"\n{medium + ': shares of the limit':37}" + "".join(f"{step:>20}" for step, _ in steps))
        for row, size in itertools.product(outcome["engines"], map(str, SIZES_MIB)):
            cell = outcome[medium].get(row["name"], {}).get(size)
            if cell is not None:
                print(f"{row['title']:31}{size:>2} MiB" + "".join(f"{shown(cell[step]):>20}" for step, _ in steps))
    print()
    for name, sizes in outcome["limits"].items():
        print(f"{name}: {json.dumps(sizes)}")
    for row in outcome["engines"]:
        print(f"{row['title']}: {row['absent'] or row['mode']}")


def shown(share: Mapping[str, float]) -> str:
    return f"{share['median']:.2f} ({share['min']:.2f}-{share['max']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="in a minute instead of five")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there are 3 GB free")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-storage-", dir=given.folder) as name:
        outcome = measure(Path(name), given.quick)
    print(json.dumps(outcome)) if given.json else print_tables(outcome)


if __name__ == "__main__":
    main()
