"""BlockStore: the one state machine of the daemon. Pure: events in, actions out; it never sees a byte of a block.

    event                     what it does                                       what comes back
    join, leave               an engine begins, is over                          its epoch
    lookup, release           a lease on what is here                            slots, one a key
    lends                     (after any event)                                  slots to lend, by engine
    commit, give_back         a lent slot becomes a block, or is free again
    touch                     these were used just now
    reset                     nothing of this namespace is served again

A slot is always in exactly one of these places, which the simulator checks after every step:

          lend                      commit                    drop, nothing pins it
    free ------> lent (one engine) ------> placement (Index) ----------------------> free
      ^           |                            | drop while leased                    ^
      |-----------'                            '-----> dropped, pinned ---------------'
       give_back, leave                                          release, leave

Who may write a slot: the engine that it is lent to. So a slot comes back from an engine only when all its processes
are gone or have said that no copy of theirs runs: `leave` is the caller's word for that. A deadline is not a
cancellation, and a lease has none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from kvtier.arena import Slots
from kvtier.block import ABSENT, BlockKey, slot_bytes_for
from kvtier.errors import OrderError, ProtocolError
from kvtier.index import Index
from kvtier.policy import Lru
from kvtier.stats import REPORTED, Stats

EVICT_TRIES_MAX = 512  # blocks looked at to make room for one slot; leased ones and foreign slabs are passed over
LEASES_MAX = 4096  # open leases of one engine


@dataclass
class _Engine:
    namespace: int
    epoch: int
    slot_bytes: int
    block_tokens: int
    lend_target: int
    joined_at: float
    lent: set[int] = field(default_factory=set)
    leases: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class _Namespace:
    number: int
    epoch: int = 0


class BlockStore:
    def __init__(self, capacity: int, *, lend_share: float, lease_share: float) -> None:
        """`capacity` bytes of arena; an engine is lent at most `lend_share` of it; leases pin at most `lease_share`."""
        self.slots = Slots(capacity)
        self.index = Index(self.slots.units)
        self.lru = Lru(self.slots.units)
        self.stats = Stats()
        self.leased_bytes = 0
        self._lend_bytes_max = int(capacity * lend_share)
        self._leased_bytes_max = int(capacity * lease_share)
        self._engines: dict[str, _Engine] = {}
        self._namespaces: dict[bytes, _Namespace] = {}
        self._hungry: set[str] = set()

    # --- engines ---------------------------------------------------------------------------------------------

    def join(
        self, engine: str, namespace: bytes, block_bytes: int, block_tokens: int, lend: int, now: float
    ) -> tuple[int, int]:
        """A new engine. `lend`: how many slots it would like to hold. Returns its namespace's epoch and the number of
        slots that it will be lent at most."""
        if engine in self._engines:
            raise OrderError(f"engine {engine} has joined already; its former processes must be gone first")
        size = slot_bytes_for(block_bytes)
        if size > self.slots.slab_bytes:
            raise ProtocolError(
                "too_large",
                f"a block of {block_bytes} bytes does not fit a slab of {self.slots.slab_bytes}; raise cpu.capacity",
            )
        known = self._namespaces.setdefault(namespace, _Namespace(number=len(self._namespaces)))
        target = max(1, min(lend, self._lend_bytes_max // size))
        self._engines[engine] = _Engine(known.number, known.epoch, size, block_tokens, target, now)
        self._hungry.add(engine)
        return known.epoch, target

    def leave(self, engine: str) -> None:
        """The engine is over and none of its copies runs: everything it held comes back."""
        gone = self._engines.pop(engine)
        self._hungry.discard(engine)
        for slots in gone.leases.values():
            self._unpin(slots, gone.slot_bytes)
        for slot in gone.lent:
            self.slots.give(slot)
        self.stats.add("engines_gone")

    def reset(self, engine: str, namespace: bytes) -> None:
        """The engine's KV means something else from now on. Its namespace gets a new epoch: engines that join later
        have other keys, and everything saved so far is dropped. The engine itself goes on under keys of its own."""
        mine = self._engines[engine]
        self._namespaces[namespace].epoch += 1
        dropped = self.index.of_namespace(mine.namespace).tolist()
        for slot in dropped:
            self._drop(slot)
        self.stats.add("reset_blocks", len(dropped))

    # --- slots -----------------------------------------------------------------------------------------------

    def lends(self) -> list[tuple[str, list[int]]]:
        """Slots for every engine that holds less than half of what it may. They are its own from now on."""
        given = []
        for name in sorted(self._hungry):
            engine = self._engines[name]
            slots: list[int] = []
            while len(engine.lent) < engine.lend_target and (slot := self._take(engine.slot_bytes)) is not None:
                engine.lent.add(slot)
                slots.append(slot)
            if len(engine.lent) == engine.lend_target:
                self._hungry.discard(name)
            if slots:
                given.append((name, slots))
        return given

    def commit(self, engine: str, keys: list[BlockKey], slots: np.ndarray) -> None:
        """The engine has filled these lent slots: they are blocks now. Keys in prefix order."""
        mine = self._engines[engine]
        numbers = slots.tolist()
        self._require_lent(mine, numbers)
        saved = []
        for key, slot in zip(keys, numbers):
            mine.lent.discard(slot)
            if key in self.index:
                self.slots.give(slot)
                continue
            self.index.add(key, slot, mine.namespace)
            self.lru.add(slot)
            saved.append(slot)
        if saved:
            self.lru.touch(np.array(saved))
        self.stats.add("saved_blocks", len(saved))
        self.stats.add("saved_bytes", len(saved) * mine.slot_bytes)
        self.stats.add("known_blocks", len(numbers) - len(saved))
        self._mark_hungry(engine, mine)

    def give_back(self, engine: str, slots: np.ndarray) -> None:
        """The engine doesn't use these lent slots and no copy into them runs."""
        mine = self._engines[engine]
        numbers = slots.tolist()
        self._require_lent(mine, numbers)
        for slot in numbers:
            mine.lent.discard(slot)
            self.slots.give(slot)
        self._mark_hungry(engine, mine)

    # --- leases ----------------------------------------------------------------------------------------------

    def lookup(self, engine: str, lease: int, keys: list[BlockKey]) -> np.ndarray:
        """uint32[n]: the slot of each key, ABSENT where it isn't here. What is found stays where it is until the lease
        ends."""
        mine = self._engines[engine]
        slots = self.index.find(keys)
        here = slots[slots != ABSENT]
        self.stats.add("lookups")
        self.stats.add("lookup_keys", len(keys))
        self.stats.add("found_keys", len(here))
        if not len(here):
            return slots
        self.lru.touch(here)
        if lease in mine.leases:
            raise OrderError(f"lease {lease} is open already")
        if len(mine.leases) >= LEASES_MAX:
            raise ProtocolError("too_many", f"an engine may hold {LEASES_MAX} leases")
        room = max(0, (self._leased_bytes_max - self.leased_bytes) // mine.slot_bytes)
        if room < len(here):
            self.stats.add("refused_leases", len(here) - room)
            here = here[:room]
            slots[np.flatnonzero(slots != ABSENT)[room:]] = ABSENT
        mine.leases[lease] = here
        self.index.pin(here)
        self.leased_bytes += len(here) * mine.slot_bytes
        return slots

    def release(self, engine: str, lease: int, loaded: int) -> None:
        """The lease is over; `loaded` of its blocks were loaded. A lease that found nothing was never open."""
        mine = self._engines[engine]
        slots = mine.leases.pop(lease, None)
        if slots is None:
            return
        loaded = min(loaded, len(slots))
        self.stats.add("loaded_blocks", loaded)
        self.stats.add("loaded_tokens", loaded * mine.block_tokens)
        self.stats.add("loaded_bytes", loaded * mine.slot_bytes)
        self._unpin(slots, mine.slot_bytes)

    def touch(self, keys: list[BlockKey]) -> None:
        """Used just now; keys in prefix order, so that a conversation loses its tail first."""
        slots = self.index.find(keys)
        self.lru.touch(slots[slots != ABSENT])

    # --- what there is ---------------------------------------------------------------------------------------

    def report(self, counts: Mapping[str, int]) -> None:
        """What a connector counted since its last report."""
        for name, n in counts.items():
            if name in REPORTED and n > 0:
                self.stats.add(name, n)

    def snapshot(self, now: float) -> dict[str, object]:
        """Everything tier-stats shows, as JSON values. Bytes, seconds, counts."""
        engines = [
            {
                "engine": name,
                "lent_slots": len(e.lent),
                "lend_target": e.lend_target,
                "leases": len(e.leases),
                "leased_blocks": sum(map(len, e.leases.values())),
                "slot_bytes": e.slot_bytes,
                "block_tokens": e.block_tokens,
                "connected_s": round(now - e.joined_at, 3),
            }
            for name, e in sorted(self._engines.items())
        ]
        lent_bytes = sum(len(e.lent) * e.slot_bytes for e in self._engines.values())
        cpu = {
            "capacity_bytes": self.slots.capacity,
            "used_bytes": self.slots.taken_bytes,
            "lent_bytes": lent_bytes,
            "leased_bytes": self.leased_bytes,
            "blocks": len(self.index),
            "hit_tokens": self.stats["loaded_tokens"],
        }
        return {"tiers": {"cpu": cpu}, "engines": engines, "counters": self.stats.snapshot()}

    # --- how -------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> int | None:
        """A slot of this size, evicting what was used least recently."""
        slot = self.slots.take(size)
        while slot is None:
            victim = self.lru.oldest(lambda candidate: self._may_go(candidate, size), EVICT_TRIES_MAX)
            if victim is None:
                return None
            if self.slots.size_of(victim) == size:
                gone: Iterable[int] = [victim]
            else:  # another size: its whole slab goes, so that it can be cut anew
                gone = [other for other in self.slots.slots_of(self.slots.slab_of(victim)) if self.index.holds(other)]
            for other in gone:
                self._drop(other)
                self.stats.add("evicted_blocks")
            slot = self.slots.take(size)
        return slot

    def _may_go(self, slot: int, size: int) -> bool:
        if self.slots.size_of(slot) == size:
            return not self.index.is_pinned(slot)
        others = self.slots.slots_of(self.slots.slab_of(slot))
        return all(self.slots.is_free(o) or (self.index.holds(o) and not self.index.is_pinned(o)) for o in others)

    def _drop(self, slot: int) -> None:
        self.lru.remove(slot)
        if self.index.drop(slot):
            self.slots.give(slot)

    def _unpin(self, slots: np.ndarray, slot_bytes: int) -> None:
        self.leased_bytes -= len(slots) * slot_bytes
        for slot in self.index.unpin(slots):
            self.slots.give(slot)

    def _mark_hungry(self, name: str, engine: _Engine) -> None:
        if len(engine.lent) * 2 < engine.lend_target:
            self._hungry.add(name)

    def _require_lent(self, engine: _Engine, slots: list[int]) -> None:
        if len(set(slots)) != len(slots) or not engine.lent.issuperset(slots):
            raise ProtocolError("bad_slot", "a slot that is not lent to this engine")
