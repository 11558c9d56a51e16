"""The drives' Link, overheard: it learns as ever, and remembers what it was told."""

from collections.abc import Callable

from kvtier.estimators import Link


class HeardLink(Link):
    def __init__(self, clock: Callable[[], float], latency_s: float, bytes_per_s: float) -> None:
        super().__init__(latency_s, bytes_per_s)
        self._clock = clock
        self.came_bytes = 0  # ever, by `done`

    def ask(self, n: int, now: float) -> None:
        self._hear(n, now)
        super().ask(n, now)

    def done(self, n: int, now: float) -> None:
        self._hear(n, now)
        assert n <= self.queued_bytes, "more came than was asked for"
        self.came_bytes += n
        super().done(n, now)

    def drop(self, n: int, now: float) -> None:
        self._hear(n, now)
        assert n <= self.queued_bytes, "more is dropped than was asked for"
        super().drop(n, now)

    def _hear(self, n: int, now: float) -> None:
        assert n > 0 and now == self._clock(), "the link is told of another time, or of nothing"
