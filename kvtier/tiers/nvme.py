"""The NVMe tier: blocks in one preallocated payload file a drive, and a catalogue of them that survives a crash.

    Demote     write the bytes, or a frame of them -> Finished -> record into the next commit
    Promote    read the bytes, or the frame, compare their checksum -> Finished
    Forget     into the next commit -> Finished
    Erase      write zeros -> a Forget of its place into the next commit -> Finished
    Remember   into the next commit -> Finished
    Shred      drop the tenant's data keys -> the next commit, which overwrites them and syncs that -> Finished
    Flush      with the next commit -> Finished

One thread calls, and owns all of this. BlockIo moves bytes, reads ahead of writes; Commits lends the catalogue
to a thread of its own, see there. A Forget, Erase or Remember that finishes with a fault may yet happen, in its place in
the order.

With a master key blocks, and frames, are encrypted on BlockIo's threads on their way to the drive, and opened there in
their slots: a tag takes the place of the checksum. What a block is, its key, place, size and namespace, is bound to it;
and how much lies there, since nothing shorter or longer has this tag.

`read_only` after a write that failed lasts RETRY_S, then writes are tried again; after a commit that failed, until a
retry works. What was under way is finished as the drives say.
"""

import contextlib
import errno
import os
import select
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kvtier import _native
from kvtier.block import KEY_BYTES, SECRET_BYTES, SLOT_UNIT
from kvtier.errors import DaemonError
from kvtier.failpoint import reach
from kvtier.tiers.base import Recovered
from kvtier.tiers.block_io import BlockIo, can_make, is_frame, why_unknown
from kvtier.tiers.catalogue import Catalogue, record_of
from kvtier.tiers.commits import RETRY_S, WAITING_MAX, Commits, fault_of
from kvtier.tiers.drives import CATALOGUE, KEYS, Drives
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.seals import Seals, unpack
from kvtier.tiers.vault import Sealing, Vault
from kvtier.transfer import (
    Demote,
    Erase,
    Finished,
    Flush,
    Forget,
    Promote,
    Remember,
    Seek,
    Shred,
    Transfer,
    tenant_of_origin,
)

COUNTS = (  # since the start
    *("read_bytes", "written_bytes", "erased_bytes"),  # of places
    *("frames_written", "frames_read", "larger_frames"),  # the last: that didn't fit, and were not written
    *("corrupt_blocks", "shredded_blocks", "failed_reads", "failed_writes"),
)
_CLOSE_WAIT_S = 1.0
_BOUND = struct.Struct(f"<16s{KEY_BYTES}sIII")  # to what is encrypted: store, key, place, units, namespace


class _Writing(NamedTuple):
    order: Demote
    sequence: int
    sealing: Sealing | None


class _Reading(NamedTuple):
    order: Promote
    seal: _native.Seal | None


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
        master: MasterKey | None = None,
    ) -> None:
        """`capacity`: bytes over all paths, one path a drive. `io`: "auto", "io_uring" or "threads". `map_bytes_max`:
        limit of the catalogue's file, 0 for enough. `root`: the secret that keys are made with; empty: that of those who
        wrote here. `master`: blocks are encrypted with keys that it wraps. DaemonError says what can't be used and which
        setting cures it."""
        self._files = files = Drives(paths, capacity, encrypted=master is not None)
        self.drives, self.extents, self.extent_bytes = files.drives, files.extents, files.extent_bytes
        self.rated_bytes = files.rated_bytes
        self._seals = Seals(files.extent_bytes // SLOT_UNIT)
        self._vault: Vault | None = None
        try:
            self._io = BlockIo(files, io, arena_address)
            self._open(map_bytes_max, root, master)
        except DaemonError:
            if self._vault is not None:
                self._vault.close()
            files.close()
            raise
        self.root, self.bad_records = self._catalogue.root, self._catalogue.bad_records
        self.recovered, self._catalogue.recovered = self._catalogue.recovered, Recovered()  # large, and the store's now
        self.io_backend = self._io.backend
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.epoll()
        self._poller.register(self._wake, select.EPOLLIN)
        self._poller.register(self._io.fileno(), select.EPOLLIN)
        self._commits = Commits(self._catalogue, self._files, self._wake, self._vault)
        self._under_way: dict[int, _Writing | _Reading | Erase] = {}  # by the I/O's ticket
        self._shredding: dict[bytes, int] = {}  # by tenant: keys that are dropped, and perhaps not durably
        self._shreds: dict[int, bytes] = {}  # by ticket: tenants
        self._done: list[Finished] = []  # for the next poll
        self._sequence = self._catalogue.next_sequence
        self._refused, self._refused_until = "", 0.0  # fault of the last write that failed; time.monotonic
        self._closed = False
        self._counts = dict.fromkeys(COUNTS, 0)
        self._unknown: set[str] = set()  # codecs of frames that nobody here can decode

    def _open(self, map_bytes_max: int, root: bytes, master: MasterKey | None) -> None:
        """Vault and catalogue. DaemonError."""
        files = self._files
        if master is not None:
            self._vault = Vault(files.paths[0] / KEYS, files.store, master, self._seals.blocks)
        catalogue = self._catalogue = Catalogue(
            files.paths[0] / CATALOGUE,
            files.store,
            files.extents,
            files.extent_bytes // SLOT_UNIT,
            map_bytes_max,
            store_is_new=files.is_new,
            root=root,
            serials=None if self._vault is None else self._vault.serials,
            root_mask=bytes(SECRET_BYTES) if master is None else master.root_mask(files.store),
        )
        if self._vault is not None and (seals := catalogue.recovered.seals) is not None:
            self._seals.load(catalogue.recovered.places, seals)
            catalogue.recovered.seals = None
            self._vault.drop_unused(self._vault.serials.tolist())

    @property
    def notes(self) -> list[str]:
        """What an operator should read, one line each."""
        fallback = [f"NVMe I/O by threads: {self._io.fallback}"] if self._io.fallback else []
        of_keys = [] if self._vault is None else self._vault.notes
        unknown = [f"frames by {codec} can't be read here: {why_unknown(codec)}" for codec in sorted(self._unknown)]
        return self._files.notes + of_keys + self._catalogue.notes + fallback + unknown

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

    def move_arena(self, address: int) -> None:
        """Slots are there from now on. Nothing is under way."""
        self._io.arena_address = address

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
            self._commit(transfer)
            self._done += self._told(self._commits.turn())
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
        for ticket, error, checksum, seconds, stored, coded_s, codec in self._io.poll():
            ended = self._under_way.pop(ticket)
            if isinstance(ended, Erase):
                self._overwritten(ended, error, seconds)
                continue
            done = Finished(ended.order.ticket, "", checksum, seconds, stored=stored, coded_s=coded_s, codec=codec)
            if isinstance(ended, _Reading):
                fault = self._promoted(*ended, error, done)
            else:
                fault = self._demoted(*ended, error, done)
            self._done.append(replace(done, fault=fault, checksum=0, stored=0, codec="") if fault else done)
        self._done += self._told(self._commits.turn())

    def _told(self, by_commits: list[Finished]) -> list[Finished]:
        """With the number of keys, where they are shredded."""
        for n, done in enumerate(by_commits):
            tenant = self._shreds.pop(done.ticket, None)
            if tenant is not None and not done.fault:
                by_commits[n] = replace(done, shredded=self._shredding.pop(tenant, 0))
        return by_commits

    def _write(self, demote: Demote) -> None:
        if not can_make(demote):
            self._counts["larger_frames"] += 1
            self._done.append(Finished(demote.ticket, "larger"))
            return self._wake_caller()
        sealing = None
        if self._vault is not None:
            sealing = self._vault.sealing(tenant_of_origin(demote.origin), self._bound(demote))
        native = None if sealing is None else sealing.native
        ticket = self._io.write(demote, native)
        self._under_way[ticket] = _Writing(demote, self._sequence, sealing)
        self._sequence += 1

    def _read(self, promote: Promote) -> None:
        reach("before_promote")
        seal = None
        if self._vault is not None:
            found = self._seals.get(promote.place)
            seal = None if found is None else self._vault.opening(*unpack(found), self._bound(promote))
            if seal is None:
                self._counts["shredded_blocks"] += 1
                self._done.append(Finished(promote.ticket, "corrupt"))
                return self._wake_caller()
        self._under_way[self._io.read(promote, seal)] = _Reading(promote, seal)

    def _bound(self, order: Demote | Promote) -> bytes:
        """A record that was changed, or put in another's place, opens nothing."""
        return _BOUND.pack(self._files.store, order.key, order.place, order.size // SLOT_UNIT, order.namespace)

    def _commit(self, order: Forget | Remember | Shred | Flush) -> None:
        if isinstance(order, Shred):
            return self._shred(order)
        if isinstance(order, Forget):
            self._unseal(order.first, order.end)
        if not isinstance(order, Flush):
            self._commits.add(order)
        self._commits.tell(order.ticket)

    def _shred(self, shred: Shred) -> None:
        """The next commit, which overwrites the keys and syncs that, says that it has finished."""
        before = self._shredding.get(shred.tenant, 0)  # of one that was not synced
        keys = 0 if self._vault is None else self._vault.shred(shred.tenant)
        self._shreds[shred.ticket], self._shredding[shred.tenant] = shred.tenant, before + keys
        self._commits.tell(shred.ticket)

    def _overwrite(self, erase: Erase) -> None:
        self._under_way[self._io.zero(erase)] = erase

    def _demoted(self, demote: Demote, sequence: int, sealing: Sealing | None, error: int, done: Finished) -> str:
        """Its fault; what lies there is in the next commit."""
        seal = b"" if sealing is None or error else sealing.seal()
        if seal:
            self._seals.add(demote.place, seal)
        if self._vault is not None and sealing is not None:
            self._vault.over(sealing)
        if error == errno.EFBIG and is_frame(demote):
            self._counts["larger_frames"] += 1
            return "larger"
        if error:
            return self._write_failed(error)
        reach("payload_written")
        self._counts["written_bytes"] += demote.place_bytes
        self._counts["frames_written"] += is_frame(demote)
        self._commits.add(record_of(demote, done.checksum, sequence, seal), self._files.drive_of(demote.place))
        return ""

    def _overwritten(self, erase: Erase, error: int, seconds: float) -> None:
        """Its commit, which syncs the zeros first, says that it has finished."""
        if error:
            self._done.append(Finished(erase.ticket, self._write_failed(error), 0, seconds))
            return
        reach("zeroed")
        self._counts["erased_bytes"] += erase.size
        end = erase.place + erase.size // SLOT_UNIT
        self._unseal(erase.place, end)
        self._commits.add(Forget(erase.ticket, erase.place, end), self._files.drive_of(erase.place))
        self._commits.tell(erase.ticket)

    def _write_failed(self, error: int) -> str:
        if error == errno.ENOMEM:  # of this one alone: the drive has nothing to do with it
            fault = "io"
        else:
            fault = self._refused = fault_of(error)
            self._refused_until = time.monotonic() + RETRY_S
        self._counts["failed_writes"] += 1
        return fault

    def _promoted(self, promote: Promote, seal: _native.Seal | None, error: int, done: Finished) -> str:
        """Its fault. A frame that nobody here knows may be sound: it stays, for whoever does."""
        is_damaged = error == errno.EBADMSG and (is_frame(promote) or (seal is not None and seal.is_forged))
        if error and not is_damaged:
            self._counts["failed_reads"] += 1
            if error == errno.ENOTSUP and done.codec:
                self._unknown.add(done.codec)
            return fault_of(error)
        reach("promote_read")
        self._counts["read_bytes"] += promote.place_bytes
        self._counts["frames_read"] += is_frame(promote)
        if is_damaged or (seal is None and done.checksum != promote.checksum):
            self._counts["corrupt_blocks"] += 1
            return "corrupt"
        return ""

    def _unseal(self, first: int, end: int) -> None:
        """Nobody asks for what is in these places any more."""
        serials = self._seals.forget(first, end)
        if self._vault is not None:
            self._vault.drop_unused(serials)

    # --- state and end ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Bytes and counts since the start; `durable_blocks` and `disk_bytes` now."""
        fault = self._fault()
        reading = sum(isinstance(one, _Reading) for one in self._under_way.values())
        return {
            "capacity_bytes": self.extents * self.extent_bytes,
            "disk_bytes": 0 if self._closed else self._files.disk_bytes(),
            "io": self.io_backend,
            "encrypted": self._vault is not None,
            "tenant_keys": 0 if self._vault is None else len(self._vault),
            "shredded_keys": 0 if self._vault is None else self._vault.shredded,
            "read_only": bool(fault),
            "reason": "until restart: the catalogue is lost" if self._commits.lost else fault,
            "reads_pending": reading,
            "writes_pending": len(self._under_way) - reading,
            "records_waiting": self._commits.waiting,
            **self._counts,
            "durable_blocks": self._catalogue.records,
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
        self._done += self._told(self._commits.close())
        if self._vault is not None:
            self._vault.close()
        self._closed = True
        self._poller.close()
        self._io.close()
        self._catalogue.close()
        self._files.close()
        os.close(self._wake)
