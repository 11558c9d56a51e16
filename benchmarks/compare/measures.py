"""What the slices of a contender measured, and what its processes took for them, by the kernel's own counts."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from spreads import spread

PROC = Path("/proc")
MIB = 1 << 20

Process = tuple[int, int]  # pid, and when it started, in ticks since boot: pids come again


@dataclass(frozen=True)
class Took:
    """Of one process, with the children that it reaped."""

    cpu_s: float
    written_bytes: int
    parent: int = 0  # its pid


@dataclass(frozen=True)
class Usage:
    """Seconds of processor, and bytes sent to disks. Of two that usage() read, the difference is what was taken between
    them; what a process took that ended between is not in it, unless one of the others reaped it."""

    cpu_s: float
    written_bytes: int
    by_process: Mapping[Process, Took] = field(default_factory=dict, repr=False)

    def __sub__(self, before: "Usage") -> "Usage":
        cpu_s, written = self.cpu_s, self.written_bytes
        alive = {pid for pid, _ in self.by_process}
        for process, took in before.by_process.items():
            # One that ended counts where its parent has taken its figures over.
            if process in self.by_process or took.parent in alive:
                cpu_s -= took.cpu_s
                written -= took.written_bytes
        return Usage(max(0.0, cpu_s), max(0, written))

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_s + other.cpu_s, self.written_bytes + other.written_bytes)


def usage(pids: Iterable[int]) -> Usage:
    """Of these processes since they started, all their threads, and children that ended and were waited for. Bytes count
    when a file's page becomes dirty, or with O_DIRECT when they are sent. PermissionError: another user's."""
    by_process = {}
    for pid in set(pids):
        try:
            fields = _fields(pid)
            written = _written(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        ticks = sum(map(int, fields[11:15]))  # utime, stime, and both of children
        by_process[pid, int(fields[19])] = Took(ticks / os.sysconf("SC_CLK_TCK"), written, int(fields[1]))
    took = by_process.values()
    return Usage(sum(t.cpu_s for t in took), sum(t.written_bytes for t in took), by_process)


def _fields(pid: int) -> list[str]:
    """Of proc(5)'s stat, from the third on: the name before, in brackets, may hold anything."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _written(pid: int) -> int:
    lines = (PROC / str(pid) / "io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))


@dataclass
class Slice:
    """A contender's turn of one round: seconds to the first token of each request, in all, and what was answered."""

    ttfts: list[float]
    seconds: float
    requests: int
    usage: Usage
    answers: list[list[int]]


def rank(values: Sequence[float], share: float) -> float:
    """The nearest rank: the least value that `share` of all don't exceed. One of the values, never between two; of fewer
    than 100 the p99 is the greatest."""
    return sorted(values)[max(1, ceil(share * len(values) - 1e-9)) - 1]


def cell(slices: Sequence[Slice], reference: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """What a table's cell has, with spreads over slices, at least one: one a round, or the rounds' slices joined().
    `reference`: the answers of who computes all, in the same order; ValueError if they are not as many."""
    answers = [answer for slice_ in slices for answer in slice_.answers]
    pairs = [] if reference is None else list(zip(answers, reference, strict=True))
    return {
        "ttft_mean_s": spread(sum(s.ttfts) / len(s.ttfts) for s in slices),
        "ttft_p50_s": spread(rank(s.ttfts, 0.5) for s in slices),
        "ttft_p99_s": spread(rank(s.ttfts, 0.99) for s in slices),
        "requests_per_s": spread(s.requests / s.seconds for s in slices),
        "cpu_s": spread(s.usage.cpu_s for s in slices),
        "written_mib": spread(s.usage.written_bytes / MIB for s in slices),
        "same_text": [sum(list(mine) == list(theirs) for mine, theirs in pairs), len(pairs)],
        "requests": sum(s.requests for s in slices),
        "ttft_s": [ttft for s in slices for ttft in s.ttfts],
    }


def joined(slices: Iterable[Slice]) -> Slice:
    """Several turns of one round as one."""
    ttfts, seconds, requests, used, answers = list[float](), 0.0, 0, Usage(0.0, 0), list[list[int]]()
    for s in slices:
        ttfts += s.ttfts
        answers += s.answers
        seconds, requests, used = seconds + s.seconds, requests + s.requests, used + s.usage
    return Slice(ttfts, seconds, requests, used, answers)
