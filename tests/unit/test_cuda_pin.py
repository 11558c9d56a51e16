"""Host memory registered for DMA, against the fake driver: in pieces, beside everything else, and all given back."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_driver import NOTHING_LEFT, fake_driver

from kvtier import _native

MIB = 1 << 20
GIB = 1 << 30
PIECE = _native.CudaPin.PIECE
MAP_NORESERVE = 0x4000  # Python has it from 3.13 on
REGISTER = "cuMemHostRegister_v2"


@pytest.fixture
def fake():
    with fake_driver() as fake:
        yield fake


@pytest.fixture(scope="module")
def boundary():
    """An address where two pieces meet, with half a piece of address space on both sides and no memory behind it."""
    room = mmap.mmap(-1, 2 * PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    middle = (begin + PIECE // 2 + PIECE - 1) // PIECE * PIECE
    assert begin + PIECE // 2 <= middle <= begin + 2 * PIECE - PIECE // 2
    yield middle
    room.close()


def pinned(fake, address: int, size: int) -> "_native.CudaPin":
    pin = _native.CudaPin(fake.open(), 0, address, size)
    wait_until_ready(pin)
    return pin


def wait_until_ready(pin) -> None:
    for _ in range(3000):
        if pin.ready:
            return
        time.sleep(0.01)
    raise AssertionError("it was never ready")


def test_a_range_is_registered_whole_and_given_back(fake, boundary):
    pin = pinned(fake, boundary, 10 * MIB)
    assert (pin.pinned_bytes, pin.note) == (10 * MIB, "")
    assert (fake.get("live_registrations"), fake.get("locked_bytes")) == (1, 10 * MIB)
    pin.close()
    assert pin.pinned_bytes == 0
    assert (fake.get("locked_bytes"), fake.live()) == (0, NOTHING_LEFT)
    pin.close()
    assert fake.calls("cuMemHostUnregister") == 1


def test_pieces_end_where_copies_are_cut_and_not_at_a_distance_from_the_beginning(fake, boundary):
    pin = pinned(fake, boundary - 6 * MIB, 10 * MIB)
    assert (pin.pinned_bytes, fake.get("live_registrations")) == (10 * MIB, 2)
    before = pinned(fake, boundary - 6 * MIB, 6 * MIB)  # one whole piece of it: already there
    assert (before.pinned_bytes, fake.get("live_registrations")) == (6 * MIB, 2)
    before.close()
    pin.close()
    assert fake.live() == NOTHING_LEFT


def test_too_little_lockable_memory_registers_what_it_can_and_names_the_cure(fake, boundary):
    fake.set(lockable_limit=PIECE // 2)
    pin = pinned(fake, boundary - PIECE // 4, PIECE * 3 // 4)
    assert pin.pinned_bytes == PIECE // 4
    what, cure, consequence = pin.note.split("; ")
    sizes = f"{PIECE / 4 / GIB:.2f} of {PIECE * 3 / 4 / GIB:.2f} GiB"
    assert what.startswith(f"{sizes} of the arena are registered for DMA: {REGISTER}: CUDA_ERROR_OUT_OF_MEMORY")
    assert cure == "raise LimitMEMLOCK / ulimit -l"
    assert consequence == "the rest is copied through the driver's own buffers, more slowly"
    pin.close()
    assert fake.live() == NOTHING_LEFT


def test_a_failure_that_more_lockable_memory_does_not_cure_does_not_speak_of_it(fake, boundary):
    driver = fake.open()
    fake.fail(REGISTER, 999)
    pin = _native.CudaPin(driver, 0, boundary, MIB)
    wait_until_ready(pin)
    what, consequence = pin.note.split("; ")
    assert what.startswith("0.00 of 0.00 GiB of the arena are registered for DMA: ")
    assert f"{REGISTER}: CUDA_ERROR_UNKNOWN" in what
    assert consequence == "the rest is copied through the driver's own buffers, more slowly"
    pin.close()
    assert fake.live() == NOTHING_LEFT


def test_a_context_that_is_dead_is_a_note_too(fake, boundary):
    driver = fake.open()
    fake.fail("cuCtxPushCurrent_v2", 719)
    pin = _native.CudaPin(driver, 0, boundary, MIB)
    wait_until_ready(pin)
    assert "cuCtxPushCurrent_v2: CUDA_ERROR_LAUNCH_FAILED" in pin.note
    pin.close()
    assert fake.get("live_contexts") == 0


def test_what_somebody_else_registered_counts_and_stays_theirs(fake, boundary):
    theirs = pinned(fake, boundary, 2 * MIB)
    ours = pinned(fake, boundary - 2 * MIB, 4 * MIB)
    assert (ours.pinned_bytes, ours.note) == (4 * MIB, "")
    ours.close()
    assert (fake.get("live_registrations"), fake.get("locked_bytes")) == (1, 2 * MIB)
    theirs.close()
    assert fake.live() == NOTHING_LEFT


def test_registering_goes_on_in_a_thread_of_its_own(fake, boundary):
    fake.set(register_delay_us=200_000)
    pin = _native.CudaPin(fake.open(), 0, boundary - MIB, 2 * MIB)
    assert (pin.ready, pin.pinned_bytes, pin.note) == (False, 0, "")
    assert "kvtier-pin" in {task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")}
    wait_until_ready(pin)
    assert pin.pinned_bytes == 2 * MIB
    pin.close()


def test_close_waits_for_the_piece_that_is_being_registered_and_for_no_other(fake, boundary):
    fake.set(register_delay_us=300_000)
    pin = _native.CudaPin(fake.open(), 0, boundary - MIB, 2 * MIB)
    while fake.calls(REGISTER) == 0:
        time.sleep(0.001)
    closers = [threading.Thread(target=pin.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(30)
    assert (fake.calls(REGISTER), fake.live()) == (1, NOTHING_LEFT)
    assert (pin.ready, pin.pinned_bytes) == (True, 0)


def test_a_pin_that_is_forgotten_is_closed(fake, boundary):
    pin = _native.CudaPin(fake.open(), 1, boundary, MIB)
    del pin
    assert fake.live() == NOTHING_LEFT


@pytest.mark.parametrize(("address", "size"), [(0, MIB), (4096, 0), (2**64 - 4096, 8192)])
def test_what_is_no_range_is_refused(fake, address, size):
    with pytest.raises(ValueError, match="are no range"):
        _native.CudaPin(fake.open(), 0, address, size)
    assert fake.live() == NOTHING_LEFT


def test_a_device_that_is_not_there_and_a_machine_without_a_driver_are_refused(fake, boundary):
    with pytest.raises(ValueError, match="device must be 0 to 1"):
        _native.CudaPin(fake.open(), 2, boundary, MIB)
    with pytest.raises(ValueError, match="no NVIDIA driver"):
        _native.CudaPin(_native.CudaDriver.open("no-such-driver.so"), 0, boundary, MIB)


FORKED = """\
import ctypes, mmap, os, sys
from kvtier import _native
room = mmap.mmap(-1, 4096)  # lies in one piece, wherever it lies
pin = _native.CudaPin(_native.CudaDriver.open(sys.argv[1]), 0, ctypes.addressof(ctypes.c_char.from_buffer(room)), 4096)
while not pin.ready:
    pass
fake = ctypes.CDLL(sys.argv[1])
if os.fork() == 0:
    pin.close()
    del pin
    os._exit(fake.fake_cuda_get(b"calls:cuMemHostUnregister"))
print(os.wait()[1], fake.fake_cuda_get(b"live_registrations"))
pin.close()
print(fake.fake_cuda_get(b"live_registrations"))
"""


def test_a_forked_child_leaves_the_registration_to_its_parent(fake):
    folder = os.path.dirname(os.path.dirname(_native.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, fake.path], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.splitlines(), done.stderr) == (["0 1", "0"], "")
