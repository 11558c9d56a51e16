"""The folders of the NVMe tier, one a drive: whose they are, and the payload files in them.

    lock            held while a daemon uses the folder
    format          which part of which store this is; JSON
    blocks          the extents that lie on this drive: extent e on drive e % drives, at (e // drives) * extent_bytes
    catalogue.mdb   in the first folder only: which block lies where; see catalogue.py
    keys            in the first folder only, where blocks are encrypted: with what; see vault.py

The payload file is opened past the page cache and has its whole size from the start, so a full disk shows before
anything is served. A folder that doesn't fit to the others is not repaired: what is in it is set aside and a new store
begins empty, for all of it can be computed again.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kvtier.block import SLOT_UNIT, Number, position_of
from kvtier.config import format_size
from kvtier.errors import DaemonError
from kvtier.extents import EXTENT_BYTES_MIN, EXTENTS_MIN, extent_bytes_for
from kvtier.failpoint import reach

FORMAT_VERSION = 1
LOCK, FORMAT, BLOCKS, CATALOGUE, KEYS = "lock", "format", "blocks", "catalogue.mdb", "keys"
FORMAT_BYTES_MAX = 4096
SET_ASIDE = ".set-aside-"  # and a time, behind the name of a file that no longer counts
_GIB = 1024**3


@dataclass(frozen=True)
class Format:
    """What the format file of a folder says."""

    format_version: int
    store: str  # 32 hex digits, the same in all folders of a store
    drive: int  # its number
    drives: int  # how many there are
    extent_bytes: int
    encrypted: bool = False


class Drives:
    def __init__(self, paths: Sequence[Path], capacity: int, encrypted: bool = False) -> None:
        """Opens the folders, or makes them. `capacity`: bytes, over all of them; whole extents of it are used.
        `encrypted`: so are the blocks; those that are there in the clear are deleted.

        DaemonError says which folder can't be used, why, and which setting cures it."""
        self.paths = [path.absolute() for path in paths]
        self.drives = len(self.paths)
        self.capacity, self.encrypted = capacity, encrypted
        self.notes: list[str] = []
        self._locks: list[int] = []
        self._files: list[int] = []
        smallest = EXTENT_BYTES_MIN * EXTENTS_MIN * self.drives
        if capacity < smallest:
            raise DaemonError(f"nvme.capacity = {format_size(capacity)} is too small: at least {format_size(smallest)}")
        try:
            for path in self.paths:
                self._locks.append(_lock(path))
            self._begin()
            for drive, path in enumerate(self.paths):
                self._files.append(self._open_payload(drive, path))
            self.rated_bytes = _rated_bytes(self.paths)
        except OSError as error:
            self.close()
            raise DaemonError(f"can't use {error.filename}: {error.strerror}; set nvme.paths") from error
        except DaemonError:
            self.close()
            raise

    def _begin(self) -> None:
        """Goes on with the store that is there, or begins a new one."""
        self._order_paths()
        formats, wrong = self._formats()
        if wrong:
            self._set_aside(wrong)
        elif formats and formats[0].encrypted != self.encrypted:
            self._delete_clear()
            formats = []
        if wrong or not formats:
            store, self.extent_bytes = secrets.token_hex(16), extent_bytes_for(self.capacity, self.drives)
            for drive, path in enumerate(self.paths):
                _write_format(path, Format(FORMAT_VERSION, store, drive, self.drives, self.extent_bytes, self.encrypted))
                reach("format_written")
        else:
            store, self.extent_bytes = formats[0].store, formats[0].extent_bytes
        self.store, self.is_new = bytes.fromhex(store), bool(wrong or not formats)
        self.extents = self.capacity // self.extent_bytes
        self._extent_units = self.extent_bytes // SLOT_UNIT

    def _order_paths(self) -> None:
        """nvme.paths may name the folders of one store in any order."""
        found = [_read_format(path / FORMAT) for path in self.paths]
        numbers = {f.drive: path for f, path in zip(found, self.paths) if isinstance(f, Format)}
        one_store = len({f.store for f in found if isinstance(f, Format)}) == 1
        if one_store and sorted(numbers) == list(range(self.drives)):
            self.paths = [numbers[drive] for drive in range(self.drives)]

    def _formats(self) -> tuple[list[Format], str]:
        """What the folders say, and what is wrong with it. Neither: all of them are new."""
        if not any((path / name).exists() for path in self.paths for name in (FORMAT, BLOCKS, CATALOGUE, KEYS)):
            return [], ""
        formats = []
        for drive, path in enumerate(self.paths):
            found = _read_format(path / FORMAT)
            if isinstance(found, str):
                return [], found
            if found.drives != self.drives:
                return [], f"{path / FORMAT} is of a store of {found.drives} drives, and nvme.paths names {self.drives}"
            if found.drive != drive:
                return [], f"{path / FORMAT} is of drive {found.drive}, and nvme.paths has it as drive {drive}"
            formats.append(found)
        if len({(found.store, found.extent_bytes, found.encrypted) for found in formats}) > 1:
            return [], f"{', '.join(map(str, self.paths))} are not of one store"
        if formats[0].extent_bytes * EXTENTS_MIN * self.drives > self.capacity:
            return [], f"nvme.capacity is too small for the extents of {format_size(formats[0].extent_bytes)} in {path}"
        return formats, ""

    def _set_aside(self, reason: str) -> None:
        moved = []
        for path in self.paths:
            for name in (FORMAT, BLOCKS, CATALOGUE, KEYS):
                if (path / name).exists():
                    moved.append(aside := path / f"{name}{SET_ASIDE}{utc_stamp()}")
                    (path / name).rename(aside)
        names = ", ".join(map(str, moved))
        self.notes.append(f"{reason}: a new store begins empty; set aside, for you to delete: {names}")

    def _delete_clear(self) -> None:
        """What was written before there was a key. DaemonError: it is the other way round."""
        if not self.encrypted:
            raise DaemonError(
                f"the blocks in {', '.join(map(str, self.paths))} are encrypted: name the key file they were written "
                "with, in encryption.key_file (`kvtier verify`: by --key-file); or, to begin empty and in the clear, "
                "delete what is in there"
            )
        for path in self.paths:
            for name in (BLOCKS, CATALOGUE):
                for file in path.glob(f"{name}*"):  # also what was set aside, and catalogues found corrupt
                    file.unlink()
        self.notes.append("blocks that lay on the drives in the clear are deleted: from now on they are encrypted")

    # --- payload files ---------------------------------------------------------------------------------------

    def _open_payload(self, drive: int, path: Path) -> int:
        blocks = path / BLOCKS
        size = len(range(drive, self.extents, self.drives)) * self.extent_bytes
        _allocate(blocks, size)
        reach("extent_allocated")
        try:
            return os.open(blocks, os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            self.notes.append(f"{path} is on a filesystem without O_DIRECT: its blocks go through the page cache too")
            return os.open(blocks, os.O_RDWR | os.O_CLOEXEC)

    def drive_of(self, place: int) -> int:
        return place // self._extent_units % self.drives

    def locate(self, place: int, stored: int = SLOT_UNIT) -> tuple[int, int]:
        """(file descriptor, offset in bytes) of what has so many bytes there."""
        extent, within = divmod(place, self._extent_units)
        row, drive = divmod(extent, self.drives)
        return self._files[drive], row * self.extent_bytes + begin_of(within, stored)

    def sync(self, drives: Iterable[int]) -> None:
        """What was written to these survives a crash of the machine. OSError: perhaps not."""
        for drive in sorted(drives):
            os.fdatasync(self._files[drive])

    def disk_bytes(self) -> int:
        """What `du` says of the folders."""
        return sum(_taken_bytes(file) for path in self.paths for file in path.iterdir())

    def close(self) -> None:
        for fd in self._files + self._locks:
            os.close(fd)
        self._files, self._locks = [], []


def utc_stamp() -> str:
    """For names of files: sorts by time, and no two are equal."""
    now = time.time_ns()
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"


def sync_folder(path: Path) -> None:
    """Makes renames in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_of(within: Number, stored: Number) -> Number:
    """The first byte, in its extent, of the place of this number there. Of arrays: of int64."""
    begin = position_of(within, stored) * stored
    return begin + (stored % SLOT_UNIT == 0) * (within * SLOT_UNIT - begin)  # whole units begin where their number says


def _lock(path: Path) -> int:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise DaemonError(f"{path} is in use by another kvtierd, or named twice; set nvme.paths") from None
    return fd


def _read_format(file: Path) -> Format | str:
    """The format, or what is wrong with it. OSError: it can't be read at all, so nobody knows what it says."""
    try:
        with file.open("rb") as opened:
            fields = json.loads(opened.read(FORMAT_BYTES_MAX))
        found = Format(**fields)
        version = found.format_version
        good = len(bytes.fromhex(found.store)) == 16 and found.drive >= 0 and found.drives > 0
        size = found.extent_bytes
        good = good and size >= EXTENT_BYTES_MIN and size & (size - 1) == 0
    except FileNotFoundError:
        return f"{file} is missing"
    except (ValueError, TypeError):
        return f"{file} is damaged or of an unknown version"
    if version != FORMAT_VERSION:
        return f"{file} has version {version!r}, and this kvtierd knows {FORMAT_VERSION}"
    return found if good else f"{file} is damaged"


def is_encrypted(path: Path) -> bool:
    """Of a folder of a store, as far as one can tell."""
    found = _read_format(path / FORMAT)
    return isinstance(found, Format) and found.encrypted


def _write_format(path: Path, found: Format) -> None:
    new = path / f"{FORMAT}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as opened:
        opened.write(json.dumps(asdict(found)) + "\n")
        opened.flush()
        os.fsync(fd)
    new.rename(path / FORMAT)
    sync_folder(path)


def _allocate(blocks: Path, size: int) -> None:
    """Gives the file its size. What was in it stays."""
    fd = os.open(blocks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(fd).st_size
        if before > size:
            os.ftruncate(fd, size)
        missing = size - _taken_bytes(blocks) - _free_bytes(blocks)
        if missing > 0:
            raise DaemonError(_no_room(blocks, missing))
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            os.ftruncate(fd, min(before, size))
            raise OSError(error.errno, error.strerror, str(blocks)) from error
    finally:
        os.close(fd)


def _no_room(blocks: Path, missing: int) -> str:
    aside = sorted(str(file) for file in blocks.parent.iterdir() if SET_ASIDE in file.name)
    cure = f"delete {', '.join(aside)}" if aside else "free space or lower nvme.capacity"
    return f"{blocks.name} needs {missing / _GIB:.2f} GiB more on {blocks.parent}; {cure}"


def _taken_bytes(file: Path) -> int:
    return file.stat().st_blocks * 512


def _free_bytes(file: Path) -> int:
    of = os.statvfs(file)
    return of.f_bavail * of.f_frsize


def _rated_bytes(paths: Sequence[Path]) -> int:
    """Of the distinct filesystems: two folders on one drive don't make it larger."""
    sizes = {path.stat().st_dev: (of := os.statvfs(path)).f_blocks * of.f_frsize for path in paths}
    return sum(sizes.values())
