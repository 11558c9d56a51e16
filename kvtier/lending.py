"""Slots that are lent to engines in advance, so that they save without a round trip. Pure.

Who may write a slot: the engine that it is lent to. So a slot comes back from an engine only when all its processes are
gone or have said that no copy of theirs runs. A deadline is not a cancellation.
"""

from collections import deque
from dataclasses import dataclass, field

from kvtier.block import Kind, slot_bytes_for
from kvtier.errors import ProtocolError
from kvtier.ram import Ram

GUEST = "~"  # how the names begin of those who are no engines: visitors


@dataclass
class Engine:
    namespace: int
    kind: Kind
    wish: int  # slots it wants to hold
    wish_max: int  # what it joined with
    joined_at: float
    lent: set[int] = field(default_factory=set)
    user: int = 0  # its number in residue.py
    block_bytes: int = 0  # what of a slot it fills; 0: all of it
    owed: deque[int] = field(default_factory=deque)  # tenants whose saves took slots that were not replaced yet
    is_guest: bool = False  # a visitor: it gets slots one at a time when it asks, and no part of what engines are lent


class Lending:
    def __init__(self, ram: Ram, bytes_max: int) -> None:
        """All engines together are lent at most so many bytes, but each of them one slot. What guests hold is their own
        to bound."""
        self.engines: dict[str, Engine] = {}
        self.lent_bytes = 0
        self.can_help = False  # since the last `lends`: something by which a hungry engine may get a slot
        self._ram, self._bytes_max = ram, bytes_max
        self._hungry: set[str] = set()
        self._sharers = 0  # engines that are no guests

    def kind_of(self, block_bytes: int, block_tokens: int, is_chain: bool) -> Kind:
        """Of an engine's blocks. ProtocolError: they fit nowhere."""
        size, slab_bytes = slot_bytes_for(block_bytes), self._ram.slots.slab_bytes
        if size > slab_bytes:
            raise ProtocolError(
                "too_large", f"a block of {block_bytes} bytes does not fit a slab of {slab_bytes}; raise cpu.capacity"
            )
        return Kind(size, block_tokens, is_chain)

    def join(self, name: str, engine: Engine) -> None:
        self.engines[name] = engine
        self._sharers += not engine.is_guest
        self.mark_hungry(name)

    def leave(self, name: str) -> int:
        """Everything that was lent to it comes back: so many slots."""
        gone = self.engines.pop(name)
        self._hungry.discard(name)
        self._sharers -= not gone.is_guest
        for slot in gone.lent:
            self._ram.give(slot)
        self._count(gone, -len(gone.lent))
        for other in self.engines:  # each may hold more now
            self.mark_hungry(other)
        self.can_help = True
        return len(gone.lent)

    def snapshot(self, now: float) -> list[dict[str, object]]:
        """A row of JSON values for each engine."""
        return [
            {
                "engine": name,
                "lent_slots": len(engine.lent),
                "lend_target": self.target(engine),
                "slot_bytes": engine.kind.slot_bytes,
                "block_tokens": engine.kind.block_tokens,
                "connected_s": round(now - engine.joined_at, 3),
            }
            for name, engine in sorted(self.engines.items())
            if not engine.is_guest
        ]

    def want(self, name: str, slots: int) -> None:
        """So many it wants to hold from now on, never more than it joined with. What it holds above that is its own to
        give back."""
        mine = self.engines[name]
        mine.wish = min(slots, mine.wish_max)
        self.mark_hungry(name)

    def lends(self) -> list[tuple[str, list[int]]]:
        """Slots for every engine that holds less than half of what it may. They are its own from now on."""
        if not self.can_help:
            return []
        self.can_help = False
        given = []
        # First those for whom a slab was closed, or others would take it when it is whole again.
        first = self._ram.closing_for
        for name in sorted(self._hungry, key=lambda name: (self.engines[name].kind.slot_bytes != first, name)):
            engine = self.engines[name]
            if slots := self._top_up(name, engine):
                given.append((name, slots))
            if len(engine.lent) >= self.target(engine):
                self._hungry.discard(name)
        self._ram.slab_is_served()
        return given

    def take_back(self, name: str, slots: list[int]) -> None:
        """They are lent no more. ProtocolError: one of them was not."""
        engine = self.engines[name]
        self._require_lent(engine, slots)
        engine.lent.difference_update(slots)
        self._count(engine, -len(slots))

    def lend_guest(self, name: str) -> int | None:
        """One slot for a guest, now; None: there is no room for it."""
        engine = self.engines[name]
        assert engine.is_guest
        slot = next(self._ram.takes(engine.kind.slot_bytes, "for what comes from elsewhere"), None)
        if slot is not None:
            self._ram.residue.filling(slot, engine.kind.slot_bytes, engine.namespace)
            engine.lent.add(slot)
        return slot

    def owes(self, name: str, tenant: int, slots: int) -> None:
        """It has filled so many lent slots for this tenant; what it is lent for them is that tenant's to pay for."""
        engine = self.engines[name]
        engine.owed.extend([tenant] * slots)
        while len(engine.owed) > engine.wish_max:
            engine.owed.popleft()

    def target(self, engine: Engine) -> int:
        """How many slots it may hold: its wish, within an equal part of what may be lent."""
        return min(engine.wish, max(1, self._bytes_max // max(1, self._sharers) // engine.kind.slot_bytes))

    def mark_hungry(self, name: str) -> None:
        """If it holds less than half of what it may."""
        self.can_help = True
        engine = self.engines[name]
        if len(engine.lent) * 2 < self.target(engine):
            self._hungry.add(name)

    # --- how -----------------------------------------------------------------------------------------------------

    def _count(self, engine: Engine, slots: int) -> None:
        if not engine.is_guest:
            self.lent_bytes += slots * engine.kind.slot_bytes

    def _may_lend(self, engine: Engine) -> bool:
        """Those who were here before may hold more than their part; until they used it, a newcomer has one slot."""
        within_all = self.lent_bytes + engine.kind.slot_bytes <= self._bytes_max
        return len(engine.lent) < self.target(engine) and (within_all or not engine.lent)

    def _top_up(self, name: str, engine: Engine) -> list[int]:
        slots: list[int] = []
        size, wanted = engine.kind.slot_bytes, self.target(engine) - len(engine.lent)
        taken = self._ram.takes(size, f"by engine {name}", engine.user, wanted, engine.owed)
        while self._may_lend(engine) and (slot := next(taken, None)) is not None:
            self._ram.lent(slot, size, engine.user, engine.block_bytes or size)
            engine.lent.add(slot)
            self.lent_bytes += size
            slots.append(slot)
        return slots

    def _require_lent(self, engine: Engine, slots: list[int]) -> None:
        if len(set(slots)) != len(slots) or not engine.lent.issuperset(slots):
            raise ProtocolError("bad_slot", "a slot that is not lent to this engine")
