"""The n-th system call on the tier's files fails, for n = 1, 2, 3, ... until none is left: kvtierd goes on, or says at
its start what can't be used. Nothing wrong is served, no slot is lost, RAM is as fast as ever."""

import errno
import random
import shutil
import time
from pathlib import Path

import pytest
from faults import ALLOCATE, ANY_FILE, BLOCKS, CATALOGUE, OPEN, READ, RENAME, SYNC, TRUNCATE, WRITE, Faults
from kvtierd import SLOT, eventually
from load import Talker
from oracle import Model, Oracle
from victim import Victim

from kvtier import observer
from kvtier.block import BELOW

PREPARED = 256  # blocks
HANG_S = 1.0

# (calls, files, fault)
SERVING = {
    "a write of a block, EIO": (WRITE, BLOCKS, {"error": errno.EIO}),
    "a write of a block, ENOSPC": (WRITE, BLOCKS, {"error": errno.ENOSPC}),
    "a write of a block, EINTR": (WRITE, BLOCKS, {"error": errno.EINTR}),
    "a write of a block, EAGAIN": (WRITE, BLOCKS, {"error": errno.EAGAIN}),
    "a write of a block, short": (WRITE, BLOCKS, {"most": 4096}),
    "a read of a block, EIO": (READ, BLOCKS, {"error": errno.EIO}),
    "a read of a block, EINTR": (READ, BLOCKS, {"error": errno.EINTR}),
    "a read of a block, EAGAIN": (READ, BLOCKS, {"error": errno.EAGAIN}),
    "a read of a block, short": (READ, BLOCKS, {"most": 4096}),
    "a sync of blocks, EIO": (SYNC, BLOCKS, {"error": errno.EIO}),
    "a sync of blocks, ENOSPC": (SYNC, BLOCKS, {"error": errno.ENOSPC}),
    "a write of the catalogue, EIO": (WRITE, CATALOGUE, {"error": errno.EIO}),
    "a write of the catalogue, ENOSPC": (WRITE, CATALOGUE, {"error": errno.ENOSPC}),
    "a write of the catalogue, EINTR": (WRITE, CATALOGUE, {"error": errno.EINTR}),
    "a write of the catalogue, EAGAIN": (WRITE, CATALOGUE, {"error": errno.EAGAIN}),
    "a write of the catalogue, short": (WRITE, CATALOGUE, {"most": 100}),
    "a sync of the catalogue, EIO": (SYNC, CATALOGUE, {"error": errno.EIO}),
    "a sync of the catalogue, EINTR": (SYNC, CATALOGUE, {"error": errno.EINTR}),
}
SHORT = ["a read of a block, EIO", "a write of the catalogue, EIO"]

STARTING = {
    "open": (OPEN, (errno.EIO, errno.ENOSPC)),
    "read": (READ, (errno.EIO, errno.EINTR)),
    "write": (WRITE, (errno.EIO, errno.ENOSPC, errno.EINTR)),
    "sync": (SYNC, (errno.EIO, errno.ENOSPC)),
    "truncate": (TRUNCATE, (errno.EIO,)),
    "allocate": (ALLOCATE, (errno.EIO, errno.ENOSPC)),
    "rename": (RENAME, (errno.EIO, errno.ENOSPC)),
}


def settings(tier: Path, capacity: str = "64 MiB") -> dict[str, object]:
    return {"nvme.paths": tier, "nvme.capacity": capacity, "nvme.io": "threads", "nvme.endurance_dwpd": 1000,
            "nvme.stage_deadline_ms": 10_000}  # fmt: skip


class Sweep:
    """A daemon whose calls fail, an engine with blocks on the drive, and blocks in RAM that must stay quick to find."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.victim = Victim(folder, settings(folder / "nvme"))
        self.faults = Faults(library, self.victim, folder / "nvme")
        self.victim.start()
        self.model = Model("model", SLOT)
        self.oracle = Oracle([self.model], False, 1 << 40)
        self.talker = self.join()
        self._chance = random.Random(1)

    def join(self) -> Talker:
        talker = Talker(self.victim, self.model, self.oracle)
        self.model.secret = talker.secret
        return talker

    def use(self) -> float:
        """Writes, reads and commits. Returns how long the slowest lookup in RAM took."""
        self.talker.save_new(4)
        keys = self._chance.sample(sorted(self.model.saved), 128)
        self.talker.ask([key for key, slot in zip(keys, self.talker.where(keys)) if slot == BELOW][:12])
        slowest, until = 0.0, time.monotonic() + 0.1
        newest = sorted(self.model.saved)[-1:]
        while time.monotonic() < until:
            begun = time.monotonic()
            self.talker.where(newest)
            slowest = max(slowest, time.monotonic() - begun)
        observer.flush(self.victim.socket, 30)
        self.talker.hear_answers()
        return slowest

    def fill(self) -> None:
        """All that was saved is on the drive alone."""
        for _ in range(PREPARED // 16):
            self.talker.save_new(16)
            assert observer.flush(self.victim.socket, 30)
        self.restart()

    def restart(self) -> None:
        self.victim.restart()
        self.talker.close()
        self.talker = self.join()

    def recover(self) -> None:
        eventually(lambda: observer.flush(self.victim.socket, 30))
        eventually(lambda: not self.victim.snapshot()["tiers"]["nvme"]["read_only"])

    def end(self) -> None:
        """No slot is lost, and all that is there after a restart is right."""
        self.recover()
        self.talker.ask(sorted(self.model.saved)[:24])
        self.talker.hear_answers()
        self.restart()
        keys = sorted(self.model.saved)
        for i in range(0, len(keys), 24):
            self.talker.ask(keys[i : i + 24])
            self.talker.hear_answers()
        assert not self.oracle.wrong


@pytest.fixture
def sweep(tmp_path, library):
    sweep = Sweep(tmp_path, library)
    try:
        sweep.fill()
        yield sweep
    finally:
        sweep.faults.end()
        sweep.talker.close()
        sweep.victim.kill()


def fail_each(sweep: Sweep, fault: str, most: int) -> int:
    """How many calls were let fail, one after the other, at most that many."""
    calls, files, kind = SERVING[fault]
    for n in range(1, most + 1):
        sweep.faults.set(calls, files, first=n, times=1, **kind)
        assert sweep.use() < HANG_S, (fault, n)
        assert not sweep.victim.has_ended(), (fault, n, sweep.victim.status, sweep.victim.said()[-2000:])
        hit = sweep.faults.hit
        sweep.faults.end()
        sweep.recover()
        assert not sweep.oracle.wrong, (fault, n)
        if not hit:
            return n - 1
    return most


def give_all_back(sweep: Sweep) -> None:
    """The engine's cache is reset and it leaves: every slot is free again."""
    sweep.talker.reset()
    sweep.talker.close()
    eventually(lambda: sweep.victim.cpu()["used_bytes"] == 0)
    held = sweep.victim.cpu()
    assert held["leased_bytes"] == held["lent_bytes"] == held["blocks"] == 0


@pytest.mark.parametrize("fault", SHORT)
def test_a_call_fails_while_it_serves(sweep, fault):
    assert fail_each(sweep, fault, 2) == 2
    sweep.end()
    give_all_back(sweep)


@pytest.mark.long
@pytest.mark.parametrize("fault", SERVING)
def test_each_call_in_turn_fails_while_it_serves(sweep, fault):
    print(f"{fault}: {fail_each(sweep, fault, 40)} calls failed, one after the other")
    sweep.end()
    give_all_back(sweep)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder that a daemon left, and what was saved there."""
    folder = tmp_path_factory.mktemp("prepared")
    with Victim(folder, settings(folder / "nvme")) as victim:
        model = Model("model", SLOT)
        talker = Talker(victim, model, Oracle([model], False, 1 << 40))
        model.secret = talker.secret
        for _ in range(PREPARED // 16):
            talker.save_new(16)
            assert observer.flush(victim.socket, 30)
        talker.close()
    return folder / "nvme", model.saved


class Start:
    """One start on a copy of the prepared folder, in which a call fails."""

    def __init__(
        self, folder: Path, library: Path, prepared: tuple[Path, set[bytes]] | None, was_larger: bool = False
    ) -> None:
        self.tier = folder / "nvme"
        shutil.rmtree(self.tier, ignore_errors=True)
        self.saved: set[bytes] = set()
        if prepared is not None:
            shutil.copytree(prepared[0], self.tier)
            self.saved = prepared[1]
        if was_larger:
            with Victim(folder, settings(self.tier, "96 MiB")):
                pass
        self.victim = Victim(folder, settings(self.tier))
        self.faults = Faults(library, self.victim, self.tier)

    def found(self) -> int:
        """How many of the blocks are offered; each is compared."""
        model = Model("model", SLOT)
        oracle = Oracle([model], False, 1 << 40)
        talker = Talker(self.victim, model, oracle)
        keys = sorted(self.saved)
        for i in range(0, len(keys), 24):
            talker.ask(keys[i : i + 24])
            talker.hear_answers()
        talker.close()
        assert not oracle.wrong
        return oracle.served

    def try_it(self, calls: int, error: int, n: int) -> tuple[int, bool]:
        """How many calls failed, and whether the daemon started all the same."""
        before = self.victim.said() if self.victim.log.exists() else ""
        self.faults.set(calls, ANY_FILE, error=error, first=n, times=1)
        started = self.victim.begin() is not None
        hit = self.faults.hit
        self.faults.end()
        said = self.victim.said()[len(before) :]
        if started:
            self.found()
        else:
            assert self.victim.status == 2, (self.victim.status, said)
            last = said.rstrip().rpartition("\n")[2]
            assert last.startswith("kvtierd: ") and ("nvme." in last), said
        self.victim.kill()
        return hit, started


def start_each(folder, library, prepared, calls: int, error: int, only: range) -> tuple[int, int, list[int]]:
    """How many calls were let fail, how many of these starts were refused, how many blocks were there after each."""
    refused, left = 0, []
    for n in only:
        start = Start(folder, library, prepared, was_larger=calls == TRUNCATE)
        try:
            hit, started = start.try_it(calls, error, n)
            if not hit:
                break
            refused += not started
            start.victim.start()
            left.append(start.found())
        finally:
            start.victim.kill()
    return len(left), refused, left


@pytest.mark.parametrize("call", ["write", "allocate"])
def test_a_call_fails_at_start(tmp_path, library, prepared, call):
    calls, errors = STARTING[call]
    failed, _, _ = start_each(tmp_path, library, prepared, calls, errors[0], range(1, 2))
    assert failed == 1


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("call", STARTING)
def test_each_call_in_turn_fails_at_start(tmp_path, library, prepared, call, is_new):
    calls, errors = STARTING[call]
    for error in errors:
        folder = None if is_new else prepared
        failed, refused, left = start_each(tmp_path, library, folder, calls, error, range(1, 100))
        print(f"{call} of a {'new' if is_new else 'used'} folder, {errno.errorcode[error]}: {failed} failed, "
              f"{refused} starts refused, {left.count(PREPARED)} times all blocks were there later")  # fmt: skip
