"""The tier below the arena, as the store sees it: what it is ordered to do and what came of it. Pure.

Remember  -->  Demote  (demotion.py)   only after the namespace was remembered
Forget    <--  an extent is reclaimed  (extents.py), and may be filled again when that has finished
Erase     <--  a place is to be overwritten (forgetting.py), when no read of it is under way; tried until it is done
Shred     <--  a tenant is forgotten; tried until it is done
Promote        (staging.py)
Flush          when everything that was waiting has been written or refused
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from kvtier.admission import Budget
from kvtier.block import ABSENT, BELOW, KEY_BYTES, BlockKey, unpack_keys
from kvtier.coding import Coding
from kvtier.demotion import Demotions
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.ram import Ram
from kvtier.staging import Staging, Wanted
from kvtier.stats import Stats
from kvtier.transfer import (
    BEGUN_MAX,
    Demote,
    Erase,
    Finished,
    Flush,
    Forget,
    Promote,
    Remember,
    Shred,
    Transfer,
    UnderWay,
    is_of_origin,
)


class DriveSource:
    """The drives, as staging reads from them."""

    tier, called, counters, share, keeps = "nvme", "drives", "", 1.0, True

    def __init__(self, extents: Extents, link: Link) -> None:
        self.link = link
        self._extents = extents

    def has(self, one: Wanted, now: float) -> bool:
        """There, and as large: its extent may have been reclaimed since, and filled with places of another size."""
        is_there = int(self._extents.find(one.key)[0]) == one.place
        return is_there and self._extents.stored(one.place) == (one.stored or one.size)

    def begin(self, one: Wanted) -> tuple[int, int]:
        self._extents.hold(one.place)
        return self._extents.namespace(one.place), self._extents.checksum(one.place)

    def ended(self, order: Promote) -> None:
        self._extents.let_go(order.place)

    def origin(self, order: Promote, done: Finished) -> bytes:
        return self._extents.origin(order.place)


class Lower:
    def __init__(
        self,
        ram: Ram,
        extents: Extents,
        budget: Budget,
        epochs: dict[int, int],
        stats: Stats,
        link: Link,
        staging: Staging,
        coding: Coding | None = None,
    ) -> None:
        """`epochs`: the present epoch of each namespace, by its number; `remember` changes it."""
        self._ram = ram
        self.extents = extents
        ram.has_below = extents.__contains__
        self.epochs = epochs
        self.demotions = Demotions(ram, extents, budget, epochs, stats, coding=coding)
        self.coding = self.demotions.coding
        self.staging, self.link = staging, link
        staging.attach(DriveSource(extents, link))
        self.on_arrival: Callable[[int], None] = lambda slot: None  # whoever else writes what comes into this slot
        self._stats = stats
        self._under_way = UnderWay()
        self._remember: dict[bytes, tuple[int, int]] = {}  # digest -> number, epoch; not yet ordered
        self._forget: list[tuple[int, int]] = []  # reclaimed extents; not yet ordered
        self._to_erase: deque[int] = deque()  # places; not yet ordered
        self._erasing: set[int] = set()  # these, and those that are ordered
        self._gave_up: dict[BlockKey, tuple[int, int]] = {}  # written though forgotten -> the place and its bytes
        self._to_shred: list[tuple[int, bytes]] = []  # numbers and tenants; not yet ordered
        self._shred_of: dict[int, int] = {}  # ticket -> its number
        self._shredded: dict[int, int] = {}  # number -> keys
        self._shreds = itertools.count(1)
        self._flush_of: dict[int, int] = {}  # ticket -> flush
        self.flushed: list[tuple[int, bool]] = []  # flushes that are over; whether everything survives a crash now

    def remember(self, digest: bytes, number: int, epoch: int) -> None:
        """Keys of this namespace are made with this epoch from now on."""
        self.epochs[number] = epoch
        self._remember[digest] = (number, epoch)

    def transfers(self, now: float, writable: bool) -> list[Transfer]:
        """What is to be started now. Reads first."""
        orders: list[Transfer] = list(self._under_way.begin_all(lambda ticket: self.staging.next("nvme", ticket, now)))
        if writable:
            orders += self._writes(now)
        return orders

    def _writes(self, now: float) -> Iterator[Transfer]:
        for digest, (number, epoch) in self._remember.items():
            yield self._under_way.begin(Remember(self._under_way.ticket(), digest, number, epoch))
        self._remember.clear()
        while self.extents.is_short() and (reclaimed := self.extents.reclaim()) is not None:
            first, end, keys = reclaimed
            self._forget.append((first, end))
            self._stats.add("forgotten_blocks", len(keys))
            self.demotions.forgotten(keys)
            self._stats.add("dropped_orphans", self._ram.lost_below(keys))
            gone = self._ram.index.find(b"".join(keys)) == ABSENT
            for at in np.flatnonzero(gone).tolist():
                self._ram.ghosts.add(keys[at], "its room on the drives was needed")
        for first, end in self._forget:
            yield self._under_way.begin(Forget(self._under_way.ticket(), first, end))
        self._forget.clear()
        yield from self._erasures()
        for number, tenant in self._to_shred:
            shred = Shred(self._under_way.ticket(), tenant)
            self._shred_of[shred.ticket] = number
            yield self._under_way.begin(shred)
        self._to_shred.clear()
        yield from self._under_way.begin_all(lambda ticket: self.demotions.next(ticket, now))
        if self.demotions.is_awaited and any(isinstance(order, Remember) for order in self._under_way.values()):
            return  # should it fail, blocks would be durable of a namespace that isn't, which is nothing
        for flush in self.demotions.awaited():
            order = Flush(self._under_way.ticket())
            self._flush_of[order.ticket] = flush
            yield self._under_way.begin(order)

    def _erasures(self) -> Iterator[Transfer]:
        later = []
        for _ in range(min(len(self._to_erase), self._under_way.room, BEGUN_MAX)):  # of millions, perhaps
            place = self._to_erase.popleft()
            if self.staging.is_reading(place):
                later.append(place)
            else:
                yield self._under_way.begin(Erase(self._under_way.ticket(), place, self.extents.stored(place)))
        self._to_erase.extend(later)

    def finished(self, done: Finished, now: float) -> None:
        order = self._under_way.pop(done.ticket)
        if isinstance(order, Demote):
            self.demotions.finished(order, done)
            self._erase_left_behind()
        elif isinstance(order, Erase):
            if done.fault:
                self._to_erase.append(order.place)
            else:
                self._erasing.discard(order.place)
                self.extents.erased(order.place)
                self.extents.let_go(order.place)
                self._stats.add("erased_blocks")
        elif isinstance(order, Promote):
            self.coding.read(order, done)
            slot = self.staging.finished(order, done, now)
            if slot is not None:
                self.demotions.promoted(slot)
                self.on_arrival(slot)
            elif done.fault == "corrupt" and int(self.extents.find(order.key)[0]) == order.place:
                self.erase(order.place)
        elif isinstance(order, Shred):
            number = self._shred_of.pop(order.ticket)
            if done.fault:
                self._to_shred.append((number, order.tenant))
            else:
                self._shredded[number] = done.shredded
        elif isinstance(order, Forget):
            if done.fault:
                self._forget.append((order.first, order.end))
            else:
                self.extents.freed(order.first)
        elif isinstance(order, Remember):
            if done.fault and order.epoch == self.epochs[order.namespace]:  # else the tier was told a newer one since
                self._remember[order.digest] = (order.namespace, order.epoch)
        else:
            self.flushed.append((self._flush_of.pop(order.ticket), not done.fault))

    def saved(self, keys: list[BlockKey], slots: np.ndarray) -> None:
        """New blocks in RAM. An engine saves what lies here too, where its answer was a miss."""
        for slot in slots[self.extents.find(b"".join(keys)) != ABSENT].tolist():
            self._ram.note_below(slot, True)
        self.demotions.saved(keys, slots)

    # --- what is fetched before somebody asks, and what is forgotten -------------------------------------------------

    def fetch(self, keys: bytes, is_chain: bool, due: float, worth: float) -> int:
        """Read what of these is only here into RAM: as Staging.begin_ahead has it."""
        slots = self._ram.index.find(keys)
        positions, places = self.mark(keys, slots)
        holes = np.flatnonzero(slots == ABSENT)
        end = int(holes[0]) if is_chain and len(holes) else len(slots)
        return self.staging.begin_ahead(self.wanted(keys, positions, places, range(end), is_chain), due, worth)

    def mark(self, keys: bytes, slots: np.ndarray, of: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of these packed keys, what only this tier has: which they are, and their places. `slots`: where RAM has them;
        what is here is marked there as BELOW. `of` a namespace and a size: others aren't here, as Ram.find has it."""
        missing = np.flatnonzero(slots == ABSENT)
        places = self.extents.find(np.frombuffer(keys, f"V{KEY_BYTES}")[missing].tobytes())
        is_below = places != ABSENT
        positions, places = missing[is_below], places[is_below]
        if of is not None:  # for none, too: it is to take as long whether others have such a key
            are_ours = self.extents.are_of(places, *of)
            positions, places = positions[are_ours], places[are_ours]
        slots[positions] = BELOW
        return positions, places

    def frames(self, positions: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of what `mark` found, the positions and the bytes that lie there; nothing, where nowhere is a frame."""
        if not self.extents.has_frames:
            return positions[:0], places[:0]
        return positions, self.extents.sizes_at(places)[1]

    def wanted(self, keys: bytes, positions: np.ndarray, places: np.ndarray, within: range, is_chain: bool) -> list[Wanted]:
        """What `mark` found, as staging reads it; as far as it is of use."""
        is_of_use = (positions >= within.start) & (positions < within.stop)
        positions, places = positions[is_of_use], places[is_of_use]
        named = np.frombuffer(keys, f"V{KEY_BYTES}")
        parents = [b""] * len(positions)
        if is_chain:
            parents = unpack_keys(named[positions - 1].tobytes())
            if len(positions) and not positions[0]:
                parents[0] = b""
        sizes, stored = self.extents.sizes_at(places)
        stored[stored == sizes] = 0
        columns = positions.tolist(), unpack_keys(named[positions].tobytes()), parents, places.tolist(), sizes.tolist()
        return list(map(Wanted, *columns, itertools.repeat("nvme"), itertools.repeat(0), stored.tolist()))

    def of_origin(self, session_tag: bytes, tenant_tag: bytes) -> list[int]:
        """Places of blocks that such a session, or such a tenant, was the first to save."""
        return self.extents.of_origin(session_tag, tenant_tag).tolist()

    def moving_of_origin(self, session_tag: bytes, tenant_tag: bytes) -> list[BlockKey]:
        """Those of their blocks that are being written or read now."""
        return [
            order.key
            for order in self._under_way.values()
            if (isinstance(order, Demote) and is_of_origin(order.origin, session_tag, tenant_tag))
            or (isinstance(order, Promote) and is_of_origin(self.extents.origin(order.place), session_tag, tenant_tag))
        ]

    def drop(self, keys: Iterable[BlockKey]) -> None:
        """These are not wanted any more, nor after a restart."""
        for key in keys:
            place = int(self.extents.find(key)[0])
            if place != ABSENT:
                self._stats.add("forgotten_blocks")
                self.erase(place)

    def forget_keys(self, keys: Iterable[BlockKey]) -> tuple[list[BlockKey], list[int]]:
        """They are forgotten by wish. Those that are being written now, and the slots of those that are being read."""
        writing, reading = [], []
        for key in keys:
            if self.demotions.forget_key(key):
                writing.append(key)
            if (slot := self.staging.forget_key(key)) is not None:
                reading.append(slot)
        return writing, reading

    def erase(self, place: int) -> None:
        """Overwrite what is there, of a block that is wanted no more."""
        if place in self._erasing:
            return
        if self.extents.holds(place):
            key = self.extents.key(place)
            self.extents.drop(place)
            self._ram.lost_below([key])
        self.extents.hold(place)
        self._erasing.add(place)
        self._to_erase.append(place)

    def shred(self, tenant: bytes) -> int:
        """Make what is there of this tenant, its half of an origin, unreadable for everybody. A number, for `shredded`."""
        number = next(self._shreds)
        self._to_shred.append((number, tenant))
        return number

    def shredded(self, number: int) -> int | None:
        """How many data keys are gone for good; None: not yet. It is told once."""
        return self._shredded.pop(number, None)

    def is_erasing(self, place: int) -> bool:
        return place in self._erasing

    def given_up(self, keys: Iterable[BlockKey]) -> dict[BlockKey, tuple[int, int]]:
        """Places and bytes of those of these that had been written though they were forgotten; they are being erased.
        Each is told once."""
        return {key: self._gave_up.pop(key) for key in keys if key in self._gave_up}

    def _erase_left_behind(self) -> None:
        for demote in self.demotions.left_behind:
            self._gave_up[demote.key] = demote.place, demote.place_bytes
            self.erase(demote.place)
        self.demotions.left_behind.clear()

    def snapshot(self, now: float) -> dict[str, object]:
        """As JSON values: bytes, counts, bytes per day."""
        return {
            "capacity_bytes": self.extents.capacity,
            "used_bytes": self.extents.used_bytes,
            "block_bytes": self.extents.block_bytes,
            "blocks": len(self.extents),
            "writing_bytes": self.demotions.writing_bytes,
            "reading_bytes": self.staging.reading_bytes("nvme"),
            "candidates": self.demotions.waiting,
            "waiting_lookups": self.staging.waiting_for("nvme"),
            "coding": self.coding.snapshot(),
            **self.demotions.budget.snapshot(now),
        }

    @property
    def is_idle(self) -> bool:
        """Nothing is under way and nothing waits."""
        waiting = self.demotions.waiting or self._remember or self._forget or self._to_erase or self._to_shred
        return not (self._under_way or waiting)
