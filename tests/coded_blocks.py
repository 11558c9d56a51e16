"""Blocks that codecs make smaller and such that they can't, and frames that lie with every crc right."""

import struct

import numpy as np

from kvtier import _native

TRAILER_BYTES, ROW_BYTES = 64, 12
AT = {  # in a trailer
    "codec": 4,
    "version": 5,
    "element": 6,
    "row": 7,
    "group_bytes": 8,
    "groups": 12,
    "block_bytes": 16,
    "frame_bytes": 24,
}
KINDS = {"group_bytes": "<I", "groups": "<I", "block_bytes": "<Q", "frame_bytes": "<Q"}  # the others: a byte


def of_bf16(size: int, seed: int = 0) -> np.ndarray:
    """Values as those of a cache are: few exponents, and signs and mantissas by chance."""
    values = np.random.default_rng(seed).standard_normal(-(-size // 2), np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)[:size].copy()


def of_noise(size: int, seed: int = 0) -> np.ndarray:
    """No codec makes it smaller."""
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8).copy()


def forged(frame: np.ndarray, seed: int, **fields: int) -> np.ndarray:
    """The frame with another trailer, whose crc fits."""
    made = frame.copy()
    trailer = made[-TRAILER_BYTES:]
    (groups,) = struct.unpack_from("<I", trailer, AT["groups"])
    for name, value in fields.items():
        struct.pack_into(KINDS.get(name, "<B"), trailer, AT[name], value)
    covered = made[-TRAILER_BYTES - groups * ROW_BYTES : -4]
    struct.pack_into("<I", trailer, TRAILER_BYTES - 4, _native.crc32c(covered, seed))
    return made
