"""One node of several: its store, its arena, its drives, its engines, and its tier on the remote that all share.

Engines are those of engine_model.py. There is no second implementation of the store here (simulation.py has one, and no
remote that answers): what an answer says is held against what lies in the arena, and all else against what must hold
whatever happened.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvtier.block import BELOW, NO_KEY, SLOT_UNIT, BlockKey, pack_keys
from kvtier.decision import Ask
from kvtier.errors import ProtocolError
from kvtier.guard import Guard
from kvtier.session import NOTHING, Hints
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Promote

from . import invariants_far
from .arena_model import ArenaModel, Meaning, content_of
from .drives import EXTENT_UNITS, LUCK
from .engine_model import BUSY_UNTIL, EngineModel
from .frames import Saved
from .habits import RIGHT
from .node_operator import NodeOperator
from .node_tiers import NodeTiers
from .tier_model import Disks, TierModel
from .upgrading import Former

if TYPE_CHECKING:
    from .far_world import FarWorld
    from .simulation import Namespace

TICK_S = 0.05
LAST_TICK = BUSY_UNTIL + 5.0
CHECKED_EVERY = 2  # events


@dataclass
class Lookup:
    at: float
    patience_s: float  # that it was said to be worth to wait for an answer of the remote


class Node(NodeTiers):
    gpu, habits, reset_chance, arena_model = None, RIGHT, 0.01, ArenaModel

    def __init__(self, world: FarWorld, name: str) -> None:
        self.world, self.name = world, name
        self.random, self.after, self.at, self.chance, self.delay = (
            world.random, world.after, world.at, world.chance, world.delay
        )  # fmt: skip
        self.talks = world.talks
        self.is_calm = self.chance(0.85)
        self.life = 0
        self.counts: Counter[str] = Counter()  # of all lives
        self.contents: dict[BlockKey, Saved] = {}
        self.resets: Counter[bytes] = Counter()
        self.drives = Disks(self.random.choice((6, 16)), EXTENT_UNITS, 1) if self.chance(0.4) else None
        self._drive_luck, self._mode = self.random.choice(LUCK), self.random.choice(("decide", "decide", "always"))
        self._shape = (
            self.random.randint(2, 3) * world.slab,
            self.random.choice((0.25, 0.5)),
            self.random.choice((0.6, 0.9)),
        )
        self.stage_s = self.random.choice((0.3, 1.0, 3.0))
        self._start_daemon()
        self.engines = [EngineModel(self, f"{name}-{i}", n) for i, n in enumerate(world.namespaces[:2])]
        for engine in self.engines:
            self.after(self.delay(0.3), f"{engine.name} starts", engine.start)
        self.operator = NodeOperator(self)
        self._tick()
        if self.chance(0.7):
            self._die_later()

    @property
    def now(self) -> float:
        return self.world.now

    # --- the daemon --------------------------------------------------------------------------------------------

    def _start_daemon(self, former: Former | None = None) -> None:
        """`former`: what the one before handed over; else it is lost."""
        capacity, lend_share, lease_share = self._shape
        self.life += 1
        self.begun_at = self.now
        self.store = BlockStore(capacity, lend_share=lend_share, lease_share=lease_share)
        self.arena = self.arena_model(self.store.ram.slots.units) if former is None else former.arena
        self.tier: TierModel | None = None
        if self.drives is not None:
            self._attach_drives(self.drives)
        self._attach_remote()
        self._told = set()
        known = self.store.away.known
        known._there_s, known._missing_s = self.world.believed_s
        self.store.staging.bytes_max *= self.world.reads
        self.store.decisions.mode, self.store.decisions.guard = self._mode, Guard(0.05)
        self.waiting: dict[tuple[str, int], Lookup] = {}
        self.wiping: set[int] = set()
        self.told: dict[tuple[str, str], Hints] = {}
        self.heard: dict[tuple[str, str], Hints] = {}  # of requests that have asked
        self._leaving: set[str] = set()
        self.leftovers: set[str] = set()
        self._of_those_who_stay: set[BlockKey] = set()  # keys that were saved for sessions which are to stay here
        self._of_others: set[BlockKey] = set()
        self._wakes: dict[str, float] = {}
        self._hear_patience()
        self.is_called = True
        if former is not None:
            former.go_on(self)
        self.world.plant(self.store)

    def _hear_patience(self) -> None:
        sound = self.store.decisions.patience_to_ask
        self._patience_s = 0.0

        def patience(*question: object) -> float:
            self._patience_s = max(self._patience_s, said := sound(*question))
            return said

        self.store.decisions.patience_to_ask = patience

    def _die_later(self) -> None:
        self.after(self.random.uniform(1, 6), f"the daemon of {self.name} dies", self._die)

    def _die(self) -> None:
        if self.world.has_upgrades and self.chance(0.7):
            self._upgrade()
        else:
            self._crash()
        self.operator.daemon_died()
        if self.now < BUSY_UNTIL:
            self._die_later()
        for engine in self.engines:
            engine.on_daemon_died()

    def _upgrade(self) -> None:
        """It goes on with all that is in RAM."""
        former = Former(self)
        self.counts.update(self.store.stats.snapshot())
        if self.tier is not None:
            self.drives = self.tier.crash()
        self._start_daemon(former)

    def _crash(self) -> None:
        """What was on its way to the remote may arrive there all the same, or by halves, which is nothing."""
        self.counts.update(self.store.stats.snapshot())
        if self.tier is not None:
            for mine in self.tier.under_way.values():
                if isinstance(mine.order, Demote) and not mine.refused:
                    self.tier.disks.content.pop(mine.order.place, None)
            self.drives = self.tier.crash()
        self.resets = Counter({digest: epoch for digest, (_, epoch) in getattr(self.drives, "remembered", {}).items()})
        self._start_daemon()

    def _tick(self) -> None:
        self.is_called = True
        self.store.set_remote_away(self.remote.is_away)
        self.store.tick(self.now)
        self._nobody_waits_too_long()
        busy = self.store.leases.waiting() or self.operator.waits
        if self.now < LAST_TICK or busy:
            self.after(TICK_S, f"the daemon of {self.name} ticks", self._tick)

    def serve(self) -> None:
        """As the daemon does it after whatever it heard."""
        self.former_workers_go()
        if not self.is_called:
            return
        self.is_called = False
        if self.tier is not None:
            for order in self.store.transfers(self.now, not self.tier.read_only):
                if isinstance(order, Demote):
                    self.may_be_written(order)
                self.tier.start(order)
            self._wake("drives", self.tier.wakes_at(), self._poll_drives)
        for order in self.store.remote_transfers(self.now, not self.remote.read_only):
            self.world.log.append(f"{self.now:9.4f}   {self.name}: {order}")
            self.remote.start(order)
            if isinstance(order, Demote | Promote) and self.chance(0.05):
                self.operator.forget_owner_soon(order.key)
        self._wake("remote", self.remote.wakes_at(), self._poll_remote)
        for engine, slots in self.store.lends():
            next(one for one in self.engines if one.name == engine).on_lent(slots)
        for name, lease, slots in self.store.leases.answers():
            self.waiting.pop((name, lease))
            next(one for one in self.engines if one.name == name).on_answer(lease, slots.tolist())
        assert set(self.waiting) == set(self.store.leases.waiting()), "who waits"
        for slot, size in self.store.wipes():
            self.wiping.add(slot)
            wiped = functools.partial(self._wiped, self.life, slot, size)
            self.after(self.delay(0.1), f"slot {slot} of {self.name} is wiped", wiped)
        self.operator.look()
        if self.world.events % CHECKED_EVERY == 0:
            invariants_far.check(self)

    def _wake(self, what: str, at: float | None, poll: Callable[[], None]) -> None:
        if at is None or self._wakes.get(what, at + 1) <= at:
            return
        self._wakes[what] = at
        life = self.life

        def polled() -> None:
            if life == self.life:
                self._wakes.pop(what, None)
                self.is_called = True
                poll()

        self.at(at, f"{self.name} polls its {what}", polled)

    def _poll_drives(self) -> None:
        assert self.tier is not None
        for done in self.tier.poll():
            self.store.finished(done, self.now)

    def _poll_remote(self) -> None:
        for done in self.remote.poll():
            self.world.log.append(f"{self.now:9.4f}   {self.name}: {done}")
            self.store.remote_finished(done, self.now)

    def _wiped(self, life: int, slot: int, size: int) -> None:
        if life == self.life:
            self.is_called = True
            self.wiping.remove(slot)
            self.arena.wipe(list(range(slot, slot + size // SLOT_UNIT)))
            self.store.wiped(slot)

    # --- what must hold of what engines hear ---------------------------------------------------------------------

    def _nobody_waits_too_long(self) -> None:
        for asker in self.store.leases.waiting():
            mine = self.waiting[asker]
            limit = mine.at + mine.patience_s + self.stage_s + TICK_S
            assert self.now <= limit, f"{asker} waits since {mine.at}, and may until {limit}"

    def must_answer(self, asker: tuple[str, int], slots: list[int], keys: list[BlockKey]) -> list[int]:
        for slot, key in zip(slots, keys, strict=True):
            if slot < BELOW:
                self.must_hold(slot, key)
        return slots

    def must_hold(self, slot: int, key: BlockKey) -> None:
        content = self.contents[key]
        assert self.store.ram.slots.size_of(slot) == len(content) * SLOT_UNIT, f"slot {slot} has another size"
        assert self.arena.holds_whole(slot, content), f"slot {slot} of {self.name} does not hold {content[0][0]} whole"

    # --- what engines say ----------------------------------------------------------------------------------------

    def learn(self, key: BlockKey, meaning: Meaning, namespace: Namespace) -> None:
        content = content_of(meaning, namespace.units, namespace.wish)
        assert self.contents.setdefault(key, content) == content, f"a key for {meaning} and for something else"

    def user_of(self, digest: bytes) -> str:
        """Of the engines of this namespace."""
        return ""

    def weights_of(self, namespace: Namespace) -> str:
        """At first all nodes run the same. What a reset brings, none but the node that has it."""
        resets = self.resets[namespace.digest]
        return f"weights-{self.name}-{resets}" if resets else "weights-0"

    def former_workers_go(self) -> None:
        """Of engines that still copied when this daemon took over."""
        for engine in self.engines:
            if engine.name in self.leftovers and not engine.copies:
                self.leftovers.discard(engine.name)
                self.is_called = True
                self.store.leave(engine.name, self.now)

    def join(self, engine: str, namespace: Namespace, lend: int) -> int:
        self.former_workers_go()
        self.is_called = True
        size, tokens = namespace.units * SLOT_UNIT, namespace.block_tokens
        of = {"is_chain": namespace.is_chain, "user": self.user_of(namespace.digest)}
        epoch, _ = self.store.join(engine, namespace.digest, size, tokens, lend, self.now, **of)
        assert epoch == self.resets[namespace.digest], "its epoch"
        self.tell_wish(namespace)
        return epoch

    def leave(self, engine: str) -> None:
        self.is_called = True
        self._forget_engine(engine)
        for said in (self.told, self.heard):
            for asked in [asked for asked in said if asked[0] == engine]:
                del said[asked]
        self.store.leave(engine, self.now)

    def leaving(self, engine: str) -> None:
        self.is_called = True
        self._forget_engine(engine)
        self.store.leaving(engine, self.now)

    def _forget_engine(self, engine: str) -> None:
        self.waiting = {asker: mine for asker, mine in self.waiting.items() if asker[0] != engine}

    def want(self, engine: str, slots: int) -> None:
        self.is_called = True
        self.store.want(engine, slots)

    def reset(self, engine: str, namespace: Namespace) -> None:
        self.is_called = True
        self.resets[namespace.digest] += 1
        self.store.reset(engine, namespace.digest)

    def begin(self, engine: str, request: str, hints: Hints) -> None:
        self.told[engine, request] = hints
        self.store.begin(engine, request, hints, self.now)

    def lookup(self, engine: str, lease: int, keys: list[BlockKey], skip: int, ask: Ask) -> list[int] | None:
        self.is_called = True
        self._note_use(engine, ask.request, keys, saves=False)
        self._patience_s = 0.0
        answer = self.store.lookup(engine, lease, pack_keys(keys), skip, self.now, ask)
        if answer is None:
            self.waiting[engine, lease] = Lookup(self.now, self._patience_s)
        return None if answer is None else answer.tolist()

    def _note_use(self, engine: str, request: str, keys: list[BlockKey], saves: bool) -> None:
        """What was said of a request counts if it was said before its first question."""
        hints = self.heard.setdefault((engine, request), self.told.get((engine, request), NOTHING))
        if not request or not (hints.no_disk or hints.no_remote):
            self._of_others.update(keys)
        elif saves:
            self._of_those_who_stay.update(keys)

    def release(self, engine: str, lease: int, loaded: int, load_s: float) -> None:
        self.is_called = True
        self.waiting.pop((engine, lease), None)
        self.store.release(engine, lease, loaded, self.now, load_s)

    def due(self, engine: str, lease: int) -> None:
        self.is_called = True
        self.store.due(engine, lease, self.now)

    def pace(self, engine: str, counts: dict[str, int]) -> None:
        self.store.pace(engine, counts)

    def outcome(self, engine: str, request: str, counts: dict[str, int]) -> None:
        self.store.outcome(engine, request, counts, self.now)

    def commit(self, engine: str, keys: list[BlockKey], slots: list[int], befores: list[BlockKey], request: str) -> None:
        self.is_called = True
        self._note_use(engine, request, keys, saves=True)
        parents = pack_keys(before or NO_KEY for before in befores) if any(befores) else b""
        self.store.commit(engine, pack_keys(keys), np.array(slots, np.uint32), parents, request, self.now)

    def give_back(self, engine: str, slots: list[int]) -> None:
        self.is_called = True
        self.store.give_back(engine, np.array(slots, np.uint32))

    def touch(self, engine: str, keys: list[BlockKey], request: str) -> None:
        self.is_called = True
        self.store.touch(engine, pack_keys(keys), request, self.now)
        self.told.pop((engine, request), None)
        self.heard.pop((engine, request), None)

    def commit_of_a_slot_that_is_not_lent(self, engine: str, key: BlockKey) -> None:
        self.is_called = True
        mine = self.store.lending.engines[engine].lent
        slot = next(slot for slot in range(self.store.ram.slots.units) if slot not in mine)
        try:
            self.store.commit(engine, key, np.array([slot], np.uint32))
        except ProtocolError:
            return
        raise AssertionError(f"slot {slot} is not lent to {engine}, yet it could commit it")
