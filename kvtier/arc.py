"""ARC, for comparison: how much room recency gets, and how much frequency, is learnt from what is asked for again. Pure.

Megiddo, Modha: ARC, a self-tuning, low overhead replacement cache (FAST 2003).

    t1    blocks used by one request    --goes--> b1, keys:  one that comes back makes t1's target larger
    t2    blocks used by several        --goes--> b2, keys:  one that comes back makes t1's target smaller
    who   goes: the least recently used of t1 while it is over its target, else of t2

The paper decides who goes when it knows what comes; here room is made before that is known, so the target is learnt one
block later, and a tie is t2's. What a request saved is used once more when it is over: that first use makes it none of
several. Blocks are counted, of all sizes alike, and a cache is as large as what is in it now.
"""

from collections import OrderedDict

import numpy as np

from kvtier.block import BlockKey
from kvtier.own_queues import NOWHERE, OwnQueues

T1, T2 = 1, 2


class Arc(OwnQueues):
    def __init__(self, units: int) -> None:
        super().__init__(units, T1, T2)
        self._ghosts: dict[int, OrderedDict[BlockKey, None]] = {
            T1: OrderedDict(),
            T2: OrderedDict(),
        }  # b1, b2; oldest first
        self.target = 0.0  # blocks of t1

    def added(self, slot: int, key: BlockKey, wanted: int) -> int:
        self._leave(slot)  # a block that was kept meanwhile went unheard
        capacity = self._all_blocks + 1
        b1, b2 = self._ghosts[T1], self._ghosts[T2]
        queue = T2
        if key in b1:
            self.target = min(float(capacity), self.target + max(1.0, len(b2) / len(b1)))
            del b1[key]
        elif key in b2:
            self.target = max(0.0, self.target - max(1.0, len(b1) / len(b2)))
            del b2[key]
        else:
            queue = T1
        self._stand(slot, queue)
        self._is_new[slot] = True
        self._trim(capacity)
        return queue

    def used(self, slots: np.ndarray, wanted: int | np.ndarray) -> np.ndarray:
        for slot in np.unique(slots[self._queue[slots] != T2]).tolist():
            if self._queue[slot] == NOWHERE or not self._is_new[slot]:
                self._leave(slot)
                self._stand(slot, T2)
        self._is_new[slots] = False
        return self._queue[slots]

    def worth(self, queue: int, order: float, used_at: float, now: float) -> float:
        return float(queue != (T1 if self._blocks[T1] > self.target else T2))

    def gone(self, slot: int, key: BlockKey, queue: int) -> None:
        capacity, mine = self._all_blocks, int(self._queue[slot])
        if mine != NOWHERE:
            self._ghosts[mine][key] = None
            self._leave(slot)
            self._trim(capacity)

    def _trim(self, capacity: int) -> None:
        """As many keys in t1 and b1 as the cache holds, and twice as many in all."""
        b1, b2 = self._ghosts[T1], self._ghosts[T2]
        while b1 and self._blocks[T1] + len(b1) > capacity:
            b1.popitem(last=False)
        while b2 and self._all_blocks + len(b1) + len(b2) > 2 * capacity:
            b2.popitem(last=False)
