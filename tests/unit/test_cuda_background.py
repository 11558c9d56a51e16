"""Copies in the background, against the fake driver: little of them is in the stream, so that a limit takes effect soon."""

import mmap
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fake_driver import NOTHING_LEFT, FakeDriver, fake_driver

from kvtier import _native

MIB = 1 << 20
ARENA, PIECE, STEP = 128 * MIB, 32 * MIB, 2 * MIB
IN_FLIGHT = 2  # pieces


@pytest.fixture
def fake() -> Iterator[FakeDriver]:
    with fake_driver() as fake:
        yield fake


class Rig:
    def __init__(self, fake: FakeDriver, low_priority: bool) -> None:
        self.fake, driver = fake, fake.open()
        memory = np.frombuffer(mmap.mmap(-1, ARENA + STEP), np.uint8)
        skipped = -memory.ctypes.data % STEP  # so that no step lies across two registrations, which would cut it in two
        self.room = memory[skipped : skipped + ARENA]
        self.pin = _native.CudaPin(driver, 0, self.room.ctypes.data, ARENA)
        while not self.pin.ready:
            time.sleep(0.001)
        self.gpu = _native.DeviceArena.create(driver, 0, ARENA)
        self.copier = _native.CudaCopier(driver, 0, path="async", page_bytes=4096, low_priority=low_priority)
        self.before = fake.calls("cuMemcpyAsync")
        fake.set(hold=0)  # the engine's stream, which all that is submitted waits for

    def submit(self, first: int, size: int) -> int:
        at = np.arange(first, first + size, STEP, dtype=np.uint64)
        sizes = np.full(len(at), STEP, np.uint64)
        base, target = np.uint64(self.gpu.address), np.uint64(self.room.ctypes.data)
        return self.copier.submit(base + at, target + at, sizes, after=0)

    def put(self) -> int:
        """Bytes that are in the stream when no more come."""
        seen, since = -1, time.monotonic()
        while time.monotonic() < since + 0.2:
            if (calls := self.fake.calls("cuMemcpyAsync")) != seen:
                seen, since = calls, time.monotonic()
            time.sleep(0.005)
        return (seen - self.before) * STEP

    def end(self, tickets: list[int]) -> None:
        self.fake.set(let_go=0)
        assert all(self.copier.wait(ticket, 30) for ticket in tickets)
        assert [error for *_, error in self.copier.poll()] == [""] * len(tickets)
        self.copier.close()
        self.pin.close()
        self.gpu.close()
        assert self.fake.live() == NOTHING_LEFT


def test_of_a_large_job_two_pieces_are_in_the_stream(fake):
    rig = Rig(fake, low_priority=True)
    ticket = rig.submit(0, ARENA)
    assert rig.put() == IN_FLIGHT * PIECE
    rig.end([ticket])


def test_small_jobs_are_one_piece_together(fake):
    rig = Rig(fake, low_priority=True)
    tickets = [rig.submit(first, 4 * MIB) for first in range(0, ARENA, 4 * MIB)]
    assert rig.put() == IN_FLIGHT * PIECE
    rig.end(tickets)


def test_what_somebody_waits_for_goes_all_at_once(fake):
    rig = Rig(fake, low_priority=False)
    ticket = rig.submit(0, ARENA)
    assert rig.put() == ARENA
    rig.end([ticket])
