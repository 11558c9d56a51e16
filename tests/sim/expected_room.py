"""How room is made in RAM, and who gets it; a part of Expected."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtier.block import BlockKey

from .charges import Charge
from .choices import Choice

if TYPE_CHECKING:
    from collections import Counter

    from .expected import Joined
    from .expected_sessions import ExpectedSessions


class Room:
    if TYPE_CHECKING:
        engines: dict[str, Joined]
        lent: dict[int, str]
        blocks: dict[int, tuple[BlockKey, bytes]]
        befores: dict[int, BlockKey]
        staged: set[int]
        stamps: dict[int, int]
        slab_sizes: list[int]
        closing: int | None
        closing_for: int
        sessions: ExpectedSessions
        choices: deque[Choice]
        charges: deque[Charge]
        is_lru: bool
        lags: bool
        order: list[int]
        pins: Counter[int]
        free: Callable[[int], set[int]]
        use: Callable[[list[int]], None]
        slab_of: Callable[[int], int]
        held_by: Callable[[str], int]
        target_of: Callable[[str], int]
        may_have_more: Callable[[str], bool]
        _blocks_in: Callable[[int], list[int]]
        _held_in: Callable[[int], int]
        _evict: Callable[[list[int], str], None]

    def lends(self, given: dict[str, list[int]], has_looked: bool) -> None:
        """Judges what the store lent: the right slots to the right engines, evicting what had to go and no more."""
        if self.lags and not has_looked:
            return
        self.lags = False
        hungry = [name for name, engine in self.engines.items() if engine.hungry]
        assert set(given) <= set(hungry), f"slots for {sorted(given)}, but only {hungry} may have some"
        for name in sorted(hungry, key=lambda name: (self.engines[name].size != self.closing_for, name)):
            engine = self.engines[name]
            compares, cause = True, f"its room in RAM was needed by engine {name}"
            for slot in given.get(name, ()):
                assert self.may_have_more(name), f"{name} got more than its target or all engines more than their share"
                if not self.free(engine.size):
                    assert self._make_room(engine.size, compares, cause), f"slot {slot} was lent, but nothing may go for it"
                    compares = False
                assert slot in self.free(engine.size), f"slot {slot} was lent, but it is no free slot of this size"
                self.slab_sizes[self.slab_of(slot)] = engine.size
                self.lent[slot] = name
            if self.may_have_more(name):
                had_one = self.free(engine.size) or self._make_room(engine.size, compares, cause)
                assert not had_one, f"{name} got no slot, though there was one"
            engine.hungry = self.held_by(name) < self.target_of(name)
        if self.closing is None:
            self.closing_for = 0

    def stage(self, size: int, slot: int | None) -> bool:
        """Judges what a read took: `slot`, or None when there should be none."""
        cause = "its room in RAM was needed to read others from the drives"
        if not self.free(size) and not self._make_room(size, True, cause):
            return False
        assert slot in self.free(size), f"slot {slot} is read into; free are {sorted(self.free(size))}"
        self.slab_sizes[self.slab_of(slot)] = size
        self.staged.add(slot)
        return True

    def stage_ahead(self, size: int, worth: float, slot: int | None) -> bool:
        """The same for what nobody asked for: only what is worth less goes for it."""
        if not self.free(size):
            choice = self._chosen(size)
            if choice.slot is None or choice.said >= worth:
                return False
            self._evict([choice.slot], "its room in RAM was needed for one that is expected sooner")
        assert slot in self.free(size), f"slot {slot} is read into; free are {sorted(self.free(size))}"
        self.slab_sizes[self.slab_of(slot)] = size
        self.staged.add(slot)
        return True

    # --- how -------------------------------------------------------------------------------------------------

    def _make_room(self, size: int, compares: bool, cause: str) -> bool:
        """Whether a slot of this size can be had, after what must go for it has gone, for this cause."""
        own = self._chosen(size).slot
        limit = math.inf if own is None else self.stamps[own]
        if (compares or own is None) and (best := self._best_slab(size, limit)) is not None:
            held = self._held_in(best)
            if held:
                self.closing, self.closing_for = best, size
            self._evict(self._blocks_in(best), cause)
            if not held:
                return True
        if own is None:
            return False
        charge = self.charges.popleft()
        assert charge.victim == own, f"{charge}, and slot {own} is to go"
        self._evict([own if charge.paid is None else charge.paid], cause)
        return True

    def _chosen(self, size: int) -> Choice:
        """Which block of this size the store found to go first: one that may go at all."""
        pins, kept = self.pins, self.sessions.kept
        has_children = set(self.befores.values())
        allowed = [
            slot
            for slot in self.order
            if self.slab_sizes[self.slab_of(slot)] == size
            and not pins[slot]
            and self.blocks[slot][0] not in has_children
            and self.blocks[slot][0] not in kept
        ]
        if not self.choices:
            assert not allowed, f"nobody looked for a block that goes; {allowed} could"
            return Choice(size, None, (), math.inf)
        choice = self.choices.popleft()
        assert choice.size == size, "room is made for another size"
        for slot in choice.spared:
            self.use([slot])
        assert choice.slot in allowed if allowed else choice.slot is None, f"{choice.slot} is to go, of {allowed}"
        assert not self.is_lru or choice.slot == (allowed or [None])[0], f"{choice.slot} is to go, before {allowed[:1]}"
        return choice

    def _best_slab(self, size: int, limit: float) -> int | None:
        """Of another size, its blocks on the mean older than the limit (any slab if there is none)."""
        candidates = []
        for slab, its_size in enumerate(self.slab_sizes):
            blocks, held = self._blocks_in(slab), self._held_in(slab)
            mean = sum(self.stamps[slot] for slot in blocks) / len(blocks) if blocks else math.inf
            goes = (self.closing is None or not held) and not any(
                self.blocks[slot][0] in self.sessions.kept for slot in blocks
            )
            if its_size not in (0, size) and goes and (limit == math.inf or mean < limit):
                candidates.append((held, mean, slab))
        return min(candidates)[2] if candidates else None
