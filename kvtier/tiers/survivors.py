"""What a catalogue of a former life says, by way of a process that may die of it (catalogue_reader.py).

What that process writes is in RAM once, and is looked at in pieces: of 10 million blocks it is 0.7 GB.
"""

import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from kvtier import _native
from kvtier.errors import DaemonError
from kvtier.tiers.catalogue_reader import COUNTS, DAMAGED, PIECE, TABLES

READ_TIMEOUT_S, READ_BYTES_PER_S = 20.0, 10e6  # the reader process may take so long, and longer for a large file
CRC = struct.Struct("<I")  # at the end of each row


class Unreadable(Exception):
    """The catalogue of a former life is no good; the message says why."""


class Table:
    """Rows as the reader gave them: none is believed before it is proven."""

    def __init__(self, rows: np.ndarray, odd: int) -> None:
        self.rows = rows  # uint8[n, bytes of a row]
        self.odd = odd  # rows of a wrong size, not here

    def proof(self) -> np.ndarray:
        """bool[n]: the row is as it was written."""
        good = np.empty(len(self.rows), bool)
        for at in range(0, len(good), PIECE):
            rows = self.rows[at : at + PIECE]
            crcs = np.ascontiguousarray(rows[:, -CRC.size :]).view("<u4").reshape(-1)
            good[at : at + PIECE] = _native.crc32c_rows(np.ascontiguousarray(rows[:, : -CRC.size])) == crcs
        return good

    def proven(self) -> list[bytes]:
        return [row.tobytes() for row in self.rows[self.proof()]]


def read(path: Path) -> dict[bytes, Table]:
    """What the reader process finds in the file. Unreadable: it died, hung or gave up. DaemonError: it didn't begin."""
    command = [sys.executable, "-P", "-m", "kvtier.tiers.catalogue_reader", str(path)]
    timeout_s = READ_TIMEOUT_S + path.stat().st_size / READ_BYTES_PER_S
    with open(os.memfd_create("kvtier-catalogue", os.MFD_CLOEXEC), "r+b") as out:  # what it says is in RAM once
        try:
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=timeout_s, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise Unreadable(f"reading it took more than {timeout_s:.0f} s") from None
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        if done.returncode < 0:
            raise Unreadable(f"whoever reads it dies of signal {-done.returncode}")
        if done.returncode == DAMAGED:
            raise Unreadable(said)
        if done.returncode:
            raise DaemonError(f"can't look into {path}: {said}")
        return _tables_in(mmap.mmap(out.fileno(), 0, prot=mmap.PROT_READ))


def _tables_in(said: mmap.mmap) -> dict[bytes, Table]:
    tables, at = {}, 0
    for number, (name, widths) in enumerate(TABLES.items()):
        count, odd = COUNTS.unpack_from(said, len(said) - (len(TABLES) - number) * COUNTS.size)
        size = count * sum(widths)
        tables[name] = Table(np.frombuffer(said, np.uint8, size, at).reshape(count, sum(widths)), odd)
        at += size
    return tables
