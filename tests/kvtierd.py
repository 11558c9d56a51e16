"""A kvtierd of its own for a test, and a peer that says to it exactly what the test wants.

KVTierd is the daemon: a process, started from the installed command. Peer is a bare socket that speaks the protocol
without any of the clients' good manners.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kvtier import observer, protocol
from kvtier.block import KEY_BYTES, block_key, pack_keys, unpack_slots

PATIENCE_S = 30.0  # for what must happen sometime: a machine under load takes its time
SLOT = 64 * 1024  # bytes of the smallest block
OTHER_VERSION = "from kvtier import protocol; protocol.VERSION = {}; from kvtier import daemon; daemon.main()"

T = TypeVar("T")


def eventually(look: Callable[[], T], within: float = PATIENCE_S) -> T:
    """What `look` returns as soon as it is true."""
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r} after {within} s"
        time.sleep(0.005)
    return seen


class KVTierd:
    """The daemon. `settings` as its --set takes them; `version` makes it one of another protocol version."""

    def __init__(self, folder: Path, settings: dict[str, object] | None = None, version: int | None = None) -> None:
        self.log = folder / "kvtierd.log"
        # Nothing is measured at the start: many daemons start, and what they know of this machine is of no use.
        mine = {"cpu.capacity": "64 MiB", "server.socket": folder / "kvtierd.sock", "cost.state": folder / "state",
                "cost.calibrate_s": 0}  # fmt: skip
        if os.geteuid():
            mine["security.dumpable"] = "yes"  # else only root sees how many descriptors it has
        self._settings = {**mine, **(settings or {})}
        self.socket = Path(str(self._settings["server.socket"]))
        self._version = version
        self.process: subprocess.Popen | None = None
        self.extra: list[str] = []  # more arguments
        self.before_exec: Callable[[], None] | None = None  # runs in the process that becomes the daemon
        self.environment: dict[str, str] = {}  # beside ours
        self.pass_fds: list[int] = []  # that it has too

    def __enter__(self) -> "KVTierd":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def command(self) -> list[str]:
        program = [str(Path(sys.executable).with_name("kvtierd"))]
        if self._version is not None:
            program = [sys.executable, "-P", "-c", OTHER_VERSION.format(self._version)]
        return program + self.extra + [f"--set={name}={value}" for name, value in self._settings.items()]

    def start(self) -> None:
        """Returns when it can be connected to."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=self.before_exec,
                env={**os.environ, **self.environment}, pass_fds=self.pass_fds,
            )  # fmt: skip
        try:
            eventually(lambda: self._listens() or self.process.poll() is not None)
        except AssertionError:
            self.process.kill()
            raise
        assert self.process.poll() is None, self.said()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(os.fspath(self.socket)) == 0

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def terminate(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def stop_(self) -> None:
        """SIGSTOP: it stands still, and the kernel goes on to take connections and bytes for it."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def cont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def snapshot(self) -> dict[str, Any]:
        return observer.ask(self.socket, timeout_s=PATIENCE_S)

    def counter(self, name: str) -> int:
        return self.snapshot()["counters"][name]

    def cpu(self) -> dict[str, int]:
        """The RAM tier of the snapshot."""
        return self.snapshot()["tiers"]["cpu"]

    def engine(self, name: str) -> dict[str, Any] | None:
        """One engine of the snapshot."""
        return next((e for e in self.snapshot()["engines"] if e["engine"] == name), None)

    def said(self) -> str:
        """All that it logged."""
        return self.log.read_text()


def root_file(folder: Path, root: str = "5a" * 32) -> Path:
    """A root secret, as remote.secret_file wants it."""
    file = folder / "root"
    file.write_text(root)
    file.chmod(0o600)
    return file


def scheduler_hello(
    engine: str = "engine", model: str = "model", block_bytes: int = SLOT, lend: int = 8, codec: str = ""
) -> protocol.Hello:
    """`model` stands for all facts of the namespace."""
    namespace = model.encode().ljust(32, b".")
    return protocol.Hello(protocol.VERSION, protocol.SCHEDULER, engine, namespace, block_bytes, 16, lend, codec=codec)


def worker_hello(engine: str = "engine") -> protocol.Hello:
    return protocol.Hello(protocol.VERSION, protocol.WORKER, engine, b"", 0, 0, 0)


def observer_hello() -> protocol.Hello:
    return protocol.Hello(protocol.VERSION, protocol.OBSERVER, "", b"", 0, 0, 0)


def some_keys(n: int, name: str = "key") -> bytes:
    """Packed keys, the same for the same name."""
    return pack_keys(block_key(b"a secret", f"{name} {i}".encode()) for i in range(n))


class Peer:
    """One connection to a kvtierd."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(os.fspath(path))
        self.fds: list[int] = []
        self._reader = protocol.FrameReader()
        self._heard: list[protocol.Message] = []
        self._last_lease = 0

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()
        while self.fds:
            os.close(self.fds.pop())

    def say(self, *messages: protocol.Message) -> None:
        self.sock.sendall(b"".join(protocol.encode(message) for message in messages))

    def hear_any(self) -> protocol.Message | None:
        """The next message; None at the end of the connection."""
        while not self._heard:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 20, 4)
            self.fds += fds
            if not data:
                return None
            self._heard += self._reader.feed(data)
        return self._heard.pop(0)

    def hear(self, kind: type[T]) -> T:
        """The next message of this kind; others before it are passed over, but no error is."""
        while (message := self.hear_any()) is not None:
            if isinstance(message, kind):
                return message
            assert not isinstance(message, protocol.Error), message
            self.passed_over(message)
        raise AssertionError(f"the daemon hung up before a {kind.__name__}")

    def passed_over(self, message: protocol.Message) -> None:
        """It came while another was waited for."""

    def ask(self, *messages: protocol.Message, answer: type[T]) -> T:
        self.say(*messages)
        return self.hear(answer)

    def end(self) -> protocol.Message | None:
        """The last message before the daemon hangs up."""
        last = None
        try:
            while (message := self.hear_any()) is not None:
                last = message
        except ConnectionResetError:  # it hung up before it had read all that was sent
            pass
        return last


class Engine(Peer):
    """A peer that is an engine's scheduler; it has been welcomed and was lent its first slots."""

    def __init__(self, path: Path, engine: str = "engine", **hello: Any) -> None:
        super().__init__(path)
        self.lent: list[int] = []
        self.welcome = self.ask(scheduler_hello(engine, **hello), answer=protocol.Welcome)
        self.passed_over(self.hear(protocol.Lend))

    def passed_over(self, message: protocol.Message) -> None:
        if isinstance(message, protocol.Lend):
            self.lent += unpack_slots(message.slots).tolist()

    def save(self, keys: bytes) -> list[int]:
        """Commits one lent slot a key."""
        slots = [self.lent.pop(0) for _ in range(len(keys) // KEY_BYTES)]
        self.say(protocol.Commit(keys, np.array(slots, "<u4").tobytes()))
        return slots

    def lookup(self, keys: bytes) -> list[int]:
        """The slot of each key; the lease stays open."""
        self._last_lease += 1
        found = self.ask(protocol.Lookup(self._last_lease, keys), answer=protocol.Found)
        assert found.lease == self._last_lease
        return unpack_slots(found.slots).tolist()

    def release(self, loaded: int = 0) -> None:
        """The last lookup's lease is over."""
        self.say(protocol.Release(self._last_lease, loaded))


class Worker(Peer):
    """A peer that is an engine's worker; it has the arena's descriptor in `fds`."""

    def __init__(self, path: Path, engine: str = "engine") -> None:
        super().__init__(path)
        self.welcome = self.ask(worker_hello(engine), answer=protocol.Welcome)
