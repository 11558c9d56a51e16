"""Makers of tiers for the contract: each makes, reopens and crashes one kind of tier, and has the arena that it uses."""

import ctypes
import mmap
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from fake_cuda import build as fake_cuda
from remote.memory_remote import MemoryRemote

from kvtier import _native
from kvtier.block import SLOT_UNIT
from kvtier.tiers.drives import begin_of
from kvtier.tiers.gpu import GpuTier
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.nvme import NvmeTier
from kvtier.tiers.remote.envelope import HEADER_BYTES, name_of
from kvtier.tiers.remote.remote import RemoteTier
from kvtier.tiers.remote.values import Clear, Sealed
from kvtier.transfer import Demote, Transfer

MIB = 1024**2
ARENA_BYTES = 64 * MIB
DRIVE_BYTES = 32 * MIB


class NvmeFactory:
    """Makes NvmeTiers, one at a time, and the arena that they move bytes from and to."""

    survives, flush_fault, finds_by_keys = True, "", False
    only_epoch_0, keeps_frames = False, True

    def __init__(self, drives: int = 1, io: str = "auto", **more) -> None:
        self.drives, self.more = drives, {"io": io, **more}
        self._arena = mmap.mmap(-1, ARENA_BYTES)
        self._lives = 0

    def make(self, folder: Path) -> NvmeTier:
        self.folder = folder
        return self._open()

    def reopen(self, tier: NvmeTier) -> NvmeTier:
        """As after SIGTERM."""
        tier.close()
        return self._open()

    def crash(self, tier: NvmeTier) -> NvmeTier:
        """As after `kill -9` at this moment: the new tier gets the files as they are, the former one writes elsewhere."""
        self._lives += 1
        former, self.folder = self.folder, self.folder.with_name(f"life{self._lives}")
        for drive, path in enumerate(self._paths(former)):
            self._paths(self.folder)[drive].mkdir(parents=True)
            for file in sorted(path.iterdir(), key=lambda file: not file.name.startswith("catalogue")):
                copy_at_rest(file, self._paths(self.folder)[drive] / file.name)
        tier.close()
        shutil.rmtree(former)
        return self._open()

    def memory(self, slot: int, size: int) -> memoryview:
        return memoryview(self._arena)[slot * SLOT_UNIT : slot * SLOT_UNIT + size]

    def units(self, tier: NvmeTier) -> int:
        return tier.extents * tier.extent_bytes // SLOT_UNIT

    def flip_bit(self, tier: NvmeTier, place: int, offset: int) -> None:
        """On the drive."""
        with self._at(tier, place) as blocks:
            blocks.seek(offset, os.SEEK_CUR)
            (byte,) = blocks.read(1)
            blocks.seek(-1, os.SEEK_CUR)
            blocks.write(bytes([byte ^ 1]))

    def raw(self, tier: NvmeTier, place: int, size: int) -> bytes:
        """What the file on the drive says."""
        with self._at(tier, place, size) as blocks:
            return blocks.read(size)

    def _at(self, tier: NvmeTier, place: int, stored: int = SLOT_UNIT) -> BinaryIO:
        extent, units = divmod(place, tier.extent_bytes // SLOT_UNIT)
        row, drive = divmod(extent, tier.drives)
        blocks = (self._paths(self.folder)[drive] / "blocks").open("r+b")
        blocks.seek(row * tier.extent_bytes + begin_of(units, stored))
        return blocks

    def _open(self) -> NvmeTier:
        return NvmeTier(self._paths(self.folder), self.drives * DRIVE_BYTES, address_of(self._arena), **self.more)

    def _paths(self, folder: Path) -> list[Path]:
        return [folder / f"drive{number}" for number in range(self.drives)]


class EncryptedNvmeFactory(NvmeFactory):
    """The same, with a master key."""

    encrypts = True

    def __init__(self, drives: int = 1, io: str = "auto") -> None:
        super().__init__(drives, io, master=MasterKey(bytes(range(32))))


class GpuFactory:
    """Makes GpuTiers, one at a time, on the fake driver's first device."""

    survives, flush_fault, finds_by_keys = False, "volatile", False
    only_epoch_0, keeps_frames = False, False

    def __init__(self) -> None:
        self._driver = _native.CudaDriver.open(str(fake_cuda.library()))
        assert not self._driver.reason
        self._arena = mmap.mmap(-1, ARENA_BYTES)

    def make(self, folder: Path) -> GpuTier:
        return GpuTier(self._driver, 0, DRIVE_BYTES, np.frombuffer(self._arena, np.uint8))

    def memory(self, slot: int, size: int) -> memoryview:
        return memoryview(self._arena)[slot * SLOT_UNIT : slot * SLOT_UNIT + size]

    def units(self, tier: GpuTier) -> int:
        return tier.capacity // SLOT_UNIT

    def flip_bit(self, tier: GpuTier, place: int, offset: int) -> None:
        self._at(tier, place, offset + 1)[offset] ^= 1

    def raw(self, tier: GpuTier, place: int, size: int) -> bytes:
        return bytes(self._at(tier, place, size))

    def _at(self, tier: GpuTier, place: int, size: int) -> ctypes.Array[ctypes.c_ubyte]:
        """The fake device's memory is memory of this process."""
        return (ctypes.c_ubyte * size).from_address(tier._memory.address + place * SLOT_UNIT)


class PlacedTier(RemoteTier):
    """Knows which name it wrote last for which place: the suite names what a drive holds by its place."""

    names: dict[int, str]

    def start(self, transfer: Transfer) -> None:
        super().start(transfer)
        if isinstance(transfer, Demote):
            self.names[transfer.place] = name_of(self._digests[transfer.namespace], transfer.key)


class RemoteFactory:
    """Makes RemoteTiers over one remote in memory, which outlives them. What is there is found by asking, so nothing is
    recovered; what was written survives all the same, which test_seek.py looks at."""

    survives, flush_fault, finds_by_keys = False, "", True
    only_epoch_0, keeps_frames = False, True

    header_bytes = HEADER_BYTES

    def __init__(self) -> None:
        self._arena = mmap.mmap(-1, ARENA_BYTES)
        self._values: dict[str, bytes] = {}

    def make(self, folder: Path) -> PlacedTier:
        remote = MemoryRemote(self._values)
        remote.write_delay_s = 0.001
        tier = PlacedTier(remote, np.frombuffer(self._arena, np.uint8), values=self.how())
        tier.names = {}
        return tier

    def how(self) -> Clear | Sealed:
        return Clear()

    def reopen(self, tier: PlacedTier) -> PlacedTier:
        tier.close()
        return self.make(Path())

    def crash(self, tier: PlacedTier) -> PlacedTier:
        """The remote keeps what it had at this moment."""
        self._values = dict(self._values)
        tier.close()
        return self.make(Path())

    def memory(self, slot: int, size: int) -> memoryview:
        return memoryview(self._arena)[slot * SLOT_UNIT : slot * SLOT_UNIT + size]

    def units(self, tier: PlacedTier) -> int:
        return DRIVE_BYTES // SLOT_UNIT

    def flip_bit(self, tier: PlacedTier, place: int, offset: int) -> None:
        value = bytearray(self._values[tier.names[place]])
        value[self.header_bytes + offset] ^= 1
        self._values[tier.names[place]] = bytes(value)

    def raw(self, tier: PlacedTier, place: int, size: int) -> bytes:
        """What the remote has; zeros where it has nothing."""
        return self._values.get(tier.names[place], bytes(self.header_bytes + size))[self.header_bytes :]


class EncryptedRemoteFactory(RemoteFactory):
    """The same, with a master key."""

    encrypts, header_bytes = True, Sealed.header_bytes

    def how(self) -> Clear | Sealed:
        return Sealed(MasterKey(bytes(range(32))))


def address_of(memory: mmap.mmap) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


def copy_at_rest(file: Path, to: Path) -> None:
    """A catalogue whose first pages (LMDB's meta pages) were the same before and after is one that a crash may leave."""
    while True:
        before = file.read_bytes()[: 2 * mmap.PAGESIZE]
        shutil.copyfile(file, to)
        if before == file.read_bytes()[: 2 * mmap.PAGESIZE] or not file.name.startswith("catalogue"):
            return
