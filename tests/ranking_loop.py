"""A cache of a few blocks around a ranking, as the store drives one: what is asked for is used, or room is made for it."""

import random
import time
from collections.abc import Iterable

import numpy as np

from kvtier.policy import NONE, Policy, Ranking


def key_of(name: object) -> bytes:
    return str(name).encode().ljust(16)


class Loop:
    """Its queues are dicts, the first to go first."""

    def __init__(self, ranking: Ranking, capacity: int) -> None:
        self.ranking, self.capacity = ranking, capacity
        self.slot_of: dict[object, int] = {}
        self.free = list(range(capacity))
        self.queues: dict[int, dict[int, None]] = {1: {}, 2: {}}  # slots
        self.hits = 0

    def ask(self, *names: object) -> list[object]:
        """One after the other, each a request of one block. Returns who went for them."""
        went = [self._ask(name) for name in names]
        return [name for name in went if name is not None]

    def _ask(self, name: object) -> object | None:
        if name in self.slot_of:
            self.hits += 1
            self.use(self.slot_of[name])
            return None
        went = None if self.free else self.evict()
        slot = self.slot_of[name] = self.free.pop()
        self.add(slot, key_of(name))
        self.use(slot)  # its request is over
        return went

    def evict(self) -> object:
        slot = self.victim()
        name = next(name for name, taken in self.slot_of.items() if taken == slot)
        self.drop(name)
        return name

    def drop(self, name: object) -> None:
        slot = self.slot_of.pop(name)
        self.free.append(slot)
        self.remove(slot, key_of(name))

    def in_queue(self, queue: int) -> list[object]:
        """Names, in any order."""
        return [name for name, slot in self.slot_of.items() if self.queue(slot) == queue]

    # --- what a policy does --------------------------------------------------------------------------------------

    def add(self, slot: int, key: bytes) -> None:
        self.queues[self.ranking.added(slot, key, 1)][slot] = None

    def use(self, slot: int) -> None:
        queues = self.ranking.used(np.array([slot]), 1)
        if queues is not None:
            self._to_end(slot, int(np.asarray(queues).reshape(-1)[0]))

    def victim(self) -> int:
        while True:
            queue = min((q for q, slots in self.queues.items() if slots), key=self._worth)
            slot = next(iter(self.queues[queue]))
            again = self.ranking.again(slot, queue)
            if not again:
                return slot
            self._to_end(slot, again)

    def remove(self, slot: int, key: bytes) -> None:
        queue = self.queue(slot)
        del self.queues[queue][slot]
        self.ranking.gone(slot, key, queue)

    def queue(self, slot: int) -> int:
        return next(queue for queue, slots in self.queues.items() if slot in slots)

    def _worth(self, queue: int) -> float:
        return self.ranking.worth(queue, 0.0, 0.0, 0.0)

    def _to_end(self, slot: int, queue: int) -> None:
        del self.queues[self.queue(slot)][slot]
        self.queues[queue][slot] = None


class PolicyLoop(Loop):
    """The same around the daemon's own Policy."""

    def __init__(self, ranking: Ranking, capacity: int) -> None:
        super().__init__(ranking, capacity)
        self.policy = Policy(capacity, capacity, ranking)

    def add(self, slot: int, key: bytes) -> None:
        self.policy.add(slot, 1, key, NONE, 1, 0.0)

    def use(self, slot: int) -> None:
        self.policy.use(np.array([slot]), 1, 0.0)

    def victim(self) -> int:
        slot = self.policy.victim(1, lambda slot: True, 0.0)
        assert slot is not None
        return slot

    def remove(self, slot: int, key: bytes) -> None:
        self.policy.remove(slot, key)

    def queue(self, slot: int) -> int:
        return int(self.policy.queues(np.array([slot]))[0])


LOOPS = (Loop, PolicyLoop)


def seconds_a_victim(ranking: Ranking, blocks: int, victims: int) -> float:
    """With so many blocks in the policy; the mean of so many, each of which makes room for another."""
    policy = Policy(blocks, blocks, ranking)
    for slot in range(blocks):
        policy.add(slot, 1, key_of(slot), NONE, 1, 0.0)
    begun = time.perf_counter()
    for number in range(victims):
        slot = policy.victim(1, lambda slot: True, 0.0)
        assert slot is not None
        policy.remove(slot, key_of(slot))
        policy.add(slot, 1, key_of(blocks + number), NONE, 1, 0.0)
    return (time.perf_counter() - begun) / victims


def hits_of(loop: Loop, names: Iterable[object]) -> int:
    loop.ask(*names)
    return loop.hits


def skewed(seed: int, n: int) -> list[int]:
    """Some names often, most of them hardly ever, and now and then a run of names that never come again."""
    chance = random.Random(seed)
    names = [int(chance.paretovariate(0.8)) for _ in range(n)]
    for first in range(0, n, n // 5):
        names[first : first + 150] = range(10**9 + first, 10**9 + first + 150)
    return names


def changing(seed: int, n: int) -> list[int]:
    """By turns a few names often, a loop that is larger than the cache, and old names again."""
    chance = random.Random(seed)
    names: list[int] = []
    while len(names) < n:
        base = chance.randrange(10**6) * 1000
        names += chance.choice([
            [base + int(chance.paretovariate(0.7)) for _ in range(800)],
            [*range(base, base + 130)] * 4,
            [int(chance.paretovariate(0.9)) for _ in range(800)],
        ])  # fmt: skip
    return names[:n]
