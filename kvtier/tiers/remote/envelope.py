"""The header of a value in a remote store: whose bytes these are, how they are coded, and a checksum to prove it. No I/O.

    magic  version  key  size  stored  checksum  namespace's digest  epoch  origin  codec  crc of all before
                                                                                       little-endian, 112 bytes

`size` is the block's, `stored` the body's. Where the body is the block as it is, both are the same, the codec is zeros,
and the checksum is the crc32c of key and content, as the drives have it. Where it is a frame it has fewer bytes, and a
checksum of its own, which begins with the key as well; the codec's four numbers stand here as in the frame's trailer, and
four zeros behind them: id, version, element, row.

A node's own numbers are not in it: a namespace goes by its digest. Keys are made with the epoch, so a value of another
epoch is found under no key of this one; it is here for those who move or clean up values without asking an engine.

Nothing that comes from a remote is believed before values.py has seen it. Only what another kvtier would understand is not
Corrupt: our magic with another version, or a codec that we don't know; so that two releases can share a store and neither
deletes what the other wrote. Version 4 is what lies encrypted. Versions 1 and 2 knew no codecs.
"""

import struct
from typing import NamedTuple

import numpy as np

from kvtier import _native
from kvtier.block import KEY_BYTES, BlockKey
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.transfer import ORIGIN_BYTES

MAGIC, VERSION, SEALED_VERSION = b"kvtV", 3, 4
DIGEST_BYTES = 32
DIGEST_SHOWN = 16  # hex digits of it in a name
CODEC_BYTES = 4  # its numbers
_BEGIN = struct.Struct("<4sI")
_FIELDS = struct.Struct(f"<4sI{KEY_BYTES}sQQI{DIGEST_BYTES}sQ{ORIGIN_BYTES}s{CODEC_BYTES}s4s")
_CRC = struct.Struct("<I")
FIELDS_BYTES = _FIELDS.size
HEADER_BYTES = FIELDS_BYTES + _CRC.size
BODY_BYTES_MAX = 1 << 40  # a remote that says more is wrong
assert HEADER_BYTES == 112


class Header(NamedTuple):
    key: BlockKey
    size: int  # bytes of the block: the whole slot
    checksum: int
    digest: bytes
    epoch: int
    origin: bytes = b""  # who saved it first, as Demote has it
    stored: int = 0  # bytes of a frame; 0: it is the block as it is
    codec: bytes = b""  # of a frame: its numbers

    @property
    def body_bytes(self) -> int:
        return self.stored or self.size


def name_of(digest: bytes, key: BlockKey) -> str:
    assert len(key) == KEY_BYTES
    return f"{digest.hex()[:DIGEST_SHOWN]}/{key.hex()}"


def checksum_of(key: BlockKey, body: np.ndarray) -> int:
    """With the key in it, another block's bytes never fit."""
    return checksum_after(checksum_before(key), body)


def checksum_before(key: BlockKey) -> int:
    """When nothing of the body has come yet."""
    return int(_native.crc32c(key))


def checksum_after(checksum: int, piece: np.ndarray) -> int:
    """Of what came before, and of the piece of the body behind it."""
    return int(_native.crc32c(piece, checksum))


def pack(header: Header) -> bytes:
    fields = pack_fields(header, VERSION)
    return fields + _CRC.pack(_native.crc32c(fields))


def pack_fields(header: Header, version: int) -> bytes:
    key, size, checksum, digest, epoch, origin, _, codec = header
    assert len(key) == KEY_BYTES and len(digest) == DIGEST_BYTES and len(origin) in (0, ORIGIN_BYTES)
    return _FIELDS.pack(MAGIC, version, key, size, header.body_bytes, checksum, digest, epoch, origin, codec, b"")


def unpack(header: bytes) -> Header:
    """Corrupt: not what `pack` made. OtherVersion: another kvtier's."""
    if len(header) != HEADER_BYTES:
        raise Corrupt(f"a header of {len(header)} bytes")
    fields = header[:FIELDS_BYTES]
    return unpack_fields(fields, VERSION, _CRC.unpack_from(header, FIELDS_BYTES)[0] == _native.crc32c(fields))


def unpack_raw(header: bytes) -> Header:
    """Where blocks come as they are: from a peer, and in a parcel. Corrupt, too: a frame."""
    found = unpack(header)
    if found.codec:
        raise Corrupt("a block comes here as it is in RAM, not in a frame")
    return found


def unpack_fields(fields: bytes, wanted: int, is_whole: bool) -> Header:
    """`is_whole`: the header's crc says so. Corrupt, OtherVersion."""
    magic, version = _BEGIN.unpack_from(fields)
    if magic == MAGIC and version != wanted:
        raise OtherVersion(f"version {version}; this kvtier reads {wanted}")
    if magic != MAGIC or not is_whole:
        raise Corrupt("its header is no kvtier header, or damaged")
    _, _, key, size, stored, checksum, digest, epoch, origin, codec, more = _FIELDS.unpack(fields)
    if any(more):
        raise OtherVersion("a codec with more parameters than this kvtier knows")
    if not (0 < stored < size if any(codec) else stored == size):
        raise Corrupt(f"{stored} bytes for a block of {size} by codec {codec[0]}")
    is_frame = any(codec)
    return Header(
        key, size, checksum, digest, epoch, origin if any(origin) else b"", stored * is_frame, codec if is_frame else b""
    )


def read(header: bytes, key: BlockKey, digest: bytes, body: np.ndarray) -> Header:
    """Of the block that was asked for, which comes as it is. Corrupt: it is another, or damaged."""
    found = unpack_raw(header)
    check(found, key, digest, len(body), len(body))
    check_bytes(found, body)
    return found


def check(found: Header, key: BlockKey, digest: bytes, size: int, stored: int) -> None:
    """Corrupt: it is of another value than was asked for."""
    if (found.key, found.digest, found.size, found.body_bytes) != (key, digest, size, stored):
        raise Corrupt("another block's value")


def check_bytes(found: Header, body: np.ndarray) -> None:
    """Of a block as it is. Corrupt."""
    if found.checksum != checksum_of(found.key, body):
        raise Corrupt("its bytes are not those that were written")


def body_bytes(length: int | None, header_bytes: int = HEADER_BYTES) -> int:
    """Of a value of this length; 0 where there is none, or where no value of ours is so short, or so long."""
    size = 0 if length is None else length - header_bytes
    return size if 0 < size <= BODY_BYTES_MAX else 0
