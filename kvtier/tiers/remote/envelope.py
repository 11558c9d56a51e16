"""The header of a value in a remote store: whose bytes these are, and a checksum to prove it. No I/O.

    magic  version  key  size  checksum  namespace's digest  epoch  origin  crc of all before      little-endian, 96 bytes

The checksum is the crc32c of key and content, as the drives have it. A node's own numbers are not in it: a namespace goes
by its digest. Keys are made with the epoch, so a value of another epoch is found under no key of this one; it is here for
those who move or clean up values without asking an engine.

Nothing that comes from a remote is believed before `read` has seen it. Only one thing that we can't read is not Corrupt:
our magic with another version, so that two releases can share a store and neither deletes what the other wrote. Version 2
is what lies encrypted: values.py.
"""

import struct
from typing import NamedTuple

import numpy as np

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT, BlockKey
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.transfer import ORIGIN_BYTES

MAGIC, VERSION, SEALED_VERSION = b"kvtV", 1, 2
DIGEST_BYTES = 32
DIGEST_SHOWN = 16  # hex digits of it in a name
_BEGIN = struct.Struct("<4sI")
_FIELDS = struct.Struct(f"<4sI{KEY_BYTES}sQI{DIGEST_BYTES}sQ{ORIGIN_BYTES}s")
_CRC = struct.Struct("<I")
FIELDS_BYTES = _FIELDS.size
HEADER_BYTES = FIELDS_BYTES + _CRC.size
BODY_BYTES_MAX = 1 << 40  # a remote that says more is wrong
assert HEADER_BYTES == 96


class Header(NamedTuple):
    key: BlockKey
    size: int  # bytes of the body: the whole slot
    checksum: int
    digest: bytes
    epoch: int
    origin: bytes = b""  # who saved it first, as Demote has it


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
    key, size, checksum, digest, epoch, origin = header
    assert len(key) == KEY_BYTES and len(digest) == DIGEST_BYTES and len(origin) in (0, ORIGIN_BYTES)
    return _FIELDS.pack(MAGIC, version, key, size, checksum, digest, epoch, origin)


def unpack(header: bytes) -> Header:
    """Corrupt: not what `pack` made. OtherVersion: another kvtier's."""
    if len(header) != HEADER_BYTES:
        raise Corrupt(f"a header of {len(header)} bytes")
    fields = header[:FIELDS_BYTES]
    return unpack_fields(fields, VERSION, _CRC.unpack_from(header, FIELDS_BYTES)[0] == _native.crc32c(fields))


def unpack_fields(fields: bytes, wanted: int, is_whole: bool) -> Header:
    """`is_whole`: the header's crc says so. Corrupt, OtherVersion."""
    magic, version = _BEGIN.unpack_from(fields)
    if magic == MAGIC and version != wanted:
        raise OtherVersion(f"version {version}; this kvtier reads {wanted}")
    if magic != MAGIC or not is_whole:
        raise Corrupt("its header is no kvtier header, or damaged")
    _, _, key, size, checksum, digest, epoch, origin = _FIELDS.unpack(fields)
    return Header(key, size, checksum, digest, epoch, origin if any(origin) else b"")


def read(header: bytes, key: BlockKey, digest: bytes, body: np.ndarray) -> Header:
    """Of the value that was asked for. Corrupt: it is another, or damaged."""
    found = unpack(header)
    if (found.key, found.digest, found.size) != (key, digest, len(body)):
        raise Corrupt("another block's value")
    if found.checksum != checksum_of(key, body):
        raise Corrupt("its bytes are not those that were written")
    return found


def body_bytes(length: int | None, header_bytes: int = HEADER_BYTES) -> int:
    """Of a value of this length; 0 where there is none, or where no block is of such a size."""
    size = 0 if length is None else length - header_bytes
    return size if 0 < size <= BODY_BYTES_MAX and size % SLOT_UNIT == 0 else 0
