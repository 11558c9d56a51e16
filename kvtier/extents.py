"""Which block lies where on the drives. Pure: it knows numbers, no files.

The space is cut into extents of equal size that lie on the drives in turn. An extent is filled once, place after place,
with blocks of one size in places of one size; it is reclaimed whole, all its blocks forgotten at once. So nothing is
moved to make room, a drive sees long runs of writes, and what one conversation wrote in one go lies together.

    drive 0  | extent 0 | extent 2 | extent 4 |      place = offset // SLOT_UNIT, extent after extent
    drive 1  | extent 1 | extent 3 | extent 5 |      extent = place // extent_units
                                                     position = position_of(place % extent_units, bytes of one place)

    free --take--> open --the last place is taken--> full --reclaim--> leaving --freed--> free

Which extent is reclaimed: one without a block; else the one whose blocks were used the longest ago on the mean. A mean
is enough, and needs no stamp a block: a use draws the mean of its extent towards now by one block's share.

A place that is smaller than its block holds a frame (coding.py). How large such places are changes with what is written,
so an extent of them may stay half full for ever, and goes as if it were full. Which of those that are being filled a
block goes into, and so how much room its place really has: open_extents.py.

What is known of each block stands in columns (columns.py): 1,000,000 blocks take some 80 MB, the key table included.

Who saved a block first, its origin, is known so that it can be forgotten: 16 bytes a block more, from the first block on
that has one. A block that is dropped leaves its bytes behind, and they still have an origin: until they are erased, or
their extent is reclaimed.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvtier.block import SLOT_UNIT, BlockKey, place_at, position_of, unpack_keys
from kvtier.columns import DEAD, KEY, Columns
from kvtier.index import DictTable, Table
from kvtier.open_extents import OpenExtents
from kvtier.reclaim_order import ReclaimOrder

EXTENT_BYTES_MIN, EXTENT_BYTES_MAX = 2 * 1024**2, 256 * 1024**2
EXTENTS_MIN = 16  # a drive: what is reclaimed at once is a small part of it


def extent_bytes_for(capacity: int, drives: int) -> int:
    """A power of two. A block that is larger is not kept on the drives."""
    size = EXTENT_BYTES_MAX
    while size > EXTENT_BYTES_MIN and size * EXTENTS_MIN * drives > capacity:
        size //= 2
    return size


@dataclass(slots=True)
class _Extent:
    size: int = 0  # bytes of a block; 0: free
    stored: int = 0  # bytes of a place
    rows: int = 0  # its first row in the columns
    rows_kept: int = 0  # for it: as many as it has places, or more
    taken: int = 0  # places handed out so far
    blocks: int = 0  # live ones
    used: float = 0.0  # when these were used, on the mean; counted in uses
    busy: int = 0  # transfers under way
    leaving: bool = False


class Extents:
    def __init__(self, extents: int, extent_bytes: int, drives: int = 1, table: Table | None = None) -> None:
        assert extent_bytes % SLOT_UNIT == 0 and extents >= drives > 0
        self.extent_bytes = extent_bytes
        self.capacity = extents * extent_bytes
        self._drives = drives
        self._units = extent_bytes // SLOT_UNIT
        self._extents = [_Extent() for _ in range(extents)]
        self._free = [deque(range(drive, extents, drives)) for drive in range(drives)]
        self._open = OpenExtents(extents, drives)
        self.place_bytes = self._open.place_bytes  # of a block and its frame: of the place that `take` gives now
        self._leaving = 0
        self._table: Table = DictTable() if table is None else table
        self._uses = 0
        self._order = ReclaimOrder()
        self._columns = Columns(extents * self._units)
        self.used_bytes = self.block_bytes = 0  # of live blocks: what they take here, and what they take in RAM

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._table

    @property
    def has_frames(self) -> bool:
        return self.used_bytes < self.block_bytes

    # --- what is where ---------------------------------------------------------------------------------------

    def find(self, keys: bytes) -> np.ndarray:
        """uint32[n]: the place of each packed key, ABSENT where there is none."""
        return self._table.find(keys)

    def checksum(self, place: int) -> int:
        return int(self._columns.checksum[self._row(place)])

    def key(self, place: int) -> BlockKey:
        """Of the block that lies here."""
        return self._columns.keys[self._row(place)].tobytes()

    def namespace(self, place: int) -> int:
        """Its number."""
        return int(self._columns.namespace[self._row(place)])

    def are_of(self, places: np.ndarray, namespace: int, size: int) -> np.ndarray:
        """bool[n]: whether a block of this namespace and size lies at each of these places, all of them in use."""
        sizes, stored, first = self._of_extents(places)
        rows = first + position_of(places.astype(np.int64) % self._units, stored)
        return (sizes == size) & (self._columns.namespace[rows] == namespace)

    def sizes_at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64[n] each: `size` and `stored` of each place."""
        return self._of_extents(places)[:2]

    def _of_extents(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64[n] each: bytes of a block, of a place, and the first row, of the extent of each place. They are few."""
        numbers, which = np.unique(places // self._units, return_inverse=True)
        in_use = [self._extents[number] for number in numbers.tolist()]
        said = np.array([(extent.size, extent.stored, extent.rows) for extent in in_use], np.int64).reshape(-1, 3)
        sizes, stored, first = said[which].T
        return sizes, stored, first

    def holds(self, place: int) -> bool:
        return self.size(place) > 0 and self._columns.namespace[self._row(place)] != DEAD

    def size(self, place: int) -> int:
        """Bytes of each block of this extent."""
        return self._extents[place // self._units].size

    def stored(self, place: int) -> int:
        """Bytes of each place of this extent: fewer than those of its block, where frames lie."""
        return self._extents[place // self._units].stored

    def origin(self, place: int) -> bytes:
        """Of what was written here last; empty when nobody knows."""
        origin = b"" if self._columns.origin is None else self._columns.origin[:, self._row(place)].tobytes()
        return origin if any(origin) else b""

    def of_origin(self, session_tag: bytes, tenant_tag: bytes) -> np.ndarray:
        """uint32[n]: the places of this session and this tenant; an empty tag matches all. Blocks that were dropped and
        lie there still are among them: `holds` tells."""
        end, origin = self._columns.rows.end, self._columns.origin
        if origin is None:
            end *= not (any(session_tag) or any(tenant_tag))
            return self._places_of(np.flatnonzero(self._columns.namespace[:end] != DEAD))
        tags = [(tag, column[:end]) for column, tag in zip(origin, (session_tag, tenant_tag)) if tag]
        for tag, column in tags:
            if any(tag):  # a look at one column finds few
                rows = np.flatnonzero(column == np.frombuffer(tag, np.uint64))
                break
        else:
            rows = np.flatnonzero((self._columns.namespace[:end] != DEAD) | origin[:, :end].any(0))
        for tag, column in tags:
            rows = rows[column[rows] == np.frombuffer(tag, np.uint64)]
        return self._places_of(rows)

    def touch(self, places: np.ndarray) -> None:
        """Used now."""
        self._uses += len(places)
        numbers, uses = np.unique(places // self._units, return_counts=True)
        for number, n in zip(numbers.tolist(), uses.tolist()):
            extent = self._extents[number]
            extent.used += (self._uses - extent.used) * min(1.0, n / extent.blocks)

    # --- blocks come and go ----------------------------------------------------------------------------------

    def serves(self, namespace: int) -> bool:
        return True

    def fits(self, size: int) -> bool:
        """Whether blocks of so many bytes are kept here at all."""
        return size <= self.extent_bytes

    def take(self, size: int, stored: int = 0) -> int | None:
        """A place of `stored` bytes or some more, 0 for as many, to write a block of `size` bytes to; `stored(place)` says
        how many, `add` or `give_up` follows. None: no extent is free now."""
        if not self.fits(size):
            return None
        kind = size, stored = size, self.place_bytes(size, stored)
        while self._needs_another(kind) and (number := self._next_free(self._open.get(kind, ()))) is not None:
            self._begin(number, *kind)
            self._open.put(kind, number, is_next=True)
        number = self._open.next(kind)
        if number is None:
            return None
        extent = self._extents[number]
        place = number * self._units + place_at(extent.taken, stored)
        extent.taken += 1
        extent.busy += 1
        if extent.taken < self.extent_bytes // stored:
            self._open.put(kind, number)
        return place

    def add(self, place: int, key: BlockKey, namespace: int, checksum: int, origin: bytes = b"", written: int = 0) -> None:
        """The block is written. `origin`: empty when nobody knows."""
        extent, row = self._extents[place // self._units], self._row(place)
        assert self._columns.namespace[row] == DEAD and key not in self._table
        self._table.add(key, place)
        self._columns.keys[row] = np.void(key)
        self._columns.namespace[row] = namespace
        self._columns.checksum[row] = checksum
        self._columns.set_origin(row, origin)
        self._uses += 1
        extent.blocks += 1
        extent.used += (self._uses - extent.used) / extent.blocks
        extent.busy -= 1
        self.used_bytes += extent.stored
        self.block_bytes += extent.size

    def give_up(self, place: int, origin: bytes = b"") -> None:
        """The block was not written, or is not wanted any more. Its place stays empty until its extent is reclaimed;
        `origin`: whose bytes may be there."""
        self._columns.set_origin(self._row(place), origin)
        self._extents[place // self._units].busy -= 1

    def drop(self, place: int) -> None:
        """Forget this block alone: its bytes are not right, or mean nothing any more."""
        extent, row = self._extents[place // self._units], self._row(place)
        self._table.remove(self._columns.keys[row].tobytes())
        self._columns.namespace[row] = DEAD
        extent.blocks -= 1
        self.used_bytes -= extent.stored
        self.block_bytes -= extent.size
        if not extent.blocks:
            self._order.put(place // self._units, extent)

    def drop_namespace(self, namespace: int) -> int:
        """Forget its blocks; returns how many."""
        return sum(
            len(self._clear(number, self._columns.namespace[self._rows_of(extent)] == namespace))
            for number, extent in enumerate(self._extents)
            if extent.blocks
        )

    def erased(self, place: int) -> None:
        """Nothing is left there of a block that was dropped, or of one that was given up."""
        assert not self.holds(place)
        self._columns.set_origin(self._row(place), b"")

    def hold(self, place: int) -> None:
        """Its extent is not reclaimed until `let_go`: it is being read, or erased."""
        self._extents[place // self._units].busy += 1

    def let_go(self, place: int) -> None:
        self._extents[place // self._units].busy -= 1

    # --- room ------------------------------------------------------------------------------------------------

    def is_short(self) -> bool:
        """Whether an extent should be reclaimed, so that there is one for whoever fills his."""
        return sum(map(len, self._free)) + self._leaving < self._drives

    def reclaim(self) -> tuple[int, int, list[BlockKey]] | None:
        """Forget an extent: its first place, the end of its places, the keys of its blocks. `freed` follows when the
        tier has forgotten it too. None when there is none that can be reclaimed now."""
        open_ = {number for (size, stored), numbers in self._open.items() if size == stored for number in numbers}
        number = self._order.take(self._extents.__getitem__, lambda n: not (self._extents[n].busy or n in open_))
        if number is None and len(open_) > self._drives:  # many sizes in a small space: one gives up what it began to fill
            number = self._order.take(self._extents.__getitem__, lambda n: not self._extents[n].busy)
        if number is None:
            return None
        extent = self._extents[number]
        extent.leaving = True
        self._open.remove((extent.size, extent.stored), number)
        keys = self._clear(number, self._columns.namespace[self._rows_of(extent)] != DEAD)
        self._leaving += 1
        if self._columns.origin is not None:
            self._columns.origin[:, self._rows_of(extent)] = 0
        return number * self._units, (number + 1) * self._units, unpack_keys(keys.tobytes())

    def freed(self, first: int) -> None:
        """The tier has forgotten the extent that begins at this place."""
        number = first // self._units
        extent = self._extents[number]
        assert extent.leaving
        self._columns.rows.give_back(extent.rows, extent.rows_kept)
        self._extents[number] = _Extent()
        self._free[number % self._drives].append(number)
        self._leaving -= 1

    # --- after a restart -------------------------------------------------------------------------------------

    def recover(
        self,
        keys: bytes,
        places: np.ndarray,
        sizes: np.ndarray,
        namespaces: np.ndarray,
        checksums: np.ndarray,
        origins: np.ndarray | None = None,
        stored: np.ndarray | None = None,
    ) -> int:
        """Takes over what a tier recovered: columns, one row a block, oldest first; `stored` is 0 where no frame lies.
        Returns how many don't fit in: their extent is of other sizes than its first block says, or they are twice there."""
        if not len(places):
            return 0
        stored = sizes if stored is None else np.where(stored > 0, stored, sizes)
        numbers = (places // self._units).astype(np.int64)
        lowest = np.full(len(self._extents), np.iinfo(places.dtype).max, places.dtype)
        np.minimum.at(lowest, numbers, places)
        firsts = np.flatnonzero(places == lowest[numbers])
        firsts = firsts[np.unique(numbers[firsts], return_index=True)[1]]
        size_of, stored_of, rows_of = np.zeros((3, len(self._extents)), np.int64)
        for number, *said in zip(*(column[firsts].tolist() for column in (numbers, sizes, stored))):
            self._free[number % self._drives].remove(number)
            self._begin(number, *said)
            size_of[number], stored_of[number], rows_of[number] = *said, self._extents[number].rows
        within = places.astype(np.int64) % self._units
        positions = position_of(within, stored_of[numbers])
        fits = (sizes == size_of[numbers]) & (stored == stored_of[numbers])
        fits &= (place_at(positions, stored) == within) & ((positions + 1) * stored <= self.extent_bytes)
        packed = np.frombuffer(keys, KEY)
        fits[fits] = self._table.add_many(packed[fits].tobytes(), places[fits].astype(np.uint32))
        numbers, positions = numbers[fits], positions[fits].astype(np.int64)
        rows = rows_of[numbers] + positions
        self._columns.keys[rows] = packed[fits]
        self._columns.namespace[rows] = namespaces[fits]
        self._columns.checksum[rows] = checksums[fits]
        if origins is not None and origins.any():
            self._columns.origins()[:, rows] = np.ascontiguousarray(origins).view(np.uint64)[fits].T
        self._uses = len(numbers)
        self.used_bytes, self.block_bytes = int(stored[fits].sum()), int(sizes[fits].sum())
        self._count_recovered(numbers, positions)
        return len(fits) - len(numbers)

    def _count_recovered(self, numbers: np.ndarray, positions: np.ndarray) -> None:
        extents = len(self._extents)
        blocks = np.bincount(numbers, minlength=extents)
        stamps = np.bincount(numbers, weights=np.arange(1, len(numbers) + 1), minlength=extents)
        taken = np.zeros(extents, np.int64)
        np.maximum.at(taken, numbers, positions + 1)
        for number, extent in enumerate(self._extents):
            if not extent.size:
                continue
            extent.blocks, extent.taken = int(blocks[number]), int(taken[number])
            extent.used = stamps[number] / max(1, extent.blocks)
            if extent.taken < self.extent_bytes // extent.stored:
                self._open.put((extent.size, extent.stored), number)
        self._order.begin((number, extent) for number, extent in enumerate(self._extents) if extent.size)

    # --- how -------------------------------------------------------------------------------------------------

    def _clear(self, number: int, which: np.ndarray) -> np.ndarray:
        """Forget blocks of one extent; `which`: bool, one a row of it. Returns their keys."""
        extent = self._extents[number]
        rows = extent.rows + np.flatnonzero(which)
        keys = self._columns.keys[rows]
        self._table.remove_many(keys.tobytes())
        self._columns.namespace[rows] = DEAD
        extent.blocks -= len(rows)
        self.used_bytes -= len(rows) * extent.stored
        self.block_bytes -= len(rows) * extent.size
        if len(rows) and not (extent.blocks or extent.leaving):
            self._order.put(number, extent)
        return keys

    def _row(self, place: int) -> int:
        extent = self._extents[place // self._units]
        return extent.rows + position_of(place % self._units, extent.stored)

    def _rows_of(self, extent: _Extent) -> slice:
        return slice(extent.rows, extent.rows + (self.extent_bytes // extent.stored if extent.size else 0))

    def _places_of(self, rows: np.ndarray) -> np.ndarray:
        """uint32[n]; each of these rows is of an extent in use."""
        numbers = self._columns.extent[rows]
        _, stored, first = self._of_extents(numbers * np.int64(self._units))
        return (numbers * np.int64(self._units) + place_at(rows - first, stored)).astype(np.uint32)

    def _needs_another(self, kind: tuple[int, int]) -> bool:
        taken = [self._extents[number].taken for number in self._open.get(kind, ())]
        return self._open.needs_another(kind, self.extent_bytes // kind[1], taken)

    def _next_free(self, open_: Iterable[int]) -> int | None:
        """Of the drive that has the most free, but first of one on which no open extent lies."""
        taken = {number % self._drives for number in open_}
        drive = max(range(self._drives), key=lambda d: (bool(self._free[d]), d not in taken, len(self._free[d])))
        return self._free[drive].popleft() if self._free[drive] else None

    def _begin(self, number: int, size: int, stored: int) -> None:
        n = self.extent_bytes // stored
        first, kept = self._columns.take(n, number)
        self._extents[number] = _Extent(size, stored, first, kept)
        self._order.put(number, self._extents[number])
