"""Which slots of the arena are free. Pure: it knows numbers, no memory (that is `_native.Arena`).

The arena is cut into slabs of equal size; a slab belongs to one slot size while any of its slots is taken.

    arena   |<------ slab 0 ------>|<------ slab 1 ------>|<------ slab 2 ------>| ...
            | slot | slot | slot |/| slot  | slot  | slot |     not assigned     |
              size A              ^  size B
                                  waste: less than one slot a slab

    slot number = offset / SLOT_UNIT        slab number = offset / slab_bytes
"""

from kvtier.block import SLOT_UNIT

SLAB_BYTES_MAX = 128 * 1024**2
SLAB_ALIGN = 2 * 1024**2
SLABS_MIN = 16  # so that several models can share even a small arena


def slab_bytes_for(capacity: int) -> int:
    """The slab size of an arena: the largest slot that it can hold."""
    return min(SLAB_BYTES_MAX, max(SLAB_ALIGN, capacity // SLABS_MIN // SLAB_ALIGN * SLAB_ALIGN))


class Slots:
    """Hands out slots. Every slot is either free (here) or taken (its taker's business)."""

    def __init__(self, capacity: int) -> None:
        assert capacity >= SLAB_ALIGN and capacity % SLAB_ALIGN == 0, capacity
        self.capacity = capacity
        self.slab_bytes = slab_bytes_for(capacity)
        self.slabs = capacity // self.slab_bytes
        self._unassigned = list(range(self.slabs - 1, -1, -1))
        self._size_of_slab: list[int] = [0] * self.slabs
        self._taken_in_slab: list[int] = [0] * self.slabs
        self._free: dict[int, set[int]] = {}  # slot size -> free slots of assigned slabs
        self.taken_bytes = 0

    @property
    def units(self) -> int:
        """Slot numbers are below this."""
        return self.capacity // SLOT_UNIT

    def slab_of(self, slot: int) -> int:
        return slot * SLOT_UNIT // self.slab_bytes

    def size_of(self, slot: int) -> int:
        """Bytes; 0 when its slab is not assigned."""
        return self._size_of_slab[self.slab_of(slot)]

    def slots_of(self, slab: int) -> range:
        """All slots of an assigned slab."""
        size = self._size_of_slab[slab]
        first = slab * self.slab_bytes // SLOT_UNIT
        step = size // SLOT_UNIT
        return range(first, first + self.slab_bytes // size * step, step)

    def is_free(self, slot: int) -> bool:
        return slot in self._free.get(self.size_of(slot), ())

    def take(self, size: int) -> int | None:
        """A free slot of `size` bytes, or None when there is neither one nor an unassigned slab."""
        assert 0 < size <= self.slab_bytes and size % SLOT_UNIT == 0, size
        free = self._free.setdefault(size, set())
        if not free:
            if not self._unassigned:
                return None
            slab = self._unassigned.pop()
            self._size_of_slab[slab] = size
            free.update(self.slots_of(slab))
        slot = free.pop()
        self._taken_in_slab[self.slab_of(slot)] += 1
        self.taken_bytes += size
        return slot

    def give(self, slot: int) -> None:
        """Back. A slab whose last slot comes back is unassigned, so that any size can have it."""
        slab = self.slab_of(slot)
        size = self._size_of_slab[slab]
        free = self._free[size]
        assert size and slot not in free, f"slot {slot} was given back twice"
        free.add(slot)
        self._taken_in_slab[slab] -= 1
        self.taken_bytes -= size
        if self._taken_in_slab[slab] == 0:
            free.difference_update(self.slots_of(slab))
            self._size_of_slab[slab] = 0
            self._unassigned.append(slab)
