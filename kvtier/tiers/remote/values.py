"""How a block becomes a value of a remote and comes back: in the clear (envelope.py), or sealed.

    sealed    fields as in the clear, version 2, no checksum  id of the master key  salt  nonce  tag  crc of all before
              the body, encrypted                                                           little-endian, 148 bytes

A value has a data key of its own, made of the master key, the tenant and the salt: so each node with the same key file can
read it. All of the header before the tag is bound to the body, which the tag proves: there is no checksum to pay beside it.

Nothing in the clear is read where values are sealed, and the other way round: by their lengths they aren't even found. What
another master key has sealed is not for us to read, nor to delete.

Bytes are sealed into memory beside the slot, since whoever holds the block may read there meanwhile, and opened in the
slot, which nobody else has yet; large ones on threads of their own, so that the loop goes on.
"""

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np

from kvtier import _native
from kvtier.block import BlockKey
from kvtier.tiers.master_key import ID_BYTES, NONCE_BYTES, SALT_BYTES, TAG_BYTES, MasterKey
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.transfer import Demote, tenant_of_origin

THREADS = 2
ON_LOOP_BYTES = 256 * 1024  # another thread takes longer to begin than this takes
SPARE_MAX = 4  # pieces of memory that are kept for the next writes
_MORE = struct.Struct(f"<{ID_BYTES}s{SALT_BYTES}s{NONCE_BYTES}s{TAG_BYTES}s")
_CRC = struct.Struct("<I")
T = TypeVar("T")


class Clear:
    """As it lies in the arena."""

    header_bytes, is_sealed = envelope.HEADER_BYTES, False

    @asynccontextmanager
    async def made(self, demote: Demote, digest: bytes, body: np.ndarray) -> AsyncIterator[tuple[bytes, memoryview, int]]:
        """Header, body and checksum."""
        checksum = envelope.checksum_of(demote.key, body)
        header = envelope.Header(demote.key, demote.size, checksum, digest, demote.epoch, demote.origin)
        yield envelope.pack(header), body.data, checksum

    async def read(self, header: bytes, key: BlockKey, digest: bytes, body: np.ndarray) -> envelope.Header:
        """Of the value that was asked for. Corrupt, OtherVersion: it is another."""
        return envelope.read(header, key, digest, body)

    def close(self) -> None:
        pass


class Sealed:
    """Encrypted, for those who have the same master key."""

    header_bytes, is_sealed = envelope.FIELDS_BYTES + _MORE.size + _CRC.size, True

    def __init__(self, master: MasterKey) -> None:
        self._master = master
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kvtier-seal")
        self._spare: list[np.ndarray] = []

    @asynccontextmanager
    async def made(self, demote: Demote, digest: bytes, body: np.ndarray) -> AsyncIterator[tuple[bytes, memoryview, int]]:
        """Header, body, and no checksum."""
        salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
        header = envelope.Header(demote.key, demote.size, 0, digest, demote.epoch, demote.origin)
        bound = envelope.pack_fields(header, envelope.SEALED_VERSION) + self._master.id + salt + nonce
        data_key, crypto = self._key_of(demote.origin, salt), self._master.crypto
        beside = self._memory(len(body))
        try:
            piece = beside[: len(body)]
            tag = await self._aside(len(body), lambda: crypto.seal(data_key, nonce, bound, body, piece))
            yield _with_crc(bound + tag), piece.data, 0
        finally:
            if len(self._spare) < SPARE_MAX:
                self._spare.append(beside)

    async def read(self, header: bytes, key: BlockKey, digest: bytes, body: np.ndarray) -> envelope.Header:
        """Opens the value that was asked for, in its place. Corrupt, OtherVersion: it is another."""
        found, bound, more = self._unpacked(header)
        if (found.key, found.digest, found.size) != (key, digest, len(body)):
            raise Corrupt("another block's value")
        _, salt, nonce, tag = more
        data_key, crypto = self._key_of(found.origin, salt), self._master.crypto
        if not await self._aside(len(body), lambda: crypto.unseal(data_key, nonce, bound, tag, body, body)):
            raise Corrupt("its bytes are not those that were sealed")
        return found

    def _unpacked(self, header: bytes) -> tuple[envelope.Header, bytes, tuple[bytes, bytes, bytes, bytes]]:
        """What the header says, what is bound to the body, and the rest of it."""
        if len(header) != self.header_bytes:
            raise Corrupt(f"a header of {len(header)} bytes")
        before, (crc,) = header[: -_CRC.size], _CRC.unpack(header[-_CRC.size :])
        found = envelope.unpack_fields(
            before[: envelope.FIELDS_BYTES], envelope.SEALED_VERSION, crc == _native.crc32c(before)
        )
        more: tuple[bytes, bytes, bytes, bytes] = _MORE.unpack(before[envelope.FIELDS_BYTES :])
        if more[0] != self._master.id:
            raise OtherVersion("sealed with another key than that of encryption.key_file")
        return found, before[:-TAG_BYTES], more

    def _key_of(self, origin: bytes, salt: bytes) -> bytes:
        return self._master.remote_key(tenant_of_origin(origin), salt)

    def _memory(self, size: int) -> np.ndarray:
        for n, memory in enumerate(self._spare):
            if len(memory) >= size:
                return self._spare.pop(n)
        return np.empty(size, np.uint8)

    async def _aside(self, size: int, work: Callable[[], T]) -> T:
        """On a thread. Whoever is cancelled meanwhile hears of it when the memory is touched no more."""
        if size <= ON_LOOP_BYTES:
            return work()
        under_way = asyncio.get_running_loop().run_in_executor(self._threads, work)
        cancelled: asyncio.CancelledError | None = None
        while not under_way.done():
            try:
                await asyncio.wait([under_way])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return under_way.result()

    def close(self) -> None:
        self._threads.shutdown()


def _with_crc(header: bytes) -> bytes:
    return header + _CRC.pack(_native.crc32c(header))
