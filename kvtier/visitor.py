"""Visitor: blocks for whoever is no engine: another node, a file that goes there, a file that comes from there.

    hold --it is in RAM------------------------> Held --let_go
      '----it is on the drives, and is read----'            what came from there for nobody else leaves RAM again
    room --> Room, a lent slot --keep-----> a block
                               '-give_up--> free again

It reads what lies in RAM or on the drives, and never asks a remote: nodes that ask each other would ask in circles. What
may not leave this node isn't there for it, nor is anything of a namespace that was reset here: of what its keys mean now,
no other node knows. It has no leases and asks no decision, and engines that wait for the drives come first.

What it holds is bounded: bytes pinned, bytes lent, reads at once. Whoever finds no room to read waits for it.

All of it happens on the daemon's loop, but what is done with a slot's bytes: a Held, and a Room, may be read and written
by any thread until it is let go, kept or given up.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from kvtier.block import ABSENT, NO_KEY, SLOT_UNIT, BlockKey, Kind
from kvtier.errors import ProtocolError
from kvtier.lending import GUEST, Engine
from kvtier.store import BlockStore
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.envelope import DIGEST_BYTES, Header

HELD_SHARE, HELD_BYTES_MAX = 1 / 8, 128 * 1024**2  # of the arena may be pinned
LENT_SHARE, LENT_BYTES_MAX = 1 / 16, 64 * 1024**2  # of it may be lent
READS_MAX = 16  # blocks that are read from the drives at once
WAITING_MAX = 256  # who may wait for a block
GUESTS_MAX = 64  # kinds of blocks that are written in turn
PREFIX_BYTES = envelope.DIGEST_SHOWN // 2

KNOWN, NO_ROOM, ORPHAN = "known", "no room", "orphan"  # why a block isn't taken


@dataclass(eq=False, slots=True)
class Held:
    """A block that stays where it is until it is let go."""

    key: BlockKey
    digest: bytes
    origin: bytes
    slot: int
    body: memoryview
    stamp: int  # of its last use, if it was read from the drives for a visitor; 0 if it was here

    def header(self) -> Header:
        """Looks at every byte; in any thread."""
        return Header(
            self.key, len(self.body), envelope.checksum_of(self.key, _array(self.body)), self.digest, 0, self.origin
        )


@dataclass(eq=False, slots=True)
class Room:
    """A slot to be filled with the block of this header."""

    header: Header
    parent: BlockKey
    guest: str
    slot: int
    body: memoryview

    @property
    def is_right(self) -> bool:
        """Whether the slot holds what the header says. Looks at every byte; in any thread."""
        return self.header.checksum == envelope.checksum_of(self.header.key, _array(self.body))


@dataclass(eq=False, slots=True)
class _Wish:
    digest: bytes
    key: BlockKey
    answer: "asyncio.Future[Held | None]"
    is_read: bool = False  # from the drives, for this one


class Visitor:
    def __init__(self, store: BlockStore, arena: np.ndarray, after_event: Callable[[], None], name: str) -> None:
        """`arena`: the bytes that slots name. `after_event` is called where the store may have orders to give. `name`: of
        this visitor alone."""
        self._store, self._arena, self._after_event, self._name = store, arena, after_event, name
        capacity = store.ram.slots.capacity
        self._held_max = min(HELD_BYTES_MAX, int(capacity * HELD_SHARE))
        self._lent_max = min(LENT_BYTES_MAX, int(capacity * LENT_SHARE))
        self._held_bytes = self._lent_bytes = 0
        self._waiting: deque[_Wish] = deque()  # for their turn, the longest first
        self._reading: list[_Wish] = []
        self._digests: dict[bytes, bytes] = {}  # by what names show of them
        self._guests: dict[str, int] = {}  # -> slots lent; the one used last is last

    # --- what there is -------------------------------------------------------------------------------------------

    def digest(self, prefix: bytes) -> bytes | None:
        """Of the namespace that is shown so, if it is known here. Of two, one."""
        if len(self._digests) < len(self._store.namespaces):
            self._digests.update((digest[:PREFIX_BYTES], digest) for digest in self._store.namespaces)
        return self._digests.get(prefix[:PREFIX_BYTES])

    def sizes(self, digest: bytes, keys: bytes) -> list[int]:
        """Of each packed key: the bytes of its block in RAM or on the drives; 0: it isn't here. Asks nobody."""
        ram, number = self._store.ram, self._number(digest)
        slots = ram.index.find(keys)
        sizes = np.zeros(len(slots), np.int64)
        if number is None:
            return sizes.tolist()
        here = np.flatnonzero(slots != ABSENT)
        found = slots[here].astype(np.intp)
        may_go = (ram.index.namespaces(found) == number) & ~(ram.stays[found] | ram.stays_here[found])
        sizes[here] = np.where(may_go, ram.slots.size_of_slab[found // ram.slots.slab_units], 0)
        if self._store.lower is not None:
            extents = self._store.lower.extents
            places = np.where(slots == ABSENT, extents.find(keys), ABSENT)
            for at in np.flatnonzero(places != ABSENT).tolist():
                if self._may_go_from(int(places[at]), number):
                    sizes[at] = extents.size(int(places[at]))
        return sizes.tolist()

    def _number(self, digest: bytes) -> int | None:
        """Of a namespace that others may meet."""
        known = self._store.namespaces.get(digest)
        return None if known is None or known.epoch else known.number

    def _may_go_from(self, place: int, number: int) -> bool:
        assert self._store.lower is not None
        extents = self._store.lower.extents
        return extents.namespace(place) == number and not self._store.ram.is_to_stay(extents.key(place))

    # --- reading -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def read(self, digest: bytes, key: BlockKey) -> AsyncIterator[tuple[Header, memoryview] | None]:
        """None: it isn't here. While it is held its bytes stay."""
        answer = self.hold(digest, key)
        try:
            held = await answer
        except asyncio.CancelledError:
            self.unhold(answer)
            raise
        if held is None:
            yield None
            return
        try:
            yield await asyncio.get_running_loop().run_in_executor(None, held.header), held.body
        finally:
            asyncio.get_running_loop().call_soon(self.let_go, held)

    def hold(self, digest: bytes, key: BlockKey) -> "asyncio.Future[Held | None]":
        """Sooner or later; who cancels it waits no more. None: it isn't here, or too many wait."""
        wish = _Wish(digest, key, asyncio.get_running_loop().create_future())
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(wish)
            asyncio.get_running_loop().call_soon(self.settle)  # in a turn of its own: a fault there is the loop's
        else:
            wish.answer.set_result(None)
        return wish.answer

    def unhold(self, answer: "asyncio.Future[Held | None]") -> None:
        """Who asked has gone away, and perhaps the answer was there already."""
        if not answer.cancel() and not answer.cancelled() and (held := answer.result()) is not None:
            asyncio.get_running_loop().call_soon(self.let_go, held)

    def settle(self) -> None:
        """To be called after whatever happened: answers those for whom there is something now."""
        for wish in list(self._reading):
            if wish.answer.done() or not self._is_coming(wish.key):
                self._reading.remove(wish)
                self._waiting.appendleft(wish)
        begun = False
        while self._waiting and len(self._reading) < READS_MAX:
            wish = self._waiting.popleft()
            if wish.answer.done():
                continue
            if wish.key in self._store.ram.index:
                if not self._answer(wish):
                    self._waiting.appendleft(wish)
                    break
            elif not wish.is_read and self._begin_read(wish):
                begun = True
                self._reading.append(wish)
            else:
                wish.answer.set_result(None)
        if begun:
            asyncio.get_running_loop().call_soon(self._after_event)

    def _answer(self, wish: _Wish) -> bool:
        """False: there is no room to hold it now."""
        ram = self._store.ram
        slot, number = int(ram.index.find(wish.key)[0]), self._number(wish.digest)
        if ram.index.namespace(slot) != number or ram.stays[slot] or ram.stays_here[slot]:
            wish.answer.set_result(None)
            return True
        size = ram.slots.size_of(slot)
        if self._held_bytes and self._held_bytes + size > self._held_max:
            return False
        ram.pin(np.array([slot]))
        self._held_bytes += size
        origin = ram.origin[slot]
        stamp = ram.policy.stamp(slot) if wish.is_read else 0
        wish.answer.set_result(
            Held(wish.key, wish.digest, origin.tobytes() if origin.any() else b"", slot, self._bytes_of(slot, size), stamp)
        )
        return True

    def _begin_read(self, wish: _Wish) -> bool:
        lower, number = self._store.lower, self._number(wish.digest)
        if lower is None or number is None:
            return False
        place = int(lower.extents.find(wish.key)[0])
        if place == ABSENT or not self._may_go_from(place, number):
            return False
        if not self._is_coming(wish.key):
            wish.is_read = bool(lower.fetch(wish.key, False, time.monotonic(), float("inf")))
        return self._is_coming(wish.key)

    def _is_coming(self, key: BlockKey) -> bool:
        return self._store.lower is not None and self._store.lower.staging.is_coming(key)

    def let_go(self, held: Held) -> None:
        """Nobody reads there any more."""
        ram = self._store.ram
        ram.unpin(np.array([held.slot]))
        self._held_bytes -= len(held.body)
        self._store.lending.can_help = True
        if held.stamp and int(ram.index.find(held.key)[0]) == held.slot and ram.is_below[held.slot]:
            is_used = ram.policy.stamp(held.slot) != held.stamp or ram.index.is_pinned(held.slot)
            if not is_used and ram.policy.is_leaf(held.slot):
                ram.drop([held.slot])
        self.settle()

    # --- writing -------------------------------------------------------------------------------------------------

    def join(self, digest: bytes, kind: Kind) -> int:
        """Blocks of this kind may come. The namespace's epoch here; 0 where it is new. ProtocolError: they can't."""
        store = self._store
        if len(digest) != DIGEST_BYTES or kind.slot_bytes <= 0 or kind.slot_bytes % SLOT_UNIT:
            raise ProtocolError("bad_frame", f"{kind.slot_bytes} bytes are the size of no block")
        if kind.slot_bytes > store.ram.slots.slab_bytes:
            raise ProtocolError("too_large", f"a block of {kind.slot_bytes} bytes does not fit a slab; raise cpu.capacity")
        known = store.namespace(digest)
        engines = [one for one in store.lending.engines.values() if one.namespace == known.number and not one.is_guest]
        if any(one.kind.slot_bytes != kind.slot_bytes for one in engines):
            raise ProtocolError("bad_frame", f"blocks of this namespace have another size than {kind.slot_bytes} bytes")
        guest = self._guest(digest, kind.slot_bytes)
        if guest not in self._guests:
            self._make_way()
            store.retention.names(known.number, digest.hex()[:12])
            store.lending.join(guest, Engine(known.number, kind, 0, 0, time.monotonic(), is_guest=True))
        self._guests[guest] = self._guests.pop(guest, 0)
        return known.epoch

    def _guest(self, digest: bytes, size: int) -> str:
        return f"{GUEST}{self._name} {digest.hex()} {size}"

    def _make_way(self) -> None:
        idle = [guest for guest, lent in self._guests.items() if not lent]
        for guest in idle[: max(0, len(self._guests) - GUESTS_MAX + 1)]:
            del self._guests[guest]
            self._store.lending.leave(guest)

    def room(self, header: Header, parent: BlockKey = b"") -> Room | str:
        """For a block of a kind that joined; or KNOWN, NO_ROOM or ORPHAN. `parent`: the block before it, if one knows."""
        store, guest = self._store, self._guest(header.digest, header.size)
        if guest not in self._guests or self._number(header.digest) is None or header.epoch:
            return NO_ROOM
        if header.key in store.ram.index or (store.lower is not None and header.key in store.lower.extents):
            return KNOWN
        if not store.ram.has_use_for(parent):
            return ORPHAN
        if self._lent_bytes and self._lent_bytes + header.size > self._lent_max:
            return NO_ROOM
        slot = store.lending.lend_guest(guest)
        if slot is None:
            return NO_ROOM
        self._guests[guest] += 1
        self._lent_bytes += header.size
        return Room(header, parent, guest, slot, self._bytes_of(slot, header.size))

    async def commit(self, room: Room) -> bool:
        """Keeps it if it is right, or gives it up. Whether the block is here now."""
        try:
            is_right = await asyncio.get_running_loop().run_in_executor(None, lambda: room.is_right)
        except asyncio.CancelledError:
            self.give_up(room)
            raise
        if is_right:
            return self.keep(room)
        self.give_up(room)
        return False

    def keep(self, room: Room) -> bool:
        """The slot was filled, and `is_right`. Whether the block is here now: it isn't if the namespace was reset since."""
        store, header = self._store, room.header
        if self._number(header.digest) is None:
            self.give_up(room)
            return False
        self._over(room)
        now = time.monotonic()
        store.commit(room.guest, header.key, _slots(room), room.parent or NO_KEY, "", now)
        slot = int(store.ram.index.find(header.key)[0])
        if slot == room.slot and header.origin:
            store.ram.own(np.array([slot]), header.origin)
        self._after_event()
        return header.key in store.ram.index

    def give_up(self, room: Room) -> None:
        """Nobody writes there any more."""
        self._over(room)
        self._store.give_back(room.guest, _slots(room))
        self._after_event()

    def _over(self, room: Room) -> None:
        self._guests[room.guest] -= 1
        self._lent_bytes -= room.header.size

    # --- the end of a block, and of the visit ----------------------------------------------------------------------

    def drop(self, digest: bytes, key: BlockKey) -> None:
        """It is wanted nowhere any more: it leaves RAM, overwritten, with what stands behind it there, and the drives."""
        store, number = self._store, self._number(digest)
        if number is None:
            return
        ram, lower, gone = store.ram, store.lower, [key]
        slot = int(ram.index.find(key)[0])
        if slot != ABSENT and ram.index.namespace(slot) == number:
            gone = [ram.index.key(one) for one in ram.policy.subtree(slot)]
            ram.drop([slot], "another node forgot it", is_secret=True)
        if lower is not None:
            lower.forget_keys(gone)
            place = int(lower.extents.find(key)[0])
            if place != ABSENT and lower.extents.namespace(place) == number:
                lower.erase(place)
        self._after_event()

    def close(self) -> None:
        """Nobody reads or writes its slots any more."""
        for wish in (*self._reading, *self._waiting):
            wish.answer.cancel()
        self._reading.clear()
        self._waiting.clear()
        for guest in self._guests:
            self._store.lending.leave(guest)
        self._guests.clear()

    def _bytes_of(self, slot: int, size: int) -> memoryview:
        return self._arena[slot * SLOT_UNIT : slot * SLOT_UNIT + size].data


def _array(body: memoryview) -> np.ndarray:
    return np.frombuffer(body, np.uint8)


def _slots(room: Room) -> np.ndarray:
    return np.array([room.slot], np.uint32)
