"""Faults of the drive, switched on and off in a running kvtierd: what steers the library of faults.cpp."""

import errno
import mmap
import os
import struct
import subprocess
from pathlib import Path

from victim import Victim

READ, WRITE, SYNC, TRUNCATE, ALLOCATE, OPEN, RENAME = (1 << bit for bit in range(7))
BLOCKS, CATALOGUE, OTHER = 1, 2, 4  # files of the tier
ANY_FILE = BLOCKS | CATALOGUE | OTHER
_CONTROL = struct.Struct("<7q")
_COUNTS = struct.Struct("<2q")  # behind it

NAME_OF = {READ: "read", WRITE: "write", SYNC: "sync", TRUNCATE: "truncate", ALLOCATE: "allocate", OPEN: "open",
           RENAME: "rename"}  # fmt: skip


def build(folder: Path) -> Path:
    """The library; CalledProcessError where there is no compiler."""
    library = folder / "faults.so"
    compiler = os.environ.get("CXX", "c++")
    source = Path(__file__).with_name("faults.cpp")
    subprocess.run([compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Faults:
    """Those of one daemon. They begin with its next start, and all of them are off."""

    def __init__(self, library: Path, victim: Victim, tier: Path) -> None:
        """`tier`: the folder of which the files are meant."""
        file = victim.log.with_name("faults")
        file.write_bytes(bytes(mmap.PAGESIZE))
        with file.open("r+b") as opened:
            self._control = mmap.mmap(opened.fileno(), mmap.PAGESIZE)
        victim.environment |= {
            "LD_PRELOAD": str(library),
            "KVTIER_FAULTS": str(file),
            "KVTIER_FAULTS_FOLDER": f"{tier}/",
        }

    def set(
        self,
        calls: int,
        files: int = ANY_FILE,
        *,
        error: int = 0,
        most: int = 0,
        first: int = 1,
        times: int = 0,
        delay_s: float = 0.0,
    ) -> None:
        """From the `first` passage of one of these calls on, `times` of them (0: all) take so much longer, move so few
        bytes, or fail. Counting begins anew."""
        self.end()
        _COUNTS.pack_into(self._control, _CONTROL.size, 0, 0)
        _CONTROL.pack_into(self._control, 0, 0, files, error, most, first, times, int(delay_s * 1e6))
        struct.pack_into("<q", self._control, 0, calls)  # the last one: from now on it counts

    def end(self) -> None:
        struct.pack_into("<q", self._control, 0, 0)
        struct.pack_into("<q", self._control, 48, 0)  # and whoever is delayed goes on soon

    @property
    def passages(self) -> int:
        return _COUNTS.unpack_from(self._control, _CONTROL.size)[0]

    @property
    def hit(self) -> int:
        """Calls that had the fault."""
        return _COUNTS.unpack_from(self._control, _CONTROL.size)[1]


ERRORS = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EINTR", "EAGAIN")}
