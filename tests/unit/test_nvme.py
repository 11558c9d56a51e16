"""The NVMe tier under faults: what it refuses and for how long, and what it keeps."""

import errno
import json
import os
import queue
import time
from collections.abc import Callable, Iterator

import lmdb
import pytest
from contract.caller import Caller, key_of, keys_of
from contract.factories import NvmeFactory

from kvtier.block import SLOT_UNIT
from kvtier.errors import DaemonError
from kvtier.tiers import commits, nvme
from kvtier.transfer import Demote, Erase, Flush, Forget, Remember

A, B, C = (key_of(number) for number in range(3))
OVER_WITHIN_S = 5  # a fault is over when its cause is


@pytest.fixture
def caller(tmp_path) -> Iterator[Caller]:
    caller = Caller(NvmeFactory(), tmp_path / "life0")
    caller.remember()
    yield caller
    caller.tier.close()


def refused(caller: Caller) -> set[str]:
    """The faults of everything that writes."""
    ticket = caller.ticket
    return {
        caller.do(transfer).fault
        for transfer in (
            Demote(ticket(), C, 0, 500, SLOT_UNIT, 7, 0),
            Forget(ticket(), 300, 301),
            Erase(ticket(), 400, SLOT_UNIT),
            Remember(ticket(), b"r" * 32, 9, 0),
        )
    }


def becomes_writable(caller: Caller) -> bool:
    until = time.monotonic() + OVER_WITHIN_S
    while caller.tier.read_only and time.monotonic() < until:
        time.sleep(0.02)
        caller.collect()
    return not caller.tier.read_only


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_, **__) -> None:
        raise error

    return fail


def test_a_catalogue_that_was_removed_is_missed(caller):
    caller.demote(A, 0, content=1)
    caller.flush()
    caller.tier.close()
    (caller.tier._files.paths[0] / "catalogue.mdb").unlink()
    assert keys_of(caller.reopen()) == []
    assert caller.tier.state()["quarantined"] == 1
    assert any("catalogue.mdb is missing" in note for note in caller.tier.notes)


# --- the drive -----------------------------------------------------------------------------------------------


def test_a_full_drive_is_a_fault_and_over_by_itself(caller, monkeypatch):
    block = caller.demote(A, 0, content=1)
    with open("/dev/full", "r+b", buffering=0) as full, monkeypatch.context() as patched:
        patched.setattr(caller.tier._files, "locate", lambda *_: (full.fileno(), 0))
        assert caller.do(Demote(caller.ticket(), B, 0, 1, SLOT_UNIT, 7, 0)).fault == "full"
    assert caller.tier.read_only and refused(caller) == {"full"}
    assert caller.comes_back(block)
    assert becomes_writable(caller)
    assert caller.comes_back(caller.demote(C, 2, content=3))
    assert caller.tier.state()["failed_writes"] == 1


def test_a_broken_drive_is_a_fault_of_reads_too_but_no_loss(caller, monkeypatch):
    block = caller.demote(A, 0, content=1)
    with open(os.devnull, "rb") as broken, monkeypatch.context() as patched:
        patched.setattr(caller.tier._files, "locate", lambda *_: (broken.fileno(), 0))
        assert caller.promote(block).fault == "io"
        assert not caller.tier.read_only
        assert caller.do(Demote(caller.ticket(), B, 0, 1, SLOT_UNIT, 7, 0)).fault == "io"
        assert caller.tier.read_only
    assert caller.comes_back(block)
    caller.flush()
    assert keys_of(caller.crash()) == [A]


def test_an_erase_that_the_drive_refuses_is_a_fault_and_works_when_it_is_said_again(caller, monkeypatch):
    block, other = caller.demote(A, 0, 4, content=1), caller.demote(B, 4, 4, content=2)
    caller.flush()
    with open("/dev/full", "r+b", buffering=0) as full, monkeypatch.context() as patched:
        patched.setattr(caller.tier._files, "locate", lambda *_: (full.fileno(), 0))
        assert caller.wait(caller.start_erase(block)).fault == "full"
    assert caller.tier.read_only and caller.wait(caller.start_erase(block)).fault == "full"
    assert caller.lies_there(block) and caller.tier.state()["failed_writes"] == 1
    assert becomes_writable(caller)
    caller.erase(block)
    assert caller.is_zero(block) and caller.comes_back(other)
    assert caller.tier.state()["erased_bytes"] == block.size
    assert keys_of(caller.crash()) == [B]


def test_an_erase_of_a_block_as_large_as_an_extent(caller):
    block = caller.demote(A, 32, caller.tier.extent_bytes // SLOT_UNIT, content=1)
    caller.erase(block)
    assert caller.is_zero(block)


# --- the catalogue -------------------------------------------------------------------------------------------

FAULTS = {
    "sync": ("_files", "sync", OSError(errno.EIO, "Input/output error"), "io"),
    "sync finds no room": ("_files", "sync", OSError(errno.EDQUOT, "Disk quota exceeded"), "full"),
    "commit": ("_catalogue", "commit", lmdb.Error("mdb_txn_commit: Input/output error"), "io"),
    "commit finds no room": ("_catalogue", "commit", lmdb.DiskError("mdb_txn_commit: No space left on device"), "full"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_after_a_failed_commit_nothing_is_taken_until_it_works(caller, monkeypatch, case):
    part, verb, error, fault = FAULTS[case]
    block = caller.demote(A, 0, content=1)
    with monkeypatch.context() as patched:
        patched.setattr(getattr(caller.tier, part), verb, raising(error))
        late = caller.demote(B, 1, content=2)
        assert caller.do(Flush(caller.ticket())).fault == fault
        assert caller.tier.read_only and refused(caller) == {fault}
        assert caller.comes_back(block) and caller.comes_back(late)
        assert caller.tier.state()["records_waiting"] > 0
    assert becomes_writable(caller)
    caller.flush()
    assert keys_of(caller.crash()) == [A, B]


def test_a_forget_that_failed_may_happen_later_but_in_its_order(caller, monkeypatch):
    caller.demote(A, 0, content=1)
    with monkeypatch.context() as patched:
        patched.setattr(caller.tier._catalogue, "commit", raising(lmdb.Error("mdb_txn_commit: Input/output error")))
        assert caller.do(Forget(caller.ticket(), 0, 32)).fault == "io"
    assert becomes_writable(caller)
    caller.forget(0, 32)
    caller.demote(B, 0, content=2)
    caller.flush()
    assert keys_of(caller.crash()) == [B]


@pytest.mark.parametrize("case", FAULTS)
def test_an_erase_whose_commit_failed_has_overwritten_the_bytes_and_works_when_it_is_said_again(caller, monkeypatch, case):
    part, verb, error, fault = FAULTS[case]
    block = caller.demote(A, 0, content=1)
    caller.flush()
    with monkeypatch.context() as patched:
        patched.setattr(getattr(caller.tier, part), verb, raising(error))
        assert caller.wait(caller.start_erase(block)).fault == fault
        assert caller.is_zero(block)
        assert keys_of(caller.crash()) == [A] and caller.promote(block).fault == "corrupt"
    assert becomes_writable(caller)
    caller.erase(block)
    assert keys_of(caller.crash()) == []


def test_a_full_catalogue_is_a_fault_and_over_when_there_is_room(tmp_path):
    caller = Caller(NvmeFactory(map_bytes_max=48 * 1024), tmp_path / "life0")
    caller.remember()
    blocks = []
    while not caller.tier.read_only:
        assert len(blocks) < 512, "never full"
        blocks.append(caller.demote(key_of(len(blocks)), len(blocks), content=len(blocks)))
        caller.do(Flush(caller.ticket()))
    assert refused(caller) == {"full"} and caller.comes_back(blocks[0])
    caller.tier._catalogue.map_bytes_max = 1024**2
    assert becomes_writable(caller)
    caller.factory.more.clear()
    assert keys_of(caller.reopen()) == [block.key for block in blocks]
    caller.tier.close()


def test_a_panic_of_the_catalogue_is_over_with_a_new_environment(caller):
    class Panicked:
        def __init__(self, env: lmdb.Environment) -> None:
            self.close = env.close

        begin = raising(lmdb.PanicError("mdb_txn_begin: Update of meta page failed"))

    caller.demote(A, 0)
    caller.flush()
    caller.tier._catalogue._env = Panicked(caller.tier._catalogue._env)
    caller.demote(B, 1)
    caller.do(Flush(caller.ticket()))
    assert becomes_writable(caller) and caller.tier.state()["failed_commits"] == 1
    caller.flush()
    assert keys_of(caller.crash()) == [A, B]


def test_a_damaged_catalogue_is_set_aside_and_only_reads_go_on_until_a_restart(caller, monkeypatch):
    block = caller.demote(A, 0, content=1)
    caller.flush()
    with monkeypatch.context() as patched:
        patched.setattr(
            caller.tier._catalogue, "_write", raising(lmdb.CorruptedError("mdb_put: Located page was wrong type"))
        )
        caller.demote(B, 1)
        assert caller.do(Flush(caller.ticket())).fault == "io"
    time.sleep(1.5 * commits.RETRY_S)
    caller.collect()
    assert caller.tier.read_only and refused(caller) == {"io"}
    assert caller.do(Flush(caller.ticket())).fault == "io"
    assert caller.comes_back(block)
    state = caller.tier.state()
    assert state["quarantined"] == 1 and "until restart" in state["reason"] and "wrong type" in caller.tier.notes[0]
    assert keys_of(caller.reopen()) == []
    assert not caller.tier.read_only


# --- commits in groups ---------------------------------------------------------------------------------------


class Gate:
    """Holds the sync of the drives until it is opened."""

    def __init__(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.passed = 0
        self.synced: set[int] = set()  # drives
        self._sync = caller.tier._files.sync
        monkeypatch.setattr(caller.tier._files, "sync", self._pass)

    def _pass(self, drives: set[int]) -> None:
        self._open.get(timeout=30)
        self.passed += 1
        self.synced |= drives
        self._sync(drives)

    def open(self) -> None:
        for _ in range(100):
            self._open.put(None)


def test_records_that_nobody_waits_for_are_gathered(caller, monkeypatch):
    monkeypatch.setattr(commits, "GATHER_S", 60.0)
    gate = Gate(caller, monkeypatch)
    gate.open()
    for n in range(50):
        caller.demote(key_of(n), n)
    assert gate.passed == 0
    caller.flush()
    assert gate.passed == 1


def test_no_erase_waits_until_records_are_gathered(caller, monkeypatch):
    caller.flush()
    monkeypatch.setattr(commits, "GATHER_S", 60.0)
    block = caller.demote(A, 0)
    caller.demote(B, 1)
    caller.collect()
    caller.erase(block)
    assert caller.tier.state()["durable_blocks"] == 1


def test_many_erases_share_commits(caller, monkeypatch):
    blocks = [caller.demote(key_of(n), n) for n in range(200)]
    caller.flush()
    gate = Gate(caller, monkeypatch)
    tickets = [caller.start_erase(block) for block in blocks]
    while caller.tier.state()["writes_pending"]:
        caller.collect()
    gate.open()
    assert {caller.wait(ticket).fault for ticket in tickets} == {""}
    assert gate.passed <= 2


def test_no_record_of_an_erased_block_goes_before_its_zeros_are_on_the_drive(caller, monkeypatch):
    block = caller.demote(A, 0)
    caller.flush()
    gate = Gate(caller, monkeypatch)
    erase = caller.start_erase(block)
    time.sleep(0.2)
    caller.collect()
    assert erase not in caller.finished and caller.tier.state()["durable_blocks"] == 1
    gate.open()
    assert not caller.wait(erase).fault
    assert caller.tier.state()["durable_blocks"] == 0 and gate.synced == {0}


def test_what_comes_during_a_commit_shares_the_next(caller, monkeypatch):
    gate = Gate(caller, monkeypatch)
    caller.demote(key_of(50), 50)
    caller.start(Flush(caller.ticket()))
    for n in range(50):
        caller.demote(key_of(n), n)  # none waits for the catalogue
    gate.open()
    caller.flush()
    assert gate.passed == 2


def test_no_record_is_committed_before_its_bytes_are_on_the_drive(caller, monkeypatch):
    gate = Gate(caller, monkeypatch)
    caller.demote(A, 0)
    assert keys_of(caller.tier.recovered) == []
    flush = caller.start(Flush(caller.ticket()))
    time.sleep(0.2)
    caller.collect()
    assert flush not in caller.finished and caller.tier.state()["durable_blocks"] == 0
    gate.open()
    assert not caller.wait(flush).fault
    assert caller.tier.state()["durable_blocks"] == 1


def test_what_waits_for_commits_is_bounded(caller, monkeypatch):
    monkeypatch.setattr(nvme, "WAITING_MAX", 10)
    gate = Gate(caller, monkeypatch)
    for n in range(10):
        caller.demote(key_of(n), n)
    assert caller.tier.read_only and refused(caller) == {"full"}
    gate.open()
    caller.flush()
    assert not caller.tier.read_only


def test_close_gives_up_on_a_catalogue_that_fails(caller, monkeypatch):
    caller.demote(A, 0)
    monkeypatch.setattr(caller.tier._catalogue, "commit", raising(lmdb.Error("mdb_txn_commit: Input/output error")))
    flush = caller.start(Flush(caller.ticket()))
    before = time.monotonic()
    caller.tier.close()
    caller.collect()
    assert caller.finished[flush].fault == "io"
    assert time.monotonic() - before < 1


# --- state ---------------------------------------------------------------------------------------------------


def test_state_counts_what_happened_in_json(caller):
    block = caller.demote(A, 0, 2)
    caller.flush()
    caller.promote(block)
    caller.factory.flip_bit(caller.tier, 0, 5)
    caller.promote(block)
    state = json.loads(json.dumps(caller.tier.state()))
    counted = {
        "written_bytes": 2 * SLOT_UNIT, "read_bytes": 4 * SLOT_UNIT, "durable_blocks": 1, "corrupt_blocks": 1,
        "read_only": False, "reason": "", "records_waiting": 0, "reads_pending": 0, "writes_pending": 0,
        "failed_reads": 0, "failed_writes": 0, "quarantined": 0, "bad_records": 0, "capacity_bytes": 32 * 1024**2,
    }  # fmt: skip
    assert {name: state[name] for name in counted} == counted
    assert state["disk_bytes"] > state["capacity_bytes"] and len(state["drives"]) == 1


def test_an_unknown_way_of_io_is_said_with_its_setting(tmp_path):
    with pytest.raises(DaemonError, match=r"nvme\.io = .*set it to \"auto\""):
        Caller(NvmeFactory(io="floppy"), tmp_path)
