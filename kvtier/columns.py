"""What is known of each block on the drives: flat columns, a row a block, no object. Pure.

They have all the rows that there may be from the start, for to copy millions of them into longer ones would stop the event
loop; memory is taken by what is used of them. Only where runs of rows come back in pieces too small for others are there
more, and on a machine that promises no more memory than it has.
"""

import numpy as np

from kvtier.block import KEY_BYTES
from kvtier.rows import Rows

KEY = np.dtype(f"V{KEY_BYTES}")
DEAD = -1  # in the namespace column: no block here


class Columns:
    def __init__(self, rows: int) -> None:
        """`rows`: as many as there may usually be."""
        self.rows = Rows()
        self.keys = _zeros(rows, KEY)
        self.namespace = _zeros(rows, np.dtype(np.int32))
        self.checksum = _zeros(rows, np.dtype(np.uint32))
        self.extent = _zeros(rows, np.dtype(np.int32))  # the number of that which has this row
        self.origin: np.ndarray | None = None  # tags of sessions, and below them of tenants; None until there is one

    def take(self, n: int, extent: int) -> tuple[int, int]:
        """n rows without a block, for this extent: the first of them, and how many it was given."""
        first, kept = self.rows.take(n)
        if self.rows.end > len(self.keys):
            self._grow(max(1024, self.rows.end * 5 // 4))
        self.namespace[first : first + n] = DEAD
        self.extent[first : first + n] = extent
        return first, kept

    def _grow(self, length: int) -> None:
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                grown = np.zeros((*column.shape[:-1], length), column.dtype)
                grown[..., : column.shape[-1]] = column
                setattr(self, name, grown)

    def origins(self) -> np.ndarray:
        if self.origin is None:
            self.origin = np.zeros((2, len(self.keys)), np.uint64)
        return self.origin

    def set_origin(self, row: int, origin: bytes) -> None:
        """Empty, or zeros: nobody knows."""
        if any(origin):
            self.origins()[:, row] = np.frombuffer(origin, np.uint64)
        elif self.origin is not None:
            self.origin[:, row] = 0


def _zeros(rows: int, dtype: np.dtype) -> np.ndarray:
    """They take no memory until they are written."""
    try:
        return np.zeros(rows, dtype)
    except MemoryError:
        return np.zeros(0, dtype)
