"""What a connector uses to talk to kvtierd. It never blocks for longer than it is told to and never raises because of
the daemon: absent, frozen, restarted or of another version, it is just `ready = False`.

Each process of an engine owns one: the scheduler a SchedulerClient, each worker a WorkerClient (worker_client.py). They
have no thread; their owner calls `poll(now)` once a step, which costs one recv (2 us) when there is nothing to hear.
Times are seconds of the owner's monotonic clock.
"""

import logging
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from kvtier import protocol
from kvtier.block import pack_slots, private_secret, unpack_slots
from kvtier.errors import ProtocolError

log = logging.getLogger("kvtier")

SYSTEM_FOLDER = "/run"
RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0  # between attempts to connect
ABSENT_RETRY_MAX_S = 0.25  # where nobody listens: to find that out takes some 10 us
WELCOME_TIMEOUT_S = 5.0
UNSENT_BYTES_MAX = 4 * 1024 * 1024  # a daemon that doesn't read is abandoned
_NEVER = np.empty(0, np.uint32)  # instead of an answer: there is no such question


def default_socket() -> Path:
    """Where kvtierd listens unless told otherwise."""
    given = os.environ.get("KVTIER_SOCKET")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_RUNTIME_DIR") or SYSTEM_FOLDER) / "kvtier" / "kvtierd.sock"


def usual_socket() -> Path:
    """Where a client looks for it: where it listens by default, but the system's service where the user has none."""
    default, service = default_socket(), Path(SYSTEM_FOLDER) / "kvtier" / "kvtierd.sock"
    is_ours = "KVTIER_SOCKET" in os.environ or default.parent.is_dir()
    return default if is_ours or not service.parent.is_dir() else service


class Client:
    """A connection that comes back by itself. Subclasses say what a message means to them."""

    def __init__(self, path: Path, hello: protocol.Hello) -> None:
        self.path = path
        self.hello = hello
        self.generation = 0  # of this engine's stay at the daemon; 0 while there is none
        self._sock: socket.socket | None = None
        self._reader = protocol.FrameReader()
        self._unsent = bytearray()
        self._retry_at = 0.0
        self._retry_s = RETRY_FIRST_S
        self._connected_at = self._welcomed_at = 0.0
        self._is_mute = False  # whoever listens there hasn't answered Hello
        self._told: set[str] = set()

    def poll(self, now: float) -> None:
        """Hear what has arrived, send what waits, connect when it is time to."""
        if self._sock is None:
            if now < self._retry_at:
                return
            self._connect(now)
        self._receive(now)
        if self._unsent:
            self._flush(now)
        if self._sock is not None and not self.generation and now > self._connected_at + WELCOME_TIMEOUT_S:
            self._is_mute = True
            self._drop(now, "no answer to Hello")

    def wait(self, until: float) -> bool:
        """Whether something arrived before the clock passed `until`. It yields the processor instead of sleeping: to wake
        a sleeper costs 100 us on a virtual machine, as much as the answer."""
        while self._sock is not None:
            try:
                self._sock.recv(1, socket.MSG_PEEK)
                return True
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                os.sched_yield()
            except OSError:
                return True  # what it is, poll finds out
        return False

    def send(self, frame: bytes, now: float) -> None:
        if self._sock is None:
            return
        if self._unsent:
            self._unsent += frame
            if len(self._unsent) > UNSENT_BYTES_MAX:
                self._drop(now, "it doesn't read")
            return
        try:
            sent = self._sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._drop(now, os.strerror(error.errno or 0))
            return
        self._unsent += frame[sent:]

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None
        self.generation = 0
        self._unsent.clear()
        self._reader = protocol.FrameReader()

    def _connect(self, now: float) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(os.fspath(self.path))
        except OSError as error:
            sock.close()
            self._retry_s = min(self._retry_s, ABSENT_RETRY_MAX_S)
            self._later(now, f"no kvtierd on {self.path} ({os.strerror(error.errno or 0)}); serving without it")
            return
        self._sock = sock
        self._connected_at = now
        self.send(protocol.encode(self.hello), now)

    def _receive(self, now: float) -> None:
        while self._sock is not None:
            try:
                data = self._recv(self._sock)
            except BlockingIOError:
                return
            except OSError as error:
                self._miss(now, os.strerror(error.errno or 0))
                return
            if not data:
                self._miss(now, "it is gone")
                return
            try:
                for message in self._reader.feed(data):
                    self._hear(message, now)
                    if self._sock is None:
                        return
            except ProtocolError as error:
                self._drop(now, f"it sent nonsense: {error}")
                return
            if len(data) < protocol.RECEIVE_BYTES:
                return  # what else there is, the next poll hears

    def _recv(self, sock: socket.socket) -> bytes:
        return sock.recv(protocol.RECEIVE_BYTES)

    def _flush(self, now: float) -> None:
        assert self._sock is not None
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._drop(now, os.strerror(error.errno or 0))

    def _hear(self, message: protocol.Message, now: float) -> None:
        if isinstance(message, protocol.Welcome):
            self.generation = message.generation
            self._welcomed_at, self._is_mute = now, False
            self._retry_s = RETRY_FIRST_S
            self._told.clear()
            self._welcomed(message, now)
        elif isinstance(message, protocol.Error):
            self._drop(now, message.message)
            if message.code in ("bad_version", "bad_codec"):  # nothing that time heals
                self._retry_at = now + 10 * RETRY_MAX_S
        else:
            self._heard(message, now)

    def _drop(self, now: float, why: str) -> None:
        """The connection is of no more use."""
        self.close()
        self._lost(now)
        self._later(now, f"kvtierd on {self.path}: {why}; serving without it")

    def _miss(self, now: float, why: str) -> None:
        """Whoever was there is gone; perhaps long since, and another is there."""
        stayed = self.generation != 0 and now > self._welcomed_at + RETRY_MAX_S
        self._drop(now, why)
        if stayed:
            self._retry_at = now

    def _later(self, now: float, why: str) -> None:
        self._retry_at = now + self._retry_s
        self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)
        if why not in self._told:  # once, until it is there again
            self._told.add(why)
            log.warning("%s", why)

    def _welcomed(self, message: protocol.Welcome, now: float) -> None: ...

    def _heard(self, message: protocol.Message, now: float) -> None: ...

    def _lost(self, now: float) -> None: ...


class SchedulerClient(Client):
    """An engine's scheduler: lookups, leases, slots to save into."""

    def __init__(self, path: Path, hello: protocol.Hello, workers: int) -> None:
        super().__init__(path, hello)
        self.secret = b""  # what keys are made with; changes with the generation and with a reset
        self.witness_secret = b""  # what witnesses are made with; empty before the first Welcome
        self._workers_needed = workers
        self._workers = 0
        self._lent: deque[int] = deque()
        self._wanted = hello.lend
        self._found: dict[int, np.ndarray | None] = {}  # open questions and their answers
        self._heard_at: dict[int, float] = {}  # lease -> when the daemon last said that it is being staged
        self.answers = 0  # words on questions heard so far, those on questions that were given up included
        self._last_lease = 0
        self._private = b""  # set by reset: this engine shares with nobody any more
        self._reset_due = False

    @property
    def ready(self) -> bool:
        """The daemon is there and every worker of this engine has mapped its arena."""
        return self.generation != 0 and self._workers >= self._workers_needed

    def joins(self, now: float, within_s: float) -> bool:
        """It has connected in the last seconds and may be ready in a moment: the first request after a restart of the
        daemon need not go without."""
        return self._sock is not None and not self._is_mute and not self.ready and now < self._connected_at + within_s

    def lookup(self, keys: bytes, skip: int, now: float, **of_request: Any) -> int:
        """Ask which of these packed keys are there, the first `skip` only for knowing. `of_request`: further fields of
        protocol.Lookup. The answer comes under the returned lease, which must be released even if it is never read."""
        self._last_lease += 1
        self._found[self._last_lease] = None
        self._heard_at[self._last_lease] = now
        self.send(protocol.encode(protocol.Lookup(self._last_lease, keys, skip, **of_request)), now)
        return self._last_lease

    def due(self, lease: int, now: float) -> None:
        """The request that asked could run now. From here on the daemon's silence counts."""
        if lease in self._found:
            self._heard_at[lease] = now
            self.send(protocol.encode(protocol.Due(lease)), now)

    def answer(self, lease: int) -> np.ndarray | None:
        """uint32[n], ABSENT for what isn't there, BELOW for what is but isn't offered; None while there is no answer."""
        return self._found.get(lease)

    def silent_s(self, lease: int, now: float) -> float:
        """How long nothing was heard about this question. While blocks are read from a drive the daemon says so every
        now and then; a daemon that is silent is frozen."""
        return now - self._heard_at.get(lease, now)

    def release(self, lease: int, loaded: int, now: float, load_us: int = 0) -> None:
        """The lease is over. One from before the last disconnect is over already."""
        self._heard_at.pop(lease, None)
        if self._found.pop(lease, _NEVER) is not _NEVER:
            self.send(protocol.encode(protocol.Release(lease, loaded, load_us)), now)

    @property
    def slots_at_hand(self) -> int:
        """That were lent in advance and are not used yet."""
        return len(self._lent)

    def borrow(self, n: int) -> list[int]:
        """Up to n slots that were lent in advance."""
        return [self._lent.popleft() for _ in range(min(n, len(self._lent)))]

    def begin(self, request: str, now: float, **of_request: Any) -> None:
        """What is known of a request besides its keys, before it asks. `of_request`: further fields of protocol.Begin."""
        self.send(protocol.encode(protocol.Begin(request, **of_request)), now)

    def commit(self, keys: bytes, slots: list[int], generation: int, now: float, **of_request: Any) -> None:
        """`of_request`: further fields of protocol.Commit."""
        if generation == self.generation:
            self.send(protocol.encode(protocol.Commit(keys, pack_slots(slots), **of_request)), now)

    def give_back(self, slots: list[int], generation: int, now: float) -> None:
        if generation == self.generation:
            self.send(protocol.encode(protocol.GiveBack(pack_slots(slots))), now)

    def want(self, slots: int, now: float) -> None:
        """So many lent slots from now on: an idle engine holds few, so that others can have them. What is too much goes
        back, the highest numbers first: those that stay lie close together and hold up few slabs."""
        if slots == self._wanted:
            return
        self._wanted = slots
        self.send(protocol.encode(protocol.Want(slots)), now)
        self._give_back_excess(now)

    def _give_back_excess(self, now: float) -> None:
        if len(self._lent) > self._wanted:
            kept = sorted(self._lent)
            self._lent = deque(kept[: self._wanted])
            self.send(protocol.encode(protocol.GiveBack(pack_slots(kept[self._wanted :]))), now)

    def touch(self, keys: bytes, now: float, request: str = "") -> None:
        self.send(protocol.encode(protocol.Touch(keys, request)), now)

    def report(self, counts: dict[str, int], now: float) -> None:
        self.send(protocol.encode(protocol.Report(counts)), now)

    def pace(self, counts: dict[str, int], now: float) -> None:
        self.send(protocol.encode(protocol.Pace(counts)), now)

    def outcome(self, request: str, counts: dict[str, int], now: float) -> None:
        self.send(protocol.encode(protocol.Outcome(request, counts)), now)

    def reset(self, now: float) -> None:
        """Nothing that was saved so far may be served again. It holds from this moment, daemon or no daemon: this
        engine's keys change, for as long as it lives and whatever daemon it meets. The daemon drops the rest."""
        self._private = os.urandom(32)
        self._reset_due = True
        if self.generation:
            self.secret = private_secret(self._shared, self._private)
            self._send_reset(now)

    def abandon(self, now: float) -> None:
        """Hang up, so that the daemon takes everything back; come back from nothing."""
        self._drop(now, "this engine gave up the connection")

    def _send_reset(self, now: float) -> None:
        self.send(protocol.encode(protocol.Reset()), now)
        # What only waits to be sent is lost with the connection: then the next one says it again.
        self._reset_due = self._sock is None or bool(self._unsent)

    def _welcomed(self, message: protocol.Welcome, now: float) -> None:
        self._shared = message.secret
        self.witness_secret = message.witness_secret
        self.secret = private_secret(message.secret, self._private) if self._private else message.secret
        self._wanted = self.hello.lend
        if self._reset_due:
            self._send_reset(now)

    def _heard(self, message: protocol.Message, now: float) -> None:
        if isinstance(message, protocol.Found):
            self.answers += 1
            if message.lease in self._found:
                self._found[message.lease] = unpack_slots(message.slots)
        elif isinstance(message, protocol.Staging):
            self.answers += 1
            if message.lease in self._heard_at:
                self._heard_at[message.lease] = now
        elif isinstance(message, protocol.Lend):
            self._lent.extend(unpack_slots(message.slots).tolist())
            self._give_back_excess(now)
        elif isinstance(message, protocol.Workers):
            self._workers = message.count

    def _lost(self, now: float) -> None:
        self._workers = 0
        self._lent.clear()
        self._found.clear()
        self._heard_at.clear()
