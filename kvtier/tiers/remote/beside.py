"""Beside: threads for work on whole blocks, so that the loop goes on, and memory for what they make.

A block that leaves is made beside its slot, since whoever holds the block may read there meanwhile; one that came is made
in its slot, which nobody else has yet.
"""

import asyncio
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

THREADS = 2
ON_LOOP_BYTES = 128 * 1024  # another thread takes about as long to begin as a codec takes for this
SPARE_MAX = 4  # pieces of memory that are kept for the next, while there is work
T = TypeVar("T")


class Beside:
    def __init__(self, name: str) -> None:
        """No thread and no memory before the first that needs it."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"kvtier-{name}")
        self._spare: list[np.ndarray] = []
        self._users = 0  # of memory

    async def do(self, size: int, work: Callable[[], T]) -> T:
        """On a thread, unless it is little. Whoever is cancelled meanwhile hears of it when the memory is touched no
        more."""
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

    @contextmanager
    def memory(self, size: int) -> Iterator[np.ndarray]:
        """So many bytes, which hold anything. While others have some it is kept for the next; then all of it goes back
        to the kernel, and nothing of a block stays behind."""
        found = self._taken(size)
        self._users += 1
        try:
            yield found[:size]
        finally:
            self._users -= 1
            if not self._users:
                self._spare.clear()
            elif len(self._spare) < SPARE_MAX:
                self._spare.append(found)

    def _taken(self, size: int) -> np.ndarray:
        for n, memory in enumerate(self._spare):
            if len(memory) >= size:
                return self._spare.pop(n)
        if self._spare:
            self._spare.pop()  # too small: another size is in demand now
        # Mapped by itself: what is freed may stay with the process, with all that is in it.
        return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)

    def close(self) -> None:
        self._threads.shutdown()
