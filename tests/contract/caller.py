"""The store's side of the contract of tiers, for tests."""

import hashlib
import random
import select
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from coded_blocks import of_bf16

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT, BlockKey
from kvtier.codec import RAW, Codec
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
    stored: int = 0  # bytes that lie there; 0: as many as the block has
    codec: Codec = RAW

    @property
    def place_bytes(self) -> int:
        return self.stored or self.size


class Caller:
    """The store's side: starts transfers, counts what comes back, keeps the rules that the contract has for it."""

    def __init__(self, factory, folder: Path) -> None:
        self.factory = factory
        self.tier = factory.make(folder)
        self.under_way: set[int] = set()
        self.finished: dict[int, Finished] = {}
        self.order: list[int] = []  # tickets as they were finished
        self.namespaces: dict[bytes, tuple[int, int]] = {}  # that were remembered: digest -> number, epoch
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

    def start_demote_coded(
        self, key: BlockKey, place: int, units: int, codec: Codec, content: int, slot: int = 0, stored: int = 0
    ) -> int:
        """Of values as a cache has them. On a drive it gets `stored` bytes; 0: as many units as its frame needs."""
        size = units * SLOT_UNIT
        self.factory.memory(slot, size)[:] = block_bytes(content, size, codec)
        stored = size if self.factory.finds_by_keys else stored or place_bytes(content, size, codec)
        assert stored < size or self.factory.finds_by_keys, "as small a block has no smaller place"
        return self.start(Demote(self.ticket(), key, slot, place, size, NAMESPACE, 0, b"", codec, stored))

    def demote_coded(self, key: BlockKey, place: int, units: int, codec: Codec, content: int = 0) -> Stored:
        done = self.wait(self.start_demote_coded(key, place, units, codec, content))
        assert not done.fault and 0 < done.stored < units * SLOT_UNIT and done.coded_s > 0
        return self.stored_of(key, place, units, codec, content, done)

    def stored_of(self, key: BlockKey, place: int, units: int, codec: Codec, content: int, done: Finished) -> Stored:
        size, stored = units * SLOT_UNIT, 0
        if codec != RAW:
            stored = done.stored if self.factory.finds_by_keys else place_bytes(content, size, codec)
        return Stored(key, place, size, NAMESPACE, 0, done.checksum, content, b"", stored, codec)

    def promote(self, block: Stored, slot: int = 100) -> Finished:
        self.factory.memory(slot, block.size)[:] = bytes(block.size)
        order = Promote(self.ticket(), block.key, slot, block.place, block.size, block.checksum, block.namespace)
        return self.do(replace(order, stored=block.stored))

    def comes_back(self, block: Stored, slot: int = 100) -> bool:
        done = self.promote(block, slot)
        found = self.factory.memory(slot, block.size)
        return not done.fault and found == what_comes_back(block.content, block.size, block.codec)

    def forget(self, first: int, end: int) -> None:
        assert not self.do(Forget(self.ticket(), first, end)).fault

    def start_erase(self, block: Stored) -> int:
        return self.start(Erase(self.ticket(), block.place, block.place_bytes, block.key, block.namespace))

    def erase(self, block: Stored) -> None:
        assert not self.wait(self.start_erase(block)).fault

    def lies_there(self, block: Stored) -> bool:
        raw, content = self.raw(block), block_bytes(block.content, block.size, block.codec)
        is_other = getattr(self.factory, "encrypts", False) or block.codec != RAW
        return any(raw) and raw != content if is_other else raw == content

    def is_zero(self, block: Stored) -> bool:
        return not any(self.raw(block))

    def raw(self, block: Stored) -> bytes:
        return self.factory.raw(self.tier, block.place, block.place_bytes)

    @property
    def units(self) -> int:
        """Places are below this."""
        return self.factory.units(self.tier)

    def flush(self) -> None:
        assert self.do(Flush(self.ticket())).fault == self.factory.flush_fault

    def remember(self, epoch: int = 0, digest: bytes = DIGEST, namespace: int = NAMESPACE) -> None:
        assert not self.do(Remember(self.ticket(), digest, namespace, epoch)).fault
        self.namespaces[digest] = namespace, epoch

    def reopen(self) -> Recovered:
        return self._goes_on(self.factory.reopen(self.tier))

    def crash(self) -> Recovered:
        return self._goes_on(self.factory.crash(self.tier))

    def _goes_on(self, tier) -> Recovered:
        """In the same namespaces: those that the tier doesn't know any more are new to it."""
        self.tier, recovered = tier, tier.recovered
        self.under_way.clear()
        for digest, (namespace, epoch) in self.namespaces.items():
            if digest not in recovered.remembered:
                self.remember(epoch, digest, namespace)
        return recovered


def bytes_of(content: int, size: int) -> bytes:
    return random.Random(content).randbytes(size)


def block_bytes(content: int, size: int, codec: Codec) -> bytes:
    """What is to be coded looks like it."""
    return bytes_of(content, size) if codec == RAW else of_bf16(size, content).tobytes()


def frame_of(content: int, size: int, codec: Codec) -> np.ndarray:
    made, room = _native.Codec(codec.name, codec.element, codec.row), np.empty(size, np.uint8)
    found = made.encode(of_bf16(size, content), room)
    assert found is not None
    return room[: found[0]]


@lru_cache
def place_bytes(content: int, size: int, codec: Codec) -> int:
    return -(-len(frame_of(content, size, codec)) // SLOT_UNIT) * SLOT_UNIT


@lru_cache
def what_comes_back(content: int, size: int, codec: Codec) -> bytes:
    """The very bytes, or of a lossy codec what it makes of them."""
    if not codec.is_lossy:
        return block_bytes(content, size, codec)
    into = np.empty(size, np.uint8)
    assert _native.decode_frame(frame_of(content, size, codec), into)[0] == "good"
    return into.tobytes()


def key_of(number: int) -> BlockKey:
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=KEY_BYTES).digest()


def keys_of(recovered: Recovered) -> list[BlockKey]:
    return [recovered.keys[at : at + KEY_BYTES] for at in range(0, len(recovered.keys), KEY_BYTES)]
