"""After kvtierd was restarted while an engine had nothing to do: how soon the engine is there again."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import KVTierd, eventually, scheduler_hello, worker_hello

from kvtier.client import ABSENT_RETRY_MAX_S, RETRY_MAX_S, WELCOME_TIMEOUT_S, SchedulerClient
from kvtier.worker_client import WorkerClient

LATER = 1000.0  # on the clock of an engine that joined at 1 s


@pytest.fixture
def kvtierd(tmp_path: Path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def scheduler(kvtierd: KVTierd) -> Iterator[SchedulerClient]:
    made = SchedulerClient(kvtierd.socket, scheduler_hello(), 1)
    yield made
    made.close()


def _attach_worker(daemon: KVTierd, now: float) -> WorkerClient:
    worker = WorkerClient(daemon.socket, worker_hello())
    arena = eventually(lambda: worker.poll(now) or worker.take_arena())
    os.close(arena.fd)
    worker.mapped(now)
    return worker


def test_who_has_connected_joins_until_it_is_ready(kvtierd, scheduler):
    assert not scheduler.joins(1.0, 9.0)
    scheduler.poll(1.0)
    assert scheduler.joins(1.0, 9.0)
    eventually(lambda: scheduler.poll(1.0) or scheduler.generation)
    assert scheduler.joins(1.0, 9.0) and not scheduler.ready
    worker = _attach_worker(kvtierd, 1.0)
    eventually(lambda: scheduler.poll(1.0) or scheduler.ready)
    assert not scheduler.joins(1.0, 9.0)
    worker.close()


def test_nobody_waits_longer_than_said_for_one_that_joins(kvtierd, scheduler):
    scheduler.poll(1.0)
    assert scheduler.joins(1.2, 0.25)
    assert not scheduler.joins(1.3, 0.25)


def test_without_a_daemon_nobody_joins(tmp_path):
    alone = SchedulerClient(tmp_path / "none", scheduler_hello(), 1)
    alone.poll(1.0)
    assert not alone.joins(1.0, 9.0)


def test_the_look_that_finds_the_daemon_gone_is_followed_by_another_at_once(kvtierd, scheduler):
    eventually(lambda: scheduler.poll(1.0) or scheduler.generation)
    before = scheduler.generation
    kvtierd.restart()
    scheduler.poll(LATER)
    assert scheduler.generation == 0 and not scheduler.joins(LATER, 9.0)
    scheduler.poll(LATER)
    assert scheduler.joins(LATER, 9.0)
    eventually(lambda: scheduler.poll(LATER) or scheduler.generation)
    assert scheduler.generation != before


def test_a_daemon_that_comes_after_a_long_absence_is_found_soon(kvtierd, scheduler):
    kvtierd.kill()
    for second in range(100):
        scheduler.poll(second)
    kvtierd.start()
    scheduler.poll(99 + ABSENT_RETRY_MAX_S)
    assert scheduler.joins(99 + ABSENT_RETRY_MAX_S, 9.0)


def test_a_daemon_that_leaves_as_soon_as_it_is_there_is_not_run_after(kvtierd, scheduler):
    eventually(lambda: scheduler.poll(1.0) or scheduler.generation)
    kvtierd.restart()
    soon = 1.0 + RETRY_MAX_S / 2
    scheduler.poll(soon)
    scheduler.poll(soon)
    assert not scheduler.joins(soon, 9.0)


def test_who_was_silent_when_greeted_is_not_waited_for_until_it_says_welcome(kvtierd, scheduler):
    kvtierd.stop_()
    scheduler.poll(1.0)
    assert scheduler.joins(1.0, 9.0)
    silent = 1.1 + WELCOME_TIMEOUT_S
    scheduler.poll(silent)
    scheduler.poll(LATER)
    assert not scheduler.joins(LATER, 9.0)
    kvtierd.cont()
    eventually(lambda: scheduler.poll(LATER) or scheduler.generation)
    assert scheduler.joins(LATER, 9.0)
