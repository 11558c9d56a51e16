"""The remote as the room that blocks are written to (demotion.py). Pure.

There is always room: a remote that is full says so when something is written. It has no places either, for blocks are found
there by their keys; what stands for one says how large its block is. What lies there is what is known of it.
"""

from collections.abc import Callable

from kvtier.block import SLOT_UNIT, BlockKey
from kvtier.known import Known


class RemoteRoom:
    def __init__(self, known: Known, serves: Callable[[int], bool]) -> None:
        """`serves`: whether blocks of this namespace, by its number, mean the same to all nodes."""
        self.now = 0.0  # whoever owns this says so
        self.serves = serves
        self._known = known

    def __contains__(self, key: BlockKey) -> bool:
        return self._known.is_there(key, self.now)

    def fits(self, size: int) -> bool:
        return True

    def place_bytes(self, size: int, stored: int) -> int:
        return stored

    def take(self, size: int, stored: int = 0) -> int:
        return size // SLOT_UNIT

    def add(self, place: int, key: BlockKey, namespace: int, checksum: int, origin: bytes = b"", written: int = 0) -> None:
        self._known.there(key, written or place * SLOT_UNIT, self.now)

    def give_up(self, place: int, origin: bytes = b"") -> None:
        """Nobody knows whether something was written."""
