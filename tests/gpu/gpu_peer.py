"""Plain copies, and the other process of a test that shares memory of the device. Spawned: it imports this by name."""

from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gpu_caches import finished

from kvtier import _native


def column(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def write(copier: Any, arena: Any, memory: int, content: np.ndarray) -> None:
    """To device memory, by way of the arena's beginning."""
    arena.view()[: content.size] = content
    finished(copier, copier.submit(column(arena.address), column(memory), column(content.size)))


def read(copier: Any, arena: Any, memory: int, size: int) -> np.ndarray:
    finished(copier, copier.submit(column(memory), column(arena.address), column(size)))
    return arena.view()[:size].copy()


def turn_round(handle: bytes, size: int, told: Connection) -> None:
    """Reverses the bytes of the arena behind `handle`, and tells what went wrong, or ""."""
    try:
        driver = _native.CudaDriver.open()
        shared = _native.DeviceArena.attach(driver, 0, handle, size)
        copier = _native.CudaCopier(driver, 0, path="async")  # this one's arena is not registered
        with _native.Arena.create(size, "kvtier-test-gpu-peer", pin=False) as arena:
            write(copier, arena, shared.address, read(copier, arena, shared.address, size)[::-1])
        copier.close()
        shared.close()
        told.send("")
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        told.send(repr(error))
