"""What frames on the drives cost and spare, for bench_nvme.py: the same rounds, with blocks that look like KV.

A block has BLOCK_BYTES, 128 tokens of a small model: random bf16 as keys and values have it, by a normal distribution,
which exp12 makes as much smaller as trained ones. Each has the smallest place that all of their frames fit into. A
share is bytes of blocks a second, verified, of what O_DIRECT moves with requests as large as the blocks.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from contenders import DrivenTier, raw_limits, shuffled

from kvtier import _native
from kvtier.block import SLOT_UNIT
from kvtier.codec import Codec
from kvtier.tiers import block_io

BLOCK_BYTES = 2_949_120
DISTINCT = 8  # blocks; all others are copies of these
CODEC = Codec("exp12")
ROUNDS_MIN = 5
THREADS = {"1_thread": 1, "": 2, "encrypted": 2, "raw_1_thread": 1}  # of I/O, by contender


def fill(arena: _native.Arena) -> None:
    """With what looks like KV."""
    chance = np.random.default_rng()
    values = chance.standard_normal(DISTINCT * BLOCK_BYTES // 2, np.float32)
    kv = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    memory = arena.view()
    for at in range(0, len(memory), len(kv)):
        memory[at : at + len(kv)] = kv[: len(memory) - at]


def place_bytes(arena: _native.Arena) -> int:
    """The least that the frames of all blocks fit into, in whole units."""
    codec, room, most = _native.Codec(CODEC.name), np.empty(BLOCK_BYTES, np.uint8), 0
    for n in range(DISTINCT):
        made = codec.encode(arena.view()[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES], room)
        assert made is not None
        most = max(most, made[0])
    return -(-most // SLOT_UNIT) * SLOT_UNIT


class CodedShares:
    def __init__(self, folder: Path, arena: _native.Arena, cell_bytes: int) -> None:
        fill(arena)
        self.stored, self._moved = place_bytes(arena), cell_bytes // BLOCK_BYTES * BLOCK_BYTES
        self._fd = os.open(folder / "raw_of_coded", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self._fd, 0, cell_bytes)
        self._limits = raw_limits(self._fd, memoryview(arena.view()))
        self._tiers, self._undone = {}, ExitStack()
        for name, threads in THREADS.items():
            more: dict[str, Any] = {} if "raw" in name else {"codec": CODEC, "stored": self.stored}
            with mock.patch.object(block_io, "IO_THREADS", threads):
                tier = DrivenTier(folder / f"coded_{name}", arena, cell_bytes, encrypted=name == "encrypted", **more)
            self._tiers[name] = tier
        self._speeds: dict[tuple[str, str], list[float]] = {}  # GB/s, by who and what
        self._cpu: dict[tuple[str, str], list[float]] = {}  # s/GB

    def run(self, seconds: float) -> None:
        """The first two rounds write what was never written, and don't count."""
        for _ in range(2):
            self._round()
        self._speeds.clear()
        self._cpu.clear()
        begun = time.monotonic()
        for number in itertools.count(1):
            self._round()
            if number >= ROUNDS_MIN and time.monotonic() - begun >= seconds:
                return

    def _round(self) -> None:
        for what in ("write", "read"):
            for who, contender in shuffled((self._limits | self._tiers).items()):
                self._time((who, what), getattr(contender, what))

    def _time(self, cell: tuple[str, str], move: Callable[[int], None]) -> None:
        cpu, begun = time.process_time(), time.perf_counter()
        move(BLOCK_BYTES)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        self._speeds.setdefault(cell, []).append(self._moved / 1e9 / seconds)
        self._cpu.setdefault(cell, []).append(cpu / (self._moved / 1e9))

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = {f"capacity_{CODEC}": round(BLOCK_BYTES / self.stored, 3)}
        for what in ("write", "read"):
            limit = max(self._limits, key=lambda who: statistics.median(self._speeds[who, what]))
            limits = self._speeds[limit, what]
            found[f"limit_{what}_gb_s_{BLOCK_BYTES}"] = round(statistics.median(limits), 3)
            for name in THREADS:
                of_this = "_".join(filter(None, (f"{what}_share", *(() if "raw" in name else (str(CODEC),)), name)))
                shares = [speed / of for speed, of in zip(self._speeds[name, what], limits)]
                found[of_this] = round(statistics.median(shares), 4)
                found[f"{of_this}_spread"] = [round(min(shares), 4), round(max(shares), 4)]
                found[of_this.replace(f"{what}_share", f"cpu_s_per_gb_{what}")] = round(
                    statistics.median(self._cpu[name, what]), 4
                )
        return found

    def close(self) -> None:
        for contender in (*self._tiers.values(), *self._limits.values()):
            contender.close()
        os.close(self._fd)
