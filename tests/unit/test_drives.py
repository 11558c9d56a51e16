"""The folders of the drives: who may use them, what is in them, and what is said when they can't be used."""

import json
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from kvtier.block import SLOT_UNIT
from kvtier.errors import DaemonError
from kvtier.tiers.drives import Drives

MIB = 1024**2
DRIVE_BYTES = 32 * MIB  # the least: 16 extents of 2 MiB


@pytest.fixture
def two(tmp_path) -> list[Path]:
    return [tmp_path / "one", tmp_path / "two"]


def opened(paths: list[Path], capacity: int | None = None) -> Drives:
    """For a moment."""
    drives = Drives(paths, len(paths) * DRIVE_BYTES if capacity is None else capacity)
    drives.close()
    return drives


def edit_format(path: Path, **fields) -> None:
    file = path / "format"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_folders_and_files_are_made_for_nobody_else(two):
    opened(two)
    for path in two:
        assert path.stat().st_mode & 0o777 == 0o700
        assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(
            ("lock", "format", "blocks"), 0o600
        )


def test_the_whole_capacity_is_taken_at_start(two):
    drives = Drives(two, 2 * DRIVE_BYTES + 3 * MIB)
    assert drives.extents == 33 and drives.extent_bytes == 2 * MIB
    assert [(path / "blocks").stat().st_size for path in two] == [17 * 2 * MIB, 16 * 2 * MIB]
    assert 66 * MIB <= drives.disk_bytes() < 67 * MIB
    drives.close()


def test_the_extents_lie_on_the_drives_in_turn(two):
    drives = Drives(two, 2 * DRIVE_BYTES)
    units = drives.extent_bytes // SLOT_UNIT
    assert [drives.drive_of(extent * units + 3) for extent in range(4)] == [0, 1, 0, 1]
    files = [drives.locate(extent * units)[0] for extent in range(2)]
    for place in range(0, drives.extents * units, 7):
        extent, within = divmod(place, units)
        assert drives.locate(place) == (
            files[extent % 2],
            extent // 2 * drives.extent_bytes + within * SLOT_UNIT,
        )
    drives.close()


def test_a_second_daemon_is_told_which_folder_is_in_use(two):
    drives = Drives(two, 2 * DRIVE_BYTES)
    with pytest.raises(DaemonError, match=f"{two[1]} is in use"):
        Drives([two[1]], DRIVE_BYTES)
    drives.close()
    opened(two)


def test_a_folder_that_is_named_twice_is_refused(two):
    with pytest.raises(DaemonError, match=r"named twice; set nvme\.paths"):
        Drives([two[0], two[0]], 2 * DRIVE_BYTES)


def test_a_store_goes_on_over_restarts_and_other_capacities(two):
    first = opened(two)
    (two[1] / "blocks").write_bytes(b"mine" + (two[1] / "blocks").read_bytes()[4:])
    larger = opened(two, 4 * DRIVE_BYTES)
    smaller = opened(two)
    assert first.store == larger.store == smaller.store and len(first.store) == 16
    assert larger.extent_bytes == first.extent_bytes and not larger.notes
    assert larger.extents == 2 * smaller.extents
    assert (two[1] / "blocks").stat().st_size == DRIVE_BYTES
    assert (two[1] / "blocks").read_bytes()[:4] == b"mine"


def test_the_size_of_extents_stays_when_the_capacity_grows_and_falls_with_it_when_it_must(tmp_path):
    assert opened([tmp_path], 2 * DRIVE_BYTES).extent_bytes == 4 * MIB
    assert opened([tmp_path], 8 * DRIVE_BYTES).extent_bytes == 4 * MIB
    small = opened([tmp_path], DRIVE_BYTES)
    assert small.extent_bytes == 2 * MIB and "too small for the extents" in small.notes[0]


def garbage(paths: list[Path]) -> None:
    (paths[1] / "format").write_bytes(os.urandom(100))


def not_an_object(paths: list[Path]) -> None:
    (paths[1] / "format").write_text("[1]")


def wrong_types(paths: list[Path]) -> None:
    edit_format(paths[1], extent_bytes="2 MiB")


def odd_extents(paths: list[Path]) -> None:
    edit_format(paths[1], extent_bytes=3 * MIB)


def newer_version(paths: list[Path]) -> None:
    edit_format(paths[0], format_version=2)


def another_store(paths: list[Path]) -> None:
    edit_format(paths[1], store="ab" * 16)


def format_is_missing(paths: list[Path]) -> None:
    (paths[0] / "format").unlink()


def a_drive_less(paths: list[Path]) -> None:
    paths.pop()


DIFFERENT = [
    garbage, not_an_object, wrong_types, odd_extents, newer_version, another_store, format_is_missing, a_drive_less,
]  # fmt: skip


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_does_not_fit_is_set_aside_and_a_new_store_begins(two, change):
    first = opened(two)
    (two[0] / "catalogue.mdb").write_bytes(b"former")
    (two[0] / "blocks").write_bytes(b"former")
    change(two)
    second = opened(two)
    assert second.store != first.store
    assert len(second.notes) == 1 and "a new store begins empty" in second.notes[0]
    aside = [file for path in two for file in path.iterdir() if ".set-aside-" in file.name]
    assert all(str(file) in second.notes[0] for file in aside)
    assert [file.read_bytes() for file in aside if file.name.startswith("catalogue.mdb")] == [b"former"]
    assert not any((path / "catalogue.mdb").exists() for path in two)
    assert opened(two).store == second.store


def test_the_folders_of_a_store_may_be_named_in_any_order(two):
    first = opened(two)
    second = opened(two[::-1])
    assert (second.store, second.paths, second.notes) == (first.store, two, [])


def test_a_store_knows_whether_it_is_new(two):
    assert opened(two).is_new
    assert not opened(two).is_new


def test_a_capacity_below_16_extents_a_drive_is_refused(two):
    with pytest.raises(DaemonError, match=r"nvme\.capacity = .* is too small: at least 64 MiB"):
        Drives(two, 2 * DRIVE_BYTES - 1)


def test_a_full_disk_shows_at_start(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(DaemonError, match=r"blocks needs .* GiB more on .*; free space or lower nvme\.capacity"):
        Drives([tmp_path], free + 10 * 1024 * MIB)
    assert (tmp_path / "blocks").stat().st_size == 0
    opened([tmp_path])


def test_a_disk_full_of_what_was_set_aside_says_what_to_delete(tmp_path):
    opened([tmp_path])
    edit_format(tmp_path, format_version=2)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with pytest.raises(DaemonError, match=r"delete .*blocks\.set-aside-.*format\.set-aside-"):
        Drives([tmp_path], free + 10 * 1024 * MIB)


def test_a_path_that_is_no_folder_is_named_with_its_cure(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DaemonError, match=rf"can't use {path}.*set nvme\.paths"):
            Drives([path], DRIVE_BYTES)


def test_two_folders_on_one_filesystem_are_rated_once(two):
    drives = opened(two)
    of = os.statvfs(two[0])
    assert drives.rated_bytes == of.f_blocks * of.f_frsize


def test_disk_bytes_are_what_du_says(tmp_path):
    drives = Drives([tmp_path / "drive"], DRIVE_BYTES)
    du = subprocess.run(["du", "-s", "--block-size=1", tmp_path / "drive"], capture_output=True, text=True, check=True)
    folder_itself = (tmp_path / "drive").stat().st_blocks * 512
    assert drives.disk_bytes() == int(du.stdout.split()[0]) - folder_itself
    drives.close()


def test_bytes_are_where_locate_says_and_stay_after_sync(two):
    drives = Drives(two, 2 * DRIVE_BYTES)
    page = memoryview(mmap.mmap(-1, 4096))
    page[:4] = b"here"
    fd, offset = drives.locate(33)
    assert os.pwrite(fd, page, offset) == 4096
    drives.sync({0, 1})
    assert (two[1] / "blocks").read_bytes()[SLOT_UNIT : SLOT_UNIT + 4] == b"here"
    drives.close()
