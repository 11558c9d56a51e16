"""Which block lies where on the drives: one LMDB file, written at run time and read only at start.

    records      place (big endian, so that an extent is one range) -> key, checksum, size, what it takes there,
                 namespace, epoch, sequence, origin
    sealed       instead of these, where blocks are encrypted: with the seal of the block behind its origin
    remembered   digest of a namespace -> its number and epoch
    meta         the version, the store that the drives belong to, the root secret (masked, where blocks are encrypted)

Each row ends with a CRC-32C over itself and its key. At start another process reads the file, each row proves itself,
and what is good goes into a fresh file that replaces the former; a file that can't be read is kept beside, and the
tier begins empty. So damage costs blocks, never a wrong one, and each start compacts.

Whoever calls `commit` owns the catalogue meanwhile: the tier calls it on one thread of its own, one call after the other.
"""

import secrets
import struct
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np

from kvtier import _native
from kvtier.block import KEY_BYTES, PLACE_GRAIN, SECRET_BYTES, SLOT_UNIT, place_at, position_of
from kvtier.errors import DaemonError
from kvtier.failpoint import reach
from kvtier.tiers.base import Recovered
from kvtier.tiers.catalogue_reader import META, RECORDS, REMEMBERED, SEALED, TABLES
from kvtier.tiers.drives import begin_of, sync_folder, utc_stamp
from kvtier.tiers.seals import SEAL_BYTES, SERIAL_BYTES
from kvtier.tiers.survivors import CRC, Table, Unreadable, read
from kvtier.transfer import ORIGIN_BYTES, Demote, Forget, Remember

VERSION = 3
QUARANTINE = ".corrupt-"  # and a time, behind the name of a file that can't be trusted
QUARANTINED_MAX = 2  # files; older ones are deleted
MAP_BYTES_MIN, MAP_BYTES_PER_PLACE = 64 * 1024**2, 256  # a record takes about 120 bytes, and a commit copies pages

# The environment can't go on after these; after any other error of LMDB it can, or a new one on the same file.
LOST = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)

Entry = bytes | Forget | Remember  # bytes: a record

_COLUMNS: list[tuple[str, str] | tuple[str, str, int]] = [
    ("place", ">u4"),
    ("key", f"V{KEY_BYTES}"),
    ("checksum", "<u4"),
    ("units", "<u4"),
    ("pages", "<u4"),  # of PLACE_GRAIN: what it takes there; less than the block has, where it is a frame
    ("namespace", "<u4"),
    ("epoch", "<u8"),
    ("sequence", "<u8"),
    ("origin", "u1", ORIGIN_BYTES),
]
RECORD = np.dtype([*_COLUMNS, ("crc", "<u4")])
SEALED_RECORD = np.dtype([*_COLUMNS, ("seal", "u1", SEAL_BYTES), ("crc", "<u4")])
_RECORD = struct.Struct(f"<{KEY_BYTES}sIIIIQQ{ORIGIN_BYTES}s")  # behind the place, before the crc
_PLACE = struct.Struct(">I")
_REMEMBERED = struct.Struct("<IQ")
_META = struct.Struct(f"<I16s{SECRET_BYTES}s")
_META_KEY = b"meta"
assert TABLES[RECORDS] == (_PLACE.size, _RECORD.size + CRC.size) and sum(TABLES[RECORDS]) == RECORD.itemsize
assert sum(TABLES[SEALED]) == SEALED_RECORD.itemsize == RECORD.itemsize + SEAL_BYTES
assert TABLES[REMEMBERED][1] == _REMEMBERED.size + CRC.size and TABLES[META][1] == _META.size + CRC.size


def record_of(demote: Demote, checksum: int, sequence: int, seal: bytes = b"") -> bytes:
    """`sequence` grows with each Demote for ever. `seal`: where blocks are encrypted."""
    units, pages = demote.size // SLOT_UNIT, demote.place_bytes // PLACE_GRAIN
    fields = demote.key, checksum, units, pages, demote.namespace, demote.epoch, sequence, demote.origin  # none: zeros
    return _proven(_PLACE.pack(demote.place) + _RECORD.pack(*fields) + seal)


def _proven(row: bytes) -> bytes:
    return row + CRC.pack(_native.crc32c(row))


class Catalogue:
    def __init__(
        self,
        path: Path,
        store: bytes,
        extents: int,
        extent_units: int,
        map_bytes_max: int = 0,
        *,
        store_is_new: bool = True,
        root: bytes = b"",
        serials: np.ndarray | None = None,
        root_mask: bytes = bytes(SECRET_BYTES),
    ) -> None:
        """Takes what survived into `recovered` and begins a fresh file with it. `store`: 16 bytes that name the store
        whose places are meant; `map_bytes_max`: how large the file may grow, 0 for enough; `root`: the secret that keys
        are made with, empty for one of its own. Where blocks are encrypted, `serials` are of the data keys that there are:
        what was encrypted with another is not there; and `root_mask` hides the root. DaemonError: the former file can't be
        looked at, or no fresh one written."""
        self.path = path
        self.notes: list[str] = []
        self.quarantined = self.bad_records = self.without_key = self.records = 0
        self._serials, self._root_mask = serials, root_mask
        self._table, self._row = (RECORDS, RECORD) if serials is None else (SEALED, SEALED_RECORD)
        self._store, self._places, self._extent_units = store, extents * extent_units, extent_units
        self._map_bytes = MAP_BYTES_MIN + self._places * MAP_BYTES_PER_PLACE
        self.map_bytes_max = map_bytes_max or 4 * self._map_bytes
        self._map_bytes = min(self._map_bytes, self.map_bytes_max)
        self._env: lmdb.Environment | None = None
        try:
            self.root, records, remembered = self._survivors(store_is_new, root)
            self._rebuild(records, remembered)
        except (lmdb.Error, OSError) as error:
            self.close()
            raise DaemonError(f"can't use {path}: {error}; free space, or set nvme.paths") from error
        self.next_sequence = int(records["sequence"].max(initial=0)) + 1
        self.recovered = _recovered(records, remembered)

    # --- start -----------------------------------------------------------------------------------------------

    def _survivors(self, store_is_new: bool, wanted: bytes) -> tuple[bytes, np.ndarray, dict[bytes, tuple[int, int]]]:
        """The root secret, the good records, the namespaces. All new and empty where the file is no good, or where the
        keys in it were made with another root than the one that is wanted: nobody will ask for them."""
        if self.path.exists():
            try:
                tables, root = self._tables()
            except Unreadable as problem:
                self.quarantine(str(problem))
            else:
                if wanted in (b"", root):
                    remembered = _remembered(tables[REMEMBERED])
                    records = self._good_records(tables[self._table], remembered)
                    return root, records, _needed(remembered, records)
                forgotten = f"{len(tables[self._table].rows):,} blocks there are forgotten"
                self.notes.append(f"{self.path} is of another root secret: {forgotten}")
        elif not store_is_new:
            self.quarantined += 1
            self.notes.append(f"{self.path} is missing: what lies on the drives is forgotten")
        return wanted or secrets.token_bytes(SECRET_BYTES), np.empty(0, self._row), {}

    def _tables(self) -> tuple[dict[bytes, Table], bytes]:
        """All that is in the file, and the root secret. A drive may fail once: the last look decides."""
        for last_look in (False, True):
            try:
                tables = read(self.path)
                return tables, self._root(tables[META])
            except Unreadable:
                if last_look:
                    raise
        raise AssertionError

    def _root(self, table: Table) -> bytes:
        if not (rows := table.proven()):
            raise Unreadable("it doesn't say which store it is of")
        version, store, root = _META.unpack(rows[0][len(_META_KEY) : -CRC.size])
        if version != VERSION:
            raise Unreadable(f"it has version {version}, and this kvtierd knows {VERSION}")
        if store != self._store:
            raise Unreadable("it is of another store")
        return _masked(root, self._root_mask)

    def _good_records(self, table: Table, remembered: dict[bytes, tuple[int, int]]) -> np.ndarray:
        """In the order of places."""
        rows = _only(table.proof(), table.rows).reshape(-1).view(self._row)
        rows = _only(self._fits(rows) & _is_current(rows, remembered), rows)
        rows = _newest_of_each_key(rows)
        if not (np.diff(rows["place"].astype(np.int64)) > 0).all():
            rows = rows[np.argsort(rows["place"])]
        rows = _only(~_overlapping(rows, self._extent_units), rows)
        self.bad_records = table.odd + len(table.rows) - len(rows)
        if self._serials is not None:
            good = len(rows)
            rows = _only(np.isin(_serials_of(rows), self._serials), rows)
            self.without_key = good - len(rows)
        return rows

    def _fits(self, rows: np.ndarray) -> np.ndarray:
        """bool[n]: lies in one extent of the space, and takes no more there than it has."""
        within, stored = rows["place"].astype(np.int64) % self._extent_units, _stored(rows)
        good = (
            (rows["place"] < self._places) & (stored >= SLOT_UNIT) & (stored <= rows["units"].astype(np.int64) * SLOT_UNIT)
        )
        end = begin_of(within, stored) + stored
        is_place = (stored % SLOT_UNIT == 0) | (place_at(position_of(within, stored), stored) == within)
        return good & is_place & (end <= self._extent_units * SLOT_UNIT)

    def _rebuild(self, records: np.ndarray, remembered: dict[bytes, tuple[int, int]]) -> None:
        """A fresh file takes the place of the former one."""
        new = self.path.with_name(self.path.name + ".new")
        new.unlink(missing_ok=True)
        with self._opened(new) as env:
            tables = {name: env.open_db(name) for name in TABLES}
            with env.begin(write=True) as txn:
                meta = _proven(_META_KEY + _META.pack(VERSION, self._store, _masked(self.root, self._root_mask)))
                txn.put(_META_KEY, meta[len(_META_KEY) :], db=tables[META])
                for digest, (number, epoch) in remembered.items():
                    txn.put(digest, _remembered_row(digest, number, epoch)[len(digest) :], db=tables[REMEMBERED])
                rows = struct.iter_unpack("{}s{}s".format(*TABLES[self._table]), records.view(np.uint8).data)
                txn.cursor(tables[self._table]).putmulti(rows, append=True)
        reach("catalogue_rebuilt_before_replace")
        new.rename(self.path)
        sync_folder(self.path.parent)
        reach("catalogue_replaced")
        self._open()
        self.records = len(records)

    def _opened(self, path: Path) -> lmdb.Environment:
        """Durable with each commit, and never written through its map: a full disk would end the process."""
        return lmdb.open(str(path), subdir=False, mode=0o600, lock=False, max_dbs=len(TABLES), map_size=self._map_bytes)

    def _open(self) -> None:
        self._env = self._opened(self.path)
        self._records, self._remembered = (self._env.open_db(name, create=False) for name in (self._table, REMEMBERED))

    # --- run time --------------------------------------------------------------------------------------------

    def commit(self, entries: Sequence[Entry]) -> None:
        """All of them, in this order, durable when it returns. lmdb.Error: none of them is sure; LOST or not."""
        while True:
            try:
                return self._write(entries)
            except lmdb.MapFullError:
                if self._map_bytes >= self.map_bytes_max or self._env is None:
                    raise
                self._map_bytes = min(2 * self._map_bytes, self.map_bytes_max)
                self._env.set_mapsize(self._map_bytes)
            except lmdb.PanicError:
                self.close()  # LMDB wants a new environment; the next commit opens it
                raise

    def _write(self, entries: Sequence[Entry]) -> None:
        if self._env is None:
            self._open()
        assert self._env is not None
        with self._env.begin(write=True) as txn:
            for entry in entries:
                if isinstance(entry, bytes):
                    txn.put(entry[: _PLACE.size], entry[_PLACE.size :], db=self._records)
                elif isinstance(entry, Forget):
                    self._forget(txn, entry)
                else:
                    row = _remembered_row(entry.digest, entry.namespace, entry.epoch)
                    txn.put(entry.digest, row[len(entry.digest) :], db=self._remembered)
            records = txn.stat(self._records)["entries"]
        self.records = records

    def _forget(self, txn: lmdb.Transaction, forget: Forget) -> None:
        reach("before_forget")
        end = _PLACE.pack(forget.end)
        with txn.cursor(self._records) as cursor:
            there = cursor.set_range(_PLACE.pack(forget.first))
            while there and bytes(cursor.key()) < end:
                there = cursor.delete()  # and goes to the next; False behind the last
        reach("after_forget")

    def quarantine(self, reason: str) -> None:
        """The file is not looked at again. Whoever wants to know what happened finds it beside."""
        self.close()
        self.quarantined += 1
        aside = self.path.with_name(f"{self.path.name}{QUARANTINE}{utc_stamp()}")
        former = sorted(self.path.parent.glob(f"{self.path.name}{QUARANTINE}*"))
        try:
            self.path.rename(aside)
            for file in former[: len(former) + 1 - QUARANTINED_MAX]:
                file.unlink()
        except OSError as error:
            self.notes.append(f"can't set {self.path} aside: {error.strerror}")
        self.notes.append(f"{self.path} is no good: {reason}; it is kept as {aside.name}")

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


# --- what a former life left ---------------------------------------------------------------------------------


def _remembered_row(digest: bytes, number: int, epoch: int) -> bytes:
    return _proven(digest + _REMEMBERED.pack(number, epoch))


def _remembered(table: Table) -> dict[bytes, tuple[int, int]]:
    digest_bytes = TABLES[REMEMBERED][0]
    return {row[:digest_bytes]: _REMEMBERED.unpack(row[digest_bytes : -CRC.size]) for row in table.proven()}


def _recovered(records: np.ndarray, remembered: dict[bytes, tuple[int, int]]) -> Recovered:
    order = np.argsort(records["sequence"])
    return Recovered(
        keys=records["key"][order].tobytes(),
        places=records["place"].astype(np.uint32)[order],
        sizes=records["units"].astype(np.int64)[order] * SLOT_UNIT,
        stored=records["pages"].astype(np.int64)[order] * PLACE_GRAIN,
        namespaces=records["namespace"].astype(np.int32)[order],
        epochs=records["epoch"].astype(np.int64)[order],
        checksums=records["checksum"].astype(np.uint32)[order],
        remembered=dict(remembered),
        origins=records["origin"][order],
        seals=records["seal"][order] if "seal" in (records.dtype.names or ()) else None,
    )


def _masked(root: bytes, mask: bytes) -> bytes:
    """And back."""
    return bytes(a ^ b for a, b in zip(root, mask, strict=True))


def _serials_of(rows: np.ndarray) -> np.ndarray:
    """Of the data keys of their seals."""
    return np.ascontiguousarray(rows["seal"][:, :SERIAL_BYTES]).view("<u4").reshape(-1)


def _only(mask: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Most of the time that is all of them, and a million rows are not copied."""
    return rows if mask.all() else rows[mask]


def _is_current(rows: np.ndarray, remembered: dict[bytes, tuple[int, int]]) -> np.ndarray:
    """bool[n]: of a namespace that is remembered, in its epoch."""
    if not remembered:
        return np.zeros(len(rows), bool)
    numbers, epochs = np.array(sorted(remembered.values()), np.uint64).T
    at = np.searchsorted(numbers, rows["namespace"].astype(np.uint64)).clip(max=len(numbers) - 1)
    return (numbers[at] == rows["namespace"]) & (epochs[at] == rows["epoch"])


def _needed(remembered: dict[bytes, tuple[int, int]], records: np.ndarray) -> dict[bytes, tuple[int, int]]:
    """Without those that were never reset and have no block: whoever comes with one finds it as new. So names that
    somebody made up are gone with a restart. An epoch is kept for ever: what lies elsewhere under keys of a former one
    must not come back."""
    numbers = set(np.unique(np.ascontiguousarray(records["namespace"])).tolist())
    return {digest: known for digest, known in remembered.items() if known[1] or known[0] in numbers}


def _newest_of_each_key(rows: np.ndarray) -> np.ndarray:
    """The rows that no row of the same key and a later sequence replaces."""
    halves = np.ascontiguousarray(rows["key"]).view("<u8").reshape(-1, 2)
    first = np.sort(halves[:, 0])
    if (first[1:] != first[:-1]).all():
        return rows  # no key is there twice
    order = np.lexsort((rows["sequence"], halves[:, 0], halves[:, 1]))
    replaced = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)  # by the next one
    return rows[order[np.append(~replaced, True)]]


def _stored(rows: np.ndarray) -> np.ndarray:
    """Bytes; where a row says nothing that can be, one, so that it can be reckoned with."""
    return np.maximum(rows["pages"].astype(np.int64) * PLACE_GRAIN, 1)


def _overlapping(rows: np.ndarray, extent_units: int) -> np.ndarray:
    """bool[n]: shares a byte with another row. Nobody knows which of them is right."""
    extent, within = np.divmod(rows["place"].astype(np.int64), extent_units)
    first = extent * extent_units * SLOT_UNIT + begin_of(within, _stored(rows))
    order = np.argsort(first, kind="stable")
    first, end = first[order], (first + _stored(rows))[order]
    overlapping = np.zeros(len(rows), bool)
    overlapping[1:] = first[1:] < np.maximum.accumulate(end)[:-1]
    overlapping[:-1] |= end[:-1] > first[1:]
    found = np.empty(len(rows), bool)
    found[order] = overlapping
    return found
