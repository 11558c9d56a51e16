"""The drives of the NVMe tier: direct I/O, io_uring, what they are, whether there is room."""

import os
from collections.abc import Iterator
from pathlib import Path

from kvtier.config import format_size
from kvtier.doctor.facts import Facts
from kvtier.doctor.findings import Finding, bad, ok, warn
from kvtier.tiers.drives import BLOCKS

OFF = "nvme.paths is empty: no such tier"
DWPD_USUAL = 3.0  # what the most durable of usual drives are rated for
IN_MEMORY = ("tmpfs", "ramfs")
NOT_LOCAL = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse", "overlay")
VIRTUAL = ("/virtio", "/vbd-", "/xvd")


def folders(facts: Facts) -> Iterator[Finding]:
    """Whether they are there, and ours."""
    if not facts.drives:
        yield ok(OFF)
    for path in facts.drives:
        found = facts.system.stat(path)
        if found is None:
            if facts.system.can_write(_existing(facts, path)):
                yield ok(f"{path} is not there yet; kvtierd makes it")
            else:
                cure = f"`mkdir -p {path}`, give it to the user of kvtierd, mode 0700"
                yield bad(f"{path} is not there, and can't be made by user {facts.system.user()}", cure)
        elif found.st_mode & 0o007:
            yield warn(f"others may look into {path}: they see how much there is, and when", f"`chmod 0700 {path}`")
        elif not facts.system.can_write(path) and facts.state is None:
            yield bad(f"user {facts.system.user()} can't write to {path}", "give it to the user of kvtierd")
        else:
            yield ok(f"{path} is ours alone")


def direct_io(facts: Facts) -> Iterator[Finding]:
    if not facts.drives:
        yield ok(OFF)
    for path in facts.drives:
        folder, kind = _existing(facts, path), filesystem(facts, path)
        if kind in IN_MEMORY:
            yield bad(f"{path} is on {kind}: what is written below RAM is in RAM again", "name a folder on a drive")
        elif not facts.system.can_write(folder):
            yield ok(f"{path} can't be tried by this user")
        elif reason := facts.system.direct_io(folder):
            said = f"{path} ({kind or 'unknown'}) takes no direct I/O: {reason}"
            yield warn(f"{said}; its blocks go through the page cache", "use ext4 or XFS on a local drive")
        elif kind.partition(".")[0] in NOT_LOCAL:
            yield warn(f"{path} is on {kind}", "name a folder on a local drive: a block takes the network each time there")
        else:
            yield ok(f"{path} ({kind or 'unknown'}) takes direct I/O")


def io_uring(facts: Facts) -> Iterator[Finding]:
    wanted = facts.settings.text("nvme.io")
    used = facts.state["tiers"].get("nvme", {}).get("io", "") if facts.state is not None else ""
    reason = facts.system.io_uring()
    disabled = facts.system.number("/proc/sys/kernel/io_uring_disabled")
    cure = (
        "`sysctl kernel.io_uring_disabled=0`"
        if disabled
        else "allow io_uring_setup, _enter and _register in the seccomp filter"
    )
    if not facts.drives:
        yield ok(OFF)
    elif wanted == "threads":
        yield ok("not used: nvme.io = threads")
    elif used and used != "threads":
        yield ok(f"kvtierd uses {used}")
    elif used:
        yield warn("kvtierd uses threads: it was refused io_uring", cure)
    elif not reason:
        yield ok("it may be used here")
    elif wanted == "io_uring":
        yield bad(f"nvme.io = io_uring, and it is refused here: {reason}", f"{cure}; or set nvme.io = auto")
    else:
        yield warn(f"refused here: {reason}; threads take more of the processor", cure)


def rating(facts: Facts) -> Iterator[Finding]:
    """What they are, and how much may be written a day. What a maker rated a drive for no file says."""
    if not facts.drives:
        yield ok(OFF)
        return
    share = facts.settings.number("nvme.endurance_dwpd")
    for path in facts.drives:
        space = facts.system.space(_existing(facts, path))
        block = _block_device(facts, path)
        if space is None:
            continue
        budget = f"{format_size(share * space.size)} may be written a day (nvme.endurance_dwpd = {share:g})"
        if block and facts.system.number(f"{block}/queue/rotational") == 1 and not _is_virtual(facts, path):
            yield warn(
                f"{path} is on a disk that turns: reads take longer than computing", "name a folder on a solid-state drive"
            )
        elif share > DWPD_USUAL:
            cure = "set it to what the maker rates the drives for"
            yield warn(f"{path}: {budget}, more than usual drives are made for", cure)
        else:
            model = facts.system.read(f"{block}/device/model") if block else ""
            yield ok(f"{path}{f' on {model}' if model else ''}: {budget}")
    if facts.state is not None and (nvme := facts.state["tiers"].get("nvme")) and nvme["read_only"]:
        yield bad(f"the tier is read-only: {nvme['reason']}", "see kvtierd's log; a drive that fails is replaced")


def space(facts: Facts) -> Iterator[Finding]:
    """The payload files have their whole size from the start."""
    if not facts.drives:
        yield ok(OFF)
        return
    needs: dict[int | str, int] = {}  # by filesystem
    where: dict[int | str, Path] = {}
    for path in facts.drives:
        folder = _existing(facts, path)
        found = facts.system.stat(folder)
        device = found.st_dev if found is not None else str(path)
        payload = facts.system.stat(path / BLOCKS)
        there = payload.st_blocks * 512 if payload is not None else 0
        share = facts.settings.count("nvme.capacity") // len(facts.drives)
        needs[device] = needs.get(device, 0) + max(0, share - there)
        where.setdefault(device, folder)
    for device, needed in needs.items():
        room = facts.system.space(where[device])
        if room is None:
            continue
        said = f"{where[device]}: {format_size(room.free)} are free"
        if not needed:
            yield ok(f"{said}; what nvme.capacity says is taken")
        elif needed <= room.free:
            yield ok(f"{said}, {format_size(needed)} are needed")
        else:
            yield bad(f"{said}, and {format_size(needed)} are needed", "lower nvme.capacity, or free space there")


def _existing(facts: Facts, path: Path) -> Path:
    """It, or the nearest folder above it that is there."""
    return next((one for one in (path, *path.parents) if facts.system.stat(one) is not None), Path("/"))


def _is_virtual(facts: Facts, path: Path) -> bool:
    """A virtual disk says that it turns, whatever its host has."""
    found = facts.system.stat(_existing(facts, path))
    assert found is not None
    device = facts.system.target(f"/sys/dev/block/{os.major(found.st_dev)}:{os.minor(found.st_dev)}")
    return any(word in device for word in VIRTUAL)


def filesystem(facts: Facts, path: Path) -> str:
    """Its kind, by the longest mount point that it is below; of two that are alike, the later."""
    best, kind = "", ""
    mounts = facts.system.read(f"{facts.proc}/mountinfo") or facts.system.read("/proc/self/mountinfo")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split()
        if len(words) > 4 and after:
            point = words[4].replace("\\040", " ")
            if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best):
                best, kind = point, after.split()[0]
    return kind


def _block_device(facts: Facts, path: Path) -> str:
    """Its folder in /sys: of the drive, not of a partition; empty: there is none."""
    found = facts.system.stat(_existing(facts, path))
    if found is None:
        return ""
    name = f"/sys/dev/block/{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    for folder in (name, f"{name}/.."):
        if facts.system.read(f"{folder}/queue/rotational"):
            return folder
    return ""
