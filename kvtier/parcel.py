"""A parcel: one conversation as a file, on its way to another node. No I/O.

    begin    magic  version  bytes of the head  crc of the head                              little-endian, 16 bytes
    head     JSON: a witness of the root, what the blocks mean, whose they are
    blocks   each as it lies in a Remote without a codec: its envelope, its bytes; in prefix order
    end      magic  blocks  bytes of all before  crc of the head and of all envelopes  crc of this      28 bytes

Keys mean nothing beside another root, so its witness stands first. Each envelope vouches for its block, the end for all of
them: a file that was cut, or put together from two, has no end that fits. None of this keeps out who forges a file on
purpose: take those of people whom you would let talk to the node.

A parcel holds prompts, as every tier does: it is for its owner alone.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT, Kind, block_key, witness_secret
from kvtier.errors import KVTierError
from kvtier.hints import SESSION_MAX, TOOL_MAX, is_name
from kvtier.moving import Carried
from kvtier.tenants import TENANT_BYTES
from kvtier.tiers.remote.envelope import DIGEST_BYTES
from kvtier.tiers.remote.envelope import MAGIC as BLOCK

MAGIC, END, VERSION = b"kvtP", b"kvtE", 2
HEAD_BYTES_MAX = 64 * 1024**2
SESSIONS_MAX = 1024  # that go by one name
COMMAS_MAX = 1_000_000  # in a head: far more than so many sessions need, and what they make fits into memory
SECONDS_MAX = 10 * 366 * 86_400.0
WITNESSED = b"parcel"
_BEGIN = struct.Struct("<4sIII")
_END = struct.Struct("<4sQQI")
_CRC = struct.Struct("<I")
BEGIN_BYTES, END_BYTES, WORD_BYTES = _BEGIN.size, _END.size + _CRC.size, len(BLOCK)

CURE_DAMAGED = "export it again, and compare the files' checksums after copying"
CURE_ROOT = (
    "its node has another root secret, so its blocks answer to no key here; give both nodes the same remote.secret_file "
    "(`kvtier secret` makes one), and export it again after its next request there"
)


class ParcelError(KVTierError):
    """A file can't be made, or not be taken; the message says why, and what to do."""


class Damaged(ParcelError):
    """Its bytes are not those that were written, or not all of them."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the file is damaged: {what}; {CURE_DAMAGED}")


class Namespace(NamedTuple):
    """What blocks mean, and what they are like."""

    digest: bytes
    kind: Kind


class Head(NamedTuple):
    witness: bytes
    namespaces: tuple[Namespace, ...]
    sessions: tuple[Carried, ...]  # of each the number of its namespace in this file
    blocks: int  # that were there when it was begun; how many there are stands at the end
    bytes: int


class End(NamedTuple):
    blocks: int
    bytes: int  # of the file before it
    crc: int  # of the head, and of all envelopes after it


def crc_of(some: bytes | memoryview, crc: int = 0) -> int:
    """Of these bytes; `crc`: of those before them."""
    return int(_native.crc32c(some, crc))


def witness_of(root: bytes) -> bytes:
    """Tells roots apart, and nothing else."""
    return block_key(witness_secret(root), WITNESSED)


# --- the head ------------------------------------------------------------------------------------------------


def pack_head(head: Head) -> tuple[bytes, bytes]:
    """Begin and head."""
    sessions = [
        {**carried._asdict(), "tenant": carried.tenant.hex(), "keys": carried.keys.hex()} for carried in head.sessions
    ]
    namespaces = [{"digest": one.digest.hex(), **one.kind._asdict()} for one in head.namespaces]
    said = {**head._asdict(), "witness": head.witness.hex(), "namespaces": namespaces, "sessions": sessions}
    text = json.dumps(said, separators=(",", ":")).encode()
    if len(text) > HEAD_BYTES_MAX:
        raise ParcelError(f"its keys alone take more than {HEAD_BYTES_MAX} bytes; it is too long for a file")
    return _BEGIN.pack(MAGIC, VERSION, len(text), _native.crc32c(text)), text


def unpack_begin(begin: bytes) -> tuple[int, int]:
    """Bytes and crc of the head. ParcelError: it is no parcel, or one of another kvtier."""
    magic, version, length, crc = _BEGIN.unpack(begin)
    if magic != MAGIC:
        raise ParcelError("this is no file of `kvtier export`")
    if version != VERSION:
        raise ParcelError(
            f"the file has version {version}, this kvtier reads {VERSION}; install the same kvtier on both nodes"
        )
    if length > HEAD_BYTES_MAX:
        raise Damaged("its head is too long")
    return length, crc


def unpack_head(text: bytes, crc: int) -> Head:
    """Damaged: it is not what `pack_head` made; whatever it is, nothing else is raised."""
    if _native.crc32c(text) != crc:
        raise Damaged("its head is not what was written")
    if text.count(b",") > COMMAS_MAX:
        raise Damaged("its head makes no sense (commas)")
    try:
        return _head_of(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Damaged(f"its head makes no sense ({error})") from None


def _head_of(said: Mapping[str, Any]) -> Head:
    namespaces = tuple(_namespace_of(one) for one in said["namespaces"])
    sessions = tuple(_carried_of(one) for one in said["sessions"])
    _must(0 < len(sessions) <= SESSIONS_MAX, "sessions")
    _must(0 < len(namespaces) <= len(sessions), "namespaces")
    _must(all(carried.namespace < len(namespaces) for carried in sessions), "a session's namespace")
    witness = bytes.fromhex(said["witness"])
    _must(len(witness) == KEY_BYTES, "witness")
    return Head(witness, namespaces, sessions, _count(said, "blocks"), _count(said, "bytes"))


def _namespace_of(said: Mapping[str, Any]) -> Namespace:
    digest, is_chain = bytes.fromhex(said["digest"]), said["is_chain"]
    slot_bytes, block_tokens = _count(said, "slot_bytes"), _count(said, "block_tokens")
    _must(len(digest) == DIGEST_BYTES, "digest")
    _must(type(is_chain) is bool, "is_chain")
    _must(slot_bytes > 0 and slot_bytes % SLOT_UNIT == 0, "slot_bytes")
    _must(block_tokens > 0, "block_tokens")
    return Namespace(digest, Kind(slot_bytes, block_tokens, is_chain))


def _carried_of(said: Mapping[str, Any]) -> Carried:
    name, tool = said["name"], said["tool"]
    _must(name == "" or is_name(name, SESSION_MAX), "name")
    _must(tool == "" or is_name(tool, TOOL_MAX), "tool")
    tenant, keys = bytes.fromhex(said["tenant"]), bytes.fromhex(said["keys"])
    _must(len(tenant) in (0, TENANT_BYTES), "tenant")
    _must(keys != b"" and len(keys) % KEY_BYTES == 0, "keys")
    prompt_blocks = _count(said, "prompt_blocks")
    _must(prompt_blocks * KEY_BYTES <= len(keys), "prompt_blocks")
    return Carried(
        name,
        tenant,
        _count(said, "namespace"),
        keys,
        prompt_blocks,
        _count(said, "turns"),
        tool,
        *(_seconds(said, word) for word in ("expect_return_s", "ttl_s", "pin_s")),
    )


def _count(said: Mapping[str, Any], name: str) -> int:
    value = said[name]
    _must(type(value) is int and 0 <= value < 2**63, name)
    return int(value)


def _seconds(said: Mapping[str, Any], name: str) -> float:
    value = said[name]
    _must(type(value) in (int, float) and math.isfinite(value) and 0 <= value <= SECONDS_MAX, name)
    return float(value)


def _must(is_good: bool, what: str) -> None:
    if not is_good:
        raise ValueError(what)


# --- the end -------------------------------------------------------------------------------------------------


def pack_end(end: End) -> bytes:
    fields = _END.pack(END, *end)
    return fields + _CRC.pack(_native.crc32c(fields))


def unpack_end(end: bytes) -> End:
    fields, (crc,) = end[: _END.size], _CRC.unpack_from(end, _END.size)
    if _native.crc32c(fields) != crc:
        raise Damaged("its end is not what was written")
    return End(*_END.unpack(fields)[1:])
