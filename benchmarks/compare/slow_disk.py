"""(g): conversations lie on disk, and the disk has become slow: a tenth of its speed, and so slow that computing is faster.

A contender's processes are held to so many bytes a second, read and written, by the kernel's own controller: cgroup v1's
blkio, or io of cgroup v2. What the page cache has never reaches the disk, so it is emptied before. With v1, what is
written through the page cache goes out by the kernel's own threads at full speed: only writes with O_DIRECT are slow
there. All reads are held. A tenth is of what O_DIRECT gave in the same run.

The first request of a round counts like the others: nobody is told, and who believes in the disk as it was pays for it.
kvtier's RAM goes with a restart of its daemon, so it has to learn the slow disk anew in each round; vLLM's own tiers and
LMCache don't learn. What this doesn't show: a drive that is slow by itself, for its latency grows otherwise than that of
a throttled one, and a disk that others keep busy.
"""

import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import drop_pages, raw_limits
from spreads import spread

from compare.contender import CannotDo, Contender
from compare.measures import Slice, cell, rank, usage
from compare.run import PLAIN
from compare.starting import FAILURES, reason
from compare.workloads import ANSWER, Take, Tokens

STORED, NEW = 1990, 60  # tokens of a conversation, 15 whole blocks, and of the question with which it comes back
CONVERSATIONS, QUICK_CONVERSATIONS = 4, 3
VERY_SLOW = 10_000_000  # bytes/s
MEASURED_BYTES, MEASURED_AT_ONCE, READS = 256 << 20, 2 << 20, 3
NO_OFFLOAD = "prefix"


@dataclass(frozen=True)
class Disk:
    name: str
    title: str
    gives: str
    rounds: int
    quick_rounds: int
    speed: Callable[[float], float]  # bytes/s, of what O_DIRECT gave

    def described(self) -> dict[str, object]:
        what = (
            f"{CONVERSATIONS} conversations of {STORED} tokens lie on disk and nowhere else, and come back one by one with "
            f"{NEW} tokens more. The disk gives a contender's processes {self.gives}."
        )
        return {"title": self.title, "what": what, "rounds": self.rounds}


SLOW = Disk(
    "g_slow_disk",
    "A disk ten times slower",
    "a tenth of what O_DIRECT gave in the same run",
    rounds=2,
    quick_rounds=1,
    speed=lambda whole: whole / 10,
)
TOO_SLOW = Disk(
    "g_very_slow_disk",
    "A disk so slow that computing is faster",
    f"{VERY_SLOW // 10**6} MB/s",
    rounds=1,
    quick_rounds=0,
    speed=lambda _: VERY_SLOW,
)
WORKLOADS = {disk.name: disk.described() for disk in (SLOW, TOO_SLOW)}

Say = Callable[[str], None]
Cells = dict[str, dict[str, Any]]


class CannotSlow(CannotDo):
    """No process can be held to a speed of the disk here; the message says why."""


# --- a disk that is slow for some ------------------------------------------------------------------------------


def disk_of(folder: Path) -> str:
    """The number of the disk that the folder lies on, as "254:0"; a partition's is its disk's. Raises CannotSlow."""
    device = folder.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not block.exists():
        raise CannotSlow(f"{folder} lies on no block device of its own ({os.major(device)}:{os.minor(device)})")
    if (block / "partition").exists():
        block = block.resolve().parent
    return (block / "dev").read_text().strip()


def reads_bytes_per_s(folder: Path) -> float:
    """What O_DIRECT reads of the folder's disk, several at once."""
    path = folder / "speed"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    memory = memoryview(mmap.mmap(-1, MEASURED_BYTES))
    try:
        os.posix_fallocate(fd, 0, MEASURED_BYTES)
        raw = raw_limits(fd, memory)["raw_threads"]
        raw.write(MEASURED_AT_ONCE)
        return statistics.median(MEASURED_BYTES / _seconds(lambda: raw.read(MEASURED_AT_ONCE)) for _ in range(READS))
    finally:
        os.close(fd)
        path.unlink()


def _seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Controller:
    """Where groups of processes are made, and how a group is told its speed."""

    root: Path
    version: int

    @classmethod
    def here(cls, mounts: Path = Path("/proc/mounts")) -> "Controller":
        """Raises CannotSlow."""
        for line in mounts.read_text().splitlines():
            _, mounted, kind, options = line.split()[:4]
            root = Path(mounted)
            if kind == "cgroup" and "blkio" in options.split(","):
                return cls(root, 1)
            if kind == "cgroup2" and "io" in (root / "cgroup.controllers").read_text().split():
                return cls(root, 2)
        raise CannotSlow("there is neither cgroup v1's blkio nor cgroup v2's io")

    def make(self) -> Path:
        """A group. OSError: not allowed."""
        if self.version == 2:
            (self.root / "cgroup.subtree_control").write_text("+io")
        group = self.root / f"kvtier-slow-{os.getpid()}"
        group.mkdir()
        return group

    def limit(self, group: Path, disk: str, bytes_per_s: int) -> None:
        """0: not at all."""
        if self.version == 2:
            speed = bytes_per_s or "max"
            (group / "io.max").write_text(f"{disk} rbps={speed} wbps={speed}")
        else:
            for direction in ("read", "write"):
                (group / f"blkio.throttle.{direction}_bps_device").write_text(f"{disk} {bytes_per_s}")

    def home(self, pid: int) -> Path:
        """The group that a process is in."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" if self.version == 2 else "blkio" in controllers.split(","):
                return self.root / path.lstrip("/")
        return self.root


@contextmanager
def slowed(pids: Iterable[int], folder: Path, bytes_per_s: int) -> Iterator[None]:
    """These processes, all their threads and the children that they start get so much of the folder's disk. Raises
    CannotSlow, and then nothing was changed."""
    controller, disk = Controller.here(), disk_of(folder)
    try:
        group = controller.make()
    except OSError as refused:
        raise CannotSlow(f"no group can be made under {controller.root}: {refused.strerror}") from None
    homes = {}
    try:
        try:
            controller.limit(group, disk, bytes_per_s)
            for pid in pids:
                homes[pid] = controller.home(pid)
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as refused:
            raise CannotSlow(f"disk {disk} can't be slowed in {group}: {refused.strerror}") from None
        yield
    finally:
        with suppress(OSError):
            controller.limit(group, disk, 0)  # what still waits for the disk goes at once
        _empty(group, homes, controller.root)
        group.rmdir()


def _empty(group: Path, homes: dict[int, Path], root: Path) -> None:
    while pids := (group / "cgroup.procs").read_text().split():
        for pid in map(int, pids):
            with suppress(ProcessLookupError):  # it has ended
                (homes.get(pid, root) / "cgroup.procs").write_text(str(pid))


def forget_pages(folder: Path) -> None:
    """Of all files in it, nothing is in the page cache any more."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # gone meanwhile
            if path.is_file():
                drop_pages(path)


# --- the workload ----------------------------------------------------------------------------------------------


@dataclass
class Turns:
    """Of one contender at one speed, a slice a round; of how many tokens it was promised for each request."""

    slices: list[Slice] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)


def cells(contenders: Sequence[Contender], take: Take, quick: bool, say: Say) -> dict[str, Cells]:
    """By workload and contender; a quick run leaves TOO_SLOW out. The contenders run, before and after."""
    folder = contenders[0].rig.folder
    try:
        with slowed([], folder, VERY_SLOW):
            whole = reads_bytes_per_s(folder)
    except CannotSlow as why:
        return {disk.name: {each.name: {"absent": str(why)} for each in contenders} for disk in (SLOW, TOO_SLOW)}
    say(f"O_DIRECT reads {whole / 1e9:.2f} GB/s")
    failed: dict[str, str] = {}
    stored = [take(STORED) for _ in range(QUICK_CONVERSATIONS if quick else CONVERSATIONS)]
    for contender in contenders:
        say(f"slow disk: {contender.title} computes what is stored")
        _do(failed, _store, contender, stored)
    found = {}
    for disk in (SLOW, TOO_SLOW):
        turns = {each.name: Turns() for each in contenders}
        speed, rounds = int(disk.speed(whole)), disk.quick_rounds if quick else disk.rounds
        for number in range(rounds):
            prompts = [prompt + take(NEW) for prompt in stored]
            first = number % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                say(f"{disk.title}, {speed / 1e6:.0f} MB/s, round {number + 1}: {contender.title}")
                _do(failed, _turn, contender, prompts, speed, turns[contender.name])
        out = failed if rounds else dict.fromkeys(turns, "left out of a quick run")
        found[disk.name] = _summed_up(turns, out, {"disk_bytes_per_s": speed, "disk_whole_bytes_per_s": int(whole)})
    return found


def _do(failed: dict[str, str], do: Callable[..., None], contender: Contender, *arguments: Any) -> None:
    """Who has failed before gets no turn."""
    if contender.name not in failed:
        try:
            do(contender, *arguments)
        except FAILURES as failure:
            failed[contender.name] = reason(failure)


def _store(contender: Contender, prompts: Sequence[Tokens]) -> None:
    assert contender.engine is not None
    for prompt in prompts:
        contender.engine.generate([list(prompt)], 1, logprobs=0)
    contender.settle()


def _turn(contender: Contender, prompts: Sequence[Tokens], bytes_per_s: int, turns: Turns) -> None:
    engine = contender.engine
    assert engine is not None
    _only_on_disk(contender)
    before, begun = usage(contender.pids()), time.monotonic()
    with slowed(contender.pids(), contender.folder, bytes_per_s):
        answers = [engine.generate([list(prompt)], ANSWER, logprobs=0, drain=False)[0] for prompt in prompts]
        seconds = time.monotonic() - begun
    contender.settle()
    used = usage(contender.pids()) - before
    ttfts = [answer.ttft for answer in answers if answer.ttft is not None]
    turns.slices.append(Slice(ttfts, seconds, len(prompts), used, [answer.tokens for answer in answers]))
    turns.loaded += [answer.external_tokens or 0 for answer in answers]


def _only_on_disk(contender: Contender) -> None:
    assert contender.engine is not None
    contender.settle()
    if contender.name not in PLAIN:
        contender.drop_ram()
    assert contender.engine.reset()
    forget_pages(contender.folder)


def _summed_up(turns: dict[str, Turns], failed: dict[str, str], disk: dict[str, int]) -> Cells:
    done = {name: mine for name, mine in turns.items() if name not in failed}
    reference = [answer for one in done["recompute"].slices for answer in one.answers] if "recompute" in done else None
    summed: Cells = {name: {"absent": why} for name, why in failed.items()}
    for name, mine in done.items():
        summed[name] = cell(mine.slices, reference) | {"loaded_tokens": mine.loaded} | disk
        if NO_OFFLOAD in done:
            without = [rank(one.ttfts, 0.99) for one in done[NO_OFFLOAD].slices]
            over = [rank(one.ttfts, 0.99) / plain for one, plain in zip(mine.slices, without, strict=True)]
            summed[name]["p99_over_no_offload"] = spread(over)
    return {name: summed[name] for name in turns}
