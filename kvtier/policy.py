"""Which block goes first when room is needed. Pure.

Least recently used, leaf first: a touch stamps a whole prefix at once, its head newest, because a prefix without its
head is worth nothing. Stamps only grow, so a heap with one entry a slot and lazy updates gives the exact order: an
entry that comes up with an old stamp goes back in with its present one.
"""

import heapq
from collections.abc import Callable

import numpy as np

_DEAD = -1


class Lru:
    def __init__(self, units: int) -> None:
        self._stamp = np.full(units, _DEAD, dtype=np.int64)
        self._queued = np.zeros(units, dtype=bool)
        self._heap: list[tuple[int, int]] = []  # (stamp when queued, slot)
        self._now = 0

    def add(self, slot: int) -> None:
        """A new block: used now."""
        self._now += 1
        self._stamp[slot] = self._now
        if not self._queued[slot]:
            self._queued[slot] = True
            heapq.heappush(self._heap, (self._now, slot))

    def touch(self, slots: np.ndarray) -> None:
        """Used now; `slots` in prefix order."""
        n = len(slots)
        self._now += n
        self._stamp[slots] = np.arange(self._now, self._now - n, -1)

    def remove(self, slot: int) -> None:
        self._stamp[slot] = _DEAD  # its heap entry is dropped when it comes up

    def oldest(self, acceptable: Callable[[int], bool], tries: int) -> int | None:
        """The least recently used slot that is acceptable, looking at no more than `tries` of them."""
        refused: list[tuple[int, int]] = []
        found: int | None = None
        while self._heap and found is None and len(refused) < tries:
            stamp, slot = heapq.heappop(self._heap)
            present = int(self._stamp[slot])
            if present == _DEAD:
                self._queued[slot] = False
            elif present != stamp:
                heapq.heappush(self._heap, (present, slot))
            else:
                refused.append((stamp, slot))
                if acceptable(slot):
                    found = slot
        for entry in refused:
            heapq.heappush(self._heap, entry)
        return found
