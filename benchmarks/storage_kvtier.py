"""kvtier's tiers and what a disk gives, as storage_engines.py has it.

raw_threads, raw_io_uring           O_DIRECT without checksum or record
kvtier, kvtier_two_threads          the RAM tier of a kvtierd, copies by one thread of kvtier's copier or by two
kvtier_nvme, kvtier_nvme_exp12      the NVMe tier; blocks as they are, or as frames
"""

import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import coded_shares
import models
import numpy as np
import real_kv
from contenders import DEPTH, DrivenTier, raw_limits
from kvtierd import KVTierd
from remote.servers import die_with_parent
from storage_engines import CELL, PATIENCE_S, REQUEST, ROOM, InMemory, Storage, requests, some_bytes

from kvtier import _native
from kvtier.block import ABSENT, KEY_BYTES, SLOT_UNIT
from kvtier.client import SchedulerClient
from kvtier.protocol import SCHEDULER, VERSION, WORKER, Hello
from kvtier.worker_client import WorkerClient

BLOCK_TOKENS = 128


class RawDisk(Storage):
    durable = "yes: fdatasync at the end of each turn"

    def __init__(self, folder: Path, kind: str) -> None:
        self.mode = f"O_DIRECT by {kind.replace('_', ' ')}, {DEPTH} requests at once, one file, written before"
        folder.mkdir()
        self._arena = _native.Arena.create(CELL, "kvtier-bench-storage", pin=False)
        self._arena.view()[:] = some_bytes(CELL)
        self._fd = os.open(folder / "raw", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self._fd, 0, CELL)
        limits = raw_limits(self._fd, memoryview(self._arena.view()))
        if kind not in limits:
            raise OSError("the kernel refuses io_uring")
        self._raw = limits[kind]

    def put(self, size: int, at_once: int) -> None:
        self._raw.write(size)

    def get(self, size: int, at_once: int) -> None:
        self._raw.read(size)

    def close(self) -> None:
        self._raw.close()
        os.close(self._fd)


# --- kvtier ------------------------------------------------------------------------------------------------------


class KVTier(InMemory):
    """As an engine's scheduler and worker use it, both here: a kvtierd, asked over its socket."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__()
        self.version = f"kvtier {version('kvtier')}"
        self.mode = f"kvtierd's defaults, asked over its socket; copies by {threads} thread{'s' * (threads > 1)}"
        folder.mkdir()
        self._daemon = KVTierd(folder, {"cpu.capacity": ROOM})
        self._daemon.before_exec = die_with_parent
        self._daemon.start()
        self.pids = (self._daemon.pid,)
        self._saver, self._loader = _native.Copier(threads), _native.Copier(threads)
        self._size, self._clients = 0, ()
        self._keys: dict[int, bytes] = {}

    def _connect(self, size: int) -> None:
        for client in self._clients:
            client.close()
        name, socket = os.urandom(8).hex(), self._daemon.socket
        lend = 2 * REQUEST // size
        hello = Hello(VERSION, SCHEDULER, name, os.urandom(32), size, BLOCK_TOKENS, lend)
        self._scheduler = SchedulerClient(socket, hello, 1)
        worker = WorkerClient(socket, Hello(VERSION, WORKER, name, b"", 0, 0, 0))
        self._clients, self._size = (self._scheduler, worker), size
        given = self._until(lambda: self._heard(worker).take_arena())
        self._arena = _native.Arena.attach(given.fd, given.size)
        os.close(given.fd)
        worker.mapped(time.monotonic())
        self._until(lambda: self._heard(self._scheduler).ready or None)

    def _heard(self, client: Any) -> Any:
        client.poll(time.monotonic())
        return client

    def _until(self, look: Callable[[], Any]) -> Any:
        """What `look` returns as soon as it isn't None."""
        until = time.monotonic() + PATIENCE_S
        while (found := look()) is None:
            assert time.monotonic() < until, "kvtierd doesn't answer"
            self._scheduler.wait(time.monotonic() + 0.01)
            self._scheduler.poll(time.monotonic())
        return found

    def clear(self, size: int) -> None:
        if self._keys:
            self._scheduler.reset(time.monotonic())
            self._release(*self._lookup(list(self._keys), absent=True))  # answered after it has forgotten
        if size != self._size:
            self._connect(size)
        self._keys = {start: os.urandom(KEY_BYTES) for start in range(0, CELL, size)}

    def _lookup(self, starts: Sequence[int], absent: bool = False) -> tuple[int, np.ndarray]:
        """A lease, and slots."""
        lease = self._scheduler.lookup(b"".join(self._keys[start] for start in starts), 0, time.monotonic())
        slots = self._until(lambda: self._scheduler.answer(lease))
        assert ((slots == ABSENT) == absent).all()
        return lease, slots

    def _release(self, lease: int, slots: np.ndarray) -> None:
        self._scheduler.release(lease, len(slots), time.monotonic())

    def _borrow(self, count: int) -> list[int]:
        slots: list[int] = []

        def more() -> bool | None:
            slots.extend(self._scheduler.borrow(count - len(slots)))
            return len(slots) == count or None

        self._until(more)
        return slots

    def _places(self, slots: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.array(slots, np.uint64) * np.uint64(SLOT_UNIT) + np.uint64(self._arena.address)

    def put(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            slots = self._borrow(len(starts))
            self._copy(self._saver, flat(starts, self.source), self._places(slots), size)
            keys = b"".join(self._keys[start] for start in starts)
            self._scheduler.commit(keys, slots, self._scheduler.generation, time.monotonic())
        self._release(*self._lookup(starts))  # answered when all is kept

    def get(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            lease, slots = self._lookup(starts)
            self._copy(self._loader, self._places(slots), flat(starts, self.target), size)
            self._release(lease, slots)

    def _copy(self, copier: Any, source: np.ndarray, target: np.ndarray, size: int) -> None:
        copier.wait(copier.submit(source, target, np.full(len(source), size, np.uint64)))
        copier.poll()

    def close(self) -> None:
        self._daemon.kill()


def flat(starts: Sequence[int], buffer: np.ndarray) -> np.ndarray:
    """Addresses."""
    return np.array(starts, np.uint64) + np.uint64(buffer.ctypes.data)


class KVTierNvme(Storage):
    """The tier as the daemon's loop drives it: as much under way as the store has."""

    durable = "yes: each turn ends with a flush; blocks are synced before their records, and the records too"

    def __init__(self, folder: Path, coded: bool) -> None:
        self.version = f"kvtier {version('kvtier')}"
        self._arena = _native.Arena.create(CELL, "kvtier-bench-storage", pin=False)
        more: dict[str, Any] = {}
        if coded:
            self._block_bytes = coded_shares.BLOCK_BYTES
            blocks = real_kv.blocks(models.smollm2(models.cache_root()), coded_shares.DISTINCT)
            self._arena.view()[:] = np.resize(blocks.ravel(), CELL)
            more = {"codec": coded_shares.CODEC, "stored": coded_shares.place_bytes(self._arena)}
        else:
            self._block_bytes = 0
            self._arena.view()[:] = some_bytes(CELL)
        self._tier = DrivenTier(folder, self._arena, CELL, **more)
        self.mode = f"O_DIRECT by {self._tier.tier.io_backend}; checksums are written, and compared at each read"
        if coded:
            self.mode += f"; exp12, blocks of {self._block_bytes:,} bytes: 128 tokens of SmolLM2-135M on real text, in bf16"

    def put(self, size: int, at_once: int) -> None:
        self._tier.write(self._block_bytes or size)

    def get(self, size: int, at_once: int) -> None:
        self._tier.read(self._block_bytes or size)

    def moved(self, size: int) -> int:
        return super().moved(self._block_bytes or size)

    def close(self) -> None:
        self._tier.close()


MAKERS: dict[str, Callable[[Path], Storage]] = {
    "raw_threads": lambda folder: RawDisk(folder, "raw_threads"),
    "raw_io_uring": lambda folder: RawDisk(folder, "raw_io_uring"),
    "kvtier": lambda folder: KVTier(folder, threads=1),
    "kvtier_two_threads": lambda folder: KVTier(folder, threads=2),
    "kvtier_nvme": lambda folder: KVTierNvme(folder, coded=False),
    "kvtier_nvme_exp12": lambda folder: KVTierNvme(folder, coded=True),
}
