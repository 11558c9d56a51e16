"""The store's side of the contract of tiers, for tests."""

import hashlib
import random
import select
import time
from dataclasses import dataclass
from pathlib import Path

from kvtier.block import KEY_BYTES, SLOT_UNIT, BlockKey
from kvtier.tiers.base import Recovered
from kvtier.transfer import FAULTS, Demote, Erase, Finished, Flush, Forget, Promote, Remember, Transfer

WAIT_S = 30
DIGEST = b"d" * 32
NAMESPACE = 7


@dataclass(frozen=True)
class Stored:
    """A block as the store knows it."""

    key: BlockKey
    place: int
    size: int
    namespace: int
    epoch: int
    checksum: int
    content: int  # what its bytes are made from
    origin: bytes = b""


class Caller:
    """The store's side: starts transfers, counts what comes back, keeps the rules that the contract has for it."""

    def __init__(self, factory, folder: Path) -> None:
        self.factory = factory
        self.tier = factory.make(folder)
        self.under_way: set[int] = set()
        self.finished: dict[int, Finished] = {}
        self.order: list[int] = []  # tickets as they were finished
        self._ticket = 0

    def ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def start(self, transfer: Transfer) -> int:
        self.under_way.add(transfer.ticket)
        self.tier.start(transfer)
        return transfer.ticket

    def collect(self) -> None:
        for finished in self.tier.poll():
            assert finished.ticket in self.under_way, "finished twice, or never started"
            assert finished.fault == "" or finished.fault in FAULTS
            self.under_way.remove(finished.ticket)
            self.finished[finished.ticket] = finished
            self.order.append(finished.ticket)

    def wait(self, ticket: int) -> Finished:
        until = time.monotonic() + WAIT_S
        while ticket not in self.finished:
            assert select.select([self.tier.fileno()], [], [], until - time.monotonic())[0], "never finished"
            self.collect()
        return self.finished[ticket]

    def do(self, transfer: Transfer) -> Finished:
        return self.wait(self.start(transfer))

    def start_demote(
        self,
        key: BlockKey,
        place: int,
        units: int = 1,
        slot: int = 0,
        content: int = 0,
        epoch: int = 0,
        origin: bytes = b"",
    ) -> int:
        size = units * SLOT_UNIT
        self.factory.memory(slot, size)[:] = bytes_of(content, size)
        return self.start(Demote(self.ticket(), key, slot, place, size, NAMESPACE, epoch, origin))

    def demote(
        self, key: BlockKey, place: int, units: int = 1, content: int = 0, epoch: int = 0, origin: bytes = b""
    ) -> Stored:
        done = self.wait(self.start_demote(key, place, units, content=content, epoch=epoch, origin=origin))
        assert not done.fault
        return Stored(key, place, units * SLOT_UNIT, NAMESPACE, epoch, done.checksum, content, origin)

    def promote(self, block: Stored, slot: int = 100) -> Finished:
        self.factory.memory(slot, block.size)[:] = bytes(block.size)
        return self.do(Promote(self.ticket(), block.key, slot, block.place, block.size, block.checksum, block.namespace))

    def comes_back(self, block: Stored) -> bool:
        done = self.promote(block)
        return not done.fault and self.factory.memory(100, block.size) == bytes_of(block.content, block.size)

    def forget(self, first: int, end: int) -> None:
        assert not self.do(Forget(self.ticket(), first, end)).fault

    def start_erase(self, block: Stored) -> int:
        return self.start(Erase(self.ticket(), block.place, block.size, block.key, block.namespace))

    def erase(self, block: Stored) -> None:
        assert not self.wait(self.start_erase(block)).fault

    def lies_there(self, block: Stored) -> bool:
        raw, content = self.raw(block), bytes_of(block.content, block.size)
        return any(raw) and raw != content if getattr(self.factory, "encrypts", False) else raw == content

    def is_zero(self, block: Stored) -> bool:
        return not any(self.raw(block))

    def raw(self, block: Stored) -> bytes:
        return self.factory.raw(self.tier, block.place, block.size)

    @property
    def units(self) -> int:
        """Places are below this."""
        return self.factory.units(self.tier)

    def flush(self) -> None:
        assert self.do(Flush(self.ticket())).fault == self.factory.flush_fault

    def remember(self, epoch: int = 0, digest: bytes = DIGEST, namespace: int = NAMESPACE) -> None:
        assert not self.do(Remember(self.ticket(), digest, namespace, epoch)).fault

    def reopen(self) -> Recovered:
        self.tier = self.factory.reopen(self.tier)
        self.under_way.clear()
        return self.tier.recovered

    def crash(self) -> Recovered:
        self.tier = self.factory.crash(self.tier)
        self.under_way.clear()
        return self.tier.recovered


def bytes_of(content: int, size: int) -> bytes:
    return random.Random(content).randbytes(size)


def key_of(number: int) -> BlockKey:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=KEY_BYTES).digest()


def keys_of(recovered: Recovered) -> list[BlockKey]:
    return [recovered.keys[at : at + KEY_BYTES] for at in range(0, len(recovered.keys), KEY_BYTES)]
