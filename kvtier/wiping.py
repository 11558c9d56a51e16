"""Zeros over what is to be forgotten of the arena, and over what another user is not to see."""

import asyncio
from collections.abc import Callable

from kvtier import _native
from kvtier.block import SLOT_UNIT
from kvtier.store import BlockStore

WIPE_BYTES = 4 * 1024**2  # at a time, in about a millisecond; then whoever waits is served


class Wiper:
    """Overwrites with zeros what is to be forgotten of the arena, a piece at a time."""

    def __init__(self, store: BlockStore, arena: _native.Arena, after_event: Callable[[], None]) -> None:
        self._store, self._bytes, self._after_event = store, arena.view(), after_event
        self._waiting: dict[int, int] = {}  # slot -> bytes
        self._is_due = False
        store.ram.zero = self._zero

    def look(self) -> None:
        """To be called after whatever happened."""
        self._waiting.update(self._store.wipes())
        if self._waiting and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._wipe)

    def _zero(self, at: int, n: int) -> None:
        """So many bytes, at once: the tail of a slot, which is shorter than SLOT_UNIT."""
        self._bytes[at : at + n] = 0

    def _wipe(self) -> None:
        left = WIPE_BYTES
        while self._waiting and left > 0:
            slot, size = self._waiting.popitem()
            self._bytes[slot * SLOT_UNIT : slot * SLOT_UNIT + size] = 0
            self._store.wiped(slot)
            left -= size
        self._is_due = False
        self._after_event()
