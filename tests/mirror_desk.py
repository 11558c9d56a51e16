"""A mirror and the RAM that it mirrors, for tests: blocks are named by letters, and a device does what it is told to."""

from collections.abc import Sequence

import numpy as np
from idle_world import key, keys

from kvtier.block import ABSENT
from kvtier.mirror import Mirror
from kvtier.ram import Ram
from kvtier.ranking import Lru
from kvtier.stats import Stats
from kvtier.transfer import Demote, Finished, Transfer

MIB = 1024**2
HALF = MIB // 2  # four places a slab of 2 MiB


class Desk:
    """RAM of 16 MiB and a mirror of some of it. Blocks are named by letters."""

    def __init__(self, capacity: int = 2 * MIB) -> None:
        self.stats = Stats()
        self.ram = Ram(16 * MIB, self.stats, Lru())
        self.mirror = Mirror(self.ram, capacity, self.stats)
        self.ram.on_give = self.mirror.given
        self.mirror.readers.add("reader")
        self._lease = 0

    def save(self, letters: str, size: int = HALF) -> None:
        for letter in letters:
            slot = self.ram.slots.take(size)
            assert slot is not None and self.ram.keep(slot, key(letter), 0)

    def slots(self, letters: str) -> np.ndarray:
        return self.ram.index.find(keys(letters)).astype(np.intp)

    def ask(self, letters: str, engine: str = "reader") -> list[int]:
        """What a lookup is answered with. Its lease is over at once."""
        self._lease += 1
        return self.mirror.answered((engine, self._lease), self.ram.index.find(keys(letters))).tolist()

    def over(self, letters: str) -> None:
        """A request is over that used these."""
        self.mirror.over(self.slots(letters))

    def start(self) -> list[Transfer]:
        return self.mirror.transfers(0.0)

    def finish(self, orders: Sequence[Transfer], fault: str = "") -> None:
        for order in orders:
            self.mirror.finished(Finished(order.ticket, fault))

    def run(self) -> list[Transfer]:
        """Until nothing is to be done any more."""
        done: list[Transfer] = []
        while orders := self.start():
            self.finish(orders)
            done += orders
        return done

    def turn(self, letters: str) -> str:
        """A whole request, and what it leads to. Which blocks were copied."""
        self.ask(letters)
        self.over(letters)
        return "".join(order.key.decode().strip() for order in self.run() if isinstance(order, Demote))

    def copied(self, letters: str) -> str:
        """Of these, those that an engine reads from the GPU. It is no use of them."""
        return "".join(letter for letter in letters if self.place(letter) is not None)

    def place(self, letter: str) -> int | None:
        (slot,) = self.slots(letter)
        return None if self.mirror._place[slot] == ABSENT else int(self.mirror._place[slot])
