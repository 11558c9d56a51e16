"""Calibration: what is measured is what the machine does, and nothing stays behind; what is kept is believed with care."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvtier import calibration, measuring
from kvtier.calibration import (
    FILE,
    MACHINES_MAX,
    NVME,
    PREFILLS_MAX,
    PRIORS,
    REMOTE,
    REMOTES_MAX,
    Calibration,
    Drive,
    Speed,
    load,
    machine_of,
    measured_beside,
    save,
)
from kvtier.estimators import Link

SHORT_S = 0.15
LINK = {"latency_us": 500, "bytes_per_s": 1_500_000_000, "samples": 40}
COUNTS = {"step_ns": 8_000_000, "token_ps": 26_000_000, "pair_fs": 600_000, "chunk_tokens": 8192, "steps": 40}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def drive(tmp_path) -> Path:
    made = tmp_path / "drive"
    made.mkdir()
    return made


def measured(machine: dict[str, str], at: float = 1.0, gb_s: float = 3.0) -> Calibration:
    speed = Speed(0.001, gb_s * 1e9)
    return Calibration(dict(machine), at=at, seconds=2.0, links={NVME: speed}, drives=[Drive("/one", speed, speed)])


# --- what is measured ----------------------------------------------------------------------------------------


def test_copy_and_drive_are_measured_and_nothing_stays_behind(drive):
    found = measuring.measure([drive], SHORT_S)
    assert found.is_measured and found.machine == machine_of([drive])
    assert found.notes == []
    (of_drive,) = found.drives
    assert of_drive.path == str(drive) and found.link(NVME) == of_drive.read
    for speed in (*found.links.values(), of_drive.write):
        assert 1e7 < speed.bytes_per_s < 1e12 and 0 < speed.latency_s < 1
    assert list(drive.iterdir()) == []


def test_several_drives_are_measured_each_and_together(drive, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    found = measuring.measure([drive, other], 2 * SHORT_S)
    assert [one.path for one in found.drives] == [str(drive), str(other)]
    assert found.link(NVME) not in [one.read for one in found.drives]
    assert found.link(NVME).latency_s == max(one.read.latency_s for one in found.drives)


def test_without_drives_the_copy_is_measured(tmp_path):
    found = measuring.measure([], SHORT_S)
    assert set(found.links) == {"cpu"} and found.link(NVME) == PRIORS[NVME]


def test_it_takes_about_as_long_as_it_may(drive):
    begun = time.monotonic()
    found = measuring.measure([drive], 1.0)
    assert 0.3 < found.seconds <= time.monotonic() - begun < 10


def test_a_folder_that_is_not_there_leaves_a_note_and_is_not_made(drive, tmp_path):
    found = measuring.measure([tmp_path / "nowhere", drive], SHORT_S)
    assert found.notes == [f"{tmp_path / 'nowhere'} is not measured: No such file or directory"]
    assert [one.path for one in found.drives] == [str(drive)]
    assert not (tmp_path / "nowhere").exists()


def test_a_drive_that_takes_no_file_leaves_a_note(drive, monkeypatch):
    def refuse(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(measuring.os, "open", refuse)
    found = measuring.measure([drive], SHORT_S)
    assert found.notes == [f"{drive} is not measured: Read-only file system"]
    assert found.link(NVME) == PRIORS[NVME] and found.is_measured


def test_a_drive_that_is_nearly_full_is_left_alone(drive, monkeypatch):
    class Full:
        f_bavail, f_frsize = 60, 1024**2

    monkeypatch.setattr(measuring.os, "statvfs", lambda _: Full)
    assert measuring.measure([drive], SHORT_S).notes == [f"{drive} is not measured: less than 64 MiB are free"]


def test_a_drive_that_fails_while_it_is_written_leaves_a_note_and_no_file(drive, monkeypatch):
    scratch = measuring._Scratch.next_write
    monkeypatch.setattr(measuring._Scratch, "next_write", lambda self: scratch(self) + 2**62)  # beyond any file
    found = measuring.measure([drive], SHORT_S)
    (note,) = found.notes
    assert note.startswith(f"{drive} is not measured: ")
    assert found.drives == [] and list(drive.iterdir()) == []


def test_a_filesystem_without_o_direct_is_measured_with_a_note(drive, monkeypatch):
    really_open = os.open

    def without_direct(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return really_open(path, flags, *rest)

    monkeypatch.setattr(measuring.os, "open", without_direct)
    found = measuring.measure([drive], SHORT_S)
    assert len(found.drives) == 1 and "without O_DIRECT" in found.notes[0]


def test_kill_9_in_the_middle_leaves_no_file(drive):
    order = json.dumps({"paths": [str(drive)], "seconds": 4, "io": "auto"})
    with subprocess.Popen([sys.executable, "-P", "-m", "kvtier.measuring", order], stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not any(str(drive) in link for link in open_files(process.pid)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert list(drive.iterdir()) == []


def open_files(pid: int) -> list[str]:
    links = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:
            continue
    return links


# --- by another process --------------------------------------------------------------------------------------


def test_another_process_measures_while_this_loop_goes_on(drive):
    async def count_turns() -> tuple[Calibration, int]:
        turns, measuring_task = 0, asyncio.create_task(measured_beside([drive], SHORT_S))
        while not measuring_task.done():
            await asyncio.sleep(0.01)
            turns += 1
        return await measuring_task, turns

    found, turns = asyncio.run(count_turns())
    assert found.is_measured and found.notes == [] and len(found.drives) == 1
    assert turns > 10


@pytest.mark.parametrize(
    ("program", "noted"),
    [
        ("import time; time.sleep(60)", "it took more than 0.5 s; is a drive slow?"),
        ("raise SystemExit('no luck')", "no luck"),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with -9"),
        ("print('[1]')", "its process ended with 0"),
    ],
)
def test_a_process_that_hangs_or_fails_costs_no_more_than_its_time(monkeypatch, tmp_path, program, noted):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o700)
    monkeypatch.setattr(calibration, "SPARE_S", 0.4 if "sleep" in program else 30.0)
    monkeypatch.setattr(calibration.sys, "executable", str(script))
    found = asyncio.run(measured_beside([], 0.1))
    assert not found.is_measured
    assert found.notes == [f"nothing was measured: {noted}"]


def test_where_no_process_can_begin_there_is_a_note(monkeypatch):
    monkeypatch.setattr(calibration.sys, "executable", "/nowhere/python")
    assert asyncio.run(measured_beside([], 0.1)).notes == [
        "nothing was measured: no process for it: No such file or directory"
    ]


# --- what is kept --------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_again_for_the_same_machine(folder):
    kept = measured({"cpu": "fast"})
    kept.remember_prefill("ab" * 32, COUNTS)
    assert save(folder, kept) == ""
    assert load(folder, {"cpu": "fast"}) == kept
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {FILE: 0o600}


def test_another_machine_is_not_taken_for_this_one(folder):
    save(folder, measured({"cpu": "fast"}))
    found = load(folder, {"cpu": "slow"})
    assert not found.is_measured and found.machine == {"cpu": "slow"}
    assert found.link(NVME) == PRIORS[NVME]


def test_many_machines_share_one_file_and_the_oldest_goes(folder):
    for number in range(MACHINES_MAX + 2):
        save(folder, measured({"cpu": str(number)}, gb_s=number + 1))
    known = [load(folder, {"cpu": str(number)}).is_measured for number in range(MACHINES_MAX + 2)]
    assert known == [False] * 2 + [True] * MACHINES_MAX
    assert load(folder, {"cpu": "7"}).link(NVME).bytes_per_s == 8e9


def test_with_another_drive_the_engines_compute_as_before(folder):
    kept = measured({"cpu": "fast", "/one": "old drive"})
    kept.remember_prefill("ab", COUNTS)
    kept.remember_remote("redis://b:1", LINK)
    save(folder, kept)
    found = load(folder, {"cpu": "fast", "/one": "new drive"})
    assert not found.is_measured and found.prefills == {"ab": COUNTS}
    assert found.remotes == {"redis://b:1": LINK}
    assert load(folder, {"cpu": "other", "/one": "old drive"}).prefills == {}


def test_a_daemon_that_saves_what_it_learnt_keeps_what_was_measured_meanwhile(folder):
    daemons = measured({"cpu": "fast"}, at=1.0, gb_s=3)
    save(folder, measured({"cpu": "fast"}, at=2.0, gb_s=5))
    daemons.remember_prefill("ab", COUNTS)
    save(folder, daemons)
    found = load(folder, {"cpu": "fast"})
    assert found.link(NVME).bytes_per_s == 5e9 and found.prefills == {"ab": COUNTS}


def test_a_remote_is_as_slow_as_it_was_and_an_unknown_one_as_slow_as_believed(folder):
    kept = measured({"cpu": "fast"})
    for number in range(REMOTES_MAX + 1):
        kept.remember_remote(f"redis://{number}:1", LINK)
    save(folder, kept)
    found = load(folder, {"cpu": "fast"})
    links = [Link.from_counts(found.remote(name)) for name in ("redis://0:1", "redis://1:1")]
    assert [(link.latency_s, link.bytes_per_s) for link in links] == [(0.002, 0.2e9), (0.0005, 1.5e9)]
    assert PRIORS[REMOTE] == Speed(0.002, 0.2e9)


def test_a_file_from_before_there_were_remotes_is_as_good(folder):
    save(folder, measured({"cpu": "fast"}))
    text = (folder / FILE).read_text()
    assert text != text.replace(', "remotes": {}', "")
    (folder / FILE).write_text(text.replace(', "remotes": {}', ""))
    assert load(folder, {"cpu": "fast"}).is_measured


def test_the_namespaces_remembered_last_are_kept(folder):
    kept = measured({"cpu": "fast"})
    for number in range(PREFILLS_MAX):
        kept.remember_prefill(str(number), COUNTS)
    kept.remember_prefill("0", {**COUNTS, "steps": 99})
    kept.remember_prefill("new", COUNTS)
    save(folder, kept)
    prefills = load(folder, {"cpu": "fast"}).prefills
    assert len(prefills) == PREFILLS_MAX
    assert prefills["0"]["steps"] == 99 and "new" in prefills and "1" not in prefills


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"version": 1}',
        lambda text: '{"version": 1, "machines": {"a": 1}}',
        lambda text: '{"version": 1, "machines": [1]}',
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace("3000000000.0", "-1"),
        lambda text: text.replace("3000000000.0", "NaN"),
        lambda text: text.replace("3000000000.0", '"fast"'),
        lambda text: text.replace('"latency_s"', '"latency"'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_file_that_is_damaged_is_as_good_as_none(folder, damage):
    save(folder, measured({"cpu": "fast"}))
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(damage(text))
    assert damage(text) != text
    assert not load(folder, {"cpu": "fast"}).is_measured
    assert save(folder, measured({"cpu": "fast"})) == ""
    assert load(folder, {"cpu": "fast"}).is_measured


def test_odd_counts_of_a_prefill_are_passed_over(folder):
    kept = measured({"cpu": "fast"})
    odd = {"text": {"steps": "many"}, "huge": {"steps": 2**70}, "many": dict.fromkeys("abcdefghijklmnopq", 1)}
    kept.prefills = {"good": COUNTS, **odd}
    save(folder, kept)
    assert load(folder, {"cpu": "fast"}).prefills == {"good": COUNTS}


def test_a_folder_that_cannot_be_written_is_said_to_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    assert save(tmp_path / "file", measured({})) == f"can't write {tmp_path / 'file' / FILE}: File exists"


def test_a_disk_that_is_full_keeps_the_former_file_and_no_other(folder, monkeypatch):
    save(folder, measured({"cpu": "fast"}))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibration.os, "fsync", full)
    assert save(folder, measured({"cpu": "fast"}, at=2.0)) == f"can't write {folder / FILE}: No space left on device"
    assert load(folder, {"cpu": "fast"}).at == 1.0
    assert [file.name for file in folder.iterdir()] == [FILE]


def test_a_machine_is_told_by_what_makes_it_fast_and_not_by_its_name(drive):
    machine = machine_of([drive])
    assert set(machine) == {"kvtier", "cpu", "gpu", str(drive)}
    assert machine == machine_of([drive])
    assert os.uname().nodename not in " ".join(machine.values()).split()
