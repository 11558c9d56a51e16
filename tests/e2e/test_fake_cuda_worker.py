"""A worker whose engine has its KV cache in a GPU's memory: what it copies, when, and what it says when it can't."""

import contextlib
import ctypes
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from fake_driver import fake_driver
from gpu_engine import ARENA, WHOLE, FakeGpu, GpuEngine, eventually

from kvtier import _native
from kvtier.block import SLOT_UNIT

MIB = 1 << 20
GPU_BASE = ARENA // SLOT_UNIT  # the first slot of the GPU tier


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with fake_driver() as fake:
        gpu = FakeGpu(fake)
        yield gpu
        gpu.close()


@pytest.fixture
def make(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., GpuEngine]]:
    """Engines that end with the test, without a fault and without a trace in the driver."""
    engines: list[GpuEngine] = []
    before = {what: gpu.driver.get(what) for what in ("live_streams", "live_contexts")}
    caplog.set_level(logging.INFO, "kvtier")

    def make(**settings: object) -> GpuEngine:
        engines.append(GpuEngine(gpu, monkeypatch, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.worker.shutdown()
    assert "has a fault" not in caplog.text
    assert {what: gpu.driver.get(what) for what in before} == before
    assert [gpu.driver.get(f"live_{what}") for what in ("events", "registrations", "ipc_maps")] == [0, 0, 0]


@contextlib.contextmanager
def busy(gpu: FakeGpu) -> Iterator[None]:
    """The engine's stream has work before what is launched now, which goes on until this is over."""
    gpu.driver.set(hold=gpu.stream)
    try:
        yield
    finally:
        gpu.driver.set(let_go=gpu.stream)


# --- order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["auto", "batch", "async", "kernel"])
def test_what_the_engine_computes_late_is_what_is_saved(make, gpu, path):
    engine = make(**{"copy.path": path}).opened()
    with busy(gpu):
        wanted = engine.compute([3, 4], seed=1)
        job = engine.save([3, 4], [5])
        for _ in range(20):
            assert engine.step() == []
        assert not any(engine.slot(5))
    assert engine.ends(job)
    assert engine.slot(5) == wanted


def test_what_the_engine_computes_after_the_save_was_submitted_is_not_waited_for(make, gpu):
    engine = make().opened()
    engine.compute([3, 4], seed=1)
    job = engine.save([3, 4], [5])
    gpu.call("cuStreamSynchronize", gpu.stream)
    with busy(gpu):
        engine.compute([8, 9], seed=2)
        assert engine.ends(job)


def test_a_load_is_not_overwritten_by_what_was_launched_before_it(make, gpu):
    engine = make().opened()
    wanted = engine.fill_slot(7, seed=3)
    with busy(gpu):
        engine.compute([10, 2], seed=4)  # zeroing, say, or whoever had these blocks before
        job = engine.load([10, 2], [7])
        assert engine.step() == []
    assert engine.ends(job)
    assert engine.block([10, 2]) == wanted
    assert engine.worker.take_failed_loads() == set()


def test_wait_ends_when_the_save_has_read_its_blocks(make, gpu):
    engine = make(**{"copy.decode_budget": 1 << 20}).opened()
    gpu.driver.set(max_delay_us=2000)
    engine.worker.step_begins(decodes=True)
    wanted = engine.compute([0, 1], seed=5)
    job = engine.save([0, 1], [0])
    engine.worker.wait({job, 99})
    assert engine.slot(0) == wanted
    assert engine.ends(job)


def test_a_save_whose_blocks_were_overwritten_before_it_was_waited_for_is_failed(make, gpu):
    engine = make().opened()
    with busy(gpu):
        spoiled, whole = engine.save([0, 1], [0]), engine.save([2, 3], [1])
        engine.worker.spoil({spoiled, 99})
    assert engine.settled(2) == {spoiled: (1, 1), whole: (1, 0)}


def test_many_saves_and_loads_with_delays_end_with_the_right_bytes(make, gpu):
    engine = make().opened()
    gpu.driver.set(max_delay_us=200)
    for seed in range(20):
        wanted = {slot: engine.compute([2 * slot, 2 * slot + 1], seed) for slot in range(4)}
        for job in [engine.save([2 * slot, 2 * slot + 1], [slot]) for slot in range(4)]:
            engine.worker.wait({job})
        engine.compute(list(range(8, 16)), seed + 100)
        loads = [engine.load([8 + 2 * slot, 9 + 2 * slot], [slot]) for slot in range(4)]
        assert not any(failed for _, failed in engine.settled(4 + len(loads)).values())
        assert {slot: engine.block([8 + 2 * slot, 9 + 2 * slot]) for slot in range(4)} == wanted


# --- what the driver refuses ------------------------------------------------------------------------------------


def test_without_a_usable_driver_the_engine_serves_without_kvtier_and_says_why(make, gpu, caplog, monkeypatch):
    engine = make()
    monkeypatch.setattr("kvtier.connectors.vllm.copies.open_driver", lambda: _native.CudaDriver.open("libnone.so.1"))
    engine.open()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "libnone.so.1" in line and "serves without it" in line
    job = engine.save([0, 1], [0])
    assert engine.step() == [job]
    assert engine.worker.take_settled() == {job: (1, 1)}
    assert engine.daemon.said == []


def test_a_path_that_cannot_be_had_is_named(make, caplog, monkeypatch):
    with fake_driver("cuLaunchKernel") as without:
        engine = make(**{"copy.path": "kernel"})
        monkeypatch.setattr("kvtier.connectors.vllm.copies.open_driver", without.open)
        engine.open()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "path kernel can't be had" in line and "serves without it" in line


def test_until_the_arena_is_registered_nothing_is_copied_and_no_step_waits(make, gpu):
    gpu.driver.set(register_delay_us=300_000)
    engine = make().open()
    job = engine.save([0, 1], [0])
    assert engine.step() == [job]
    assert engine.worker.take_settled() == {job: (1, 1)}
    assert engine.daemon.said == []
    eventually(lambda: engine.step() or engine.daemon.said)
    path = engine.worker._copies.name
    assert engine.daemon.said == [("mapped", ARENA, False, path)] and path in ("batch", "async", "kernel")
    assert engine.ends(engine.save([0, 1], [0]))


@pytest.mark.parametrize("path", ["batch", "kernel"])
def test_what_may_not_be_locked_is_copied_all_the_same_piece_by_piece_and_said_once(make, gpu, caplog, path):
    gpu.driver.set(lockable_limit=0)
    engine = make(**{"copy.path": path}).opened()
    assert engine.daemon.said == [("mapped", 0, False, "async")]
    wanted = engine.compute([6, 7], seed=6)
    assert engine.ends(engine.save([6, 7], [3]))
    assert engine.slot(3) == wanted
    engine.daemon.draining = True
    engine.step()
    engine.welcome(2)
    eventually(lambda: engine.step() or len(engine.daemon.said) == 3)
    notes = [record.getMessage() for record in caplog.records if "MEMLOCK" in record.getMessage()]
    assert len(notes) == 1


def test_copies_that_fail_are_reported_as_failed_and_named_once(make, gpu, caplog):
    engine = make(**{"copy.path": "async"}).opened()
    gpu.driver.set(**{"fail_for:cuMemcpyAsync": 0, "fail_at:cuMemcpyAsync": 1})
    assert not engine.ends(engine.save([0, 1], [0]))
    assert not engine.ends(engine.save([2, 3], [1]))
    assert not engine.ends(engine.load([4, 5], [2], "unlucky"))
    assert engine.worker.take_failed_loads() == {"unlucky"}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "cuMemcpyAsync" in line
    gpu.driver.set(**{"fail_at:cuMemcpyAsync": 0})
    assert engine.ends(engine.save([2, 3], [1]))


# --- the daemon goes --------------------------------------------------------------------------------------------


def test_the_arena_stays_registered_and_mapped_until_the_last_copy_is_over(make, gpu):
    engine = make().opened()
    with busy(gpu):
        wanted = engine.compute([0, 1], seed=7)
        job = engine.save([0, 1], [0])
        engine.daemon.draining = True
        engine.step()
        assert not engine.ends(engine.save([2, 3], [1]))
        assert ("hung up",) not in engine.daemon.said and gpu.driver.get("live_registrations") == 1
    assert engine.ends(job)
    assert engine.slot(0) == wanted
    engine.step()
    assert engine.daemon.said[-1] == ("hung up",)
    eventually(lambda: gpu.driver.get("live_registrations") == 0)


def test_another_daemon_s_arena_is_mapped_when_the_former_is_let_go_of(make, gpu):
    engine = make().opened()
    engine.daemon.draining = True
    engine.step()
    engine.welcome(2)
    eventually(lambda: engine.step() or len(engine.daemon.said) == 3)
    assert [word[0] for word in engine.daemon.said] == ["mapped", "hung up", "mapped"]
    assert gpu.driver.get("live_registrations") == 1
    wanted = engine.compute([0, 1], seed=8)
    assert engine.ends(engine.save([0, 1], [0]))
    assert engine.slot(0) == wanted


def test_a_daemon_that_goes_while_its_arena_is_being_registered_leaves_nothing(make, gpu):
    gpu.driver.set(register_delay_us=100_000)
    engine = make().open()
    engine.daemon.draining = True
    engine.step()
    assert engine.daemon.said == [("hung up",)]
    eventually(lambda: gpu.driver.get("live_registrations") == 0)


# --- saves make room for decoding -------------------------------------------------------------------------------


def test_saves_are_slowed_down_while_the_engine_decodes_and_it_does_not_wait_for_them(make, monkeypatch):
    engine = make(**{"copy.decode_budget": "1GiB"}).opened()
    limits: list[int] = []
    monkeypatch.setattr(engine.worker._copies, "pace", limits.append)
    for decodes in (False, True, True, False, True):
        engine.worker.step_begins(decodes)
    assert limits == [1 << 30, 0, 1 << 30]
    engine.worker.wait({engine.save([0, 1], [0])})
    assert limits == [1 << 30, 0, 1 << 30, 0]
    engine.worker.wait({99})
    engine.worker.step_begins(decodes=True)
    assert limits[4:] == [1 << 30]


def test_a_budget_of_nothing_is_no_limit(make, monkeypatch):
    engine = make(**{"copy.decode_budget": 0}).opened()
    limits: list[int] = []
    monkeypatch.setattr(engine.worker._copies, "pace", limits.append)
    engine.worker.step_begins(decodes=True)
    assert limits == []


def test_the_limit_of_saves_holds_for_the_copiers_that_an_arena_gets_which_is_not_registered_whole(make, gpu, monkeypatch):
    limits: list[int] = []

    class Noting(_native.CudaCopier):
        def pace(self, bytes_per_s: int) -> None:
            limits.append(bytes_per_s)
            super().pace(bytes_per_s)

    monkeypatch.setattr(_native, "CudaCopier", Noting)
    gpu.driver.set(lockable_limit=0, register_delay_us=50_000)
    engine = make(**{"copy.path": "batch", "copy.decode_budget": "1GiB"}).open()
    engine.worker.step_begins(decodes=True)
    eventually(lambda: engine.step() or engine.daemon.said)
    assert engine.worker._copies.name == "async"
    assert limits == [0, 1 << 30, 1 << 30]


# --- the GPU tier -----------------------------------------------------------------------------------------------

OWNER = """
import sys
import numpy as np
from kvtier import _native
from kvtier.protocol import GPU_STAMP_BYTES, gpu_stamp_of
driver = _native.CudaDriver.open(sys.argv[1])
size = (2 << 20) + GPU_STAMP_BYTES
tier = _native.DeviceArena.create(driver, 1, size)
host = _native.Arena.create(size, "owner", pin=False)
host.view()[: 2 << 20] = 77
host.view()[2 << 20 :] = gpu_stamp_of(b"the seed").view(np.uint8)
copier = _native.CudaCopier(driver, 1, path="async")
column = lambda n: np.array([n], np.uint64)
copier.wait(copier.submit(column(host.address), column(tier.address), column(size)))
print(tier.handle.hex(), driver.devices[1]["uuid"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tier(gpu: FakeGpu) -> Iterator[dict[str, object]]:
    """A GPU tier of another process on another GPU, all of whose bytes are 77."""
    command = [sys.executable, "-c", OWNER, gpu.driver.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdin and owner.stdout
        handle, uuid = owner.stdout.readline().split()
        there = {"gpu": bytes.fromhex(handle), "gpu_size": 2 * MIB}
        yield {**there, "gpu_uuid": bytes.fromhex(uuid), "gpu_stamp": b"the seed"}
        owner.stdin.close()


def test_blocks_are_loaded_from_the_gpu_tier_and_from_ram_in_one_job(make, tier):
    engine = make().opened(**tier)
    assert engine.daemon.said[0][2] is True
    wanted = engine.fill_slot(1, seed=9)
    assert engine.ends(engine.load([0, 1, 2, 3], [GPU_BASE + 3, 1]))
    assert engine.block([0, 1]) == bytes([77]) * WHOLE
    assert engine.block([2, 3]) == wanted


def test_what_was_loaded_from_the_gpu_tier_counts_for_nothing_when_its_owner_is_gone(make, gpu, tier):
    engine = make().opened(**tier)
    with busy(gpu):
        doubtful = engine.load([0, 1], [GPU_BASE], "doubtful")
        sound = engine.load([2, 3], [2], "sound")
        engine.daemon.draining = True
    assert engine.settled(2) == {doubtful: (1, 1), sound: (1, 0)}
    assert engine.worker.take_failed_loads() == {"doubtful"}


def test_a_worker_that_came_back_without_the_gpu_tier_fails_a_load_from_there_and_goes_on(make):
    engine = make().opened()
    assert not engine.ends(engine.load([0, 1], [GPU_BASE], "unlucky"))
    assert engine.worker.take_failed_loads() == {"unlucky"}
    wanted = engine.fill_slot(1, seed=9)
    assert engine.ends(engine.load([0, 1], [1])) and engine.block([0, 1]) == wanted


def test_a_gpu_tier_that_cannot_be_mapped_is_done_without_and_said_once(make, tier, caplog):
    engine = make().opened(**{**tier, "gpu_uuid": bytes(16)})
    assert engine.daemon.said[0][2] is False
    (line,) = [record.getMessage() for record in caplog.records if "GPU tier" in record.getMessage()]
    assert "CUDA_VISIBLE_DEVICES" in line
    assert engine.ends(engine.save([0, 1], [0]))


def test_a_handle_that_the_driver_refuses_is_a_line_in_the_log(make, gpu, tier, caplog):
    gpu.driver.fail("cuIpcOpenMemHandle_v2", 201)
    engine = make().opened(**tier)
    assert engine.daemon.said[0][2] is False
    assert "cuIpcOpenMemHandle" in caplog.text


@pytest.mark.parametrize("path", ["batch", "async", "kernel"])
def test_a_gpu_where_one_bit_of_the_tier_s_stamp_arrives_wrong_reads_ram_and_says_so_once(make, gpu, tier, caplog, path):
    allocations = gpu.driver.get("live_allocations")
    with _native.DeviceArena.attach(gpu.driver.open(), 1, tier["gpu"], 4 * MIB) as there:
        last = there.address + 4 * MIB - 1
        ctypes.memset(last, ctypes.string_at(last, 1)[0] ^ 1, 1)
    engine = make(**{"copy.path": path}).opened(**tier)
    assert engine.daemon.said == [("mapped", ARENA, False, path)]
    engine.daemon.draining = True
    engine.step()
    engine.welcome(2, **tier)
    eventually(lambda: engine.step() or len(engine.daemon.said) == 3)
    assert gpu.driver.get("live_ipc_maps") == 0 and gpu.driver.get("live_allocations") == allocations + 1  # its KV cache
    assert caplog.text.count("arrive wrong at this GPU (IOMMU or ACS?)") == 1
    wanted = engine.fill_slot(1, seed=9)
    assert engine.ends(engine.load([0, 1], [1])) and engine.block([0, 1]) == wanted


def test_a_stamp_that_can_not_be_read_is_no_stamp(make, gpu, tier, caplog):
    first, engine = make(), make()
    before = gpu.driver.calls("cuMemAlloc_v2")
    first.opened()
    gpu.driver.fail("cuMemAlloc_v2", 2, at=gpu.driver.calls("cuMemAlloc_v2") - before + 1)  # what it is read into
    engine.opened(**tier)
    assert engine.daemon.said[0][2] is False
    assert "the GPU tier can't be mapped" in caplog.text


def test_while_the_stamp_is_read_no_step_waits_and_a_daemon_that_goes_leaves_nothing(make, gpu, tier):
    engine = make().opened()
    engine.daemon.draining = True
    engine.step()
    gpu.driver.set(max_delay_us=300)
    engine.welcome(2, **tier)
    eventually(lambda: engine.step() or gpu.driver.get("live_ipc_maps") == 1)
    engine.daemon.draining = True
    engine.step()
    assert [word[0] for word in engine.daemon.said] == ["mapped", "hung up", "hung up"]
    eventually(lambda: gpu.driver.get("live_ipc_maps") + gpu.driver.get("live_registrations") == 0)


def test_nothing_is_saved_into_the_gpu_tier(make, tier, caplog):
    engine = make().opened(**tier)
    assert not engine.ends(engine.save([0, 1], [GPU_BASE]))
    assert "lies beyond" in caplog.text
    caplog.clear()  # that was a fault: the daemon lent what it never may
