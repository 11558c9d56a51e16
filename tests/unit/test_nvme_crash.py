"""The NVMe tier killed at each step (kvtier/failpoint.py): what was acknowledged holds, nothing wrong is read."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from contract.caller import Caller, Stored, key_of, keys_of
from contract.factories import EncryptedNvmeFactory, NvmeFactory

from kvtier.block import SLOT_UNIT
from kvtier.failpoint import POINTS
from kvtier.transfer import Shred

PASSAGES = {
    "catalogue_rebuilt_before_replace": 2,
    "catalogue_replaced": 2,
    "extent_allocated": 2,
    "payload_written": 9,
    "zeroed": 3,
    "keys_written": 2,
    "keys_synced": 2,
}


ERASED = range(100, 104)
SHREDDED = range(110, 112)
TENANT = b"session." + b"tenant.."
OF_KEYS = tuple(point for point in POINTS if point.startswith("keys_"))  # reached where blocks are encrypted
FACTORIES = {"clear": NvmeFactory, "encrypted": EncryptedNvmeFactory}
CASES = [(point, "clear") for point in POINTS if point not in OF_KEYS]
CASES += [(point, "encrypted") for point in (*OF_KEYS, "payload_written", "zeroed", "before_commit", "after_commit")]


@pytest.mark.parametrize(("point", "how"), CASES)
def test_after_a_crash_at_any_step_what_was_acknowledged_holds(point, how, tmp_path):
    for passage in sorted({1, PASSAGES.get(point, 1)}):
        folder = tmp_path / str(passage)
        check_after_crash(folder, said_before_death(folder, point, passage, how), how)


def test_between_its_zeros_and_the_end_of_its_record_a_block_is_a_miss(tmp_path):
    said_before_death(tmp_path, "zeroed", 1)
    caller = Caller(NvmeFactory(), tmp_path)
    (block,) = (block for block in recovered(caller) if block.content == ERASED[0])
    assert caller.is_zero(block) and caller.promote(block).fault == "corrupt"
    caller.erase(block)
    assert block.key not in keys_of(caller.reopen())
    caller.tier.close()


def said_before_death(folder: Path, point: str, passage: int, how: str = "clear") -> str:
    """By a process that was killed there."""
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join([here, *os.environ.get("PYTHONPATH", here).split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": path, "KVTIER_FAILPOINT": f"{point}:kill@{passage}"}
    command = [sys.executable, "-P", __file__, str(folder), how]
    died = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    return died.stdout


def recovered(caller: Caller) -> list[Stored]:
    found = caller.tier.recovered
    numbers = {key_of(number): number for number in range(SHREDDED.stop)}
    rows = zip(keys_of(found), found.places.tolist(), found.checksums.tolist(), strict=True)
    return [Stored(key, place, SLOT_UNIT, 7, 0, checksum, numbers[key]) for key, place, checksum in rows]


def check_after_crash(folder: Path, said: str, how: str) -> None:
    caller = Caller(FACTORIES[how](), folder)
    found = recovered(caller)
    keys = {block.key for block in found}
    for line in said.splitlines():
        verb, number = line.split()
        assert (key_of(int(number)) in keys) == (verb == "durable"), line
    for block in found:
        if block.content in ERASED and caller.is_zero(block):
            assert caller.promote(block).fault == "corrupt"
        else:
            assert caller.comes_back(block)
    caller.tier.close()


def life(folder: Path, how: str) -> None:
    """Of a process that a failpoint ends: says what it was promised."""
    caller = Caller(FACTORIES[how](), folder)
    caller.remember()
    blocks = [caller.demote(key_of(number), number, content=number) for number in range(20)]
    caller.flush()
    say("durable", range(8, 20))  # the first are to be forgotten
    caller.forget(0, 8)
    say("forgotten", range(8))
    doomed = [caller.demote(key_of(number), number, content=number) for number in ERASED]
    caller.flush()
    for block in doomed:
        caller.erase(block)
    say("erased", ERASED)
    if how == "encrypted":
        for number in SHREDDED:
            caller.demote(key_of(number), number, content=number, origin=TENANT)
        caller.flush()
        assert caller.do(Shred(caller.ticket(), TENANT[8:])).shredded == 1
        say("shredded", SHREDDED)
    caller.reopen()
    blocks = blocks[8:] + [caller.demote(key_of(number), number - 50, content=number) for number in range(50, 58)]
    caller.flush()
    say("durable", range(50, 58))
    assert all(caller.comes_back(block) for block in blocks)
    caller.tier.close()


def say(verb: str, numbers: range) -> None:
    for number in numbers:
        print(verb, number, flush=True)


if __name__ == "__main__":
    life(Path(sys.argv[1]), sys.argv[2])
