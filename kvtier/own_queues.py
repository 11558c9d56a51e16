"""What rankings have in common that know no sessions: two queues of their own, and how many blocks stand in each. Pure."""

import numpy as np

from kvtier.policy import Ranking

NOWHERE = 0


class OwnQueues(Ranking):
    refresh_s = 0.0  # what a queue's first is worth changes with all that come and go

    def __init__(self, units: int, first: int, second: int) -> None:
        self._queue = np.full(units, NOWHERE, np.int8)  # by slot
        self._is_new = np.zeros(units, bool)  # not used since it came
        self._blocks = {first: 0, second: 0}

    @property
    def _all_blocks(self) -> int:
        return sum(self._blocks.values())

    def _stand(self, slot: int, queue: int) -> None:
        self._queue[slot] = queue
        self._blocks[queue] += 1

    def _leave(self, slot: int) -> None:
        queue = int(self._queue[slot])
        if queue != NOWHERE:
            self._queue[slot] = NOWHERE
            self._blocks[queue] -= 1
