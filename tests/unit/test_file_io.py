"""FileIo: every byte arrives with its checksum, every transfer is reported once, reads go first."""

import asyncio
import contextlib
import errno
import os
import resource
import select
import threading
import time

import numpy as np
import pytest
from kvtier._native import FileIo, crc32c

from kvtier import _native

MIB = 1 << 20
BLOCK = 64 << 10
BLOCKS = 128  # in the file; the arena has twice as many, half to write from and half to read into
BACKENDS = ["io_uring", "threads"]


@pytest.fixture
def arena():
    with _native.Arena.create(2 * BLOCKS * BLOCK, "kvtier-test", pin=False) as made:
        made.view()[: made.size // 2] = np.random.default_rng(1).integers(0, 256, made.size // 2, dtype=np.uint8)
        yield made


@pytest.fixture
def make(arena, file):
    """Makes them and closes them before arena and file are gone: what is in flight may still use both."""
    with contextlib.ExitStack() as stack:

        def open_one(backend: str, depth: int = 8, threads: int = 2) -> FileIo:
            try:
                made = FileIo(depth, threads, backend)
            except OSError as refused:
                pytest.skip(f"no io_uring here: {refused}")
            stack.callback(made.close)
            return made

        yield open_one


@pytest.fixture(params=BACKENDS)
def io(request, make):
    return make(request.param)


def block(arena, number: int) -> np.ndarray:
    return arena.view()[number * BLOCK : (number + 1) * BLOCK]


def write(io, fd: int, arena, number: int, seed: int = 0) -> int:
    return io.write(fd, number * BLOCK, arena.address + number * BLOCK, BLOCK, seed)


def read(io, fd: int, arena, number: int, seed: int = 0) -> int:
    """Into the arena's other half."""
    return io.read(fd, number * BLOCK, arena.address + (BLOCKS + number) * BLOCK, BLOCK, seed)


def finish(io, count: int) -> list[tuple[int, int, int, float]]:
    """`count` reports, in the order in which they came."""
    reports = []
    while len(reports) < count:
        assert io.wait(30)
        reports += io.poll()
    assert len(reports) == count and io.poll() == []
    return reports


def tickets(reports) -> list[int]:
    return [ticket for ticket, *_ in reports]


def failure(io) -> str:
    """The only report, an error."""
    [(_ticket, error, crc, *_)] = finish(io, 1)
    assert error > 0 and crc == 0
    return errno.errorcode[error]


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


# --- bytes and checksums -------------------------------------------------------------------------------------


def test_a_block_is_written_and_read_back(io, file, arena):
    assert write(io, file, arena, 3, seed=5) == 1
    [(ticket, error, crc, seconds, *_)] = finish(io, 1)
    assert (ticket, error, crc) == (1, 0, crc32c(block(arena, 3), 5)) and seconds > 0
    assert read(io, file, arena, 3, seed=7) == 2
    [(ticket, error, crc, seconds, *_)] = finish(io, 1)
    assert (ticket, error, crc) == (2, 0, crc32c(block(arena, 3), 7)) and seconds > 0
    assert np.array_equal(block(arena, 3), block(arena, BLOCKS + 3))
    assert not block(arena, BLOCKS + 2).any() and not block(arena, BLOCKS + 4).any()


def test_a_range_lands_at_its_offset_in_the_file_and_nowhere_else(io, file, arena, tmp_path):
    write(io, file, arena, 2)
    finish(io, 1)
    assert (tmp_path / "file").read_bytes() == bytes(2 * BLOCK) + block(arena, 2).tobytes()


def test_a_descriptor_without_direct_io_takes_any_range(io, arena, tmp_path):
    with open(tmp_path / "plain", "w+b") as plain:
        io.write(plain.fileno(), 3, arena.address + 5, 1001, 0)
        assert finish(io, 1)[0][1:3] == (0, crc32c(arena.view()[5:1006]))
        io.read(plain.fileno(), 3, arena.address + BLOCKS * BLOCK + 1, 1001, 0)
        assert finish(io, 1)[0][1:3] == (0, crc32c(arena.view()[5:1006]))


def test_a_large_range_is_one_transfer(io, file, arena):
    half = arena.size // 2
    io.write(file, 0, arena.address, half, 1)
    assert finish(io, 1)[0][1:3] == (0, crc32c(arena.view()[:half], 1))
    io.read(file, 0, arena.address + half, half, 1)
    assert finish(io, 1)[0][1:3] == (0, crc32c(arena.view()[:half], 1))
    assert np.array_equal(arena.view()[:half], arena.view()[half:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth, threads", [(1, 1), (2, 3), (5, 2), (8, 2), (32, 4), (FileIo.MAX_DEPTH, 1)])
def test_many_transfers_in_any_order_are_each_done_once(make, backend, depth, threads, file, arena):
    io = make(backend, depth, threads)
    order = np.random.default_rng(2).permutation(BLOCKS).tolist()
    written = {write(io, file, arena, number, seed=number): number for number in order}
    reports = finish(io, BLOCKS)
    assert sorted(tickets(reports)) == list(range(1, BLOCKS + 1))
    asked = {read(io, file, arena, number, seed=number): number for number in reversed(order)}
    reports += finish(io, BLOCKS)
    assert io.pending == 0
    for ticket, error, crc, *_ in reports:
        number = {**written, **asked}[ticket]
        assert (error, crc) == (0, crc32c(block(arena, number), number))
    assert np.array_equal(arena.view()[: arena.size // 2], arena.view()[arena.size // 2 :])


def test_reads_and_writes_may_come_from_several_python_threads(io, file, arena):
    def rewrite(numbers) -> None:
        for number in numbers:
            write(io, file, arena, number)

    threads = [threading.Thread(target=rewrite, args=(range(first, BLOCKS, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tickets(finish(io, BLOCKS))) == list(range(1, BLOCKS + 1))


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 4096, 5000, BLOCK - 1])
def test_a_file_that_ends_within_a_read_is_an_error(io, file, arena, size, tmp_path):
    os.truncate(tmp_path / "file", size)
    read(io, file, arena, 0)
    assert failure(io) == "EIO"


def test_a_descriptor_that_is_not_open_or_not_for_this_is_an_error(io, arena, tmp_path):
    closed = os.dup(0)
    os.close(closed)
    read(io, closed, arena, 0)
    assert failure(io) == "EBADF"
    with open(tmp_path / "read-only", "w+b"), open(tmp_path / "read-only", "rb") as only_read:
        write(io, only_read.fileno(), arena, 0)
        assert failure(io) == "EBADF"


def test_a_full_device_is_an_error_and_the_next_transfer_works(io, file, arena):
    full = os.open("/dev/full", os.O_WRONLY)
    write(io, full, arena, 0)
    assert failure(io) == "ENOSPC"
    os.close(full)
    write(io, file, arena, 0)
    assert finish(io, 1)[0][1] == 0


def test_a_write_that_is_cut_short_goes_on_until_it_fails(io, file, arena, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        write(io, file, arena, 0)
        assert failure(io) == "EFBIG"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_bytes() == block(arena, 0)[:8192].tobytes()


@pytest.mark.parametrize("position", range(5))
def test_numbers_that_make_no_sense_are_refused(io, position):
    for call in (io.read, io.write):
        for wrong in {0: [-1, 2**31], 1: [-1, 2**63 - 1], 2: [-1, 0], 3: [-1, 0, 2**63 - 1], 4: [-1, 2**32]}[position]:
            arguments = [0, 4096, 4096, 4096, 0]
            arguments[position] = wrong
            with pytest.raises(ValueError):
                call(*arguments)
    assert io.pending == 0


def test_what_cannot_be_made_is_refused():
    for wrong in ({"depth": 0}, {"depth": FileIo.MAX_DEPTH + 1}, {"threads": 0}, {"threads": 17}, {"backend": "aio"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FileIo(**wrong)


# --- reports -------------------------------------------------------------------------------------------------


def test_the_descriptor_is_readable_exactly_while_there_is_something_to_poll(io, file, arena):
    assert not readable(io.fileno()) and io.poll() == []
    for _ in range(3):
        for number in range(10):
            write(io, file, arena, number)
        reports = 0
        while reports < 10:
            assert io.wait(30) and readable(io.fileno())
            reports += len(io.poll())
        assert not readable(io.fileno())


def test_an_event_loop_learns_of_each_completion(io, file, arena):
    async def copy() -> list[int]:
        reports, done = [], asyncio.Event()

        def collect() -> None:
            reports.extend(io.poll())
            if len(reports) == 2 * BLOCKS:
                done.set()

        asyncio.get_running_loop().add_reader(io.fileno(), collect)
        for number in range(BLOCKS):
            write(io, file, arena, number)
            write(io, file, arena, number)
            await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), 60)
        asyncio.get_running_loop().remove_reader(io.fileno())
        return tickets(reports)

    assert sorted(asyncio.run(copy())) == list(range(1, 2 * BLOCKS + 1))


def test_waiting_says_whether_there_is_something_and_takes_no_longer_than_allowed(io, file, arena):
    started = time.monotonic()
    assert io.wait(0) is False and io.wait(-1) is False and io.wait(0.05) is False
    assert 0.05 <= time.monotonic() - started < 5
    write(io, file, arena, 0)
    assert io.wait(float("inf")) is True and io.wait(0) is True


def test_other_python_threads_run_while_one_waits(io, file, arena):
    waiting = threading.Thread(target=io.wait, args=(30,))
    waiting.start()
    write(io, file, arena, 0)
    waiting.join(20)
    assert not waiting.is_alive()


def test_unpolled_reports_fill_the_queue_and_polling_makes_room(io, file, arena):
    for _ in range(FileIo.MAX_OPS):
        io.write(file, 0, arena.address, 4096, 0)
    with pytest.raises(RuntimeError, match="queue full"):
        write(io, file, arena, 0)
    assert len(finish(io, FileIo.MAX_OPS)) == FileIo.MAX_OPS
    assert write(io, file, arena, 0) == FileIo.MAX_OPS + 1


# --- which comes first ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_reads_overtake_queued_writes_and_each_keep_their_order(make, backend, file, arena):
    io = make(backend, depth=1, threads=1)
    io.write(file, 0, arena.address, BLOCKS * BLOCK, 0)  # lasts until all others are queued
    writes = [write(io, file, arena, number) for number in range(20)]
    reads = [read(io, file, arena, number) for number in range(20)]
    assert [ticket for ticket in tickets(finish(io, 41)) if ticket != 1] == reads + writes


@contextlib.contextmanager
def pipe(*, full: bool = False):
    """With io_uring a transfer can be held up for as long as a test likes: by a pipe without bytes, or without room."""
    reader, writer = os.pipe()
    if full:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def drain(reader: int) -> None:
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(reader, MIB):
            pass


def test_two_writes_at_most_run_beside_a_read(make, arena):
    io = make("io_uring")
    with pipe() as (source, fill), pipe(full=True) as one, pipe(full=True) as two, pipe() as third:
        io.read(source, 0, arena.address, 4096, 0)
        for _reader, writer in (one, two, third):
            io.write(writer, 0, arena.address, 4096, 0)
        assert io.wait(0.1) is False, "the third write could be done at once, but isn't started"
        drain(one[0])
        assert sorted(tickets(finish(io, 2))) == [2, 4]
        os.write(fill, bytes(4096))
        assert tickets(finish(io, 1)) == [1]
        drain(two[0])
        assert tickets(finish(io, 1)) == [3]


def test_a_read_that_comes_in_pieces_is_continued(make, arena):
    io = make("io_uring")
    with pipe() as (source, fill):
        io.read(source, 0, arena.address + arena.size // 2, 8192, 0)
        os.write(fill, arena.view()[:4096].tobytes())
        assert io.wait(0.05) is False
        os.write(fill, arena.view()[4096:8192].tobytes())
        assert finish(io, 1)[0][1:3] == (0, crc32c(arena.view()[:8192]))


def test_new_transfers_are_started_while_others_hold_up(make, arena, file):
    io = make("io_uring", depth=2, threads=1)
    with pipe() as (source, fill):
        io.read(source, 0, arena.address + BLOCKS * BLOCK, 1, 0)
        time.sleep(0.02)  # the worker sleeps in the kernel now
        write(io, file, arena, 0)
        assert tickets(finish(io, 1)) == [2]
        assert io.pending == 1
        os.write(fill, b"x")
        assert tickets(finish(io, 1)) == [1]


# --- the end --------------------------------------------------------------------------------------------------


def test_closing_finishes_everything_and_refuses_what_comes_after(io, file, arena):
    for number in range(BLOCKS):
        write(io, file, arena, number)
    io.close()
    assert io.pending == 0 and io.wait(0) and readable(io.fileno())
    assert sorted(tickets(io.poll())) == list(range(1, BLOCKS + 1))
    with pytest.raises(RuntimeError, match="closed"):
        read(io, file, arena, 0)
    io.close()
    assert io.poll() == []


def test_dropping_it_finishes_what_is_in_flight(file, arena, tmp_path):
    io = FileIo()
    io.write(file, 0, arena.address, BLOCKS * BLOCK, 0)
    del io
    assert (tmp_path / "file").read_bytes() == arena.view()[: BLOCKS * BLOCK].tobytes()


def test_it_says_what_it_is(io, request):
    assert io.backend == request.node.callspec.params["io"]
    assert io.fallback == ""
