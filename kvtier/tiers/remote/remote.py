"""RemoteTier: a store on other machines as a tier. It keeps the contract of tiers/base.py, as one that finds by keys.

    start --> orders --> the loop in a thread of its own --> done --> poll       an eventfd says that there is something
                         seeks, then reads, then few writes

What a kind of store can do is said in base.py; whatever it does, this holds:

*   Each call has a deadline, and all that is under way is cut short when the breaker opens: no order is kept for longer
    than its deadline. It is finished when the call has ended, so nobody writes into its slot after that.
*   While the breaker is not closed, every order that needs the remote is finished at once, and the tier is `read_only`.
    It probes by itself.
*   What comes is believed by its envelope alone. A value that is not what its name says is deleted, and counts as a
    failure: of three in a row, the next reads are not even tried for a while.
*   A block whose frame would need more bytes than it may finishes as "larger", and the remote hears nothing of it.
*   "full", and "refused" for a write, stop writes for RETRY_S; reads go on. "refused" for a read counts as a failure.
*   At most BYTES_MAX bytes and CALLS calls are under way; of these, WRITES at most are writes, and none begins while a
    read waits.

Reads are single flight by the caller's word (staging.py), and so are questions (known.py). There is nothing to recover, to
forget or to flush: what was written is there for whoever asks. An Erase deletes; the bytes are the remote's then.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from kvtier.block import KEY_BYTES, unpack_keys
from kvtier.tiers.base import Recovered
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.base import CALLS_MAX, NAMES_MAX, Corrupt, Full, NotOurs, OtherVersion, Refused, Remote, said
from kvtier.tiers.remote.breaker import Breaker
from kvtier.tiers.remote.calls import Calls, Job
from kvtier.tiers.remote.values import Clear, Sealed
from kvtier.transfer import SEEK_KEYS_MAX, Demote, Erase, Finished, Promote, Remember, Seek, Transfer

BYTES_MAX = 64 * 1024**2
CALLS, WRITES = 16, 4
RETRY_S = 5.0
CLOSE_S = 2.0  # for a kind to hang up
T = TypeVar("T")
assert CALLS < CALLS_MAX and SEEK_KEYS_MAX <= NAMES_MAX
PROBE_NAME = f"{'0' * envelope.DIGEST_SHOWN}/{'0' * 2 * KEY_BYTES}"  # nothing is there; that is a good answer


class Deadlines(NamedTuple):
    """Seconds that a call may take."""

    short_s: float = 1.0  # one that moves no value
    value_s: float = 2.0  # one that does, and more for a large one:
    bytes_per_s: float = 32e6

    def of(self, size: int) -> float:
        return self.value_s + size / self.bytes_per_s if size else self.short_s


DEADLINES = Deadlines()


class RemoteTier:
    def __init__(
        self,
        remote: Remote,
        arena: np.ndarray,
        *,
        deadlines: Deadlines = DEADLINES,
        breaker: Breaker | None = None,
        values: Clear | Sealed | None = None,
    ) -> None:
        """`arena`: the bytes that slots name; `values`: how they lie there. Nothing is asked of the remote yet. From now on
        `remote` belongs to the tier, and so do `breaker` and `values`."""
        self.recovered = Recovered()
        self._remote, self._deadlines = remote, deadlines
        self._breaker, self._values = breaker or Breaker(), values or Clear()
        self._digests: dict[int, bytes] = {}  # by a namespace's number; of the caller's thread
        self._done: deque[Finished] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._refused_until, self._refusal, self._reason = float("-inf"), "", ""  # of writes
        self._closed = False
        # What follows is the loop's.
        self._reads: deque[Job] = deque()
        self._writes: deque[Job] = deque()
        self._running: dict[asyncio.Task[Any], Job] = {}
        self._others: set[asyncio.Task[Any]] = set()  # probes, and deletions that nobody waits for
        self._probe: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = self._writing = 0
        self._greeted = False
        self._loop = asyncio.new_event_loop()
        self._calls = Calls(remote, arena, self._values, self._loop.time)
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="kvtier-remote", daemon=True)
        self._thread.start()

    # --- the caller's thread ---------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        """It is left alone for a while, or takes no writes."""
        return self.is_away or time.monotonic() < self._refused_until

    @property
    def is_away(self) -> bool:
        """It is left alone: nothing is even tried."""
        return not self._breaker.is_closed

    def start(self, transfer: Transfer) -> None:
        if self._closed:
            self._done.append(Finished(transfer.ticket, "closed"))
        elif isinstance(transfer, Remember):
            self._digests[transfer.namespace] = transfer.digest
            self._loop.call_soon_threadsafe(self._greet)
            self._finish(Finished(transfer.ticket))
        elif isinstance(transfer, Seek | Demote | Promote | Erase):
            digest = self._digests[transfer.namespace]
            keys = unpack_keys(transfer.keys) if isinstance(transfer, Seek) else [transfer.key]
            job = Job([transfer], [envelope.name_of(digest, key) for key in keys], digest)
            if fault := self._fault(job):
                self._finish(Finished(transfer.ticket, fault))
            else:
                self._loop.call_soon_threadsafe(self._take, job)
        else:
            self._finish(Finished(transfer.ticket))

    def _fault(self, job: Job) -> str:
        """Why this isn't even tried now."""
        if self.is_away:
            return "unreachable"
        return self._refusal if job.is_write and time.monotonic() < self._refused_until else ""

    def poll(self) -> list[Finished]:
        if not self._closed:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        return [self._done.popleft() for _ in range(len(self._done))]

    def fileno(self) -> int:
        return self._wake

    def state(self) -> Mapping[str, object]:
        """Bytes and counts since the start; what is under way now."""
        return {
            "read_only": self.read_only,
            "reason": self._reason if self.read_only else "",
            "encrypted": self._values.is_sealed,
            "pending": len(self._running) + len(self._reads) + len(self._writes),
            "pending_bytes": self._bytes,
            **self._calls.counts,
            **self._breaker.snapshot(time.monotonic()),
        }

    def close(self) -> None:
        """What is under way ends by its deadline, what waits is not begun. `poll` gives all of it as ever."""
        if self._closed:
            return
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._closed = True
        os.close(self._wake)

    def _finish(self, done: Finished) -> None:
        self._done.append(done)
        os.eventfd_write(self._wake, 1)

    # --- the loop --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._loop.run_until_complete(self._life())
        self._loop.close()

    async def _life(self) -> None:
        await self._end.wait()
        self._drop_waiting("closed")
        if self._timer is not None:
            self._timer.cancel()
        while self._running or self._others:
            await asyncio.wait([*self._running, *self._others])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(self._remote.close(), return_exceptions=True)
        self._values.close()

    def _take(self, job: Job) -> None:
        if isinstance(job.orders[0], Seek):
            self._reads.appendleft(job)  # small, and many blocks depend on it
        else:
            (self._writes if job.is_write else self._reads).append(job)
        self._go_on()

    def _greet(self) -> None:
        """An engine is here: its first question is not to wait until there is a connection."""
        if not self._greeted and not self._end.is_set():
            self._greeted = True
            self._aside(lambda: self._remote.lengths([PROBE_NAME]))

    def _go_on(self) -> None:
        """Begin what may begin now; and look again at what time has brought, when that is due."""
        while (job := self._next()) is not None:
            self._begin(job)
        if self._timer is not None:
            self._timer.cancel()
        due = min(self._breaker.silent_at(self._loop.time()), self._breaker.probe_at)
        is_over = self._end.is_set() or due == float("inf")
        self._timer = None if is_over else self._loop.call_at(due, self._on_time)

    def _next(self) -> Job | None:
        waiting = self._reads or self._writes
        if not waiting or len(self._running) >= CALLS:
            return None
        if waiting is self._writes and self._writing >= WRITES:
            return None
        if self._bytes and self._bytes + waiting[0].size > BYTES_MAX:
            return None
        job = waiting.popleft()
        while isinstance(job.orders[0], Erase) and waiting and isinstance(waiting[0].orders[0], Erase):
            if len(job.names) >= NAMES_MAX:
                break
            job.orders += waiting[0].orders
            job.names += waiting.popleft().names
        return job

    def _begin(self, job: Job) -> None:
        if fault := self._fault(job):  # it was well when the order came
            return self._end_all(job, fault)
        job.begun_at = self._loop.time()
        self._breaker.begun(job.begun_at)
        self._bytes += job.size
        self._writing += job.is_write
        task = self._loop.create_task(self._in_time(self._deadlines.of(job.size), lambda: self._calls.make(job)))
        self._running[task] = job
        task.add_done_callback(self._ended)

    @staticmethod
    async def _in_time(seconds: float, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(seconds):
            return await call()

    def _ended(self, task: "asyncio.Task[tuple[Finished, ...]]") -> None:
        """Whatever came of it. A kind's error that base.py doesn't know is one more way of not answering."""
        job, now = self._running.pop(task), self._loop.time()
        self._bytes -= job.size
        self._writing -= job.is_write
        error = _error_of(task)
        if error is None:
            ended = task.result()
            was_asked = all(done.fault != "larger" for done in ended)
            self._breaker.ended(now) if was_asked else self._breaker.never_asked(now)
            for done in ended:
                self._finish(done)
        else:
            fault = self._fault_of(job, error)
            is_answer = fault in ("full", "gone") or (fault == "refused" and job.is_write)
            self._breaker.ended(now, "" if is_answer else self._reason)
            self._end_all(job, fault)
        if self.is_away:
            self._leave_alone()
        self._go_on()

    def _fault_of(self, job: Job, error: BaseException) -> str:
        """The word of transfer.FAULTS for it; and what follows from it."""
        if isinstance(error, OtherVersion):
            self._calls.counts["gone"] += 1
            return "gone"
        self._reason = said(error)
        if isinstance(error, Corrupt) and isinstance(job.orders[0], Promote):  # others have seen no value
            self._calls.counts["corrupt_blocks"] += 1
            self._aside(lambda: self._remote.delete(job.names))
            return "corrupt"
        self._calls.counts["failed"] += 1
        if not isinstance(error, Full | Refused):
            return "unreachable"
        fault = "full" if isinstance(error, Full) else "refused"
        if job.is_write and not isinstance(error, NotOurs):
            self._refusal, self._refused_until = fault, time.monotonic() + RETRY_S
        return fault

    def _end_all(self, job: Job, fault: str) -> None:
        seconds = self._loop.time() - job.begun_at if job.begun_at else 0.0
        for order in job.orders:
            self._finish(Finished(order.ticket, fault, 0, seconds))

    # --- while it is not well --------------------------------------------------------------------------------------

    def _leave_alone(self) -> None:
        self._drop_waiting("unreachable")
        for task in self._running:
            task.cancel()

    def _drop_waiting(self, fault: str) -> None:
        for job in (*self._reads, *self._writes):
            self._end_all(job, fault)
        self._reads.clear()
        self._writes.clear()

    def _on_time(self) -> None:
        now = self._loop.time()
        was_closed = self._breaker.is_closed
        self._breaker.check(now)
        if was_closed and self.is_away:
            self._leave_alone()
        elif now >= self._breaker.probe_at:
            self._breaker.probe(now)
            self._probe = self._aside(lambda: self._remote.lengths([PROBE_NAME]))
        self._go_on()

    def _aside(self, call: Callable[[], Awaitable[Any]]) -> "asyncio.Task[Any]":
        """A call that no order waits for."""
        task = self._loop.create_task(self._in_time(self._deadlines.short_s, call))
        self._others.add(task)
        task.add_done_callback(self._aside_over)
        return task

    def _aside_over(self, task: "asyncio.Task[Any]") -> None:
        self._others.discard(task)
        error = _error_of(task)  # looked at in any case, or asyncio complains
        if task is self._probe:
            self._breaker.probed(self._loop.time(), "" if error is None else said(error))
        self._go_on()


def _error_of(task: "asyncio.Task[Any]") -> BaseException | None:
    return TimeoutError() if task.cancelled() else task.exception()
