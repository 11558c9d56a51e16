"""What the next kvtierd needs of this one's store to go on with its arena, as bytes. Pure.

    magic, format, bytes of the facts, bytes of all | facts, as JSON | columns, one after the other | digest of all before

Facts are few and of any shape; columns have a row for each block or each key. What they mean: handing_over.py writes them,
adopting.py reads them. A format that is not ours, or a byte that is not as it was written, is no handover: the next kvtierd
begins with nothing then, which costs misses and no more.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtier.errors import HandoverError

MAGIC, FORMAT = b"KVTIERHO", 1  # of whatever changes the meaning of a fact or a column, the format changes too
FACTS_BYTES_MAX = 256 * 1024**2
BYTES_MAX = 64 * 1024**3  # of all: a thousand million blocks
TYPES = ("V16", "u1", "<u4", "<i2", "<i4", "<i8", "<u8", "<f8")  # of columns
_HEAD = struct.Struct("<8sIIQ")
_DIGEST_BYTES = 32


@dataclass
class Handover:
    facts: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # of one dimension


def pack(handover: Handover) -> list[bytes]:
    """In pieces, to be written one after the other."""
    columns = {name: np.ascontiguousarray(column) for name, column in handover.columns.items()}
    shapes = [[name, _type_of(column), len(column)] for name, column in columns.items()]
    facts = json.dumps({"facts": handover.facts, "columns": shapes}, separators=(",", ":")).encode()
    size = _HEAD.size + len(facts) + sum(column.nbytes for column in columns.values()) + _DIGEST_BYTES
    assert len(facts) <= FACTS_BYTES_MAX and size <= BYTES_MAX, size
    pieces = [_HEAD.pack(MAGIC, FORMAT, len(facts), size), facts, *(column.tobytes() for column in columns.values())]
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for piece in pieces:
        digest.update(piece)
    return [*pieces, digest.digest()]


def unpack(packed: bytes) -> Handover:
    """HandoverError says why it is none. Columns are read only."""
    if len(packed) < _HEAD.size + _DIGEST_BYTES:
        raise HandoverError("it is cut off")
    magic, version, facts_bytes, size = _HEAD.unpack_from(packed)
    if magic != MAGIC:
        raise HandoverError("it is no handover")
    if version != FORMAT:
        raise HandoverError(f"it has format {version}, not {FORMAT}")
    if size != len(packed):
        raise HandoverError(f"it has {len(packed)} bytes, not {size}")
    end = size - _DIGEST_BYTES
    if hashlib.blake2b(memoryview(packed)[:end], digest_size=_DIGEST_BYTES).digest() != packed[end:]:
        raise HandoverError("its bytes are not as they were written")
    return _parse(memoryview(packed)[_HEAD.size : end], facts_bytes)


def _parse(body: memoryview, facts_bytes: int) -> Handover:
    if not 0 < facts_bytes <= min(len(body), FACTS_BYTES_MAX):
        raise HandoverError("its facts have no room in it")
    try:
        said = json.loads(bytes(body[:facts_bytes]))
        found, at = Handover(said["facts"]), facts_bytes
        for name, kind, rows in said["columns"]:
            if kind not in TYPES or not 0 <= rows <= len(body):
                raise HandoverError(f"column {name} is odd")
            found.columns[name] = np.frombuffer(body, kind, rows, at)
            at += found.columns[name].nbytes
    except (ValueError, KeyError, TypeError) as error:
        raise HandoverError(f"its facts are odd: {error}") from None
    if at != len(body):
        raise HandoverError("its columns don't fill it")
    return found


def _type_of(column: np.ndarray) -> str:
    name = column.dtype.str.removeprefix("|")
    assert column.ndim == 1 and name in TYPES, (column.dtype, column.shape)
    return name


def required(facts: Mapping[str, Any], wanted: Mapping[str, object]) -> None:
    """HandoverError names the first fact that is another than it must be."""
    for name, value in wanted.items():
        if facts.get(name) != value:
            raise HandoverError(f"its {name.replace('_', ' ')} is {facts.get(name)}, not {value}")
