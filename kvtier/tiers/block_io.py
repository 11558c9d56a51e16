"""Moves blocks between the slots of an arena and the places on the drives, as they are or as frames.

A frame is made on FileIo's threads from the block in its slot, in memory of its own, and fills its place. Back it is
read to the beginning of the slot, and decoded there.
"""

import mmap

import numpy as np

from kvtier import _native
from kvtier.block import SLOT_UNIT, BlockKey
from kvtier.codec import LOSSLESS, Codec
from kvtier.errors import DaemonError
from kvtier.tiers.drives import Drives
from kvtier.tiers.encoders import encoder_of, why_not
from kvtier.transfer import Demote, Erase, Promote

IO_DEPTH, IO_THREADS = 12, 2  # transfers that the drives have at once; threads that compute checksums and frames
ENCODERS = 1  # of these make frames at one time, as file_io.h has it

# Ticket, errno, checksum, seconds; of a frame its bytes, the seconds that coding it took, and who made it.
Done = tuple[int, int, int, float, int, float, str]


def is_frame(order: Demote | Promote) -> bool:
    return order.place_bytes < order.size


def can_make(demote: Demote) -> bool:
    """What should lie there. Not every machine has every codec."""
    return not is_frame(demote) or encoder_of(demote.codec) is not None


def why_unknown(codec: str) -> str:
    """Of whole frames by it, which can't be decoded here."""
    return (why_not(Codec(codec)) if codec in LOSSLESS else "") or "another kvtier wrote them"


class BlockIo:
    def __init__(self, files: Drives, backend: str, arena_address: int) -> None:
        """DaemonError: there is no such backend here."""
        self._files, self.arena_address = files, arena_address
        try:
            self._io = _native.FileIo(depth=IO_DEPTH, threads=IO_THREADS, backend=backend)
        except (ValueError, OSError) as error:
            raise DaemonError(f'nvme.io = "{backend}": {error}; set it to "auto"') from error
        self.backend: str = self._io.backend
        self.fallback: str = self._io.fallback  # why it is not io_uring, if that was wanted
        self._zeros = _zeros(files.extent_bytes)

    def write(self, demote: Demote, seal: _native.Seal | None) -> int:
        """Its ticket."""
        codec, stored = (encoder_of(demote.codec), demote.stored) if is_frame(demote) else (None, 0)
        fd, offset = self._files.locate(demote.place, demote.place_bytes)
        address, seed = self._address(demote.slot), _seed(demote.key)
        return self._io.write(fd, offset, address, demote.size, seed, seal, codec, stored)

    def read(self, promote: Promote, seal: _native.Seal | None) -> int:
        fd, offset = self._files.locate(promote.place, promote.place_bytes)
        stored, seed = promote.place_bytes, _seed(promote.key)
        return self._io.read(fd, offset, self._address(promote.slot), stored, seed, seal, promote.size)

    def zero(self, erase: Erase) -> int:
        fd, offset = self._files.locate(erase.place, erase.size)
        return self._io.write(fd, offset, self._zeros.ctypes.data, erase.size, 0)

    def poll(self) -> list[Done]:
        return self._io.poll()

    def wait(self, seconds: float) -> None:
        self._io.wait(seconds)

    def fileno(self) -> int:
        return self._io.fileno()

    def close(self) -> None:
        self._io.close()

    def _address(self, slot: int) -> int:
        return self.arena_address + slot * SLOT_UNIT


def _seed(key: BlockKey) -> int:
    """With it a record that points to another block's bytes never fits to them."""
    return _native.crc32c(key)


def _zeros(size: int) -> np.ndarray:
    """They take no memory: where nobody may write, each page is the kernel's one page of zeros."""
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ), np.uint8)
