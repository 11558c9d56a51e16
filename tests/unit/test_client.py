"""What an engine notices of kvtierd through its clients: when it is there, when it is not, and never an exception.

Time is what the test says it is, so that no test waits for a back-off; only `wait` knows the real clock.
"""

import contextlib
import itertools
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import PATIENCE_S, SLOT, Engine, KVTierd, eventually, scheduler_hello, some_keys, worker_hello

from kvtier import _native, client, protocol
from kvtier.block import ABSENT, KEY_BYTES
from kvtier.client import SchedulerClient
from kvtier.worker_client import WorkerClient

on_healthy_daemon = pytest.mark.usefixtures("healthy")
LARGEST_TOUCH = bytes(KEY_BYTES * protocol.KEYS_MAX)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """A daemon that nothing happens to, for all tests of this file."""
    with KVTierd(tmp_path_factory.mktemp("healthy")) as daemon:
        yield daemon


@pytest.fixture
def kvtierd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KVTierd]:
    """This test's own daemon; the healthy one where the test says so."""
    if request.node.get_closest_marker("usefixtures") is not None:
        healthy = request.getfixturevalue("healthy")
        eventually(lambda: not healthy.snapshot()["engines"])
        yield healthy
        return
    with KVTierd(tmp_path) as daemon:
        yield daemon


class ClientPair:
    """The clients of one engine with one worker, and what their owners do once a step."""

    def __init__(self, path: Path, engine: str = "engine") -> None:
        self.clock = itertools.count(1000.0).__next__  # a second passes whenever somebody looks
        self.scheduler = SchedulerClient(path, scheduler_hello(engine), workers=1)
        self.worker = WorkerClient(path, worker_hello(engine))

    def step(self) -> bool:
        """Whether the engine can use the daemon."""
        self.scheduler.poll(self.clock())
        self.worker.poll(self.clock())
        if (arena := self.worker.take_arena()) is not None:
            os.close(arena.fd)
            self.worker.mapped(self.clock())
        if self.worker.draining:  # it never copies
            self.worker.hang_up(self.clock())
        return self.scheduler.ready

    def lookup(self, keys: bytes) -> tuple[int, list[int]]:
        lease = self.scheduler.lookup(keys, 0, self.clock())
        eventually(lambda: self.step() and self.scheduler.answer(lease) is not None)
        return lease, self.scheduler.answer(lease).tolist()

    def save(self, keys: bytes) -> list[int]:
        slots = self.scheduler.borrow(len(keys) // KEY_BYTES)
        self.scheduler.commit(keys, slots, self.scheduler.generation, self.clock())
        return slots

    def close(self) -> None:
        self.scheduler.close()
        self.worker.close()


@pytest.fixture
def pair(kvtierd: KVTierd) -> Iterator[ClientPair]:
    """An engine that is up and was lent its slots."""
    made = ClientPair(kvtierd.socket)
    eventually(made.step)
    yield made
    made.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- a daemon that is there --------------------------------------------------------------------------------------


@on_healthy_daemon
def test_an_engine_is_ready_when_all_its_workers_have_mapped_the_arena(kvtierd):
    scheduler = SchedulerClient(kvtierd.socket, scheduler_hello(), workers=1)
    worker = WorkerClient(kvtierd.socket, worker_hello())
    eventually(lambda: scheduler.poll(1.0) or scheduler.generation)
    assert not scheduler.ready
    arena = eventually(lambda: worker.poll(1.0) or worker.take_arena())
    assert (arena.generation, arena.size) == (scheduler.generation, 64 * 1024**2)
    assert (arena.gpu, arena.gpu_size, arena.gpu_uuid, arena.gpu_stamp) == (b"", 0, b"", b"")  # this daemon has no GPU tier
    _native.Arena.attach(arena.fd, arena.size).close()
    os.close(arena.fd)
    assert worker.take_arena() is None
    assert not scheduler.ready
    worker.mapped(1.0)
    eventually(lambda: scheduler.poll(1.0) or scheduler.ready)
    scheduler.close()
    worker.close()


@on_healthy_daemon
def test_what_was_saved_is_found_under_a_lease_until_that_is_released(kvtierd, pair):
    slots = pair.save(some_keys(3, "saved"))
    assert len(slots) == 3
    lease, answer = pair.lookup(some_keys(4, "saved"))
    assert answer == [*slots, ABSENT]
    assert kvtierd.engine("engine")["leases"] == 1
    pair.scheduler.release(lease, 3, pair.clock())
    assert pair.scheduler.answer(lease) is None
    eventually(lambda: kvtierd.engine("engine")["leases"] == 0)
    assert kvtierd.counter("loaded_blocks") == 3


@on_healthy_daemon
def test_a_lease_that_was_released_before_its_answer_came_is_over_all_the_same(kvtierd, pair):
    pair.save(some_keys(3))
    lease = pair.scheduler.lookup(some_keys(3), 0, pair.clock())
    pair.scheduler.release(lease, 0, pair.clock())
    pair.scheduler.release(lease, 0, pair.clock())
    pair.lookup(some_keys(1, "other"))
    assert pair.scheduler.answer(lease) is None
    assert kvtierd.engine("engine")["leases"] == 0


@on_healthy_daemon
def test_no_more_slots_can_be_borrowed_than_were_lent_and_more_come_by_themselves(kvtierd, pair):
    first = eventually(lambda: pair.step() and pair.scheduler.borrow(100))
    assert len(first) == 8
    assert pair.scheduler.borrow(1) == []
    pair.scheduler.give_back(first[:5], pair.scheduler.generation, pair.clock())
    assert len(eventually(lambda: pair.step() and pair.scheduler.borrow(100))) == 5


@on_healthy_daemon
def test_touches_and_reports_arrive(kvtierd, pair):
    pair.scheduler.touch(some_keys(3), pair.clock())
    pair.scheduler.report({"lookups_late": 2}, pair.clock())
    eventually(lambda: kvtierd.counter("lookups_late") == 2)


@on_healthy_daemon
def test_wait_returns_when_the_answer_is_there(kvtierd, pair):
    while pair.scheduler.wait(time.monotonic() + 0.01):  # nothing else on its way
        pair.step()
    lease = pair.scheduler.lookup(some_keys(1, "nowhere"), 0, pair.clock())
    assert pair.scheduler.wait(time.monotonic() + PATIENCE_S)
    pair.scheduler.poll(pair.clock())
    assert pair.scheduler.answer(lease).tolist() == [ABSENT]


@on_healthy_daemon
def test_wait_is_over_when_its_time_is_and_with_a_past_time_at_once(kvtierd, pair):
    assert pair.scheduler.wait(time.monotonic() - 1) is False
    while pair.scheduler.wait(time.monotonic() + 0.01):
        pair.step()
    started = time.monotonic()
    assert pair.scheduler.wait(started + 0.05) is False
    assert time.monotonic() - started >= 0.05


# --- a daemon that is not there ----------------------------------------------------------------------------------


def test_without_a_daemon_every_call_is_nothing_and_one_line_says_so(tmp_path, caplog):
    pair = ClientPair(tmp_path / "nobody.sock")
    for _ in range(50):
        assert pair.step() is False
        lease = pair.scheduler.lookup(some_keys(1), 0, pair.clock())
        assert pair.scheduler.answer(lease) is None
        assert pair.scheduler.wait(time.monotonic() + 60) is False  # there is nothing to wait for
        pair.scheduler.release(lease, 0, pair.clock())
        assert pair.scheduler.borrow(3) == []
        pair.scheduler.commit(some_keys(1), [1], 1, pair.clock())
        pair.scheduler.give_back([1], 1, pair.clock())
        pair.scheduler.touch(some_keys(1), pair.clock())
        pair.scheduler.report({"lookups_late": 1}, pair.clock())
    assert pair.scheduler.generation == 0 and pair.worker.take_arena() is None
    line = f"no kvtierd on {tmp_path}/nobody.sock (No such file or directory); serving without it"
    assert warnings(caplog) == [line] * 2  # the scheduler's and the worker's


def test_attempts_to_connect_become_rare(tmp_path):
    attempts = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "hangs-up.sock"))
        listener.listen()
        listener.setblocking(False)
        scheduler = SchedulerClient(tmp_path / "hangs-up.sock", scheduler_hello(), workers=1)
        for millisecond in range(15_000):
            scheduler.poll(millisecond / 1e3)
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                attempts.append(millisecond / 1e3)
    gaps = [round(after - before, 2) for before, after in itertools.pairwise(attempts)]
    assert gaps[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert set(gaps[7:]) == {2.0}


def test_a_daemon_that_appears_later_is_found(tmp_path):
    daemon = KVTierd(tmp_path)
    pair = ClientPair(daemon.socket)
    assert not pair.step()
    with daemon:
        eventually(pair.step)
        assert pair.lookup(some_keys(1))[1] == [ABSENT]
    pair.close()


# --- a daemon that dies ------------------------------------------------------------------------------------------


def test_after_a_restart_it_is_ready_again_with_another_generation_and_nothing_of_before(kvtierd, pair):
    before = pair.scheduler.generation
    secret = pair.scheduler.secret
    borrowed = eventually(lambda: pair.step() and pair.scheduler.borrow(2))
    lease, _ = pair.lookup(some_keys(1))
    kvtierd.kill()
    eventually(lambda: not pair.step())
    assert (pair.scheduler.generation, pair.scheduler.answer(lease), pair.scheduler.borrow(9)) == (0, None, [])
    kvtierd.start()
    eventually(pair.step)
    assert pair.scheduler.generation not in (0, before)
    assert pair.scheduler.secret != secret
    # What belonged to the former stay goes nowhere: the new daemon would disconnect an engine for a slot it never lent.
    pair.scheduler.release(lease, 1, pair.clock())
    pair.scheduler.commit(some_keys(2), borrowed, before, pair.clock())
    pair.scheduler.give_back(borrowed, before, pair.clock())
    assert pair.lookup(some_keys(2))[1] == [ABSENT, ABSENT]
    assert kvtierd.counter("protocol_errors") == 0


def test_a_worker_keeps_its_connection_open_until_its_owner_says_that_no_copy_runs(kvtierd, pair):
    pair.scheduler.close()  # the daemon tells the worker to drain
    eventually(lambda: pair.worker.poll(pair.clock()) or pair.worker.draining)
    for _ in range(20):
        pair.worker.poll(pair.clock())
    assert [c["role"] for c in kvtierd.snapshot()["clients"]] == ["worker", "observer"]
    assert kvtierd.engine("engine") is not None
    before = pair.worker.generation
    pair.worker.hang_up(pair.clock())
    eventually(lambda: kvtierd.engine("engine") is None)
    eventually(pair.step)
    assert pair.worker.generation == pair.scheduler.generation > before


def test_an_engine_that_abandons_the_daemon_comes_back_from_nothing(kvtierd, pair, caplog):
    before = pair.scheduler.generation
    pair.scheduler.abandon(pair.clock())
    assert not pair.scheduler.ready
    eventually(pair.step)
    assert pair.scheduler.generation > before
    assert f"kvtierd on {kvtierd.socket}: this engine gave up the connection; serving without it" in warnings(caplog)


# --- a daemon that stands still ----------------------------------------------------------------------------------


def test_a_frozen_daemon_is_waited_for_no_longer_than_said(kvtierd, pair):
    while pair.scheduler.wait(time.monotonic() + 0.01):
        pair.step()
    kvtierd.stop_()
    lease = pair.scheduler.lookup(some_keys(1), 0, pair.clock())
    started = time.monotonic()
    assert pair.scheduler.wait(started + 0.1) is False
    assert time.monotonic() - started < PATIENCE_S
    assert pair.scheduler.answer(lease) is None
    kvtierd.cont()
    eventually(lambda: pair.step() and pair.scheduler.answer(lease) is not None)


def test_sending_to_a_frozen_daemon_never_blocks_and_ends_with_giving_it_up(kvtierd, pair, caplog):
    kvtierd.stop_()
    sent = 0
    while pair.scheduler.generation:
        pair.scheduler.touch(LARGEST_TOUCH, pair.clock())
        sent += len(LARGEST_TOUCH)
        assert sent < 10 * client.UNSENT_BYTES_MAX
    assert sent > client.UNSENT_BYTES_MAX
    assert f"kvtierd on {kvtierd.socket}: it doesn't read; serving without it" in warnings(caplog)
    kvtierd.cont()
    eventually(pair.step)


def test_a_frozen_daemon_does_not_welcome_and_is_tried_again(kvtierd, caplog):
    kvtierd.stop_()
    pair = ClientPair(kvtierd.socket)
    for _ in range(20):
        assert not pair.step()
    assert f"kvtierd on {kvtierd.socket}: no answer to Hello; serving without it" in warnings(caplog)
    kvtierd.cont()
    eventually(pair.step)
    pair.close()


# --- a daemon of another version ---------------------------------------------------------------------------------


def test_a_daemon_of_another_version_is_told_of_once_and_asked_rarely(tmp_path, caplog):
    with KVTierd(tmp_path, version=99) as daemon:
        scheduler = SchedulerClient(daemon.socket, scheduler_hello(), workers=1)
        now = 1000.0
        eventually(lambda: scheduler.poll(now) or warnings(caplog))
        assert len(warnings(caplog)) == 1
        assert f"protocol 99, the client {protocol.VERSION}; install the same kvtier" in warnings(caplog)[0]
        for _ in range(3):
            now += 10 * client.RETRY_MAX_S - 0.1
            scheduler.poll(now)
            assert scheduler._sock is None  # not yet
            now += 0.2
            scheduler.poll(now)
            eventually(lambda at=now: scheduler.poll(at) or scheduler._sock is None)
        assert daemon.said().count(f"protocol 99, the client {protocol.VERSION}") == 4
        assert len(warnings(caplog)) == 1


def test_a_wish_that_is_refused_is_told_of_once_and_said_rarely(kvtierd, caplog):
    scheduler = SchedulerClient(kvtierd.socket, scheduler_hello(codec="int8"), workers=1)
    eventually(lambda: scheduler.poll(1000.0) or warnings(caplog))
    assert "unknown codec 'int8'" in warnings(caplog)[0] and "serving without it" in warnings(caplog)[0]
    scheduler.poll(1000.0 + 10 * client.RETRY_MAX_S - 0.1)
    assert scheduler._sock is None  # not yet
    assert len(warnings(caplog)) == 1


# --- reset -------------------------------------------------------------------------------------------------------


def test_a_reset_changes_the_secret_for_good_whatever_daemon_there_is(kvtierd, pair):
    shared = pair.scheduler.secret
    pair.scheduler.reset(pair.clock())
    private = pair.scheduler.secret
    assert private != shared and len(private) == 32
    with Engine(kvtierd.socket, "other") as other:
        assert other.welcome.secret not in (shared, private)
    kvtierd.restart()
    eventually(lambda: not pair.step())
    eventually(pair.step)
    with Engine(kvtierd.socket, "other") as other:
        # The engine's own keys stay its own: nobody who joins can name its blocks, nor it theirs.
        assert pair.scheduler.secret not in (shared, private, other.welcome.secret)


@on_healthy_daemon
def test_two_resets_make_two_secrets(kvtierd, pair):
    secrets = {pair.scheduler.secret}
    for _ in range(3):
        pair.scheduler.reset(pair.clock())
        secrets.add(pair.scheduler.secret)
    assert len(secrets) == 4


def test_a_reset_while_the_daemon_was_away_reaches_it_afterwards(kvtierd, pair):
    pair.save(some_keys(3))
    eventually(lambda: kvtierd.cpu()["blocks"] == 3)
    pair.scheduler.abandon(pair.clock())
    pair.scheduler.reset(pair.clock())
    assert kvtierd.counter("reset_blocks") == 0
    eventually(pair.step)
    eventually(lambda: kvtierd.counter("reset_blocks") == 3)
    assert kvtierd.cpu()["blocks"] == 0


def test_a_reset_that_was_still_to_be_sent_when_the_connection_ended_reaches_the_daemon_afterwards(kvtierd, pair):
    pair.save(some_keys(3))
    eventually(lambda: kvtierd.cpu()["blocks"] == 3)
    kvtierd.stop_()
    for _ in range(5):  # more than the socket takes, less than the client would give it up for
        pair.scheduler.touch(LARGEST_TOUCH, pair.clock())
    pair.scheduler.reset(pair.clock())
    pair.scheduler.abandon(pair.clock())
    kvtierd.cont()
    eventually(pair.step)
    eventually(lambda: kvtierd.counter("reset_blocks") == 3)


@on_healthy_daemon
def test_slots_are_of_the_size_that_the_engine_s_blocks_need(kvtierd, pair):
    assert kvtierd.engine("engine")["slot_bytes"] == SLOT
