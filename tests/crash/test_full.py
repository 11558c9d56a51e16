"""The disk is full, or the catalogue is: the tier is read-only at once, RAM doesn't notice, and it ends by itself."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import BLOCKS, CATALOGUE, WRITE, Faults
from full_disk import FullDisk, Times
from victim import Victim

ROOMY = 1024**2  # bytes of a catalogue
SHORT_S, LONG_S = 2.5, 60.0
READ_ONLY_S, RECOVERED_S = 1.0, 5.0
# kvtierd, but how large its catalogue may grow stands in a file.
SMALL_CATALOGUE = """
import sys
from pathlib import Path
from kvtier import daemon
from kvtier.tiers import catalogue

size = Path(sys.argv.pop(1))
catalogue.MAP_BYTES_MIN, catalogue.MAP_BYTES_PER_PLACE = 4096 * 16, 0
catalogue.Catalogue.map_bytes_max = property(lambda self: int(size.read_text()), lambda self, value: None)
daemon.main()
"""


class SmallCatalogue(Victim):
    """Its catalogue is full at so many bytes as a file says."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        super().__init__(folder, settings)
        self.size = folder / "size"
        self.set_size(ROOMY)

    def set_size(self, size: int) -> None:
        self.size.write_text(str(size))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-P", "-c", SMALL_CATALOGUE, str(self.size), *super().command[1:]]


def settings(tier: Path) -> dict[str, object]:
    return {"nvme.paths": tier, "nvme.capacity": "64 MiB", "nvme.io": "threads", "nvme.endurance_dwpd": 1000,
            "nvme.stage_deadline_ms": 10_000}  # fmt: skip


def judge(times: Times) -> None:
    print(times)
    assert times.read_only < READ_ONLY_S
    assert times.recovered < RECOVERED_S
    assert times.slowest_hit < 1.0


@pytest.fixture
def faulty(tmp_path, library) -> Iterator[tuple[FullDisk, Faults]]:
    victim = Victim(tmp_path, settings(tmp_path / "nvme"))
    faults = Faults(library, victim, tmp_path / "nvme")
    victim.start()
    disk = FullDisk(victim)
    yield disk, faults
    faults.end()
    disk.close()


def fill(faulty: tuple[FullDisk, Faults], files: int, seconds: float) -> None:
    disk, faults = faulty
    judge(disk.suffer(seconds, lambda: faults.set(WRITE, files, error=errno.ENOSPC), faults.end))
    disk.everything_survives_a_kill()


@pytest.mark.parametrize("files", [BLOCKS, CATALOGUE], ids=["blocks", "catalogue"])
def test_a_full_disk(faulty, files):
    fill(faulty, files, SHORT_S)


@pytest.mark.long
@pytest.mark.parametrize("files", [BLOCKS, CATALOGUE], ids=["blocks", "catalogue"])
def test_a_disk_that_is_full_for_a_minute(faulty, files):
    fill(faulty, files, LONG_S)


def test_a_drive_that_refuses_writes_by_io_uring(tmp_path):
    """No library can stand between io_uring and the kernel, but a limit on the size of files does."""
    victim = Victim(tmp_path, {**settings(tmp_path / "nvme"), "nvme.io": "auto"})
    victim.start()
    disk = FullDisk(victim)

    def limit(size: int) -> None:
        resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    try:
        judge(disk.suffer(SHORT_S, lambda: limit(1024**2), lambda: limit(resource.RLIM_INFINITY)))
        disk.everything_survives_a_kill()
    finally:
        disk.close()


def test_a_full_catalogue(tmp_path):
    victim = SmallCatalogue(tmp_path, settings(tmp_path / "nvme"))
    victim.start()
    disk = FullDisk(victim)
    try:
        full = (tmp_path / "nvme" / "catalogue.mdb").stat().st_size
        judge(disk.suffer(SHORT_S, lambda: victim.set_size(full), lambda: victim.set_size(ROOMY)))
        disk.everything_survives_a_kill()
    finally:
        disk.close()


@pytest.fixture
def small_filesystem(tmp_path) -> Iterator[Path]:
    """An ext4 of its own."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    with image.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, 96 * 1024**2)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a filesystem of its own can't be mounted here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill_up(ballast: Path) -> None:
    """Until not a byte more is taken."""
    with ballast.open("wb", buffering=0) as opened:
        size = 1 << 20
        while size:
            try:
                opened.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 2


def test_a_filesystem_that_is_really_full(small_filesystem, tmp_path):
    """The payload has its room from the start; it is the catalogue that can't grow."""
    victim = Victim(tmp_path, settings(small_filesystem / "nvme"))
    victim.start()
    disk = FullDisk(victim)
    ballast = small_filesystem / "ballast"
    try:
        judge(disk.suffer(SHORT_S, lambda: fill_up(ballast), ballast.unlink))
        disk.everything_survives_a_kill()
    finally:
        disk.close()
