"""What the store must answer and what it must be: the same machine, written the plainest way.

Lists, dicts and linear searches instead of columns, heaps and counters; two implementations that have so little in
common hardly share a bug. The store is free in two things: which of several free slots it lends, so `lends` is told what
was lent, and judges it; and which block goes first, so that is overheard, and judged (choices.py, charges.py). What
follows from sessions: expected_sessions.py.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtier.arena import slab_bytes_for
from kvtier.block import ABSENT, BELOW, SLOT_UNIT, BlockKey, slot_bytes_for
from kvtier.decision import Ask

from .charges import Charge
from .choices import Choice
from .expected_room import Room

if TYPE_CHECKING:
    from .expected_below import ExpectedBelow
    from .expected_decisions import ExpectedDecisions
    from .expected_sessions import ExpectedSessions


@dataclass
class Joined:
    namespace: bytes
    size: int
    wish: int
    wish_max: int
    block_tokens: int
    is_chain: bool
    hungry: bool = True


class Expected(Room):
    def __init__(
        self,
        capacity: int,
        lend_share: float,
        lease_share: float,
        decisions: ExpectedDecisions,
        choices: deque[Choice],
        charges: deque[Charge],
        is_lru: bool,
    ) -> None:
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
        self.unwiped: set[int] = set()  # to be overwritten, and then free
        self.staged: set[int] = set()  # being read from a drive
        self.secret: set[int] = set()  # of these, those that are to be wiped when they come back
        self.befores: dict[int, BlockKey] = {}  # slot of a block -> the block before it; empty where there is none
        self.choices, self.charges, self.is_lru = choices, charges, is_lru
        self.lost = 0  # blocks that went for other reasons than room and resets
        self.lags = False  # something may be had that the store sees with its next tick
        self.pins_by_writes: Counter[int] = Counter()
        self.below: ExpectedBelow | None = None
        self.sessions: ExpectedSessions
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

    def leave(self, engine: str, now: float) -> None:
        self.sessions.left(engine, now)
        if self.below is not None:
            self.below.leaving(engine)
        self.decisions.leaving(engine)
        self.decisions.leave(engine)
        del self.engines[engine]
        self._come_back([slot for slot, name in self.lent.items() if name == engine])
        self.leases = {lease: slots for lease, slots in self.leases.items() if lease[0] != engine}
        self.free_what_nobody_holds()
        for other in self.engines:
            self._ask_for_more(other)

    def reset(self, engine: str) -> None:
        namespace = self.engines[engine].namespace
        self.resets[namespace] += 1
        self.lags = True  # what was pinned went too
        self.sessions.reset(namespace)
        self._drop([slot for slot, block in self.blocks.items() if block[1] == namespace])
        if self.below is not None:
            self.below.reset(namespace)

    def lookup(self, engine: str, lease: int, keys: list[BlockKey], skip: int, ask: Ask, now: float) -> list[int] | None:
        mine, asker = self.engines[engine], (engine, lease)
        slot_of = {key: slot for slot, (key, _) in self.blocks.items()}
        found = [slot_of.get(key, ABSENT) for key in keys]
        is_known = bool(ask.request) and not self.sessions.is_not_to_be_known(engine, ask.request)
        if is_known:
            self.use([slot for slot in found if slot != ABSENT])
        wanted = []
        if self.below is not None:
            self.below.used_again.update(key for key in keys if key in slot_of)
            wanted = self.below.mark(found, keys, skip, mine.is_chain)
        if ask.request:
            resets = self.resets[mine.namespace]
            end, waits = self.decisions.decide(asker, ask, keys, found, skip, mine, resets, now)
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
            self.below.wait(asker, answer, wanted, is_known, now)
            return None
        self.decisions.answered(asker, answer, now)
        return answer

    def release(self, engine: str, lease: int) -> None:
        if self.below is not None:
            self.below.forget((engine, lease))
        self.decisions.forget((engine, lease))
        self.leases.pop((engine, lease), None)
        self.free_what_nobody_holds()

    def commit(self, engine: str, keys: list[BlockKey], slots: list[int], befores: list[BlockKey], request: str) -> None:
        saved, is_barred = [], self.sessions.is_barred(engine, request, slots)
        for key, slot, before in zip(keys, slots, befores, strict=True):
            is_closing = self.slab_of(slot) == self.closing
            is_orphan = bool(before) and not self.has(before)
            if is_closing or is_barred or is_orphan or self.slot_of(key) is not None:
                self._come_back([slot])
                continue
            del self.lent[slot]
            self.keep(slot, key, self.engines[engine].namespace, before)
            saved.append(slot)
            if self.below is not None:
                self.below.used_again.discard(key)
        self.use(saved)
        self.sessions.saved(engine, request, [self.blocks[slot][0] for slot in saved])
        self.free_what_nobody_holds()
        self._ask_for_more(engine)

    def give_back(self, engine: str, slots: list[int]) -> None:
        self.sessions.gave_back(engine, slots)
        self._come_back(slots)
        self.free_what_nobody_holds()
        self._ask_for_more(engine)

    def wiped(self, slot: int) -> None:
        self.unwiped.remove(slot)
        self.sessions.wiped(slot)
        self.free_what_nobody_holds()

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
        return {*self.lent, *self.blocks, *self.dropped, *self.staged, *self.unwiped}

    def slot_of(self, key: BlockKey) -> int | None:
        return next((slot for slot, (known, _) in self.blocks.items() if known == key), None)

    def here(self, keys: Iterable[BlockKey]) -> list[int]:
        """Slots of those that are in RAM."""
        slot_of = {key: slot for slot, (key, _) in self.blocks.items()}
        return [slot_of[key] for key in keys if key in slot_of]

    def has(self, key: BlockKey) -> bool:
        return self.slot_of(key) is not None or (self.below is not None and key in self.below.blocks)

    def tree(self, slot: int) -> list[int]:
        """This block, and all behind it."""
        found = [slot]
        for one in found:  # grows meanwhile
            key = self.blocks[one][0]
            found += [other for other, before in self.befores.items() if before == key and other not in found]
        return found

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

    def _blocks_in(self, slab: int) -> list[int]:
        return [slot for slot in self.blocks if self.slab_of(slot) == slab]

    def _held_in(self, slab: int) -> int:
        """Slots of it that are nobody's blocks, and pins."""
        taken = [slot for slot in (*self.lent, *self.dropped, *self.staged, *self.unwiped) if self.slab_of(slot) == slab]
        return len(taken) + sum(n for slot, n in self.pins.items() if self.slab_of(slot) == slab)

    def use(self, slots: list[int]) -> None:
        """Used now, in prefix order. A slot that is named twice counts where it is named last."""
        self.uses += len(slots)
        for position, slot in enumerate(slots):
            self.stamps[slot] = self.uses - position

    def keep(self, slot: int, key: BlockKey, namespace: bytes, before: BlockKey) -> None:
        self.blocks[slot], self.befores[slot] = (key, namespace), before
        self.secret.discard(slot)
        self.use([slot])

    def lost_below(self, keys: Iterable[BlockKey]) -> None:
        """These are below no more: what is here behind one that isn't here goes."""
        for key in keys:
            if self.slot_of(key) is None:
                behind = [slot for slot, before in self.befores.items() if before == key]
                self.lose(behind, "what comes before it is gone")

    def lose(self, slots: Iterable[int], cause: str, is_secret: bool = False) -> list[int]:
        """These go and all behind them; which those are."""
        gone: list[int] = []
        for slot in slots:
            gone += [one for one in (self.tree(slot) if slot in self.blocks else ()) if one not in gone]
        self.lags |= bool(gone)
        self.lost += len(gone)
        if is_secret:
            self.secret.update(gone)
        self._evict(gone, cause)
        return gone

    def _evict(self, slots: list[int], cause: str) -> None:
        gone = {one for slot in slots if slot in self.blocks for one in self.tree(slot)}
        self.decisions.ghosts.update((self.blocks[slot][0], cause) for slot in gone)
        self._drop(gone)

    def _drop(self, slots: Iterable[int]) -> None:
        for slot in slots:
            del self.blocks[slot], self.befores[slot]
            self.dropped.add(slot)
        self.free_what_nobody_holds()

    def _come_back(self, slots: list[int]) -> None:
        """They were lent, and are not any more."""
        for slot in slots:
            del self.lent[slot]
        self.let_go(slots)

    def let_go(self, slots: Iterable[int]) -> None:
        """Nobody uses them any more. What is secret is wiped first."""
        for slot in set(slots) & self.secret:
            self.secret.remove(slot)
            self.unwiped.add(slot)

    def free_what_nobody_holds(self) -> None:
        idle = {slot for slot in self.dropped if not self.pins[slot]}
        self.dropped -= idle
        self.let_go(idle)
        in_use = {self.slab_of(slot) for slot in self.taken}
        self.slab_sizes = [size if slab in in_use else 0 for slab, size in enumerate(self.slab_sizes)]
        if self.closing not in in_use:
            self.closing = None

    def _ask_for_more(self, engine: str) -> None:
        if self.held_by(engine) * 2 < self.target_of(engine):
            self.engines[engine].hungry = True
