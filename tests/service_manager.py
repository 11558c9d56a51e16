"""A stand-in for systemd: starts kvtierd, hears what it says, keeps what it is given, passes it to the next one."""

import json
import os
import socket
import sys
import threading
from pathlib import Path

from kvtierd import KVTierd, eventually

# Becomes the program after the descriptors stand where they are looked for. Arguments: them, as JSON; the program's.
STARTER = """
import json, os, sys
given = json.loads(sys.argv[1])
for i, fd in enumerate(given):
    os.dup2(fd, 500 + i, inheritable=False)
os.closerange(3, 500)
for i, _ in enumerate(given):
    os.dup2(500 + i, 3 + i)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
CAUGHT_UP = "X_CAUGHT_UP="
LINES_BYTES_MAX, FDS_MAX = 64 * 1024, 64


class Service(KVTierd):
    """A kvtierd under this service manager. start() returns when it is ready; end() and start() are an upgrade.

    `listens`: sockets that are there before it, by name: nobody who connects meanwhile is refused.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, object] | None = None,
        *,
        watchdog_s: float = 0,
        listens: dict[str, Path] | None = None,
    ) -> None:
        super().__init__(folder, settings)
        self.kept: list[tuple[str, int]] = []  # name and descriptor, as it gave them
        self._asked = self._caught_up = 0
        self.heard: list[str] = []  # every line, in order; "" before each start
        self._listeners = [(name, _listening(path)) for name, path in (listens or {}).items()]
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(os.fspath(folder / "notify.sock"))
        self.environment = {"NOTIFY_SOCKET": os.fspath(folder / "notify.sock")}
        if watchdog_s:
            self.environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        threading.Thread(target=self._hear, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.forget()
        self._notified.shutdown(socket.SHUT_RDWR)  # ends the thread
        for _, listener in self._listeners:
            listener.close()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-P", "-c", STARTER, json.dumps(self.pass_fds), *super().command]

    def start(self) -> None:
        """With all that is kept and listened on. What is kept stays kept until it is dropped."""
        given = [(name, listener.fileno()) for name, listener in self._listeners] + self.kept
        self.pass_fds = [fd for _, fd in given]
        self.environment["LISTEN_FDS"] = str(len(given))
        self.environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in given)
        self.heard.append("")
        super().start()
        eventually(lambda: self.is_ready or self.process.poll() is not None)
        assert self.is_ready, self.said()

    def end(self) -> int:
        """SIGTERM; its exit status. All that it said is heard."""
        status = self.terminate()
        self.catch_up()
        self.process = None
        return status

    def upgrade(self) -> None:
        """As `systemctl restart`."""
        assert self.end() == 0, self.said()
        self.start()

    @property
    def said_now(self) -> list[str]:
        """What the last one that was started said."""
        heard = list(self.heard)
        return heard[len(heard) - heard[::-1].index("") :]

    @property
    def is_ready(self) -> bool:
        return "READY=1" in self.said_now

    @property
    def status(self) -> str:
        """The last text."""
        return next((line.removeprefix("STATUS=") for line in reversed(self.heard) if line.startswith("STATUS=")), "")

    def names(self) -> list[str]:
        """Of what is kept."""
        return [name for name, _ in self.kept]

    def keep(self, name: str, fd: int) -> None:
        """As if it had asked for that."""
        self.kept.append((name, fd))

    def catch_up(self) -> None:
        """All that was said before has been heard then."""
        self._asked += 1
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(f"{CAUGHT_UP}{self._asked}".encode(), self.environment["NOTIFY_SOCKET"])
        eventually(lambda: self._caught_up == self._asked)

    def forget(self) -> None:
        """Keeps nothing any more, as after `systemctl stop`."""
        while self.kept:
            os.close(self.kept.pop()[1])

    def _hear(self) -> None:
        while True:
            words, fds, _, _ = socket.recv_fds(self._notified, LINES_BYTES_MAX, FDS_MAX)
            if not words:
                self._notified.close()
                return
            lines = words.decode().splitlines()
            if lines[0].startswith(CAUGHT_UP):
                self._caught_up = int(lines[0].removeprefix(CAUGHT_UP))
                continue
            self.heard += lines
            name = next((line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME=")), "stored")
            if "FDSTORE=1" in lines:
                self.kept += [(name, fd) for fd in fds]
                continue
            for fd in fds:  # of a barrier: all before it has been heard
                os.close(fd)
            if "FDSTOREREMOVE=1" in lines:
                for kept in [kept for kept in self.kept if kept[0] == name]:
                    self.kept.remove(kept)
                    os.close(kept[1])


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.fspath(path))
    listener.listen(16)
    return listener
