"""Simulated time and seeded chance, of one world: whatever happens is due at some time."""

import heapq
import itertools
import random
from collections.abc import Callable


class Clock:
    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.now = 0.0
        self._due: list[tuple[float, int, str, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, what: str, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, what, action)

    def at(self, when: float, what: str, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._numbers), what, action))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def delay(self, mean: float) -> float:
        """Mostly short, now and then very long."""
        return self.random.expovariate(1 / mean) * (20 if self.chance(0.03) else 1)
