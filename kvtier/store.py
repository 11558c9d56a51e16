"""BlockStore: the one state machine of the daemon. Pure: events in, actions out; it never sees a byte of a block.

    event                     what it does                                       what comes back
    join, leave               an engine begins, is over                          its epoch
    want, leaving             it wants more or fewer slots lent; none any more
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

A slab of which slots are lent or dropped and pinned can't be cut to another size. Where a size needs it, it is closing:
it holds no placement, and a slot that would become free in it, or a placement in it, is shut instead. The slab is whole
again when all its slots are shut.

    lent ---- give_back, leave, commit (the block is not kept) ----.
    dropped, pinned ---- release, leave ---------------------------+--> shut ---- the last one ----> slab not assigned
    free ---- its slab is closed ----------------------------------'

Who may write a slot: the engine that it is lent to. So a slot comes back from an engine only when all its processes
are gone or have said that no copy of theirs runs: `leave` is the caller's word for that. A deadline is not a
cancellation, and a lease has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kvtier.arena import Slots
from kvtier.block import ABSENT, SLOT_UNIT, slot_bytes_for, unpack_keys
from kvtier.errors import OrderError, ProtocolError
from kvtier.index import Index, Table
from kvtier.policy import Lru
from kvtier.stats import REPORTED, Stats

LEASES_MAX = 4096  # open leases of one engine


@dataclass
class _Engine:
    namespace: int
    epoch: int
    slot_bytes: int
    block_tokens: int
    wish: int  # slots it wants to hold
    wish_max: int  # what it joined with
    joined_at: float
    lent: set[int] = field(default_factory=set)
    leases: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class _Namespace:
    number: int
    epoch: int = 0


class BlockStore:
    def __init__(self, capacity: int, *, lend_share: float, lease_share: float, table: Table | None = None) -> None:
        """`capacity` bytes of arena, of which all engines together are lent at most `lend_share`, but each of them one
        slot; leases pin at most `lease_share`."""
        self.slots = Slots(capacity)
        self.index = Index(self.slots.units, table)
        self.lru = Lru(self.slots.units, self.slots.slab_units)
        self.stats = Stats()
        self.leased_bytes = 0
        self.lent_bytes = 0
        self._lend_bytes_max = int(capacity * lend_share)
        self._leased_bytes_max = int(capacity * lease_share)
        self._engines: dict[str, _Engine] = {}
        self._namespaces: dict[bytes, _Namespace] = {}
        self._hungry: set[str] = set()
        self._can_help = False  # since the last lends(): something by which a hungry engine may get a slot
        self._closing_for = 0  # the slot size that needs the closing slab
        self._pins_in_slab = np.zeros_like(self.slots.taken_in_slab)

    # --- engines ---------------------------------------------------------------------------------------------

    def join(
        self, engine: str, namespace: bytes, block_bytes: int, block_tokens: int, lend: int, now: float
    ) -> tuple[int, int]:
        """A new engine. `lend`: how many slots it would like to hold. Returns its namespace's epoch and the number of
        slots that it may hold now; more engines make that fewer."""
        if engine in self._engines:
            raise OrderError(f"engine {engine} has joined already; its former processes must be gone first")
        size = slot_bytes_for(block_bytes)
        if size > self.slots.slab_bytes:
            raise ProtocolError(
                "too_large",
                f"a block of {block_bytes} bytes does not fit a slab of {self.slots.slab_bytes}; raise cpu.capacity",
            )
        known = self._namespaces.setdefault(namespace, _Namespace(number=len(self._namespaces)))
        wish = max(1, lend)
        mine = self._engines[engine] = _Engine(known.number, known.epoch, size, block_tokens, wish, wish, now)
        self._mark_hungry(engine)
        return known.epoch, self._target(mine)

    def want(self, engine: str, slots: int) -> None:
        """So many it wants to hold from now on, never more than it joined with. What it holds above that is its own to
        give back."""
        mine = self._engines[engine]
        mine.wish = min(slots, mine.wish_max)
        self._mark_hungry(engine)

    def leaving(self, engine: str) -> None:
        """Nobody is there who could use another slot; its copies may still run, so what it holds stays its own."""
        mine = self._engines[engine]
        mine.wish = mine.wish_max = 0

    def leave(self, engine: str) -> None:
        """The engine is over and none of its copies runs: everything it held comes back."""
        gone = self._engines.pop(engine)
        self._hungry.discard(engine)
        for slots in gone.leases.values():
            self._unpin(slots, gone.slot_bytes)
        for slot in gone.lent:
            self.slots.give(slot)
        self.lent_bytes -= len(gone.lent) * gone.slot_bytes
        for other in self._engines:  # each may hold more now
            self._mark_hungry(other)
        self._can_help = True
        self.stats.add("engines_gone")

    def reset(self, engine: str, namespace: bytes) -> None:
        """The engine's KV means something else from now on. Its namespace gets a new epoch: engines that join later
        have other keys, and everything saved so far is dropped. The engine itself goes on under keys of its own."""
        mine = self._engines[engine]
        self._namespaces[namespace].epoch += 1
        dropped = self.index.of_namespace(mine.namespace).tolist()
        for slot in dropped:
            self._drop(slot)
        # No hungry engine can get a slot by this: all that is free now could have been evicted for it before.
        self.stats.add("reset_blocks", len(dropped))

    # --- slots -----------------------------------------------------------------------------------------------

    def lends(self) -> list[tuple[str, list[int]]]:
        """Slots for every engine that holds less than half of what it may. They are its own from now on."""
        if not self._can_help:
            return []
        self._can_help = False
        given = []
        # First those for whom a slab was closed, or others would take it when it is whole again.
        for name in sorted(self._hungry, key=lambda name: (self._engines[name].slot_bytes != self._closing_for, name)):
            engine = self._engines[name]
            if slots := self._top_up(engine):
                given.append((name, slots))
            if len(engine.lent) >= self._target(engine):
                self._hungry.discard(name)
        if self.slots.closing is None:
            self._closing_for = 0
        return given

    def commit(self, engine: str, keys: bytes, slots: np.ndarray) -> None:
        """The engine has filled these lent slots: they are blocks now, but those in a closing slab. Keys in prefix
        order."""
        mine = self._engines[engine]
        numbers = slots.tolist()
        self._take_back(mine, numbers)
        saved, evicted = [], 0
        for key, slot in zip(unpack_keys(keys), numbers):
            is_new = key not in self.index
            if is_new and not self.slots.is_closing(slot):
                self.index.add(key, slot, mine.namespace)
                self.lru.add(slot, mine.slot_bytes // SLOT_UNIT)
                saved.append(slot)
            else:
                self.slots.give(slot)
                evicted += is_new
        if saved:
            self.lru.touch(np.array(saved))
        new = len(saved) + evicted
        self.stats.add("saved_blocks", new)
        self.stats.add("saved_bytes", new * mine.slot_bytes)
        self.stats.add("evicted_blocks", evicted)
        self.stats.add("known_blocks", len(numbers) - new)
        self._mark_hungry(engine)

    def give_back(self, engine: str, slots: np.ndarray) -> None:
        """The engine doesn't use these lent slots and no copy into them runs."""
        numbers = slots.tolist()
        self._take_back(self._engines[engine], numbers)
        for slot in numbers:
            self.slots.give(slot)
        self._mark_hungry(engine)

    # --- leases ----------------------------------------------------------------------------------------------

    def lookup(self, engine: str, lease: int, keys: bytes) -> np.ndarray:
        """uint32[n]: the slot of each packed key, ABSENT where it isn't here. What is found stays where it is until the
        lease ends."""
        mine = self._engines[engine]
        slots = self.index.find(keys)
        here = slots[slots != ABSENT].astype(np.intp)
        self.stats.add("lookups")
        self.stats.add("lookup_keys", len(slots))
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
        np.add.at(self._pins_in_slab, here // self.slots.slab_units, 1)
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
        self._can_help = True

    def touch(self, keys: bytes) -> None:
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
                "lend_target": self._target(e),
                "leases": len(e.leases),
                "leased_blocks": sum(map(len, e.leases.values())),
                "slot_bytes": e.slot_bytes,
                "block_tokens": e.block_tokens,
                "connected_s": round(now - e.joined_at, 3),
            }
            for name, e in sorted(self._engines.items())
        ]
        cpu = {
            "capacity_bytes": self.slots.capacity,
            "used_bytes": self.slots.taken_bytes,
            "lent_bytes": self.lent_bytes,
            "leased_bytes": self.leased_bytes,
            "blocks": len(self.index),
            "hit_tokens": self.stats["loaded_tokens"],
        }
        return {"tiers": {"cpu": cpu}, "engines": engines, "counters": self.stats.snapshot()}

    # --- how: who gets slots -----------------------------------------------------------------------------------

    def _target(self, engine: _Engine) -> int:
        """How many slots it may hold: its wish, within an equal part of what may be lent."""
        return min(engine.wish, max(1, self._lend_bytes_max // len(self._engines) // engine.slot_bytes))

    def _may_lend(self, engine: _Engine) -> bool:
        """Those who were here before may hold more than their part; until they used it, a newcomer has one slot."""
        within_all = self.lent_bytes + engine.slot_bytes <= self._lend_bytes_max
        return len(engine.lent) < self._target(engine) and (within_all or not engine.lent)

    def _mark_hungry(self, name: str) -> None:
        self._can_help = True
        engine = self._engines[name]
        if len(engine.lent) * 2 < self._target(engine):
            self._hungry.add(name)

    def _top_up(self, engine: _Engine) -> list[int]:
        slots: list[int] = []
        compares = True  # once is enough: it costs a look at every slab
        while self._may_lend(engine):
            slot = self.slots.take(engine.slot_bytes)
            if slot is None:
                if not self._make_room(engine.slot_bytes, compares):
                    break
                compares = False
                continue
            engine.lent.add(slot)
            self.lent_bytes += engine.slot_bytes
            slots.append(slot)
        return slots

    def _take_back(self, engine: _Engine, slots: list[int]) -> None:
        """Lent no more."""
        self._require_lent(engine, slots)
        engine.lent.difference_update(slots)
        self.lent_bytes -= len(slots) * engine.slot_bytes

    def _require_lent(self, engine: _Engine, slots: list[int]) -> None:
        if len(set(slots)) != len(slots) or not engine.lent.issuperset(slots):
            raise ProtocolError("bad_slot", "a slot that is not lent to this engine")

    # --- how: what must go -------------------------------------------------------------------------------------

    def _make_room(self, size: int, compares: bool) -> bool:
        """Whether a slot of this size can be taken now, for what was used least recently has gone.

        That is this size's oldest block; or a whole slab of another size, when its blocks are on the mean older than
        that, or there is no such block. The mean, because neither should one old block doom a slab of young ones, nor
        one young block save a slab of old ones. So each size has as many slabs as make its oldest blocks as old as
        those of the others.
        """
        own = self.lru.oldest(size // SLOT_UNIT, lambda slot: not self.index.is_pinned(slot))
        if (own is None or compares) and self._clear_slab(size, own):
            return True
        if own is not None:
            self._evict(own)
        return own is not None

    def _clear_slab(self, size: int, own: int | None) -> bool:
        """Whether a slab of another size is whole now. If slots of the best one are lent or pinned it will be later:
        it is closed. Only one is closing at a time, for what its engines save there meanwhile is lost."""
        sizes = self.slots.size_of_slab
        slabs = np.flatnonzero((sizes != size) & (sizes != 0))
        held = self.slots.taken_in_slab - self.lru.blocks_in_slab + self._pins_in_slab
        means = self.lru.mean_stamps()
        if self.slots.closing is not None:
            slabs = slabs[held[slabs] == 0]
        if own is not None:
            slabs = slabs[means[slabs] < self.lru.stamp(own)]
        if not len(slabs):
            return False
        slab = int(slabs[np.lexsort((means[slabs], held[slabs]))[0]])  # the fewest held, the oldest of those
        if held[slab]:
            self.slots.close(slab)
            self._closing_for = size
        for slot in self.slots.slots_of(slab):
            if self.index.holds(slot):
                self._evict(slot)
        return not held[slab]

    def _evict(self, slot: int) -> None:
        self._drop(slot)
        self.stats.add("evicted_blocks")

    def _drop(self, slot: int) -> None:
        self.lru.remove(slot)
        if self.index.drop(slot):
            self.slots.give(slot)

    def _unpin(self, slots: np.ndarray, slot_bytes: int) -> None:
        self.leased_bytes -= len(slots) * slot_bytes
        np.subtract.at(self._pins_in_slab, slots // self.slots.slab_units, 1)
        for slot in self.index.unpin(slots):
            self.slots.give(slot)
        self.lru.restore(slots)
