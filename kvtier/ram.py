"""The RAM tier: which blocks lie in the arena, what pins them there, and what goes when room is needed. Pure.

A slot is always in exactly one of these places, which the simulator checks after every step:

           take                keep                      drop, nothing pins it
    free ------> its taker's ------> placement (Index) --------------------------> free
      ^              |                   | drop while pinned                        ^
      |--------------'                   '------> dropped, pinned ------------------'
           give                                             unpin

The takers are the engines (lent slots) and staging. What pins: leases, and writes to a lower tier.

A slab of which slots are taken, or dropped and pinned, can't be cut to another size. Where a size needs it, it is
closing: it holds no placement, and a slot that would become free in it, or a placement in it, is shut instead. The slab
is whole again when all its slots are shut.
"""

from collections.abc import Iterator

import numpy as np

from kvtier.arena import Slots
from kvtier.block import SLOT_UNIT, BlockKey
from kvtier.ghosts import Ghosts
from kvtier.index import Index, Table
from kvtier.policy import Lru
from kvtier.stats import Stats


class Ram:
    def __init__(self, capacity: int, stats: Stats, table: Table | None = None) -> None:
        self.ghosts = Ghosts()
        self.slots = Slots(capacity)
        self.index = Index(self.slots.units, table)
        self.lru = Lru(self.slots.units, self.slots.slab_units)
        self._stats = stats
        self._closing_for = 0  # the slot size that needs the closing slab
        self._pins_in_slab = np.zeros_like(self.slots.taken_in_slab)

    @property
    def closing_for(self) -> int:
        """The slot size for which a slab is closing or was closed; 0: none."""
        return self._closing_for

    def slab_is_served(self) -> None:
        """Whoever needed the closed slab has had his turn."""
        if self.slots.closing is None:
            self._closing_for = 0

    def takes(self, size: int, whom: str) -> Iterator[int]:
        """Slots of this size, one after the other, evicting what must go for each. It ends when nothing more can go.
        `whom` they are for, is remembered of what goes."""
        cause = f"its room in RAM was needed {whom}"
        compares = True  # with other sizes: once is enough, it costs a look at every slab
        while True:
            slot = self.slots.take(size)
            if slot is not None:
                yield slot
            elif self._make_room(size, compares, cause):
                compares = False
            else:
                return

    def keep(self, slot: int, key: BlockKey, namespace: int) -> bool:
        """A taken slot holds this block now. False, and the slot is free: it is here already, or the slab is closing."""
        if key in self.index or self.slots.is_closing(slot):
            self.slots.give(slot)
            return False
        self.index.add(key, slot, namespace)
        self.lru.add(slot, self.slots.size_of(slot) // SLOT_UNIT)
        return True

    def drop_namespace(self, namespace: int) -> int:
        """Forget its blocks; returns how many."""
        dropped = self.index.of_namespace(namespace).tolist()
        for slot in dropped:
            self._drop(slot)
        return len(dropped)

    def pin(self, slots: np.ndarray) -> None:
        self.index.pin(slots)
        np.add.at(self._pins_in_slab, slots // self.slots.slab_units, 1)

    def unpin(self, slots: np.ndarray) -> None:
        np.subtract.at(self._pins_in_slab, slots // self.slots.slab_units, 1)
        for slot in self.index.unpin(slots):
            self.slots.give(slot)
        self.lru.restore(slots)

    # --- how: what must go -------------------------------------------------------------------------------------

    def _make_room(self, size: int, compares: bool, cause: str) -> bool:
        """Whether a slot of this size can be taken now, for what was used least recently has gone.

        That is this size's oldest block; or a whole slab of another size, when its blocks are on the mean older than
        that, or there is no such block. The mean, because neither should one old block doom a slab of young ones, nor
        one young block save a slab of old ones. So each size has as many slabs as make its oldest blocks as old as
        those of the others.
        """
        own = self.lru.oldest(size // SLOT_UNIT, lambda slot: not self.index.is_pinned(slot))
        if (own is None or compares) and self._clear_slab(size, own, cause):
            return True
        if own is not None:
            self._evict(own, cause)
        return own is not None

    def _clear_slab(self, size: int, own: int | None, cause: str) -> bool:
        """Whether a slab of another size is whole now. If slots of the best one are taken or pinned it will be later:
        it is closed. Only one is closing at a time, for what its engines save there meanwhile is lost."""
        sizes = self.slots.size_of_slab
        slabs = np.flatnonzero((sizes != size) & (sizes != 0))
        held = self.slots.taken_in_slab - self.lru.blocks_in_slab + self._pins_in_slab
        means = self.lru.mean_stamps()
        if self.slots.closing is not None:
            slabs = slabs[held[slabs] == 0]
        if own is not None:
            slabs = slabs[means[slabs] < self.lru.stamp(own)]
        if not len(slabs):
            return False
        slab = int(slabs[np.lexsort((means[slabs], held[slabs]))[0]])  # the fewest held, the oldest of those
        if held[slab]:
            self.slots.close(slab)
            self._closing_for = size
        for slot in self.slots.slots_of(slab):
            if self.index.holds(slot):
                self._evict(slot, cause)
        return not held[slab]

    def _evict(self, slot: int, cause: str) -> None:
        self.ghosts.add(self.index.key(slot), cause)
        self._drop(slot)
        self._stats.add("evicted_blocks")

    def _drop(self, slot: int) -> None:
        self.lru.remove(slot)
        if self.index.drop(slot):
            self.slots.give(slot)
