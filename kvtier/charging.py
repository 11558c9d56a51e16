"""Charging: the block that a tenant loses when it has to make room among its own. Pure.

It is the same that would go first if there were no other tenants: of the first leaves of all queues the one worth least.
But policy.py keeps no queues a tenant, for mostly nobody needs them. So they are looked up when somebody does, many at a
time: one look at every slot for a batch of victims, and what changed meanwhile is passed over. What is used or saved in
that time is missed for LASTS_S at most, unless the batch ends before.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from kvtier.block import SLOT_UNIT
from kvtier.tenants import Tenants

BATCH = 1024  # leaves of one queue
LASTS_S = 1.0
NOTHING_LASTS_S = 0.05  # so long nobody looks again for a tenant that has nothing which may go
OVER_QUOTA = "its tenant had more than its quota"
LISTS_MAX = 64  # tenants, and sizes of them, that make room at one time


class Leaves(Protocol):
    """What policy.py knows of blocks. Sizes are counted in units."""

    def parent(self, slot: int) -> int | None: ...
    def units(self, slot: int) -> int: ...
    def stands(self, slot: int) -> tuple[int, float]: ...
    def queues(self, slots: np.ndarray) -> np.ndarray: ...
    def orders(self, slots: np.ndarray) -> np.ndarray: ...
    def leaves(self, slots: np.ndarray, size: int) -> np.ndarray: ...
    def is_leaf_at(self, slot: int, size: int, queue: int, order: float) -> bool: ...
    def worth_at(self, slot: int, now: float) -> float: ...
    def is_active(self, slot: int) -> bool: ...


class _Victims:
    """Of one tenant and size: the first leaves of each queue, as (order, slot); the first to go is last."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.queues: dict[int, list[tuple[float, int]]] = {}
        self.is_whole = True  # these were all that it has


class Charging:
    def __init__(
        self, tenants: Tenants, policy: Leaves, may_go: Callable[[int], bool], evict: Callable[[int, str], None]
    ) -> None:
        """`may_go`: whether nobody needs this slot where it is; `evict`: it goes, for this cause."""
        self._tenants, self._policy, self._may_go, self._evict = tenants, policy, may_go, evict
        self.lasts_s = LASTS_S
        self._found: dict[tuple[int, int], _Victims] = {}  # the one looked up last is last

    def makes_room(self, number: int, sizes: Sequence[int], blocks: int, but: int, now: float) -> bool:
        """Whether the tenant may have so many blocks more, of the first of these sizes, after what must go of it has gone:
        of that size if there is one. `but`: not this slot."""
        while not self._tenants.has_room(number, blocks * sizes[0], blocks):
            found = (self._victim(number, one, lambda slot: slot != but and self._may_go(slot), now) for one in sizes)
            victim = next((slot for slot in found if slot is not None), None)
            if victim is None:
                return False
            self._goes(victim, OVER_QUOTA)
        return True

    def is_paid(self, number: int, victim: int, size: int, cause: str, now: float) -> bool:
        """Whether a block of this tenant, which needs room, has gone instead of that in slot `victim`. What is of a request
        under way is nothing to pay with."""
        if not self._tenants.pays(number, victim, now):
            return False
        own = self._victim(number, size, self._is_idle, now)
        if own is not None:
            self._goes(own, cause)
        return own is not None

    # --- how -----------------------------------------------------------------------------------------------------

    def _is_idle(self, slot: int) -> bool:
        return self._may_go(slot) and not self._policy.is_active(slot)

    def _victim(self, number: int, size: int, acceptable: Callable[[int], bool], now: float) -> int | None:
        """The tenant's acceptable leaf of this size, in bytes, that is worth least."""
        name, units = (number, size), size // SLOT_UNIT
        mine = self._found.get(name)
        if mine is not None and 0 <= now - mine.at < self.lasts_s:
            slot = self._least(mine, number, units, acceptable, now)
            if slot is not None or (mine.is_whole and now - mine.at < NOTHING_LASTS_S):
                return slot
        mine = self._look_up(number, units, now)
        self._found.pop(name, None)
        self._found[name] = mine
        while len(self._found) > LISTS_MAX:
            del self._found[next(iter(self._found))]
        return self._least(mine, number, units, acceptable, now)

    def _goes(self, slot: int, cause: str) -> None:
        """It leaves RAM. Who stood before it may be a leaf then."""
        parent, number = self._policy.parent(slot), self._tenants.of(slot)
        units = self._policy.units(slot)
        mine = self._found.get((number, units * SLOT_UNIT))
        self._evict(slot, cause)
        if mine is None or parent is None or self._tenants.of(parent) != number:
            return
        queue, order = self._policy.stands(parent)
        if self._policy.is_leaf_at(parent, units, queue, order):
            heads = mine.queues.setdefault(queue, [])
            bisect.insort(heads, (order, parent), key=lambda one: (-one[0], -one[1]))

    def _look_up(self, number: int, units: int, now: float) -> _Victims:
        found = _Victims(now)
        slots = self._policy.leaves(self._tenants.slots_of(number), units)
        orders, queues = self._policy.orders(slots), self._policy.queues(slots)
        for queue in np.unique(queues).tolist():
            is_here = np.flatnonzero(queues == queue)
            first = is_here[np.lexsort((slots[is_here], orders[is_here]))[:BATCH]]
            found.is_whole &= len(first) == len(is_here)
            found.queues[queue] = list(zip(orders[first].tolist(), slots[first].tolist()))[::-1]
        return found

    def _least(self, mine: _Victims, number: int, units: int, acceptable: Callable[[int], bool], now: float) -> int | None:
        """Passes over what has changed since it was looked up; what isn't acceptable may be later, and is kept."""
        firsts: list[tuple[float, float, int]] = []  # worth, order, slot
        for queue, heads in mine.queues.items():
            aside = []
            while heads:
                order, slot = heads[-1]
                is_same = self._tenants.of(slot) == number and self._policy.is_leaf_at(slot, units, queue, order)
                if is_same and acceptable(slot):
                    firsts.append((self._policy.worth_at(slot, now), order, slot))
                    break
                heads.pop()
                aside += [(order, slot)] if is_same else []
            heads += aside[::-1]
        return min(firsts)[2] if firsts else None
