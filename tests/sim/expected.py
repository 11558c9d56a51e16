"""What the store must answer and what it must be: the same machine, written the plainest way.

Lists, dicts and linear searches instead of columns, heaps and counters; two implementations that have so little in
common hardly share a bug. The store is free in one thing only, which of several free slots it lends; so `lends` is told
what was lent, and judges it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtier.arena import slab_bytes_for
from kvtier.block import ABSENT, BELOW, SLOT_UNIT, BlockKey, slot_bytes_for
from kvtier.decision import Ask

if TYPE_CHECKING:
    from .expected_below import ExpectedBelow
    from .expected_decisions import ExpectedDecisions


@dataclass
class Joined:
    namespace: bytes
    size: int
    wish: int
    wish_max: int
    block_tokens: int
    is_chain: bool
    hungry: bool = True


class Expected:
    def __init__(self, capacity: int, lend_share: float, lease_share: float, decisions: ExpectedDecisions) -> None:
        self.slab_bytes = slab_bytes_for(capacity)
        self.slab_sizes = [0] * (capacity // self.slab_bytes)  # 0: not assigned
        self.lend_max = int(capacity * lend_share)
        self.lease_max = int(capacity * lease_share)
        self.engines: dict[str, Joined] = {}
        self.resets: Counter[bytes] = Counter()
        # A taken slot is in exactly one of these:
        self.lent: dict[int, str] = {}
        self.blocks: dict[int, tuple[BlockKey, bytes]] = {}  # key, namespace
        self.dropped: set[int] = set()  # while leased, or being written to a drive
        self.staged: set[int] = set()  # being read from a drive
        self.pins_by_writes: Counter[int] = Counter()
        self.below: ExpectedBelow | None = None
        self.decisions = decisions
        self.stamps: dict[int, int] = {}  # slot of a block -> when it was used; the lowest is to go first
        self.uses = 0
        self.closing: int | None = None  # a slab
        self.closing_for = 0  # slot size
        self.leases: dict[tuple[str, int], list[int]] = {}

    # --- events, as BlockStore has them ----------------------------------------------------------------------

    def join(
        self, engine: str, namespace: bytes, block_bytes: int, block_tokens: int, lend: int, is_chain: bool
    ) -> tuple[int, int]:
        size = slot_bytes_for(block_bytes)
        self.engines[engine] = Joined(namespace, size, max(1, lend), max(1, lend), block_tokens, is_chain)
        if self.below is not None:
            self.below.knows(namespace)
        return self.resets[namespace], self.target_of(engine)

    def want(self, engine: str, slots: int) -> None:
        self.engines[engine].wish = min(slots, self.engines[engine].wish_max)
        self._ask_for_more(engine)

    def leaving(self, engine: str) -> None:
        self.engines[engine].wish = self.engines[engine].wish_max = 0
        self.decisions.leaving(engine)
        if self.below is not None:
            self.below.leaving(engine)

    def leave(self, engine: str) -> None:
        if self.below is not None:
            self.below.leaving(engine)
        self.decisions.leaving(engine)
        self.decisions.leave(engine)
        del self.engines[engine]
        self.lent = {slot: name for slot, name in self.lent.items() if name != engine}
        self.leases = {lease: slots for lease, slots in self.leases.items() if lease[0] != engine}
        self.free_what_nobody_holds()
        for other in self.engines:
            self._ask_for_more(other)

    def reset(self, engine: str) -> None:
        namespace = self.engines[engine].namespace
        self.resets[namespace] += 1
        self._drop([slot for slot, block in self.blocks.items() if block[1] == namespace])
        if self.below is not None:
            self.below.reset(namespace)

    def lookup(self, engine: str, lease: int, keys: list[BlockKey], skip: int, ask: Ask, now: float) -> list[int] | None:
        mine, asker = self.engines[engine], (engine, lease)
        slot_of = {key: slot for slot, (key, _) in self.blocks.items()}
        found = [slot_of.get(key, ABSENT) for key in keys]
        self.use([slot for slot in found if slot != ABSENT])
        wanted = []
        if self.below is not None:
            self.below.used_again.update(key for key in keys if key in slot_of)
            wanted = self.below.mark(found, keys, skip, mine.is_chain)
        if ask.request:
            end, waits = self.decisions.decide(asker, ask, keys, found, skip, mine, now)
            found = [slot if slot == ABSENT or i < end else BELOW for i, slot in enumerate(found)]
            wanted = wanted if waits else []
        here = [slot for slot in found if slot < BELOW]
        room = max(0, (self.lease_max - self.leased_bytes) // mine.size)
        if here or wanted:
            self.leases[asker] = here[:room]
        offered = iter(here[:room])
        answer = [slot if slot >= BELOW else next(offered, BELOW) for slot in found]
        wanted = wanted[: max(0, room - len(here))]
        if wanted and self.below is not None:
            self.below.wait(asker, answer, wanted, now)
            return None
        self.decisions.answered(asker, answer, now)
        return answer

    def release(self, engine: str, lease: int) -> None:
        if self.below is not None:
            self.below.forget((engine, lease))
        self.decisions.forget((engine, lease))
        self.leases.pop((engine, lease), None)
        self.free_what_nobody_holds()

    def commit(self, engine: str, keys: list[BlockKey], slots: list[int]) -> None:
        saved = []
        for key, slot in zip(keys, slots, strict=True):
            del self.lent[slot]
            is_closing = self.slab_of(slot) == self.closing
            if not is_closing and all(key != known for known, _ in self.blocks.values()):
                self.blocks[slot] = (key, self.engines[engine].namespace)
                saved.append(slot)
                if self.below is not None:
                    self.below.used_again.discard(key)
        self.uses += len(saved)
        self.use(saved)
        self.free_what_nobody_holds()
        self._ask_for_more(engine)

    def give_back(self, engine: str, slots: list[int]) -> None:
        for slot in slots:
            del self.lent[slot]
        self.free_what_nobody_holds()
        self._ask_for_more(engine)

    def touch(self, keys: list[BlockKey]) -> None:
        slot_of = {key: slot for slot, (key, _) in self.blocks.items()}
        here = [key for key in keys if key in slot_of]
        self.use([slot_of[key] for key in here])
        if self.below is not None:
            self.below.request_ended(here)

    def lends(self, given: dict[str, list[int]]) -> None:
        """Judges what the store lent: the right slots to the right engines, evicting what had to go and no more."""
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
            assert slot is None, f"slot {slot} is read into, but nothing may go for it"
            return False
        assert slot in self.free(size), f"slot {slot} is read into; free are {sorted(self.free(size))}"
        self.slab_sizes[self.slab_of(slot)] = size
        self.staged.add(slot)
        return True

    # --- what there is ---------------------------------------------------------------------------------------

    def held_by(self, engine: str) -> int:
        return sum(name == engine for name in self.lent.values())

    def target_of(self, engine: str) -> int:
        part = self.lend_max // len(self.engines) // self.engines[engine].size
        return min(self.engines[engine].wish, max(1, part))

    def may_have_more(self, engine: str) -> bool:
        lent_bytes = sum(self.engines[name].size for name in self.lent.values())
        if self.held_by(engine) >= self.target_of(engine):
            return False
        return not self.held_by(engine) or lent_bytes + self.engines[engine].size <= self.lend_max

    @property
    def order(self) -> list[int]:
        """Slots of blocks; the first is to go first."""
        return sorted(self.blocks, key=self.stamps.__getitem__)

    @property
    def pins(self) -> Counter[int]:
        return self.pins_by_writes + Counter(slot for slots in self.leases.values() for slot in slots)

    @property
    def leased_bytes(self) -> int:
        return sum(len(slots) * self.engines[engine].size for (engine, _), slots in self.leases.items())

    @property
    def taken(self) -> set[int]:
        return {*self.lent, *self.blocks, *self.dropped, *self.staged}

    def slab_of(self, slot: int) -> int:
        return slot * SLOT_UNIT // self.slab_bytes

    def slots_of(self, slab: int, size: int) -> list[int]:
        first = slab * self.slab_bytes // SLOT_UNIT
        return [first + i * size // SLOT_UNIT for i in range(self.slab_bytes // size)]

    def free(self, size: int) -> set[int]:
        """What may be taken: free slots of this size, and only when there are none, slots of unassigned slabs."""
        for wanted in (size, 0):
            slabs = [i for i, its_size in enumerate(self.slab_sizes) if its_size == wanted and i != self.closing]
            free = {slot for slab in slabs for slot in self.slots_of(slab, size)} - self.taken
            if free:
                return free
        return set()

    # --- how -------------------------------------------------------------------------------------------------

    def _make_room(self, size: int, compares: bool, cause: str) -> bool:
        """Whether a slot of this size can be had, after what must go for it has gone, for this cause."""
        pins = self.pins
        own = [slot for slot in self.order if self.slab_sizes[self.slab_of(slot)] == size and not pins[slot]]
        limit = self.stamps[own[0]] if own else math.inf
        if (compares or not own) and (best := self._best_slab(size, limit)) is not None:
            held = self._held_in(best)
            if held:
                self.closing, self.closing_for = best, size
            self._evict(self._blocks_in(best), cause)
            if not held:
                return True
        self._evict(own[:1], cause)
        return bool(own)

    def _best_slab(self, size: int, limit: float) -> int | None:
        """Of another size, its blocks on the mean older than the limit (any slab if there is none)."""
        candidates = []
        for slab, its_size in enumerate(self.slab_sizes):
            blocks, held = self._blocks_in(slab), self._held_in(slab)
            mean = sum(self.stamps[slot] for slot in blocks) / len(blocks) if blocks else math.inf
            goes = self.closing is None or not held
            if its_size not in (0, size) and goes and (limit == math.inf or mean < limit):
                candidates.append((held, mean, slab))
        return min(candidates)[2] if candidates else None

    def _blocks_in(self, slab: int) -> list[int]:
        return [slot for slot in self.blocks if self.slab_of(slot) == slab]

    def _held_in(self, slab: int) -> int:
        """Slots of it that are nobody's blocks, and pins."""
        taken = [slot for slot in (*self.lent, *self.dropped, *self.staged) if self.slab_of(slot) == slab]
        return len(taken) + sum(n for slot, n in self.pins.items() if self.slab_of(slot) == slab)

    def use(self, slots: list[int]) -> None:
        """Used now, in prefix order. A slot that is named twice counts where it is named last."""
        self.uses += len(slots)
        for position, slot in enumerate(slots):
            self.stamps[slot] = self.uses - position

    def _evict(self, slots: list[int], cause: str) -> None:
        self.decisions.ghosts.update((self.blocks[slot][0], cause) for slot in slots)
        self._drop(slots)

    def _drop(self, slots: list[int]) -> None:
        for slot in slots:
            del self.blocks[slot]
            self.dropped.add(slot)
        self.free_what_nobody_holds()

    def free_what_nobody_holds(self) -> None:
        self.dropped &= set(self.pins)
        in_use = {self.slab_of(slot) for slot in self.taken}
        self.slab_sizes = [size if slab in in_use else 0 for slab, size in enumerate(self.slab_sizes)]
        if self.closing not in in_use:
            self.closing = None

    def _ask_for_more(self, engine: str) -> None:
        if self.held_by(engine) * 2 < self.target_of(engine):
            self.engines[engine].hungry = True
