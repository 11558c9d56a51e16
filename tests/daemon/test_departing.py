"""Workers whose GPU may still write when their socket has ended: their engine keeps its slots until they are gone."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import Engine, KVTierd, Worker, eventually

from kvtier import protocol

HELD_S = 0.5  # a daemon that gives slots back at once takes milliseconds
BY_GPU = protocol.Mapped(0, 0, "batch")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path) as started:
        yield started


def engines(daemon: KVTierd) -> list[str]:
    return [row["engine"] for row in daemon.snapshot()["engines"]]


def up(daemon: KVTierd, says: protocol.Mapped) -> tuple[Engine, Worker]:
    worker = Worker(daemon.socket)
    worker.say(says)
    engine = Engine(daemon.socket)
    assert engines(daemon) == ["engine"]
    return engine, worker


def test_a_worker_that_copies_with_the_processor_is_gone_with_its_socket(daemon):
    engine, worker = up(daemon, protocol.Mapped(0, 0, "memcpy"))
    engine.close()
    worker.close()
    eventually(lambda: engines(daemon) == [])


def test_while_the_process_lives_the_slots_of_a_worker_that_copies_by_gpu_stay_its_engine_s(daemon):
    engine, worker = up(daemon, BY_GPU)
    engine.close()
    worker.close()  # this process lives on
    until = time.monotonic() + HELD_S
    while time.monotonic() < until:
        assert engines(daemon) == ["engine"]
        time.sleep(0.05)


def test_one_that_says_farewell_is_gone_at_once_also_when_it_was_told_to_hang_up(daemon):
    engine, worker = up(daemon, BY_GPU)
    engine.close()
    worker.hear(protocol.Drain)
    worker.sock.sendall(protocol.FAREWELL)
    worker.close()
    eventually(lambda: engines(daemon) == [])


def test_farewell_is_heard_from_one_that_was_refused_meanwhile(daemon):
    engine, worker = up(daemon, BY_GPU)
    worker.say(protocol.Ask())
    worker.hear(protocol.Snapshot)
    worker.sock.sendall(b"\xff" * 64)  # no frame: it is told to hang up when its copies are done
    worker.hear(protocol.Error)
    worker.sock.sendall(protocol.FAREWELL)
    worker.close()
    engine.close()
    eventually(lambda: engines(daemon) == [])


def test_a_worker_that_is_gone_can_copy_no_more_whatever_its_process_does(daemon):
    engine, worker = up(daemon, BY_GPU)
    worker.close()
    assert engine.hear(protocol.Workers).count == 0
    engine.close()
