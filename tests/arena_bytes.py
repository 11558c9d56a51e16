"""Real bytes in the daemon's arena, written and read by tests in the place of an engine's worker."""

import hashlib
import mmap

import numpy as np
from kvtierd import SLOT, KVTierd, Worker

from kvtier.block import SLOT_UNIT


class ArenaBytes:
    """The arena of a running kvtierd, mapped as a worker of `engine` maps it."""

    def __init__(self, daemon: KVTierd, engine: str) -> None:
        self._worker = Worker(daemon.socket, engine)
        self._map = mmap.mmap(self._worker.fds[0], self._worker.welcome.capacity)

    def write(self, slot: int, content: bytes) -> None:
        self._map[slot * SLOT_UNIT : slot * SLOT_UNIT + len(content)] = content

    def read(self, slot: int, size: int = SLOT) -> bytes:
        return self._map[slot * SLOT_UNIT : slot * SLOT_UNIT + size]

    def close(self) -> None:
        self._map.close()
        self._worker.close()


def content_of(key: bytes, size: int = SLOT) -> bytes:
    """The bytes that a test's engine saves under this key: every byte depends on it."""
    return hashlib.shake_128(key).digest(size)


def values_of(key: bytes, size: int = SLOT) -> bytes:
    """Likewise, but such as keys and values are: bf16 numbers of about 1, which a codec makes smaller."""
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    numbers = np.random.Generator(np.random.PCG64(seed)).standard_normal(size // 2, np.float32)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
