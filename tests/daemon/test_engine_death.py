"""Engines that die. Their slots and leases come back within a second, and never under a copy that still runs.

An engine here is real processes (engine_process.py) with the real clients and copier. A worker's copy lasts until the
test lets it finish, so nothing depends on how fast the machine is.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_processes import ARENA_SLOTS, OLD, SLOT_BYTES, EngineProcesses, Hungry, Process, bytes_of
from kvtierd import Engine, KVTierd, Worker, eventually, some_keys

BACK_WITHIN_S = 1.0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path, {"cpu.capacity": f"{ARENA_SLOTS} MiB", "lend.max_share": 0.5}) as started:
        yield started


@pytest.fixture
def engine(daemon: KVTierd) -> Iterator[EngineProcesses]:
    started = EngineProcesses(daemon, "dies")
    yield started
    started.kill()


# --- the whole engine dies ---------------------------------------------------------------------------------------


def test_slots_and_leases_of_a_killed_engine_are_back_within_a_second(daemon, engine):
    engine.save_and_lease(3)
    engine.copy_into_lent()
    held = daemon.engine("dies")
    assert (held["leases"], held["leased_blocks"], held["lent_slots"]) == (1, 3, 5)
    engine.kill()
    eventually(lambda: daemon.engine("dies") is None, within=BACK_WITHIN_S)
    cpu = daemon.cpu()
    assert (cpu["leased_bytes"], cpu["lent_bytes"], cpu["used_bytes"]) == (0, 0, 3 * SLOT_BYTES)
    assert daemon.counter("engines_gone") == 1


def test_the_blocks_of_a_killed_engine_are_still_there_for_others(daemon, engine):
    saved = engine.save_and_lease(3)
    engine.kill()
    again = EngineProcesses(daemon, "comes after")
    again.scheduler.command("lease", 3)
    assert again.scheduler.hear("leased") == saved
    again.kill()


# --- the scheduler dies, its worker copies -----------------------------------------------------------------------


def test_slots_are_not_lent_to_others_while_a_worker_of_the_dead_engine_still_copies_into_them(daemon, engine):
    slots = set(engine.copy_into_lent())
    engine.scheduler.kill()
    with contextlib.ExitStack() as stack:
        hungry = Hungry(daemon, stack)
        for _ in range(20):
            assert not hungry.eat() & slots
        assert len(hungry.got) == ARENA_SLOTS - len(slots)  # everything else
        assert daemon.engine("dies")["lent_slots"] == len(slots)
        assert all((bytes_of(hungry.memory, slot) == OLD).all() for slot in slots)
        assert hungry.spoiled() == []

        engine.worker.command("finish")
        assert engine.worker.hear("hung_up")
        eventually(lambda: daemon.engine("dies") is None, within=BACK_WITHIN_S)
        eventually(lambda: hungry.eat() >= slots)
        assert hungry.spoiled() == []


def test_leases_of_a_dead_scheduler_hold_until_its_worker_has_drained(daemon, engine):
    # A load reads a leased slot; the worker may be in the middle of it.
    engine.save_and_lease(3)
    engine.copy_into_lent()
    engine.scheduler.kill()
    eventually(lambda: [c["role"] for c in daemon.snapshot()["clients"]] == ["worker", "observer"])
    assert daemon.engine("dies")["leased_blocks"] == 3
    engine.worker.command("finish")
    eventually(lambda: daemon.cpu()["leased_bytes"] == 0)


def test_a_worker_killed_in_the_middle_of_its_copy_gives_everything_back_within_a_second(daemon, engine):
    engine.copy_into_lent()
    engine.scheduler.kill()
    eventually(lambda: [c["role"] for c in daemon.snapshot()["clients"]] == ["worker", "observer"])
    assert daemon.engine("dies")["lent_slots"] == 8
    engine.worker.kill()
    eventually(lambda: daemon.engine("dies") is None, within=BACK_WITHIN_S)
    assert daemon.cpu()["used_bytes"] == 0


def test_a_drained_worker_comes_back_and_so_does_a_new_scheduler_both_with_a_new_generation(daemon, engine):
    engine.copy_into_lent()
    engine.scheduler.kill()
    engine.scheduler = Process("scheduler", daemon, "dies", SLOT_BYTES, 8)
    eventually(lambda: "former processes of this engine are not gone yet" in daemon.said())
    assert engine.worker.process.poll() is None
    engine.worker.command("finish")
    assert engine.worker.hear("hung_up")
    generation = engine.worker.hear("generation")
    assert generation > engine.generation
    assert engine.scheduler.hear("generation") == generation
    while not engine.scheduler.hear("ready"):
        pass
    assert daemon.engine("dies")["lent_slots"] == 8


# --- a worker dies, its scheduler lives --------------------------------------------------------------------------


def test_a_scheduler_that_lost_its_worker_is_not_ready_and_keeps_its_slots(daemon, engine):
    engine.copy_into_lent()
    engine.worker.kill()
    while engine.scheduler.hear("ready"):
        pass
    assert daemon.engine("dies")["lent_slots"] == 8
    engine.worker = Process("worker", daemon, "dies", SLOT_BYTES)
    while not engine.scheduler.hear("ready"):
        pass
    assert engine.worker.hear("generation") == engine.generation


# --- copies of a GPU --------------------------------------------------------------------------------------------


def test_a_worker_whose_gpu_copies_is_gone_when_its_process_has_ended(daemon):
    EngineProcesses(daemon, "dies", by_gpu=True).kill()
    eventually(lambda: not daemon.snapshot()["engines"])


def test_a_worker_whose_gpu_copies_says_so_when_no_copy_runs(daemon):
    engine = EngineProcesses(daemon, "dies", by_gpu=True)
    engine.scheduler.kill()
    engine.worker.hear("hung_up")  # its process lives on
    eventually(lambda: not daemon.snapshot()["engines"])
    engine.worker.kill()


# --- many ---------------------------------------------------------------------------------------------------------


def test_nothing_leaks_when_engines_come_and_die_many_times(daemon):
    for turn in range(40):
        with Worker(daemon.socket, f"engine {turn % 3}"):
            eventually(lambda: not daemon.snapshot()["engines"])
            scheduler = Engine(daemon.socket, f"engine {turn % 3}", block_bytes=SLOT_BYTES)
            scheduler.save(some_keys(2, f"turn {turn}"))
            scheduler.lookup(some_keys(2, f"turn {turn}"))
            scheduler.close()
    eventually(lambda: not daemon.snapshot()["engines"], within=BACK_WITHIN_S)
    cpu = daemon.cpu()
    assert (cpu["lent_bytes"], cpu["leased_bytes"]) == (0, 0)
    assert cpu["used_bytes"] == cpu["blocks"] * SLOT_BYTES
    assert daemon.counter("engines_gone") == 40
