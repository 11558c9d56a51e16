"""What tests of visitors stand on: a store with an arena, an engine that saves, drives that a test lets work, a visitor."""

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from kvtier.admission import Budget
from kvtier.block import SLOT_UNIT, Kind
from kvtier.extents import Extents
from kvtier.store import BlockStore
from kvtier.tiers.remote.envelope import Header, checksum_of
from kvtier.transfer import Demote, Finished, Promote
from kvtier.visitor import Visitor

MIB = 1024**2
BLOCK = MIB // 4
RED, BLUE = b"red".ljust(32), b"blue".ljust(32)
KIND = Kind(BLOCK, 16, True)
T = TypeVar("T")


class World:
    """All of it."""

    def __init__(self, has_drives: bool = True, slabs: int = 8) -> None:
        self.store = BlockStore(slabs * 2 * MIB, lend_share=0.5, lease_share=0.5)
        if has_drives:
            self.store.attach(Extents(8, 2 * MIB), Budget(2**40, 0.0), 1.0, {})
        self.arena = np.zeros(slabs * 2 * MIB, np.uint8)
        self.drives: dict[int, bytes] = {}
        self.fault = ""
        self.visitor = Visitor(self.store, self.arena, lambda: None, "test")
        self.store.join("a", RED, BLOCK, 16, 16, 0.0)
        self.store.lends()

    def run(self) -> None:
        """The drives do all that they are told; the visitor hears of it."""
        while orders := self.store.transfers(0.0):
            for order in orders:
                checksum = 0
                if isinstance(order, Demote):
                    body = self.bytes_of(order.slot, order.size)
                    self.drives[order.place] = body.tobytes()
                    checksum = checksum_of(order.key, body)
                elif isinstance(order, Promote) and not self.fault:
                    self.bytes_of(order.slot, order.size)[:] = np.frombuffer(self.drives[order.place], np.uint8)
                fault = self.fault if isinstance(order, Promote) else ""
                self.store.finished(Finished(order.ticket, fault, checksum), 0.0)
        self.visitor.settle()

    def bytes_of(self, slot: int, size: int = BLOCK) -> np.ndarray:
        return self.arena[slot * SLOT_UNIT : slot * SLOT_UNIT + size]

    def save(self, *numbers: int) -> list[bytes]:
        """An engine saves these. Their contents."""
        contents = []
        for number in numbers:
            slot = min(self.store.lending.engines["a"].lent)
            contents.append(os.urandom(BLOCK))
            self.bytes_of(slot)[:] = np.frombuffer(contents[-1], np.uint8)
            self.store.commit("a", key(number), np.array([slot], np.uint32))
            self.store.lends()
        self.run()
        return contents

    def slot(self, number: int) -> int:
        return int(self.store.ram.index.find(key(number))[0])

    def evict(self, *numbers: int) -> None:
        for number in numbers:
            self.store.ram._evict(self.slot(number), "others came")

    def header(self, number: int, content: bytes, digest: bytes = RED, epoch: int = 0, origin: bytes = b"") -> Header:
        checksum = checksum_of(key(number), np.frombuffer(content, np.uint8))
        return Header(key(number), len(content), checksum, digest, epoch, origin)

    async def read(self, number: int, digest: bytes = RED) -> tuple[Header, bytes] | None:
        async with self.visitor.read(digest, key(number)) as found:
            return None if found is None else (found[0], bytes(found[1]))

    async def soon(self) -> None:
        """What was put off has happened, and the drives have worked."""
        for _ in range(3):
            await asyncio.sleep(0)
            self.run()


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def done(test: Callable[[], T]) -> T:
    return asyncio.run(test())  # type: ignore[arg-type]
