"""The NVMe tier: blocks in one preallocated payload file a drive, and a catalogue of them that survives a crash.

    Demote     write the bytes -> Finished -> record into the next commit
    Promote    read the bytes, compare their checksum -> Finished
    Forget     into the next commit -> Finished
    Erase      write zeros -> a Forget of its place into the next commit -> Finished
    Remember   into the next commit -> Finished
    Flush      with the next commit -> Finished

One thread calls, and owns all of this. `_native.FileIo` moves bytes, reads ahead of writes; Commits lends the catalogue
to a thread of its own, see there. A Forget, Erase or Remember that finishes with a fault may yet happen, in its place in
the order.

`read_only` after a write that failed lasts RETRY_S, then writes are tried again; after a commit that failed, until a
retry works. What was under way is finished as the drives say.
"""

import contextlib
import mmap
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvtier import _native
from kvtier.block import SLOT_UNIT, BlockKey
from kvtier.errors import DaemonError
from kvtier.failpoint import reach
from kvtier.tiers.base import Recovered
from kvtier.tiers.catalogue import Catalogue, record_of
from kvtier.tiers.commits import RETRY_S, WAITING_MAX, Commits, fault_of
from kvtier.tiers.drives import CATALOGUE, Drives
from kvtier.transfer import Demote, Erase, Finished, Flush, Forget, Promote, Seek, Transfer

IO_DEPTH, IO_THREADS = 12, 2  # transfers that the drives have at once; threads that compute checksums
_CLOSE_WAIT_S = 1.0


class NvmeTier:
    def __init__(
        self,
        paths: Sequence[Path],
        capacity: int,
        arena_address: int,
        *,
        io: str = "auto",
        map_bytes_max: int = 0,
        root: bytes = b"",
    ) -> None:
        """`capacity`: bytes over all paths, one path a drive. `io`: "auto", "io_uring" or "threads". `map_bytes_max`:
        limit of the catalogue's file, 0 for enough. `root`: the secret that keys are made with; empty: that of those who
        wrote here. DaemonError says what can't be used and which setting cures it."""
        self.arena_address = arena_address
        try:
            self._io = _native.FileIo(depth=IO_DEPTH, threads=IO_THREADS, backend=io)
        except (ValueError, OSError) as error:
            raise DaemonError(f'nvme.io = "{io}": {error}; set it to "auto"') from error
        self._files = files = Drives(paths, capacity)
        self.drives, self.extents, self.extent_bytes = files.drives, files.extents, files.extent_bytes
        self.rated_bytes = files.rated_bytes
        try:
            self._catalogue = Catalogue(
                files.paths[0] / CATALOGUE,
                files.store,
                files.extents,
                files.extent_bytes // SLOT_UNIT,
                map_bytes_max,
                store_is_new=files.is_new,
                root=root,
            )
        except DaemonError:
            files.close()
            raise
        self.root, self.bad_records = self._catalogue.root, self._catalogue.bad_records
        self.recovered, self._catalogue.recovered = self._catalogue.recovered, Recovered()  # large, and the store's now
        self.io_backend: str = self._io.backend
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.epoll()
        self._poller.register(self._wake, select.EPOLLIN)
        self._poller.register(self._io.fileno(), select.EPOLLIN)
        self._commits = Commits(self._catalogue, self._files, self._wake)
        self._under_way: dict[int, tuple[Demote, int] | Promote | Erase] = {}  # by the I/O's ticket; a Demote's sequence
        self._zeros = _zeros(self.extent_bytes)
        self._done: list[Finished] = []  # for the next poll
        self._sequence = self._catalogue.next_sequence
        self._refused, self._refused_until = "", 0.0  # fault of the last write that failed; time.monotonic
        self._closed = False
        self._read_bytes = self._written_bytes = self._erased_bytes = 0
        self._failed_reads = self._failed_writes = self._corrupt_blocks = 0

    @property
    def notes(self) -> list[str]:
        """What an operator should read, one line each."""
        fallback = [f"NVMe I/O by threads: {self._io.fallback}"] if self._io.fallback else []
        return self._files.notes + self._catalogue.notes + fallback

    @property
    def read_only(self) -> bool:
        return bool(self._fault())

    def _fault(self) -> str:
        """Why nothing is taken now; empty when all is well."""
        if self._closed:
            return "closed"
        if self._commits.fault:
            return self._commits.fault
        if self._commits.waiting >= WAITING_MAX:
            return "full"
        return self._refused if time.monotonic() < self._refused_until else ""

    # --- transfers -------------------------------------------------------------------------------------------

    def start(self, transfer: Transfer) -> None:
        fault = self._fault()
        if fault and (self._closed or not isinstance(transfer, Promote | Flush)):
            self._done.append(Finished(transfer.ticket, fault))
            if not self._closed:
                self._wake_caller()
        elif isinstance(transfer, Demote):
            self._write(transfer)
        elif isinstance(transfer, Promote):
            self._read(transfer)
        elif isinstance(transfer, Erase):
            self._overwrite(transfer)
        else:
            assert not isinstance(transfer, Seek), "a tier with places of its own is not asked for keys"
            if not isinstance(transfer, Flush):
                self._commits.add(transfer)
            self._commits.tell(transfer.ticket)
            self._done += self._commits.turn()
            if self._done:
                self._wake_caller()

    def poll(self) -> list[Finished]:
        if not self._closed:
            self._advance()
        done, self._done = self._done, []
        return done

    def fileno(self) -> int:
        return self._poller.fileno()

    def _wake_caller(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _advance(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for ticket, error, checksum, seconds in self._io.poll():
            ended = self._under_way.pop(ticket)
            if isinstance(ended, Promote):
                self._done.append(self._promoted(ended, error, checksum, seconds))
            elif isinstance(ended, Erase):
                self._overwritten(ended, error, seconds)
            else:
                self._done.append(self._demoted(*ended, error, checksum, seconds))
        self._done += self._commits.turn()

    def _write(self, demote: Demote) -> None:
        fd, offset = self._files.locate(demote.place)
        ticket = self._io.write(fd, offset, self._address(demote.slot), demote.size, _seed(demote.key))
        self._under_way[ticket] = demote, self._sequence
        self._sequence += 1

    def _read(self, promote: Promote) -> None:
        reach("before_promote")
        fd, offset = self._files.locate(promote.place)
        ticket = self._io.read(fd, offset, self._address(promote.slot), promote.size, _seed(promote.key))
        self._under_way[ticket] = promote

    def _overwrite(self, erase: Erase) -> None:
        fd, offset = self._files.locate(erase.place)
        self._under_way[self._io.write(fd, offset, self._zeros.ctypes.data, erase.size, 0)] = erase

    def _demoted(self, demote: Demote, sequence: int, error: int, checksum: int, seconds: float) -> Finished:
        if error:
            return self._write_failed(demote, error, seconds)
        reach("payload_written")
        self._written_bytes += demote.size
        self._commits.add(record_of(demote, checksum, sequence), self._files.drive_of(demote.place))
        return Finished(demote.ticket, "", checksum, seconds)

    def _overwritten(self, erase: Erase, error: int, seconds: float) -> None:
        """Its commit, which syncs the zeros first, says that it has finished."""
        if error:
            self._done.append(self._write_failed(erase, error, seconds))
            return
        reach("zeroed")
        self._erased_bytes += erase.size
        end = erase.place + erase.size // SLOT_UNIT
        self._commits.add(Forget(erase.ticket, erase.place, end), self._files.drive_of(erase.place))
        self._commits.tell(erase.ticket)

    def _write_failed(self, order: Demote | Erase, error: int, seconds: float) -> Finished:
        self._failed_writes += 1
        self._refused, self._refused_until = fault_of(error), time.monotonic() + RETRY_S
        return Finished(order.ticket, self._refused, 0, seconds)

    def _promoted(self, promote: Promote, error: int, checksum: int, seconds: float) -> Finished:
        if error:
            self._failed_reads += 1
            return Finished(promote.ticket, fault_of(error), 0, seconds)
        reach("promote_read")
        self._read_bytes += promote.size
        if checksum != promote.checksum:
            self._corrupt_blocks += 1
            return Finished(promote.ticket, "corrupt", 0, seconds)
        return Finished(promote.ticket, "", checksum, seconds)

    def _address(self, slot: int) -> int:
        return self.arena_address + slot * SLOT_UNIT

    # --- state and end ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Bytes and counts since the start; `durable_blocks` and `disk_bytes` now."""
        fault = self._fault()
        reading = sum(isinstance(transfer, Promote) for transfer in self._under_way.values())
        return {
            "capacity_bytes": self.extents * self.extent_bytes,
            "disk_bytes": 0 if self._closed else self._files.disk_bytes(),
            "io": self.io_backend,
            "read_only": bool(fault),
            "reason": "until restart: the catalogue is lost" if self._commits.lost else fault,
            "reads_pending": reading,
            "writes_pending": len(self._under_way) - reading,
            "records_waiting": self._commits.waiting,
            "read_bytes": self._read_bytes,
            "written_bytes": self._written_bytes,
            "erased_bytes": self._erased_bytes,
            "durable_blocks": self._catalogue.records,
            "corrupt_blocks": self._corrupt_blocks,
            "failed_reads": self._failed_reads,
            "failed_writes": self._failed_writes,
            "failed_commits": self._commits.failed,
            "quarantined": self._catalogue.quarantined,
            "bad_records": self.bad_records,
            "drives": [{"path": str(path)} for path in self._files.paths],
            "notes": self.notes,
        }

    def close(self) -> None:
        """Waits for the drives, however long they take. What is finished by then, `poll` gives as ever."""
        if self._closed:
            return
        reach("closing")
        while self._under_way:
            self._io.wait(_CLOSE_WAIT_S)
            self._advance()
        self._done += self._commits.close()
        self._closed = True
        self._poller.close()
        self._io.close()
        self._catalogue.close()
        self._files.close()
        os.close(self._wake)


def _seed(key: BlockKey) -> int:
    """With it a record that points to another block's bytes never fits to them."""
    return _native.crc32c(key)


def _zeros(size: int) -> np.ndarray:
    """They take no memory: where nobody may write, each page is the kernel's one page of zeros."""
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ), np.uint8)
