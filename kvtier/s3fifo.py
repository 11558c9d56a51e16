"""S3-FIFO, for comparison: three queues that are never sorted. Pure.

Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need for cache eviction (SOSP 2023). A new block stands in the small
queue, a tenth of the cache; whoever is not used again there goes soon, and its key is remembered for a while.

    new ------------------------> small --used twice--> main --used since it stood there--> main's end, one use less
    new, its key is remembered --------------------------^ |
                     small --else--> gone, its key is remembered;  main --else--> gone

What a request saved is used once more when it is over: that first use counts nothing. Blocks are counted, of all sizes
alike, and a cache is as large as what is in it now.
"""

from collections import OrderedDict

import numpy as np

from kvtier.block import BlockKey
from kvtier.own_queues import OwnQueues

SMALL, MAIN = 1, 2
SMALL_PART = 10  # one block in so many stands in the small queue; as many keys are remembered as stand in the others
USES_MAX = 3


class S3Fifo(OwnQueues):
    def __init__(self, units: int) -> None:
        super().__init__(units, SMALL, MAIN)
        self._uses = np.zeros(units, np.int8)  # since it came there
        self._ghosts: OrderedDict[BlockKey, None] = OrderedDict()  # the oldest first

    def added(self, slot: int, key: BlockKey, wanted: int) -> int:
        self._leave(slot)  # a block that was kept meanwhile went unheard
        queue = SMALL
        if key in self._ghosts:
            del self._ghosts[key]
            queue = MAIN
        self._stand(slot, queue)
        self._is_new[slot] = True
        return queue

    def used(self, slots: np.ndarray, wanted: int | np.ndarray) -> None:
        counted = slots[~self._is_new[slots]]
        self._uses[counted] = np.minimum(self._uses[counted] + 1, USES_MAX)
        self._is_new[slots] = False

    def worth(self, queue: int, order: float, used_at: float, now: float) -> float:
        small_goes = self._blocks[SMALL] * SMALL_PART >= self._all_blocks
        return float(queue != (SMALL if small_goes else MAIN))

    def again(self, slot: int, queue: int) -> int:
        if self._queue[slot] == SMALL and self._uses[slot] > 1:
            self._leave(slot)
            self._stand(slot, MAIN)
            return MAIN
        if self._queue[slot] == MAIN and self._uses[slot]:
            self._uses[slot] -= 1
            return MAIN
        return 0

    def gone(self, slot: int, key: BlockKey, queue: int) -> None:
        if self._queue[slot] == SMALL:
            self._ghosts[key] = None
        while len(self._ghosts) > self._all_blocks - self._all_blocks // SMALL_PART:
            self._ghosts.popitem(last=False)
        self._leave(slot)

    def _stand(self, slot: int, queue: int) -> None:
        super()._stand(slot, queue)
        self._uses[slot] = 0
