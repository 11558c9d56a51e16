"""kvtierd with a GPU tier, on the fake driver: who gets its memory, what lies there, and what is said where it can't be."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import build as fake_cuda
from kvtierd import PATIENCE_S, SLOT, Engine, KVTierd, Peer, Worker, eventually, observer_hello, some_keys
from terminal import run

from kvtier import _native, protocol
from kvtier.block import SLOT_UNIT

MIB = 1 << 20
GPU = {"gpu.capacity": "8 MiB", "gpu.device": "1"}
BASE = 64 * MIB // SLOT_UNIT  # places are named from here on


@pytest.fixture(scope="module")
def library() -> Path:
    if fake_cuda.compiler() is None:
        pytest.skip("no compiler for the fake driver")
    return fake_cuda.library()


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Daemons of this test find it as they would find NVIDIA's."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcuda.so.1").symlink_to(library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))
    return library


@pytest.fixture
def daemon(driver: Path, tmp_path: Path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path, GPU) as daemon:
        yield daemon


def refusal(folder: Path, **settings: object) -> str:
    """What a daemon says that does not start."""
    given = GPU | {name.replace("_", "."): value for name, value in settings.items()}
    ended = subprocess.run(KVTierd(folder, given).command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 2
    return ended.stderr


def turn(engine: Engine, keys: bytes) -> list[int]:
    """A whole request. What its lookup was answered with; it is not decided whether that is worth a load."""
    slots = engine.lookup(keys)
    engine.release()
    engine.say(protocol.Touch(keys))
    return slots


def mirrored(daemon: KVTierd, blocks: int) -> None:
    eventually(lambda: daemon.snapshot()["tiers"]["gpu"]["blocks"] == blocks)


# --- where it can't be -------------------------------------------------------------------------------------------


def test_without_a_driver_the_setting_and_the_reason_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    if not _native.CudaDriver.open().reason:
        pytest.skip("there is a driver here")
    said = refusal(tmp_path)
    assert "can't have gpu.capacity = 8 MiB: no NVIDIA driver: libcuda.so.1" in said
    assert "set gpu.capacity = 0 to do without the GPU tier" in said


def test_a_device_that_is_not_there_is_answered_with_those_that_are(driver, tmp_path):
    said = refusal(tmp_path, gpu_device="7")
    assert "there is no GPU '7'; there are 0 (Fake GPU 0, 0000:00:00.0, GPU-f0f1" in said and "; 1 (Fake GPU 1" in said


def test_more_than_the_device_has_is_refused(driver, tmp_path):
    assert "can't have gpu.capacity = 2 TiB: " in refusal(tmp_path, gpu_capacity="2 TiB")


def test_less_than_can_be_used_is_refused(driver, tmp_path):
    assert "at least 2 MiB are of use" in refusal(tmp_path, gpu_capacity="1 MiB")


# --- who gets its memory -----------------------------------------------------------------------------------------


def test_a_worker_is_told_where_the_memory_is_and_nobody_else_is(daemon):
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as worker, Peer(daemon.socket) as peer:
        watcher = peer.ask(observer_hello(), answer=protocol.Welcome)
        assert (len(worker.welcome.gpu), worker.welcome.gpu_capacity) == (64, 8 * MIB)
        assert worker.welcome.gpu_uuid == bytes(range(16)) and len(worker.welcome.gpu_stamp) == 8
        for other in (engine.welcome, watcher):
            assert (other.gpu, other.gpu_capacity, other.gpu_uuid, other.gpu_stamp) == (b"", 0, b"", b"")


def test_without_the_setting_there_is_no_such_tier(driver, tmp_path):
    with KVTierd(tmp_path) as daemon, Worker(daemon.socket) as worker:
        assert (worker.welcome.gpu, worker.welcome.gpu_capacity) == (b"", 0)
        assert list(daemon.snapshot()["tiers"]) == ["cpu"]


# --- what lies there ---------------------------------------------------------------------------------------------


def test_what_returned_is_read_from_the_device_with_the_bytes_that_were_saved(daemon, driver):
    keys = some_keys(3)
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as worker:
        with _native.Arena.attach(worker.fds[0], 64 * MIB) as arena:
            for number, slot in enumerate(engine.lent[:3]):
                arena.view()[slot * SLOT_UNIT : slot * SLOT_UNIT + SLOT] = number + 1
            engine.save(keys)
            worker.say(protocol.Mapped(maps_gpu=1))
            assert max(turn(engine, keys)) < BASE
            mirrored(daemon, 3)
        places = turn(engine, keys)
        assert min(places) >= BASE
        copied = read(driver, worker.welcome, [place - BASE for place in places])
    assert [set(block) for block in copied] == [{1}, {2}, {3}]
    assert daemon.counter("found_gpu_keys") == 3


def read(library: Path, welcome: protocol.Welcome, places: list[int]) -> list[bytes]:
    """As a worker does it."""
    target = np.zeros((len(places), SLOT), np.uint8)
    fake = _native.CudaDriver.open(str(library))
    memory = _native.DeviceArena.attach(fake, 1, welcome.gpu, welcome.gpu_capacity)
    copier = _native.CudaCopier(fake, 1, path="async")
    try:
        source = np.array([memory.address + place * SLOT_UNIT for place in places], np.uint64)
        ends = target.ctypes.data + np.arange(len(places), dtype=np.uint64) * SLOT
        ticket = copier.submit(source, ends, np.full(len(places), SLOT, np.uint64))
        assert copier.wait(ticket, PATIENCE_S) and copier.poll()[0][3] == ""
    finally:
        copier.close()
        memory.close()
    return [block.tobytes() for block in target]


def test_an_engine_one_of_whose_workers_does_not_map_it_reads_ram(daemon):
    keys = some_keys(2)
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as one, Worker(daemon.socket) as other:
        engine.save(keys)
        one.say(protocol.Mapped(maps_gpu=1))
        other.say(protocol.Mapped())
        turn(engine, keys)
        mirrored(daemon, 2)
        assert max(turn(engine, keys)) < BASE
        other.say(protocol.Mapped(maps_gpu=1))
        eventually(lambda: daemon.engine("engine")["maps_gpu"])
        assert min(turn(engine, keys)) >= BASE
        with Worker(daemon.socket):  # a third, which has not said yet
            assert max(turn(engine, keys)) < BASE


def test_the_proof_of_a_session_that_is_forgotten_counts_its_copies(daemon):
    with Engine(daemon.socket) as engine:
        engine.say(protocol.Begin("request", "chat"))
        slots = [engine.lent.pop(0) for _ in range(2)]
        engine.say(protocol.Commit(some_keys(2), np.array(slots, "<u4").tobytes(), request="request"))
        engine.say(protocol.Touch(some_keys(2), "request"))
        turn(engine, some_keys(2))
        mirrored(daemon, 2)
        shown = run("kvtier", "forget", "chat", "--socket", daemon.socket)
    assert shown.returncode == 0, shown.stderr
    assert ["gpu", "2", "128", "KiB"] in [line.split() for line in shown.stdout.splitlines()]
    assert daemon.snapshot()["tiers"]["gpu"]["used_bytes"] == 0
    assert daemon.counter("erased_gpu_blocks") == 2


def test_a_daemon_that_follows_a_killed_one_begins_with_empty_memory(daemon):
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(2))
        turn(engine, some_keys(2))
        mirrored(daemon, 2)
    daemon.restart()
    assert daemon.snapshot()["tiers"]["gpu"]["blocks"] == 0


def test_stats_show_the_device(daemon):
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as worker:
        worker.say(protocol.Mapped(maps_gpu=1))
        engine.save(some_keys(2))
        turn(engine, some_keys(2))
        mirrored(daemon, 2)
        shown = run("kvtier", "stats", "-1", "--socket", daemon.socket).stdout
    lines = [line.split() for line in shown.splitlines()]
    (tier,) = [line for line in lines if line[:1] == ["gpu"]]
    assert tier[1:6] == ["8", "MiB", "128", "KiB", "(2%)"] and tier[6] == "2"
    (device,) = [line for line in lines if line[:3] == ["Fake", "GPU", "1"]]
    assert device[3] == "good" and device[-2:] == ["1", "engines"]


def reading(engine: Engine, worker: Worker, daemon: KVTierd) -> None:
    """The engine has a lease on a place, so its worker may be copying from there."""
    worker.say(protocol.Mapped(maps_gpu=1))
    engine.save(some_keys(1))
    turn(engine, some_keys(1))
    mirrored(daemon, 1)
    assert min(engine.lookup(some_keys(1))) >= BASE


def test_it_ends_when_those_who_read_there_have_ended_their_copies(daemon):
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as reader:
        reading(engine, reader, daemon)
        os.kill(daemon.pid, signal.SIGTERM)
        assert reader.hear(protocol.Drain) == protocol.Drain()
        time.sleep(0.2)
        assert daemon.process.poll() is None, "it waits"
        assert engine.lookup(some_keys(1))[0] < BASE, "nobody begins to read there now"
        reader.close()
        assert daemon.process.wait(PATIENCE_S) == 0
    assert "kvtierd ends" in daemon.said() and "did not end" not in daemon.said()


def test_it_ends_when_the_last_lease_on_a_place_is_over(daemon):
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as reader:
        reading(engine, reader, daemon)
        os.kill(daemon.pid, signal.SIGTERM)
        assert reader.hear(protocol.Drain) == protocol.Drain()
        engine.release()
        assert daemon.process.wait(PATIENCE_S) == 0
    assert "did not end" not in daemon.said()


def test_an_engine_that_is_idle_is_not_waited_for(daemon):
    """Its workers hear nothing before its next step."""
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as reader:
        reading(engine, reader, daemon)
        engine.release()
        assert daemon.snapshot()["tiers"]["gpu"]["readers"] == 1
        begun = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - begun < 4
    assert "did not end" not in daemon.said()


def test_it_does_not_wait_for_ever_though_it_ran_out_of_descriptors(daemon):
    with Engine(daemon.socket) as engine, Worker(daemon.socket) as reader, contextlib.ExitStack() as stack:
        reading(engine, reader, daemon)
        used = len(os.listdir(f"/proc/{daemon.pid}/fd"))
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 2, used + 2))
        for _ in range(4):
            stack.enter_context(Peer(daemon.socket))
        eventually(lambda: "can't accept a connection" in daemon.said())
        assert daemon.terminate() == 0
        assert "an engine did not end its copies in 5 s; its loads from the GPU tier may fail" in daemon.said()
