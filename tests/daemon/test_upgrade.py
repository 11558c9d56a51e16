"""One kvtierd after the other, with one RAM tier: a service manager keeps the arena and the Handover in between."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_processes import ARENA_SLOTS, OLD, SLOT_BYTES, EngineProcesses, Hungry, bytes_of
from kvtierd import SLOT, Engine, Worker, eventually, some_keys
from service_manager import Service

from kvtier import _native
from kvtier.block import SLOT_UNIT
from kvtier.protocol import Begin, Lookup, Touch

CAPACITY = ARENA_SLOTS * SLOT_BYTES
COLD = "the RAM tier begins empty"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, {"cpu.capacity": CAPACITY, "lend.max_share": 0.5}) as started:
        yield started


@contextlib.contextmanager
def connected(daemon: Service, engine: str) -> Iterator[tuple[Engine, np.ndarray]]:
    """An engine's scheduler, and the memory of its worker."""
    with Engine(daemon.socket, engine) as scheduler, Worker(daemon.socket, engine) as worker:
        arena = _native.Arena.attach(worker.fds[0], CAPACITY)
        yield scheduler, arena.view()
        arena.close()


def fill(daemon: Service, engine: str, keys: bytes, pattern: int) -> None:
    """An engine saves these, each slot full of one byte, and is gone."""
    with connected(daemon, engine) as (scheduler, memory):
        for i, slot in enumerate(scheduler.save(keys)):
            memory[slot * SLOT_UNIT : slot * SLOT_UNIT + SLOT] = pattern + i
    eventually(lambda: daemon.engine(engine) is None)


def read(daemon: Service, engine: str, keys: bytes) -> list[int]:
    """The first byte of each block that is found; -1 where none is."""
    with connected(daemon, engine) as (scheduler, memory):
        slots = scheduler.lookup(keys)
        found = [int(memory[slot * SLOT_UNIT]) if slot * SLOT_UNIT < CAPACITY else -1 for slot in slots]
    eventually(lambda: daemon.engine(engine) is None)
    return found


def begins_cold(service: Service, why: str) -> bool:
    """The one that was started last says that it begins with nothing, and why."""
    said = service.said().splitlines()[-20:]
    return any(COLD in line and why in line for line in said) and service.cpu()["blocks"] == 0


# --- it goes on ------------------------------------------------------------------------------------------------------


def test_what_is_in_ram_is_there_after_an_upgrade_and_after_the_next(service):
    fill(service, "first", some_keys(4), 10)
    generation = service.snapshot()["generation"]
    for turn in (1, 2):
        before = service.pid
        service.upgrade()
        assert service.pid != before
        assert read(service, f"reader {turn}", some_keys(4)) == [10, 11, 12, 13]
        assert service.snapshot()["generation"] > generation
        generation = service.snapshot()["generation"]
    assert service.names() == []  # nothing is kept while one runs
    assert COLD not in service.said()


def test_sessions_and_their_pins_are_there_after_an_upgrade(service):
    with Engine(service.socket, "first") as scheduler:
        scheduler.say(Begin("request", session="a talk", counts={"pin": 1}))
        scheduler.say(Lookup(1, some_keys(3), request="request"))
        scheduler.save(some_keys(3))
        scheduler.say(Touch(some_keys(3), "request"))
        eventually(lambda: service.snapshot()["retention"]["pinned_bytes"] == 3 * SLOT)
    service.upgrade()
    retention = service.snapshot()["retention"]
    assert retention["pinned_bytes"] == 3 * SLOT
    assert sum(retention["sessions"].values()) == 1


def test_nothing_is_read_from_the_drives_for_what_is_in_ram(tmp_path):
    settings = {"cpu.capacity": CAPACITY, "nvme.paths": tmp_path / "drive", "nvme.capacity": "64 MiB"}
    with Service(tmp_path, settings) as service:
        fill(service, "first", some_keys(4), 10)
        service.upgrade()
        nvme = service.snapshot()["tiers"]["nvme"]
        assert nvme["blocks"] == 4  # what was worth it had been written, too
        assert read(service, "second", some_keys(4)) == [10, 11, 12, 13]
        assert service.snapshot()["tiers"]["nvme"]["read_bytes"] == 0


def test_a_start_that_fails_for_a_wrong_setting_costs_nothing(tmp_path):
    settings = {"cpu.capacity": CAPACITY, "nvme.paths": tmp_path / "drive", "nvme.capacity": "64 MiB"}
    with Service(tmp_path, settings) as service:
        fill(service, "first", some_keys(2), 10)
        assert service.end() == 0
        service._settings["nvme.io"] = "no such thing"
        with pytest.raises(AssertionError, match=r"nvme\.io"):
            service.start()
        service._settings["nvme.io"] = "auto"
        service.start()
        assert read(service, "second", some_keys(2)) == [10, 11]


def test_a_start_that_finds_its_port_taken_costs_nothing(tmp_path):
    with Service(tmp_path, {"cpu.capacity": CAPACITY}) as service, socket.create_server(("127.0.0.1", 0)) as other:
        fill(service, "first", some_keys(2), 10)
        assert service.end() == 0
        service._settings["metrics.listen"] = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AssertionError, match=r"metrics\.listen"):
            service.start()
        del service._settings["metrics.listen"]
        service.start()
        assert read(service, "second", some_keys(2)) == [10, 11]


# --- it does not -----------------------------------------------------------------------------------------------------


def test_a_kvtierd_that_was_killed_hands_nothing_over(service):
    fill(service, "first", some_keys(2), 10)
    service.kill()
    assert service.names() == []
    service.start()
    assert read(service, "second", some_keys(2)) == [-1, -1]


def test_one_with_another_arena_begins_with_nothing_and_says_so(service):
    fill(service, "first", some_keys(2), 10)
    assert service.end() == 0
    service._settings["cpu.capacity"] = 2 * CAPACITY
    service.start()
    assert begins_cold(service, "capacity is 33554432, not 67108864")
    assert service.names() == []


def test_a_handover_that_was_refused_is_of_no_use_to_a_later_start(service):
    fill(service, "first", some_keys(2), 10)
    assert service.end() == 0
    again = [(name, os.dup(fd)) for name, fd in service.kept]
    service._settings["cpu.capacity"] = 2 * CAPACITY
    service.start()
    service.kill()
    service.kept = again  # as if the service manager had not heard that it is over
    service._settings["cpu.capacity"] = CAPACITY
    service.start()
    assert begins_cold(service, "it is cut off")


def test_a_handover_serves_once(service):
    fill(service, "first", some_keys(2), 10)
    assert service.end() == 0
    again = [(name, os.dup(fd)) for name, fd in service.kept]
    service.start()
    service.kill()
    service.kept = again  # as if the service manager had not heard that it is over
    service.start()
    assert begins_cold(service, "it is cut off")


def test_an_arena_without_its_index_is_of_no_use(service):
    fill(service, "first", some_keys(2), 10)
    assert service.end() == 0
    (index,) = [kept for kept in service.kept if kept[0] == "handover"]
    service.kept.remove(index)
    os.close(index[1])
    service.start()
    assert begins_cold(service, "the last kvtierd did not come to its end")


def test_a_damaged_handover_is_of_no_use(service):
    fill(service, "first", some_keys(2), 10)
    assert service.end() == 0
    (index,) = [fd for name, fd in service.kept if name == "handover"]
    os.pwrite(index, b"?", os.fstat(index).st_size // 2)
    service.start()
    assert begins_cold(service, "its bytes are not as they were written")


def test_an_arena_that_somebody_could_cut_is_of_no_use(service):
    fill(service, "first", some_keys(2), 10)
    assert service.end() == 0
    loose = os.memfd_create("loose", os.MFD_CLOEXEC)
    os.ftruncate(loose, CAPACITY)
    service.kept = [(name, loose if name == "arena" else fd) for name, fd in service.kept]
    service.start()
    assert begins_cold(service, "not sealed")


def test_what_was_kept_by_another_root_secret_is_of_no_use(tmp_path):
    settings = {"cpu.capacity": CAPACITY, "nvme.paths": tmp_path / "drive", "nvme.capacity": "64 MiB"}
    with Service(tmp_path, settings) as service:
        fill(service, "first", some_keys(2), 10)
        assert service.end() == 0
        service._settings["nvme.paths"] = tmp_path / "another drive"
        service.start()
        assert begins_cold(service, "another root secret")
        assert service.cpu()["used_bytes"] == 0


# --- workers that still copy -----------------------------------------------------------------------------------------


def test_slots_that_a_worker_still_fills_are_nobody_elses_until_it_comes_anew(service):
    with contextlib.ExitStack() as stack:
        copies = EngineProcesses(service, "copies")
        stack.callback(copies.kill)
        slots = set(copies.copy_into_lent())
        service.upgrade()
        hungry = Hungry(service, stack)
        hungry.eat()
        eventually(lambda: hungry.eat() and len(hungry.got) == ARENA_SLOTS - len(slots))
        assert not hungry.got & slots
        assert all((bytes_of(hungry.memory, slot) == OLD).all() for slot in slots)
        assert service.engine("copies")["lent_slots"] == len(slots)
        copies.worker.command("finish")
        assert copies.worker.hear("hung_up")
        eventually(lambda: hungry.eat() >= slots)
        assert hungry.spoiled() == []


def test_slots_of_a_worker_that_dies_after_the_upgrade_come_back(service):
    with contextlib.ExitStack() as stack:
        copies = EngineProcesses(service, "copies")
        stack.callback(copies.kill)
        slots = set(copies.copy_into_lent())
        service.upgrade()
        assert service.engine("copies")["lent_slots"] == len(slots)
        copies.kill()
        eventually(lambda: service.engine("copies") is None)
        assert service.cpu()["lent_bytes"] == 0


def test_slots_of_a_worker_that_outlives_two_upgrades_are_still_its_own(service):
    with contextlib.ExitStack() as stack:
        copies = EngineProcesses(service, "copies")
        stack.callback(copies.kill)
        slots = copies.copy_into_lent()
        for _ in range(2):
            service.upgrade()
            assert service.engine("copies")["lent_slots"] == len(slots)


def test_blocks_that_a_worker_may_still_read_stay_where_they_are(service):
    with contextlib.ExitStack() as stack:
        reads = EngineProcesses(service, "reads")
        stack.callback(reads.kill)
        leased = set(reads.save_and_lease(3))
        reads.copy_into_lent()  # so that it does not hang up
        service.upgrade()
        assert service.engine("reads")["leased_blocks"] == 3
        hungry = Hungry(service, stack)
        for _ in range(3):
            hungry.eat()
        assert not hungry.got & leased


def test_an_engine_goes_on_with_the_next_kvtierd_and_finds_what_it_saved(service):
    with contextlib.ExitStack() as stack:
        engine = EngineProcesses(service, "goes on")
        stack.callback(engine.kill)
        saved = engine.save_and_lease(3)
        service.upgrade()
        while not engine.scheduler.hear("ready") or engine.worker.hear("generation") <= engine.generation:
            pass
        engine.scheduler.command("lease", 3)
        assert engine.scheduler.hear("leased") == saved
