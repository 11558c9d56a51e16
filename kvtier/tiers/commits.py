"""Group commit of the catalogue, on a thread of its own: while one commit is under way, what comes waits for the next.

The calling thread owns everything here but two things that go to the thread with a commit and come back with its
Future: the entries of that commit, and the catalogue. Bytes are on the drives before their records: the thread syncs
the drives first.

A commit costs several syncs and some 40 KiB of writes, whatever it holds. So entries that nobody waits for are gathered
for GATHER_S first.

After a commit that failed its entries stay the first ones in line, and the same is tried again each RETRY_S. So order
holds, and a record is late rather than lost. What waited for the commit is told at once; it may still be done later.
A sync that failed is tried again too: what the drive then says it has, is there, and what it lost all the same fails
its checksum when it is read.
"""

import contextlib
import errno
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import lmdb

from kvtier.failpoint import reach
from kvtier.tiers.catalogue import LOST, Catalogue, Entry
from kvtier.tiers.drives import Drives
from kvtier.tiers.vault import Vault
from kvtier.transfer import Finished

RETRY_S = 1.0
GATHER_S = 0.1
WAITING_MAX = 65_536  # entries; with more of them nothing new is taken
FULL = (errno.ENOSPC, errno.EDQUOT)


class Commits:
    def __init__(self, catalogue: Catalogue, drives: Drives, wake: int, vault: Vault | None = None) -> None:
        """`wake`: an eventfd, written when there is something to collect."""
        self._catalogue, self._drives, self._wake, self._vault = catalogue, drives, wake, vault
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalogue")
        self._hurry: queue.SimpleQueue[None] = queue.SimpleQueue()  # ends a pause
        self._pause: Future[None] | None = None  # before the next commit
        self._entries: list[Entry] = []  # for the next commit
        self._tickets: list[int] = []  # told when that commit is over
        self._written: set[int] = set()  # numbers of drives to sync first
        self._under_way: Future[tuple[str, bool]] | None = None
        self._taken: tuple[list[Entry], list[int], set[int]] = ([], [], set())  # the same three, of the one under way
        self.fault = ""  # of the last commit
        self.lost = False  # the catalogue can't be written any more in this life
        self.failed = 0  # commits

    @property
    def waiting(self) -> int:
        return len(self._entries) + len(self._taken[0])

    @property
    def idle(self) -> bool:
        return self._under_way is None and self._pause is None and not self._entries and not self._tickets

    def add(self, entry: Entry, drive: int | None = None) -> None:
        """`drive`: where the bytes of a record are."""
        if not self.lost:
            self._entries.append(entry)
        if drive is not None:
            self._written.add(drive)

    def tell(self, ticket: int) -> None:
        """`turn` gives its Finished when all that was added so far is durable, or is not."""
        self._tickets.append(ticket)
        if self._pause is not None and not self.fault:
            self._hurry.put(None)

    def turn(self) -> list[Finished]:
        """Never blocks: collects the commit that is over, and begins the next."""
        told: list[Finished] = []
        if self._under_way is not None and self._under_way.done():
            told = self._collect(*self._under_way.result())
        if self.lost:
            told += [Finished(ticket, self.fault) for ticket in self._tickets]
            self._entries, self._tickets = [], []
        elif self._pause is not None:
            if self._pause.done():
                self._pause = None
                self._begin()
        elif self._under_way is None and (self._entries or self._tickets or self.fault):
            if self.fault or not self._tickets:
                self._rest(RETRY_S if self.fault else GATHER_S)
            else:
                self._begin()
        return told

    def _rest(self, seconds: float) -> None:
        while not self._hurry.empty():  # of a pause that ended by itself
            self._hurry.get()
        self._pause = self._thread.submit(self._sleep, seconds)
        self._pause.add_done_callback(lambda _: os.eventfd_write(self._wake, 1))

    def _sleep(self, seconds: float) -> None:
        """On the thread."""
        with contextlib.suppress(queue.Empty):
            self._hurry.get(timeout=seconds)

    def _begin(self) -> None:
        self._taken = self._entries, self._tickets, self._written
        self._entries, self._tickets, self._written = [], [], set()
        self._under_way = self._thread.submit(self._commit, self._taken[0], self._taken[2])
        self._under_way.add_done_callback(lambda _: os.eventfd_write(self._wake, 1))

    def _collect(self, fault: str, lost: bool) -> list[Finished]:
        entries, tickets, written = self._taken
        self._under_way, self._taken = None, ([], [], set())
        self.fault, self.lost = fault, lost
        if fault:
            self.failed += 1
            self._entries = entries + self._entries
            self._written |= written
        return [Finished(ticket, fault) for ticket in tickets]

    def _commit(self, entries: list[Entry], written: set[int]) -> tuple[str, bool]:
        """On the thread. Returns the fault, and whether the catalogue is lost with it."""
        try:
            if self._vault is not None:
                self._vault.sync()  # no record before the key of its block; and what was shredded stays so
            if not entries:
                return "", False
            reach("before_datasync")
            self._drives.sync(written)
            reach("before_commit")
            self._catalogue.commit(entries)
            reach("after_commit")
        except LOST as error:
            self._catalogue.quarantine(str(error))
            return "io", True
        except (lmdb.MapFullError, lmdb.DiskError):
            return "full", False
        except lmdb.Error:
            return "io", False
        except OSError as error:
            return fault_of(error.errno), False
        return "", False

    def close(self) -> list[Finished]:
        """Commits what waits, unless that fails. Then nothing is under way."""
        told = self.turn()
        for _ in range(4):  # what is under way, a pause, a commit of all that came meanwhile, and of a Flush after it
            self._hurry.put(None)
            begun: list[Future[Any] | None] = [self._under_way, self._pause]
            wait([future for future in begun if future is not None])
            told += self.turn()
        self._hurry.put(None)
        self._thread.shutdown()
        return told


def fault_of(number: int | None) -> str:
    """The word of transfer.FAULTS for an errno."""
    return "full" if number in FULL else "io"
