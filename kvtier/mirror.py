"""The GPU tier: which blocks in RAM have a copy in device memory, from where engines read them faster. Pure.

    found by a lookup --> request over --> candidate --> copying --> copy --> room for others, for nobody reads it and
      or pinned by a user                                              |      it was used least recently
                                                                       '----> its slot in RAM is given free

It mirrors RAM: what lies here lies there too. So nothing is ever moved to make room, and all that the other parts say
of a block's slot in RAM (its lease, its pins, what stands before it) holds for its copy. A device, or a daemon, that is
lost costs speed and no block. Only the answers to engines that map the device memory know of places: slot numbers from
`base` on.

A block is copied when it was of use a second time, for most are used once. While its slot is read it is pinned in RAM.
A copy lives until its slot in RAM is given free; an engine that may read it has that slot leased. What is forgotten by
wish is erased here too: overwritten with zeros, before it counts as forgotten.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np

from kvtier.arena import Slots
from kvtier.block import ABSENT, BELOW
from kvtier.policy import KEPT
from kvtier.ram import Ram
from kvtier.stats import Stats
from kvtier.transfer import Demote, Erase, Finished, Transfer

CANDIDATES_MAX = 65_536  # more push out the oldest
COPYING_SHARE = 1 / 8  # of the arena may be pinned by copies under way
COPYING_BYTES_MAX = 64 * 1024**2
ERASING_MAX = 1024  # orders under way; a tier takes more
ENTRIES_SPARE = 64  # in a heap, before it is looked at what in it is of copies that have gone
NOBODY = -1  # in place of a slot

Lease = tuple[str, int]  # an engine and its number


class Mirror:
    def __init__(self, ram: Ram, capacity: int, stats: Stats) -> None:
        """`capacity` bytes of device memory."""
        self.places = Slots(capacity)
        self.base = ram.slots.units
        self.readers: set[str] = set()  # engines all of whose workers map the device memory; whoever knows says so
        self.copies = 0
        self.copying_bytes = 0
        self._ram, self._stats = ram, stats
        self._bytes_max = min(COPYING_BYTES_MAX, int(ram.slots.capacity * COPYING_SHARE))
        self._is_well = True  # the last copy, or erasure, was good
        self._is_ending = False
        self._place = np.full(ram.slots.units, ABSENT, dtype=np.uint32)  # by slot: where its copy is; finished ones
        self._slot_at = np.full(self.places.units, NOBODY, dtype=np.int64)  # by place: whose copy it is
        self._found = np.zeros(ram.slots.units, dtype=bool)  # by slot: a lookup was answered with it
        self._used = np.zeros(ram.slots.units, dtype=np.int64)  # by slot: the event that used it last
        self._events = 0
        self._waits = np.zeros(ram.slots.units, dtype=bool)  # by slot: it is a candidate
        self._candidates: deque[int] = deque()  # slots; those that don't wait any more are passed over
        self._copying: dict[int, Demote] = {}
        self._place_of_copying: dict[int, int] = {}  # by slot
        self._oldest: dict[int, list[tuple[int, int]]] = {}  # by size: a heap of last uses, as they once were, and slots
        self._doomed: set[int] = set()  # places that are to be overwritten when nobody uses them any more, or are being
        self._to_erase: list[tuple[int, int]] = []  # of them, places and bytes of which the order is due
        self._erasing: dict[int, Erase] = {}
        self._leases: set[Lease] = set()  # that were answered with places
        self._tickets = itertools.count(1)

    # --- events --------------------------------------------------------------------------------------------------

    def answered(self, lease: Lease, answer: np.ndarray) -> np.ndarray:
        """A lookup found these slots. The answer with places instead, where there are copies and the engine reads them."""
        at = np.flatnonzero(answer < BELOW)
        slots = answer[at].astype(np.intp)
        self._found[slots] = True
        self._use(slots)
        has = self._place[slots] != ABSENT
        if lease[0] not in self.readers or not self._is_well or self._is_ending or not has.any():
            return answer
        answer = answer.copy()
        answer[at[has]] = self.base + self._place[slots[has]]
        self._leases.add(lease)
        sizes = self._ram.slots.size_of_slab[slots[has] // self._ram.slots.slab_units]
        self._stats.add("found_gpu_keys", int(has.sum()))
        self._stats.add("found_gpu_bytes", int(sizes.sum()))
        return answer

    def over(self, slots: np.ndarray) -> None:
        """A request is over that used these, in prefix order. Those that were of use before, or that a user has pinned,
        are to have a copy."""
        self._use(slots)
        wanted = self._found[slots] | (self._ram.policy.queues(slots) == KEPT)
        wanted &= (self._place[slots] == ABSENT) & ~self._waits[slots]
        for slot in slots[wanted].tolist():
            if slot not in self._place_of_copying:
                self._waits[slot] = True
                self._candidates.append(slot)
        while len(self._candidates) > CANDIDATES_MAX:
            self._waits[self._candidates.popleft()] = False

    def given(self, slot: int) -> None:
        """Nobody uses this slot in RAM any more: what it held is no block of ours."""
        self._found[slot] = self._waits[slot] = False
        if self._place[slot] != ABSENT:
            self._drop(slot)

    def doom(self, slot: int) -> tuple[int, int] | None:
        """Its block is forgotten by wish: its copy, there or on its way, is to be overwritten when nobody uses it any
        more. Place and bytes; None where there is no copy."""
        place = self._place_of_copying.get(slot, int(self._place[slot]))
        if place == ABSENT:
            return None
        self._doomed.add(place)
        return place, self.places.size_of(place)

    def is_unerased(self, place: int) -> bool:
        """It is to be overwritten, and isn't yet."""
        return place in self._doomed

    def released(self, lease: Lease) -> bool:
        """Whether it was answered with places: then how long its load took says nothing of RAM."""
        was_read = lease in self._leases
        self._leases.discard(lease)
        return was_read

    def end(self) -> None:
        """From now on no answer names a place."""
        self._is_ending = True

    @property
    def reading(self) -> set[str]:
        """Engines that may be reading here now."""
        return {engine for engine, _ in self._leases}

    def left(self, engine: str) -> None:
        self.readers.discard(engine)
        self._leases = {lease for lease in self._leases if lease[0] != engine}

    # --- orders --------------------------------------------------------------------------------------------------

    def transfers(self, now: float, writable: bool = True) -> list[Transfer]:
        """What the device is to do now; nothing of it is asked twice. `writable`: it takes orders."""
        return [*self._erasures(), *self._demotes()] if writable else []

    def finished(self, done: Finished) -> None:
        self._is_well = not done.fault
        if (erase := self._erasing.pop(done.ticket, None)) is not None:
            self._erased(erase, done)
            return
        demote = self._copying.pop(done.ticket)
        del self._place_of_copying[demote.slot]
        self.copying_bytes -= demote.size
        if done.fault:
            self._stats.add("failed_gpu_copies")
            self._let_go(demote.place)
            if self._ram.index.holds(demote.slot):  # again, for only what was good shows that all is well
                self._waits[demote.slot] = True
                self._candidates.append(demote.slot)
        else:
            self._place[demote.slot] = demote.place
            self._slot_at[demote.place] = demote.slot
            self.copies += 1
            self._enter(demote.slot, demote.size)
            self._stats.add("mirrored_blocks")
            self._stats.add("mirrored_bytes", demote.size)
        self._ram.unpin(np.array([demote.slot]))  # if it was dropped meanwhile, it is given free by this

    def snapshot(self) -> dict[str, object]:
        """As JSON values: bytes, counts."""
        return {
            "capacity_bytes": self.places.capacity,
            "used_bytes": self.places.taken_bytes,
            "blocks": self.copies,
            "copying_bytes": self.copying_bytes,
            "candidates": int(self._waits.sum()),
            "readers": len(self.readers),
            "is_well": self._is_well,
        }

    @property
    def is_idle(self) -> bool:
        return not (self._copying or self._doomed)

    # --- how -----------------------------------------------------------------------------------------------------

    def _use(self, slots: np.ndarray) -> None:
        self._events += 1
        self._used[slots] = self._events

    def _demotes(self) -> Iterator[Demote]:
        compares = True  # with other sizes: once is enough, it takes a look at every place
        while self._candidates:
            slot = self._candidates[0]
            size = self._ram.slots.size_of(slot)
            if self._waits[slot] and self.copying_bytes and self.copying_bytes + size > self._bytes_max:
                return
            self._candidates.popleft()
            if not self._waits[slot]:
                continue
            self._waits[slot] = False
            if not self._ram.index.holds(slot):  # dropped, and somebody still reads it
                continue
            place = self.places.take(size) if size <= self.places.slab_bytes else None
            if place is None and size <= self.places.slab_bytes:
                place, compares = self._take_others(size, int(self._used[slot]), compares), False
            if place is None:  # all that is here was used since, or is being read
                self._stats.add("refused_gpu")
                continue
            demote = Demote(next(self._tickets), self._ram.index.key(slot), slot, place, size, 0, 0)
            self._ram.pin(np.array([slot]))
            self._copying[demote.ticket] = demote
            self._place_of_copying[slot] = place
            self.copying_bytes += size
            yield demote

    def _erasures(self) -> Iterator[Erase]:
        while self._to_erase and len(self._erasing) < ERASING_MAX:
            erase = Erase(next(self._tickets), *self._to_erase.pop())
            self._erasing[erase.ticket] = erase
            yield erase

    def _erased(self, erase: Erase, done: Finished) -> None:
        if done.fault:
            self._to_erase.append((erase.place, erase.size))
        else:
            self._doomed.discard(erase.place)
            self.places.give(erase.place)
            self._stats.add("erased_gpu_blocks")

    def _drop(self, slot: int) -> None:
        """It has no copy any more."""
        place = int(self._place[slot])
        self._place[slot], self._slot_at[place] = ABSENT, NOBODY
        self.copies -= 1
        self._let_go(place)

    def _let_go(self, place: int) -> None:
        if place in self._doomed:
            self._to_erase.append((place, self.places.size_of(place)))
        else:
            self.places.give(place)

    # --- how: what makes room ------------------------------------------------------------------------------------

    def _take_others(self, size: int, used: int, compares: bool) -> int | None:
        """A place of this size for a block that was used then. What goes for it was used before: the oldest copy of this
        size; or all of a slab of another size, when that is older still, or there is none."""
        own = self._oldest_of(size)
        limit = used if own is None else min(used, int(self._used[own]))
        going = self._oldest_slab(size, limit) if compares else []
        if not going and own is not None and self._used[own] < used:
            going = [own]
        for slot in going:
            self._drop(slot)
            self._stats.add("dropped_gpu_copies")
        return self.places.take(size) if going else None

    def _oldest_of(self, size: int) -> int | None:
        """The slot of the copy of this size that was used least recently, of those that nothing pins."""
        heap, pinned = self._oldest.get(size, []), []
        oldest = None
        while heap and oldest is None:
            used, slot = heap[0]
            if not self._has_copy(slot, size):
                heapq.heappop(heap)
            elif used != self._used[slot]:
                heapq.heapreplace(heap, (int(self._used[slot]), slot))
            elif self._ram.index.is_pinned(slot):
                pinned.append(heapq.heappop(heap))
            else:
                oldest = slot
        for entry in pinned:
            heapq.heappush(heap, entry)
        return oldest

    def _oldest_slab(self, size: int, limit: int) -> list[int]:
        """Slots of all copies in a slab of another size, of which all were used before `limit` and nothing is pinned;
        that whose last use is the oldest. Empty: there is none."""
        slabs = np.flatnonzero((self.places.size_of_slab != size) & (self.places.size_of_slab != 0))
        if not len(slabs):
            return []
        found: list[tuple[int, list[int]]] = []
        for slab in slabs.tolist():
            first = slab * self.places.slab_units
            here = self._slot_at[first : first + self.places.slab_units]
            slots = here[here != NOBODY]
            newest = int(self._used[slots].max(initial=0))
            if len(slots) == self.places.taken_in_slab[slab] and newest < limit:
                found.append((newest, slots.tolist()))
        free = [(newest, slots) for newest, slots in found if not any(map(self._ram.index.is_pinned, slots))]
        return min(free)[1] if free else []

    def _enter(self, slot: int, size: int) -> None:
        heap = self._oldest.setdefault(size, [])
        heapq.heappush(heap, (int(self._used[slot]), slot))
        if len(heap) > 2 * self.copies + ENTRIES_SPARE:
            heap[:] = [(int(self._used[slot]), slot) for slot in {slot for _, slot in heap} if self._has_copy(slot, size)]
            heapq.heapify(heap)

    def _has_copy(self, slot: int, size: int) -> bool:
        return self._place[slot] != ABSENT and self.places.size_of(int(self._place[slot])) == size
