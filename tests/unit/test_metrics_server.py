"""Metrics over HTTP: who asks gets an answer, and whoever asks too much, too slowly or not at all costs nothing."""

import asyncio
import errno
import http.client
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kvtierd import PATIENCE_S, eventually

from kvtier import metrics_server
from kvtier.config import DAEMON, Config
from kvtier.errors import ConfigError, DaemonError
from kvtier.metrics_server import REQUEST_BYTES, VISITS_MAX, MetricsServer, Process, address_of, bind

GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
LOOPBACK = ("127.0.0.1", 0)


class Serving:
    """A server on a loop of its own."""

    def __init__(self, address: metrics_server.Address) -> None:
        self.rendered = 0
        self.loop = asyncio.new_event_loop()
        self.server = MetricsServer(self._snapshot)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.do(lambda: self.server.serve(address))
        assert self.server._listener is not None
        self.where = self.server._listener.getsockname()

    def _snapshot(self) -> dict[str, object]:
        self.rendered += 1
        return {"n": self.rendered}

    def do(self, what: Callable[[], object]) -> object:
        """On the loop."""

        async def now() -> object:
            return what()

        return asyncio.run_coroutine_threadsafe(now(), self.loop).result(PATIENCE_S)

    @property
    def visits(self) -> int:
        return len(self.server._visits)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX if isinstance(self.where, str) else socket.AF_INET)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.where)
        return sock

    def ask(self, request: bytes) -> bytes:
        """All that comes until the server hangs up."""
        with self.connect() as sock:
            sock.sendall(request)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def get(self, path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*self.where, timeout=PATIENCE_S)
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read()

    def stop(self) -> None:
        self.do(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(metrics_server, "exposition", lambda snapshot: f"kvtier_n {snapshot['n']}\n")
    running = Serving(LOOPBACK)
    yield running
    running.stop()


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


# --- answers -----------------------------------------------------------------------------------------------------


def test_whoever_asks_for_metrics_gets_them(serving):
    answer, body = serving.get("/metrics")
    assert (answer.status, body) == (200, b"kvtier_n 1\n")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert answer.headers["Content-Length"] == "11"
    assert answer.headers["Connection"] == "close"
    assert serving.get("/metrics?name=x")[1] == b"kvtier_n 1\n"


def test_whoever_asks_whether_it_is_well_gets_ok(serving):
    answer, body = serving.get("/healthz")
    assert (answer.status, body) == (200, b"ok\n")
    assert serving.rendered == 0


def test_head_has_no_body(serving):
    answer, body = serving.get("/metrics", "HEAD")
    assert (answer.status, answer.headers["Content-Length"], body) == (200, "11", b"")


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        (b"GET / HTTP/1.1", 404),
        (b"GET /metrics/../etc HTTP/1.1", 404),
        (b"POST /metrics HTTP/1.1", 405),
        (b"GET /metrics", 400),
        (b"GET /metrics SPDY/3", 400),
        (b"\x00\xff\x17", 400),
        (b"", 400),
    ],
    ids=["root", "path", "post", "no-version", "other-protocol", "no-text", "nothing"],
)
def test_what_is_not_here_is_refused_with_the_reason(serving, request_line, code):
    assert status(serving.ask(request_line + b"\r\n\r\n")) == code
    assert status(serving.ask(GET)) == 200


def test_a_request_may_come_in_pieces(serving):
    with serving.connect() as sock:
        for byte in GET:
            sock.sendall(bytes([byte]))
        assert status(sock.recv(65536)) == 200


def test_a_page_is_rendered_once_for_all_who_ask_soon(serving, monkeypatch):
    monkeypatch.setattr(metrics_server, "RENDERED_S", 3600)
    pages = {serving.get("/metrics")[1] for _ in range(20)}
    assert (pages, serving.rendered) == ({b"kvtier_n 1\n"}, 1)
    monkeypatch.setattr(metrics_server, "RENDERED_S", 0)
    assert serving.get("/metrics")[1] == b"kvtier_n 2\n"


# --- bounds ------------------------------------------------------------------------------------------------------


def test_a_request_without_an_end_is_refused(serving):
    endless = b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * REQUEST_BYTES
    with serving.connect() as sock:
        sock.sendall(endless[: REQUEST_BYTES + 1])
        assert status(sock.recv(65536)) == 431
    eventually(lambda: serving.visits == 0)


def test_whoever_says_nothing_is_hung_up_on(serving, monkeypatch):
    monkeypatch.setattr(metrics_server, "VISIT_S", 0.05)
    with serving.connect() as silent, serving.connect() as halfway:
        halfway.sendall(GET[:10])
        assert silent.recv(1) == halfway.recv(1) == b""
    assert serving.visits == 0


def test_whoever_does_not_read_keeps_nobody_from_an_answer(serving, monkeypatch):
    monkeypatch.setattr(metrics_server, "exposition", lambda snapshot: "x" * 50_000_000)
    with serving.connect() as lazy:
        lazy.sendall(GET)
        eventually(lambda: serving.visits == 1)
        assert serving.get("/healthz")[0].status == 200
    eventually(lambda: serving.visits == 0)
    monkeypatch.setattr(metrics_server, "VISIT_S", 0.05)
    with serving.connect() as lazy:
        lazy.sendall(GET)
        assert lazy.recv(1) == b"H"
        eventually(lambda: serving.visits == 0)


def test_one_more_than_may_be_there_is_hung_up_on(serving):
    visitors = [serving.connect() for _ in range(VISITS_MAX)]
    eventually(lambda: serving.visits == VISITS_MAX)
    with serving.connect() as late:
        assert late.recv(1) == b""
    for visitor in visitors:
        visitor.close()
    eventually(lambda: serving.visits == 0)
    assert status(serving.ask(GET)) == 200


def test_whoever_leaves_in_the_middle_does_no_harm(serving):
    for n in (0, 5, len(GET)):
        with serving.connect() as sock:
            sock.sendall(GET[:n])
    eventually(lambda: serving.visits == 0)
    assert status(serving.ask(GET)) == 200


def test_a_process_without_descriptors_goes_on_and_answers_later(serving, monkeypatch):
    monkeypatch.setattr(metrics_server, "ACCEPT_PAUSE_S", 0.05)
    real = serving.server._listener
    refused = threading.Event()

    class Poor:
        def fileno(self) -> int:
            return real.fileno()

        def accept(self) -> tuple[socket.socket, object]:
            refused.set()
            serving.server._listener = real
            raise OSError(errno.EMFILE, "Too many open files")

    serving.server._listener = Poor()
    assert status(serving.ask(GET)) == 200
    assert refused.is_set()


# --- where -------------------------------------------------------------------------------------------------------


def test_a_socket_of_its_own_is_for_its_owner_and_goes_with_the_server(tmp_path):
    path = tmp_path / "metrics.sock"
    running = Serving(path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert status(running.ask(b"GET /healthz HTTP/1.1\r\n\r\n")) == 200
        with pytest.raises(DaemonError, match=r"another kvtierd listens.*metrics\.listen"):
            bind(path)
    finally:
        running.stop()
    assert not path.exists()


def test_a_port_that_is_taken_is_named_with_the_cure():
    with socket.create_server(LOOPBACK) as taken, pytest.raises(DaemonError, match=r"127\.0\.0\.1:\d+.*metrics\.listen"):
        bind(taken.getsockname())


def test_metrics_listen_says_where():
    def where(listen: str, allow: bool = False) -> object:
        return address_of(
            Config(DAEMON, {"metrics.listen": listen, "metrics.allow_remote": allow}), Path("/a/kvtierd.sock")
        )

    assert where("") == Path("/a/metrics.sock")
    assert where("/b/c") == Path("/b/c")
    assert where("none") is None
    assert where("127.0.0.1:9469") == ("127.0.0.1", 9469)
    assert where("localhost:0") == ("localhost", 0)
    assert where("[::1]:9469") == ("::1", 9469)
    assert where("0.0.0.0:9469", allow=True) == ("0.0.0.0", 9469)
    for nonsense in ("9469", "127.0.0.1", ":9469", "127.0.0.1:port", "127.0.0.1:70000", "::1:9469"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            where(nonsense)
    for open_to_all in ("0.0.0.0:9469", "192.0.2.1:9469", "[::]:9469", "node7:9469"):
        with pytest.raises(ConfigError, match=r"metrics\.allow_remote"):
            where(open_to_all)


def test_a_process_knows_what_it_takes():
    facts = Process().facts()
    assert facts["resident_bytes"] > 1_000_000
    assert 3 <= facts["open_fds"] <= facts["max_fds"]
    assert facts["cpu_s"] > 0
    assert facts["started_s"] > os.stat("/proc/1").st_ctime - 86_400 * 3650
