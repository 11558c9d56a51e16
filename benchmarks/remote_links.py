"""How fast blocks come over a link that is slower than memory, as they are and in frames: a part of bench_remote.py.

A RemoteTier with all that belongs to it, over a remote in this process whose link has so many bytes a second each way, all
calls together. Blocks of 2 MiB of bf16, normally distributed: what codecs make of them is near to what they make of a
model's. All are ordered at once; each round has every codec, in an order that changes, and a share is a quotient of one
round. What is read is verified by the tier, as ever.

What this doesn't show: the processor's time for a network; a link that is busy; a machine whose cores have other work.
"""

import asyncio
import random
import select
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from coded_blocks import of_bf16

from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.codec import LOSSLESS, RAW, Codec
from kvtier.tiers.encoders import why_not
from kvtier.tiers.remote.remote import RemoteTier
from kvtier.transfer import Demote, Finished, Promote, Remember

LINKS = {"10gbe": 1.25e9, "2_5gbe": 312.5e6}  # bytes a second
BLOCK, BLOCKS = 2 << 20, 48
UNITS = BLOCK // SLOT_UNIT
ROUNDS_MIN = 5
CODECS = (RAW, *map(Codec, LOSSLESS))


class Line:
    """One way of a link."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        """Until so many bytes more have passed."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + size / self._bytes_per_s
        await asyncio.sleep(self._free_at - now)


class LinkedRemote:
    """Values in memory, behind a link."""

    def __init__(self, bytes_per_s: float) -> None:
        self._values: dict[str, tuple[bytes, np.ndarray]] = {}
        self._here, self._there = Line(bytes_per_s), Line(bytes_per_s)

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        found = [self._values.get(name) for name in names]
        return [None if value is None else len(value[0]) + len(value[1]) for value in found]

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        value = self._values.get(name)
        if value is None:
            return False
        header[:] = value[0]
        np.copyto(np.frombuffer(body, np.uint8), value[1])
        await self._here.take(len(header) + len(body))
        return True

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        there = self._values.get(name)
        copy = there[1] if there and len(there[1]) == len(body) else np.empty(len(body), np.uint8)
        np.copyto(copy, np.frombuffer(body, np.uint8))
        self._values[name] = header, copy
        await self._there.take(len(header) + len(body))

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._values.pop(name, None)

    async def close(self) -> None:
        """Nothing is open."""


class Link:
    def __init__(self, bytes_per_s: float) -> None:
        self._arena = np.empty(2 * BLOCKS * BLOCK, np.uint8)
        for n in range(BLOCKS):
            self._arena[n * BLOCK : (n + 1) * BLOCK] = of_bf16(BLOCK, n)
        self._tier = RemoteTier(LinkedRemote(bytes_per_s), self._arena)
        self._ticket = 0
        self._stored: dict[str, list[int]] = {}  # by codec
        self.speeds: dict[tuple[str, str], list[float]] = {}  # GB/s of blocks
        self.coded_s: dict[tuple[str, str], float] = {}  # of all blocks
        self._do([Remember(self._next(), b"\x0d" * 32, 7, 0)])

    def round(self) -> None:
        for codec in random.sample(CODECS, len(CODECS)):
            if not why_not(codec):
                self._stored[codec.name] = self._timed(codec, "write", [self._demote(codec, n) for n in range(BLOCKS)])
                stored = self._stored[codec.name]
                self._arena[BLOCKS * BLOCK :] = 0
                self._timed(codec, "read", [self._promote(codec, n, stored[n]) for n in range(BLOCKS)])
                assert np.array_equal(self._arena[: BLOCKS * BLOCK], self._arena[BLOCKS * BLOCK :]), "other bytes"

    def _timed(self, codec: Codec, what: str, orders: list[Any]) -> list[int]:
        """Bytes that lie there, of each."""
        begun = time.perf_counter()
        done = self._do(orders)
        seconds = time.perf_counter() - begun
        assert not any(one.fault for one in done)
        self.speeds.setdefault((codec.name, what), []).append(BLOCKS * BLOCK / 1e9 / seconds)
        self.coded_s[codec.name, what] = sum(one.coded_s for one in done)
        return [one.stored for one in sorted(done, key=lambda one: one.ticket)]

    def _do(self, orders: list[Any]) -> list[Finished]:
        for order in orders:
            self._tier.start(order)
        done: list[Finished] = []
        while len(done) < len(orders):
            select.select([self._tier.fileno()], [], [])
            done += self._tier.poll()
        return done

    def _next(self) -> int:
        self._ticket += 1
        return self._ticket

    def _demote(self, codec: Codec, n: int) -> Demote:
        return Demote(self._next(), _key(codec, n), n * UNITS, 0, BLOCK, 7, 0, codec=codec, stored=BLOCK)

    def _promote(self, codec: Codec, n: int, stored: int) -> Promote:
        return Promote(self._next(), _key(codec, n), (BLOCKS + n) * UNITS, 0, BLOCK, 0, 7, stored)

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, stored in self._stored.items():
            facts = found[name] = {"ratio": round(BLOCKS * BLOCK / sum(stored), 3)}
            for what in ("read", "write"):
                speeds, raw = self.speeds[name, what], self.speeds[RAW.name, what]
                facts[f"{what}_gb_s"] = round(statistics.median(speeds), 3)
                facts[f"{what}_share"] = round(statistics.median(a / b for a, b in zip(speeds, raw, strict=True)), 3)
                facts[f"{what}_coded_s"] = round(self.coded_s[name, what], 3)
        return found

    def close(self) -> None:
        self._tier.close()


def _key(codec: Codec, n: int) -> bytes:
    return codec.name.encode().ljust(KEY_BYTES - 2, b".") + n.to_bytes(2, "little")


def measure_link(bytes_per_s: float, seconds: float) -> dict[str, Any]:
    """By codec: ratio, GB/s of blocks read and written, and these as shares of what blocks as they are come to."""
    link = Link(bytes_per_s)
    link.round()
    link.speeds.clear()
    begun, rounds = time.monotonic(), 0
    while rounds < ROUNDS_MIN or time.monotonic() < begun + seconds:
        link.round()
        rounds += 1
    link.close()
    return {"gb_s": bytes_per_s / 1e9, "rounds": rounds, **link.outcome()}
