"""Who was to go, as the store's policy chose: overheard, and judged by looking at every block there is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isclose, log

import numpy as np

from kvtier.block import SLOT_UNIT
from kvtier.policy import KEPT, NONE
from kvtier.ranking import (
    ACTIVE,
    ACTIVE_WORTH,
    ANNOUNCED_CHANCE,
    ENDED,
    EXPECTED,
    EXPECTED_IN_MIN_S,
    PARKED,
    PARKED_WORTH,
    SECONDS_A_BYTE,
    SECONDS_A_BYTE_BELOW,
    Value,
)
from kvtier.returns import BINS
from kvtier.store import BlockStore

TOLERANCE = 1e-6
_WIDTHS = [*(BINS[1:] - BINS[:-1]).tolist(), float(BINS[-1])]


@dataclass(frozen=True)
class Choice:
    size: int  # bytes of the slot that was needed
    slot: int | None
    spared: tuple[int, ...]  # that got a second chance before, one after the other
    worth: float
    said: float = inf  # what the store found it to be worth, if that was asked


class Choices:
    """Listens at a store's policy. `exact`: it holds nothing of what it was worth before."""

    def __init__(self, store: BlockStore, exact: bool) -> None:
        self.made: deque[Choice] = deque()
        self._store, self._policy, self._ranking = store, store.ram.policy, store.ram.policy.ranking
        self._exact = exact
        if exact and isinstance(self._ranking, Value):
            self._ranking.refresh_s = 0.0
        self._indices: dict[tuple[int, bytes], float] = {}
        victim, again, worth_of = self._policy.victim, self._ranking.again, self._policy.worth
        spared: list[int] = []

        def heard(size: int, acceptable: Callable[[int], bool], now: float) -> int | None:
            spared.clear()
            slot = victim(size, acceptable, now)
            worth = self._judge(size, slot, now, is_first=not spared)
            self.made.append(Choice(size * SLOT_UNIT, slot, tuple(spared), worth))
            return slot

        def heard_again(slot: int, queue: int) -> int:
            other = again(slot, queue)
            if other:
                spared.append(slot)
            return other

        def heard_worth(slot: int) -> float:
            said = worth_of(slot)
            choice = self.made[-1] = replace(self.made[-1], said=said)
            is_value = self._exact and isinstance(self._ranking, Value)
            assert not is_value or isclose(said, choice.worth, rel_tol=TOLERANCE), f"{choice} is worth something else"
            return said

        self._policy.worth = heard_worth
        self._policy.victim, self._ranking.again = heard, heard_again

    def _judge(self, size: int, slot: int | None, now: float, is_first: bool) -> float:
        policy, index = self._policy, self._store.ram.index
        every = [one for one in index._slot_of.values() if policy._size[one] == size]
        parents = set(policy._parent[list(index._slot_of.values())].tolist()) - {NONE}
        leaves = [one for one in every if one not in parents and policy._queue[one] != KEPT]
        allowed = [one for one in leaves if not index.is_pinned(one)]
        if slot is None:
            assert not allowed, f"nothing may go, but {allowed} could"
            return inf
        assert slot in allowed, f"slot {slot} is to go: not a leaf, or leased, pinned, of another size"
        firsts: dict[int, int] = {}  # those that are leased too, until somebody came upon them and put them aside
        standing = [one for one in leaves if policy._queued[one] >= 0]
        for one in sorted(standing, key=lambda one: (policy._order[one], one)):
            firsts.setdefault(int(policy._queue[one]), one)
        mine = int(policy._queue[slot])
        assert firsts[mine] == slot, f"slot {slot} is to go, and {firsts[mine]} stands before it"
        if not isinstance(self._ranking, Value):
            return 0.0
        worths = {queue: self._worth(queue, one, now) for queue, one in firsts.items()}
        kinds = {queue: self._ranking.kind(queue) for queue in firsts}
        assert kinds[mine] == ENDED or ENDED not in kinds.values(), "what is ended stays while something goes that isn't"
        least = min(worths.values())
        if self._exact:
            assert worths[mine] <= least * (1 + TOLERANCE), (
                f"slot {slot}, worth {worths[mine]}, goes, and others are worth {least}"
            )
        return worths[mine]

    # --- what a block is worth, the plainest way ---------------------------------------------------------------------

    def _worth(self, queue: int, slot: int, now: float) -> float:
        ranking, policy = self._ranking, self._policy
        assert isinstance(ranking, Value)
        mine = ranking._queues[queue]
        default = SECONDS_A_BYTE_BELOW if mine.is_below else SECONDS_A_BYTE
        weight = ranking._weights.get((mine.namespace, mine.is_below), default)
        order, used_at = float(policy._order[slot]), float(policy._used_at[slot])
        if mine.kind == ENDED:
            return 0.0
        if mine.kind == EXPECTED:
            return ANNOUNCED_CHANCE / max(EXPECTED_IN_MIN_S, -order - now) * weight
        if mine.kind in (ACTIVE, PARKED):
            return (ACTIVE_WORTH if mine.kind == ACTIVE else PARKED_WORTH) * weight
        return self._index(int(mine.kind), now - used_at) * weight

    def _index(self, category: int, age_s: float) -> float:
        """The most returns a second of keeping, over all times to look ahead; between two bins, in between."""
        hazards = self._ranking._returns.hazard  # type: ignore[union-attr]
        row = hazards[category]
        if age_s <= BINS[1]:
            return self._index_from(row, 0)
        first = max(i for i, begin in enumerate(BINS.tolist()) if begin <= age_s * (1 + 1e-12))
        if first == len(BINS) - 1:
            return self._index_from(row, first)
        part = log(age_s / BINS[first]) / log(BINS[first + 1] / BINS[first])
        return (1 - part) * self._index_from(row, first) + part * self._index_from(row, first + 1)

    def _index_from(self, row: np.ndarray, first: int) -> float:
        name = first, row.tobytes()
        if name not in self._indices:
            stay, came, kept, best = 1.0, 0.0, 0.0, 0.0
            for hazard, width in zip(row[first:].tolist(), _WIDTHS[first:], strict=True):
                came += stay * hazard
                kept += width * stay * (1 - hazard / 2)
                stay *= 1 - hazard
                best = max(best, came / max(kept, 1e-12))
            self._indices[name] = best
        return self._indices[name]
