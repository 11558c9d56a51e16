"""kvtier doctor on the drives of the NVMe tier, of machines that are made up."""

import os

import pytest
from made_up_machine import Machine, facts_of, only, running

from kvtier.config import GIB
from kvtier.doctor import drives
from kvtier.doctor.findings import ok
from kvtier.doctor.system import Space, System

FOLDER = "/mnt/nvme0/kvtier"
CHECKS = (drives.folders, drives.direct_io, drives.io_uring, drives.rating, drives.space)


@pytest.fixture
def machine(tmp_path) -> Machine:
    machine = Machine(tmp_path)
    machine.folder(FOLDER)
    return machine


def block_device(machine: Machine, turns: bool = False, parent: str = "pci0000:00/nvme/nvme0") -> None:
    """A drive with a partition, which has the folder."""
    number = machine.path(FOLDER).stat().st_dev
    drive = f"/sys/devices/{parent}/nvme0n1"
    machine.put(f"{drive}/queue/rotational", str(int(turns)))
    machine.put(f"{drive}/device/model", "Micron_7450_MTFDKCC3T2TFS   ")
    machine.folder(f"{drive}/nvme0n1p1")
    machine.link(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}", f"../../devices/{parent}/nvme0n1/nvme0n1p1")


def test_without_such_a_tier_all_is_good(machine):
    assert [only(check, facts_of(machine)) for check in CHECKS] == [ok(drives.OFF)] * len(CHECKS)


def test_a_good_drive_is_good_in_all(machine):
    block_device(machine)
    facts = facts_of(machine, nvme__paths=FOLDER)
    assert [only(check, facts) for check in CHECKS] == [
        ok(f"{FOLDER} is ours alone"),
        ok(f"{FOLDER} (ext4) takes direct I/O"),
        ok("it may be used here"),
        ok(f"{FOLDER} on Micron_7450_MTFDKCC3T2TFS: 1000 GiB may be written a day (nvme.endurance_dwpd = 1)"),
        ok(f"{FOLDER}: 900 GiB are free, 64 GiB are needed"),
    ]


# --- folders -------------------------------------------------------------------------------------------------


def test_a_folder_that_kvtierd_can_make_is_good(machine):
    found = only(drives.folders, facts_of(machine, nvme__paths=f"{FOLDER}/new"))
    assert found == ok(f"{FOLDER}/new is not there yet; kvtierd makes it")


def test_a_folder_that_it_can_not_make_is_bad(machine):
    machine.may_write = False
    found = only(drives.folders, facts_of(machine, nvme__paths=f"{FOLDER}/new"))
    assert found.level == "bad" and found.cure.startswith(f"`mkdir -p {FOLDER}/new`")


def test_a_folder_of_somebody_else_is_bad(machine):
    machine.may_write = False
    assert only(drives.folders, facts_of(machine, nvme__paths=FOLDER)).level == "bad"


def test_a_folder_that_others_may_look_into_is_a_warning(machine):
    machine.folder(FOLDER, 0o755)
    found = only(drives.folders, facts_of(machine, nvme__paths=FOLDER))
    assert (found.level, found.cure) == ("warn", f"`chmod 0700 {FOLDER}`")


def test_each_folder_has_a_line(machine):
    assert len(list(drives.folders(facts_of(machine, nvme__paths=f"{FOLDER}, /mnt/nvme1")))) == 2


# --- direct I/O ----------------------------------------------------------------------------------------------


def mounted(machine: Machine, point: str, kind: str) -> None:
    before = machine.read("/proc/self/mountinfo")
    machine.put("/proc/self/mountinfo", f"{before}\n2 1 0:9 / {point} rw - {kind} source rw")


def test_a_drive_that_takes_none_is_a_warning_with_the_reason(machine):
    machine.direct_refusal = "Invalid argument"
    found = only(drives.direct_io, facts_of(machine, nvme__paths=FOLDER))
    assert found.level == "warn" and found.said.startswith(f"{FOLDER} (ext4) takes no direct I/O: Invalid argument")


@pytest.mark.parametrize(("kind", "level"), [("tmpfs", "bad"), ("nfs4", "warn"), ("fuse.sshfs", "warn"), ("xfs", "ok")])
def test_the_kind_of_the_filesystem_counts(machine, kind, level):
    mounted(machine, "/mnt/nvme0", kind)
    assert only(drives.direct_io, facts_of(machine, nvme__paths=FOLDER)).level == level


def test_the_nearest_mount_point_counts(machine):
    mounted(machine, "/mnt", "nfs4")
    mounted(machine, "/mnt/nvme0", "xfs")
    mounted(machine, "/mnt/nvme", "tmpfs")  # is no folder above it
    assert drives.filesystem(facts_of(machine), machine.path("/").joinpath("/mnt/nvme0/kvtier")) == "xfs"


def test_the_probe_of_a_real_folder_leaves_nothing_behind(tmp_path):
    reason = System().direct_io(tmp_path)
    assert isinstance(reason, str)
    assert list(tmp_path.iterdir()) == []


def test_the_probe_of_a_folder_that_is_not_there_has_a_reason(tmp_path):
    assert System().direct_io(tmp_path / "missing") == "No such file or directory"


# --- io_uring ------------------------------------------------------------------------------------------------


def test_threads_instead_of_io_uring_are_a_warning(machine):
    machine.uring_refusal = "Operation not permitted"
    found = only(drives.io_uring, facts_of(machine, nvme__paths=FOLDER))
    assert found.level == "warn" and "seccomp" in found.cure


def test_a_kernel_that_has_it_turned_off_is_told_how_to_turn_it_on(machine):
    machine.uring_refusal = "Operation not permitted"
    machine.put("/proc/sys/kernel/io_uring_disabled", "2")
    assert "kernel.io_uring_disabled=0" in only(drives.io_uring, facts_of(machine, nvme__paths=FOLDER)).cure


def test_where_nothing_else_may_be_used_a_refusal_is_bad(machine):
    machine.uring_refusal = "Operation not permitted"
    assert only(drives.io_uring, facts_of(machine, nvme__paths=FOLDER, nvme__io="io_uring")).level == "bad"


def test_who_wants_threads_is_not_told_of_io_uring(machine):
    machine.uring_refusal = "Operation not permitted"
    assert only(drives.io_uring, facts_of(machine, nvme__paths=FOLDER, nvme__io="threads")).level == "ok"


@pytest.mark.parametrize(("used", "level"), [("io_uring", "ok"), ("threads", "warn")])
def test_of_a_running_daemon_it_counts_what_it_uses(machine, used, level):
    state = running()
    state["tiers"]["nvme"] = {"io": used, "read_only": False, "reason": ""}
    assert only(drives.io_uring, facts_of(machine, state, nvme__paths=FOLDER)).level == level


# --- what they are -------------------------------------------------------------------------------------------


def test_a_disk_that_turns_is_a_warning(machine):
    block_device(machine, turns=True)
    found = only(drives.rating, facts_of(machine, nvme__paths=FOLDER))
    assert found.level == "warn" and found.said.startswith(f"{FOLDER} is on a disk that turns")


def test_a_virtual_disk_only_says_that_it_turns(machine):
    block_device(machine, turns=True, parent="pci0000:00/virtio3/block")
    assert only(drives.rating, facts_of(machine, nvme__paths=FOLDER)).level == "ok"


def test_more_writes_than_drives_are_made_for_are_a_warning(machine):
    found = only(drives.rating, facts_of(machine, nvme__paths=FOLDER, nvme__endurance_dwpd=30.0))
    assert found.level == "warn"
    assert found.said.startswith(f"{FOLDER}: 29.3 TiB may be written a day (nvme.endurance_dwpd = 30)")


def test_a_tier_that_refuses_writes_is_bad(machine):
    state = running()
    state["tiers"]["nvme"] = {"io": "io_uring", "read_only": True, "reason": "No space left on device"}
    _, found = drives.rating(facts_of(machine, state, nvme__paths=FOLDER))
    assert (found.level, found.said) == ("bad", "the tier is read-only: No space left on device")


# --- space ---------------------------------------------------------------------------------------------------


def test_too_little_space_is_bad(machine):
    machine.all_space = Space(100 * GIB, 50 * GIB)
    found = only(drives.space, facts_of(machine, nvme__paths=FOLDER))
    assert (found.level, found.said) == ("bad", f"{FOLDER}: 50 GiB are free, and 64 GiB are needed")


def test_two_folders_of_one_filesystem_need_its_space_together(machine):
    machine.folder("/mnt/nvme1")
    machine.all_space = Space(100 * GIB, 50 * GIB)
    assert only(drives.space, facts_of(machine, nvme__paths=f"{FOLDER}, /mnt/nvme1")).level == "bad"


def test_what_is_taken_already_is_not_needed_again(machine):
    machine.all_space = Space(100 * GIB, 0)
    fd = os.open(machine.path(f"{FOLDER}/blocks"), os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 1 << 20)
    os.close(fd)
    found = only(drives.space, facts_of(machine, nvme__paths=FOLDER, nvme__capacity=32 << 20))
    assert found.level == "bad"  # 31 MiB are missing
    os.truncate(machine.path(f"{FOLDER}/blocks"), 0)
    fd = os.open(machine.path(f"{FOLDER}/blocks"), os.O_RDWR)
    os.posix_fallocate(fd, 0, 32 << 20)
    os.close(fd)
    found = only(drives.space, facts_of(machine, nvme__paths=FOLDER, nvme__capacity=32 << 20))
    assert found == ok(f"{FOLDER}: 0 B are free; what nvme.capacity says is taken")
