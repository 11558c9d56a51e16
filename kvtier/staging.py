"""Blocks on their way from the drives to RAM, because somebody asked. Pure.

Nothing is offered to an engine that is not in RAM and verified. So a lookup whose blocks are partly on the drives waits
until these are staged, or its time is over; then it is answered with what is there by then. A read that failed shortens
the answer.

    lookup --begin--> waiting --all its blocks came, or failed--> answered
                        |  '-----its time is over----------------> answered, with less
                        '--------released, its engine left-------> forgotten

Reads are single flight: whoever wants a block that is being read waits for that read. A read nobody waits for any more
goes on: its slot is the drive's until it lets go, and then the block is in RAM. So much is read at a time, that a slow
drive never holds more than that of the arena; the rest of a lookup's blocks follows.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kvtier.block import ABSENT, BlockKey
from kvtier.extents import Extents
from kvtier.ram import Ram
from kvtier.stats import Stats
from kvtier.transfer import Finished, Promote

READING_SHARE = 1 / 8  # of the arena may be taken by reads
READING_BYTES_MAX = 256 * 1024**2

Asker = tuple[str, int]  # engine, lease
Wanted = tuple[int, BlockKey, int, int]  # position in the answer, key, place, size


@dataclass
class Waiting:
    """A lookup that was not answered yet."""

    answer: np.ndarray  # uint32[n], as it would be answered now
    positions: dict[BlockKey, list[int]]  # of the blocks that it waits for
    until: float
    to_read: deque[tuple[BlockKey, int, int]] = field(default_factory=deque)  # key, place, size


@dataclass
class _Read:
    order: Promote
    namespace: int
    epoch: int
    askers: list[Asker]


class Staging:
    def __init__(self, ram: Ram, extents: Extents, epochs: Mapping[int, int], stats: Stats) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it."""
        self._ram, self._extents, self._epochs, self._stats = ram, extents, epochs, stats
        self.waiting: dict[Asker, Waiting] = {}  # the longest first
        self.arrived: list[tuple[Asker, BlockKey]] = []  # a block that this one waited for came, or never will
        self._reads: dict[BlockKey, _Read] = {}
        self._bytes = 0
        self._bytes_max = min(READING_BYTES_MAX, int(ram.slots.capacity * READING_SHARE))

    @property
    def reading_bytes(self) -> int:
        return self._bytes

    def begin(self, asker: Asker, answer: np.ndarray, wanted: list[Wanted], until: float) -> None:
        """`wanted`: what is to be read, in prefix order."""
        mine = self.waiting[asker] = Waiting(answer, {}, until)
        for position, key, place, size in wanted:
            if key not in mine.positions:
                mine.to_read.append((key, place, size))
            mine.positions.setdefault(key, []).append(position)

    def next(self, ticket: int) -> Promote | None:
        """The next read; None when there is none, when enough is under way, or when RAM has no slot to read into."""
        for asker, mine in list(self.waiting.items()):
            while mine.to_read:
                key, place, size = mine.to_read[0]
                if key in self._reads:
                    self._reads[key].askers.append(asker)
                elif self._ram.index.find(key)[0] != ABSENT or int(self._extents.find(key)[0]) != place:
                    self.arrived.append((asker, key))  # it came or went while this one waited for its turn
                else:
                    order = self._read(ticket, asker, key, place, size)
                    if order is not None:
                        mine.to_read.popleft()
                    return order
                mine.to_read.popleft()
        return None

    def _read(self, ticket: int, asker: Asker, key: BlockKey, place: int, size: int) -> Promote | None:
        if self._bytes and self._bytes + size > self._bytes_max:
            return None
        slot = next(self._ram.takes(size), None)
        if slot is None:
            return None
        namespace = self._extents.namespace(place)
        order = Promote(ticket, key, slot, place, size, self._extents.checksum(place))
        self._extents.hold(place)
        self._reads[key] = _Read(order, namespace, self._epochs[namespace], [asker])
        self._bytes += size
        return order

    def finished(self, order: Promote, done: Finished) -> int | None:
        """The block is in RAM, in the slot that is returned; or it isn't. Who waited for it stands in `arrived`."""
        read = self._reads.pop(order.key)
        self._bytes -= order.size
        self._extents.let_go(order.place)
        self.arrived += [(asker, order.key) for asker in read.askers]
        if done.fault:
            self._stats.add("corrupt_blocks" if done.fault == "corrupt" else "failed_promotions")
        if self._epochs[read.namespace] != read.epoch:  # reset meanwhile
            self._ram.slots.give(order.slot)
        elif done.fault:
            self._ram.slots.give(order.slot)
            if done.fault == "corrupt" and int(self._extents.find(order.key)[0]) == order.place:
                self._extents.drop(order.place)
        elif self._ram.keep(order.slot, order.key, read.namespace):
            self._stats.add("promoted_blocks")
            self._stats.add("promoted_bytes", order.size)
            return order.slot
        return None

    def expired(self, now: float) -> list[Asker]:
        """Those whose time is over."""
        return [asker for asker, mine in self.waiting.items() if mine.until <= now]

    def forget(self, asker: Asker) -> Waiting | None:
        """Nobody waits under this lease any more."""
        return self.waiting.pop(asker, None)
