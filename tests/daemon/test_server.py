"""What kvtierd does for those who keep to the protocol, and to those who don't: its answers, seen over the socket."""

import fcntl
import os
import stat
import struct
import subprocess

import numpy as np
import pytest
from kvtierd import (
    PATIENCE_S,
    SLOT,
    Engine,
    KVTierd,
    Peer,
    Worker,
    eventually,
    observer_hello,
    scheduler_hello,
    some_keys,
    worker_hello,
)

from kvtier import __version__, _native, protocol
from kvtier.block import ABSENT

MIB = 1 << 20
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def packed(slots: list[int]) -> bytes:
    return np.array(slots, "<u4").tobytes()


# --- the listening socket ----------------------------------------------------------------------------------------


def test_only_its_user_can_reach_the_socket(tmp_path):
    with KVTierd(tmp_path, {"server.socket": tmp_path / "made" / "kvtierd.sock"}) as daemon:
        made = tmp_path / "made"
        eventually(lambda: "serves 64 MiB" in daemon.said())
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
        assert stat.S_IMODE((made / "kvtierd.sock").stat().st_mode) == 0o600


def test_the_socket_of_a_killed_daemon_is_replaced(kvtierd):
    kvtierd.kill()
    assert kvtierd.socket.is_socket()
    kvtierd.start()
    assert kvtierd.snapshot()["pid"] == kvtierd.pid


@pytest.mark.parametrize("frozen", [False, True])
def test_the_socket_of_a_living_daemon_is_left_to_it_even_when_it_is_frozen(kvtierd, frozen):
    if frozen:
        kvtierd.stop_()
    second = subprocess.run(kvtierd.command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 2
    assert f"another kvtierd listens on {kvtierd.socket}; stop it, or set server.socket" in second.stderr
    kvtierd.cont()
    assert kvtierd.snapshot()["pid"] == kvtierd.pid


@pytest.mark.parametrize("name", ["x" * 120, "a-file", "a-file/kvtierd.sock"])
def test_a_path_that_can_be_no_socket_is_refused_with_the_setting_to_change(tmp_path, name):
    (tmp_path / "a-file").write_text("not a socket")
    command = KVTierd(tmp_path, {"server.socket": tmp_path / name}).command
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert str(tmp_path / name) in ended.stderr and "set server.socket" in ended.stderr
    assert (tmp_path / "a-file").read_text() == "not a socket"


# --- Hello and Welcome -------------------------------------------------------------------------------------------


def test_an_observer_is_welcomed_without_secret_slots_or_descriptor(shared_kvtierd):
    with Peer(shared_kvtierd.socket) as peer:
        welcome = peer.ask(observer_hello(), answer=protocol.Welcome)
        assert (welcome.version, welcome.capacity) == (protocol.VERSION, 64 * MIB)
        assert (welcome.secret, welcome.lend, peer.fds) == (b"", 0, [])
        state = peer.ask(protocol.Ask(), answer=protocol.Snapshot).state
        assert (state["version"], state["generation"]) == (__version__, welcome.generation)


def test_a_scheduler_is_welcomed_with_a_secret_and_as_many_slots_as_it_asked_for(shared_kvtierd):
    with Engine(shared_kvtierd.socket, "asks 5", lend=5) as engine:
        assert engine.welcome.lend == 5
        assert len(engine.welcome.secret) == 32
        assert len(set(engine.lent)) == 5 and max(engine.lent) < 64 * MIB // SLOT
        assert engine.fds == []


def test_an_engine_that_asks_for_no_slot_gets_one_and_a_greedy_one_its_share_of_the_arena(shared_kvtierd):
    with (
        Engine(shared_kvtierd.socket, "modest", lend=0) as modest,
        Engine(shared_kvtierd.socket, "greedy", lend=2**63 - 1) as greedy,
    ):
        assert (modest.welcome.lend, len(modest.lent)) == (1, 1)
        assert 1 < greedy.welcome.lend == len(greedy.lent) <= 64 * MIB // SLOT // 4  # lend.max_share at most
        assert not set(modest.lent) & set(greedy.lent)


def test_a_worker_gets_the_sealed_arena_itself(shared_kvtierd):
    with Worker(shared_kvtierd.socket, "maps") as one, Worker(shared_kvtierd.socket, "maps too") as other:
        assert (one.welcome.secret, one.welcome.capacity, len(one.fds)) == (b"", 64 * MIB, 1)
        assert fcntl.fcntl(one.fds[0], fcntl.F_GET_SEALS) & SEALED == SEALED
        with _native.Arena.attach(one.fds[0], 64 * MIB) as arena, _native.Arena.attach(other.fds[0], 64 * MIB) as same:
            arena.view()[-5:] = (1, 2, 3, 4, 5)
            assert same.view()[-5:].tolist() == [1, 2, 3, 4, 5]


def test_the_processes_of_one_engine_get_one_generation_and_the_next_engine_another(shared_kvtierd):
    with (
        Worker(shared_kvtierd.socket, "one") as early,
        Engine(shared_kvtierd.socket, "one") as engine,
        Worker(shared_kvtierd.socket, "one") as late,
        Engine(shared_kvtierd.socket, "two") as other,
    ):
        assert early.welcome.generation == engine.welcome.generation == late.welcome.generation > 0
        assert other.welcome.generation > engine.welcome.generation


def test_the_scheduler_is_told_how_many_of_its_workers_have_mapped_the_arena(shared_kvtierd):
    with Worker(shared_kvtierd.socket, "ranks") as early, Worker(shared_kvtierd.socket, "ranks") as late:
        early.say(protocol.Mapped())
        with Engine(shared_kvtierd.socket, "ranks") as engine:
            late.say(protocol.Mapped())
            seen = [engine.hear(protocol.Workers).count]
            while seen[-1] != 2:
                seen.append(engine.hear(protocol.Workers).count)
            early.close()
            assert engine.hear(protocol.Workers) == protocol.Workers(1)


@pytest.mark.parametrize(
    ("hello", "code", "says"),
    [
        (protocol.Hello(9, "scheduler", "e", b"n" * 32, SLOT, 16, 8), "bad_version", "the client 9"),
        (protocol.Hello(protocol.VERSION, "engineer", "e", b"n" * 32, SLOT, 16, 8), "bad_order", "no role 'engineer'"),
        (protocol.Hello(protocol.VERSION, "scheduler", "e", b"n" * 31, SLOT, 16, 8), "bad_frame", "namespace"),
        (protocol.Hello(protocol.VERSION, "scheduler", "~peer", b"n" * 32, SLOT, 16, 8), "bad_frame", "begin with ~"),
        (protocol.Hello(protocol.VERSION, "worker", "two\nlines", b"", 0, 0, 0), "bad_frame", "printable"),
        (protocol.Hello(protocol.VERSION, "scheduler", "e", b"n" * 32, 0, 16, 8), "bad_frame", "block size"),
        (protocol.Hello(protocol.VERSION, "scheduler", "e", b"n" * 32, SLOT, 0, 8), "bad_frame", "block size"),
        (
            protocol.Hello(protocol.VERSION, "scheduler", "e", b"n" * 32, 4 * MIB + 1, 16, 8),
            "too_large",
            "raise cpu.capacity",
        ),
        (
            protocol.Hello(protocol.VERSION, "scheduler", "e", b"n" * 32, 2**63 - 1, 16, 8),
            "too_large",
            "raise cpu.capacity",
        ),
    ],
)
def test_a_hello_that_cannot_be_is_answered_with_the_reason_and_leaves_nothing(shared_kvtierd, hello, code, says):
    with Peer(shared_kvtierd.socket) as peer:
        peer.say(hello)
        error = peer.end()
        assert isinstance(error, protocol.Error)
        assert error.code == code and says in error.message
    assert shared_kvtierd.engine("e") is None


def test_a_connection_that_never_says_hello_is_closed_after_a_while(shared_kvtierd):
    with Peer(shared_kvtierd.socket) as peer:
        assert peer.end() == protocol.Error("bad_order", "no Hello in time")


def test_a_second_scheduler_of_an_engine_is_sent_away_until_the_first_is_gone(shared_kvtierd):
    with Engine(shared_kvtierd.socket, "twice") as first, Peer(shared_kvtierd.socket) as second:
        second.say(scheduler_hello("twice"))
        error = second.end()
        assert isinstance(error, protocol.Error) and error.code == "engine_leaving"
        first.save(some_keys(1, "twice"))
        assert first.lookup(some_keys(1, "twice")) != [ABSENT]
    eventually(lambda: shared_kvtierd.engine("twice") is None)
    with Engine(shared_kvtierd.socket, "twice") as third:
        assert third.welcome.generation > first.welcome.generation


# --- who may say what, when --------------------------------------------------------------------------------------

FOR_SCHEDULERS = [
    protocol.Lookup(1, some_keys(1)),
    protocol.Release(1, 0),
    protocol.Commit(some_keys(1), packed([1])),
    protocol.GiveBack(packed([1])),
    protocol.Touch(some_keys(1)),
    protocol.Reset(),
    protocol.Report({}),
]
FOR_ENGINES = [
    protocol.Welcome(1, 1, 1, b"", 1),
    protocol.Workers(1),
    protocol.Found(1, b""),
    protocol.Lend(b""),
    protocol.Drain(),
    protocol.Snapshot({}),
    protocol.Staging(1),
    protocol.Flushed(1),
    protocol.Error("bad_order", "no, you"),
]


def name(message: object) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", [*FOR_SCHEDULERS, *FOR_ENGINES, protocol.Mapped(), protocol.Ask()], ids=name)
def test_nothing_is_allowed_before_hello(shared_kvtierd, message):
    with Peer(shared_kvtierd.socket) as peer:
        peer.say(message)
        error = peer.end()
        assert isinstance(error, protocol.Error)
        assert error.code == "bad_order" and name(message) in error.message


@pytest.mark.parametrize("hello", [worker_hello("orders"), observer_hello()], ids=["worker", "observer"])
@pytest.mark.parametrize("message", FOR_SCHEDULERS, ids=name)
def test_only_a_scheduler_may_ask_for_blocks_and_save_them(shared_kvtierd, hello, message):
    with Peer(shared_kvtierd.socket) as peer:
        peer.ask(hello, answer=protocol.Welcome)
        peer.say(message)
        assert peer.end() == protocol.Error(
            "bad_order", f"{name(message)} is for an engine's scheduler that has said Hello"
        )


@pytest.mark.parametrize("message", FOR_ENGINES, ids=name)
def test_what_the_daemon_says_is_not_to_be_said_to_it(shared_kvtierd, message):
    with Engine(shared_kvtierd.socket, "echo") as engine:
        engine.say(message)
        assert engine.end() == protocol.Error("bad_order", f"{name(message)} is not allowed now")
    eventually(lambda: shared_kvtierd.engine("echo") is None)


@pytest.mark.parametrize("hello", [scheduler_hello("again"), worker_hello("again"), observer_hello()])
def test_a_second_hello_ends_the_connection(shared_kvtierd, hello):
    with Peer(shared_kvtierd.socket) as peer:
        peer.ask(hello, answer=protocol.Welcome)
        peer.say(hello)
        assert peer.end() == protocol.Error("bad_order", "a second Hello")
    eventually(lambda: shared_kvtierd.engine("again") is None)


def test_a_worker_that_broke_the_protocol_hangs_up_itself_because_it_may_be_copying(shared_kvtierd):
    with Engine(shared_kvtierd.socket, "half") as engine, Worker(shared_kvtierd.socket, "half") as worker:
        worker.say(protocol.Reset())
        assert isinstance(worker.end(), protocol.Error)
        engine.close()
        assert shared_kvtierd.engine("half")["lent_slots"] == 8
        worker.close()
        eventually(lambda: shared_kvtierd.engine("half") is None)


def test_descriptors_that_a_client_sends_are_not_kept(shared_kvtierd):
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{shared_kvtierd.pid}/fd"))

    with Peer(shared_kvtierd.socket) as peer:
        peer.ask(observer_hello(), answer=protocol.Welcome)
        before = descriptors()
        for _ in range(10):
            rights = [(1, 1, struct.pack("8i", *[peer.sock.fileno()] * 8))]  # SOL_SOCKET, SCM_RIGHTS
            peer.sock.sendmsg([protocol.encode(protocol.Ask())], rights)
            peer.hear(protocol.Snapshot)
        assert descriptors() == before
