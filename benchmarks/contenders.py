"""Who moves blocks in bench_nvme.py: kvtier's NVMe tier, what the disk gives, and two ways to do without a tier.

    DrivenTier      NvmeTier, with as much under way as the store has; its blocks as they are, or as frames
    RawThreads      O_DIRECT by preadv and pwrite on as many threads as there may be requests; no checksum, no record
    RawRing         the same by io_uring from one thread, without a library: a request each, at most DEPTH at once
    LmdbValues      the bytes are values in LMDB. sync=False and a sync each second, the fastest durable way of many
    FilePerBlock    a file a block, written beside its place and renamed, on a pool of threads; never synced

The last two are asked for less than kvtier gives: no checksum is made or compared, and a file that is renamed but not
synced may be lost. Their reads are cold: before each pass LMDB is closed, the pages of the files that are to be read
are dropped by posix_fadvise, and it is opened again, for what is mapped can't be dropped. Then each block is read once,
and before each read of LMDB what the kernel has read ahead of the last one is dropped: in a large store it would be of
no use. How much it reads ahead is the kernel's setting.
"""

import contextlib
import ctypes
import itertools
import mmap
import os
import random
import select
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb

from kvtier import _native
from kvtier.block import KEY_BYTES, SECRET_BYTES, SLOT_UNIT
from kvtier.codec import RAW, Codec
from kvtier.demotion import WRITING_BYTES_MAX
from kvtier.staging import READING_BYTES_MAX
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.nvme import NvmeTier
from kvtier.transfer import Demote, Finished, Flush, Forget, Promote, Remember, Transfer

DEPTH = 8  # requests that the disk has at once
FILE_WRITERS = 8
SYNC_S = 1.0
MAP_BYTES = 1 << 30

Job = tuple[int, int]  # offset in the file, offset in the memory


def shuffled(values: Iterable[Any]) -> list[Any]:
    found = list(values)
    return random.sample(found, len(found))


# --- kvtier ------------------------------------------------------------------------------------------------------


class DrivenTier:
    """Cells of space: one is filled, and the other, if there are two, is forgotten meanwhile."""

    def __init__(
        self,
        folder: Path,
        arena: _native.Arena,
        cell_bytes: int,
        cells: int = 2,
        io: str = "auto",
        encrypted: bool = False,
        codec: Codec = RAW,
        stored: int = 0,
    ) -> None:
        """`stored`: bytes of a place, where a codec makes frames."""
        self._folder, self._cell_bytes, self._cells, self._codec, self._stored = folder, cell_bytes, cells, codec, stored
        master = MasterKey(os.urandom(SECRET_BYTES)) if encrypted else None
        self.tier = NvmeTier([folder], cells * cell_bytes, arena.address, io=io, master=master)
        self._tickets, self._under_way, self._cell = itertools.count(1), 0, 0
        self._poller = select.poll()
        self._poller.register(self.tier.fileno(), select.POLLIN)
        self._blocks: list[Promote] = []  # what was written last, as it would be read
        self._run([Remember(next(self._tickets), b"n" * 32, 0, 0)])

    def _start(self, order: Transfer) -> None:
        self.tier.start(order)
        self._under_way += 1

    def _wait(self, timeout_s: float | None = None) -> list[Finished]:
        self._poller.poll(None if timeout_s is None else max(0.0, timeout_s * 1e3))
        done = self.tier.poll()
        self._under_way -= len(done)
        assert not any(each.fault for each in done), done
        return done

    def _run(self, orders: Iterable[Transfer], under_way_max: int = 1) -> list[Finished]:
        """All of them, so many at once, until nothing is under way."""
        left, finished = iter(orders), []
        while True:
            for order in itertools.islice(left, max(0, under_way_max - self._under_way)):
                self._start(order)
            if not self._under_way:
                return finished
            finished += self._wait()

    def _starts(self, size: int) -> range:
        """Of the blocks of a cell or of the arena, in units of a place."""
        units = size // SLOT_UNIT
        return range(0, self._cell_bytes // size * units, units)

    def _forget_other(self) -> Forget:
        """And it is the one to fill next."""
        self._cell = (self._cell + 1) % self._cells
        units = self._cell_bytes // SLOT_UNIT
        return Forget(next(self._tickets), self._cell * units, (self._cell + 1) * units)

    def _demote(self, place: int, slot: int, size: int) -> Demote:
        ticket = next(self._tickets)
        key = ticket.to_bytes(KEY_BYTES, "big")
        return Demote(ticket, key, slot, place, size, 0, 0, codec=self._codec, stored=self._stored)

    def write(self, size: int) -> None:
        """A cell, durably."""
        first = self._cell * self._cell_bytes // SLOT_UNIT
        made: list[Demote] = []

        def orders() -> Iterator[Transfer]:
            if self._cells > 1:
                yield self._forget_other()
            for start, slot in zip(self._starts(size), shuffled(self._starts(size))):
                made.append(self._demote(first + start, slot, size))
                yield made[-1]

        finished = self._run(orders(), WRITING_BYTES_MAX // size)
        self._run([Flush(next(self._tickets))])
        checksums = {done.ticket: done.checksum for done in finished}
        self._blocks = [Promote(0, o.key, o.slot, o.place, size, checksums[o.ticket], stored=self._stored) for o in made]

    def read(self, size: int) -> None:
        """What was written last, in random order, to other slots."""
        slots = shuffled(self._starts(size))
        self._run(map(self._promote, shuffled(self._blocks), slots), READING_BYTES_MAX // size)

    def _promote(self, block: Promote, slot: int) -> Promote:
        return replace(block, ticket=next(self._tickets), slot=slot)

    def timed_reads(self, size: int, reads: int, blocks_per_s: float) -> tuple[list[float], float]:
        """As the function of this name, of what was written last. Written is to the other cell, until that is full."""
        first = self._cell * self._cell_bytes // SLOT_UNIT
        starts = self._starts(size)
        half = len(starts) // 2  # of the slots: nobody reads into what is being written
        self._run([Forget(next(self._tickets), first, first + self._cell_bytes // SLOT_UNIT)])
        to_write = [self._demote(first + start, starts[half + i % half], size) for i, start in enumerate(starts)]
        seconds, written, begun = [], 0, time.monotonic()
        for i, block in enumerate(shuffled(self._blocks)[:reads]):
            order, start, ended = self._promote(block, starts[i % half]), time.perf_counter(), False
            self._start(order)
            while not ended:
                writing = blocks_per_s > 0 and written < len(to_write)
                due_s = begun + written / blocks_per_s - time.monotonic() if writing else None
                if due_s is not None and due_s <= 0:
                    self._start(to_write[written])
                    written += 1
                ended = order.ticket in {done.ticket for done in self._wait(due_s)}
            seconds.append(time.perf_counter() - start)
        lasted = time.monotonic() - begun
        self._run([])
        return seconds, written / lasted

    def close(self) -> None:
        self.tier.close()
        shutil.rmtree(self._folder)


# --- what the disk gives -----------------------------------------------------------------------------------------


class Raw:
    """A file as large as the memory, moved from or to it as a whole."""

    def __init__(self, fd: int, memory: memoryview) -> None:
        self._fd, self._memory = fd, memory

    def write(self, size: int) -> None:
        starts = range(0, len(self._memory) // size * size, size)
        self._move(list(zip(starts, shuffled(starts))), size, True)
        os.fdatasync(self._fd)

    def read(self, size: int) -> None:
        starts = range(0, len(self._memory) // size * size, size)
        self._move(list(zip(shuffled(starts), shuffled(starts))), size, False)

    def _move(self, jobs: Sequence[Job], size: int, writing: bool) -> None:
        raise NotImplementedError


class RawThreads(Raw):
    def __init__(self, fd: int, memory: memoryview) -> None:
        super().__init__(fd, memory)
        self._pool = ThreadPoolExecutor(DEPTH)

    def _move(self, jobs: Sequence[Job], size: int, writing: bool) -> None:
        left = iter(jobs)  # of all threads
        for thread in [self._pool.submit(self._work, left, size, writing) for _ in range(DEPTH)]:
            thread.result()

    def _work(self, left: Iterator[Job], size: int, writing: bool) -> None:
        for offset, at in left:
            piece = self._memory[at : at + size]
            moved = os.pwrite(self._fd, piece, offset) if writing else os.preadv(self._fd, [piece], offset)
            assert moved == size

    def close(self) -> None:
        self._pool.shutdown()


class RawRing(Raw):
    """Offsets and numbers are those of linux/io_uring.h. OSError: the kernel has none, or refuses it."""

    SETUP, ENTER, GETEVENTS, READ, WRITE = 425, 426, 1, 22, 23
    REQUEST, REQUEST_BYTES = struct.Struct("<BBHiQQIIQ"), 64
    COMPLETION = struct.Struct("<QiI")

    def __init__(self, fd: int, memory: memoryview) -> None:
        super().__init__(fd, memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        params = (ctypes.c_uint32 * 30)()
        self._ring = self._call(self.SETUP, DEPTH, params)
        if self._ring < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        entries, completions = params[0], params[1]
        requests_at, completions_at = params[10:18], params[20:28]  # struct io_sqring_offsets, io_cqring_offsets
        size = max(requests_at[6] + 4 * entries, completions_at[5] + self.COMPLETION.size * completions)
        self._shared = mmap.mmap(self._ring, size)
        self._requests = mmap.mmap(self._ring, self.REQUEST_BYTES * entries, offset=0x1000_0000)
        self._request_tail, self._head, self._tail = map(self._word, (requests_at[1], *completions_at[:2]))
        self._request_mask, self._mask, self._completions = entries - 1, completions - 1, completions_at[5]
        for i in range(entries):
            self._word(requests_at[6] + 4 * i).value = i

    def _word(self, at: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self._shared, at)

    def _move(self, jobs: Sequence[Job], size: int, writing: bool) -> None:
        under_way = new = done = 0
        left = iter(jobs)
        while done < len(jobs):
            for job in itertools.islice(left, DEPTH - under_way):
                self._prepare(job, size, writing)
                under_way, new = under_way + 1, new + 1
            taken = self._call(self.ENTER, self._ring, new, 1, self.GETEVENTS, None, 0)
            assert taken >= 0, os.strerror(ctypes.get_errno())
            new -= taken
            for moved in self._completed():
                assert moved == size
                under_way, done = under_way - 1, done + 1

    def _prepare(self, job: Job, size: int, writing: bool) -> None:
        tail, code = self._request_tail.value, self.WRITE if writing else self.READ
        at = (tail & self._request_mask) * self.REQUEST_BYTES
        self.REQUEST.pack_into(self._requests, at, code, 0, 0, self._fd, job[0], self._address + job[1], size, 0, 0)
        self._request_tail.value = tail + 1

    def _completed(self) -> Iterator[int]:
        while self._head.value != self._tail.value:
            at = self._completions + (self._head.value & self._mask) * self.COMPLETION.size
            yield self.COMPLETION.unpack_from(self._shared, at)[1]
            self._head.value += 1

    def close(self) -> None:
        os.close(self._ring)


def raw_limits(fd: int, memory: memoryview) -> dict[str, RawThreads | RawRing]:
    limits: dict[str, RawThreads | RawRing] = {"raw_threads": RawThreads(fd, memory)}
    with contextlib.suppress(OSError):
        limits["raw_io_uring"] = RawRing(fd, memory)
    return limits


# --- other ways to keep blocks -----------------------------------------------------------------------------------


class LmdbValues:
    writers = 1  # LMDB has one at a time

    def __init__(self, folder: Path, memory: memoryview, block_bytes: int, blocks: int) -> None:
        """Writes blocks 0 to `blocks` - 1, which are read later."""
        folder.mkdir()
        self._path, self._memory, self._size = folder / "values.mdb", memory, block_bytes
        self._env, self._synced_at = self._open(), time.monotonic()
        for number in range(blocks):
            self.write(number)
        self._env.sync(True)
        self._file, self._read_bytes = os.open(self._path, os.O_RDONLY), self._path.stat().st_size

    def _open(self) -> lmdb.Environment:
        return lmdb.open(str(self._path), subdir=False, map_size=MAP_BYTES, lock=False, sync=False)

    def write(self, number: int) -> None:
        with self._env.begin(write=True) as txn:
            txn.put(b"%8d" % number, self._piece(number))
        if time.monotonic() > self._synced_at + SYNC_S:
            self._env.sync(True)
            self._synced_at = time.monotonic()

    def read(self, number: int, place: int) -> None:
        with self._env.begin(buffers=True) as txn:
            self._piece(place)[:] = txn.get(b"%8d" % number)

    def drop_readahead(self) -> None:
        os.posix_fadvise(self._file, 0, self._read_bytes, os.POSIX_FADV_DONTNEED)

    def make_cold(self) -> None:
        self._env.sync(True)
        self._env.close()
        drop_pages(self._path)
        self._env = self._open()

    def _piece(self, number: int) -> memoryview:
        at = number * self._size % len(self._memory)
        return self._memory[at : at + self._size]

    def close(self) -> None:
        self._env.close()
        os.close(self._file)


class FilePerBlock:
    writers = FILE_WRITERS

    def __init__(self, folder: Path, memory: memoryview, block_bytes: int, blocks: int) -> None:
        """Writes blocks 0 to `blocks` - 1, which are read later."""
        folder.mkdir()
        self._folder, self._memory, self._size, self._blocks = folder, memory, block_bytes, blocks
        for number in range(blocks):
            self.write(number)

    def write(self, number: int) -> None:
        new = self._folder / f"{number}.new"
        with new.open("wb", buffering=0) as file:
            file.write(self._piece(number))
        new.rename(self._folder / str(number))

    def read(self, number: int, place: int) -> None:
        with (self._folder / str(number)).open("rb", buffering=0) as file:
            assert file.readinto(self._piece(place)) == self._size

    def drop_readahead(self) -> None:
        """It ends where the file does."""

    def make_cold(self) -> None:
        for number in range(self._blocks):
            drop_pages(self._folder / str(number))

    def _piece(self, number: int) -> memoryview:
        at = number * self._size % len(self._memory)
        return self._memory[at : at + self._size]

    def close(self) -> None:
        pass


def drop_pages(path: Path) -> None:
    """From the page cache; dirty ones are written first, for they can't be dropped."""
    fd = os.open(path, os.O_RDWR)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def timed_reads(
    contender: LmdbValues | FilePerBlock, order: Sequence[int], rewritten: Sequence[int], blocks_per_s: float
) -> tuple[list[float], float]:
    """Seconds of each read of the blocks `order`, one after the other, and blocks per second that were written
    meanwhile: those of `rewritten`, over and over, at the pace that is asked for, or slower. 0: none."""
    over, turn, begun = threading.Event(), itertools.count(), time.monotonic()

    def write() -> int:
        written = 0
        for number in turn:  # of all writers
            if over.wait(max(0.0, begun + number / blocks_per_s - time.monotonic())):
                return written
            contender.write(rewritten[number % len(rewritten)])
            written += 1
        return written

    with ThreadPoolExecutor(contender.writers) as pool:
        writers = [pool.submit(write) for _ in range(contender.writers if blocks_per_s else 0)]
        seconds = []
        for place, number in enumerate(order):
            contender.drop_readahead()
            start = time.perf_counter()
            contender.read(number, place)
            seconds.append(time.perf_counter() - start)
        lasted = time.monotonic() - begun
        over.set()
        return seconds, sum(writer.result() for writer in writers) / lasted
