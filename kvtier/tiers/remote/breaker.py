"""When a remote is left alone. Pure: the time comes in, in seconds of any clock that never goes back.

    closed --FAILURES_MAX failures in a row, or SILENT_S without a good answer--> open --a probe is due--> half-open
       ^                                                                           ^                         |  |
       |                                                                           '-------it failed---------'  |
       '---------------------------------------it was answered well---------------------------------------------'

While it is not closed, no call is made but probes, one at a time, PROBE_EVERY_S from the begin of one to the begin of the
next. No user's request is ever the probe.

Silence is counted while calls are under way, one call after another too: a frozen peer raises no error, and a deadline
that is shorter than SILENT_S must not begin it anew. So a value that takes longer than this by itself, with no other
answer meanwhile, is silence as well: a remote that slow is of no use.
"""

from enum import Enum

FAILURES_MAX = 3
SILENT_S = 2.0
PROBE_EVERY_S = 4.0  # and a probe's own deadline of at most 1 s: it is used again within 5 s of its recovery


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    def __init__(
        self, failures_max: int = FAILURES_MAX, silent_s: float = SILENT_S, probe_every_s: float = PROBE_EVERY_S
    ) -> None:
        self.state = State.CLOSED
        self.opened = 0  # times
        self.reason = ""  # why it opened last
        self._failures_max, self._silent_max_s, self._probe_every_s = failures_max, silent_s, probe_every_s
        self._under_way = self._failures = 0
        self._silent_s = 0.0  # since the last good answer, with a call under way
        self._counted_at = 0.0
        self._probe_at = float("inf")
        self._changed_at = 0.0

    @property
    def is_closed(self) -> bool:
        return self.state is State.CLOSED

    # --- calls -----------------------------------------------------------------------------------------------------

    def begun(self, now: float) -> None:
        assert self.is_closed
        self._count(now)
        self._under_way += 1

    def ended(self, now: float, failure: str = "") -> None:
        """A call that was begun is over. Empty: it was answered, be the answer yes or no."""
        self._count(now)
        self._under_way -= 1
        if not self.is_closed:
            return  # it was begun before, and says nothing of now
        if not failure:
            self._failures, self._silent_s = 0, 0.0
            return
        self._failures += 1
        if self._failures >= self._failures_max:
            self._open(now, f"{self._failures} failures in a row: {failure}")
        else:
            self.check(now)

    def never_asked(self, now: float) -> None:
        """A call that was begun is over before it asked anything: that is no answer."""
        self._count(now)
        self._under_way -= 1

    def check(self, now: float) -> None:
        """Time has passed. It opens if that was too long without an answer."""
        self._count(now)
        if self.is_closed and self._silent_s >= self._silent_max_s:
            self._open(now, f"no answer for {self._silent_s:.1f} s")

    def silent_at(self, now: float) -> float:
        """When `check` opens it if nothing is answered before; infinite when nothing is under way, or it isn't closed."""
        self._count(now)
        return now + self._silent_max_s - self._silent_s if self.is_closed and self._under_way else float("inf")

    # --- probes ----------------------------------------------------------------------------------------------------

    @property
    def probe_at(self) -> float:
        """When the next is due; infinite while there is none."""
        return self._probe_at if self.state is State.OPEN else float("inf")

    def probe(self, now: float) -> None:
        """One begins."""
        assert now >= self.probe_at
        self.state, self._probe_at = State.HALF_OPEN, now + self._probe_every_s

    def probed(self, now: float, failure: str = "") -> None:
        """It is over; empty: it was answered well."""
        assert self.state is State.HALF_OPEN
        if failure:
            self.state, self.reason = State.OPEN, failure
        else:
            self.state, self._changed_at = State.CLOSED, now
            self._failures, self._silent_s, self._counted_at = 0, 0.0, now

    # --- what there is ---------------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> dict[str, object]:
        """As JSON values."""
        return {
            "breaker": self.state.value,
            "breaker_opened": self.opened,
            "breaker_seconds": round(now - self._changed_at, 3) if self.opened else 0.0,  # since it opened or closed
            "breaker_reason": self.reason,
        }

    def _open(self, now: float, reason: str) -> None:
        self.state, self.reason = State.OPEN, reason
        self.opened += 1
        self._changed_at, self._probe_at = now, now + self._probe_every_s

    def _count(self, now: float) -> None:
        if self._under_way:
            self._silent_s += now - self._counted_at
        self._counted_at = now
