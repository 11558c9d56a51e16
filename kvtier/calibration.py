"""What this machine does, so that the first decisions after a start rest on more than guesses. What is learnt from
transfers replaces it soon.

    Speed           what one link takes: seconds = latency + bytes / bandwidth
    Calibration     of one machine: its links, its drives, and how long its engines compute

One file keeps them, one entry a machine: a home folder may be shared by many. A machine is told by what makes it fast
or slow, never by its name. Nothing here keeps a kvtierd from its start: what can't be read, written or measured leaves
a note and careful priors.
"""

import asyncio
import contextlib
import json
import math
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kvtier import __version__
from kvtier.config import format_size
from kvtier.decision_log import make_folder

FILE = "calibration.json"
VERSION = 1
FILE_BYTES_MAX = 4 * 1024**2
MACHINES_MAX = 16  # entries; the oldest goes
PREFILLS_MAX = 64  # namespaces; the one that was remembered longest ago goes
REMOTES_MAX = 16  # as well
COUNTS_MAX, COUNT_MAX = 16, 2**63 - 1
SPARE_S = 60.0  # beyond its seconds a measurement may take so long, for it is nice; then its process is ended
KILLED_S = 1.0  # and then it is waited for no longer: a drive that hangs may keep it

CPU, NVME, REMOTE = "cpu", "nvme", "remote"  # links: arena to engine, drives to arena, remote to arena


@dataclass(frozen=True, slots=True)
class Speed:
    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        """ValueError: no link is like that."""
        if not (math.isfinite(self.latency_s + self.bytes_per_s) and self.latency_s >= 0 and self.bytes_per_s > 0):
            raise ValueError(self)


# Where nothing was measured: on the slow side, for a load that is too slow costs more than one that was not tried.
PRIORS = {CPU: Speed(100e-6, 8e9), NVME: Speed(1e-3, 2e9), REMOTE: Speed(2e-3, 0.2e9)}


@dataclass(frozen=True, slots=True)
class Drive:
    """One folder of the NVMe tier, alone. Over all of them together: the link."""

    path: str
    read: Speed
    write: Speed  # to space that was never written


@dataclass(slots=True)
class Calibration:
    """Nothing is measured as long as `at` is 0; links then are PRIORS."""

    machine: dict[str, str]  # as machine_of has it
    at: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # it took
    links: dict[str, Speed] = field(default_factory=dict)  # those that could be measured
    drives: list[Drive] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prefills: dict[str, dict[str, int]] = field(default_factory=dict)  # by the namespace's digest in hex; newest last
    remotes: dict[str, dict[str, int]] = field(default_factory=dict)  # links, by the remote's name; newest last

    @property
    def is_measured(self) -> bool:
        return self.at > 0

    def link(self, tier: str) -> Speed:
        return self.links.get(tier, PRIORS[tier])

    def remember_prefill(self, namespace: str, counts: Mapping[str, int]) -> None:
        """`counts`: how long an engine of this namespace computes, as it goes over the wire."""
        _remember(self.prefills, namespace, counts, PREFILLS_MAX)

    def remember_remote(self, name: str, counts: Mapping[str, int]) -> None:
        """`counts`: its link, as Link.to_counts has it. No measurement of the machine says anything of a remote."""
        _remember(self.remotes, name, counts, REMOTES_MAX)

    def remote(self, name: str) -> Mapping[str, int]:
        """For Link.from_counts."""
        prior = PRIORS[REMOTE]
        otherwise = {"latency_us": round(prior.latency_s * 1e6), "bytes_per_s": round(prior.bytes_per_s)}
        return self.remotes.get(name, otherwise)

    def take_learnt(self, other: "Calibration") -> None:
        """What an earlier kvtierd learnt by working, not by measuring."""
        self.prefills, self.remotes = other.prefills, other.remotes

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, given: object) -> "Calibration":
        """ValueError: this is none."""
        try:
            fields: dict = dict(given)  # type: ignore[call-overload]
            return cls(
                machine={str(fact): str(value) for fact, value in fields["machine"].items()},
                at=float(fields["at"]),
                seconds=float(fields["seconds"]),
                links={str(tier): Speed(**speed) for tier, speed in fields["links"].items()},
                drives=[
                    Drive(str(drive["path"]), Speed(**drive["read"]), Speed(**drive["write"])) for drive in fields["drives"]
                ],
                notes=[str(note) for note in fields["notes"]],
                prefills=_good_counts(fields["prefills"], PREFILLS_MAX),
                remotes=_good_counts(fields.get("remotes", {}), REMOTES_MAX),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no calibration: {error!r}") from None


# --- the machine ---------------------------------------------------------------------------------------------


def machine_of(paths: Sequence[Path]) -> dict[str, str]:
    """What decides how fast kvtier is here. Where one of these changes, everything is measured again."""
    drives = {str(path.absolute()): _device_of(path) for path in paths}
    return {"kvtier": __version__, "cpu": _cpu(), "gpu": _gpus(), **drives}


def _cpu() -> str:
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{model}, {os.cpu_count()} cores"


def _gpus() -> str:
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in found for line in _text(file).splitlines() if line.startswith("Model:")]
    return ", ".join(line.partition(":")[2].strip() for line in lines)


def _device_of(path: Path) -> str:
    """Model and size of the drive. A filesystem that has none of its own goes by its number."""
    try:
        number = path.stat().st_dev
    except OSError as error:
        return f"none: {error.strerror}"
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if (device / "partition").exists():
        device = device.parent
    model, sectors = _text(device / "device/model") or device.name, _text(device / "size")
    return f"{model}, {format_size(int(sectors) * 512)}" if sectors.isdecimal() else model


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


# --- what is kept --------------------------------------------------------------------------------------------


def load(folder: Path, machine: Mapping[str, str]) -> Calibration:
    """What is known of this machine: perhaps nothing. How its engines compute is known even if its drives are others."""
    found = Calibration(dict(machine))
    for kept in _entries(folder):
        if kept.machine == machine:
            return kept
        if _without_drives(kept.machine) == _without_drives(machine):
            found.take_learnt(kept)  # of the newest such one
    return found


def save(folder: Path, calibration: Calibration) -> str:
    """Durable when it returns. What went wrong, or "". Whoever measured last is right: `kvtier calibrate` may have done so
    while a kvtierd held an older one. May run on a thread: what is remembered meanwhile is for the next time."""
    calibration = replace(calibration, prefills=dict(calibration.prefills), remotes=dict(calibration.remotes))
    kept = _entries(folder)
    for entry in kept:
        if entry.machine == calibration.machine and entry.at > calibration.at:
            entry.take_learnt(calibration)
            calibration = entry
    kept = [*(entry for entry in kept if entry.machine != calibration.machine), calibration][-MACHINES_MAX:]
    try:
        make_folder(folder)
        fd, new = tempfile.mkstemp(prefix=FILE + ".", dir=folder)  # mode 0600
        try:
            with open(fd, "w") as opened:
                json.dump({"version": VERSION, "machines": [entry.as_json() for entry in kept]}, opened)
                opened.flush()
                os.fsync(fd)
            os.replace(new, folder / FILE)
        except OSError:
            os.unlink(new)
            raise
    except OSError as error:
        return f"can't write {folder / FILE}: {error.strerror}"
    return ""


def _entries(folder: Path) -> list[Calibration]:
    """Newest last. A file that is none, or damaged, or of another version, holds none."""
    try:
        with (folder / FILE).open("rb") as opened:
            fields = json.loads(opened.read(FILE_BYTES_MAX))
        return [Calibration.from_json(entry) for entry in fields["machines"]] if fields["version"] == VERSION else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _without_drives(machine: Mapping[str, str]) -> dict[str, str]:
    return {fact: value for fact, value in machine.items() if not fact.startswith("/")}


def _remember(kept: dict[str, dict[str, int]], name: str, counts: Mapping[str, int], most: int) -> None:
    kept.pop(name, None)
    kept[name] = dict(counts)
    while len(kept) > most:
        del kept[next(iter(kept))]


def _good_counts(given: Mapping[str, Mapping[str, int]], most: int) -> dict[str, dict[str, int]]:
    good = {}
    for of, counts in list(given.items())[-most:]:
        fits = len(counts) <= COUNTS_MAX and all(type(n) is int and abs(n) <= COUNT_MAX for n in counts.values())
        if fits:
            good[str(of)] = {str(name): n for name, n in counts.items()}
    return good


# --- measuring, from a process that has something else to do -------------------------------------------------


async def measured_beside(paths: Sequence[Path], seconds: float, io: str = "auto") -> Calibration:
    """As measuring.measure has it, by a process of its own: a drive that hangs can't hold this one, and this one's loop
    goes on. Unmeasured, with a note, where that doesn't work."""
    failed = Calibration(machine_of(paths))
    order = json.dumps({"paths": [str(path.absolute()) for path in paths], "seconds": seconds, "io": io})
    command = [sys.executable, "-P", "-m", "kvtier.measuring", order]
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        failed.notes.append(f"nothing was measured: no process for it: {error.strerror}")
        return failed
    try:
        out, said = await asyncio.wait_for(process.communicate(), seconds + SPARE_S)
        return Calibration.from_json(json.loads(out))
    except TimeoutError:
        failed.notes.append(f"nothing was measured: it took more than {seconds + SPARE_S:g} s; is a drive slow?")
    except ValueError:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        failed.notes.append(f"nothing was measured: {last or f'its process ended with {process.returncode}'}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.kill()
                await asyncio.wait_for(process.wait(), KILLED_S)
    return failed
