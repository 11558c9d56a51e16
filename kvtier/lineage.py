"""Which sessions share which blocks, also of blocks that are in no tier any more. Pure.

A key stands for its block and all before it, so two sessions share their first blocks, up to where they part:

    session 1    a b c d e      members   a:3 b:3 c:2 d:1 e:1 x:1 y:1
    session 2    a b c x
    session 3    a b y          owner: who was the first to have it

Of each key: how many sessions have it, and the first of them. Columns, no object a key.
"""

import numpy as np

from kvtier.block import ABSENT, KEY_BYTES, SLOT_TYPE, leading
from kvtier.index import DictTable, Table

_KEY = np.dtype(f"V{KEY_BYTES}")


class Lineage:
    def __init__(self, table: Table | None = None) -> None:
        """`table`: from key to row of the columns."""
        self._table: Table = DictTable() if table is None else table
        self._owner = np.zeros(0, dtype=np.int64)
        self._members = np.zeros(0, dtype=np.int32)
        self._free = np.zeros(0, dtype=SLOT_TYPE)  # rows; the first `_spare` of them
        self._spare = 0

    def __len__(self) -> int:
        """Keys."""
        return len(self._table)

    def known(self, keys: bytes, is_chain: bool = True) -> tuple[bytes, int]:
        """Of these packed keys, the last that some session has, and how many; in a chain, from the first on."""
        if not keys:
            return b"", 0
        is_known = self._table.find(keys) != ABSENT
        n = leading(is_known) if is_chain else int(is_known.sum())
        if not n:
            return b"", 0
        last = n - 1 if is_chain else int(np.flatnonzero(is_known)[-1])
        return keys[last * KEY_BYTES : (last + 1) * KEY_BYTES], n

    def owner(self, key: bytes) -> int | None:
        """The session that was the first to have this key; it may have left it since. None: nobody has it."""
        row = int(self._table.find(key)[0])
        return None if row == ABSENT else int(self._owner[row])

    def members(self, keys: bytes) -> np.ndarray:
        """int32[n]: how many sessions have each."""
        rows = self._table.find(keys)
        found = np.zeros(len(rows), dtype=np.int32)
        here = rows != ABSENT
        found[here] = self._members[rows[here]]
        return found

    def join(self, keys: bytes, session: int) -> None:
        """The session has these too."""
        rows = self._table.find(keys)
        new = np.flatnonzero(rows == ABSENT)
        if len(new):
            fresh, names = self._take(len(new)), np.frombuffer(keys, _KEY)[new].tobytes()
            added = self._table.add_many(names, fresh)
            self._owner[fresh], self._members[fresh] = session, 0
            if not added.all():  # named twice, which only a liar does
                self._give(fresh[~added])
            rows[new] = self._table.find(names)
        np.add.at(self._members, rows, 1)

    def leave(self, keys: bytes) -> np.ndarray:
        """A session has these no more. bool[n]: nobody has. Of liars a session may have left some already."""
        rows = self._table.find(keys)
        rows, at, times = np.unique(rows, return_index=True, return_counts=True)
        is_known = rows != ABSENT
        rows, at = rows[is_known], at[is_known]
        self._members[rows] -= times[is_known].astype(np.int32)
        gone = self._members[rows] <= 0
        alone = np.zeros(len(keys) // KEY_BYTES, dtype=bool)
        alone[at[gone]] = True
        if gone.any():
            self._table.remove_many(np.frombuffer(keys, _KEY)[alone].tobytes())
            self._give(rows[gone])
        return alone

    def _give(self, rows: np.ndarray) -> None:
        self._free[self._spare : self._spare + len(rows)] = rows
        self._spare += len(rows)

    def _take(self, n: int) -> np.ndarray:
        if self._spare < n:
            self._grow(n)
        self._spare -= n
        return self._free[self._spare : self._spare + n].copy()

    def _grow(self, n: int) -> None:
        rows = len(self._owner)
        more = max(1024, n, rows // 4)
        self._owner = np.append(self._owner, np.zeros(more, np.int64))
        self._members = np.append(self._members, np.zeros(more, np.int32))
        free = np.zeros(rows + more, dtype=SLOT_TYPE)
        free[: self._spare] = self._free[: self._spare]
        free[self._spare : self._spare + more] = np.arange(rows, rows + more)
        self._free = free
        self._spare += more
