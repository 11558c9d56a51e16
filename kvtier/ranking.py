"""What the first of each queue is worth: by its last use alone, or by what its sessions are expected to do. Pure.

Value: a block is worth the GPU time that keeping it in RAM saves, a second of keeping and byte:

    worth = returns a second of keeping it (returns.py) * seconds saved by each / bytes

    queue                worth
    ended                nothing: its sessions are over, or went on without it
    parked               next to nothing: it was said that it may wait below
    a category           returns.index(category, idle time) * seconds a byte
    expected             chance / time until its session was announced * seconds a byte; the last to come goes first
    active               more than people who are away, less than what is expected now: the engine has it meanwhile

What a return saves is less where the tier below has the block too: then only the reading of it. So each category has a
queue for blocks that are below and one for those that aren't, and that for each namespace.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from kvtier.block import BlockKey
from kvtier.policy import QUEUES_MAX, Ranking
from kvtier.returns import OTHERS, Returns

ENDED, PARKED, EXPECTED, ACTIVE = "ended", "parked", "expected", "active"
ANNOUNCED_CHANCE = 0.9  # that who was announced comes
EXPECTED_IN_MIN_S = 0.05
ACTIVE_WORTH = 0.03  # returns a second: its engine has what it loaded; it comes back soon, but not in this moment
PARKED_WORTH = 1e-12
# What reading a byte saves, until speeds are known: in seconds of computing it, or of fetching it from below.
SECONDS_A_BYTE, SECONDS_A_BYTE_BELOW = 3e-10, 1e-10
REFRESH_S = 0.25


class Lru(Ranking):
    """Least recently used."""

    refresh_s = float("inf")

    def added(self, slot: int, key: BlockKey, wanted: int) -> int:
        return 1

    def used(self, slots: np.ndarray, wanted: int | np.ndarray) -> int:
        return 1

    def worth(self, queue: int, order: float, used_at: float, now: float) -> float:
        return order


@dataclass(frozen=True, slots=True)
class Queue:
    kind: int | str  # a category's number, or one of the words above
    namespace: int
    is_below: bool


class Value(Ranking):
    refresh_s = REFRESH_S

    def __init__(self, returns: Returns) -> None:
        self._returns = returns
        self._queues: list[Queue] = [Queue("", -1, False)]  # by number; 0 is no queue
        self._number_of: dict[Hashable, int] = {}
        self._weights: dict[tuple[int, bool], float] = {}  # namespace, is below -> seconds a byte
        self.queue(OTHERS, 0, False)  # for what there is no room for

    def queue(self, kind: int | str, namespace: int, is_below: bool) -> int:
        """Its number. When there are too many, namespaces share theirs."""
        name = Queue(kind, namespace, is_below)
        number = self._number_of.get(name)
        if number is None:
            if len(self._queues) == QUEUES_MAX:
                return next((n for n, other in enumerate(self._queues) if n and other.kind == kind), 1)
            number = self._number_of[name] = len(self._queues)
            self._queues.append(name)
        return number

    def weigh(self, namespace: int, is_below: bool, seconds_a_byte: float) -> None:
        """What a byte of it saves when it is read."""
        self._weights[namespace, is_below] = seconds_a_byte

    def kind(self, queue: int) -> int | str:
        return self._queues[queue].kind

    def rate(self, kind: int | str, order: float, used_at: float, now: float) -> float:
        """Returns a second of keeping."""
        if kind == EXPECTED:
            return ANNOUNCED_CHANCE / max(EXPECTED_IN_MIN_S, -order - now)
        if kind == ACTIVE:
            return ACTIVE_WORTH
        if kind == ENDED:
            return 0.0
        if kind == PARKED:
            return PARKED_WORTH
        assert isinstance(kind, int)
        return self._returns.index(kind, now - used_at)

    # --- as policy.Ranking has it --------------------------------------------------------------------------------

    def below(self, queue: int, is_below: bool) -> int:
        mine = self._queues[queue]
        return self.queue(mine.kind, mine.namespace, is_below)

    def is_active(self, queue: int) -> bool:
        return self._queues[queue].kind == ACTIVE

    def added(self, slot: int, key: BlockKey, wanted: int) -> int:
        return wanted

    def used(self, slots: np.ndarray, wanted: int | np.ndarray) -> int | np.ndarray:
        return wanted

    def worth(self, queue: int, order: float, used_at: float, now: float) -> float:
        mine = self._queues[queue]
        weight = self._weights.get((mine.namespace, mine.is_below))
        if weight is None:
            weight = SECONDS_A_BYTE_BELOW if mine.is_below else SECONDS_A_BYTE
        return self.rate(mine.kind, order, used_at, now) * weight
