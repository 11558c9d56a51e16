"""The simulated tier below: it keeps the contract of kvtier/tiers/base.py as loosely as that allows.

Transfers finish in any order after random delays, now and then very late; a drive hangs; writes and reads fail, after
which it is read only for a while; what lies there rots. Nothing happens but in `start` and `poll`, on a clock that is
handed in. It is strict with its caller, who guarantees something too.

    Demote    slot --> content by place      its record goes to the log; with a codec: a frame, if it fits into the place
    Remember, Forget -------------------->   the log, in the order of starts
    Erase     zeros  --> content by place    then a Forget of its place goes to the log
    Shred     content of the tenant rots
    Flush, or a Remember, Forget or Erase that is done: the log up to there is committed
    crash     some more of the log is committed, some records in it are not; what was being written is garbage
"""

import random
import zlib
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kvtier.block import PLACE_GRAIN, SLOT_UNIT, BlockKey, pack_keys, place_at, position_of
from kvtier.codec import RAW, Codec
from kvtier.tiers.base import TRANSFERS_MAX, Recovered
from kvtier.transfer import (
    ORIGIN_BYTES,
    Demote,
    Erase,
    Finished,
    Flush,
    Forget,
    Promote,
    Remember,
    Shred,
    Transfer,
    tenant_of_origin,
)

from .frames import Frame, content_in, decoded

ROTTEN = "rotten"
ZEROS = bytes(SLOT_UNIT)  # a unit of what was erased
PAGES = SLOT_UNIT // PLACE_GRAIN  # of a unit


class Memory(Protocol):
    """The arena, in units. ArenaModel is one."""

    def content(self, units: list[int]) -> list: ...
    def begin_read(self, units: list[int]) -> list[int]: ...
    def end_read(self, units: list[int], writes: list[int]) -> None: ...
    def begin_write(self, who: str, units: list[int]) -> None: ...
    def end_fill(self, who: str, slot: int, content: list | None) -> None: ...


class Codecs(Protocol):
    """What frames become of blocks. CodecsModel is one."""

    def frame_bytes(self, key: BlockKey, codec: Codec, content: list) -> int: ...
    def seconds(self, codec: Codec, size: int) -> float: ...


@dataclass
class Luck:
    """How likely what goes wrong is, each time it could."""

    io: float = 0.02
    rots: float = 0.02
    hangs: float = 0.005
    late: float = 0.03
    read_s: float = 0.02  # how long a read takes on the mean; a write 0.02


NO_LUCK = Luck(0, 0, 0, 0, read_s=0.002)


@dataclass(frozen=True)
class Record:
    demote: Demote
    checksum: int


Entry = Record | Forget | Remember


@dataclass
class Disks:
    """What survives the process."""

    extents: int
    extent_units: int
    drives: int
    content: dict[int, object] = field(default_factory=dict)  # by place
    place_bytes: dict[int, int] = field(default_factory=dict)  # by place: of what was to be written there last
    tenants: dict[int, bytes] = field(default_factory=dict)  # by place: whose data key it is encrypted with
    records: dict[int, Record] = field(default_factory=dict)  # committed, by place, in the order of commits
    remembered: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # committed

    def commit(self, entry: Entry) -> None:
        if isinstance(entry, Record):
            self.records[entry.demote.place] = entry
        elif isinstance(entry, Forget):
            for place in [place for place in self.records if entry.first <= place < entry.end]:
                del self.records[place]
        else:
            self.remembered[entry.digest] = (entry.namespace, entry.epoch)

    def recovered(self) -> Recovered:
        """Not seen again: a former epoch's, the older of two of a key, and namespaces without a block or a reset."""
        newest = {record.demote.key: place for place, record in self.records.items()}
        self.records = {
            place: record
            for place, record in self.records.items()
            if (record.demote.namespace, record.demote.epoch) in self.remembered.values()
            and newest[record.demote.key] == place
        }
        blocks, checksums = [r.demote for r in self.records.values()], [r.checksum for r in self.records.values()]
        used = {(block.namespace, 0) for block in blocks}
        self.remembered = {name: known for name, known in self.remembered.items() if known[1] or known in used}
        origins = b"".join(block.origin or bytes(ORIGIN_BYTES) for block in blocks)
        return Recovered(
            pack_keys(block.key for block in blocks),
            places=np.array([block.place for block in blocks], np.uint32),
            sizes=np.array([block.size for block in blocks], np.int64),
            stored=np.array([block.place_bytes for block in blocks], np.int64),
            namespaces=np.array([block.namespace for block in blocks], np.int32),
            epochs=np.array([block.epoch for block in blocks], np.int64),
            checksums=np.array(checksums, np.uint32),
            remembered=dict(self.remembered),
            origins=np.frombuffer(origins, np.uint8).reshape(-1, ORIGIN_BYTES),
        )


@dataclass
class _UnderWay:
    order: Transfer
    due: float
    refused: bool = False  # it came while nothing was taken
    seen: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of a Shred
    entry: int = -1  # its position in the log; of a Flush, the end of what it means


class TierModel:
    def __init__(
        self,
        disks: Disks,
        memory: Memory,
        chance: random.Random,
        clock: Callable[[], float],
        luck: Luck,
        codecs: Codecs | None = None,
    ) -> None:
        """Without `codecs` all is to be written as it is."""
        self.disks, self.luck, self.codecs = disks, luck, codecs
        self.recovered = disks.recovered()
        self.under_way: dict[int, _UnderWay] = {}
        self._memory, self._random, self._clock = memory, chance, clock
        self._written = {n for record in disks.records.values() for n in self._pages(record.demote)}  # since their Forget
        self._erased: set[int] = set()  # places whose block nobody may ask for
        self._log: list[Entry | None] = []  # None: it failed
        self._committed = 0  # entries of it
        self._hangs_until = [0.0] * disks.drives
        self._read_only_until = 0.0
        self._tickets: set[int] = set()

    @property
    def read_only(self) -> bool:
        return self._clock() < self._read_only_until

    def wakes_at(self) -> float | None:
        """When `poll` may have more to say, or `read_only` is over."""
        times = [transfer.due for transfer in self.under_way.values()]
        times += [self._read_only_until] * self.read_only
        return min(times, default=None)

    # --- transfers -------------------------------------------------------------------------------------------

    def start(self, transfer: Transfer) -> None:
        assert transfer.ticket not in self._tickets, "a ticket is used twice"
        assert len(self.under_way) < TRANSFERS_MAX
        self._tickets.add(transfer.ticket)
        mine = self.under_way[transfer.ticket] = _UnderWay(transfer, self._due(transfer))
        if self.read_only and isinstance(transfer, Demote | Forget | Erase | Remember | Shred):
            mine.due, mine.refused = self._clock(), True
        elif isinstance(transfer, Demote):
            self._check_way(transfer)
            pages = self._pages_within(transfer)
            assert not pages & self._written, f"{transfer} writes to places that were not forgotten"
            self._written |= pages
            self.disks.place_bytes[transfer.place] = transfer.place_bytes
            mine.seen = self._memory.begin_read(_slot(transfer))
        elif isinstance(transfer, Promote):
            assert transfer.place in self.disks.content, f"{transfer} of what was never written"
            assert transfer.place not in self._erased, f"{transfer} of what was erased"
            lies = self.disks.place_bytes[transfer.place]
            assert transfer.place_bytes == lies, f"{transfer}, and {lies} bytes lie there"
            self._memory.begin_write(_who(transfer), _slot(transfer))
        elif isinstance(transfer, Flush):
            mine.entry = len(self._log)
        elif isinstance(transfer, Shred):
            mine.places = [place for place, tenant in self.disks.tenants.items() if tenant == transfer.tenant]
        elif isinstance(transfer, Erase):
            lies = self.disks.place_bytes.get(transfer.place, transfer.size)
            assert transfer.size == lies, f"{transfer}, and {lies} bytes lie there"
            pages = self._pages_within(transfer)
            self._nothing_under_way(transfer, pages)
            self._written |= pages
            self._erased.add(transfer.place)
        else:
            self._begin_entry(mine)

    def _check_way(self, order: Demote) -> None:
        if order.codec == RAW:
            assert order.place_bytes == order.size, f"{order}: a block as it is has a place of its own size"
        else:
            assert self.codecs is not None, f"{order}, and there is no codec"
            assert SLOT_UNIT <= order.stored < order.size, f"{order}: the place of a frame"
            assert order.stored % PLACE_GRAIN == 0, f"{order}: a place within a page"

    def _pages(self, order: Demote | Promote | Erase) -> range:
        """Of the drives, all together: where this place really is."""
        stored = order.size if isinstance(order, Erase) else order.place_bytes
        extent, within = divmod(order.place, self.disks.extent_units)
        begin = within * SLOT_UNIT
        if stored % SLOT_UNIT:
            begin = position_of(within, stored) * stored
            assert place_at(begin // stored, stored) == within, f"{order}: there is no such place"
        begin += extent * self.disks.extent_units * SLOT_UNIT
        return range(begin // PLACE_GRAIN, (begin + stored) // PLACE_GRAIN)

    def _pages_within(self, order: Demote | Erase) -> set[int]:
        pages, of_extent = self._pages(order), self.disks.extent_units * PAGES
        number = pages.start // of_extent
        assert number == (pages.stop - 1) // of_extent < self.disks.extents, f"{order} is not within an extent"
        return set(pages)

    def _nothing_under_way(self, order: Forget | Erase, pages: Container[int]) -> None:
        for other in self.under_way.values():
            if other.order is not order and isinstance(other.order, Demote | Promote | Erase) and not other.refused:
                assert not any(page in pages for page in self._pages(other.order)), (
                    f"{order} while {other.order} is under way"
                )
            if isinstance(order, Erase) and isinstance(other.order, Forget) and not other.refused:
                assert not other.order.first <= order.place < other.order.end, f"{order} while {other.order} is under way"

    def _begin_entry(self, mine: _UnderWay) -> None:
        order = mine.order
        if isinstance(order, Forget):
            self._nothing_under_way(order, range(order.first * PAGES, order.end * PAGES))
        mine.entry = len(self._log)
        self._log.append(order)

    def poll(self) -> list[Finished]:
        done = sorted((t.due, ticket) for ticket, t in self.under_way.items() if t.due <= self._clock())
        return [self._finish(self.under_way.pop(ticket)) for _, ticket in done]

    def _finish(self, mine: _UnderWay) -> Finished:
        order = mine.order
        fault, checksum, coded = "", 0, {}
        if mine.refused:
            return Finished(order.ticket, "io")
        if self._happens(self.luck.io):
            fault = self._random.choice(("io", "full"))
            self._read_only_until = self._clock() + self._random.uniform(0.1, 1.5)
        if isinstance(order, Demote):
            fault, checksum, coded = self._end_demote(mine, order, fault)
        elif isinstance(order, Promote):
            fault, coded = self._end_promote(order, fault)
        elif isinstance(order, Erase):
            self._end_erase(order, fault)
        elif isinstance(order, Shred):
            return self._end_shred(mine, order, fault)
        elif fault:
            if not isinstance(order, Flush) and self._happens(0.5):
                self._log[mine.entry] = None
        elif isinstance(order, Flush):
            self._commit(mine.entry)
        else:
            self._commit(mine.entry + 1)
            if isinstance(order, Forget):
                self._written -= set(range(order.first * PAGES, order.end * PAGES))
                self._erased -= set(range(order.first, order.end))
                self._lose(order.first, order.end)
        return Finished(order.ticket, fault, checksum, **coded)

    def _end_demote(self, mine: _UnderWay, order: Demote, fault: str) -> tuple[str, int, dict[str, object]]:
        lying, coded = self._memory.content(_slot(order)), {}
        self._memory.end_read(_slot(order), mine.seen)
        if order.codec != RAW and not fault:
            needed = self.codecs.frame_bytes(order.key, order.codec, lying)
            coded = {"coded_s": self.codecs.seconds(order.codec, order.size)}
            if not 0 < needed <= order.place_bytes:
                self._written -= set(self._pages(order))
                return "larger", 0, coded
            coded["stored"] = needed
            lying = Frame(decoded(lying, order.codec), order.codec, needed)
        if fault:
            return fault, 0, {}
        checksum = _checksum(order.key, lying)
        self.disks.content[order.place] = lying
        self.disks.tenants[order.place] = tenant_of_origin(order.origin)
        self._log.append(Record(order, checksum))
        return "", checksum, coded

    def _end_promote(self, order: Promote, fault: str) -> tuple[str, dict[str, object]]:
        if self._happens(self.luck.rots):
            self.disks.content[order.place] = ROTTEN
        lying, coded = self.disks.content[order.place], {}
        if not fault and _checksum(order.key, lying) != order.checksum:
            fault = "corrupt"
        if isinstance(lying, Frame) and not fault:
            spent_s = self.codecs.seconds(lying.codec, order.size)
            coded = {"stored": lying.stored, "coded_s": spent_s, "codec": lying.codec.name}
        self._memory.end_fill(_who(order), order.slot, None if fault else content_in(lying))
        return fault, coded

    def _end_erase(self, order: Erase, fault: str) -> None:
        """With a fault it was not begun, or not finished, or is committed later."""
        if fault and self._happens(0.3):
            return
        self._zero(order)
        if not fault or self._happens(0.5):
            self._log.append(Forget(order.ticket, order.place, order.place + order.size // SLOT_UNIT))
        if not fault:
            self._commit(len(self._log))

    def _end_shred(self, mine: _UnderWay, order: Shred, fault: str) -> Finished:
        """With a fault it was not begun, or is done all the same."""
        if not fault or self._happens(0.5):
            for place in mine.places:
                if self.disks.tenants.get(place) == order.tenant and place in self.disks.content:
                    self.disks.content[place] = ROTTEN
        return Finished(order.ticket, fault, shredded=0 if fault else 1)

    def _zero(self, order: Erase) -> None:
        self.disks.tenants.pop(order.place, None)
        self.disks.content[order.place] = [ZEROS] * (order.size // SLOT_UNIT)

    # --- the log ---------------------------------------------------------------------------------------------

    def _commit(self, end: int) -> None:
        for entry in self._log[self._committed : end]:
            if entry is not None:
                self.disks.commit(entry)
        self._committed = max(self._committed, end)

    def _lose(self, first: int, end: int) -> None:
        for place in [place for place in self.disks.content if first <= place < end]:
            del self.disks.content[place]
            self.disks.tenants.pop(place, None)

    def crash(self) -> Disks:
        """The process is dead."""
        for mine in self.under_way.values():
            if isinstance(mine.order, Erase) and not mine.refused and self._happens(0.5):
                self._zero(mine.order)
        end = self._random.randint(self._committed, len(self._log))
        for i in range(self._committed, end):
            if isinstance(self._log[i], Record) and self._happens(0.3):
                self._log[i] = None
        self._commit(end)
        return self.disks

    # --- luck ------------------------------------------------------------------------------------------------

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def _due(self, order: Transfer) -> float:
        now = self._clock()
        drive = 0
        if isinstance(order, Demote | Promote | Erase):
            drive = order.place // self.disks.extent_units % self.disks.drives
        if self._happens(self.luck.hangs):
            until = self._hangs_until[drive] = now + self._random.uniform(1, 8)
            for other in self.under_way.values():
                other.due = max(other.due, until)
        begin = max(now, self._hangs_until[drive])
        mean = self.luck.read_s if isinstance(order, Promote) else 0.02
        return begin + self._random.expovariate(1 / mean) * (40 if self._happens(self.luck.late) else 1)


def _checksum(key: BlockKey, lying: object) -> int:
    """Of a frame another one than of the block that it is made of."""
    crc, content = zlib.crc32(key), content_in(lying)
    if isinstance(lying, Frame):
        crc = zlib.crc32(f"{lying.codec} {lying.stored}".encode(), crc)
    for part in content if isinstance(content, list) else ():
        crc = zlib.crc32(part if isinstance(part, bytes) else repr(part).encode(), crc)
    return crc


def _who(order: Promote) -> str:
    return f"the read {order.ticket}"


def _slot(order: Demote | Promote) -> list[int]:
    return list(range(order.slot, order.slot + order.size // SLOT_UNIT))
