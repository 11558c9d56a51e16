"""One process of an engine, for tests that kill it: a scheduler or a worker with the real client and the real copier.

    python engine_process.py scheduler SOCKET ENGINE SLOT_BYTES LEND
    python engine_process.py worker SOCKET ENGINE SLOT_BYTES [1: it says that its GPU copies]

It polls like an engine does and prints one JSON object a line for what it notices. Commands come as words on stdin:

    scheduler   save N             commit N lent slots as blocks
                borrow N           take up to N lent slots to write into
                lease N            look these N blocks up and hold the lease
    worker      copy BYTE SLOT...  fill these slots with this byte, again and again: a copy that lasts as long as the
                                   test wants
                finish             let that copy end
"""

import json
import os
import select
import sys
import time
from pathlib import Path

import numpy as np

from kvtier import _native, protocol
from kvtier.block import block_key, pack_keys
from kvtier.client import SchedulerClient
from kvtier.worker_client import WorkerClient

POLL_S = 0.002
FRAGMENTS = 64  # of a slot


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def commands() -> list[list[str]]:
    """What was commanded since the last look; waits a moment for it. The end of stdin ends the process."""
    if not select.select([sys.stdin], [], [], POLL_S)[0]:
        return []
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return [line.split()]


class Scheduler:
    def __init__(self, path: Path, engine: str, slot_bytes: int, lend: int) -> None:
        hello = protocol.Hello(protocol.VERSION, protocol.SCHEDULER, engine, b"n" * 32, slot_bytes, 16, lend)
        self.client = SchedulerClient(path, hello, workers=1)
        self.was: tuple[int, bool] = (0, False)

    def step(self) -> None:
        client, now = self.client, time.monotonic()
        client.poll(now)
        state = (client.generation, client.ready)
        if state != self.was:
            self.was = state
            tell(generation=client.generation)
            tell(ready=client.ready)
        for word, number in commands():
            n = int(number)
            keys = pack_keys(block_key(client.secret, b"block %d" % i) for i in range(n))
            if word == "save":
                while client.slots_at_hand < n:  # it may be ready before its slots are here
                    client.poll(time.monotonic())
                    time.sleep(POLL_S)
                slots = client.borrow(n)
                client.commit(keys, slots, client.generation, now)
                tell(saved=slots)
            elif word == "borrow":
                tell(borrowed=client.borrow(n))
            elif word == "lease":
                tell(leased=self.lease(keys))

    def lease(self, keys: bytes) -> list[int]:
        number = self.client.lookup(keys, 0, time.monotonic())
        while self.client.answer(number) is None:
            self.client.wait(time.monotonic() + 1)
            self.client.poll(time.monotonic())
        return self.client.answer(number).tolist()


class Worker:
    def __init__(self, path: Path, engine: str, slot_bytes: int, by_gpu: int = 0) -> None:
        self.copies = "batch" if by_gpu else "memcpy"
        self.client = WorkerClient(path, protocol.Hello(protocol.VERSION, protocol.WORKER, engine, b"", 0, 0, 0))
        self.slot_bytes = slot_bytes
        self.copier = _native.Copier(1)
        self.arena: _native.Arena | None = None
        self.slots: list[int] = []  # being copied into
        self.copying = False
        self.jobs = 0

    def step(self) -> None:
        client, now = self.client, time.monotonic()
        client.poll(now)
        if (given := client.take_arena()) is not None:
            self.arena = _native.Arena.attach(given.fd, given.size)
            os.close(given.fd)
            client.mapped(now, copies=self.copies)
            tell(generation=given.generation)
        self.copy()
        for word, *numbers in commands():
            if word == "copy":
                pattern, *self.slots = map(int, numbers)
                self.source = np.full(self.slot_bytes, pattern, np.uint8)
            elif word == "finish":
                self.slots = []
        if client.draining and not self.copying:
            self.arena.close()
            client.hang_up(now)
            tell(hung_up=True, jobs=self.jobs)

    def copy(self) -> None:
        """Always one job under way while there are slots to fill: no moment at which nothing runs."""
        if self.copying and not self.copier.poll():
            return
        self.copying = bool(self.slots)
        if not self.copying:
            return
        piece = self.slot_bytes // FRAGMENTS
        offsets = np.arange(FRAGMENTS, dtype=np.uint64) * np.uint64(piece)
        starts = np.array(self.slots, np.uint64) * np.uint64(64 * 1024) + np.uint64(self.arena.address)
        targets = (starts[:, None] + offsets).reshape(-1)
        sources = np.tile(offsets + np.uint64(self.source.ctypes.data), len(self.slots))
        self.copier.submit(sources, targets, np.full(len(targets), piece, np.uint64))
        self.jobs += 1
        if self.jobs == 1:
            tell(copying=self.slots)


def main() -> None:
    role, path, engine, *numbers = sys.argv[1:]
    process = {"scheduler": Scheduler, "worker": Worker}[role](Path(path), engine, *map(int, numbers))
    while True:
        process.step()


if __name__ == "__main__":
    main()
