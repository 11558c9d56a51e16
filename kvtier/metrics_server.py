"""Metrics over HTTP: GET /metrics for Prometheus, GET /healthz for whoever asks whether kvtierd's loop turns.

On the daemon's event loop, by hand as the server: a process that is out of descriptors goes on. It must not cost engines
anything, whoever asks and however often: what was rendered is given again for a while, and a request has bounds.
"""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvtier import listener
from kvtier.config import Config
from kvtier.errors import ConfigError, DaemonError
from kvtier.metrics import CONTENT_TYPE, Snapshot, exposition
from kvtier.peer import is_loopback

log = logging.getLogger("kvtierd")

RENDERED_S = 0.5  # so long a rendered page is given again
VISIT_S = 5.0  # a request and its answer may take so long
VISITS_MAX = 16  # at once; one more is closed
BACKLOG = 16
REQUEST_BYTES = 8192
READ_BYTES = 4096
ACCEPT_PAUSE_S = 0.5  # after the process ran out of descriptors
NOWHERE = "none"
PLAIN = "text/plain; charset=utf-8"
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Address = Path | tuple[str, int]


@dataclass(eq=False)
class Visit:
    """One connection: a request, its answer, its end."""

    sock: socket.socket
    timer: asyncio.TimerHandle | None = None
    request: bytearray = field(default_factory=bytearray)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    answered: bool = False


def address_of(settings: Config, server_socket: Path) -> Address | None:
    """Where metrics.listen says; None: nowhere. ConfigError names the cure."""
    given = settings.text("metrics.listen")
    if given == NOWHERE:
        return None
    if not given or given.startswith("/"):
        return Path(given) if given else server_socket.with_name("metrics.sock")
    host, colon, port = given.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535 or (":" in host and host[0] != "["):
        raise ConfigError(f"metrics.listen = {given!r}: write HOST:PORT, [IPV6]:PORT, a path, or {NOWHERE}")
    host = host.strip("[]")
    if not is_loopback(host) and not settings["metrics.allow_remote"]:
        raise ConfigError(
            f"metrics.listen = {given!r}: other machines would get there, without TLS and without a password. Listen on "
            "127.0.0.1, or set metrics.allow_remote = true"
        )
    return host, int(port)


def bind(address: Address) -> socket.socket:
    """DaemonError: the address can't be had."""
    if isinstance(address, Path):
        return listener.bind(address, setting="metrics.listen", backlog=BACKLOG)
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        raise DaemonError(f"can't listen on {address[0]}:{address[1]}: {error.strerror}; set metrics.listen") from error
    return made


class MetricsServer:
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._rendered, self._rendered_at = b"", float("-inf")
        self._visits: set[Visit] = set()
        self._listener: socket.socket | None = None
        self._path: Path | None = None

    def serve(self, address: Address) -> None:
        """From now on, on the running loop. DaemonError: the address can't be had."""
        self._loop = asyncio.get_running_loop()
        self._listener = bind(address)
        self._path = address if isinstance(address, Path) else None
        self._listen()
        where = self._path or "http://{}:{}/metrics".format(*self._listener.getsockname()[:2])
        log.info("metrics are served on %s", where)

    def close(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        for visit in list(self._visits):
            self._end(visit)

    def page(self) -> bytes:
        """What GET /metrics gives."""
        now = time.monotonic()
        if now - self._rendered_at >= RENDERED_S:
            self._rendered, self._rendered_at = exposition(self._snapshot()).encode(), now
        return self._rendered

    # --- one connection ------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._on_accept)

    def _on_accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("can't accept a connection for metrics: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_PAUSE_S, self._listen)
            return
        if len(self._visits) >= VISITS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        visit = Visit(sock)
        visit.timer = self._loop.call_later(VISIT_S, self._end, visit)
        self._visits.add(visit)
        self._loop.add_reader(sock, self._on_readable, visit)

    def _on_readable(self, visit: Visit) -> None:
        try:
            received = visit.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._end(visit)
        elif not visit.answered:  # what comes after a request is not heard
            visit.request += received
            if b"\r\n\r\n" in visit.request:
                self._say(visit, *self._answer(bytes(visit.request)))
            elif len(visit.request) > REQUEST_BYTES:
                self._say(visit, 431, PLAIN, b"")

    def _answer(self, request: bytes) -> tuple[int, str, bytes]:
        """Status, type and body."""
        words = request.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return 400, PLAIN, b"this is HTTP/1.1\n"
        if words[0] not in (b"GET", b"HEAD"):
            return 405, PLAIN, b"GET or HEAD\n"
        match words[1].partition(b"?")[0]:
            case b"/metrics":
                return 200, CONTENT_TYPE, self.page()
            case b"/healthz":
                return 200, PLAIN, b"ok\n"
        return 404, PLAIN, b"/metrics and /healthz are here\n"

    def _say(self, visit: Visit, status: int, kind: str, body: bytes) -> None:
        visit.answered = True
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
        shown = b"" if visit.request.startswith(b"HEAD ") else body
        visit.unsent = memoryview(f"{head}{allow}Connection: close\r\n\r\n".encode() + shown)
        self._on_writable(visit)
        if visit.unsent and visit in self._visits:
            self._loop.add_writer(visit.sock, self._on_writable, visit)

    def _on_writable(self, visit: Visit) -> None:
        try:
            visit.unsent = visit.unsent[visit.sock.send(visit.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._end(visit)
            return
        if not visit.unsent:  # it closes, then so do we: what it may still say must not destroy what it has not read
            self._loop.remove_writer(visit.sock)
            with contextlib.suppress(OSError):
                visit.sock.shutdown(socket.SHUT_WR)

    def _end(self, visit: Visit) -> None:
        if visit in self._visits:
            self._visits.discard(visit)
            if visit.timer is not None:
                visit.timer.cancel()
            self._loop.remove_reader(visit.sock)
            self._loop.remove_writer(visit.sock)
            visit.sock.close()


class Process:
    """What the kernel knows of this process, for a snapshot."""

    def __init__(self) -> None:
        self._started_s = time.time()
        self._max_fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def facts(self) -> dict[str, object]:
        resident, fds = 0, 0
        with contextlib.suppress(OSError):  # out of descriptors
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
            fds = len(os.listdir("/proc/self/fd"))
        used = os.times()
        return {
            "cpu_s": round(used.user + used.system, 3),
            "resident_bytes": resident,
            "open_fds": fds,
            "max_fds": self._max_fds,
            "started_s": round(self._started_s, 3),
        }
