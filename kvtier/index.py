"""BlockKey to placement for one tier, in RAM. Pure.

One table from key to slot number and flat columns by slot number: no Python object a block, nothing for the garbage
collector to walk (a dict of a million objects stops the world for 0.8 s). The table is handed in: the daemon's is
`_native.KeyTable`, which finds 2,048 keys in 60 us where a dict takes 2 ms, waiting for memory; a dict is the default,
and what the simulator runs.

A placement is READY while its key stands in the table. One that is dropped while leased loses its key at once and its
slot later, when the last pin goes: `unpin` returns such slots.
"""

from typing import Protocol

import numpy as np

from kvtier.block import ABSENT, SLOT_TYPE, BlockKey, unpack_keys


class Table(Protocol):
    """BlockKey to slot number. Only keys that aren't there are added, only those that are are removed."""

    def __len__(self) -> int: ...
    def __contains__(self, key: BlockKey) -> bool: ...
    def find(self, keys: bytes) -> np.ndarray: ...  # packed keys -> uint32[n], ABSENT where there is none
    def add(self, key: BlockKey, slot: int) -> None: ...
    def remove(self, key: BlockKey) -> int: ...
    def add_many(self, keys: bytes, slots: np.ndarray) -> np.ndarray: ...  # bool[n]: False where it was there already
    def remove_many(self, keys: bytes) -> np.ndarray: ...  # uint32[n]: what each had


class DictTable(dict[BlockKey, int]):
    def find(self, keys: bytes) -> np.ndarray:
        return np.array([self.get(key, ABSENT) for key in unpack_keys(keys)], dtype=SLOT_TYPE)

    def add(self, key: BlockKey, slot: int) -> None:
        self[key] = slot

    def remove(self, key: BlockKey) -> int:
        return self.pop(key)

    def add_many(self, keys: bytes, slots: np.ndarray) -> np.ndarray:
        added = []
        for key, slot in zip(unpack_keys(keys), slots.tolist()):
            added.append(key not in self)
            self.setdefault(key, slot)
        return np.array(added, dtype=bool)

    def remove_many(self, keys: bytes) -> np.ndarray:
        return np.array([self.pop(key, ABSENT) for key in unpack_keys(keys)], dtype=SLOT_TYPE)


class Index:
    def __init__(self, units: int, table: Table | None = None) -> None:
        self._slot_of = DictTable() if table is None else table
        self._key_of: list[BlockKey | None] = [None] * units
        self._pins = np.zeros(units, dtype=np.int64)  # np.add.at is 20 times slower on other integers
        self._namespace = np.full(units, -1, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._slot_of

    def find(self, keys: bytes) -> np.ndarray:
        """uint32[n]: the slot of each packed key, ABSENT where there is none."""
        return self._slot_of.find(keys)

    def add(self, key: BlockKey, slot: int, namespace: int) -> None:
        assert key not in self._slot_of and self._key_of[slot] is None and not self._pins[slot]
        self._slot_of.add(key, slot)
        self._key_of[slot] = key
        self._namespace[slot] = namespace

    def restore(self, keys: bytes, slots: np.ndarray, namespaces: np.ndarray) -> None:
        """Placements of before, into an empty index: a slot and a namespace for each packed key."""
        is_new = self._slot_of.add_many(keys, slots.astype(SLOT_TYPE))
        assert is_new.all(), "a key twice"
        for slot, key in zip(slots.tolist(), unpack_keys(keys)):
            self._key_of[slot] = key
        self._namespace[slots] = namespaces

    def drop(self, slot: int) -> bool:
        """Forget the placement. True when its slot is free now, False when pins hold it."""
        self._slot_of.remove(self.key(slot))
        self._key_of[slot] = None
        self._namespace[slot] = -1
        return not self._pins[slot]

    def key(self, slot: int) -> BlockKey:
        key = self._key_of[slot]
        assert key is not None, f"slot {slot} holds no placement"
        return key

    def keys(self, slots: np.ndarray) -> bytes:
        """Packed; of slots that all hold a placement."""
        return b"".join(self.key(slot) for slot in slots.tolist())

    def namespace(self, slot: int) -> int:
        """Its number."""
        return int(self._namespace[slot])

    def namespaces(self, slots: np.ndarray) -> np.ndarray:
        """Their numbers."""
        return self._namespace[slots]

    def holds(self, slot: int) -> bool:
        return self._key_of[slot] is not None

    def is_pinned(self, slot: int) -> bool:
        return bool(self._pins[slot])

    def pin(self, slots: np.ndarray) -> None:
        """`slots` may name a slot more than once, one pin each."""
        np.add.at(self._pins, slots, 1)

    def unpin(self, slots: np.ndarray) -> list[int]:
        """The slots among them that were dropped meanwhile and are free now."""
        np.subtract.at(self._pins, slots, 1)
        assert (self._pins[slots] >= 0).all()
        return np.unique(slots[(self._pins[slots] == 0) & (self._namespace[slots] < 0)]).tolist()

    def all(self) -> np.ndarray:
        """Slots of every placement."""
        return np.nonzero(self._namespace >= 0)[0]

    def of_namespace(self, namespace: int) -> np.ndarray:
        """Slots of every placement of this namespace."""
        return np.nonzero(self._namespace == namespace)[0]
