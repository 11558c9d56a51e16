"""A machine that a test makes up: files below a folder, and what no file says."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvtier import __version__
from kvtier.config import DAEMON, GIB, Config
from kvtier.doctor.facts import Facts
from kvtier.doctor.findings import Finding
from kvtier.doctor.system import Space, System

PID = 4711  # of its kvtierd
LIMITS = "Limit                     Soft Limit           Hard Limit           Units     "


class Machine(System):
    """A good one: without GPUs, with a kernel of today, drives that take everything, and no limits."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.release, self.uring_refusal, self.direct_refusal = "6.8.0-generic", "", ""
        self.synced: bool | None = True
        self.owners: dict[str, int] = {}  # of files that a test can't give away
        self.zstd, self.isas = "1.5.4", ["avx2", "portable"]
        self.crypto, self.packages = "OpenSSL 3.0.22", {"vllm": "0.32.0"}
        self.all_space = Space(1000 * GIB, 900 * GIB)
        self.uid, self.may_write = os.geteuid(), True
        self.put("/proc/meminfo", "MemAvailable:   67108864 kB\nHugePages_Free:        0\nHugepagesize:       2048 kB")
        self.put("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw")
        self.put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        self.limits()

    def put(self, name: str | Path, text: str = "", mode: int = 0o644) -> Path:
        file = self.path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def folder(self, name: str | Path, mode: int = 0o700) -> Path:
        folder = self.path(name)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
        return folder

    def link(self, name: str, target: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).symlink_to(target)

    def limits(self, pid: int | str = "self", locked: str = "unlimited", core: str = "0", capabilities: int = 0) -> None:
        rows = (("Max core file size", core, "unlimited"), ("Max locked memory", locked, locked))
        lines = [LIMITS, *(f"{name:26}{soft:21}{hard:21}bytes" for name, soft, hard in rows)]
        self.put(f"/proc/{pid}/limits", "\n".join(lines))
        self.put(f"/proc/{pid}/status", f"Name:\tx\nUid:\t{os.geteuid()}\t{os.geteuid()}\nCapEff:\t{capabilities:016x}")

    def process(self, pid: int, *command: str, environ: str | None = "HOME=/", uid: int | None = None) -> None:
        self.put(f"/proc/{pid}/cmdline", "\0".join(command) + "\0")
        if environ is not None:
            self.put(f"/proc/{pid}/environ", environ)
        if uid is not None:
            self.owners[f"/proc/{pid}"] = uid

    def stat(self, name: str | Path) -> os.stat_result | None:
        found = super().stat(name)
        uid = self.owners.get(str(name))
        if found is None or uid is None:
            return found
        fields = list(found)
        fields[stat.ST_UID] = uid
        return os.stat_result(fields)

    def user(self) -> int:
        return self.uid

    def kernel(self) -> str:
        return self.release

    def package(self, name: str) -> str:
        return self.packages.get(name, "")

    def libcrypto(self) -> str:
        return self.crypto

    def libzstd(self) -> str:
        return self.zstd

    def codec_isas(self) -> list[str]:
        return self.isas

    def space(self, folder: str | Path) -> Space | None:
        return self.all_space

    def can_write(self, folder: str | Path) -> bool:
        return self.may_write and self.stat(folder) is not None

    def clock_is_synced(self) -> bool | None:
        return self.synced

    def io_uring(self) -> str:
        return self.uring_refusal

    def direct_io(self, folder: str | Path) -> str:
        return self.direct_refusal


def facts_of(machine: Machine, state: dict[str, Any] | None = None, trouble: str = "", **settings: object) -> Facts:
    """`settings` with __ for the point. `state`: what its kvtierd says; None: none runs."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    if state is not None and not machine.path(f"/proc/{PID}/cmdline").exists():
        machine.process(PID, "/usr/bin/python3", "/usr/bin/kvtierd")
    folder = Path("/run/kvtier")
    config = Config(DAEMON, given)
    return Facts(machine, config, "defaults", folder / "kvtierd.sock", folder / "admin.sock", state, trouble)


def running(capacity: int = 4 * GIB, **differs: object) -> dict[str, Any]:
    """What a kvtierd that is well says of itself."""
    arena = {"huge_bytes": capacity, "pinned": True, "notes": []}
    tiers: dict[str, Any] = {"cpu": {"capacity_bytes": capacity}}
    return {"pid": PID, "version": __version__, "uptime_s": 5.0, "arena": arena, "tiers": tiers, "engines": [], **differs}


def only(check: Callable[[Facts], Iterator[Finding]], facts: Facts) -> Finding:
    """What it says, if that is one thing."""
    (finding,) = check(facts)
    return finding
