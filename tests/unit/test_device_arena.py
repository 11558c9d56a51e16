"""Memory on a GPU that processes share, against the fake driver: what owner and guest get, and what is refused."""

import ctypes
import os
import subprocess
import sys
import threading
import time

import pytest
from fake_driver import NOTHING_LEFT, FakeDriver, fake_driver

from kvtier import _native

MIB = 1 << 20
HUGE = 2 * MIB
OUT_OF_MEMORY = 2
UNKNOWN = 999
CREATING = ["cuStreamCreateWithPriority", "cuMemAlloc_v2", "cuMemsetD8Async", "cuStreamSynchronize"]
OUTSIDE = [(-1, 1), (0, -1), (0, 2 * HUGE + 1), (2 * HUGE, 1), (1, 2 * HUGE), (1, 2**63 - 1)]  # an arena of 2 * HUGE


@pytest.fixture
def fake():
    with fake_driver() as fake:
        yield fake


@pytest.fixture
def arena(fake):
    with _native.DeviceArena.create(fake.open(), 1, 2 * HUGE) as made:
        yield made


def content(arena) -> bytes:
    """Only the fake driver's memory may be looked at."""
    return ctypes.string_at(arena.address, arena.size)


# --- the owner -----------------------------------------------------------------------------------------------


def test_a_new_arena_is_zeroed_and_as_large_as_asked_on_the_device_that_was_asked_for(arena):
    assert (arena.size, arena.device) == (2 * HUGE, 1)
    assert content(arena) == bytes(2 * HUGE)


@pytest.mark.parametrize("size", [0, -HUGE, 1, HUGE - 1, HUGE + 4096])
def test_a_size_that_is_no_positive_multiple_of_2_mib_is_refused(fake, size):
    driver = fake.open()
    with pytest.raises(ValueError, match="multiple of 2 MiB"):
        _native.DeviceArena.create(driver, 0, size)
    with pytest.raises(ValueError, match="multiple of 2 MiB"):
        _native.DeviceArena.attach(driver, 0, bytes(64), size)


def test_a_device_that_is_not_there_is_refused(fake):
    with pytest.raises(ValueError, match="device must be 0 to 1, not 2"):
        _native.DeviceArena.create(fake.open(), 2, HUGE)


def test_a_machine_without_a_driver_is_told_so():
    with pytest.raises(ValueError, match="no NVIDIA driver"):
        _native.DeviceArena.create(_native.CudaDriver.open("no-such-driver.so"), 0, HUGE)


def test_an_arena_that_does_not_fit_says_what_was_asked_and_what_is_free(fake):
    fake.set(memory_limit=4 << 30)
    with pytest.raises(MemoryError, match=r"6\.00 GiB does not fit on device 0 \(.+\); 4\.00 of its 4\.00 GiB are free"):
        _native.DeviceArena.create(fake.open(), 0, 6 << 30)
    assert fake.live() == NOTHING_LEFT


def test_a_device_without_room_for_a_context_says_so(fake):
    driver = fake.open()
    fake.fail("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY)
    with pytest.raises(MemoryError, match="a CUDA context does not fit on device 1"):
        _native.DeviceArena.create(driver, 1, HUGE)
    assert fake.live() == NOTHING_LEFT


@pytest.mark.parametrize(
    "symbol", ["cuStreamCreateWithPriority", "cuMemAlloc_v2", "cuMemsetD8Async", "cuStreamSynchronize"]
)
def test_a_call_that_fails_is_named_and_leaves_nothing_behind(fake, symbol):
    driver = fake.open()
    fake.fail(symbol, UNKNOWN)
    with pytest.raises(RuntimeError, match=f"{symbol}: CUDA_ERROR_UNKNOWN"):
        _native.DeviceArena.create(driver, 0, HUGE)
    assert fake.live() == NOTHING_LEFT
    assert fake.get("current") == 0


def test_zero_clears_its_range_and_not_one_byte_more(fake, arena):
    ctypes.memset(arena.address, 7, arena.size)
    fake.set(max_delay_us=20_000)  # done on return, and not a moment later
    arena.zero(4096, 10_001)
    assert content(arena) == b"\7" * 4096 + bytes(10_001) + b"\7" * (arena.size - 14_097)
    arena.zero(arena.size, 0)
    arena.zero(0, arena.size)
    assert content(arena) == bytes(arena.size)


@pytest.mark.parametrize(("offset", "size"), OUTSIDE)
def test_zero_refuses_a_range_that_is_not_within_the_arena(arena, offset, size):
    with pytest.raises(ValueError, match="not within an arena of 4194304"):
        arena.zero(offset, size)


def test_zero_reports_what_the_driver_says(fake, arena):
    fake.fail("cuMemsetD8Async", UNKNOWN)
    with pytest.raises(RuntimeError, match="cuMemsetD8Async: CUDA_ERROR_UNKNOWN"):
        arena.zero(0, 1)


def test_close_gives_everything_back_and_may_be_called_twice(fake):
    arena = _native.DeviceArena.create(fake.open(), 0, HUGE)
    assert fake.get("device_bytes") == HUGE
    arena.close()
    assert (fake.get("device_bytes"), fake.live()) == (0, NOTHING_LEFT)
    arena.close()
    assert fake.calls("cuMemFree_v2") == 1


def test_an_arena_is_closed_by_the_end_of_its_with_statement_and_by_being_forgotten(fake):
    with _native.DeviceArena.create(fake.open(), 0, HUGE):
        assert fake.get("live_allocations") == 1
    assert fake.live() == NOTHING_LEFT
    arena = _native.DeviceArena.create(fake.open(), 0, HUGE)
    del arena
    assert fake.live() == NOTHING_LEFT


def test_a_closed_arena_refuses_everything(arena):
    arena.close()
    for name in ("address", "size", "device", "handle"):
        with pytest.raises(ValueError, match="closed"):
            getattr(arena, name)
    with pytest.raises(ValueError, match="closed"):
        arena.zero(0, 1)


def test_an_arena_that_is_closed_while_it_is_zeroed_is_freed_afterwards(fake, arena):
    fake.set(max_delay_us=300_000, seed=3)
    calls = fake.calls("cuMemsetD8Async")
    zeroing = threading.Thread(target=arena.zero, args=(0, arena.size))
    zeroing.start()
    wait_until(lambda: fake.calls("cuMemsetD8Async") > calls)
    arena.close()  # the fake driver ends the process if memory is freed that is being set
    zeroing.join(30)
    assert fake.live() == NOTHING_LEFT


def wait_until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")


# --- owner and guest -----------------------------------------------------------------------------------------

OPEN = """\
import ctypes, os, sys
from kvtier import _native
driver = _native.CudaDriver.open(sys.argv[1])
"""

GUEST = """\
arena = _native.DeviceArena.attach(driver, 1, bytes.fromhex(sys.argv[2]), int(sys.argv[3]))
assert arena.handle.hex() == sys.argv[2]
print(arena.size, arena.device, ctypes.string_at(arena.address + 100, 5).decode())
ctypes.memmove(arena.address + arena.size - 5, b"guest", 5)
arena.zero(100, 2)
fake = ctypes.CDLL(sys.argv[1])
print(fake.fake_cuda_get(b"live_ipc_maps"), fake.fake_cuda_get(b"live_allocations"))
arena.close()
arena.close()
print(fake.fake_cuda_get(b"live_ipc_maps"), fake.fake_cuda_get(b"live_contexts"), fake.fake_cuda_get(b"live_streams"))
"""


def run_python(program: str, fake: FakeDriver, *arguments: str) -> list[str]:
    """What the program prints, line by line."""
    folder = os.path.dirname(os.path.dirname(_native.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    command = [sys.executable, "-c", OPEN + program, fake.path, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process_maps_an_arena_by_its_handle_and_both_see_the_same_bytes(fake, arena):
    ctypes.memmove(arena.address + 100, b"owner", 5)
    assert len(arena.handle) == 64
    assert run_python(GUEST, fake, arena.handle.hex(), str(arena.size)) == [f"{arena.size} 1 owner", "1 0", "0 0 0"]
    assert content(arena)[100:105] == b"\0\0ner"
    assert content(arena)[-5:] == b"guest"
    assert fake.get("live_allocations") == 1  # what a guest closes stays the owner's


def test_the_process_that_made_an_arena_cannot_attach_it(arena, fake):
    with pytest.raises(RuntimeError, match="cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_CONTEXT"):
        _native.DeviceArena.attach(fake.open(), 1, arena.handle, arena.size)
    assert fake.get("live_contexts") == 1


def test_the_arena_of_an_owner_that_is_gone_cannot_be_attached(fake):
    [handle] = run_python("print(_native.DeviceArena.create(driver, 0, 2 << 20).handle.hex())", fake)
    with pytest.raises(RuntimeError, match="cuIpcOpenMemHandle_v2: CUDA_ERROR_MAP_"):
        _native.DeviceArena.attach(fake.open(), 0, bytes.fromhex(handle), HUGE)
    assert fake.live() == NOTHING_LEFT


def test_a_handle_that_is_none_is_refused(fake):
    driver = fake.open()
    for size in (0, 63, 65):
        with pytest.raises(ValueError, match="64 bytes"):
            _native.DeviceArena.attach(driver, 0, bytes(size), HUGE)
    with pytest.raises(RuntimeError, match="cuIpcOpenMemHandle_v2: CUDA_ERROR_INVALID_VALUE"):
        _native.DeviceArena.attach(driver, 0, bytes(64), HUGE)
    assert fake.live() == NOTHING_LEFT


def test_a_guest_that_the_device_has_no_room_for_is_told_so(fake):
    driver = fake.open()
    fake.fail("cuIpcOpenMemHandle_v2", OUT_OF_MEMORY)
    with pytest.raises(MemoryError, match=r"another process's arena of 0\.00 GiB does not fit on device 0"):
        _native.DeviceArena.attach(driver, 0, bytes(64), HUGE)


@pytest.fixture
def poorer():
    """A driver that lacks what it may lack."""
    with fake_driver("cuIpcGetMemHandle", "cuIpcOpenMemHandle_v2", "cuMemGetInfo_v2") as fake:
        yield fake


def test_a_driver_that_cannot_share_memory_still_has_arenas(poorer):
    with _native.DeviceArena.create(poorer.open(), 0, HUGE) as arena:
        assert content(arena) == bytes(HUGE)
        with pytest.raises(RuntimeError, match=r"can't be shared between processes: the driver lacks cuIpcGetMemHandle"):
            _ = arena.handle
    with pytest.raises(RuntimeError, match=r"can't be shared between processes: the driver lacks cuIpcOpenMemHandle_v2"):
        _native.DeviceArena.attach(poorer.open(), 0, bytes(64), HUGE)
    assert poorer.live() == NOTHING_LEFT


def test_a_driver_that_does_not_tell_what_is_free_still_says_what_does_not_fit(poorer):
    poorer.set(memory_limit=HUGE)
    with pytest.raises(MemoryError, match=r"does not fit on device 0 \([^;]+\): cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"):
        _native.DeviceArena.create(poorer.open(), 0, 2 * HUGE)


FORKED = """\
arena = _native.DeviceArena.create(driver, 0, 2 << 20)
fake = ctypes.CDLL(sys.argv[1])
if os.fork() == 0:
    calls = lambda: [fake.fake_cuda_get(b"calls:" + name) for name in (b"cuCtxPushCurrent_v2", b"cuMemFree_v2")]
    before = calls()
    try:
        arena.zero(0, 1)
    except RuntimeError as refused:
        print(refused, flush=True)
    arena.close()
    del arena
    os._exit(calls() != before)
print("exit", os.wait()[1], flush=True)
arena.zero(0, arena.size)
"""


def test_a_forked_child_is_refused_and_leaves_the_arena_to_its_parent(fake):
    assert run_python(FORKED, fake) == ["an arena in GPU memory does not survive a fork", "exit 0"]
