"""The NVMe tier with a master key: nothing on the drive can be read, changed or put elsewhere; a tenant can be shredded."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from contract.caller import NAMESPACE, Caller, Stored, bytes_of, key_of, keys_of
from contract.factories import EncryptedNvmeFactory, NvmeFactory
from kvtierd import PATIENCE_S

from kvtier import _native
from kvtier.block import SLOT_UNIT
from kvtier.errors import DaemonError
from kvtier.tiers.catalogue_reader import RECORDS, SEALED
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.vault import NOBODY
from kvtier.transfer import Flush, Promote, Shred

A, B, C = (key_of(number) for number in range(3))
RED, BLUE = b"session." + b"red.....", b"session." + b"blue...."


@pytest.fixture
def caller(tmp_path) -> Iterator[Caller]:
    caller = Caller(EncryptedNvmeFactory(), tmp_path / "life0")
    caller.remember()
    yield caller
    caller.tier.close()


def folder_of(caller: Caller) -> Path:
    return caller.tier._files.paths[0]


def shred(caller: Caller, origin: bytes) -> int:
    done = caller.do(Shred(caller.ticket(), origin[8:]))
    assert not done.fault
    return done.shredded


def keys(caller: Caller) -> int:
    found = caller.tier.state()["tenant_keys"]
    assert isinstance(found, int)
    return found


def opened(folder: Path) -> lmdb.Environment:
    return lmdb.open(str(folder / "catalogue.mdb"), subdir=False, lock=False, max_dbs=4)


def change_record(folder: Path, place: int, at: int, value: bytes, to: int | None = None) -> None:
    """In the catalogue, with a crc that fits: as somebody does who can write there. `to`: another place."""
    with opened(folder) as env:
        table = env.open_db(SEALED, create=False)
        with env.begin(write=True, db=table) as txn:
            old, new = place.to_bytes(4, "big"), (place if to is None else to).to_bytes(4, "big")
            row = bytearray(txn.get(old))
            row[at : at + len(value)] = value
            row[-4:] = _native.crc32c(new + bytes(row[:-4])).to_bytes(4, "little")
            if new != old:
                txn.delete(old)
            txn.put(new, bytes(row))


# --- what lies there ---------------------------------------------------------------------------------------------


def test_no_byte_of_a_block_stands_on_the_drive(caller):
    """Not in the payload, not in the catalogue: not even sixteen of them in a row."""
    block = caller.demote(A, 0, 4, content=1, origin=RED)
    caller.flush()
    content = bytes_of(1, block.size)
    on_disk = b"".join(file.read_bytes() for file in folder_of(caller).iterdir())
    assert not any(content[at : at + 16] in on_disk for at in range(0, len(content), 4096))
    raw = caller.raw(block)
    assert any(raw) and sum(one == other for one, other in zip(raw, content)) < len(raw) / 100
    assert caller.tier.state()["encrypted"] is True


def test_the_root_secret_doesn_t_stand_on_the_drive_and_is_the_same_in_the_next_life(caller):
    """Whoever has it can find out whether he has guessed what somebody said."""
    root = caller.tier.root
    assert len(root) == 32 and root not in (folder_of(caller) / "catalogue.mdb").read_bytes()
    caller.reopen()
    assert caller.tier.root == root


def test_the_same_content_twice_is_not_the_same_on_the_drive(caller):
    assert caller.raw(caller.demote(A, 0, content=1)) != caller.raw(caller.demote(B, 1, content=1))


def test_blocks_of_each_tenant_come_back_before_and_after_a_restart_and_a_crash(caller):
    blocks = [caller.demote(key_of(n), n, content=n, origin=origin) for n, origin in enumerate((b"", RED, BLUE, RED, b""))]
    assert keys(caller) == 3 and all(caller.comes_back(block) for block in blocks)
    caller.flush()
    for another_life in (caller.reopen, caller.crash):
        assert sorted(keys_of(another_life())) == sorted(block.key for block in blocks)
        assert keys(caller) == 3 and caller.tier.notes == []
        assert all(caller.comes_back(block) for block in blocks)


def test_a_key_goes_with_its_last_block(caller):
    red = caller.demote(A, 0, content=1, origin=RED)
    caller.demote(B, 40, content=2, origin=BLUE)
    caller.erase(red)
    assert keys(caller) == 1
    caller.forget(32, 64)
    assert keys(caller) == 0
    caller.flush()
    assert keys_of(caller.reopen()) == [] and keys(caller) == 0


# --- what is changed there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 2 * SLOT_UNIT, 4 * SLOT_UNIT - 1])
def test_a_flipped_bit_is_a_block_that_is_lost_and_no_byte_of_it_is_given(caller, offset):
    block = caller.demote(A, 0, 4, content=1)
    caller.factory.flip_bit(caller.tier, 0, offset)
    done = caller.promote(block)
    assert done.fault == "corrupt" and not any(caller.factory.memory(100, block.size))
    assert caller.tier.state()["corrupt_blocks"] == 1


def test_bytes_that_were_put_in_another_place_are_nobody_s(caller):
    """Two blocks of one tenant change places, bytes and records."""
    one, other = caller.demote(A, 0, content=1), caller.demote(B, 1, content=2)
    caller.flush()
    caller.tier.close()
    payload = folder_of(caller) / "blocks"
    content = payload.read_bytes()
    with payload.open("r+b") as opened:
        opened.write(content[SLOT_UNIT : 2 * SLOT_UNIT] + content[:SLOT_UNIT])
    change_record(folder_of(caller), 0, 0, b"", to=2)
    change_record(folder_of(caller), 1, 0, b"", to=0)
    change_record(folder_of(caller), 2, 0, b"", to=1)
    assert sorted(keys_of(caller.reopen())) == sorted([A, B]), "their records look good"
    for block, place in ((one, 1), (other, 0)):
        moved = Stored(**(vars(block) | {"place": place}))
        assert caller.promote(moved).fault == "corrupt"


@pytest.mark.parametrize(
    ("what", "at", "value"),
    [("key", 0, C), ("nonce", 68, b"x"), ("tag", 80, b"x")],
    ids=["key", "nonce", "tag"],
)
def test_a_record_that_was_changed_opens_nothing(caller, what, at, value):
    block = caller.demote(A, 0, content=1)
    caller.flush()
    caller.tier.close()
    change_record(folder_of(caller), 0, at, value)
    (key,) = keys_of(caller.reopen())
    assert key == (C if what == "key" else A)
    assert caller.promote(Stored(**(vars(block) | {"key": key}))).fault == "corrupt"


def test_whoever_asks_with_another_namespace_gets_nothing(caller):
    block = caller.demote(A, 0, content=1)
    order = Promote(caller.ticket(), A, 100, 0, block.size, block.checksum, NAMESPACE + 1)
    assert caller.do(order).fault == "corrupt"


def test_a_record_in_the_clear_is_not_believed(caller):
    """It would prove itself by a checksum that everybody can make."""
    caller.demote(A, 0, content=1)
    caller.flush()
    caller.tier.close()
    with opened(folder_of(caller)) as env, env.begin(write=True) as txn:
        row = txn.get((0).to_bytes(4, "big"), db=env.open_db(SEALED, txn=txn))[:64]
        crc = _native.crc32c((1).to_bytes(4, "big") + row).to_bytes(4, "little")
        txn.put((1).to_bytes(4, "big"), row + crc, db=env.open_db(RECORDS, txn=txn))
    assert caller.reopen().places.tolist() == [0]


# --- who is forgotten --------------------------------------------------------------------------------------------


def test_what_is_shredded_can_be_read_neither_there_nor_from_a_copy_that_was_made_before(caller, tmp_path):
    red, blue = caller.demote(A, 0, content=1, origin=RED), caller.demote(B, 1, content=2, origin=BLUE)
    caller.flush()
    copy = tmp_path / "copy" / "drive0"
    shutil.copytree(folder_of(caller), copy)
    assert shred(caller, RED) == 1
    assert caller.promote(red).fault == "corrupt" and caller.comes_back(blue)
    assert caller.tier.state()["shredded_blocks"] == 1 and caller.tier.state()["corrupt_blocks"] == 0
    shutil.copyfile(folder_of(caller) / "keys", copy / "keys")
    thief = Caller(EncryptedNvmeFactory(), tmp_path / "copy")
    assert keys_of(thief.tier.recovered) == [B] and thief.comes_back(blue)
    thief.tier.close()


def test_a_shredded_tenant_has_another_key_from_then_on(caller):
    red = caller.demote(A, 0, content=1, origin=RED)
    assert shred(caller, RED) == 1
    later = caller.demote(B, 1, content=2, origin=RED)
    assert caller.comes_back(later) and not caller.comes_back(red)
    caller.flush()
    assert keys_of(caller.crash()) == [B] and caller.comes_back(later)


def test_of_a_tenant_that_has_nothing_nothing_is_shredded_and_nobody_else_loses_anything(caller):
    block = caller.demote(A, 0, content=1)
    assert shred(caller, RED) == 0
    assert caller.comes_back(block)


def test_a_shred_survives_a_crash_the_moment_it_is_through(caller):
    caller.demote(A, 0, content=1, origin=RED)
    caller.flush()
    shred(caller, RED)
    assert keys_of(caller.crash()) == [] and keys(caller) == 0


def test_a_shred_whose_sync_fails_is_a_fault_and_says_how_many_when_it_is_said_again(caller, monkeypatch):
    caller.demote(A, 0, content=1, origin=RED)
    caller.flush()
    with monkeypatch.context() as patched:
        patched.setattr(caller.tier._vault, "sync", broken)
        assert caller.do(Shred(caller.ticket(), RED[8:])).fault == "io"
    recover(caller)
    assert shred(caller, RED) == 1


def broken() -> None:
    raise OSError(5, "broken")


def full(*_) -> int:
    raise OSError(errno.ENOSPC, "full")


def recover(caller: Caller) -> None:
    """Until the drive takes what it is given."""
    until = time.monotonic() + PATIENCE_S
    while caller.tier.read_only and time.monotonic() < until:
        time.sleep(0.02)
        caller.collect()


def test_a_tenant_whose_first_key_found_no_room_can_be_shredded_when_there_is_some(caller, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        red = caller.demote(A, 0, content=1, origin=RED)
        assert caller.do(Flush(caller.ticket())).fault == "full" and caller.tier.read_only
        assert caller.do(Shred(caller.ticket(), RED[8:])).fault == "full"
        assert caller.comes_back(red), "it was not done"
    recover(caller)
    assert shred(caller, RED) == 1 and not caller.comes_back(red)
    assert keys_of(caller.crash()) == []


def test_nobody_waits_for_a_drive_that_takes_its_time_but_who_wants_to_know_that_a_shred_is_done(caller, monkeypatch):
    real, may_go_on, writes = os.pwrite, threading.Event(), []

    def slow(fd: int, data: bytes, offset: int) -> int:
        writes.append(offset)
        assert may_go_on.wait(PATIENCE_S)
        return real(fd, data, offset)

    caller.demote(A, 0, content=1, origin=RED)
    caller.flush()
    monkeypatch.setattr(os, "pwrite", slow)
    ticket = caller.start(Shred(caller.ticket(), RED[8:]))
    blue = caller.demote(B, 1, content=2, origin=BLUE)
    assert caller.comes_back(blue), "a new key is made, and used"
    until = time.monotonic() + PATIENCE_S
    while not writes and time.monotonic() < until:
        time.sleep(0.01)
    caller.collect()
    assert writes and not may_go_on.is_set() and ticket not in caller.finished
    may_go_on.set()
    assert caller.wait(ticket).shredded == 1
    caller.flush()
    assert keys_of(caller.crash()) == [B] and caller.comes_back(blue)


def test_in_the_clear_there_is_nothing_to_shred(tmp_path):
    caller = Caller(NvmeFactory(), tmp_path / "life0")
    caller.remember()
    block = caller.demote(A, 0, content=1, origin=RED)
    assert shred(caller, RED) == 0 and caller.comes_back(block)
    caller.tier.close()


# --- keys that are not there -------------------------------------------------------------------------------------


def test_another_key_file_is_refused_and_nothing_is_lost(caller):
    block = caller.demote(A, 0, content=1)
    caller.flush()
    caller.tier.close()
    for more, said in (({}, "encryption.key_file"), ({"master": MasterKey(b"x" * 32)}, "another encryption.key_file")):
        factory = NvmeFactory(**more)
        with pytest.raises(DaemonError, match=said):
            factory.make(caller.factory.folder)
    assert keys_of(caller.reopen()) == [A] and caller.comes_back(block)


def test_who_begins_to_encrypt_begins_empty_and_leaves_nothing_in_the_clear(tmp_path):
    caller = Caller(NvmeFactory(), tmp_path / "life0")
    caller.remember()
    caller.demote(A, 0, content=1)
    caller.flush()
    caller.tier.close()
    left = ("blocks.set-aside-1", "catalogue.mdb.set-aside-1", "catalogue.mdb.corrupt-1", "somebody's")
    for name in left:
        (folder_of(caller) / name).write_bytes(bytes_of(1, SLOT_UNIT))
    factory = EncryptedNvmeFactory()
    tier = factory.make(tmp_path / "life0")
    assert keys_of(tier.recovered) == [] and ["in the clear are deleted" in note for note in tier.notes] == [True]
    assert [name for name in left if (folder_of(caller) / name).exists()] == ["somebody's"]
    (folder_of(caller) / "somebody's").unlink()
    on_disk = b"".join(file.read_bytes() for file in tier._files.paths[0].iterdir())
    assert bytes_of(1, SLOT_UNIT)[:16] not in on_disk
    tier.close()
    tier = factory.make(tmp_path / "life0")
    assert tier.notes == []
    tier.close()


def test_keys_that_were_removed_cost_the_blocks_and_nothing_else(caller):
    caller.demote(A, 0, content=1)
    caller.flush()
    caller.tier.close()
    (folder_of(caller) / "keys").unlink()
    assert keys_of(caller.reopen()) == []
    assert caller.comes_back(caller.demote(B, 0, content=2))


def test_blocks_of_nobody_have_a_key_too(caller):
    caller.demote(A, 0, content=1)
    assert caller.tier._vault._of.keys() == {NOBODY}
