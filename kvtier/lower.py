"""The tier below the arena, as the store sees it: what it is ordered to do and what came of it. Pure.

Remember  -->  Demote  (demotion.py)   only after the namespace was remembered
Forget    <--  an extent is reclaimed  (extents.py), and may be filled again when that has finished
Promote        (staging.py)
Flush          when everything that was waiting has been written or refused
"""

import itertools
from collections.abc import Callable, Iterator

from kvtier.admission import Budget
from kvtier.demotion import Demotions
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.ram import Ram
from kvtier.staging import Staging
from kvtier.stats import Stats
from kvtier.transfer import Demote, Finished, Flush, Forget, Promote, Remember, Transfer

MOVES_MAX = 1024  # reads and writes that begin no more while so much is under way; a tier takes more


class Lower:
    def __init__(self, ram: Ram, extents: Extents, budget: Budget, stats: Stats, link: Link) -> None:
        self._ram = ram
        self.extents = extents
        self.epochs: dict[int, int] = {}  # the present epoch of each namespace, by its number
        self.demotions = Demotions(ram, extents, budget, self.epochs, stats)
        self.staging = Staging(ram, extents, self.epochs, stats, link)
        self._stats = stats
        self._tickets = itertools.count(1)
        self._under_way: dict[int, Transfer] = {}
        self._remember: dict[bytes, tuple[int, int]] = {}  # digest -> number, epoch; not yet ordered
        self._forget: list[tuple[int, int]] = []  # reclaimed extents; not yet ordered
        self._flush_of: dict[int, int] = {}  # ticket -> flush
        self.flushed: list[tuple[int, bool]] = []  # flushes that are over; whether everything survives a crash now

    def remember(self, digest: bytes, number: int, epoch: int) -> None:
        """Keys of this namespace are made with this epoch from now on."""
        self.epochs[number] = epoch
        self._remember[digest] = (number, epoch)

    def transfers(self, now: float, writable: bool) -> list[Transfer]:
        """What is to be started now. Reads first."""
        orders: list[Transfer] = list(self._drain(lambda ticket: self.staging.next(ticket, now)))
        if writable:
            orders += self._writes(now)
        return orders

    def _writes(self, now: float) -> Iterator[Transfer]:
        for digest, (number, epoch) in self._remember.items():
            yield self._order(Remember(next(self._tickets), digest, number, epoch))
        self._remember.clear()
        while self.extents.is_short() and (reclaimed := self.extents.reclaim()) is not None:
            first, end, keys = reclaimed
            self._forget.append((first, end))
            self._stats.add("forgotten_blocks", len(keys))
            self.demotions.forgotten(keys)
            for key in keys:
                if key not in self._ram.index:
                    self._ram.ghosts.add(key, "its room on the drives was needed")
        for first, end in self._forget:
            yield self._order(Forget(next(self._tickets), first, end))
        self._forget.clear()
        yield from self._drain(lambda ticket: self.demotions.next(ticket, now))
        if self.demotions.is_awaited and any(isinstance(order, Remember) for order in self._under_way.values()):
            return  # should it fail, blocks would be durable of a namespace that isn't, which is nothing
        for flush in self.demotions.awaited():
            order = Flush(next(self._tickets))
            self._flush_of[order.ticket] = flush
            yield self._order(order)

    def finished(self, done: Finished, now: float) -> None:
        order = self._under_way.pop(done.ticket)
        if isinstance(order, Demote):
            self.demotions.finished(order, done)
        elif isinstance(order, Promote):
            slot = self.staging.finished(order, done, now)
            if slot is not None:
                self.demotions.promoted(slot)
        elif isinstance(order, Forget):
            if done.fault:
                self._forget.append((order.first, order.end))
            else:
                self.extents.freed(order.first)
        elif isinstance(order, Remember):
            if done.fault and order.epoch == self.epochs[order.namespace]:  # else the tier was told a newer one since
                self._remember[order.digest] = (order.namespace, order.epoch)
        else:
            self.flushed.append((self._flush_of.pop(order.ticket), not done.fault))

    def snapshot(self, now: float) -> dict[str, object]:
        """As JSON values: bytes, counts, bytes per day."""
        return {
            "capacity_bytes": self.extents.capacity,
            "used_bytes": self.extents.used_bytes,
            "blocks": len(self.extents),
            "writing_bytes": self.demotions.writing_bytes,
            "reading_bytes": self.staging.reading_bytes,
            "candidates": self.demotions.waiting,
            "waiting_lookups": len(self.staging.waiting),
            **self.demotions.budget.snapshot(now),
        }

    @property
    def is_idle(self) -> bool:
        """Nothing is under way and nothing waits."""
        return not (self._under_way or self.demotions.waiting or self._remember or self._forget)

    def _drain(self, following: Callable[[int], Transfer | None]) -> Iterator[Transfer]:
        while len(self._under_way) < MOVES_MAX:
            order = following(next(self._tickets))
            if order is None:
                return
            yield self._order(order)

    def _order(self, order: Transfer) -> Transfer:
        self._under_way[order.ticket] = order
        return order
