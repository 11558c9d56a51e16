"""Blocks on their way from the drives to RAM, because somebody asked. Pure.

Nothing is offered to an engine that is not in RAM and verified. So a lookup whose blocks are partly on the drives waits
until these are staged, or its time is over; then it is answered with what is there by then. A read that failed shortens
the answer.

    lookup --begin--> waiting --all its blocks came, or failed--> answered
                        |  '-----its time is over----------------> answered, with less
                        '--------released, its engine left-------> forgotten

Reads are single flight: whoever wants a block that is being read waits for that read. A read nobody waits for any more
goes on: its slot is the drive's until it lets go, and then the block is in RAM. So much is read at a time, that a slow
drive never holds more than that of the arena; the rest of a lookup's blocks follows. The drives' link knows of each
byte that somebody waits for, once, and learns from all that come.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kvtier.block import ABSENT, BlockKey
from kvtier.estimators import Link
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
    moved_at: float  # when something came for it, or began to
    block_bytes: int
    to_read: deque[tuple[BlockKey, int, int]] = field(default_factory=deque)  # key, place, size


@dataclass
class _Read:
    order: Promote
    namespace: int
    epoch: int
    askers: list[Asker]


class Staging:
    def __init__(self, ram: Ram, extents: Extents, epochs: Mapping[int, int], stats: Stats, link: Link) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it. `link`: of the drives."""
        self.link = link
        self._ram, self._extents, self._epochs, self._stats = ram, extents, epochs, stats
        self.waiting: dict[Asker, Waiting] = {}  # the longest first
        self.arrived: list[tuple[Asker, BlockKey]] = []  # a block that this one waited for came, or never will
        self._reads: dict[BlockKey, _Read] = {}
        self._bytes = 0
        self.bytes_max = min(READING_BYTES_MAX, int(ram.slots.capacity * READING_SHARE))

    @property
    def reading_bytes(self) -> int:
        return self._bytes

    def begin(self, asker: Asker, answer: np.ndarray, wanted: list[Wanted], now: float, until: float) -> None:
        """`wanted`: what is to be read, in prefix order; at least one block."""
        mine = self.waiting[asker] = Waiting(answer, {}, until, now, block_bytes=wanted[0][3])
        for position, key, place, size in wanted:
            if key not in mine.positions:
                mine.to_read.append((key, place, size))
                self.link.ask(size, now)
            mine.positions.setdefault(key, []).append(position)

    def next(self, ticket: int, now: float) -> Promote | None:
        """The next read; None when there is none, when enough is under way, or when RAM has no slot to read into."""
        for asker, mine in list(self.waiting.items()):
            while mine.to_read:
                key, place, size = mine.to_read[0]
                if key in self._reads:
                    self._reads[key].askers.append(asker)
                    self.link.drop(size, now)
                elif self._ram.index.find(key)[0] != ABSENT or int(self._extents.find(key)[0]) != place:
                    self.arrived.append((asker, key))  # it came or went while this one waited for its turn
                    self.link.drop(size, now)
                else:
                    order = self._read(ticket, asker, key, place, size)
                    if order is not None:
                        mine.to_read.popleft()
                        mine.moved_at = now
                    return order
                mine.to_read.popleft()
                mine.moved_at = now
        return None

    def _read(self, ticket: int, asker: Asker, key: BlockKey, place: int, size: int) -> Promote | None:
        if self._bytes and self._bytes + size > self.bytes_max:
            return None
        slot = next(self._ram.takes(size, "to read others from the drives"), None)
        if slot is None:
            return None
        namespace = self._extents.namespace(place)
        order = Promote(ticket, key, slot, place, size, self._extents.checksum(place))
        self._extents.hold(place)
        self._reads[key] = _Read(order, namespace, self._epochs[namespace], [asker])
        self._bytes += size
        return order

    def finished(self, order: Promote, done: Finished, now: float) -> int | None:
        """The block is in RAM, in the slot that is returned; or it isn't. Who waited for it stands in `arrived`."""
        read = self._reads.pop(order.key)
        self._bytes -= order.size
        self._extents.let_go(order.place)
        self.arrived += [(asker, order.key) for asker in read.askers]
        for asker in read.askers:
            if asker in self.waiting:
                self.waiting[asker].moved_at = now
        if done.fault:
            self.link.drop(order.size, now)
            self._stats.add("corrupt_blocks" if done.fault == "corrupt" else "failed_promotions")
        else:
            self.link.done(order.size, now)
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

    def outlook(self, now: float) -> list[tuple[Asker, float]]:
        """Who waits, the longest first, and for how many seconds more as it seems: infinite when nothing comes though it
        should have."""
        seen, ahead = [], 0
        limit = self.link.stall_limit_s()
        is_silent = self.link.silent_s(now) > limit
        for asker, mine in self.waiting.items():
            own = len(mine.positions) * mine.block_bytes
            is_read = len(mine.positions) > len(mine.to_read)
            stalls = is_silent or (is_read and now - mine.moved_at > limit)
            seen.append((asker, float("inf") if stalls else self.link.seconds(own, ahead, now)))
            ahead += own
        return seen

    def forget(self, asker: Asker, now: float) -> Waiting | None:
        """Nobody waits under this lease any more. What is being read comes nevertheless."""
        mine = self.waiting.pop(asker, None)
        for _, _, size in mine.to_read if mine is not None else ():
            self.link.drop(size, now)
        return mine
