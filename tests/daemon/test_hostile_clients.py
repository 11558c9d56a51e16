"""Clients that send anything: each gets a typed error or is heard, and nobody else notices.

One daemon stands for all of this file, and beside every attack a well-behaved engine goes on to find its blocks.
"""

import contextlib
import os
import resource
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kvtierd import (
    Engine,
    KVTierd,
    Peer,
    eventually,
    observer_hello,
    scheduler_hello,
    some_keys,
    worker_hello,
)
from messages import messages

from kvtier import protocol
from kvtier.errors import CODES

CONNECTIONS = 1000
MAX_CLIENTS = 256  # the default of server.max_clients
NOBODY = 65534
HELLO_TIMEOUT_MS = 1000

Answer = list[protocol.Message]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    settings = {"server.hello_timeout_ms": HELLO_TIMEOUT_MS, "log.level": "warning"}
    with KVTierd(tmp_path_factory.mktemp("hostile"), settings) as started:
        yield started


@pytest.fixture(scope="module")
def check_on_engine(daemon: KVTierd) -> Iterator[Callable[[], None]]:
    """Says that the daemon is still the same, and has lost nothing of an engine that was there before."""
    with Engine(daemon.socket, "well-behaved", model="its own") as engine:
        slots = engine.save(some_keys(3, "kept"))

        def check() -> None:
            assert engine.lookup(some_keys(3, "kept")) == slots
            engine.release(loaded=3)
            assert daemon.process.poll() is None, daemon.said()

        check()
        yield check
        mine = daemon.engine("well-behaved")
        assert (mine["leases"], mine["lent_slots"]) == (0, 5)
        assert daemon.cpu()["leased_bytes"] == 0


def attack(daemon: KVTierd, stream: bytes) -> Answer:
    """Sends it all, says that no more comes, and returns every answer until the daemon hangs up."""
    with Peer(daemon.socket) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            peer.sock.sendall(stream)
            peer.sock.shutdown(socket.SHUT_WR)
        answers = []
        with contextlib.suppress(ConnectionResetError):
            while (message := peer.hear_any()) is not None:
                answers.append(message)
        return answers


def code(answers: Answer) -> str:
    """The code of the only error, which comes last."""
    errors = [message for message in answers if isinstance(message, protocol.Error)]
    assert len(errors) == 1 and answers[-1] is errors[0], answers
    return errors[0].code


def encoded(*said: protocol.Message) -> bytes:
    return b"".join(map(protocol.encode, said))


HELLOS = st.sampled_from(
    [b"", encoded(scheduler_hello("hostile")), encoded(worker_hello("hostile")), encoded(observer_hello())]
)
against_a_daemon = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


# --- garbage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, protocol.FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_frame_of_an_impossible_length_is_a_bad_frame(daemon, check_on_engine, length):
    assert code(attack(daemon, struct.pack("<I", length))) == "bad_frame"
    check_on_engine()


def test_a_full_frame_of_garbage_is_a_bad_frame(daemon, check_on_engine):
    garbage = struct.pack("<I", protocol.FRAME_BYTES_MAX) + b"\xc1" * protocol.FRAME_BYTES_MAX
    assert code(attack(daemon, garbage)) == "bad_frame"
    check_on_engine()


def test_a_truncated_frame_is_no_message_and_its_end_is_the_end(daemon, check_on_engine):
    hello = encoded(scheduler_hello("hostile"))
    for cut in (1, 3, 4, 5, len(hello) - 1):
        assert attack(daemon, hello[:cut]) == []
    check_on_engine()


@against_a_daemon
@given(HELLOS, st.binary(min_size=1, max_size=300))
def test_random_bytes_hurt_nobody(daemon, check_on_engine, hello, garbage):
    answers = attack(daemon, hello + garbage)
    assert all(answer.code in CODES for answer in answers if isinstance(answer, protocol.Error))
    check_on_engine()


@against_a_daemon
@given(HELLOS, st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5))
def test_frames_of_random_bytes_are_bad_frames(daemon, check_on_engine, hello, bodies):
    # \xc1 is never used by msgpack, so that no frame is good by chance.
    frames = b"".join(struct.pack("<I", len(body) + 1) + b"\xc1" + body for body in bodies)
    assert code(attack(daemon, hello + frames)) == "bad_frame"
    check_on_engine()


@against_a_daemon
@given(HELLOS, st.lists(messages, max_size=12))
def test_good_frames_in_any_order_hurt_nobody(daemon, check_on_engine, hello, said):
    # They name slots of the well-behaved engine too: small numbers are lent to it. The farewell, because one of them may
    # have said that it copies by GPU: without it such a worker's process is waited for, and that is us.
    answers = attack(daemon, hello + encoded(*said) + protocol.FAREWELL)
    assert all(answer.code in CODES for answer in answers if isinstance(answer, protocol.Error))
    check_on_engine()


def test_nothing_of_all_this_stays(daemon, check_on_engine):
    eventually(lambda: [e["engine"] for e in daemon.snapshot()["engines"]] == ["well-behaved"])
    eventually(lambda: len(daemon.snapshot()["clients"]) == 2)  # and who asks
    assert daemon.counter("protocol_errors") > 0
    assert "fault" not in daemon.said()


# --- those who don't wait for the answer -------------------------------------------------------------------------


@pytest.mark.parametrize("hello", [scheduler_hello("hasty"), worker_hello("hasty"), observer_hello()])
def test_a_client_that_is_gone_before_its_welcome_hurts_nobody(daemon, check_on_engine, hello):
    # The daemon still reads what was sent, and fails to answer in the middle of it.
    for _ in range(20):
        with Peer(daemon.socket) as peer:
            peer.say(hello, protocol.Mapped(), protocol.Ask())
    check_on_engine()


def test_an_engine_that_saves_asks_and_vanishes_in_one_breath_leaves_nothing(daemon, check_on_engine):
    for _ in range(20):
        with Peer(daemon.socket) as peer:
            peer.say(scheduler_hello("hasty"), *[protocol.Lookup(n, some_keys(3, "kept")) for n in range(9)])
    check_on_engine()
    eventually(lambda: daemon.engine("hasty") is None)
    assert daemon.cpu()["leased_bytes"] == 0


def test_a_client_that_sends_byte_by_byte_delays_nobody(daemon, check_on_engine):
    with Peer(daemon.socket) as slow:
        for byte in encoded(observer_hello(), protocol.Ask()):
            slow.sock.sendall(bytes([byte]))
            check_on_engine()
        assert slow.hear(protocol.Snapshot).state["pid"] == daemon.pid


# --- too many ----------------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * CONNECTIONS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_of_a_thousand_connections_those_over_the_limit_get_an_error_and_the_others_go_on(
    daemon, check_on_engine, many_descriptors
):
    already = len(daemon.snapshot()["clients"]) - 1  # less the one who asks
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(daemon.socket)) for _ in range(CONNECTIONS)]
        check_on_engine()
        ends = [peer.end() for peer in peers]
        check_on_engine()
    assert all(isinstance(end, protocol.Error) for end in ends)
    codes = [end.code for end in ends]
    # Those within the limit were heard out and said nothing in time; by then others may have got their places.
    assert set(codes) == {"too_many", "bad_order"}
    assert codes.count("bad_order") >= MAX_CLIENTS - already
    assert codes.index("too_many") >= MAX_CLIENTS - already
    assert daemon.snapshot()["pid"] == daemon.pid


def test_a_full_daemon_refuses_an_observer_with_the_setting_to_change(daemon, check_on_engine):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            peer = stack.enter_context(Peer(daemon.socket))
            with contextlib.suppress(BrokenPipeError):
                peer.say(observer_hello())
        with Peer(daemon.socket) as late:
            assert late.end() == protocol.Error("too_many", f"server.max_clients = {MAX_CLIENTS} is reached")
        check_on_engine()
    eventually(lambda: isinstance(attack(daemon, encoded(observer_hello()))[0], protocol.Welcome))


def test_a_daemon_that_runs_out_of_descriptors_goes_on_when_there_are_some_again(tmp_path):
    with KVTierd(tmp_path) as small, Engine(small.socket) as engine, contextlib.ExitStack() as stack:
        slots = engine.save(some_keys(2))
        used = len(os.listdir(f"/proc/{small.pid}/fd"))
        resource.prlimit(small.pid, resource.RLIMIT_NOFILE, (used + 5, used + 5))
        for _ in range(20):
            stack.enter_context(Peer(small.socket)).say(observer_hello())
        eventually(lambda: "can't accept a connection" in small.said())
        assert engine.lookup(some_keys(2)) == slots
        stack.close()
        assert small.snapshot()["pid"] == small.pid


# --- another user ------------------------------------------------------------------------------------------------


def answer_to_user(uid: int, path: Path) -> str:
    """The code of the error that this user gets, from a process that has given up being root."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setuid(uid)
            peer = Peer(path)
            with contextlib.suppress(BrokenPipeError):  # it may have hung up by then; what it said is there nevertheless
                peer.say(observer_hello(), protocol.Ask())
            end = peer.end()
            said = end.code if isinstance(end, protocol.Error) else repr(end)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_even_where_the_modes_would_let_him_in():
    folder = Path(tempfile.mkdtemp(prefix="kvtier-"))  # tmp_path lies below a folder that only its user may enter
    try:
        with KVTierd(folder) as daemon:
            assert answer_to_user(NOBODY, daemon.socket) == "nothing"
            folder.chmod(0o755)
            daemon.socket.chmod(0o666)
            assert answer_to_user(NOBODY, daemon.socket) == "not_allowed"
            assert "user 65534 may not use this kvtierd" in daemon.said()
    finally:
        shutil.rmtree(folder)


def test_a_client_that_has_said_hello_may_be_silent_for_as_long_as_it_likes(daemon, check_on_engine):
    with Peer(daemon.socket) as silent:
        silent.ask(observer_hello(), answer=protocol.Welcome)
        time.sleep(1.5 * HELLO_TIMEOUT_MS / 1e3)
        assert silent.ask(protocol.Ask(), answer=protocol.Snapshot).state["pid"] == daemon.pid
