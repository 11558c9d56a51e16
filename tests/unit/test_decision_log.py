"""The decision log: bounded, for nobody else, and never in the way."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from kvtier import decision_log
from kvtier.decision_log import WAITING_MAX, DecisionLog, read_last, state_folder

KIB = 1024
PADDED = 100  # bytes that each record has at least


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "state" / "kvtier"


def record(number: int) -> dict[str, object]:
    return {"request": f"request-{number}", "number": number, "padding": "." * PADDED}


def written(folder: Path, numbers: range, limit: int = 1024 * KIB) -> DecisionLog:
    log = DecisionLog(folder, limit)
    for number in numbers:
        log.add(record(number))
    log.flush()
    return log


def numbers_of(folder: Path, n: int = 10_000) -> list[object]:
    return [found["number"] for found in read_last(folder, n)]


# --- what is written is read ---------------------------------------------------------------------------------


def test_what_was_added_is_there_after_a_flush_and_not_before(folder):
    log = DecisionLog(folder, 64 * KIB)
    log.add(record(1))
    assert not folder.exists()
    log.flush()
    assert read_last(folder, 10) == [record(1)]
    assert (log.written, log.dropped) == (1, 0)


def test_the_last_ones_are_read_newest_last(folder):
    written(folder, range(10))
    assert numbers_of(folder, 3) == [7, 8, 9]
    assert numbers_of(folder, 0) == []
    assert numbers_of(folder) == list(range(10))


def test_a_flush_of_nothing_makes_no_file(folder):
    DecisionLog(folder, 64 * KIB).flush()
    assert not folder.exists()


def test_another_life_goes_on_where_the_former_ended(folder):
    written(folder, range(3))
    written(folder, range(3, 5))
    assert numbers_of(folder) == [0, 1, 2, 3, 4]


def test_nobody_else_may_look(folder):
    written(folder, range(200), limit=16 * KIB)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_each_line_is_json_for_everybody_even_where_a_number_is_endless(folder):
    log = DecisionLog(folder, 64 * KIB)
    log.add({"predicted": {"fetch_ms": float("inf"), "all": [float("nan"), 1.5]}})
    log.flush()
    (line,) = (folder / "decisions.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"predicted": {"fetch_ms": None, "all": [None, 1.5]}}


# --- bounded -------------------------------------------------------------------------------------------------


def test_all_files_together_stay_within_the_limit_and_the_newest_stay(folder):
    limit = 16 * KIB
    log = DecisionLog(folder, limit)
    for number in range(1000):
        log.add(record(number))
        if number % 7 == 0:
            log.flush()
            assert sum(file.stat().st_size for file in folder.iterdir()) <= limit
    log.flush()
    assert sorted(file.name for file in folder.iterdir()) == [
        "decisions.1.jsonl", "decisions.2.jsonl", "decisions.3.jsonl", "decisions.jsonl"
    ]  # fmt: skip
    kept = numbers_of(folder)
    assert kept == list(range(1000 - len(kept), 1000))
    assert len(kept) * len(json.dumps(record(0))) > limit / 2


def test_one_flush_may_fill_several_files(folder):
    written(folder, range(60), limit=16 * KIB)
    assert numbers_of(folder) == list(range(60))
    assert len(list(folder.iterdir())) > 1


def test_a_record_that_fits_into_no_file_is_dropped_and_counted(folder):
    log = DecisionLog(folder, 4 * KIB)
    log.add({"number": 0, "padding": "." * 2 * KIB})
    log.add(record(1))
    log.flush()
    assert numbers_of(folder) == [1] and log.dropped == 1


def test_what_waits_for_a_flush_is_bounded_too(folder):
    log = DecisionLog(folder, 1024 * KIB)
    for number in range(WAITING_MAX + 5):
        log.add({"number": number})
    log.flush()
    assert (log.written, log.dropped) == (WAITING_MAX, 5)


# --- crashes and bad disks -----------------------------------------------------------------------------------


def test_a_line_torn_by_a_crash_costs_itself_and_no_other(folder):
    written(folder, range(3))
    newest = folder / "decisions.jsonl"
    newest.write_bytes(newest.read_bytes()[:-40])
    assert numbers_of(folder) == [0, 1]
    written(folder, range(3, 5))
    assert numbers_of(folder) == [0, 1, 3, 4]


def test_a_line_of_rubbish_is_passed_over(folder):
    written(folder, range(2))
    with (folder / "decisions.jsonl").open("ab") as file:
        file.write(b"\xff\x00rubbish\n[1]\n" + b"[" * 100_000 + b"\n")
    written(folder, range(2, 3))
    assert numbers_of(folder) == [0, 1, 2]


def test_a_rotation_while_one_reads_shows_nothing_twice(folder, monkeypatch):
    written(folder, range(4))
    look = decision_log._file

    def look_and_rotate(where: Path, number: int) -> Path:
        if number == 1 and not look(where, 1).exists():
            look(where, 0).replace(look(where, 1))
        return look(where, number)

    monkeypatch.setattr(decision_log, "_file", look_and_rotate)
    assert numbers_of(folder) == [0, 1, 2, 3]


def test_a_folder_that_was_never_written_to_holds_nothing(folder):
    assert read_last(folder, 5) == []


def test_a_folder_that_is_deleted_meanwhile_is_made_again(folder):
    log = written(folder, range(2))
    (folder / "decisions.jsonl").unlink()
    folder.rmdir()
    log.add(record(2))
    log.flush()
    assert numbers_of(folder) == [2]


def test_a_disk_that_fails_costs_records_and_is_told_of_once(folder, caplog):
    folder.parent.mkdir()
    folder.write_text("no folder")
    log = DecisionLog(folder, 64 * KIB)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            log.add(record(number))
            log.flush()
    assert (log.written, log.dropped) == (0, 3)
    (told,) = caplog.records
    assert told.getMessage() == (
        f"decisions are not logged: can't write to {folder}: File exists; free space, or set cost.state"
    )
    folder.unlink()
    log.add(record(3))
    log.flush()
    assert numbers_of(folder) == [3]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_full_disk_costs_records_only(folder, monkeypatch):
    monkeypatch.setattr(decision_log, "_for_nobody_else", lambda path, flags: os.open("/dev/full", os.O_RDWR))
    log = written(folder, range(3))
    assert (log.written, log.dropped) == (0, 3)


def test_it_writes_through_no_link(folder, tmp_path):
    folder.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    (folder / "decisions.jsonl").symlink_to(tmp_path / "precious")
    assert written(folder, range(1)).dropped == 1
    assert (tmp_path / "precious").read_text() == "precious"


# --- where ---------------------------------------------------------------------------------------------------


def test_it_lies_where_it_is_told_to_or_where_the_system_keeps_such_things(monkeypatch):
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert state_folder() == Path("/home/somebody/.local/state/kvtier")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_folder() == Path("/home/somebody/.local/state/kvtier")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_folder() == Path("/state/kvtier")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/kvtier:/var/lib/other")
    assert state_folder() == Path("/var/lib/kvtier")
    assert state_folder("/elsewhere") == Path("/elsewhere")
