"""What the store orders from a tier below the arena, and what comes back. Pure.

    Demote    arena slot -> place     a block's bytes are written
    Promote   place -> arena slot     and read back, verified
    Forget    places                  nothing in them is recovered after a restart; then they may be written again
    Erase     place                   its bytes are overwritten with zeros, and nothing in it is recovered after a restart
    Flush                             what was demoted so far survives a crash from here on
    Remember  a namespace             its number and epoch are recovered after a restart
    Shred     a tenant's data keys    what was encrypted with them can be read by nobody any more, nor any copy of it
    Seek      keys                    which of them are there; only of a tier that finds blocks by their keys

A place is named like a slot: by its number, offset / SLOT_UNIT in the tier's own space. A tier that finds blocks by
their keys ignores it, and a checksum too: it goes by the key and its namespace.

A block has `size` bytes in its slot, and `stored` in its place. Where these are fewer, what lies there is a frame: the
block as a codec made it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvtier.block import BlockKey
from kvtier.codec import RAW, Codec
from kvtier.tenants import TENANT_TAG_BYTES

SEEK_KEYS_MAX = 1024
MOVES_MAX = 1024  # reads and writes that begin no more while so much is under way; a tier takes more
BEGUN_MAX = 64  # of each in one step of the event loop: with what goes for them, some 5 ms
ORIGIN_BYTES = 2 * TENANT_TAG_BYTES  # a session's tag and a tenant's, half each; zeros where there is none

FAULTS: dict[str, str] = {
    "corrupt": "the bytes are not those that were written; the block is gone",
    "io": "an error of the drive, or memory is short, or nobody here knows the frame's codec",
    "full": "the filesystem or the catalogue has no room",
    "closed": "the tier is closing",
    "volatile": "nothing in the tier survives its process",
    "gone": "nothing is there under this key any more",
    "unreachable": "it does not answer, or did not a moment ago",
    "refused": "it does not let us",
    "larger": "its frame would need more bytes than its place has; nothing was written",
}


@dataclass(frozen=True, slots=True)
class Demote:
    ticket: int
    key: BlockKey
    slot: int
    place: int
    size: int  # bytes: the whole slot
    namespace: int  # its number
    epoch: int
    origin: bytes = b""  # who saved it first: ORIGIN_BYTES, or empty when nobody knows
    codec: Codec = RAW
    stored: int = 0  # bytes of its place; 0: as many as the slot has. For a tier that finds by keys: at most so many

    @property
    def place_bytes(self) -> int:
        return self.stored or self.size


@dataclass(frozen=True, slots=True)
class Promote:
    ticket: int
    key: BlockKey
    slot: int
    place: int
    size: int
    checksum: int  # as Finished gave it when the block was demoted
    namespace: int = 0  # its number
    stored: int = 0  # bytes that lie there: of the place, or of the value's body; 0: as many as the slot has

    @property
    def place_bytes(self) -> int:
        return self.stored or self.size


@dataclass(frozen=True, slots=True)
class Forget:
    ticket: int
    first: int  # place
    end: int  # the first place that is not meant


@dataclass(frozen=True, slots=True)
class Erase:
    ticket: int
    place: int
    size: int  # of the place
    key: BlockKey = b""  # for a tier that finds blocks by their keys; with their namespace's number
    namespace: int = 0


@dataclass(frozen=True, slots=True)
class Flush:
    ticket: int


@dataclass(frozen=True, slots=True)
class Remember:
    ticket: int
    digest: bytes  # 32 bytes
    namespace: int  # number
    epoch: int


@dataclass(frozen=True, slots=True)
class Shred:
    ticket: int
    tenant: bytes  # its half of an origin


@dataclass(frozen=True, slots=True)
class Seek:
    ticket: int
    namespace: int  # number
    keys: bytes  # packed; at most SEEK_KEYS_MAX


Transfer = Demote | Promote | Forget | Erase | Flush | Remember | Shred | Seek


class UnderWay(dict[int, Transfer]):
    """The orders of one tier that did not finish yet, by ticket. No ticket is given twice."""

    def __init__(self) -> None:
        self._tickets = itertools.count(1)

    def ticket(self) -> int:
        return next(self._tickets)

    def begin(self, order: Transfer) -> Transfer:
        self[order.ticket] = order
        return order

    @property
    def room(self) -> int:
        """How many more reads and writes may begin."""
        return max(0, MOVES_MAX - len(self))

    def begin_all(self, following: Callable[[int], Transfer | None]) -> Iterator[Transfer]:
        """What this gives for one ticket after the other, until it gives nothing or there is no room; or for as long as one
        step may take: whatever finishes brings the next."""
        for _ in range(min(self.room, BEGUN_MAX)):
            order = following(self.ticket())
            if order is None:
                return
            yield self.begin(order)


@dataclass(frozen=True, slots=True)
class Finished:
    ticket: int
    fault: str = ""  # one of FAULTS; empty when it is done
    checksum: int = 0  # of a Demote
    seconds: float = 0.0  # that the drive took
    sizes: tuple[int, ...] = ()  # of a Seek: bytes that lie there of each block, 0 where there is none
    shredded: int = 0  # of a Shred: data keys
    origin: bytes = b""  # of a Promote from a remote: who saved it first, as its envelope proves
    stored: int = 0  # of a Demote or a Promote of a frame: bytes of it that count; 0: there was no frame
    coded_s: float = 0.0  # seconds by the clock, from begin to end, for making the frame or the block of it
    codec: str = ""  # of a Promote of a frame: the name of its codec, where the tier knows it


def tenant_of_origin(origin: bytes) -> bytes:
    """Its half; zeros where there is none."""
    return origin[ORIGIN_BYTES - TENANT_TAG_BYTES :].ljust(TENANT_TAG_BYTES, b"\0")


def is_of_origin(origin: bytes, session_tag: bytes, tenant_tag: bytes) -> bool:
    """An empty tag matches all, but what has no origin."""
    half = len(origin) // 2
    return any(origin) and session_tag in (b"", origin[:half]) and tenant_tag in (b"", origin[half:])
