"""Which block goes first when room is needed. Pure.

Least recently used, leaf first: a touch stamps a whole prefix at once, its head newest, because a prefix without its
head is worth nothing. Stamps only grow, so a heap with one entry a slot and lazy updates gives the exact order: an
entry that comes up with an old stamp goes back in with its present one. Each size of slot has its own heap, so that
nobody searches through blocks of which he can't use the place; the stamps of all sizes are of one clock.

Slots, sizes and slabs are numbers here, counted in units of the arena.
"""

import heapq
from collections.abc import Callable

import numpy as np

_DEAD = 0  # stamps begin at 1
_NOWHERE = 0


class Lru:
    def __init__(self, units: int, slab_units: int) -> None:
        self._slab_units = slab_units
        self._stamp = np.full(units, _DEAD, dtype=np.int64)
        self._queued = np.full(units, _NOWHERE, dtype=np.int32)  # size: in that heap; -size: put aside from there
        self._heaps: dict[int, list[tuple[int, int]]] = {}  # size -> (stamp when queued, slot)
        self._now = 0
        # By slab, so that slabs can be compared without a look at each of their slots:
        self.blocks_in_slab = np.zeros(units // slab_units, dtype=np.int64)
        self._stamps_in_slab = np.zeros_like(self.blocks_in_slab)  # their sum

    def add(self, slot: int, size: int) -> None:
        """A new block: used now."""
        self._now += 1
        self._stamp[slot] = self._now
        self.blocks_in_slab[slot // self._slab_units] += 1
        self._stamps_in_slab[slot // self._slab_units] += self._now
        if self._queued[slot] != size:
            self._queue(slot, size)

    def touch(self, slots: np.ndarray) -> None:
        """Used now; `slots` in prefix order. One that is named twice counts where it is named last."""
        n = len(slots)
        before = self._stamp[slots]
        self._now += n
        stamps = np.arange(self._now, self._now - n, -1)
        self._stamp[slots] = stamps
        last = self._stamp[slots] == stamps
        np.add.at(self._stamps_in_slab, slots[last] // self._slab_units, (stamps - before)[last])

    def remove(self, slot: int) -> None:
        self.blocks_in_slab[slot // self._slab_units] -= 1
        self._stamps_in_slab[slot // self._slab_units] -= self._stamp[slot]
        self._stamp[slot] = _DEAD  # its heap entry is dropped when it comes up

    def stamp(self, slot: int) -> int:
        """When this block was used: of two, the greater was used later."""
        return int(self._stamp[slot])

    def mean_stamps(self) -> np.ndarray:
        """float64[slabs]: the mean over each slab's blocks, infinite where there is none."""
        means = np.full(len(self.blocks_in_slab), np.inf)
        return np.divide(self._stamps_in_slab, self.blocks_in_slab, out=means, where=self.blocks_in_slab > 0)

    def oldest(self, size: int, acceptable: Callable[[int], bool]) -> int | None:
        """The least recently used acceptable slot of this size. Those refused are put aside, so that nobody comes upon
        them again and again: who makes them acceptable says so with `restore`."""
        heap = self._heaps.get(size, [])
        while heap:
            stamp, slot = heap[0]
            present = int(self._stamp[slot])
            if self._queued[slot] != size:  # from before its slab was cut anew, or a second entry of one put aside
                heapq.heappop(heap)
            elif present == _DEAD:
                heapq.heappop(heap)
                self._queued[slot] = _NOWHERE
            elif present != stamp:
                heapq.heapreplace(heap, (present, slot))
            elif acceptable(slot):
                return slot
            else:
                heapq.heappop(heap)
                self._queued[slot] = -size
        return None

    def restore(self, slots: np.ndarray) -> None:
        """If any of these were put aside, they are candidates again."""
        for slot in slots[self._queued[slots] < 0].tolist():
            size = -int(self._queued[slot])
            if size > 0 and self._stamp[slot] != _DEAD:
                self._queue(slot, size)

    def _queue(self, slot: int, size: int) -> None:
        heap = self._heaps.setdefault(size, [])
        if len(heap) > 2 * (len(self._stamp) // size):  # mostly entries of slots that were cut to other sizes
            queued = np.flatnonzero(self._queued == size)
            dead = self._stamp[queued] == _DEAD
            self._queued[queued[dead]] = _NOWHERE
            alive = queued[~dead]
            heap[:] = sorted(zip(self._stamp[alive].tolist(), alive.tolist()))
        self._queued[slot] = size
        heapq.heappush(heap, (int(self._stamp[slot]), slot))
