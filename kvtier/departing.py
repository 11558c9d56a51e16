"""Workers that were killed while their GPU may still write into the arena. On the daemon's event loop.

A process that dies closes its files one after the other. Its socket may go before the GPU's, and until that is gone too,
copies that were queued still land in slots. So those stay its engine's until the process has ended:

    socket ends --said that no copy runs--------------> parted
         |------copies with the processor-------------> parted: its threads ended before its files
         '------copies with a GPU--> its pidfd tells--> parted
                                '--> no pidfd, for it is of another PID namespace: GRACE_S

Workers of an engine that the former kvtierd knew have no socket here (ending.py). What they held stays theirs until their
process has ended; or until it comes anew, for a worker connects only when no copy of its former stay runs.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from kvtier.members import Client
from kvtier.protocol import FAREWELL

GRACE_S = 5.0


class Departing:
    def __init__(self, parted: Callable[[Client], None]) -> None:
        """`parted` is called once for each that leaves, at once or later."""
        self._parted = parted
        self._pidfds: dict[Client, int] = {}
        self._lingering: set[Client] = set()  # of a former kvtierd

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

    def linger(self, client: Client, started: int) -> None:
        """A worker without a socket; `started`: when its process did, or 0."""
        pidfd = None
        try:
            pidfd = os.pidfd_open(client.pid) if client.pid else None
            is_gone = bool(started) and started_at(client.pid) not in (0, started)
        except ProcessLookupError:
            is_gone = True
        except OSError:  # no word of its end: it must come anew
            is_gone = False
        if is_gone:
            asyncio.get_running_loop().call_soon(self._end, client, pidfd)
        else:
            self._lingering.add(client)
            if pidfd is not None:
                asyncio.get_running_loop().add_reader(pidfd, self._end, client, pidfd)
                self._pidfds[client] = pidfd

    def comes_anew(self, pid: int, workers: Iterable[Client]) -> bool:
        """A worker of this process connects. Whether one of these that linger has parted by that: those of this process;
        of processes that nobody can tell apart, the only one."""
        mine = [worker for worker in workers if worker in self._lingering]
        found = [worker for worker in mine if worker.pid == pid and (pid or len(mine) == 1)]
        for worker in found:
            self._end(worker, self._pidfds.pop(worker, None))
        return bool(found)

    def _end(self, client: Client, pidfd: int | None) -> None:
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
            self._pidfds.pop(client, None)
        self._lingering.discard(client)
        self._parted(client)


def started_at(pid: int) -> int:
    """When a process did, as the kernel counts: a number is used again, but not with the same time. 0: nobody may know."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
        return int(said.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
