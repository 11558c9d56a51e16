"""In which order extents are reclaimed. Pure.

One without a block goes first; else the one whose blocks were used the longest ago on the mean. There are 80,000 extents
where there are 20 TB, and a look at each takes longer than the event loop may stand still: so they stand in a heap. While
blocks are added and used an extent's mean only grows, so its entry is too low at the worst, and is put right when it
comes up. One that has lost its last block is put in anew, and its former entry counts no more.
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Protocol

LOOKED_AT_MAX = 4096  # that can't go now, at one time: then there is none; some 10 ms

_Rank = tuple[bool, float]  # whether it has blocks, and when these were used


class Extent(Protocol):
    blocks: int
    used: float


class ReclaimOrder:
    def __init__(self) -> None:
        self._heap: list[tuple[_Rank, int]] = []
        self._ranks: dict[int, _Rank] = {}  # as they stand in the heap

    def begin(self, extents: Iterable[tuple[int, Extent]]) -> None:
        """With these, and no others."""
        self._ranks = {number: (extent.blocks > 0, extent.used) for number, extent in extents}
        self._heap = [(rank, number) for number, rank in self._ranks.items()]
        heapq.heapify(self._heap)

    def put(self, number: int, extent: Extent) -> None:
        """It is in use; or it has lost its last block."""
        rank = self._ranks[number] = (extent.blocks > 0, extent.used)
        heapq.heappush(self._heap, (rank, number))

    def take(self, extent_of: Callable[[int], Extent], may_go: Callable[[int], bool]) -> int | None:
        """The first that may go; it isn't here any more."""
        aside: list[tuple[_Rank, int]] = []
        found = None
        while self._heap and found is None and len(aside) < LOOKED_AT_MAX:
            rank, number = self._heap[0]
            extent = extent_of(number)
            if self._ranks.get(number) != rank:
                heapq.heappop(self._heap)
            elif (now := (extent.blocks > 0, extent.used)) != rank:
                self._ranks[number] = now
                heapq.heapreplace(self._heap, (now, number))
            elif may_go(number):
                found = number
                heapq.heappop(self._heap)
                del self._ranks[number]
            else:
                aside.append(heapq.heappop(self._heap))
        for entry in aside:
            heapq.heappush(self._heap, entry)
        return found
