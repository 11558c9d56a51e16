"""Measures what this machine does: the copy between arena and engine, and the drives of the NVMe tier.

It does what kvtier does: the same copier and the same I/O, blocks of a usual size, as many at once. A drive is read and
written in a scratch file that has no name any more when the first byte goes to it, so that nothing stays behind
however this ends. It is small, because writing wears drives: at most SCRATCH_BYTES are written to each.

    python -m kvtier.measuring '{"paths": ["/mnt/nvme0"], "seconds": 2, "io": "auto"}'    prints a Calibration
"""

import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvtier import _native
from kvtier.calibration import CPU, NVME, SPARE_S, Calibration, Drive, Speed, machine_of
from kvtier.config import MIB, format_size
from kvtier.tiers.block_io import IO_DEPTH, IO_THREADS

BLOCK_BYTES = MIB
PAGES = 32  # of a block: one a layer
JOB_BLOCKS = 16  # of one copy
ARENA_BYTES = 64 * MIB  # more than the caches of most processors, and little beside any arena
SCRATCH_BYTES, SCRATCH_BYTES_MIN = 256 * MIB, 16 * MIB  # a drive
SCRATCH_SHARE = 0.25  # of what is free: nobody shall find the drive full because of this
SCRATCH = "calibrating"  # its name, for a moment
COPY_SHARE = 0.15  # of all seconds; the rest is the drives'
WRITE_SHARE, READ_SHARE, ALONE_SHARE = 0.45, 0.35, 0.2  # of a drive's seconds; ALONE: one block after the other
LATENCY_MIN_S = 1e-6
WAIT_S = 0.1
NICE = 10  # whoever serves goes first

Begin = Callable[[int], int]  # starts a transfer with this buffer, and returns its ticket


def measure(paths: Sequence[Path], seconds: float, io: str = "auto") -> Calibration:
    """In about so many seconds. What can't be measured leaves a note."""
    begun = time.perf_counter()
    found = Calibration(machine_of(paths), at=time.time())
    try:
        with _native.Arena.create(ARENA_BYTES, "kvtier-calibrate", pin=False) as arena:
            arena.view()[:] = np.random.default_rng().integers(0, 256, ARENA_BYTES, np.uint8)  # drives may compress
            found.links[CPU] = _copy_speed(arena, COPY_SHARE * seconds)
            if paths:
                _measure_drives(found, paths, (1 - COPY_SHARE) * seconds, arena.address, io)
    except (MemoryError, OSError, ValueError) as error:
        found.notes.append(f"not measured: {error}")
    found.seconds = time.perf_counter() - begun
    return found


# --- the copy ------------------------------------------------------------------------------------------------


def _copy_speed(arena: _native.Arena, seconds: float) -> Speed:
    """From the arena to the layers of an engine: blocks are whole in the one, their pages lie apart in the other."""
    layers = np.ones(ARENA_BYTES, np.uint8)
    rng, blocks, page = np.random.default_rng(), ARENA_BYTES // BLOCK_BYTES, np.uint64(BLOCK_BYTES // PAGES)
    of_layer = np.arange(PAGES, dtype=np.uint64)
    copier = _native.Copier()

    def copy(count: int) -> float:
        slot, target = (rng.choice(blocks, count, replace=False).astype(np.uint64)[:, None] for _ in range(2))
        source = np.uint64(arena.address) + slot * np.uint64(BLOCK_BYTES) + of_layer * page
        into = np.uint64(layers.ctypes.data) + of_layer * np.uint64(ARENA_BYTES // PAGES) + target * page
        begun = time.perf_counter()
        copier.wait(copier.submit(source.ravel(), into.ravel(), np.full(source.size, page)))
        taken = time.perf_counter() - begun
        copier.poll()
        return taken

    try:
        bytes_per_s = JOB_BLOCKS * BLOCK_BYTES / _median(lambda: copy(JOB_BLOCKS), 0.7 * seconds)
        return _speed(_median(lambda: copy(1), 0.3 * seconds), bytes_per_s)
    finally:
        copier.close()


# --- the drives ----------------------------------------------------------------------------------------------


@dataclass
class _Scratch:
    """A nameless file on a drive; its first `blocks` blocks were written."""

    path: Path
    fd: int
    size: int
    blocks: int = 0

    def next_write(self) -> int:
        """The offset."""
        self.blocks += 1
        return (self.blocks - 1) * BLOCK_BYTES


def _measure_drives(found: Calibration, paths: Sequence[Path], seconds: float, address: int, io: str) -> None:
    share = seconds / (len(paths) + (len(paths) > 1))
    files = _native.FileIo(depth=IO_DEPTH, threads=IO_THREADS, backend=io)
    with contextlib.ExitStack() as opened:
        opened.callback(files.close)
        scratches = []
        for path in paths:
            try:
                scratch = opened.enter_context(_scratch_file(path, found.notes))
                found.drives.append(_measure_drive(files, scratch, address, share))
                scratches.append(scratch)
            except OSError as error:
                found.notes.append(f"{path} is not measured: {error.strerror}")
        if len(scratches) > 1:
            together = _stream(files, _reads(files, scratches, address), IO_DEPTH, share)
            found.links[NVME] = Speed(max(drive.read.latency_s for drive in found.drives), together)
        elif scratches:
            found.links[NVME] = found.drives[0].read


def _measure_drive(files: _native.FileIo, scratch: _Scratch, address: int, seconds: float) -> Drive:
    """OSError: the drive's."""

    def write(buffer: int) -> int:
        return files.write(scratch.fd, scratch.next_write(), address + buffer * BLOCK_BYTES, BLOCK_BYTES)

    blocks, write_s, alone_s = scratch.size // BLOCK_BYTES, WRITE_SHARE * seconds, ALONE_SHARE * seconds
    written = _stream(files, write, IO_DEPTH, 0.9 * write_s, blocks - blocks // 10, sync=scratch.fd)
    write_alone_s = _median(lambda: BLOCK_BYTES / _stream(files, write, 1, write_s, 1), 0.1 * write_s, blocks // 10)
    reads = _reads(files, [scratch], address)
    read = _stream(files, reads, IO_DEPTH, READ_SHARE * seconds)
    read_alone_s = _median(lambda: BLOCK_BYTES / _stream(files, reads, 1, alone_s, 1), alone_s)
    return Drive(str(scratch.path), _speed(read_alone_s, read), _speed(write_alone_s, written))


@contextlib.contextmanager
def _scratch_file(path: Path, notes: list[str]) -> Iterator[_Scratch]:
    """OSError: the drive takes none."""
    of = os.statvfs(path)
    free = int(of.f_bavail * of.f_frsize * SCRATCH_SHARE)
    if free < SCRATCH_BYTES_MIN:
        raise OSError(0, f"less than {format_size(SCRATCH_BYTES_MIN / SCRATCH_SHARE)} are free")
    file, flags = path / SCRATCH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            fd = os.open(file, flags | os.O_DIRECT, 0o600)
        except OSError:
            fd = os.open(file, flags, 0o600)
            notes.append(f"{path} is on a filesystem without O_DIRECT: what was measured may be the page cache's speed")
    finally:
        file.unlink(missing_ok=True)
    try:
        yield _Scratch(path, fd, min(SCRATCH_BYTES, free))
    finally:
        os.close(fd)


def _reads(files: _native.FileIo, scratches: Sequence[_Scratch], address: int) -> Begin:
    """Of random blocks, drive after drive in turn."""
    rng, turn = np.random.default_rng(), itertools.cycle(scratches)

    def read(buffer: int) -> int:
        scratch = next(turn)
        offset = int(rng.integers(scratch.blocks)) * BLOCK_BYTES
        return files.read(scratch.fd, offset, address + buffer * BLOCK_BYTES, BLOCK_BYTES)

    return read


def _stream(
    files: _native.FileIo, begin: Begin, depth: int, seconds: float, count: int = sys.maxsize, sync: int = -1
) -> float:
    """Bytes a second, with `depth` transfers under way, until the time or their count is over; `sync`: what is written
    there must have arrived. OSError: the first that failed."""
    begun = time.perf_counter()
    free, under_way, done, failed = list(range(depth)), dict[int, int](), 0, 0
    is_over = False
    while under_way or not is_over:
        while free and not is_over:
            buffer = free.pop()
            under_way[begin(buffer)] = buffer
            is_over = done + len(under_way) >= count or time.perf_counter() - begun >= seconds
        files.wait(WAIT_S)
        for ticket, error, *_ in files.poll():
            free.append(under_way.pop(ticket))
            done += not error
            failed = failed or error
        is_over = is_over or bool(failed) or time.perf_counter() - begun >= seconds
    if failed:
        raise OSError(failed, os.strerror(failed))
    if sync >= 0:
        os.fdatasync(sync)
    return done * BLOCK_BYTES / (time.perf_counter() - begun)


# --- figures -------------------------------------------------------------------------------------------------


def _median(once: Callable[[], float], seconds: float, count: int = sys.maxsize) -> float:
    """Of as many as fit into the time, at least one."""
    until, taken = time.perf_counter() + seconds, [once()]
    while time.perf_counter() < until and len(taken) < count:
        taken.append(once())
    return statistics.median(taken)


def _speed(alone_s: float, bytes_per_s: float) -> Speed:
    """`alone_s`: what one block takes with nothing beside it. What bandwidth doesn't explain of it is latency."""
    return Speed(max(LATENCY_MIN_S, alone_s - BLOCK_BYTES / bytes_per_s), bytes_per_s)


def main() -> None:
    order = json.loads(sys.argv[1])
    signal.alarm(int(order["seconds"] + SPARE_S) + 1)  # a drive that hangs: nobody else may be left to end this
    os.nice(NICE)
    found = measure([Path(path) for path in order["paths"]], order["seconds"], order["io"])
    print(json.dumps(found.as_json()))


if __name__ == "__main__":
    main()
