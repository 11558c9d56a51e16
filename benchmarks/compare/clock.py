"""How long a run has taken and will take: said with every line of progress."""

import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Clock:
    """`steps`: what is to come, and the seconds reckoned for each. Those left are corrected by how the ones before went."""

    steps: dict[str, float]
    limit_s: float = math.inf  # of the run
    begun: float = field(default_factory=time.monotonic)
    took: dict[str, float] = field(default_factory=dict)
    _step: str = ""
    _step_begun: float = 0.0

    def begin(self, step: str) -> None:
        self.end()
        self._step, self._step_begun = step, time.monotonic()

    def end(self) -> None:
        if self._step:
            self.took[self._step] = self.took.get(self._step, 0.0) + time.monotonic() - self._step_begun
            self._step = ""

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begun

    def left(self) -> float:
        """Seconds."""
        reckoned = sum(self.steps.get(step, 0.0) for step in self.took)
        pace = sum(self.took.values()) / reckoned if reckoned > 30 else 1.0
        coming = sum(seconds for step, seconds in self.steps.items() if step not in self.took and step != self._step)
        current = self.steps.get(self._step, 0.0) * pace - (time.monotonic() - self._step_begun) if self._step else 0.0
        return coming * pace + max(0.0, current)

    def is_late(self) -> bool:
        """As it went so far, the run will take longer than it may."""
        return self.elapsed + self.left() > self.limit_s

    def skip(self, steps: Iterable[str]) -> None:
        for step in steps:
            self.steps.pop(step, None)

    def say(self, text: str) -> None:
        print(f"{_minutes(self.elapsed)}, {_minutes(self.left())} left: {text}", file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
