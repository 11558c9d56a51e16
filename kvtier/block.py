"""Names of blocks, what they are like, and units of the arena. Pure.

A BlockKey is made in two steps, so that neither the engine's hashes nor the facts of a namespace leave their process:

    digest = sha256(canonical JSON of the facts)                       connector -> daemon, in Hello
    secret = blake2b(digest, epoch; key = the daemon's root)           daemon -> connector, in Welcome
    key    = blake2b(engine's prefix hash, cache group; key = secret)  connector -> daemon, in messages

vLLM's own prefix hashes can be guessed by whoever guesses the prompt (GHSA-rm76-4mrf-v9r8 and the timing attacks on
shared prefix caches); keys made with a secret can't.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

BlockKey = bytes
Number = TypeVar("Number", int, np.ndarray)

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)  # in place of the block before one: there is none
SECRET_BYTES = 32
SLOT_UNIT = 64 * 1024  # bytes; slots begin at multiples of this and are named by offset / SLOT_UNIT
PLACE_GRAIN = 4096  # bytes; a place with a frame is so many times as large as this, and at least SLOT_UNIT
SLOT_TYPE = np.dtype("<u4")  # how slot numbers travel; 64 KiB units reach 256 TiB
ABSENT = 0xFFFFFFFF  # in an answer: this key is nowhere
BELOW = 0xFFFFFFFE  # in an answer: it is not offered, but it is here, or a lower tier has it; it needn't be saved


class Kind(NamedTuple):
    """What an engine's blocks are like."""

    slot_bytes: int
    block_tokens: int
    is_chain: bool  # each is of use only together with all before it


def namespace_digest(facts: Mapping[str, object]) -> bytes:
    """32 bytes that differ whenever any fact differs. Facts must be JSON values."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).digest()


def namespace_secret(root: bytes, digest: bytes, epoch: int) -> bytes:
    """The secret that keys of this namespace and epoch are made with. 32 bytes."""
    return hashlib.blake2b(digest + epoch.to_bytes(8, "big"), key=root, digest_size=SECRET_BYTES).digest()


def witness_secret(root: bytes) -> bytes:
    """What witnesses are made with: keys that are the same in every namespace, and name no block. 32 bytes."""
    return hashlib.blake2b(b"witness", key=root, digest_size=SECRET_BYTES).digest()


def private_secret(secret: bytes, token: bytes) -> bytes:
    """A secret that no other engine shares: what an engine uses after it reset its cache."""
    return hashlib.blake2b(token, key=secret, digest_size=SECRET_BYTES).digest()


def block_key(secret: bytes, name: bytes) -> BlockKey:
    """`name`: the engine's prefix hash and cache group, and whatever else tells two blocks apart."""
    return hashlib.blake2b(name, key=secret, digest_size=KEY_BYTES).digest()


def pack_keys(keys: Iterable[BlockKey]) -> bytes:
    return b"".join(keys)


def unpack_keys(packed: bytes) -> list[BlockKey]:
    """The inverse of pack_keys. 25 ns a key: a Lookup is on the engine's critical path."""
    return list(struct.unpack(f"{KEY_BYTES}s" * (len(packed) // KEY_BYTES), packed))


def key_at(packed: bytes, at: int) -> BlockKey:
    return packed[at * KEY_BYTES : (at + 1) * KEY_BYTES]


def pack_slots(slots: Iterable[int] | np.ndarray) -> bytes:
    return np.asarray(slots, dtype=SLOT_TYPE).tobytes()


def unpack_slots(packed: bytes) -> np.ndarray:
    """uint32[n], read only."""
    return np.frombuffer(packed, dtype=SLOT_TYPE)


def leading(good: np.ndarray) -> int:
    """How many are good, from the first on. `good`: bool, one a block in prefix order."""
    return len(good) if good.all() else int(good.argmin())


def place_at(position: Number, stored: Number) -> Number:
    """The number, from its extent's begin, of the place at this position among places of `stored` bytes. What lies there
    begins at byte position * stored: for frames somewhere within the unit that the number names. Of arrays: of int64."""
    return position * stored // SLOT_UNIT


def position_of(place: Number, stored: Number) -> Number:
    """The inverse, for no place is smaller than a unit."""
    return -(-place * SLOT_UNIT // stored)


def slot_bytes_for(block_bytes: int) -> int:
    """The size of slot that a block of so many bytes needs."""
    return -(-block_bytes // SLOT_UNIT) * SLOT_UNIT
