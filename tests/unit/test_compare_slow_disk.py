"""A disk that is slow for some processes: where the kernel's controller is found, what it is told, and what it does."""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from compare.slow_disk import CannotSlow, Controller, disk_of, forget_pages, slowed

SLOW, BYTES = 4 << 20, 4 << 20  # bytes/s, and what is read


def mounts(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "mounts"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def v1(root: Path) -> str:
    return f"cgroup {root} cgroup rw,relatime,blkio 0 0"


def v2(root: Path, controllers: str) -> str:
    (root / "cgroup.controllers").write_text(controllers)
    return f"cgroup2 {root} cgroup2 rw,relatime 0 0"


def test_blkio_of_v1_is_found_beside_other_controllers(tmp_path):
    listed = mounts(tmp_path, "cgroup /c/cpu cgroup rw,cpu 0 0", v1(tmp_path), v2(tmp_path, ""))
    assert Controller.here(listed) == Controller(tmp_path, 1)


def test_io_of_v2_is_found(tmp_path):
    assert Controller.here(mounts(tmp_path, v2(tmp_path, "cpuset cpu io memory"))) == Controller(tmp_path, 2)


def test_without_a_controller_of_disks_it_says_so(tmp_path):
    with pytest.raises(CannotSlow, match="neither cgroup v1's blkio nor cgroup v2's io"):
        Controller.here(mounts(tmp_path, v2(tmp_path, "cpu memory")))


def test_v1_is_told_both_directions_and_0_for_no_limit(tmp_path):
    controller = Controller(tmp_path, 1)
    group = controller.make()
    controller.limit(group, "254:0", 10_000_000)
    assert (group / "blkio.throttle.read_bps_device").read_text() == "254:0 10000000"
    assert (group / "blkio.throttle.write_bps_device").read_text() == "254:0 10000000"
    controller.limit(group, "254:0", 0)
    assert (group / "blkio.throttle.read_bps_device").read_text() == "254:0 0"


def test_v2_is_told_in_one_line_and_max_for_no_limit(tmp_path):
    controller = Controller(tmp_path, 2)
    group = controller.make()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+io"
    controller.limit(group, "259:1", 10_000_000)
    assert (group / "io.max").read_text() == "259:1 rbps=10000000 wbps=10000000"
    controller.limit(group, "259:1", 0)
    assert (group / "io.max").read_text() == "259:1 rbps=max wbps=max"


def test_a_folder_in_memory_has_no_disk():
    with pytest.raises(CannotSlow, match="no block device"):
        disk_of(Path("/dev/shm"))


def cold_file(folder: Path) -> Path:
    path = folder / "file"
    path.write_bytes(os.urandom(BYTES))
    forget_pages(folder)
    return path


def seconds_to_read(path: Path) -> float:
    """By a process that waits until it may; ours is not to be slowed."""
    code = f"input(); open({str(path)!r}, 'rb').read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        with slowed([child.pid], path.parent, SLOW):
            begun = time.monotonic()
            child.communicate(b"\n")
            return time.monotonic() - begun
    finally:
        child.kill()


def test_reads_of_a_slowed_process_take_as_long_as_the_speed_says(tmp_path):
    path = cold_file(tmp_path)
    try:
        took = seconds_to_read(path)
    except CannotSlow as why:
        pytest.skip(str(why))
    assert took > 0.5 * BYTES / SLOW
    assert not list(Controller.here().root.glob(f"kvtier-slow-{os.getpid()}*"))


def test_processes_go_back_to_where_they_were(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    groups = Path(f"/proc/{child.pid}/cgroup")
    try:
        before = groups.read_text()
        with slowed([child.pid], tmp_path, SLOW):
            assert "kvtier-slow" in groups.read_text()
        assert groups.read_text() == before
    except CannotSlow as why:
        pytest.skip(str(why))
    finally:
        child.communicate(b"\n")


def test_what_was_written_is_no_more_in_the_page_cache(tmp_path):
    path = cold_file(tmp_path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert resident_pages(mapped) == 0


def resident_pages(mapped: mmap.mmap) -> int:
    pages = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    at = np.frombuffer(mapped, np.uint8)
    found = ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(at.ctypes.data), ctypes.c_size_t(len(mapped)), pages.ctypes.data_as(ctypes.c_void_p)
    )
    assert found == 0, os.strerror(ctypes.get_errno())
    del at
    return int((pages & 1).sum())
