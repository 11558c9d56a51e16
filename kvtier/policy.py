"""Which block goes first when room is needed. Pure.

A block is of use only together with all before it. So the blocks of a slot size form a forest, and only a leaf may go:

    a --- b --- c        c and d are leaves. When both have gone, b is one.
          '---- d

Each block stands in one queue, in the order of its last use as a rule; a Ranking says which queue, and what the first of
each is worth (ranking.py, s3fifo.py, arc.py). Of the firsts of all queues the one worth least goes. Queue 0 is no queue:
what stands there is kept.

A queue is a heap of leaves with lazy updates: an entry that comes up with an old order goes back in with its present
one, one that is no leaf any more is dropped and comes again when it is. What a queue's first is worth is remembered, so
that a decision costs the same however many blocks there are. Each size of slot has queues of its own, so that nobody
searches through blocks of which he can't use the place; stamps of all sizes are of one clock, which counts uses.

Slots, sizes and slabs are numbers here, counted in units of the arena.
"""

import heapq
from collections.abc import Callable
from typing import Protocol

import numpy as np

from kvtier.block import BlockKey

KEPT = 0  # the queue of what never goes
QUEUES_MAX = 512
ENTRIES_SPARE = 1024  # in heaps, beyond those that may mean something
NONE = -1  # no slot
_DEAD = 0  # stamps begin at 1
_NOWHERE = 0


class Ranking(Protocol):
    """Queues are numbers from 1 to QUEUES_MAX - 1. `wanted`: the queue that the block's sessions ask for; a ranking
    that knows no sessions has queues of its own."""

    refresh_s: float  # for so long what a queue's first is worth is not asked again, unless another comes before it

    def added(self, slot: int, key: BlockKey, wanted: int) -> int:
        """The queue at whose end a new block stands."""

    def used(self, slots: np.ndarray, wanted: int | np.ndarray) -> int | np.ndarray | None:
        """The queue, or one for each, at whose end these stand now; None: they stay where they are."""

    def worth(self, queue: int, order: float, used_at: float, now: float) -> float:
        """Of the first of this queue; the least goes."""

    def again(self, slot: int, queue: int) -> int:
        """The queue at whose end a victim gets a second chance; 0: it goes."""
        return 0

    def below(self, queue: int, is_below: bool) -> int:
        """The queue that is ordered like this one, for blocks that the tier below has too, or hasn't."""
        return queue

    def gone(self, slot: int, key: BlockKey, queue: int) -> None:
        """It was evicted or dropped."""
        return

    def is_active(self, queue: int) -> bool:
        """Whether it is of blocks that requests under way use."""
        return False


class _Queues:
    """Of one size of slot: heaps of (order, slot), and what the first of each is worth."""

    def __init__(self) -> None:
        self.heaps: dict[int, list[tuple[float, int]]] = {}
        self.firsts: dict[int, tuple[float, int]] = {}  # of which `worths` speaks
        self.worths = np.full(QUEUES_MAX, np.inf)  # infinite: nobody stands there; -infinite: to be looked up
        self.checked_at = -np.inf
        self.entries = 0  # in all heaps


class Policy:
    def __init__(self, units: int, slab_units: int, ranking: Ranking) -> None:
        self.ranking = ranking
        self._slab_units = slab_units
        self._stamp = np.full(units, _DEAD, dtype=np.int64)
        self._order = np.zeros(units)
        self._used_at = np.zeros(units)
        self._queue = np.zeros(units, dtype=np.int16)
        self._size = np.zeros(units, dtype=np.int16)
        self._queued = np.full(units, _NOWHERE, dtype=np.int32)  # _code: an entry is there; -_code: put aside from there
        self._parent, self._first_child, self._next, self._before = (np.full(units, NONE, dtype=np.int32) for _ in range(4))
        self._sizes: dict[int, _Queues] = {}
        self._uses = 0
        # By slab, so that slabs can be compared without a look at each of their slots:
        self.blocks_in_slab = np.zeros(units // slab_units, dtype=np.int64)
        self.kept_in_slab = np.zeros_like(self.blocks_in_slab)  # of them, in queue KEPT
        self._stamps_in_slab = np.zeros_like(self.blocks_in_slab)  # their sum

    # --- blocks come, are used, go -------------------------------------------------------------------------------

    def add(
        self, slot: int, size: int, key: BlockKey, parent: int, wanted: int, now: float, order: float | None = None
    ) -> None:
        """A new block, used now, behind the block in slot `parent`, or NONE. `order`: in its queue, if not the last."""
        self._uses += 1
        slab = slot // self._slab_units
        self._stamp[slot] = self._uses
        self._order[slot], self._used_at[slot] = self._uses if order is None else order, now
        self._size[slot] = size
        self._queue[slot] = wanted if wanted == KEPT else self.ranking.added(slot, key, wanted)
        self.blocks_in_slab[slab] += 1
        self.kept_in_slab[slab] += wanted == KEPT
        self._stamps_in_slab[slab] += self._uses
        self.attach(slot, parent)
        self._stand(slot, moved=order is not None)

    def attach(self, slot: int, parent: int) -> None:
        """Behind this parent from now on; a new block, or one that had none."""
        self._parent[slot] = parent
        if parent == NONE:
            return
        following = int(self._first_child[parent])
        self._next[slot], self._before[slot] = following, NONE
        if following != NONE:
            self._before[following] = slot
        self._first_child[parent] = slot

    def use(self, slots: np.ndarray, wanted: int | np.ndarray, now: float) -> None:
        """Used now; `slots` in prefix order, so that of one use the tail goes first. One that is named twice counts
        where it is named last."""
        n = len(slots)
        before = self._stamp[slots]
        self._uses += n
        stamps = np.arange(self._uses, self._uses - n, -1)
        self._stamp[slots] = stamps
        last = self._stamp[slots] == stamps
        np.add.at(self._stamps_in_slab, slots[last] // self._slab_units, (stamps - before)[last])
        self._used_at[slots] = now
        loose = self._queue[slots] != KEPT
        queues = self.ranking.used(slots[loose], wanted if isinstance(wanted, int) else wanted[loose])
        if queues is not None:
            self._queue[slots[loose]] = queues
            self._order[slots[loose]] = self._stamp[slots[loose]]
            self._stand_all(slots[loose])

    def move(self, slots: np.ndarray, queue: int | np.ndarray, order: float | None = None) -> None:
        """They stand in this queue from now on, or each in its own, by their last use or by this order; used they were
        not."""
        np.add.at(self.kept_in_slab, slots // self._slab_units, (queue == KEPT) * 1 - (self._queue[slots] == KEPT))
        self._queue[slots] = queue
        self._order[slots] = self._stamp[slots] if order is None else order
        self._stand_all(slots, moved=True)

    def swap(self, slot: int, queue: int) -> None:
        """It stands at the same place of another queue that is ordered alike."""
        assert queue != KEPT and self._queue[slot] != KEPT
        self._queue[slot] = queue
        self._stand(slot, moved=True)

    def tell_below(self, slot: int, is_below: bool) -> None:
        """The tier below has this block too, or has it no more."""
        queue = int(self._queue[slot])
        if queue != KEPT and (other := self.ranking.below(queue, is_below)) != queue:
            self.swap(slot, other)

    def remove(self, slot: int, key: BlockKey) -> None:
        """It is gone. Blocks behind it have no parent then; nothing is evicted from before others."""
        queue, slab = int(self._queue[slot]), slot // self._slab_units
        self.blocks_in_slab[slab] -= 1
        self.kept_in_slab[slab] -= queue == KEPT
        self._stamps_in_slab[slab] -= self._stamp[slot]
        self._stamp[slot] = _DEAD  # its entry is dropped when it comes up
        for child in self.children(slot):
            self._parent[child] = self._next[child] = self._before[child] = NONE
        self._detach(slot)
        if queue != KEPT:
            self.ranking.gone(slot, key, queue)

    # --- who is where --------------------------------------------------------------------------------------------

    def stamp(self, slot: int) -> int:
        """When this block was used: of two, the greater was used later."""
        return int(self._stamp[slot])

    def queues(self, slots: np.ndarray) -> np.ndarray:
        """int16[n]: where they stand."""
        return self._queue[slots]

    def is_leaf(self, slot: int) -> bool:
        return bool(self._first_child[slot] == NONE)

    def root(self, slot: int) -> int:
        """The first of its chain that is here."""
        while (parent := int(self._parent[slot])) != NONE:
            slot = parent
        return slot

    def parent(self, slot: int) -> int | None:
        """The slot of the block before it, if that is here."""
        parent = int(self._parent[slot])
        return None if parent == NONE else parent

    def units(self, slot: int) -> int:
        return int(self._size[slot])

    def stands(self, slot: int) -> tuple[int, float]:
        """In which queue, and its order there."""
        return int(self._queue[slot]), float(self._order[slot])

    def orders(self, slots: np.ndarray) -> np.ndarray:
        return self._order[slots]

    def leaves(self, slots: np.ndarray, size: int) -> np.ndarray:
        """Those of these that hold a block of this size, stand in a queue, and have nobody behind them."""
        is_leaf = (self._stamp[slots] != _DEAD) & (self._first_child[slots] == NONE)
        return slots[is_leaf & (self._queue[slots] != KEPT) & (self._size[slots] == size)]

    def is_leaf_at(self, slot: int, size: int, queue: int, order: float) -> bool:
        """Whether such a leaf stands there, in a queue."""
        is_alive = bool(self._stamp[slot] != _DEAD and self._size[slot] == size)
        return is_alive and queue != KEPT and self.is_leaf(slot) and self.stands(slot) == (queue, order)

    def is_active(self, slot: int) -> bool:
        """Whether a request that is under way uses it."""
        return self.ranking.is_active(int(self._queue[slot]))

    def worth_at(self, slot: int, now: float) -> float:
        """If it were the first of its queue."""
        queue, order = self.stands(slot)
        return self.ranking.worth(queue, order, float(self._used_at[slot]), now)

    def children(self, slot: int) -> list[int]:
        found, child = [], int(self._first_child[slot])
        while child != NONE:
            found.append(child)
            child = int(self._next[child])
        return found

    def subtree(self, slot: int) -> list[int]:
        """It and all behind it, leaves first."""
        found = [slot]
        for one in found:  # grows meanwhile
            found += self.children(one)
        return found[::-1]

    def mean_stamps(self) -> np.ndarray:
        """float64[slabs]: the mean over each slab's blocks, infinite where there is none."""
        means = np.full(len(self.blocks_in_slab), np.inf)
        return np.divide(self._stamps_in_slab, self.blocks_in_slab, out=means, where=self.blocks_in_slab > 0)

    # --- who goes ------------------------------------------------------------------------------------------------

    def victim(self, size: int, acceptable: Callable[[int], bool], now: float) -> int | None:
        """The acceptable leaf of this size that is worth least. Those refused are put aside, so that nobody comes upon
        them again and again: who makes them acceptable says so with `restore`."""
        queues = self._sizes.get(size)
        while queues is not None and (queue := self._least(queues, size, now)) is not None:
            slot = queues.firsts[queue][1]
            if not acceptable(slot):
                self._pop(queues, queue)
                self._queued[slot] = -_code(size, queue)
            elif other := self.ranking.again(slot, queue):
                self._uses += 1
                self._stamps_in_slab[slot // self._slab_units] += self._uses - self._stamp[slot]
                self._stamp[slot] = self._order[slot] = self._uses
                self._queue[slot] = other
                self._stand(slot)
            else:
                return slot
        return None

    def worth(self, victim: int) -> float:
        """Of a slot that `victim` has just named."""
        return float(self._sizes[int(self._size[victim])].worths[self._queue[victim]])

    def restore(self, slots: np.ndarray) -> None:
        """If any of these were put aside, they are candidates again."""
        for slot in slots[self._queued[slots] < 0].tolist():
            self._queued[slot] = _NOWHERE
            if self._stamp[slot] != _DEAD:
                self._stand(slot)

    def _least(self, queues: _Queues, size: int, now: float) -> int | None:
        """The queue whose first goes next."""
        if not 0 <= now - queues.checked_at < self.ranking.refresh_s:
            queues.checked_at = now
            for queue in queues.heaps:
                self._check(queues, size, queue, now)
        while True:
            queue = int(queues.worths.argmin())
            if queues.worths[queue] == np.inf:
                return None
            known = queues.firsts.get(queue)
            if known is not None and self._first(queues, size, queue) == known:
                return queue
            self._check(queues, size, queue, now)

    def _check(self, queues: _Queues, size: int, queue: int, now: float) -> None:
        first = self._first(queues, size, queue)
        if first is None:
            queues.worths[queue] = np.inf
            queues.firsts.pop(queue, None)
        else:
            order, slot = queues.firsts[queue] = first
            queues.worths[queue] = self.ranking.worth(queue, order, float(self._used_at[slot]), now)

    def _first(self, queues: _Queues, size: int, queue: int) -> tuple[float, int] | None:
        """Its first leaf, of those that stand there now."""
        code, heap = _code(size, queue), queues.heaps[queue]
        while heap:
            order, slot = heap[0]
            if self._queued[slot] != code:  # an entry of another time
                self._pop(queues, queue)
            elif self._stamp[slot] == _DEAD or self._first_child[slot] != NONE:
                self._pop(queues, queue)
                self._queued[slot] = _NOWHERE
            elif self._queue[slot] != queue:
                self._pop(queues, queue)
                self._queued[slot] = _NOWHERE
                self._stand(slot)
            elif self._order[slot] != order:
                heapq.heapreplace(heap, (float(self._order[slot]), slot))
            else:
                return heap[0]
        return None

    @staticmethod
    def _pop(queues: _Queues, queue: int) -> None:
        heapq.heappop(queues.heaps[queue])
        queues.entries -= 1

    # --- how -----------------------------------------------------------------------------------------------------

    def _stand_all(self, slots: np.ndarray, moved: bool = False) -> None:
        for slot in slots[self._first_child[slots] == NONE].tolist():
            self._stand(slot, moved)

    def _stand(self, slot: int, moved: bool = False) -> None:
        """A leaf stands in its queue. `moved`: also if it stands there already, for its order may be lower than it was;
        the former entry is of no meaning then."""
        queue, size = int(self._queue[slot]), int(self._size[slot])
        code = _code(size, queue)
        if queue == KEPT or self._first_child[slot] != NONE or self._queued[slot] < 0:
            return
        if self._queued[slot] == code and not moved:
            return
        queues = self._sizes.get(size)
        if queues is None:
            queues = self._sizes[size] = _Queues()
        self._queued[slot] = code
        entry = float(self._order[slot]), slot
        heapq.heappush(queues.heaps.setdefault(queue, []), entry)
        first = queues.firsts.get(queue)
        if first is None or entry < first:
            queues.firsts.pop(queue, None)
            queues.worths[queue] = -np.inf
        queues.entries += 1
        if queues.entries > 4 * (len(self._stamp) // size) + ENTRIES_SPARE:  # mostly of slots that stand elsewhere now
            self._sweep(queues, size)

    def _sweep(self, queues: _Queues, size: int) -> None:
        """One entry a leaf, and none else."""
        mine = self._size == size
        self._queued[mine & (self._queued > 0)] = _NOWHERE
        leaves = np.flatnonzero(mine & (self._stamp != _DEAD) & (self._first_child == NONE) & (self._queued == _NOWHERE))
        queues.firsts.clear()
        queues.entries = 0
        for queue in {*queues.heaps, *np.unique(self._queue[leaves]).tolist()} - {KEPT}:
            those = leaves[self._queue[leaves] == queue]
            self._queued[those] = _code(size, queue)
            heap = queues.heaps.setdefault(queue, [])
            heap[:] = sorted(zip(self._order[those].tolist(), those.tolist()))
            queues.worths[queue] = -np.inf if heap else np.inf
            queues.entries += len(heap)

    def _detach(self, slot: int) -> None:
        parent, before, following = int(self._parent[slot]), int(self._before[slot]), int(self._next[slot])
        if before != NONE:
            self._next[before] = following
        elif parent != NONE:
            self._first_child[parent] = following
        if following != NONE:
            self._before[following] = before
        self._parent[slot] = self._first_child[slot] = self._next[slot] = self._before[slot] = NONE
        if parent != NONE and self._first_child[parent] == NONE:
            self._stand(parent)


def _code(size: int, queue: int) -> int:
    return size * QUEUES_MAX + queue
