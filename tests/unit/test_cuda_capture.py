"""An engine that captures CUDA graphs, against the fake driver: nothing that kvtier does meanwhile breaks its capture.

vLLM does so right after it has told the connector where its KV cache lies, while the arena is being registered.
"""

import ctypes
import mmap
import time

import numpy as np
import pytest
from fake_driver import NOTHING_LEFT, fake_driver

from kvtier import _native

MIB = 1 << 20
GLOBAL = 0


@pytest.fixture
def fake():
    with fake_driver() as fake:
        fake.set(capturing=1)
        yield fake


@pytest.fixture
def host():
    """The address of 8 MiB."""
    room = mmap.mmap(-1, 8 * MIB)
    yield ctypes.addressof(ctypes.c_char.from_buffer(room))


def wait_until_ready(pin) -> None:
    deadline = time.monotonic() + 30
    while not pin.ready:
        assert time.monotonic() < deadline, "it was never ready"
        time.sleep(0.001)


def mode_before(fake) -> int:
    """This thread's mode, which is set to the usual one."""
    mode = ctypes.c_int(GLOBAL)
    assert ctypes.CDLL(fake.path).cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)) == 0
    return mode.value


def test_the_arena_is_registered_while_the_engine_captures(fake, host):
    pin = _native.CudaPin(fake.open(), 0, host, 8 * MIB)
    wait_until_ready(pin)
    assert (pin.pinned_bytes, pin.note) == (8 * MIB, "")
    pin.close()
    assert (fake.get("captures_broken"), fake.live()) == (0, NOTHING_LEFT)


@pytest.mark.parametrize("path", ["auto", "batch", "async", "kernel"])
def test_copies_go_on_while_the_engine_captures(fake, host, path):
    driver = fake.open()
    pin = _native.CudaPin(driver, 0, host, 8 * MIB)
    wait_until_ready(pin)
    with _native.DeviceArena.create(driver, 0, 2 * MIB) as gpu:
        copier = _native.CudaCopier(driver, 0, path=path, page_bytes=4096)
        columns = [np.array([number], np.uint64) for number in (host, gpu.address, 2 * MIB)]
        assert copier.wait(copier.submit(*columns), 30)
        assert [(size, error) for _, size, _, error in copier.poll()] == [(2 * MIB, "")]
        copier.pace(1 << 30)
        assert copier.wait(copier.submit(*columns), 30)
        copier.close()
    pin.close()
    assert (fake.get("captures_broken"), fake.live()) == (0, NOTHING_LEFT)


def test_a_thread_has_its_own_mode_again_afterwards(fake):
    _native.CudaCopier(fake.open(), 0, path="async").close()
    assert (mode_before(fake), fake.get("captures_broken")) == (GLOBAL, 0)


def test_a_call_that_does_not_declare_itself_would_break_the_capture(fake):
    fake.open()
    library = ctypes.CDLL(fake.path)
    assert library.cuEventQuery(ctypes.c_uint64(1)) == 900
    assert fake.get("captures_broken") == 1
