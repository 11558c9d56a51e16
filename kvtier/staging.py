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

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvtier.block import ABSENT, BlockKey
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.ram import Ram
from kvtier.stats import Stats
from kvtier.transfer import ORIGIN_BYTES, Finished, Promote

READING_SHARE = 1 / 8  # of the arena may be taken by reads
READING_BYTES_MAX = 256 * 1024**2
NOBODYS = bytes(ORIGIN_BYTES)
AHEAD_MAX = 16_384  # blocks that are to be read before somebody asks

Asker = tuple[str, int]  # engine, lease


class Wanted(NamedTuple):
    position: int  # in the answer
    key: BlockKey
    parent: BlockKey  # the block before it; empty where there is none
    place: int
    size: int


@dataclass
class Waiting:
    """A lookup that was not answered yet."""

    answer: np.ndarray  # uint32[n], as it would be answered now
    positions: dict[BlockKey, list[int]]  # of the blocks that it waits for
    until: float
    moved_at: float  # when something came for it, or began to
    block_bytes: int
    to_read: deque[Wanted] = field(default_factory=deque)


@dataclass
class _Read:
    promote: Promote
    namespace: int
    epoch: int
    askers: list[Asker]
    parent: BlockKey
    is_unwanted: bool = False  # it was forgotten by wish meanwhile


class _Ahead(NamedTuple):
    """A block that nobody has asked for yet. The one that is due first is read first."""

    due: float
    number: int
    wanted: Wanted
    worth: float  # as policy has it: for nothing that is worth more is it read


class Staging:
    def __init__(self, ram: Ram, extents: Extents, epochs: Mapping[int, int], stats: Stats, link: Link) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it. `link`: of the drives."""
        self.link = link
        self._ram, self._extents, self._epochs, self._stats = ram, extents, epochs, stats
        self.waiting: dict[Asker, Waiting] = {}  # the longest first
        self.arrived: list[tuple[Asker, BlockKey]] = []  # a block that this one waited for came, or never will
        self._reads: dict[BlockKey, _Read] = {}
        self._ahead: list[_Ahead] = []  # a heap
        self._ahead_keys: set[BlockKey] = set()
        self._numbers = itertools.count()
        # Where a block that comes is to stand in RAM, by its key and namespace: queue and order. Whoever knows of
        # sessions says so.
        self.stands: Callable[[BlockKey, int], tuple[int, float | None]] = lambda key, namespace: (1, None)
        self._bytes = 0
        self.bytes_max = min(READING_BYTES_MAX, int(ram.slots.capacity * READING_SHARE))

    @property
    def reading_bytes(self) -> int:
        return self._bytes

    def begin(self, asker: Asker, answer: np.ndarray, wanted: list[Wanted], now: float, until: float) -> None:
        """`wanted`: what is to be read, in prefix order; at least one block."""
        mine = self.waiting[asker] = Waiting(answer, {}, until, now, wanted[0].size)
        for one in wanted:
            if one.key not in mine.positions:
                mine.to_read.append(one)
                self.link.ask(one.size, now)
            mine.positions.setdefault(one.key, []).append(one.position)

    def begin_ahead(self, wanted: Iterable[Wanted], due: float, worth: float) -> int:
        """Read these before somebody asks, by `due`, when nobody waits, and for nothing in RAM that is worth more. How many
        are on their way; of more than AHEAD_MAX nothing is read."""
        begun = 0
        for one in wanted:
            if len(self._ahead) < AHEAD_MAX and one.key not in self._reads and one.key not in self._ahead_keys:
                heapq.heappush(self._ahead, _Ahead(due, next(self._numbers), one, worth))
                self._ahead_keys.add(one.key)
                begun += 1
        return begun

    def next(self, ticket: int, now: float) -> Promote | None:
        """The next read; None when there is none, when enough is under way, or when RAM has no slot to read into."""
        for asker, mine in list(self.waiting.items()):
            while mine.to_read:
                one = mine.to_read[0]
                key, place, size = one.key, one.place, one.size
                if key in self._reads:
                    self._reads[key].askers.append(asker)
                    self.link.drop(size, now)
                elif self._ram.index.find(key)[0] != ABSENT or int(self._extents.find(key)[0]) != place:
                    self.arrived.append((asker, key))  # it came or went while this one waited for its turn
                    self.link.drop(size, now)
                else:
                    order = self._read(ticket, one, [asker])
                    if order is not None:
                        mine.to_read.popleft()
                        mine.moved_at = now
                    return order
                mine.to_read.popleft()
                mine.moved_at = now
        return self._next_ahead(ticket, now)

    def _next_ahead(self, ticket: int, now: float) -> Promote | None:
        while self._ahead:
            _, _, one, worth = self._ahead[0]
            is_below = int(self._extents.find(one.key)[0]) == one.place
            if is_below and one.key not in self._reads and self._ram.index.find(one.key)[0] == ABSENT:
                if self._bytes and self._bytes + one.size > self.bytes_max:
                    return None
                slot = self._ram.take_for(one.size, worth)
                if slot is not None:
                    self.link.ask(one.size, now)
                    self._ahead_keys.discard(heapq.heappop(self._ahead).wanted.key)
                    return self._begin_read(ticket, one, [], slot)
            self._ahead_keys.discard(heapq.heappop(self._ahead).wanted.key)
        return None

    def _read(self, ticket: int, wanted: Wanted, askers: list[Asker]) -> Promote | None:
        if self._bytes and self._bytes + wanted.size > self.bytes_max:
            return None
        slot = next(self._ram.takes(wanted.size, "to read others from the drives"), None)
        return None if slot is None else self._begin_read(ticket, wanted, askers, slot)

    def _begin_read(self, ticket: int, wanted: Wanted, askers: list[Asker], slot: int) -> Promote:
        _, key, parent, place, size = wanted
        namespace = self._extents.namespace(place)
        promote = Promote(ticket, key, slot, place, size, self._extents.checksum(place))
        self._extents.hold(place)
        self._reads[key] = _Read(promote, namespace, self._epochs[namespace], askers, parent)
        self._bytes += size
        return promote

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
        is_reset = self._epochs[read.namespace] != read.epoch
        is_orphan = not self._ram.has_use_for(read.parent)  # what comes before it was lost meanwhile
        if done.fault or read.is_unwanted or is_reset or is_orphan:
            self._ram.give(order.slot)
        elif self._ram.keep(order.slot, order.key, read.namespace, read.parent, *self.stands(order.key, read.namespace)):
            self._ram.note_below(order.slot, True)
            self._ram.origin[order.slot] = np.frombuffer(self._extents.origin(order.place) or NOBODYS, np.uint64)
            self._stats.add("promoted_blocks")
            self._stats.add("promoted_bytes", order.size)
            return order.slot
        return None

    def forget_key(self, key: BlockKey) -> int | None:
        """Whatever is read of it now is not wanted; the slot that it is read into, if it is."""
        read = self._reads.get(key)
        if read is None:
            return None
        read.is_unwanted = True
        self._ram.wipe_later(read.promote.slot)
        return read.promote.slot

    def is_reading(self, place: int) -> bool:
        return any(read.promote.place == place for read in self._reads.values())

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
        for one in mine.to_read if mine is not None else ():
            self.link.drop(one.size, now)
        return mine
