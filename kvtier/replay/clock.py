"""What happens next: a clock that jumps from event to event, links, and an engine's own pace."""

import heapq
import itertools
import math
from collections.abc import Callable

Action = Callable[[], None]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._number = itertools.count()  # events of one moment happen in the order in which they were planned

    def at(self, when: float, action: Action) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._number), action))

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._events:
            return False
        self.now, _, action = heapq.heappop(self._events)
        action()
        return True


class Wire:
    """A link that carries one thing after the other, in the order in which they were sent."""

    def __init__(self, clock: Clock, latency_s: float, bytes_per_s: float) -> None:
        self.busy_s = 0.0
        self._clock, self._latency_s, self._bytes_per_s = clock, latency_s, bytes_per_s
        self._free_at = 0.0

    def send(self, size: float) -> float:
        """When it has arrived. The latency of one and the bytes of another overlap."""
        took = size / self._bytes_per_s
        self._free_at = max(self._free_at, self._clock.now) + took
        self.busy_s += took
        return self._free_at + self._latency_s


class Pace:
    """Arrivals a second and share of time at work, over the last minute or so."""

    MEMORY_S = 60.0

    def __init__(self) -> None:
        self._arrivals = self._work_s = self._weight = 0.0
        self._at = 0.0

    def arrived(self, now: float) -> None:
        self._fade(now)
        self._arrivals += 1

    def worked(self, seconds: float, now: float) -> None:
        self._fade(now)
        self._work_s += seconds

    def arrivals_per_s(self, now: float) -> float:
        self._fade(now)
        return self._arrivals / max(self._weight, 1.0)

    def busy(self, now: float) -> float:
        self._fade(now)
        return min(1.0, self._work_s / max(self._weight, 1.0))

    def _fade(self, now: float) -> None:
        kept = math.exp(-(now - self._at) / self.MEMORY_S)
        self._arrivals *= kept
        self._work_s *= kept
        self._weight = self._weight * kept + self.MEMORY_S * (1 - kept)
        self._at = now
