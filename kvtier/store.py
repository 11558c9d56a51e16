"""BlockStore: the one state machine of the daemon. Pure: events in, actions out; it never sees a byte of a block.

    event                     what it does                                       what comes back
    join, leave               an engine begins, is over                          its epoch
    want, leaving             it wants more or fewer slots lent; none any more
    lookup, release           a lease on what is here                            slots, one a key; or later (leases.py)
    due, pace, outcome        what the engine says for decisions (decision.py)
    lends                     (after any event)                                  slots to lend, by engine
    commit, give_back         a lent slot becomes a block, or is free again
    begin, touch              what a client says of a request; a request is over, and these are its blocks
    reset                     nothing of this namespace is served again
    transfers, finished       what the tier below is to do, and did; likewise    orders for it
                              remote_transfers, remote_finished
    flush                     what is here is to survive a crash                 later: flushed
    wipes, wiped              slots that are to be overwritten with zeros, and were
    answered                  a lookup's answer, as its engine's workers are to read it

Where a slot is: ram.py. Lookups and leases, and time that passes for them: leases.py. What goes below: demotion.py; what
comes back: staging.py; the drives: lower.py, the remote: away.py. What has a copy on a GPU: mirror.py. What goes first, and
all that is done because of sessions: retention.py. What is lent: lending.py. That all processes of an engine are gone, or
that no copy of theirs runs, `leave` is the caller's word for.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvtier.admission import Budget
from kvtier.away import Away
from kvtier.block import NO_KEY, SLOT_UNIT, unpack_keys
from kvtier.coding import Coding
from kvtier.deciding import Decisions
from kvtier.decision import Ask
from kvtier.errors import OrderError
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.index import Table
from kvtier.known import Known
from kvtier.leases import Leases
from kvtier.lending import Engine, Lending
from kvtier.lookup import Lookup
from kvtier.lower import Lower
from kvtier.mirror import Mirror
from kvtier.namespaces import Namespace, Namespaces
from kvtier.ram import Ram
from kvtier.ranking import Value
from kvtier.rankings import ranking_of
from kvtier.retention import Retention
from kvtier.returns import Returns
from kvtier.session import SESSIONS_MAX, Hints
from kvtier.staging import Staging
from kvtier.stats import REPORTED, Stats
from kvtier.transfer import Finished, Transfer

DRIVE_LATENCY_S, DRIVE_BYTES_PER_S = 0.002, 2e9  # until they were measured
REMOTE_LATENCY_S, REMOTE_BYTES_PER_S = 0.002, 2e8
NOBODY = Ask()


class BlockStore:
    def __init__(
        self,
        capacity: int,
        *,
        lend_share: float,
        lease_share: float,
        table: Table | None = None,
        policy: str = "value",
        session_table: Table | None = None,
    ) -> None:
        """`capacity` bytes of arena, of which all engines together are lent at most `lend_share`, but each of them one
        slot; leases pin at most `lease_share`. `policy`: one of POLICIES (rankings.py). Tables of the keys in RAM, and of
        those that sessions have."""
        self.stats = Stats()
        returns = Returns(2 * SESSIONS_MAX)
        ranking = ranking_of(policy, returns, capacity // SLOT_UNIT)
        self.ram = Ram(capacity, self.stats, ranking, table)
        self.retention = Retention(self.ram, returns, ranking if isinstance(ranking, Value) else None, session_table)
        self.lower: Lower | None = None
        self.away: Away | None = None
        self.mirror: Mirror | None = None
        self.lending = Lending(self.ram, int(capacity * lend_share))
        self.decisions = Decisions(self.ram.ghosts, self.stats)
        self.namespaces = Namespaces(self.ram.residue.whose)
        self.staging = Staging(self.ram, self.namespaces.epochs, self.stats)
        self.staging.stands = self.retention.of_arrival
        self.leases = Leases(self.ram, int(capacity * lease_share), self.stats, self.decisions, self.staging)

    def attach(
        self,
        extents: Extents,
        budget: Budget,
        stage_s: float,
        remembered: Mapping[bytes, tuple[int, int]],
        link: Link | None = None,
        coding: Coding | None = None,
    ) -> None:
        """A tier below, before the first engine joins: what lies there, the namespaces of it, digest -> (number, epoch),
        what is known of its speed, what blocks are written with. A lookup waits at most `stage_s` for it."""
        assert not self.namespaces and self.lower is self.away is None
        link = link or Link(DRIVE_LATENCY_S, DRIVE_BYTES_PER_S)
        self.lower = Lower(self.ram, extents, budget, self.namespaces.epochs, self.stats, link, self.staging, coding)
        self.decisions.drives = link
        self.retention.attach(self.lower)
        self.leases.lower, self.leases.stage_s["nvme"] = self.lower, stage_s
        self.namespaces.recover(remembered)

    def attach_remote(self, budget: Budget, link: Link | None, stage_s: float, coding: Coding | None = None) -> None:
        """A remote, after the tier below and before the first engine joins; likewise."""
        assert self.away is None
        link = link or Link(REMOTE_LATENCY_S, REMOTE_BYTES_PER_S)
        self.away = Away(self.ram, self.staging, Known(), self.namespaces.epochs, budget, self.stats, link, coding)
        self.decisions.remote = link
        self.retention.attach_remote(self.away)
        self.leases.away, self.leases.stage_s["remote"] = self.away, stage_s
        for digest, known in self.namespaces.items():
            self.away.remember(digest, known.number)
        if self.lower is not None:
            self.lower.on_arrival = self.away.demotions.arrived
            self.away.on_arrival = self.lower.demotions.arrived

    def attach_gpu(self, capacity: int) -> None:
        """So many bytes of device memory, for copies of blocks in RAM."""
        self.mirror = Mirror(self.ram, capacity, self.stats)
        self.ram.on_give = self.mirror.given
        self.retention.attach_gpu(self.mirror)

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
        user: str = "",
    ) -> tuple[int, int]:
        """A new engine. `lend`: how many slots it would like to hold; `user`: whose it is, as tenants.tenant_of has it.
        Returns its namespace's epoch and the number of slots that it may hold now; more engines make that fewer."""
        if engine in self.lending.engines:
            raise OrderError(f"engine {engine} has joined already; its former processes must be gone first")
        kind, wish = self.lending.kind_of(block_bytes, block_tokens, is_chain), max(1, lend)
        known, number = self.namespace(namespace, user), self.ram.residue.user(user)
        self.ram.residue.belongs(known.number, number)
        self.retention.hearing.joined(engine, user)
        mine = Engine(known.number, kind, wish, wish, now, user=number, block_bytes=block_bytes)
        self.lending.join(engine, mine)
        self.decisions.join(engine, f"namespace {namespace.hex()[:12]}", now, user)
        self.retention.names(known.number, namespace.hex()[:12])
        return known.epoch, self.lending.target(mine)

    def namespace(self, digest: bytes, user: str | None = None) -> Namespace:
        known = self.namespaces.get(digest)
        if known is None:
            known = self.namespaces.add(digest, user)
            if self.lower is not None:
                self.lower.remember(digest, known.number, known.epoch)
            if self.away is not None:
                self.away.remember(digest, known.number)
        return known

    def want(self, engine: str, slots: int) -> None:
        """So many it wants to hold from now on, never more than it joined with."""
        self.lending.want(engine, slots)

    def leaving(self, engine: str, now: float) -> None:
        """Nobody is there who could use another slot; its copies may still run, so what it holds stays its own."""
        mine = self.lending.engines[engine]
        mine.wish = mine.wish_max = 0
        self.leases.leaving(engine, now)

    def leave(self, engine: str, now: float) -> None:
        """The engine is over and none of its copies runs: everything it held comes back."""
        self.ram.now = max(now, self.ram.now)
        self.retention.hide(engine, self.lending.engines[engine].lent)
        self.retention.left(engine, now)
        self.leases.leave(engine, now)
        self.decisions.leave(engine)
        if self.mirror is not None:
            self.mirror.left(engine)
        self.stats.add("reclaimed_slots", self.lending.leave(engine))
        self.stats.add("engines_gone")

    def reset(self, engine: str, namespace: bytes) -> None:
        """The engine's KV means something else from now on. Its namespace gets a new epoch: engines that join later
        have other keys, and everything saved so far is dropped. The engine itself goes on under keys of its own."""
        known = self.namespaces.reset(namespace)
        self.retention.reset(known.number)
        # No hungry engine can get a slot by this: all that is free now could have been evicted for it before.
        self.stats.add("reset_blocks", self.ram.drop_namespace(known.number))
        if self.lower is not None:
            self.lower.remember(namespace, known.number, known.epoch)
            self.stats.add("forgotten_blocks", self.lower.extents.drop_namespace(known.number))

    # --- slots -----------------------------------------------------------------------------------------------

    def lends(self) -> list[tuple[str, list[int]]]:
        """Slots for every engine that holds less than half of what it may. They are its own from now on."""
        return self.lending.lends()

    def commit(
        self, engine: str, keys: bytes, slots: np.ndarray, parents: bytes = b"", request: str = "", now: float = 0.0
    ) -> None:
        """The engine has filled these lent slots for a request: they are blocks now, but those in a closing slab, and
        those of which the block before them is nowhere. Keys in prefix order; `parents`: for each the block before it, or
        NO_KEY; empty: nobody has one."""
        mine, self.ram.now = self.lending.engines[engine], max(now, self.ram.now)
        numbers = slots.tolist()
        self.lending.take_back(engine, numbers)
        names = unpack_keys(keys)
        befores = unpack_keys(parents) if parents else [NO_KEY] * len(names)
        queue, _ = self.retention.saving(engine, request, keys, mine.namespace, mine.kind, now)
        is_barred = self.retention.is_barred(engine, request, numbers)
        tenant = self.retention.hearing.tenant(engine, request, now)
        self.lending.owes(engine, tenant, len(numbers))
        saved = self.ram.save(numbers, names, befores, mine.namespace, queue, is_barred, tenant)
        if saved:
            kept = slots[saved].astype(np.intp)
            self.ram.use(kept, None)
            self.retention.saved(engine, request, [names[i] for i in saved], kept)
            for tier in (self.lower, self.away):
                if tier is not None:
                    tier.saved([names[i] for i in saved], kept)
        self.lending.mark_hungry(engine)

    def give_back(self, engine: str, slots: np.ndarray) -> None:
        """The engine doesn't use these lent slots and no copy into them runs."""
        numbers = slots.tolist()
        self.lending.take_back(engine, numbers)
        self.retention.hide(engine, numbers)  # a save that failed may have written something
        for slot in numbers:
            self.ram.give(slot)
        self.lending.mark_hungry(engine)

    # --- leases ----------------------------------------------------------------------------------------------

    def lookup(
        self, engine: str, lease: int, keys: bytes, skip: int = 0, now: float = 0.0, ask: Ask = NOBODY
    ) -> np.ndarray | None:
        """uint32[n]: the slot of each packed key; ABSENT where it is nowhere, BELOW where it is but isn't offered: the
        decision for the request that asks is against it, or the tier below has it. What is offered stays where it is
        until the lease ends. What is below is staged first, but for the first `skip` keys, which the engine has: then
        None, and the answer is one of `answers` later."""
        mine, self.ram.now = self.lending.engines[engine], max(now, self.ram.now)
        queues = None
        if ask.request:
            queues = self.retention.asked(engine, ask.request, keys, mine.namespace, mine.kind, now)
        tenant = self.retention.hearing.tenant(engine, ask.request, now)
        return self.leases.lookup(Lookup((engine, lease), keys, mine.kind, mine.namespace, queues, skip, ask, now, tenant))

    def answered(self, engine: str, lease: int, answer: np.ndarray) -> np.ndarray:
        """A lookup's answer as its engine is to hear it: with places of the GPU tier where its workers can read them."""
        return answer if self.mirror is None else self.mirror.answered((engine, lease), answer)

    def release(self, engine: str, lease: int, loaded: int, now: float = 0.0, load_s: float = 0.0) -> None:
        """The lease is over; `loaded` of its blocks were loaded, in `load_s` if that is known. A lease that found nothing
        was never open."""
        mine = self.lending.engines[engine].kind
        loaded = min(loaded, self.leases.release((engine, lease), now))
        load_s = 0.0 if self.mirror is not None and self.mirror.released((engine, lease)) else load_s
        self.decisions.loaded(engine, loaded * mine.slot_bytes, load_s)
        self.stats.add("loaded_blocks", loaded)
        self.stats.add("loaded_tokens", loaded * mine.block_tokens)
        self.stats.add("loaded_bytes", loaded * mine.slot_bytes)
        self.lending.can_help = True

    def due(self, engine: str, lease: int, now: float) -> None:
        """The request behind a lookup that waits could run now."""
        self.leases.due((engine, lease), now)

    def pace(self, engine: str, counts: Mapping[str, int]) -> None:
        """How fast it computes, and what else it has to do: Prefill.to_counts, arrivals_mhz, busy_permille, running."""
        self.decisions.pace(engine, counts)
        mine = self.lending.engines[engine]
        seconds_a_byte = self.decisions.seconds_a_byte(engine, mine.kind.slot_bytes / mine.kind.block_tokens)
        self.retention.weigh(mine.namespace, seconds_a_byte)

    def outcome(self, engine: str, request: str, counts: Mapping[str, int], now: float) -> None:
        """The request's first token is there; `counts` as decision.OUTCOME names them."""
        self.decisions.outcome(engine, request, counts, now)

    def begin(self, engine: str, request: str, hints: Hints, now: float = 0.0) -> None:
        """What a client says of a request that comes now; before its lookup."""
        self.retention.hearing.hear(engine, request, hints)

    def touch(self, engine: str, keys: bytes, request: str = "", now: float = 0.0) -> None:
        """A request is over. Its keys in prefix order, so that a conversation loses its tail first."""
        mine, self.ram.now = self.lending.engines[engine], max(now, self.ram.now)
        here = self.retention.over(engine, request, keys, mine.namespace, mine.kind, now)
        if self.mirror is not None:
            self.mirror.over(here)

    def tick(self, now: float) -> None:
        """Time has passed; a few times a second."""
        self.ram.now = max(now, self.ram.now)
        self.leases.replan(now)
        self.retention.tick(now)
        self.lending.can_help = True

    def wipes(self) -> list[tuple[int, int]]:
        """Slots, and bytes, that are to be overwritten with zeros; `wiped` says that one is."""
        slots, self.ram.to_wipe = self.ram.to_wipe, []
        return slots

    def wiped(self, slot: int) -> None:
        self.ram.wiped(slot)
        self.lending.can_help = True

    # --- the tiers below -------------------------------------------------------------------------------------

    def transfers(self, now: float, writable: bool = True) -> list[Transfer]:
        """What the tier below is to start now; nothing of it is asked twice. `writable`: it takes writes."""
        return self._transfers(self.lower, now, writable)

    def finished(self, done: Finished, now: float) -> None:
        """The tier below has finished what it was ordered to do."""
        assert self.lower is not None
        self._finished(self.lower, done, now)

    def remote_transfers(self, now: float, writable: bool = True) -> list[Transfer]:
        """Likewise for the remote."""
        return self._transfers(self.away, now, writable)

    def remote_finished(self, done: Finished, now: float) -> None:
        assert self.away is not None
        self._finished(self.away, done, now)

    def set_remote_away(self, is_away: bool) -> None:
        """Whether its tier leaves it alone, because it fails or is silent."""
        if self.away is not None:
            self.away.set_away(is_away)

    def _transfers(self, tier: Lower | Away | None, now: float, writable: bool) -> list[Transfer]:
        if tier is None:
            return []
        self.ram.now = max(now, self.ram.now)
        orders = tier.transfers(now, writable)
        self.leases.note_arrivals(now)
        return orders

    def _finished(self, tier: Lower | Away, done: Finished, now: float) -> None:
        self.ram.now = max(now, self.ram.now)
        tier.finished(done, now)
        self.leases.note_arrivals(now)
        self.retention.draining.step(now)
        self.lending.can_help = True

    def gpu_finished(self, done: Finished, now: float) -> None:
        """The GPU tier has finished what the mirror ordered."""
        assert self.mirror is not None
        self.mirror.finished(done)
        self.lending.can_help = True

    def flush(self, flush: int) -> None:
        """Blocks that are in RAM now and worth it are to survive a crash. `flushed` says when."""
        if self.lower is not None:
            self.lower.demotions.await_all(flush)

    def flushed(self) -> list[tuple[int, bool]]:
        """Flushes that are over since the last call; whether it is so."""
        if self.lower is None:
            return []
        over, self.lower.flushed = self.lower.flushed, []
        return [one for one in over if not self.retention.draining.flushed(*one)]

    # --- what there is ---------------------------------------------------------------------------------------

    def report(self, counts: Mapping[str, int]) -> None:
        """What a connector counted since its last report."""
        for name, n in counts.items():
            if name in REPORTED and n > 0:
                self.stats.add(name, n)

    def snapshot(self, now: float) -> dict[str, Any]:
        """Everything tier-stats shows, as JSON values. Bytes, seconds, counts."""
        cpu: dict[str, object] = {
            "capacity_bytes": self.ram.slots.capacity,
            "used_bytes": self.ram.slots.taken_bytes,
            "lent_bytes": self.lending.lent_bytes,
            "leased_bytes": self.leases.bytes,
            "blocks": len(self.ram.index),
            "hit_tokens": self.stats["loaded_tokens"],
        }
        tiers = {"cpu": cpu} if self.mirror is None else {"gpu": self.mirror.snapshot(), "cpu": cpu}
        for name, tier in (("nvme", self.lower), ("remote", self.away)):
            if tier is not None:
                tiers[name] = tier.snapshot(now)
        return {
            "tiers": tiers,
            "engines": [row | self.leases.snapshot(str(row["engine"])) for row in self.lending.snapshot(now)],
            "tenants": self.ram.tenants.snapshot(),
            "decisions": self.decisions.snapshot(),
            "retention": self.retention.snapshot(now),
            "counters": self.stats.snapshot(),
        }
