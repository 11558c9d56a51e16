"""How a block becomes a value of a remote and comes back: in the clear, or sealed; as it is in RAM, or in a frame.

    in the clear    header (envelope.py), version 3                                                           112 bytes
                    the block, or its frame

    sealed          fields as in the clear, version 4, no checksum  id of the master key  salt  nonce  tag
                    crc of all before                                                   little-endian, 164 bytes
                    the same, encrypted

A codec makes the frame, and takes it apart in the slot into which it came: it lies at the beginning of it. Who reads needs
to know nothing of who wrote: nodes of one store may code or not, each as it likes.

A sealed value has a data key of its own, made of the master key, the tenant and the salt: so each node with the same key
file can read it. All of the header before the tag is bound to the body, which the tag proves: there is no checksum to pay
beside it.

Nothing in the clear is read where values are sealed, and the other way round: to each the other is another version. What
another master key has sealed is not for us to read, nor to delete.
"""

import secrets
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import numpy as np

from kvtier import _native
from kvtier.block import BlockKey
from kvtier.codec import RAW
from kvtier.tiers.encoders import encoder_of
from kvtier.tiers.master_key import ID_BYTES, NONCE_BYTES, SALT_BYTES, TAG_BYTES, MasterKey
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.tiers.remote.beside import Beside
from kvtier.tiers.remote.envelope import Header
from kvtier.transfer import Demote, tenant_of_origin

_MORE = struct.Struct(f"<{ID_BYTES}s{SALT_BYTES}s{NONCE_BYTES}s{TAG_BYTES}s")
_CRC = struct.Struct("<I")
_TRAILER = struct.Struct(f"<4s{envelope.CODEC_BYTES}s56x")  # of a frame (native/codec.h): magic, its codec's numbers, more


class Value(NamedTuple):
    """As it goes out."""

    header: bytes
    body: memoryview
    checksum: int = 0
    coded_s: float = 0.0


class Came(NamedTuple):
    """What the header of a value says that came back whole."""

    header: Header
    codec: str = ""  # the name of that by which it was a frame
    coded_s: float = 0.0


class _Made(NamedTuple):
    """What a value's body is made of."""

    content: np.ndarray
    checksum: int = 0
    codec: bytes = b""  # its numbers, where it is a frame
    coded_s: float = 0.0

    def header(self, demote: Demote, digest: bytes) -> Header:
        stored = len(self.content) if self.codec else 0
        return Header(demote.key, demote.size, self.checksum, digest, demote.epoch, demote.origin, stored, self.codec)


class _Values:
    """What both have in common."""

    header_bytes: int
    is_sealed: bool

    def __init__(self) -> None:
        self._making, self._reading = Beside("encode"), Beside("decode")  # reads don't wait for writes

    def close(self) -> None:
        self._making.close()
        self._reading.close()


class Clear(_Values):
    """Whoever reads there can read it."""

    header_bytes, is_sealed = envelope.HEADER_BYTES, False

    def __init__(self, codes: bool = True) -> None:
        """`codes`: frames may lie there. Where not, every block is written as it is, whatever is wished."""
        super().__init__()
        self._codes = codes

    @asynccontextmanager
    async def made(self, demote: Demote, digest: bytes, block: np.ndarray) -> AsyncIterator[Value | None]:
        """None: there is no frame of it that is small enough, or nobody here who makes one."""
        if demote.codec == RAW or not self._codes:
            made = _Made(block, envelope.checksum_of(demote.key, block))
            yield Value(envelope.pack(made.header(demote, digest)), block.data, made.checksum)
            return
        with self._making.memory(demote.size) as beside:
            frame = await self._making.do(demote.size, lambda: _frame(demote, block, beside))
            if frame is None:
                yield None
            else:
                header = envelope.pack(frame.header(demote, digest))
                yield Value(header, frame.content.data, frame.checksum, frame.coded_s)

    async def read(self, header: bytes, key: BlockKey, digest: bytes, block: np.ndarray, stored: int) -> Came:
        """Of the value that was asked for, whose body of `stored` bytes lies at the beginning of the block's place.
        Corrupt, OtherVersion: it is another."""
        found = envelope.unpack(header)
        envelope.check(found, key, digest, len(block), stored)
        if not found.codec:
            envelope.check_bytes(found, block)
            return Came(found)
        checksum, came = await self._reading.do(len(block), lambda: _decoded(found, block))
        if checksum != found.checksum:
            raise Corrupt("its bytes are not those that were written")
        return came


class Sealed(_Values):
    """Encrypted, for those who have the same master key."""

    header_bytes, is_sealed = envelope.FIELDS_BYTES + _MORE.size + _CRC.size, True

    def __init__(self, master: MasterKey) -> None:
        super().__init__()
        self._master = master

    @asynccontextmanager
    async def made(self, demote: Demote, digest: bytes, block: np.ndarray) -> AsyncIterator[Value | None]:
        """None: as in the clear."""
        salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
        data_key, is_raw = self._key_of(demote.origin, salt), demote.codec == RAW
        with self._making.memory(demote.size) as beside:

            def work() -> Value | None:
                made = _Made(block) if is_raw else _frame(demote, block, beside)
                if made is None:
                    return None
                fields = envelope.pack_fields(made.header(demote, digest)._replace(checksum=0), envelope.SEALED_VERSION)
                bound, sealed = fields + self._master.id + salt + nonce, beside[: len(made.content)]
                tag = self._master.crypto.seal(data_key, nonce, bound, made.content, sealed)
                return Value(_with_crc(bound + tag), sealed.data, coded_s=made.coded_s)

            yield await self._making.do(demote.size, work)

    async def read(self, header: bytes, key: BlockKey, digest: bytes, block: np.ndarray, stored: int) -> Came:
        """As in the clear; opens it in its place first."""
        found, bound, more = self._unpacked(header)
        envelope.check(found, key, digest, len(block), stored)
        _, salt, nonce, tag = more
        data_key, body = self._key_of(found.origin, salt), block[:stored]

        def work() -> Came:
            if not self._master.crypto.unseal(data_key, nonce, bound, tag, body, body):
                raise Corrupt("its bytes are not those that were sealed")
            return _decoded(found, block)[1] if found.codec else Came(found)

        return await self._reading.do(len(block), work)

    def _unpacked(self, header: bytes) -> tuple[Header, bytes, tuple[bytes, bytes, bytes, bytes]]:
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


def _with_crc(header: bytes) -> bytes:
    return header + _CRC.pack(_native.crc32c(header))


# --- frames, on any thread -----------------------------------------------------------------------------------------
#
# They are timed by the clock, not by what a processor did: where others have the processors, a codec is as slow as that to
# whoever waits, and only then is it seen that it doesn't pay there.


def _frame(demote: Demote, block: np.ndarray, beside: np.ndarray) -> _Made | None:
    """None: it doesn't fit, or can't be made here."""
    encoder, begun = encoder_of(demote.codec), time.monotonic()
    room = beside[: min(demote.place_bytes, demote.size - 1)]  # a frame is shorter than its block
    made = encoder and encoder.encode(block, room, envelope.checksum_before(demote.key))
    if made is None:
        return None
    stored, checksum = made
    return _Made(beside[:stored], checksum, _codec_of(beside[:stored]), time.monotonic() - begun)


def _decoded(found: Header, block: np.ndarray) -> tuple[int, Came]:
    """The frame at the beginning of the place becomes the block. Its checksum. Corrupt, OtherVersion."""
    frame, begun = block[: found.stored], time.monotonic()
    facts = _native.frame_facts(frame)
    if facts is None or _codec_of(frame) != found.codec:
        raise Corrupt("its frame is not of the codec that its header says")
    verdict, checksum = _native.decode_in_place(block, found.stored, envelope.checksum_before(found.key))
    if verdict == "unknown":
        raise OtherVersion(f"{facts['codec']}, version {found.codec[1]}: this kvtier can't decode it")
    if verdict != "good":
        raise Corrupt("its frame is damaged")
    return checksum, Came(found, facts["codec"], time.monotonic() - begun)


def _codec_of(frame: np.ndarray) -> bytes:
    numbers: bytes = _TRAILER.unpack(frame[-_TRAILER.size :].tobytes())[1]
    return numbers
