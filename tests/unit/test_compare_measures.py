"""What a slice of the comparison measured: ranks, spreads over rounds, and what processes took by the kernel's counts."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from compare import measures
from compare.measures import MIB, Slice, Took, Usage, cell, joined, rank, usage

NONE = Usage(0.0, 0)


def a_slice(ttfts, seconds=1.0, used=NONE, answers=None):
    return Slice(list(ttfts), seconds, len(ttfts), used, answers if answers is not None else [[1]] * len(ttfts))


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "PROC", tmp_path)
    return tmp_path


def says(proc, pid, times=(0, 0, 0, 0), written=0, started=1000, parent=1, name="a process"):
    """Of a process, /proc says so: utime, stime, cutime, cstime in ticks."""
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    before = [parent, pid, pid, 0, -1, 0, 0, 0, 0, 0]
    fields = ["S", *before, *times, 20, 0, 1, 0, started, 0]
    (folder / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")
    (folder / "io").write_text(f"rchar: 7\nwrite_bytes: {written}\ncancelled_write_bytes: 5\n")


def ticks(seconds):
    return round(seconds * os.sysconf("SC_CLK_TCK"))


# --- ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, share, expected",
    [([3, 1, 2], 0.5, 2), ([4, 3, 2, 1], 0.5, 2), ([5], 0.99, 5), (range(1, 101), 0.99, 99), (range(1, 201), 0.99, 198)],
)
def test_a_rank_is_one_of_the_values(values, share, expected):
    assert rank(list(values), share) == expected


def test_of_few_requests_the_p99_is_the_greatest():
    assert rank([0.1] * 98 + [9.0], 0.99) == 9.0


# --- a cell --------------------------------------------------------------------------------------------------


def test_a_cell_spreads_over_the_rounds():
    slices = [
        a_slice([1.0, 2.0, 6.0], seconds=10.0, used=Usage(4.0, 3 * MIB)),
        a_slice([1.0, 1.0, 1.0], seconds=6.0, used=Usage(2.0, 0)),
        a_slice([2.0, 3.0, 4.0], seconds=30.0, used=Usage(9.0, MIB)),
    ]
    assert cell(slices, None) == {
        "ttft_mean_s": {"median": 3.0, "min": 1.0, "max": 3.0},
        "ttft_p50_s": {"median": 2.0, "min": 1.0, "max": 3.0},
        "ttft_p99_s": {"median": 4.0, "min": 1.0, "max": 6.0},
        "requests_per_s": {"median": 0.3, "min": 0.1, "max": 0.5},
        "cpu_s": {"median": 4.0, "min": 2.0, "max": 9.0},
        "written_mib": {"median": 1.0, "min": 0.0, "max": 3.0},
        "same_text": [0, 0],
        "requests": 9,
        "ttft_s": [1.0, 2.0, 6.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0],
    }


def test_text_is_compared_answer_by_answer():
    slices = [a_slice([1.0, 1.0], answers=[[1, 2], [3]]), a_slice([1.0], answers=[[4, 5]])]
    assert cell(slices, [(1, 2), (3,), (4, 6)])["same_text"] == [2, 3]


def test_answers_that_are_missing_are_not_passed_over():
    with pytest.raises(ValueError):
        cell([a_slice([1.0, 1.0])], [[1]])


def test_turns_of_one_round_are_joined():
    whole = joined([a_slice([1.0], 2.0, Usage(1.0, 5), [[1]]), a_slice([3.0, 4.0], 3.0, Usage(0.5, 7), [[2], [3]])])
    assert whole == Slice([1.0, 3.0, 4.0], 5.0, 3, Usage(1.5, 12), [[1], [2], [3]])


# --- usage ---------------------------------------------------------------------------------------------------


def test_threads_and_reaped_children_count(proc):
    says(proc, 70, (ticks(1.0), ticks(0.5), ticks(2.0), ticks(0.25)), written=4096, name="it) is (odd 1 2")
    says(proc, 71, (ticks(3.0), 0, 0, 0), written=512)
    found = usage([70, 71, 71, 72])
    assert (found.cpu_s, found.written_bytes) == (6.75, 4608)


def test_a_difference_is_what_was_taken_between(proc):
    says(proc, 70, (ticks(1.0), 0, 0, 0), written=100)
    before = usage([70])
    says(proc, 70, (ticks(3.0), 0, 0, 0), written=1100)
    says(proc, 80, (ticks(0.5), 0, 0, 0), written=10)
    assert usage([70, 80]) - before == Usage(2.5, 1010)


def test_a_process_that_ended_takes_nothing_back(proc):
    says(proc, 70, (ticks(50.0), 0, 0, 0), written=9000)
    says(proc, 71, (ticks(1.0), 0, 0, 0))
    before = usage([70, 71])
    (proc / "70" / "stat").unlink()
    says(proc, 71, (ticks(2.0), 0, 0, 0))
    says(proc, 90, (ticks(4.0), 0, 0, 0), written=20)
    assert usage([70, 71, 90]) - before == Usage(5.0, 20)


def test_a_pid_that_came_again_is_another_process(proc):
    says(proc, 70, (ticks(50.0), 0, 0, 0), started=1000)
    before = usage([70])
    says(proc, 70, (ticks(1.0), 0, 0, 0), started=2000)
    assert usage([70]) - before == Usage(1.0, 0)


def test_a_child_is_not_counted_twice_when_its_parent_reaps_it(proc):
    says(proc, 70, (ticks(1.0), 0, 0, 0))
    says(proc, 71, (ticks(2.0), 0, 0, 0), written=300, parent=70)
    before = usage([70, 71])
    (proc / "71" / "stat").unlink()
    says(proc, 70, (ticks(1.0), 0, ticks(2.5), 0), written=400)
    assert usage([70, 71]) - before == Usage(0.5, 100)


def test_what_was_added_up_has_no_processes():
    assert Usage(1.0, 2, {(1, 1): Took(1.0, 2)}) + Usage(0.5, 1) == Usage(1.5, 3)


@contextmanager
def python(code: str) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"done\n"
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def test_of_a_real_process_the_kernel_counts_time_and_bytes(tmp_path):
    code = (
        "import os, sys, time\n"
        "while time.process_time() < 0.3: pass\n"
        f"fd = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "os.write(fd, bytes(1 << 20)); os.fsync(fd)\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with python(code) as pid:
        first = usage([pid])
        time.sleep(0.05)
        assert (usage([pid]) - first).cpu_s == 0.0
    assert first.cpu_s == pytest.approx(0.3, rel=0.5)
    assert first.written_bytes == 0 or MIB <= first.written_bytes < 2 * MIB  # 0: the folder is in memory
