"""The vault on a drive that is slow, full or broken: nobody hears of it but who syncs, and nothing is lost."""

import errno
import os
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from vaults import AAD, BLUE, GREEN, RED, is_legible, of_file, opened, written

from kvtier.tiers.vault import RECORD_BYTES


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys"


def broken(*_) -> int:
    raise OSError(errno.EIO, "broken")


def cut(*_) -> int:
    return RECORD_BYTES - 1


def test_nothing_is_written_but_by_a_sync_and_by_the_end(path):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    written(vault, RED, blocks)
    assert of_file(path) == []
    vault.sync()
    assert len(of_file(path)) == 1
    written(vault, BLUE, blocks)
    vault.shred(RED)
    assert len(of_file(path)) == 1 and RED in path.read_bytes()
    vault.close()
    assert len(of_file(path)) == 1 and BLUE in path.read_bytes() and RED not in path.read_bytes()


@pytest.mark.parametrize(("call", "fault"), [("pwrite", broken), ("pwrite", cut), ("fsync", broken)])
def test_a_drive_that_fails_is_an_error_of_sync_alone_and_the_next_one_writes_all(path, monkeypatch, call, fault):
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fault)
        for _ in range(3):
            mine = {tenant: written(vault, tenant, blocks) for tenant in (RED, BLUE, GREEN)}
            with pytest.raises(OSError):
                vault.sync()
        assert len(vault) == 3, "no try takes another key"
        assert vault.shred(RED) == 1 and vault.shred(RED) == 0
        with pytest.raises(OSError):
            vault.sync()
    vault.sync()
    assert len(of_file(path)) == 2 and RED not in path.read_bytes()
    again = opened(path, blocks)
    assert [is_legible(again, *mine[tenant]) for tenant in (RED, BLUE, GREEN)] == [False, True, True]
    again.close()
    vault.close()


def test_a_shred_is_written_again_when_the_drive_lost_it_with_a_failed_sync(path, monkeypatch):
    """After an error the kernel takes its pages for clean: the next sync of them succeeds, and writes nothing."""
    blocks: Counter = Counter()
    vault = opened(path, blocks)
    written(vault, RED, blocks)
    vault.sync()
    before = path.read_bytes()
    assert vault.shred(RED) == 1
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(os, "fsync", broken)
        vault.sync()
    path.write_bytes(before)
    vault.sync()
    assert RED in before and of_file(path) == []
    vault.close()


def test_what_changed_while_a_sync_failed_is_what_the_next_one_writes(path, monkeypatch):
    vault = opened(path)
    vault.sealing(RED, AAD)

    def fsync(_) -> None:
        vault.shred(RED)
        broken()

    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(os, "fsync", fsync)
        vault.sync()
    vault.sync()
    assert of_file(path) == []
    vault.close()


def test_an_end_on_a_drive_that_fails_is_an_end(path, monkeypatch):
    vault = opened(path)
    vault.sealing(RED, AAD)
    monkeypatch.setattr(os, "pwrite", broken)
    vault.close()
    assert len(opened(path)) == 0


def test_one_thread_changes_keys_while_another_syncs_and_none_is_lost(path, monkeypatch):
    chance, failing, ended = random.Random(7), random.Random(8), threading.Event()
    real, tenants = os.fsync, [bytes([n]) * 8 for n in range(1, 40)]
    vault = opened(path)
    failed = 0

    def fsync(fd: int) -> None:
        if failing.random() < 0.3:
            broken()
        real(fd)

    def sync() -> None:
        nonlocal failed
        while not ended.is_set():
            try:
                vault.sync()
            except OSError:
                failed += 1

    monkeypatch.setattr(os, "fsync", fsync)
    former, thread = sys.getswitchinterval(), threading.Thread(target=sync)
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        for n in range(20_000):
            if chance.random() < 0.5:
                vault.sealing(chance.choice(tenants), AAD)
            else:
                vault.shred(chance.choice(tenants))
            if n > 2000 and failed > 3:
                break
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(former)
    monkeypatch.undo()
    keys = {serial: key.wrapped for serial, key in vault._keys.items()}
    vault.close()
    again = opened(path)
    assert failed and keys and {serial: key.wrapped for serial, key in again._keys.items()} == keys
    again.close()
