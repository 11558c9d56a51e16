"""The vault of the drives: the data keys that blocks are encrypted with, in a small file of their own.

    header    magic  version  store  nonce  tag  crc                                    what only the master key can make
    record    serial  tenant  reserved  nonce  wrapped data key  tag  crc               one a data key; zeros: none

Each tenant has a data key of its own: random, and wrapped by the master key. To shred a tenant's is to overwrite its
record where it stands: from then on nobody can read what was encrypted with it, nor a copy of the drives that somebody
made before. That is why the keys are in no database, which would keep former pages, and in the file only wrapped.

A nonce is random, and a data key is used for WRITES_MAX blocks: half of what the standard allows, since a crash may
forget some. `reserved` counts them in steps of RESERVED. Then the tenant gets another, and has both.

A key goes with its last block. There is room for KEYS_MAX; when so many tenants have blocks, further ones share the key of
those who have no name, which is shredded for none of them.

Nothing of it is written at once, since a drive may take seconds and fail: rows that changed are gathered, and a commit
writes and syncs them before its records. So no block is recovered whose key is not durable. What could not be written
and synced waits for the next try, and is written again: after an error nobody knows what the drive has.

The caller's thread owns all of this but `sync`, which any one other thread may call. They share the dict of rows, and all
that they do with it are single steps (set, popitem, setdefault) that the interpreter doesn't interrupt.
"""

import contextlib
import errno
import os
import secrets
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvtier import _native
from kvtier.errors import DaemonError
from kvtier.failpoint import reach
from kvtier.tenants import TENANT_TAG_BYTES
from kvtier.tiers.drives import SET_ASIDE, sync_folder, utc_stamp
from kvtier.tiers.master_key import KEY_BYTES, NONCE_BYTES, TAG_BYTES, MasterKey
from kvtier.tiers.seals import SERIAL_BYTES, pack

MAGIC, VERSION = b"kvtK", 1
NOBODY = bytes(TENANT_TAG_BYTES)
KEYS_MAX = 65_536
WRITES_MAX, RESERVED = 1 << 31, 1 << 16
RECORD_BYTES = 128  # four in a sector: a drive writes one whole
_HEADER = struct.Struct(f"<4sI16s{NONCE_BYTES}s{TAG_BYTES}s")
_RECORD = struct.Struct(f"<I{TENANT_TAG_BYTES}sQ{NONCE_BYTES}s{KEY_BYTES}s{TAG_BYTES}s")
_CRC = struct.Struct("<I")
_EMPTY = bytes(RECORD_BYTES)


class Key(NamedTuple):
    """A data key as the file has it."""

    row: int  # where in the file
    tenant: bytes
    reserved: int  # blocks that may have been written with it
    nonce: bytes
    wrapped: bytes
    tag: bytes


class Sealing(NamedTuple):
    """One block on its way to a drive."""

    serial: int
    nonce: bytes
    native: _native.Seal

    def seal(self) -> bytes:
        """When it is written."""
        return pack(self.serial, self.nonce, self.native.tag)


class Vault:
    def __init__(self, path: Path, store: bytes, master: MasterKey, blocks: Mapping[int, int]) -> None:
        """`store`: 16 bytes that name the store whose blocks are meant; `blocks`: how many a data key has now, by its
        serial. DaemonError: the file is of another master key, or can't be used."""
        self.path, self._store, self._master, self._blocks = path, store, master, blocks
        self.notes: list[str] = []
        self.shredded = 0  # keys, in this life
        self._keys: dict[int, Key] = {}  # by serial
        self._of: dict[bytes, int] = {}  # by tenant: the serial of the one that is used
        self._writes: dict[int, int] = {}  # blocks written in this life, or perhaps in a former one, by serial
        self._writing: Counter[int] = Counter()  # blocks on their way, by serial
        self._free: list[int] = []  # rows within the file
        self._rows = 0
        self._dirty: dict[int, bytes] = {}  # records to be written, by row
        try:
            if not self._load():
                self._begin()
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise DaemonError(f"can't use {path}: {error.strerror}; free space, or set nvme.paths") from error

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def serials(self) -> np.ndarray:
        return np.fromiter(self._keys, np.uint32, len(self._keys))

    # --- start -----------------------------------------------------------------------------------------------

    def _load(self) -> bool:
        """Whether the file is good. What is wrong with one record costs that key."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return False
        header = content[:RECORD_BYTES]
        if len(header) < RECORD_BYTES or not _is_whole(header) or header[:4] != MAGIC:
            self._set_aside("it is damaged")
            return False
        _, version, store, nonce, tag = _HEADER.unpack_from(header)
        if version != VERSION or store != self._store:
            self._set_aside("it is of another store" if version == VERSION else f"it has version {version}")
            return False
        if not self._master.crypto.unseal(self._master.wrapping, nonce, self._header_aad(), tag, b"", bytearray()):
            raise DaemonError(
                f"{self.path} was made with another encryption.key_file than the one that is set: name the former one. "
                f"If it is lost, so are the blocks there: delete {self.path}, and the tier begins empty"
            )
        self._rows = -(-len(content) // RECORD_BYTES)
        for row in range(1, self._rows):
            record = content[row * RECORD_BYTES : (row + 1) * RECORD_BYTES]
            if len(record) < RECORD_BYTES or not _is_whole(record):
                self._free.append(row)
                continue
            serial, tenant, reserved, nonce, wrapped, tag = _RECORD.unpack_from(record)
            key = Key(row, tenant, reserved, nonce, wrapped, tag)
            if serial in self._keys or (plain := self._plain(serial, key)) is None:
                self._free.append(row)  # it was altered, or is a copy, which is not to outlive a shred
                self._dirty[row] = _EMPTY
                continue
            plain[:] = bytes(KEY_BYTES)
            self._keys[serial], self._writes[serial] = key, reserved
            former = self._of.get(tenant)
            if former is None or self._writes[former] >= reserved:  # the one with the least use is the newest
                self._of[tenant] = serial
        return True

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}{SET_ASIDE}{utc_stamp()}")
        self.path.rename(aside)
        self.notes.append(
            f"{self.path}: {why}: blocks that were encrypted with its keys are lost; it is kept as {aside.name}"
        )

    def _begin(self) -> None:
        """A new file, whole or not there."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        tag = self._master.crypto.seal(self._master.wrapping, nonce, self._header_aad(), b"", bytearray())
        new = self.path.with_name(f"{self.path.name}.new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as opened:
            opened.write(_whole(_HEADER.pack(MAGIC, VERSION, self._store, nonce, tag)))
            opened.flush()
            os.fsync(opened.fileno())
        reach("keys_written_before_replace")
        new.rename(self.path)
        sync_folder(self.path.parent)
        reach("keys_replaced")
        self._rows = 1

    def _header_aad(self) -> bytes:
        return MAGIC + VERSION.to_bytes(4, "little") + self._store

    # --- keys ------------------------------------------------------------------------------------------------

    def sealing(self, tenant: bytes, aad: bytes) -> Sealing:
        """For one block of this tenant that is to be written now."""
        serial = self._key_of(tenant)
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Sealing(serial, nonce, self._native(serial, nonce, aad))

    def opening(self, serial: int, nonce: bytes, tag: bytes, aad: bytes) -> _native.Seal | None:
        """For one block that is to be read. None: its key was shredded."""
        return self._native(serial, nonce, aad, tag) if serial in self._keys else None

    def _native(self, serial: int, nonce: bytes, aad: bytes, tag: bytes | None = None) -> _native.Seal:
        plain = self._plain(serial, self._keys[serial])
        assert plain is not None, "it was made here, or opened when it was loaded"
        try:
            return _native.Seal(self._master.crypto, plain, nonce, aad, tag)
        finally:
            plain[:] = bytes(KEY_BYTES)

    def _plain(self, serial: int, key: Key) -> bytearray | None:
        """To be wiped. None: what is in the file is not what was written."""
        plain, aad = bytearray(KEY_BYTES), self._record_aad(serial, key.tenant)
        if self._master.crypto.unseal(self._master.wrapping, key.nonce, aad, key.tag, key.wrapped, plain):
            return plain
        return None

    def over(self, sealing: Sealing) -> None:
        """It is written and counts by its seal, or it is not."""
        if sealing.serial in self._keys:  # or it was shredded meanwhile
            self._writing[sealing.serial] -= 1
            self.drop_unused([sealing.serial])

    def drop_unused(self, serials: Iterable[int]) -> None:
        """Of these keys those that no block needs."""
        for serial in serials:
            if serial in self._keys and not (self._blocks.get(serial) or self._writing[serial]):
                self._drop(serial)

    def _key_of(self, tenant: bytes) -> int:
        """Its serial. One more block is being written with it."""
        serial = self._of.get(tenant)
        if serial is None or self._writes[serial] >= WRITES_MAX:
            row = self._row(tenant)
            if row is None:
                return self._key_of(NOBODY)
            serial = self._made(tenant, row)
        self._writes[serial] += 1
        self._writing[serial] += 1
        key = self._keys[serial]
        if self._writes[serial] > key.reserved:
            self._put(serial, key._replace(reserved=key.reserved + RESERVED))
        return serial

    def _made(self, tenant: bytes, row: int) -> int:
        serial = secrets.randbits(32)
        while serial in self._keys or serial in self._blocks:
            serial = secrets.randbits(32)
        nonce, wrapped = secrets.token_bytes(NONCE_BYTES), bytearray(secrets.token_bytes(KEY_BYTES))
        tag = self._master.crypto.seal(self._master.wrapping, nonce, self._record_aad(serial, tenant), wrapped, wrapped)
        self._put(serial, Key(row, tenant, 0, nonce, bytes(wrapped), tag))
        self._of[tenant], self._writes[serial] = serial, 0
        return serial

    def _row(self, tenant: bytes) -> int | None:
        """For one more key. The last is for those who have no name, who always get one. None: there is no room."""
        kept = int(NOBODY not in self._of)
        if tenant != NOBODY and len(self._keys) + kept >= KEYS_MAX:
            return None
        if self._free:
            return self._free.pop()
        self._rows += 1
        return self._rows - 1

    def _put(self, serial: int, key: Key) -> None:
        self._keys[serial] = key
        fields = _RECORD.pack(serial, key.tenant, key.reserved, key.nonce, key.wrapped, key.tag)
        self._dirty[key.row] = _whole(fields)

    def _drop(self, serial: int) -> None:
        key = self._keys.pop(serial)
        self._dirty[key.row] = _EMPTY
        del self._writes[serial], self._writing[serial]
        self._free.append(key.row)
        if self._of.get(key.tenant) == serial:
            del self._of[key.tenant]

    def _record_aad(self, serial: int, tenant: bytes) -> bytes:
        return self._store + serial.to_bytes(SERIAL_BYTES, "little") + tenant

    # --- end -------------------------------------------------------------------------------------------------

    def shred(self, tenant: bytes) -> int:
        """Nobody opens anything of it from now on; says how many keys it had. For good after a `sync` without an error,
        which overwrites them."""
        serials = [serial for serial, key in self._keys.items() if key.tenant == tenant]
        for serial in serials:
            self._drop(serial)
        self.shredded += len(serials)
        return len(serials)

    def sync(self) -> None:
        """What was made and what was shredded before survives a crash of the machine. OSError: perhaps not; it is all
        written again by the next."""
        taken: dict[int, bytes] = {}
        try:
            for _ in range(len(self._dirty)):
                row, record = self._dirty.popitem()
                taken[row] = record
                if os.pwrite(self._fd, record, row * RECORD_BYTES) != RECORD_BYTES:
                    raise OSError(errno.ENOSPC, "only a part of a record was written")
            if taken:
                reach("keys_written")
                os.fsync(self._fd)
                reach("keys_synced")
        except OSError:
            for row, record in taken.items():
                self._dirty.setdefault(row, record)  # unless it changed again
            raise

    def close(self) -> None:
        """Writes what is left. What the drive doesn't take then is as after a crash."""
        with contextlib.suppress(OSError):
            self.sync()
        os.close(self._fd)


def _whole(fields: bytes) -> bytes:
    """As a record, which proves that it is whole."""
    padded = fields.ljust(RECORD_BYTES - _CRC.size, b"\0")
    return padded + _CRC.pack(_native.crc32c(padded))


def _is_whole(record: bytes) -> bool:
    return any(record) and _CRC.unpack_from(record, RECORD_BYTES - _CRC.size)[0] == _native.crc32c(record[: -_CRC.size])
