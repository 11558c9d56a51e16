"""BlockStore: the one state machine of the daemon. Pure: events in, actions out; it never sees a byte of a block.

    event                     what it does                                       what comes back
    join, leave               an engine begins, is over                          its epoch
    want, leaving             it wants more or fewer slots lent; none any more
    lookup, release           a lease on what is here                            slots, one a key; or later (leases.py)
    due, pace, outcome        what the engine says for decisions (decision.py)
    lends                     (after any event)                                  slots to lend, by engine
    commit, give_back         a lent slot becomes a block, or is free again
    touch                     these were used just now
    reset                     nothing of this namespace is served again
    transfers, finished       what the tier below is to do, and did              orders for it
    flush                     what is here is to survive a crash                 later: flushed

Where a slot is: ram.py. Lookups and leases, and time that passes for them: leases.py. What goes to the drives:
demotion.py. What comes back from there: staging.py.

Who may write a slot: the engine that it is lent to. So a slot comes back from an engine only when all its processes
are gone or have said that no copy of theirs runs: `leave` is the caller's word for that. A deadline is not a
cancellation, and a lease has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtier.admission import Budget
from kvtier.block import ABSENT, slot_bytes_for, unpack_keys
from kvtier.deciding import Decisions
from kvtier.decision import Ask
from kvtier.errors import OrderError, ProtocolError
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.index import Table
from kvtier.leases import Kind, Leases
from kvtier.lower import Lower
from kvtier.ram import Ram
from kvtier.stats import REPORTED, Stats
from kvtier.transfer import Finished, Transfer

NAMESPACES_MAX = 4096
DRIVE_LATENCY_S, DRIVE_BYTES_PER_S = 0.002, 2e9  # until they were measured
NOBODY = Ask()


@dataclass
class _Engine:
    namespace: int
    kind: Kind
    wish: int  # slots it wants to hold
    wish_max: int  # what it joined with
    joined_at: float
    lent: set[int] = field(default_factory=set)


@dataclass
class _Namespace:
    number: int
    epoch: int = 0


class BlockStore:
    def __init__(self, capacity: int, *, lend_share: float, lease_share: float, table: Table | None = None) -> None:
        """`capacity` bytes of arena, of which all engines together are lent at most `lend_share`, but each of them one
        slot; leases pin at most `lease_share`."""
        self.stats = Stats()
        self.ram = Ram(capacity, self.stats, table)
        self.lower: Lower | None = None
        self.lent_bytes = 0
        self._lend_bytes_max = int(capacity * lend_share)
        self.decisions = Decisions(self.ram.ghosts, self.stats)
        self.leases = Leases(self.ram, int(capacity * lease_share), self.stats, self.decisions)
        self._engines: dict[str, _Engine] = {}
        self._namespaces: dict[bytes, _Namespace] = {}
        self._hungry: set[str] = set()
        self._can_help = False  # since the last lends(): something by which a hungry engine may get a slot

    def attach(
        self,
        extents: Extents,
        budget: Budget,
        stage_s: float,
        remembered: Mapping[bytes, tuple[int, int]],
        link: Link | None = None,
    ) -> None:
        """A tier below, before the first engine joins: what lies there, the namespaces of it, digest -> (number, epoch),
        what is known of its speed. A lookup waits at most `stage_s` for it."""
        assert not self._namespaces and self.lower is None
        link = link or Link(DRIVE_LATENCY_S, DRIVE_BYTES_PER_S)
        self.lower = Lower(self.ram, extents, budget, self.stats, link)
        self.decisions.drives = link
        self.leases.lower, self.leases.stage_s = self.lower, stage_s
        for digest, (number, epoch) in remembered.items():
            self._namespaces[digest] = _Namespace(number, epoch)
            self.lower.epochs[number] = epoch

    # --- engines ---------------------------------------------------------------------------------------------

    def join(
        self,
        engine: str,
        namespace: bytes,
        block_bytes: int,
        block_tokens: int,
        lend: int,
        now: float,
        *,
        is_chain: bool = True,
    ) -> tuple[int, int]:
        """A new engine. `lend`: how many slots it would like to hold. Returns its namespace's epoch and the number of
        slots that it may hold now; more engines make that fewer."""
        if engine in self._engines:
            raise OrderError(f"engine {engine} has joined already; its former processes must be gone first")
        size = slot_bytes_for(block_bytes)
        if size > self.ram.slots.slab_bytes:
            raise ProtocolError(
                "too_large",
                f"a block of {block_bytes} bytes does not fit a slab of {self.ram.slots.slab_bytes}; raise cpu.capacity",
            )
        known = self._namespace(namespace)
        wish = max(1, lend)
        mine = self._engines[engine] = _Engine(known.number, Kind(size, block_tokens, is_chain), wish, wish, now)
        self.decisions.join(engine, f"namespace {namespace.hex()[:12]}", now)
        self._mark_hungry(engine)
        return known.epoch, self._target(mine)

    def _namespace(self, digest: bytes) -> _Namespace:
        known = self._namespaces.get(digest)
        if known is None:
            if len(self._namespaces) >= NAMESPACES_MAX:
                raise ProtocolError("too_many", f"more than {NAMESPACES_MAX} namespaces; restart kvtierd")
            number = 1 + max((other.number for other in self._namespaces.values()), default=-1)
            known = self._namespaces[digest] = _Namespace(number)
            if self.lower is not None:
                self.lower.remember(digest, number, known.epoch)
        return known

    def want(self, engine: str, slots: int) -> None:
        """So many it wants to hold from now on, never more than it joined with. What it holds above that is its own to
        give back."""
        mine = self._engines[engine]
        mine.wish = min(slots, mine.wish_max)
        self._mark_hungry(engine)

    def leaving(self, engine: str, now: float) -> None:
        """Nobody is there who could use another slot; its copies may still run, so what it holds stays its own."""
        mine = self._engines[engine]
        mine.wish = mine.wish_max = 0
        self.leases.leaving(engine, now)

    def leave(self, engine: str, now: float) -> None:
        """The engine is over and none of its copies runs: everything it held comes back."""
        gone = self._engines.pop(engine)
        self._hungry.discard(engine)
        self.leases.leave(engine, now)
        self.decisions.leave(engine)
        for slot in gone.lent:
            self.ram.slots.give(slot)
        self.lent_bytes -= len(gone.lent) * gone.kind.slot_bytes
        for other in self._engines:  # each may hold more now
            self._mark_hungry(other)
        self._can_help = True
        self.stats.add("engines_gone")

    def reset(self, engine: str, namespace: bytes) -> None:
        """The engine's KV means something else from now on. Its namespace gets a new epoch: engines that join later
        have other keys, and everything saved so far is dropped. The engine itself goes on under keys of its own."""
        known = self._namespaces[namespace]
        known.epoch += 1
        dropped = self.ram.drop_namespace(known.number)
        # No hungry engine can get a slot by this: all that is free now could have been evicted for it before.
        self.stats.add("reset_blocks", dropped)
        if self.lower is not None:
            self.lower.remember(namespace, known.number, known.epoch)
            self.stats.add("forgotten_blocks", self.lower.extents.drop_namespace(known.number))

    # --- slots -----------------------------------------------------------------------------------------------

    def lends(self) -> list[tuple[str, list[int]]]:
        """Slots for every engine that holds less than half of what it may. They are its own from now on."""
        if not self._can_help:
            return []
        self._can_help = False
        given = []
        # First those for whom a slab was closed, or others would take it when it is whole again.
        first = self.ram.closing_for
        for name in sorted(self._hungry, key=lambda name: (self._engines[name].kind.slot_bytes != first, name)):
            engine = self._engines[name]
            if slots := self._top_up(name, engine):
                given.append((name, slots))
            if len(engine.lent) >= self._target(engine):
                self._hungry.discard(name)
        self.ram.slab_is_served()
        return given

    def commit(self, engine: str, keys: bytes, slots: np.ndarray) -> None:
        """The engine has filled these lent slots: they are blocks now, but those in a closing slab. Keys in prefix
        order."""
        mine = self._engines[engine]
        numbers = slots.tolist()
        self._take_back(mine, numbers)
        names, saved, known = unpack_keys(keys), [], []
        for i, (key, slot) in enumerate(zip(names, numbers)):
            if key in self.ram.index:
                known.append(key)
            if self.ram.keep(slot, key, mine.namespace):
                saved.append(i)
        new = len(names) - len(known)
        self.stats.add("saved_blocks", new)
        self.stats.add("saved_bytes", new * mine.kind.slot_bytes)
        self.stats.add("evicted_blocks", new - len(saved))
        self.stats.add("known_blocks", len(known))
        if saved:
            kept = slots[saved].astype(np.intp)
            self.ram.lru.touch(kept)
            if self.lower is not None:
                self.lower.demotions.saved([names[i] for i in saved], kept)
        self._mark_hungry(engine)

    def give_back(self, engine: str, slots: np.ndarray) -> None:
        """The engine doesn't use these lent slots and no copy into them runs."""
        numbers = slots.tolist()
        self._take_back(self._engines[engine], numbers)
        for slot in numbers:
            self.ram.slots.give(slot)
        self._mark_hungry(engine)

    # --- leases ----------------------------------------------------------------------------------------------

    def lookup(
        self, engine: str, lease: int, keys: bytes, skip: int = 0, now: float = 0.0, ask: Ask = NOBODY
    ) -> np.ndarray | None:
        """uint32[n]: the slot of each packed key; ABSENT where it is nowhere, BELOW where it is but isn't offered: the
        decision for the request that asks is against it, or the tier below has it. What is offered stays where it is
        until the lease ends. What is below is staged first, but for the first `skip` keys, which the engine has: then
        None, and the answer is one of `answers` later."""
        return self.leases.lookup((engine, lease), keys, self._engines[engine].kind, skip=skip, ask=ask, now=now)

    def release(self, engine: str, lease: int, loaded: int, now: float = 0.0, load_s: float = 0.0) -> None:
        """The lease is over; `loaded` of its blocks were loaded, in `load_s` if that is known. A lease that found nothing
        was never open."""
        mine = self._engines[engine].kind
        loaded = min(loaded, self.leases.release((engine, lease), now))
        self.decisions.loaded(engine, loaded * mine.slot_bytes, load_s)
        self.stats.add("loaded_blocks", loaded)
        self.stats.add("loaded_tokens", loaded * mine.block_tokens)
        self.stats.add("loaded_bytes", loaded * mine.slot_bytes)
        self._can_help = True

    def due(self, engine: str, lease: int, now: float) -> None:
        """The request behind a lookup that waits could run now."""
        self.leases.due((engine, lease), now)

    def pace(self, engine: str, counts: Mapping[str, int]) -> None:
        """How fast it computes, and what else it has to do: Prefill.to_counts, arrivals_mhz, busy_permille, running."""
        self.decisions.pace(engine, counts)

    def outcome(self, engine: str, request: str, counts: Mapping[str, int], now: float) -> None:
        """The request's first token is there; `counts` as decision.OUTCOME names them."""
        self.decisions.outcome(engine, request, counts, now)

    def touch(self, keys: bytes) -> None:
        """Used just now; keys in prefix order, so that a conversation loses its tail first."""
        slots = self.ram.index.find(keys)
        here = slots[slots != ABSENT].astype(np.intp)
        self.ram.lru.touch(here)
        if self.lower is not None:
            self.lower.demotions.request_ended(here)

    # --- the tier below --------------------------------------------------------------------------------------

    def transfers(self, now: float, writable: bool = True) -> list[Transfer]:
        """What the tier below is to start now; nothing of it is asked twice. `writable`: it takes writes."""
        if self.lower is None:
            return []
        orders = self.lower.transfers(now, writable)
        self.leases.note_arrivals(now)
        return orders

    def finished(self, done: Finished, now: float) -> None:
        """The tier below has finished what it was ordered to do."""
        assert self.lower is not None
        self.lower.finished(done, now)
        self.leases.note_arrivals(now)
        self._can_help = True

    def flush(self, flush: int) -> None:
        """Blocks that are in RAM now and worth it are to survive a crash. `flushed` says when."""
        if self.lower is not None:
            self.lower.demotions.await_all(flush)

    def flushed(self) -> list[tuple[int, bool]]:
        """Flushes that are over since the last call; whether it is so."""
        if self.lower is None:
            return []
        over, self.lower.flushed = self.lower.flushed, []
        return over

    # --- what there is ---------------------------------------------------------------------------------------

    def report(self, counts: Mapping[str, int]) -> None:
        """What a connector counted since its last report."""
        for name, n in counts.items():
            if name in REPORTED and n > 0:
                self.stats.add(name, n)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything tier-stats shows, as JSON values. Bytes, seconds, counts."""
        engines = [
            {
                "engine": name,
                "lent_slots": len(e.lent),
                "lend_target": self._target(e),
                "leases": len(leases := self.leases.of(name)),
                "leased_blocks": sum(map(len, leases.values())),
                "slot_bytes": e.kind.slot_bytes,
                "block_tokens": e.kind.block_tokens,
                "connected_s": round(now - e.joined_at, 3),
            }
            for name, e in sorted(self._engines.items())
        ]
        cpu: dict[str, object] = {
            "capacity_bytes": self.ram.slots.capacity,
            "used_bytes": self.ram.slots.taken_bytes,
            "lent_bytes": self.lent_bytes,
            "leased_bytes": self.leases.bytes,
            "blocks": len(self.ram.index),
            "hit_tokens": self.stats["loaded_tokens"],
        }
        tiers = {"cpu": cpu}
        if self.lower is not None:
            tiers["nvme"] = self.lower.snapshot(now)
        return {
            "tiers": tiers,
            "engines": engines,
            "decisions": self.decisions.snapshot(),
            "counters": self.stats.snapshot(),
        }

    # --- how: who gets slots -----------------------------------------------------------------------------------

    def _target(self, engine: _Engine) -> int:
        """How many slots it may hold: its wish, within an equal part of what may be lent."""
        return min(engine.wish, max(1, self._lend_bytes_max // len(self._engines) // engine.kind.slot_bytes))

    def _may_lend(self, engine: _Engine) -> bool:
        """Those who were here before may hold more than their part; until they used it, a newcomer has one slot."""
        within_all = self.lent_bytes + engine.kind.slot_bytes <= self._lend_bytes_max
        return len(engine.lent) < self._target(engine) and (within_all or not engine.lent)

    def _mark_hungry(self, name: str) -> None:
        self._can_help = True
        engine = self._engines[name]
        if len(engine.lent) * 2 < self._target(engine):
            self._hungry.add(name)

    def _top_up(self, name: str, engine: _Engine) -> list[int]:
        slots: list[int] = []
        taken = self.ram.takes(engine.kind.slot_bytes, f"by engine {name}")
        while self._may_lend(engine) and (slot := next(taken, None)) is not None:
            engine.lent.add(slot)
            self.lent_bytes += engine.kind.slot_bytes
            slots.append(slot)
        return slots

    def _take_back(self, engine: _Engine, slots: list[int]) -> None:
        """Lent no more."""
        self._require_lent(engine, slots)
        engine.lent.difference_update(slots)
        self.lent_bytes -= len(slots) * engine.kind.slot_bytes

    def _require_lent(self, engine: _Engine, slots: list[int]) -> None:
        if len(set(slots)) != len(slots) or not engine.lent.issuperset(slots):
            raise ProtocolError("bad_slot", "a slot that is not lent to this engine")
