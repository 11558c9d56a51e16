"""Which slots of the arena are free. Pure: it knows numbers, no memory (that is `_native.Arena`).

The arena is cut into slabs of equal size; a slab belongs to one slot size while any of its slots is taken.

    arena   |<------ slab 0 ------>|<------ slab 1 ------>|<------ slab 2 ------>| ...
            | slot | slot | slot |/| slot  | slot  | slot |     not assigned     |
              size A              ^  size B
                                  waste: less than one slot a slab

    slot number = offset / SLOT_UNIT        slab number = offset / slab_bytes

A slab that another size needs, but of which slots are taken, can be closed: its free slots are handed out no more, and
when the last taken one is back it is not assigned any more.
"""

import numpy as np

from kvtier.block import SLOT_UNIT

SLAB_BYTES_MAX = 128 * 1024**2
SLAB_ALIGN = 2 * 1024**2
SLABS_MIN = 16  # so that several models can share even a small arena


def slab_bytes_for(capacity: int) -> int:
    """The slab size of an arena: the largest slot that it can hold."""
    return min(SLAB_BYTES_MAX, max(SLAB_ALIGN, capacity // SLABS_MIN // SLAB_ALIGN * SLAB_ALIGN))


class Slots:
    """Hands out slots. Every slot is free (here), taken (its taker's business) or shut: back in a closing slab."""

    def __init__(self, capacity: int) -> None:
        assert capacity >= SLAB_ALIGN and capacity % SLAB_ALIGN == 0, capacity
        self.capacity = capacity
        self.slab_bytes = slab_bytes_for(capacity)
        self.slab_units = self.slab_bytes // SLOT_UNIT
        self.slabs = capacity // self.slab_bytes
        self.size_of_slab = np.zeros(self.slabs, dtype=np.int64)  # 0: not assigned
        self.taken_in_slab = np.zeros(self.slabs, dtype=np.int64)
        self.closing: int | None = None  # a slab
        self.cuts = np.zeros(self.slabs, dtype=np.int64)  # how often each slab was assigned
        self.taken_bytes = 0
        self._unassigned = list(range(self.slabs - 1, -1, -1))
        self._free: dict[int, set[int]] = {}  # slot size -> free slots of assigned slabs
        self._shut: set[int] = set()

    @property
    def units(self) -> int:
        """Slot numbers are below this."""
        return self.capacity // SLOT_UNIT

    def slab_of(self, slot: int) -> int:
        return slot // self.slab_units

    def size_of(self, slot: int) -> int:
        """Bytes; 0 when its slab is not assigned."""
        return int(self.size_of_slab[self.slab_of(slot)])

    def slots_of(self, slab: int) -> range:
        """All slots of an assigned slab."""
        size = int(self.size_of_slab[slab])
        first = slab * self.slab_units
        step = size // SLOT_UNIT
        return range(first, first + self.slab_bytes // size * step, step)

    def has_free(self, size: int) -> bool:
        """Whether one of this size can be taken at once."""
        return bool(self._free.get(size)) or bool(self._unassigned)

    def is_free(self, slot: int) -> bool:
        return slot in self._free.get(self.size_of(slot), ())

    def is_closing(self, slot: int) -> bool:
        return self.slab_of(slot) == self.closing

    def take(self, size: int, first: list[int] | None = None) -> int | None:
        """A free slot of `size` bytes, or None when there is neither one nor an unassigned slab. `first`: slots that are
        taken before others if they are free; taken from, from its end."""
        assert 0 < size <= self.slab_bytes and size % SLOT_UNIT == 0, size
        free = self._free.setdefault(size, set())
        if not free:
            if not self._unassigned:
                return None
            slab = self._unassigned.pop()
            self.size_of_slab[slab] = size
            self.cuts[slab] += 1
            free.update(self.slots_of(slab))
        while first and first[-1] not in free:
            first.pop()
        slot = first.pop() if first else free.pop()
        free.discard(slot)
        self.taken_in_slab[self.slab_of(slot)] += 1
        self.taken_bytes += size
        return slot

    def restore(self, sizes: np.ndarray, taken: np.ndarray) -> None:
        """Slabs of before, cut into slots of these sizes, of which these are taken; what no slot is taken of is whole.
        Nothing was taken yet."""
        counts = np.bincount(taken // self.slab_units, minlength=self.slabs)
        self.taken_in_slab[:] = counts
        self.size_of_slab[:] = np.where(counts > 0, sizes, 0)
        self.taken_bytes = int((counts * self.size_of_slab).sum())
        self._unassigned = np.flatnonzero(counts == 0)[::-1].tolist()
        held = set(taken.tolist())
        for slab in np.flatnonzero(counts).tolist():
            free = self._free.setdefault(int(self.size_of_slab[slab]), set())
            free.update(slot for slot in self.slots_of(slab) if slot not in held)

    def give(self, slot: int) -> None:
        """Back. A slab whose last slot comes back is unassigned, so that any size can have it."""
        slab = self.slab_of(slot)
        size = self.size_of(slot)
        home = self._shut if slab == self.closing else self._free.get(size, set())
        assert size and slot not in home, f"slot {slot} was given back twice"
        home.add(slot)
        self.taken_in_slab[slab] -= 1
        self.taken_bytes -= size
        if self.taken_in_slab[slab] == 0:
            home.difference_update(self.slots_of(slab))
            self.size_of_slab[slab] = 0
            self._unassigned.append(slab)
            if slab == self.closing:
                self.closing = None

    def close(self, slab: int) -> None:
        """No slot of it is handed out until all are back. One slab at a time; some slot of it is taken."""
        assert self.closing is None and self.taken_in_slab[slab], slab
        self.closing = slab
        free = self._free[int(self.size_of_slab[slab])]
        self._shut = free.intersection(self.slots_of(slab))
        free -= self._shut
