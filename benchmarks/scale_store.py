"""A store of millions of blocks on drives, as a kvtierd that ended left it, without writing their bytes; and its kvtierd.

To save 10 million blocks takes an hour and 610 GiB. So the catalogue is written by kvtier's own code, in large commits,
and the payload file has its size and no bytes: a hole. What is read there is zeros, and each record's checksum is that of
zeros under its key, so kvtierd verifies what it reads as ever. The one thing that is changed in kvtierd is that it takes
the file as it is, instead of having the filesystem set aside room for all of it.

    python scale_store.py --kvtierd --set ...        that kvtierd; --steps also times each step of its event loop
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from kvtierd import scheduler_hello

from kvtier import _native, observer
from kvtier.block import KEY_BYTES, PLACE_GRAIN, SLOT_UNIT
from kvtier.errors import DaemonError
from kvtier.extents import extent_bytes_for
from kvtier.forgetting import session_tag
from kvtier.tiers.catalogue import RECORD, Catalogue
from kvtier.tiers.drives import BLOCKS, CATALOGUE, FORMAT, FORMAT_VERSION, Format
from kvtier.transfer import ORIGIN_BYTES, Remember

MODEL = "scale"
NAMESPACE = scheduler_hello(model=MODEL).namespace  # as engines of kvtierd's own user have it
SPARE_EXTENTS = 4  # that are free when the daemon starts: what is saved soon takes the room of what is there
BATCH = 250_000  # records of a commit
SESSION_BLOCKS = 100  # blocks with one origin
PATIENCE_S = 300.0
ARENA = "kvtier-arena"


def keys_of(first: int, n: int) -> bytes:
    """Packed keys of blocks `first` and after: any two processes make the same, and nobody keeps them."""
    numbers = np.arange(2 * first, 2 * (first + n), dtype=np.uint64)
    return _mixed(numbers).tobytes()


def session_name(number: int) -> str:
    """Whose blocks SESSION_BLOCKS * number and after are."""
    return f"session {number}"


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """As random as a keyed hash, and no two alike (splitmix64)."""
    with np.errstate(over="ignore"):
        x = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class ZeroChecksums:
    """Of a block of zeros under each key. A CRC is linear in what it begins with, so a table of what each byte of that
    adds is enough: nobody goes over 610 GiB of zeros."""

    def __init__(self, block_bytes: int) -> None:
        zeros = bytes(block_bytes)
        self._none = _native.crc32c(zeros, 0)
        self._of_byte = np.zeros((4, 256), np.uint32)
        for byte in range(4):
            for bit in range(8):
                of_bit = _native.crc32c(zeros, 1 << (8 * byte + bit)) ^ self._none
                values = np.arange(256)
                self._of_byte[byte] ^= np.where(values >> bit & 1, of_bit, 0).astype(np.uint32)

    def of(self, keys: bytes) -> np.ndarray:
        """uint32[n], of packed keys."""
        seeds = _native.crc32c_rows(np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES))
        sums = np.full(len(seeds), self._none, np.uint32)
        for byte in range(4):
            sums ^= self._of_byte[byte][seeds >> np.uint32(8 * byte) & np.uint32(0xFF)]
        return sums


def capacity_for(blocks: int, block_bytes: int, drives: int = 1) -> int:
    """Bytes in which so many blocks fit, and SPARE_EXTENTS more extents on each drive."""
    size = extent_bytes_for(blocks * block_bytes, drives)
    extents = -(-blocks // (size // block_bytes))
    return (-(-extents // drives) + SPARE_EXTENTS) * drives * size


def make(folders: list[Path], blocks: int, block_bytes: int) -> None:
    """A store of these drives with so many blocks of one namespace, saved in the order of their numbers."""
    capacity = capacity_for(blocks, block_bytes, len(folders))
    extent_bytes = extent_bytes_for(capacity, len(folders))
    extents, units, store = capacity // extent_bytes, extent_bytes // SLOT_UNIT, os.urandom(16)
    for drive, folder in enumerate(folders):
        folder.mkdir(parents=True)
        said = Format(FORMAT_VERSION, store.hex(), drive, len(folders), extent_bytes)
        (folder / FORMAT).write_text(json.dumps(asdict(said)))
        with (folder / BLOCKS).open("wb") as payload:
            payload.truncate(len(range(drive, extents, len(folders))) * extent_bytes)
    catalogue = Catalogue(folders[0] / CATALOGUE, store, extents, units)
    catalogue.commit([Remember(0, NAMESPACE, 1, 0)])
    checksums = ZeroChecksums(block_bytes)
    for first in range(0, blocks, BATCH):
        n = min(BATCH, blocks - first)
        rows = records(np.arange(first, first + n), block_bytes, units, checksums).tobytes()
        catalogue.commit([rows[at : at + RECORD.itemsize] for at in range(0, len(rows), RECORD.itemsize)])
    catalogue.close()


def records(numbers: np.ndarray, block_bytes: int, extent_units: int, checksums: ZeroChecksums) -> np.ndarray:
    """Rows of the catalogue, of consecutive blocks: one extent is filled after the other."""
    rows = np.zeros(len(numbers), RECORD)
    in_extent = extent_units * SLOT_UNIT // block_bytes
    keys = keys_of(int(numbers[0]), len(numbers))
    rows["place"] = numbers // in_extent * extent_units + numbers % in_extent * (block_bytes // SLOT_UNIT)
    rows["key"] = np.frombuffer(keys, RECORD["key"])
    rows["checksum"] = checksums.of(keys)
    rows["units"], rows["pages"] = block_bytes // SLOT_UNIT, block_bytes // PLACE_GRAIN
    rows["namespace"], rows["epoch"], rows["sequence"] = 1, 0, numbers + 1
    of = numbers // SESSION_BLOCKS
    tags = b"".join(session_tag(session_name(number)) for number in range(of[0], of[-1] + 1))
    rows["origin"][:, : ORIGIN_BYTES // 2] = np.frombuffer(tags, np.uint8).reshape(-1, ORIGIN_BYTES // 2)[of - of[0]]
    crcs = _native.crc32c_rows(np.ascontiguousarray(rows.view(np.uint8).reshape(len(rows), -1)[:, :-4]))
    rows["crc"] = crcs
    return rows


# --- its kvtierd -------------------------------------------------------------------------------------------------


class KVTierd:
    """On this store, or without drives where `folders` is empty. `ready_s`: from its start to its first word."""

    def __init__(self, folder: Path, folders: list[Path], capacity: int, settings: dict[str, Any], *extra: str) -> None:
        self.socket, self.log = folder / "kvtierd.sock", folder / "kvtierd.log"
        mine = {"server.socket": self.socket, "cost.state": folder / "state", "cost.calibrate_s": 0, "cost.holdout": 0}
        if os.geteuid():
            mine["security.dumpable"] = "yes"  # or only root may look at its memory
        if folders:
            mine |= {"nvme.paths": ",".join(map(str, folders)), "nvme.capacity": capacity}
        command = [sys.executable, __file__, "--kvtierd", *extra]
        command += [f"--set={name}={value}" for name, value in (mine | settings).items()]
        begun = time.perf_counter()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while time.perf_counter() < begun + PATIENCE_S:
            if self.process.poll() is not None:
                raise SystemExit(f"kvtierd did not start:\n{self.log.read_text()}")
            with contextlib.suppress(DaemonError):
                observer.ask(self.socket, timeout_s=PATIENCE_S)
                break
            time.sleep(0.02)
        self.ready_s = time.perf_counter() - begun

    def snapshot(self) -> dict[str, Any]:
        return observer.ask(self.socket, timeout_s=PATIENCE_S)

    def memory(self) -> dict[str, int]:
        """Bytes of all mappings but the arena's: those in RAM, those of them that no file has; and the most, arena
        included, that it ever had."""
        found = {"Rss": 0, "Anonymous": 0}
        is_arena = False
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                is_arena = ARENA in line
            elif not is_arena and (name := line.partition(":")[0]) in found:
                found[name] += int(line.split()[1]) * 1024
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return {"rss": found["Rss"], "anonymous": found["Anonymous"], "peak": peak}

    def cpu_s(self) -> float:
        """User and system time so far, of all threads."""
        return time.clock_gettime((~self.process.pid << 3) | 2)  # as clock_getcpuclockid(3) makes it

    def close(self) -> int:
        """SIGTERM; its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> "KVTierd":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def steps_over(log: str, least_s: float) -> Iterator[tuple[float, float, str]]:
    """Of a kvtierd's log, each step of its loop that took so long: seconds of the loop's own CPU, by the clock, what."""
    for line in log.splitlines():
        if line.startswith("step "):
            _, cpu, wall, what = line.split(" ", 3)
            if max(float(cpu), float(wall)) >= least_s:
                yield float(cpu), float(wall), what


def _time_steps(least_s: float = 0.002) -> None:
    """Each step of the loop that takes so long is a line of the log, when it is over."""
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        run(handle)
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        if wall >= least_s:
            what = getattr(handle._callback, "__qualname__", repr(handle._callback))
            os.write(2, f"step {cpu:.6f} {wall:.6f} {what}\n".encode())

    asyncio.Handle._run = timed  # type: ignore[method-assign]


def _take_as_it_is(blocks: Path, size: int) -> None:
    """Instead of drives._allocate."""
    with blocks.open("ab") as payload:
        payload.truncate(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kvtierd", action="store_true")
    parser.add_argument("--steps", action="store_true")
    given, arguments = parser.parse_known_args()
    assert given.kvtierd
    from kvtier import daemon
    from kvtier.tiers import drives

    drives._allocate = _take_as_it_is
    if given.steps:
        _time_steps()
    sys.argv[1:] = arguments
    daemon.main()


if __name__ == "__main__":
    main()
