"""Workers that were killed while their GPU may still write into the arena. On the daemon's event loop.

A process that dies closes its files one after the other. Its socket may go before the GPU's, and until that is gone too,
copies that were queued still land in slots. So those stay its engine's until the process has ended:

    socket ends --said that no copy runs--------------> parted
         |------copies with the processor-------------> parted: its threads ended before its files
         '------copies with a GPU--> its pidfd tells--> parted
                                '--> no pidfd, for it is of another PID namespace: GRACE_S
"""

import asyncio
import contextlib
import os
from collections.abc import Callable

from kvtier.members import Client
from kvtier.protocol import FAREWELL

GRACE_S = 5.0


class Departing:
    def __init__(self, parted: Callable[[Client], None]) -> None:
        """`parted` is called once for each that leaves, at once or later."""
        self._parted = parted
        self._pidfds: dict[Client, int] = {}

    def arrive(self, client: Client) -> None:
        """A worker has said how it copies. Now its process lives, and its number means no other."""
        if client.copies_by_gpu and client not in self._pidfds:
            with contextlib.suppress(OSError):
                self._pidfds[client] = os.pidfd_open(client.pid)

    def leave(self, client: Client) -> None:
        """Its socket has ended."""
        pidfd = self._pidfds.pop(client, None)
        if not client.copies_by_gpu or client.last_words.endswith(FAREWELL):
            self._end(client, pidfd)
        elif pidfd is None:
            asyncio.get_running_loop().call_later(GRACE_S, self._parted, client)
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._end, client, pidfd)

    def _end(self, client: Client, pidfd: int | None) -> None:
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._parted(client)
