"""Who keeps blocks in bench_storage.py: a process each, in the environment that it needs.

    python storage_engines.py NAME FOLDER

makes the one of that name and says in a line of JSON what it is, or why it can't be had; then it answers each line,
[what, arguments ...], with a line: the bytes moved, and the seconds and the seconds of processor that it took, daemons
included. Here is memcpy; kvtier's tiers and O_DIRECT are in storage_kvtier.py, the peers in storage_peers.py.

    InMemory      blocks go from a flat buffer, as an engine might have it, into the store's memory, and back to another
    OnDisk        blocks go from the store's memory to the disk and back: nothing is copied beside

Both move a CELL a turn, in random order, so many blocks a request.
"""

import ctypes
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

CELL, REQUEST = 256 << 20, 64 << 20  # bytes of a turn, of a request
ROOM = 640 << 20  # of a store in memory: a cell, what is lent in advance or fragmented, and more
DISK = 2 * CELL  # of a store on disk: one cell is written while the one before lies there
PATIENCE_S = 30.0
HUGE_PAGE = 2 << 20
CPU_CLOCK_OF = 2  # CPUCLOCK_SCHED of the kernel's clock ids


def memory(size: int) -> np.ndarray:
    """Touched, on huge pages where they can be had."""
    region = mmap.mmap(-1, size + HUGE_PAGE)
    region.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(region, np.uint8)
    aligned = raw[-raw.ctypes.data % HUGE_PAGE :][:size]
    aligned[:] = 1
    return aligned


def some_bytes(size: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng().bytes(size), np.uint8)


def requests(size: int, at_once: int) -> Iterator[list[int]]:
    """Where the blocks of a cell lie, in random order, as many a request as there are `at_once`."""
    starts = random.sample(range(0, CELL, size), CELL // size)
    return (starts[i : i + at_once] for i in range(0, len(starts), at_once))


def cpu_s(pids: Sequence[int]) -> float:
    """Of this process and those."""
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | CPU_CLOCK_OF) for pid in pids)


class Storage:
    """All of them."""

    version = ""
    mode = ""  # how it is set up, a line
    durable = "no: it is in memory"  # what is known of a block when its put is counted
    pids: tuple[int, ...] = ()  # of its daemons

    def clear(self, size: int) -> None:
        """What was put is forgotten, and blocks of this size may come. Not timed."""

    def put(self, size: int, at_once: int) -> None:
        raise NotImplementedError

    def get(self, size: int, at_once: int) -> None:
        """What was put last."""
        raise NotImplementedError

    def check(self, size: int) -> None:
        """Raises when what get() found differs from what was put."""

    def moved(self, size: int) -> int:
        """Bytes a turn."""
        return CELL // size * size

    def close(self) -> None:
        """Also its daemons."""


class InMemory(Storage):
    def __init__(self) -> None:
        self.source, self.target = memory(CELL), memory(CELL)
        self.source[:] = some_bytes(CELL)
        self.from_, self.to = self.source.ctypes.data, self.target.ctypes.data

    def check(self, size: int) -> None:
        assert (self.source == self.target).all()
        self.target[:] = 0


# --- a limit -----------------------------------------------------------------------------------------------------


class Memcpy(InMemory):
    mode = "ctypes.memmove, one thread, a block a call, all memory on huge pages"

    def __init__(self) -> None:
        super().__init__()
        self._kept = memory(CELL)
        self._places: dict[int, int] = {}

    def put(self, size: int, at_once: int) -> None:
        places = iter(range(self._kept.ctypes.data, self._kept.ctypes.data + CELL, size))
        for starts in requests(size, at_once):
            for start in starts:
                self._places[start] = place = next(places)
                ctypes.memmove(place, self.from_ + start, size)

    def get(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            for start in starts:
                ctypes.memmove(self.to + start, self._places[start], size)


# --- a process each ----------------------------------------------------------------------------------------------


def made(name: str, folder: Path) -> Storage:
    """Imports what the environments of others lack."""
    if name == "memcpy":
        return Memcpy()
    if name.startswith(("lmcache", "mooncake")):
        from storage_peers import MAKERS
    else:
        from storage_kvtier import MAKERS
    return MAKERS[name](folder)


def timed(storage: Storage, what: str, size: int, at_once: int) -> dict[str, float]:
    move = getattr(storage, what)
    cpu, begun = cpu_s(storage.pids), time.perf_counter()
    move(size, at_once)
    seconds = time.perf_counter() - begun
    return {"bytes": storage.moved(size), "seconds": seconds, "cpu_s": cpu_s(storage.pids) - cpu}


def answer(storage: Storage, what: str, *arguments: int) -> dict[str, float]:
    if what in ("put", "get"):
        return timed(storage, what, *arguments)
    getattr(storage, what)(*arguments)
    return {}


def serve(name: str, folder: Path, questions: Iterable[str], answers: TextIO) -> None:
    """Until there are no more questions."""

    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        storage = made(name, folder)
    except (ImportError, OSError, RuntimeError) as reason:
        say({"absent": f"{type(reason).__name__}: {reason}"})
        return
    try:
        say({"version": storage.version, "mode": storage.mode, "durable": storage.durable})
        for line in questions:
            say(answer(storage, *json.loads(line)))
    finally:
        storage.close()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # peers print, too
    serve(sys.argv[1], Path(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
