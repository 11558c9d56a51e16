"""Memory of the device that processes share, host memory registered with the driver, and what is said of wrong devices."""

import multiprocessing
import os

import numpy as np
import pytest
from gpu_caches import assert_ready, finished
from gpu_peer import column, read, turn_round, write

from kvtier import _native

MIB = 1 << 20
SIZE = 8 * MIB
SPAWN = multiprocessing.get_context("spawn")  # a forked child can't use CUDA


def random_bytes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)


@pytest.fixture
def gpu_arena(driver):
    made = _native.DeviceArena.create(driver, 0, SIZE)
    yield made
    made.close()


def test_a_new_device_arena_is_zero_and_aligned(gpu_arena, arena, make_copier):
    assert (gpu_arena.size, gpu_arena.device, len(gpu_arena.handle)) == (SIZE, 0, 64)
    assert gpu_arena.address % 256 == 0
    assert not read(make_copier(), arena, gpu_arena.address, SIZE).any()


@pytest.mark.parametrize("path", ["batch", "async", "kernel"])
def test_bytes_survive_a_way_over_the_device(gpu_arena, arena, make_copier, path):
    copier, content = make_copier(path=path), random_bytes(1)
    write(copier, arena, gpu_arena.address, content)
    arena.view()[:SIZE] = 0
    assert np.array_equal(read(copier, arena, gpu_arena.address, SIZE), content)


def test_zeroing_a_part_leaves_the_rest(gpu_arena, arena, make_copier):
    copier, content = make_copier(), random_bytes(2)
    write(copier, arena, gpu_arena.address, content)
    gpu_arena.zero(MIB, 2 * MIB)
    content[MIB : 3 * MIB] = 0
    assert np.array_equal(read(copier, arena, gpu_arena.address, SIZE), content)


def test_torch_reads_what_was_loaded_from_a_device_arena(torch, gpu_arena, arena, make_copier):
    copier, content = make_copier(), random_bytes(3)
    write(copier, arena, gpu_arena.address, content)
    engine = torch.zeros(SIZE, dtype=torch.uint8, device="cuda:0")
    after = torch.cuda.current_stream().cuda_stream
    job = (column(gpu_arena.address), column(engine.data_ptr()), column(SIZE))
    finished(copier, copier.submit(*job, after=after))
    assert np.array_equal(engine.cpu().numpy(), content)


def test_another_process_maps_a_device_arena_by_its_handle(driver, gpu_arena, arena, make_copier):
    copier, content = make_copier(), random_bytes(4)
    write(copier, arena, gpu_arena.address, content)
    ours, theirs = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=turn_round, args=(gpu_arena.handle, SIZE, theirs))
    child.start()
    try:
        assert ours.poll(120), "the other process says nothing"
        assert ours.recv() == ""
    finally:
        child.join(30)
    assert child.exitcode == 0
    assert np.array_equal(read(copier, arena, gpu_arena.address, SIZE), content[::-1])


@pytest.mark.parametrize("size", [0, -2 * MIB, MIB, 3 * MIB])
def test_a_device_arena_has_a_multiple_of_2_mib(driver, size):
    with pytest.raises(ValueError):
        _native.DeviceArena.create(driver, 0, size)


def test_more_than_the_card_has_is_a_memory_error(driver):
    with pytest.raises(MemoryError):
        _native.DeviceArena.create(driver, 0, 1 << 45)


def test_a_closed_device_arena_says_so(driver):
    made = _native.DeviceArena.create(driver, 0, SIZE)
    made.close()
    made.close()
    with pytest.raises(ValueError, match="closed"):
        _ = made.address
    with pytest.raises(ValueError, match="closed"):
        made.zero(0, SIZE)


@pytest.mark.parametrize(("offset", "size"), [(-1, MIB), (0, SIZE + 1), (SIZE, 1), (MIB, -1)])
def test_zeroing_outside_is_refused(gpu_arena, offset, size):
    with pytest.raises((ValueError, TypeError)):
        gpu_arena.zero(offset, size)


def test_a_whole_arena_is_registered_and_let_go(driver):
    with _native.Arena.create(64 * MIB, "kvtier-test-gpu-pin") as made:
        for _ in range(2):  # what is not unregistered can't be registered again
            pin = _native.CudaPin(driver, 0, made.address, made.size)
            assert_ready(pin)
            assert (pin.pinned_bytes, pin.note) == (made.size, "")
            pin.close()
            pin.close()


def test_what_others_registered_serves_as_well_and_stays_theirs(driver, arena, gpu_arena, make_copier):
    pin = _native.CudaPin(driver, 0, arena.address, arena.size)
    assert_ready(pin)
    assert (pin.pinned_bytes, pin.note) == (arena.size, "")
    pin.close()
    copier, content = make_copier(path="kernel"), random_bytes(5)  # it reaches registered memory only
    write(copier, arena, gpu_arena.address, content)
    assert np.array_equal(read(copier, arena, gpu_arena.address, SIZE), content)


def test_a_device_that_is_not_there_is_named_with_those_that_are(driver):
    count = len(driver.devices)
    said = f"device must be 0 to {count - 1}, not 99"
    with pytest.raises(ValueError, match=said):
        _native.CudaCopier(driver, 99)
    with pytest.raises(ValueError, match=said):
        _native.DeviceArena.create(driver, 99, SIZE)


def test_a_path_that_nobody_knows_is_refused(driver):
    with pytest.raises(ValueError, match="teleport"):
        _native.CudaCopier(driver, 0, path="teleport")


def test_the_driver_tells_its_devices(driver):
    assert driver.version >= 11000
    first = driver.devices[0]
    assert first["ordinal"] == 0 and first["name"] and len(bytes.fromhex(first["uuid"])) == 16
    assert os.path.isdir(f"/sys/bus/pci/devices/{first['pci'].lower()}") or first["pci"].count(":") == 2


def test_the_devices_are_torchs(driver, torch):
    assert [device["name"] for device in driver.devices][: torch.cuda.device_count()] == [
        torch.cuda.get_device_name(ordinal) for ordinal in range(torch.cuda.device_count())
    ]
