"""Importing: a parcel that comes in pieces becomes blocks and sessions of this node.

Each block goes straight into a slot, and is one when its envelope fits. Sessions are known when the file was good to its
end. Blocks of a file that wasn't stay, as those that nobody asks for: they are what they say.
"""

import asyncio
import hmac
import itertools
import time
from collections.abc import AsyncIterator

from kvtier.admin import KEYS_AT_ONCE, admin_pb2
from kvtier.block import KEY_BYTES, BlockKey
from kvtier.errors import ProtocolError
from kvtier.parcel import (
    BEGIN_BYTES,
    BLOCK,
    CURE_ROOT,
    END,
    END_BYTES,
    WORD_BYTES,
    Damaged,
    Head,
    Namespace,
    ParcelError,
    crc_of,
    unpack_begin,
    unpack_end,
    unpack_head,
    witness_of,
)
from kvtier.session import names_of
from kvtier.store import BlockStore
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.visitor import KNOWN, NO_ROOM, Visitor

ENGINE = "~import"  # in whose name sessions arrive
_numbers = itertools.count(1)

Name = tuple[bytes, BlockKey]  # digest of the namespace, key


class Inflow:
    """Bytes that come in pieces of any length, to be taken in lengths of our own."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")
        self.taken = 0  # bytes

    async def next(self, most: int) -> memoryview:
        """Some bytes, no more than so many; none: there are no more."""
        while not self._left:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._left = memoryview(piece)
        some, self._left = self._left[:most], self._left[most:]
        self.taken += len(some)
        return some


class Importing:
    def __init__(self, store: BlockStore, visitor: Visitor, root: bytes, pieces: AsyncIterator[bytes]) -> None:
        self._store, self._visitor, self._root = store, visitor, root
        self._inflow = Inflow(pieces)
        self._expected = 0  # blocks
        self._parents: dict[Name, BlockKey] = {}  # of all blocks that may come; the block before each
        self._new: list[Name] = []
        self._blocks = self._known = 0
        self._crc = 0

    async def run(self) -> admin_pb2.ImportResponse:
        """What came of it. ParcelError: the file is not good, or not for this node."""
        head = await self._head()
        namespaces = {one.digest: one for one in head.namespaces}
        while (word := await self._take(WORD_BYTES)) == BLOCK:
            await self._block(word, namespaces)
        await self._end(word)
        sessions = self._arrive(head)
        sizes = [
            self._visitor.sizes(digest, b"".join(key for of, key in self._new if of == digest)) for digest in namespaces
        ]
        new = sum(size > 0 for of_one in sizes for size in of_one)  # RAM may be smaller than the file
        return admin_pb2.ImportResponse(
            sessions=sessions,
            blocks=self._blocks,
            blocks_new=new,
            bytes_new=sum(map(sum, sizes)),
            blocks_known=self._known,
            blocks_without_room=self._blocks - self._known - new,
        )

    # --- its parts -------------------------------------------------------------------------------------------

    async def _head(self) -> Head:
        first = await self._inflow.next(1)
        if not first:
            raise ParcelError("there is nothing in the file; look at what `kvtier export` said")
        length, crc = unpack_begin(bytes(first) + await self._take(BEGIN_BYTES - 1))
        self._crc = crc
        head = unpack_head(await self._take(length), crc)
        if not hmac.compare_digest(head.witness, witness_of(self._root)):
            raise ParcelError(CURE_ROOT)
        for namespace in head.namespaces:
            self._join(namespace)
        await self._note_keys(head)
        self._expected = head.blocks
        return head

    async def _note_keys(self, head: Head) -> None:
        for carried in head.sessions:
            digest, kind = head.namespaces[carried.namespace]
            before = b""
            for at, key in enumerate(names_of(carried.keys)):
                self._parents.setdefault((digest, key), before)
                before = key if kind.is_chain else b""
                if at % KEYS_AT_ONCE == 0:
                    await asyncio.sleep(0)  # engines have their turn

    def _join(self, namespace: Namespace) -> None:
        try:
            epoch = self._visitor.join(namespace.digest, namespace.kind)
        except ProtocolError as error:
            raise ParcelError(f"its blocks can't be kept here: {error}") from None
        if epoch:
            raise ParcelError(
                "an engine of this model changed its weights while it ran here: what comes from elsewhere means nothing "
                "beside it; start kvtierd and the engine anew, with nvme.paths empty"
            )

    async def _block(self, word: bytes, namespaces: dict[bytes, Namespace]) -> None:
        packed = word + await self._take(envelope.HEADER_BYTES - len(word))
        try:
            header = envelope.unpack_raw(packed)
        except (Corrupt, OtherVersion) as error:
            raise Damaged(f"block {self._blocks + 1}: {error}") from None
        name = header.digest, header.key
        if name not in self._parents or header.size != namespaces[header.digest].kind.slot_bytes or header.epoch:
            raise Damaged(f"block {self._blocks + 1} is none of its sessions'")
        self._count(name, await self._body(header))
        self._crc = crc_of(packed, self._crc)

    async def _body(self, header: envelope.Header) -> str:
        """Into its slot; or past it, where it isn't taken. Why it isn't, or nothing."""
        room = self._visitor.room(header, self._parents[header.digest, header.key])
        if isinstance(room, str):
            await self._check(header, None)
            return room
        is_right = False
        try:
            await self._check(header, room.body)
            is_right = True
        finally:
            if not is_right:
                self._visitor.give_up(room)
        return "" if self._visitor.keep(room) else NO_ROOM

    async def _check(self, header: envelope.Header, into: memoryview | None) -> None:
        """Damaged: the bytes that come are not those that were written."""
        at, crc = 0, crc_of(header.key)
        while at < header.size:
            some = await self._some(header.size - at)
            crc = crc_of(some, crc)
            if into is not None:
                into[at : at + len(some)] = some
            at += len(some)
        if crc != header.checksum:
            raise Damaged(f"block {self._blocks + 1} is not what was written")

    def _count(self, name: Name, why_not: str) -> None:
        self._blocks += 1
        if why_not == KNOWN:
            self._known += 1
        elif not why_not:
            self._new.append(name)

    async def _end(self, word: bytes) -> None:
        if word != END:
            raise Damaged(f"behind block {self._blocks} comes neither a block nor an end")
        before = self._inflow.taken - len(word)
        end = unpack_end(word + await self._take(END_BYTES - len(word)))
        if end != (self._blocks, before, self._crc):
            raise Damaged(
                f"its end tells of {end.blocks} blocks in {end.bytes} bytes, there are {self._blocks} in {before}"
            )
        if await self._inflow.next(1):
            raise Damaged("something stands behind its end")

    def _arrive(self, head: Head) -> list[str]:
        """Its sessions are known here from now on. As what."""
        names, retention, now = [], self._store.retention, time.monotonic()
        self._store.ram.now = max(now, self._store.ram.now)
        for carried in head.sessions:
            digest, kind = head.namespaces[carried.namespace]
            number = self._store.namespaces[digest].number
            here = retention.moving.has(carried, number)
            if here is not None:
                names.append(here.shown_name)
                continue
            request = ENGINE, f"{next(_numbers)}"
            retention.hearing.hear(*request, carried.hints)
            retention.asked(*request, carried.keys[: carried.prompt_blocks * KEY_BYTES], number, kind, now)
            names.append(retention.moving.begun(request, carried.turns))
            retention.over(*request, carried.keys, number, kind, now)
        return names

    # --- bytes -----------------------------------------------------------------------------------------------

    async def _take(self, n: int) -> bytes:
        taken = bytearray()
        while len(taken) < n:
            taken += await self._some(n - len(taken))
        return bytes(taken)

    async def _some(self, most: int) -> memoryview:
        some = await self._inflow.next(most)
        if not some:
            raise Damaged(f"it ends too early, after {self._blocks} of {self._expected} blocks")
        return some
