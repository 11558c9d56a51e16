"""A worker's connection to kvtierd: the daemon's memory, and when it must be let go of."""

import contextlib
import os
import socket
from pathlib import Path

from kvtier import protocol
from kvtier.client import Client


class WorkerClient(Client):
    """An engine's worker: gets the arena. `take_arena` hands it to the owner, who then says `mapped`.

    The open socket is its word that it may be copying. So it never closes by itself once the arena is handed out: at
    the end of a connection, whatever ended it, `draining` is set, and the owner calls `hang_up` when no copy runs.
    """

    def __init__(self, path: Path, hello: protocol.Hello) -> None:
        super().__init__(path, hello)
        self.draining = False
        self._mapped = protocol.Mapped()  # what it has said
        self._fd = -1
        self._welcome: protocol.Welcome | None = None

    def take_arena(self) -> protocol.Memory | None:
        """What came since the last call; its descriptor is the caller's."""
        if self._fd < 0 or self._welcome is None:
            return None
        memory, self._fd, self._welcome = protocol.Memory.of(self._welcome, self._fd), -1, None
        return memory

    def mapped(self, now: float, pinned: int = 0, maps_gpu: bool = False, copies: str = "memcpy") -> None:
        """It can copy, as protocol.Mapped has it. To be said again when that has changed."""
        self._mapped = protocol.Mapped(pinned, int(maps_gpu), copies)
        self.send(protocol.encode(self._mapped), now)

    def close(self) -> None:
        """No copy runs. The daemon is told: else it waits for the end of a process whose GPU may write."""
        if self._sock is not None and self._mapped.by_gpu:
            with contextlib.suppress(OSError):
                self._sock.send(protocol.FAREWELL)
        self._mapped = protocol.Mapped()
        super().close()

    def poll(self, now: float) -> None:
        if not self.draining:
            super().poll(now)

    def hang_up(self, now: float) -> None:
        """No copy runs: the daemon may lend this engine's slots to others. Comes back by itself."""
        assert self.draining
        self.draining = False
        self.generation = 0
        super()._drop(now, self._why)

    def _drop(self, now: float, why: str) -> None:
        if self.generation:
            self.draining = True
            self._why = why
        else:
            super()._drop(now, why)

    def _recv(self, sock: socket.socket) -> bytes:
        data, fds, _, _ = socket.recv_fds(sock, protocol.RECEIVE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        for fd in fds:
            self._close_fd()
            self._fd = fd
        return data

    def _welcomed(self, message: protocol.Welcome, now: float) -> None:
        self._welcome = message

    def _heard(self, message: protocol.Message, now: float) -> None:
        if isinstance(message, protocol.Drain):
            self._drop(now, "it ends, or lost this engine's scheduler")

    def _lost(self, now: float) -> None:
        self._close_fd()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd, self._welcome = -1, None
