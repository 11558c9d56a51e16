"""Blocks on their way from below to RAM, because somebody asked. Pure.

Nothing is offered to an engine that is not in RAM and verified. So a lookup whose blocks are partly on the drives, or in
the remote, waits until these are staged, or its time is over; then it is answered with what is there by then. A read
that failed shortens the answer.

    lookup --begin--> waiting --all its blocks came, or failed--> answered
                        |  '-----its time is over----------------> answered, with less
                        '--------released, its engine left-------> forgotten

Each tier that blocks are read from is a source. Sources are read side by side: of each so much at a time, that a slow
one never holds more than that of the arena, and none stands behind another; the rest of a lookup's blocks follows. A
lookup may give up what one source has and wait for the others. What is read takes its whole size in RAM, but over the
link come the bytes that lie below, which are fewer where these are frames.

Reads are single flight, over all sources: whoever wants a block that is being read waits for that read. A read nobody
waits for any more goes on: its slot is the tier's until it lets go, and then the block is in RAM. A source's link knows
of each byte that somebody waits for, once, and learns from all that come.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from kvtier.block import ABSENT, BlockKey
from kvtier.estimators import Link
from kvtier.ram import Ram
from kvtier.stats import Stats
from kvtier.transfer import ORIGIN_BYTES, Finished, Promote

READING_SHARE = 1 / 8  # of the arena may be taken by reads
READING_BYTES_MAX = 256 * 1024**2
NOBODYS = bytes(ORIGIN_BYTES)
AHEAD_MAX = 16_384  # blocks that are to be read before somebody asks
FAILED = {"corrupt": "corrupt_blocks", "gone": "gone_blocks"}  # counters of faults; all others are failed_promotions

Asker = tuple[str, int]  # engine, lease


class Wanted(NamedTuple):
    position: int  # in the answer
    key: BlockKey
    parent: BlockKey  # the block before it; empty where there is none
    place: int
    size: int
    tier: str = "nvme"  # where it is read from
    namespace: int = 0  # its number; for a tier that finds blocks by their keys
    stored: int = 0  # bytes that lie there; 0: as many as the slot has

    @property
    def place_bytes(self) -> int:
        return self.stored or self.size


class Source(Protocol):
    """A tier that blocks are read from."""

    tier: str
    called: str  # in sentences
    counters: str  # what its counters begin with
    share: float  # of what all reads may take of the arena
    keeps: bool  # what lies there stays until somebody here says otherwise, so that blocks behind it are of use
    link: Link

    def has(self, one: Wanted, now: float) -> bool: ...
    def begin(self, one: Wanted) -> tuple[int, int]: ...  # its namespace and its checksum; it is held until `ended`
    def ended(self, order: Promote) -> None: ...
    def origin(self, order: Promote, done: Finished) -> bytes: ...  # empty when nobody knows


@dataclass
class Part:
    """What of a lookup comes from one source."""

    to_read: deque[Wanted]
    left: int  # blocks that did not come yet, those to be read among them
    left_bytes: int  # of these, that lie there
    moved_at: float  # when something came, or began to


@dataclass
class Waiting:
    """A lookup that was not answered yet."""

    answer: np.ndarray  # uint32[n], as it would be answered now
    until: float
    positions: dict[BlockKey, list[int]] = field(default_factory=dict)  # of the blocks that it waits for
    tiers: dict[BlockKey, str] = field(default_factory=dict)  # where these come from
    stored: dict[BlockKey, int] = field(default_factory=dict)  # bytes of them that lie there
    parts: dict[str, Part] = field(default_factory=dict)  # by tier

    def take(self, key: BlockKey) -> tuple[list[int], str]:
        """It waits for this one no more. Its positions, and where it was to come from."""
        tier = self.tiers.pop(key)
        part = self.parts[tier]
        part.left -= 1
        part.left_bytes -= self.stored.pop(key)
        return self.positions.pop(key), tier

    def wait(self, key: BlockKey, tier: str, stored: int, now: float) -> Part:
        """For this one, too."""
        part = self.part(tier, now)
        part.left += 1
        part.left_bytes += stored
        self.tiers[key], self.stored[key] = tier, stored
        return part

    def part(self, tier: str, now: float) -> Part:
        found = self.parts.get(tier)
        if found is None:
            found = self.parts[tier] = Part(deque(), 0, 0, now)
        return found


@dataclass
class _Read:
    promote: Promote
    namespace: int
    epoch: int
    askers: list[Asker]
    parent: BlockKey
    source: Source
    is_unwanted: bool = False  # it was forgotten by wish meanwhile


class _Ahead(NamedTuple):
    """A block that nobody has asked for yet. The one that is due first is read first."""

    due: float
    number: int
    wanted: Wanted
    worth: float  # as policy has it: for nothing that is worth more is it read


class Staging:
    def __init__(self, ram: Ram, epochs: Mapping[int, int], stats: Stats) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it."""
        self._ram, self._epochs, self._stats = ram, epochs, stats
        self._sources: dict[str, Source] = {}  # by tier
        self.waiting: dict[Asker, Waiting] = {}  # the longest first
        self.arrived: list[tuple[Asker, BlockKey]] = []  # a block that this one waited for came, or never will
        self._reads: dict[BlockKey, _Read] = {}
        self._ahead: list[_Ahead] = []  # a heap
        self._ahead_keys: set[BlockKey] = set()
        self._numbers = itertools.count()
        # Where a block that comes is to stand in RAM, by its key and namespace: queue and order. Whoever knows of
        # sessions says so.
        self.stands: Callable[[BlockKey, int], tuple[int, float | None]] = lambda key, namespace: (1, None)
        self._bytes: dict[str, int] = {}  # being read, by tier
        self.bytes_max = min(READING_BYTES_MAX, int(ram.slots.capacity * READING_SHARE))

    def attach(self, source: Source) -> None:
        self._sources[source.tier] = source
        self._bytes[source.tier] = 0

    def reading_bytes(self, tier: str) -> int:
        return self._bytes[tier]

    def waiting_for(self, tier: str) -> int:
        """How many lookups."""
        return sum(1 for mine in self.waiting.values() if tier in mine.parts and mine.parts[tier].left)

    def begin(self, asker: Asker, answer: np.ndarray, wanted: list[Wanted], now: float, until: float) -> None:
        """`wanted`: what is to be read, in prefix order; at least one block."""
        mine = self.waiting[asker] = Waiting(answer, until)
        for one in wanted:
            if one.key not in mine.positions:
                mine.wait(one.key, one.tier, one.place_bytes, now).to_read.append(one)
                self._sources[one.tier].link.ask(one.place_bytes, now)
            mine.positions.setdefault(one.key, []).append(one.position)

    def begin_ahead(self, wanted: Iterable[Wanted], due: float, worth: float) -> int:
        """Read these from the drives before somebody asks, by `due`, when nobody waits, and for nothing in RAM that is
        worth more. How many are on their way; of more than AHEAD_MAX nothing is read."""
        begun = 0
        for one in wanted:
            if len(self._ahead) < AHEAD_MAX and one.key not in self._reads and one.key not in self._ahead_keys:
                heapq.heappush(self._ahead, _Ahead(due, next(self._numbers), one, worth))
                self._ahead_keys.add(one.key)
                begun += 1
        return begun

    # --- reads -------------------------------------------------------------------------------------------------

    def next(self, tier: str, ticket: int, now: float) -> Promote | None:
        """The next read of this source; None when there is none, when enough is under way, or when RAM has no slot to
        read into."""
        source = self._sources[tier]
        for asker, mine in list(self.waiting.items()):
            part = mine.parts.get(tier)
            while part is not None and part.to_read:
                one = part.to_read[0]
                read = self._reads.get(one.key)
                if read is not None:
                    self._join(read, asker, mine, one, now)
                elif self._ram.index.find(one.key)[0] != ABSENT or not source.has(one, now):
                    self.arrived.append((asker, one.key))  # it came or went while this one waited for its turn
                    source.link.drop(one.place_bytes, now)
                else:
                    order = self._read(ticket, one, [asker], source)
                    if order is not None:
                        part.to_read.popleft()
                        part.moved_at = now
                    return order
                part.to_read.popleft()
                part.moved_at = now
        return self._next_ahead(ticket, now) if tier == "nvme" else None

    def _join(self, read: _Read, asker: Asker, mine: Waiting, one: Wanted, now: float) -> None:
        """It is being read for another, perhaps from elsewhere."""
        read.askers.append(asker)
        self._sources[one.tier].link.drop(one.place_bytes, now)
        if read.source.tier != one.tier:
            mine.positions[one.key], _ = mine.take(one.key)
            mine.wait(one.key, read.source.tier, read.promote.place_bytes, now)

    def _next_ahead(self, ticket: int, now: float) -> Promote | None:
        while self._ahead:
            _, _, one, worth = self._ahead[0]
            source = self._sources[one.tier]
            is_below = source.has(one, now)
            if is_below and one.key not in self._reads and self._ram.index.find(one.key)[0] == ABSENT:
                if not self._may_read(one.size, source):
                    return None
                slot = self._ram.take_for(one.size, worth)
                if slot is not None:
                    source.link.ask(one.place_bytes, now)
                    self._ahead_keys.discard(heapq.heappop(self._ahead).wanted.key)
                    return self._begin_read(ticket, one, [], slot, source)
            self._ahead_keys.discard(heapq.heappop(self._ahead).wanted.key)
        return None

    def _may_read(self, size: int, source: Source) -> bool:
        taken = self._bytes[source.tier]
        return not taken or taken + size <= self.bytes_max * source.share

    def _read(self, ticket: int, wanted: Wanted, askers: list[Asker], source: Source) -> Promote | None:
        if not self._may_read(wanted.size, source):
            return None
        slot = next(self._ram.takes(wanted.size, f"to read others from the {source.called}"), None)
        return None if slot is None else self._begin_read(ticket, wanted, askers, slot, source)

    def _begin_read(self, ticket: int, one: Wanted, askers: list[Asker], slot: int, source: Source) -> Promote:
        namespace, checksum = source.begin(one)
        promote = Promote(ticket, one.key, slot, one.place, one.size, checksum, namespace, one.stored)
        self._ram.residue.filling(slot, one.size, namespace)
        self._reads[one.key] = _Read(promote, namespace, self._epochs[namespace], askers, one.parent, source)
        self._bytes[source.tier] += one.size
        return promote

    def finished(self, order: Promote, done: Finished, now: float) -> int | None:
        """The block is in RAM, in the slot that is returned; or it isn't. Who waited for it stands in `arrived`."""
        read = self._reads.pop(order.key)
        source = read.source
        self._bytes[source.tier] -= order.size
        source.ended(order)
        self._tell(read, now)
        if done.fault:
            source.link.drop(order.place_bytes, now)
            self._stats.add(source.counters + FAILED.get(done.fault, "failed_promotions"))
        else:
            source.link.done(order.place_bytes, now)
        is_reset = self._epochs[read.namespace] != read.epoch
        if done.fault or read.is_unwanted or is_reset or self._is_orphan(read):
            self._ram.give(order.slot)
        elif self._keep(order, read, origin := np.frombuffer(source.origin(order, done) or NOBODYS, np.uint64)):
            if source.keeps:
                self._ram.note_below(order.slot, True)
            self._ram.origin[order.slot] = origin
            self._stats.add(source.counters + "promoted_blocks")
            self._stats.add(source.counters + "promoted_bytes", order.place_bytes)
            self._stats.add(source.counters + "spared_read_bytes", order.size - order.place_bytes)
            return order.slot
        self._lose([order.key], source, ())
        return None

    def _keep(self, order: Promote, read: _Read, origin: np.ndarray) -> bool:
        """Unless its tenant has as much as it may."""
        ram = self._ram
        tenant = ram.tenants.number(int(origin[1]))
        if not ram.makes_own_room(tenant, order.size, read.parent):
            self._stats.add("unkept_promotions")
            ram.give(order.slot)
            return False
        where = self.stands(order.key, read.namespace)
        return ram.keep(order.slot, order.key, read.namespace, read.parent, *where, tenant=tenant)

    def _tell(self, read: _Read, now: float) -> None:
        self.arrived += [(asker, read.promote.key) for asker in read.askers]
        for asker in read.askers:
            if asker in self.waiting:
                self.waiting[asker].part(read.source.tier, now).moved_at = now

    def _is_orphan(self, read: _Read) -> bool:
        """What comes before it was lost meanwhile."""
        return not (self._ram.has_use_for(read.parent) or self._comes(read.parent, read.askers))

    def _comes(self, key: BlockKey, askers: Iterable[Asker]) -> bool:
        """It is in RAM soon, as it seems, though nobody below keeps it: read now, or later for one of these."""
        if key in self._reads:
            return not self._reads[key].source.keeps
        tiers = (self.waiting[asker].tiers.get(key) for asker in askers if asker in self.waiting)
        return any(not self._sources[tier].keeps for tier in tiers if tier is not None)

    def _lose(self, keys: Iterable[BlockKey], source: Source, askers: Iterable[Asker]) -> None:
        """They didn't come, or those who waited for them don't any more; `askers` still may. What came before they should
        have is of no use then."""
        if source.keeps:
            return  # the owner of what is kept there says when it is lost
        for key in keys:
            if self._ram.is_awaited(key) and not self._ram.has_use_for(key) and not self._comes(key, askers):
                self._stats.add("dropped_orphans", self._ram.lost_below([key]))

    def forget_key(self, key: BlockKey) -> int | None:
        """Whatever is read of it now is not wanted; the slot that it is read into, if it is."""
        read = self._reads.get(key)
        if read is None:
            return None
        read.is_unwanted = True
        self._ram.wipe_later(read.promote.slot)
        return read.promote.slot

    def is_reading(self, place: int) -> bool:
        """From the drives."""
        return any(read.promote.place == place and read.source.tier == "nvme" for read in self._reads.values())

    def is_reading_key(self, key: BlockKey) -> bool:
        return key in self._reads

    def is_coming(self, key: BlockKey) -> bool:
        """It is being read, or will be though nobody has asked for it."""
        return key in self._reads or key in self._ahead_keys

    # --- who waits ---------------------------------------------------------------------------------------------

    def outlook(self, now: float) -> list[tuple[Asker, dict[str, float]]]:
        """Who waits, the longest first, for which tiers, and for how many seconds more as it seems: infinite when nothing
        comes though it should have."""
        seen: list[tuple[Asker, dict[str, float]]] = []
        ahead = dict.fromkeys(self._sources, 0)
        limits = {tier: source.link.stall_limit_s() for tier, source in self._sources.items()}
        is_silent = {tier: source.link.silent_s(now) > limits[tier] for tier, source in self._sources.items()}
        for asker, mine in self.waiting.items():
            remaining = {}
            for tier, part in mine.parts.items():
                if not part.left:
                    continue
                is_read = part.left > len(part.to_read)
                stalls = is_silent[tier] or (is_read and now - part.moved_at > limits[tier])
                link = self._sources[tier].link
                remaining[tier] = float("inf") if stalls else link.seconds(part.left_bytes, ahead[tier], now)
                ahead[tier] += part.left_bytes
            seen.append((asker, remaining))
        return seen

    def give_up(self, asker: Asker, keys: Iterable[BlockKey], now: float) -> None:
        """It waits for these no more. What of them is being read comes nevertheless."""
        mine, gone = self.waiting[asker], set(keys)
        for key in gone:
            mine.take(key)
        for tier, part in mine.parts.items():
            dropped = [one for one in part.to_read if one.key in gone]
            part.to_read = deque(one for one in part.to_read if one.key not in gone)
            self._drop(dropped, self._sources[tier], now)

    def forget(self, asker: Asker, now: float) -> Waiting | None:
        """Nobody waits under this lease any more. What is being read comes nevertheless."""
        mine = self.waiting.pop(asker, None)
        for tier, part in mine.parts.items() if mine is not None else ():
            self._drop(part.to_read, self._sources[tier], now)
        return mine

    def _drop(self, wanted: Iterable[Wanted], source: Source, now: float) -> None:
        keys = [one.key for one in wanted]
        for one in wanted:
            source.link.drop(one.place_bytes, now)
        self._lose(keys, source, self.waiting)
