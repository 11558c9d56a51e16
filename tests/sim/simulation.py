"""A seeded world around one real BlockStore: engines, their copies, a wire, a clock, an arena with content.

One `random.Random(seed)` decides everything, so a seed repeats a run event for event. After each event

    expected.py     compares the store's answer and its whole state with a second, plainest implementation
    invariants.py   checks what must hold whatever happened: one place a slot, bytes accounted, pins those of the leases;
                    *_below.py: the same for the tier below; *_decisions.py: for what follows from decisions;
                    *_sessions.py: for sessions, their pins, what stands behind what
    choices.py      looks at every block each time the policy says which goes first
    charges.py      the same for who pays for room instead of another tenant
    arena_model.py  checks content: every block that the store could answer with lies there whole; nobody writes what is
                    read or written; what a load read was right at its begin and unchanged until its end

What is modelled: 2 to 4 engines, with namespaces shared and not, of different block sizes, so that slabs are cut anew;
1 to 4 ranks, each copying its part in its own time; messages that arrive late but in order; engines that want fewer
slots for a while, compute fast or slowly, and say so or not; requests that are aborted or ask again, leases held long,
loads and saves that fail, duplicate saves, duplicate keys; a cache reset with everything under way, also while the
daemon is away; a scheduler that dies or hangs up while its workers' copies go on; peers that name slots that are not
theirs; an arena that is always full; each mode, held out requests, tiers that are off, a cost model of any opinion; each
policy. Clients talk (talking.py): conversations go on, fork and share system prompts, and what is said of them need not
be true. An operator (operator_model.py) warms, parks, pins, ends and forgets them at any moment. In two of three seeds
there are drives below the arena (tier_model.py), which are slow, hang and fail, and the daemon dies now and then. Where a
test asks for it, a GPU mirrors some of the arena (gpu.py), codecs make frames of blocks (codecs_model.py), some of them
lossy by their engines' wish, or there is a remote that never answers (dead_remote.py); one that does, and a second node,
are in far_world.py.

What is not: frames and sockets (tests of protocol and server), memory (tests of the arena and the copier), files and
real drives (tests of the tiers).
"""

import functools
import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from kvtier.block import BELOW, SLOT_UNIT, BlockKey, namespace_digest
from kvtier.codec import RAW, Codec
from kvtier.deciding import MODES
from kvtier.errors import KVTierError
from kvtier.guard import Guard
from kvtier.store import BlockStore

from . import invariants, invariants_below, invariants_decisions, invariants_sessions
from .arena_model import ArenaModel, Meaning, content_of
from .charges import Charges
from .choices import Choices
from .clock import Clock
from .codecs_model import CodecsModel
from .dead_remote import DeadRemote
from .drives import Drives
from .engine_model import BUSY_UNTIL, EngineModel
from .expected import Expected
from .expected_decisions import ExpectedDecisions, Overheard
from .expected_sessions import ExpectedSessions
from .gpu import Gpu
from .habits import RIGHT, Habits
from .judged import Judged
from .operator_model import OperatorModel
from .talking import Talk

SEED_TEST = "tests/sim/test_simulation.py::test_the_store_survives_every_seed"
EVENTS_SHOWN = 40
EVENTS_MAX = 8_000  # several times what a long run has
SLAB = 2 * 1024 * 1024
TICK_S = 0.05
TICKS_EVERY = 4  # events: then it is looked what a tick has changed, mostly nothing
SESSIONS_EVERY = 5  # events: then sessions are looked at, which takes long
POLICIES = (*["value"] * 5, *["lru"] * 2, "s3fifo", "arc")
BROKEN = (AssertionError, ArithmeticError, LookupError, ValueError, KVTierError)  # how a broken store shows itself


def has_drives(seed: int) -> bool:
    return seed % 3 > 0


@dataclass(frozen=True)
class Namespace:
    digest: bytes
    units: int  # of one block
    ranks: int
    block_tokens: int
    is_chain: bool
    wish: Codec = RAW  # of its engines


class Simulation(Clock, Judged):
    reset_chance = 0.15  # that somebody resets while a lookup waits

    def __init__(
        self,
        seed: int,
        plant: Callable[[BlockStore], None] | None = None,
        habits: Habits = RIGHT,
        has_gpu: bool = False,
        has_dead_remote: bool = False,
        has_codecs: bool = False,
    ) -> None:
        """`plant` breaks the store on purpose, `habits` what stands around it; both to see whether that is noticed.
        `has_gpu`: some of what is in RAM has a copy on a device. `has_dead_remote`: a remote that never answers.
        `has_codecs`: below RAM some blocks are stored smaller."""
        super().__init__(seed)
        self.events = 0
        self.log: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self.habits = habits
        self.life = 1  # of the daemon
        self.drives: Drives | None = None
        self.gpu: Gpu | None = None
        self.codecs = CodecsModel(seed, lambda: self.now) if has_codecs else None
        self.dead_remote = DeadRemote(self) if has_dead_remote else None
        self._plant = plant
        self._store_was_called = False  # else a step was an engine's own affair, or a copy's
        self._only_ticked = False
        self._changes_seen = 0
        capacity = self.random.randint(2, 3 if has_drives(seed) else 6) * SLAB  # what is in RAM isn't read from a drive
        lend_share = self.random.choice((0.25, 0.5, 0.5) if has_drives(seed) else (0.1, 0.25, 0.5))
        lease_share = self.random.choice((0.3, 0.6, 0.9) if has_drives(seed) else (0.1, 0.3, 0.6))
        self.counts: Counter[str] = Counter()  # of all daemons
        self._shape = capacity, lend_share, lease_share
        self.is_calm = has_drives(seed) and self.chance(0.5)  # engines live long: more is read back from the drives
        self._mode = self.random.choice((*MODES, *["decide"] * 4, *["always"] * 2))
        self._has_whims = self.chance(0.5)
        self._holdout = self.random.choice((0.0, 0.0, 0.1, 0.3))
        self._tiers_off: set[str] = set(self.random.choice((*[()] * 5, ("cpu",), ("nvme",), ("cpu", "nvme"))))
        self._policy = self.random.choice(POLICIES)
        self._is_exact = self.chance(0.7)  # worths are looked up anew each time
        self._pin_share = self.random.choice((0.1, 0.25, 0.5))
        self.contents: dict[BlockKey, list[tuple[Meaning, int]]] = {}  # key -> what a slot of it holds
        if has_drives(seed):
            self.drives = Drives(self)
        if has_gpu:
            self.gpu = Gpu(self)
        self._start_daemon()
        self._found_engines()
        self.operator = OperatorModel(self)
        self._ticks = False
        self._tick_later()
        if self.drives is not None and self.chance(0.7):
            self.after(self.random.uniform(2, 11), "the daemon dies", self._daemon_dies)

    def run(self) -> None:
        """AssertionError, or whatever a broken store raises, with the seed and the last events as a note."""
        try:
            while self._due:
                self._step()
            self._finale()
        except BROKEN as error:
            again = f'again: pytest "{SEED_TEST}" --sim-seed={self.seed}'
            error.add_note("\n".join([f"seed {self.seed}; the last events:", *self.log, again]))
            raise

    # --- for engines -----------------------------------------------------------------------------------------

    def learn(self, key: BlockKey, meaning: Meaning, namespace: Namespace) -> None:
        """An engine uses this key for this content. Two contents under one key would be a lie by construction."""
        content = content_of(meaning, namespace.units, namespace.wish)
        assert self.contents.setdefault(key, content) == content, f"a key for {meaning} and for something else"

    def weights_of(self, namespace: Namespace) -> str:
        """That engines run which come now."""
        return f"weights-{self.expected.resets[namespace.digest]}"

    # --- how ---------------------------------------------------------------------------------------------------

    def _found_engines(self) -> None:
        namespaces = [
            Namespace(
                namespace_digest({"n": i}),
                *map(self.random.choice, ((4, 4, 5, 8, 12), (1, 2, 4), (16, 128, 512), (True, True, False))),
                RAW if self.codecs is None else self.codecs.wish(),
            )
            for i in range(self.random.randint(1, 3))
        ]
        self.talks = {namespace: Talk(self.random) for namespace in namespaces}
        self.engines = [
            EngineModel(self, f"engine-{i}", namespaces[i % len(namespaces)]) for i in range(self.random.randint(2, 4))
        ]
        for engine in self.engines:
            self.after(self.delay(0.3), f"{engine.name} starts", engine.start)

    def _step(self) -> None:
        self.now, _, what, action = heapq.heappop(self._due)
        self.log.append(f"{self.now:9.4f} {what}")
        self.events += 1
        assert self.events < EVENTS_MAX, "it never comes to rest"
        action()
        if self._store_was_called:
            self.expected.sessions.note_pins()
            if self.now < BUSY_UNTIL or self.store.leases.waiting():
                self._tick_later()
            if self.drives is not None:
                self.drives.serve()
            if self.dead_remote is not None:
                self.dead_remote.serve()
            self._serve_lends()
            self._serve_answers()
            self._serve_wipes()
            if self.gpu is not None:
                self.gpu.serve()
            self.operator.look()
            if not self._only_ticked or self.events % TICKS_EVERY == 0:
                self._check_store()
        if self._store_was_called or self.arena.changes != self._changes_seen:
            self._check_content()
        self._store_was_called = self._only_ticked = False

    def _tick_later(self) -> None:
        if not self._ticks:
            self._ticks = True
            self.after(TICK_S, "the daemon ticks", self._tick)

    def _tick(self) -> None:
        self._ticks = False
        self._store_was_called = self._only_ticked = True
        if self.drives is None:
            self.store.tick(self.now)
        else:
            self.drives.tick()
        self.expected.sessions.tick(self.now)
        if self.drives is not None:
            self.drives.note_expired()
        self.expected.lags = False

    def _serve_wipes(self) -> None:
        for slot, size in self.store.wipes():
            self.wiping.add(slot)
            units = list(range(slot, slot + size // SLOT_UNIT))
            wiped = functools.partial(self._wiped, self.life, slot, units)
            self.after(self.delay(0.1), f"slot {slot} is wiped", wiped)

    def _wiped(self, life: int, slot: int, units: list[int]) -> None:
        if life != self.life:
            return
        self._store_was_called = True
        self.wiping.remove(slot)
        assert len(units) * SLOT_UNIT == self.store.ram.slots.size_of(slot), f"slot {slot} is not wiped whole"
        self.arena.wipe(units)
        self.store.wiped(slot)
        self.expected.wiped(slot)

    def _serve_lends(self) -> None:
        """As the server does it after whatever it heard."""
        looks = self.store.lending.can_help
        given = dict(self.store.lends())
        self.expected.lends(given, looks)
        for engine in self.engines:
            if engine.name in given:
                assert engine.name not in self._leaving, f"{engine.name} is leaving and got slots"
                engine.on_lent(given[engine.name])

    def _serve_answers(self) -> None:
        """Of lookups that waited."""
        answers = [(engine, lease, slots.tolist()) for engine, lease, slots in self.store.leases.answers()]
        if self.expected.below is not None:
            below, self.expected.below.answers = self.expected.below.answers, []
            assert answers == below, "what lookups that waited are answered"
        for name, lease, slots in answers:
            next(engine for engine in self.engines if engine.name == name).on_answer(lease, slots)

    def must_answer(self, asker: tuple[str, int], slots: list[int], keys: list[BlockKey]) -> list[int]:
        """What the engine hears."""
        for slot, key in zip(slots, keys, strict=True):
            if slot < BELOW:
                self._must_hold(slot, key)
        return slots if self.gpu is None else self.gpu.answered(asker, slots, keys)

    def _start_daemon(self) -> None:
        capacity, lend_share, lease_share = self._shape
        self.store = BlockStore(capacity, lend_share=lend_share, lease_share=lease_share, policy=self._policy)
        self.store.retention.pins.share = self._pin_share
        decisions = self.store.decisions
        decisions.mode, decisions.guard = self._mode, Guard(self._holdout)
        overheard = Overheard(decisions, self._tiers_off, self.random if self._has_whims else None)
        choices = Choices(self.store, self._is_exact)
        made = choices.made, Charges(self.store, self._is_exact).made
        self.expected = Expected(
            capacity, lend_share, lease_share, ExpectedDecisions(overheard), *made, self._policy == "lru"
        )
        self.expected.sessions = ExpectedSessions(self.expected, self.store)
        self.wiping: set[int] = set()
        self.arena = ArenaModel(self.store.ram.slots.units)
        self._leaving: set[str] = set()
        self._counters = self.store.stats.snapshot()
        if self.drives is not None:
            self.drives.attach()
        if self.dead_remote is not None:
            self.dead_remote.attach()
        if self.gpu is not None:
            self.gpu.attach()
        if self._plant is not None:
            self._plant(self.store)

    def _daemon_dies(self) -> None:
        """At any moment. All in RAM is lost; what runs, runs in an arena that nobody will look at again."""
        self.operator.daemon_died()
        self.life += 1
        self.counts.update(self.store.stats.snapshot())
        assert self.drives is not None
        self.drives.crash()
        self._start_daemon()
        for engine in self.engines:
            engine.on_daemon_died()

    def _check_content(self) -> None:
        self._changes_seen = self.arena.changes
        for key, slot in self.store.ram.index._slot_of.items():
            self._must_hold(slot, key)

    def _check_store(self) -> None:
        invariants.check(self.store, self.expected, self.wiping)
        invariants_sessions.check(self.store, self.expected, self._pin_share)
        if self.events % SESSIONS_EVERY == 0:
            invariants_sessions.check_sessions(self.store, self.expected)
        invariants_decisions.check(self.store, self.expected)
        if self.drives is not None:
            invariants_below.check(self.store, self.expected, self.drives)
        counters = self.store.stats.snapshot()
        fallen = [name for name, n in counters.items() if n < self._counters[name]]
        assert not fallen, f"counters {fallen} went down"
        self._counters = counters

    def _must_hold(self, slot: int, key: BlockKey) -> None:
        content = self.contents[key]
        assert self.store.ram.slots.size_of(slot) == len(content) * SLOT_UNIT, f"slot {slot} has another size"
        assert self.arena.holds_whole(slot, content), f"slot {slot} does not hold {content[0][0]} whole"

    def _finale(self) -> None:
        """All requests are over: no lease is left. The last engines reset and go: nothing at all is left."""
        self._all_is_quiet()
        if self.drives is not None and self.chance(0.5):
            self._daemon_dies()
            self._run_all()
        for engine in self.engines:
            assert engine.is_idle, f"{engine.name} still waits for something"
            engine.start()
        self._run_all()
        for engine in self.engines:
            engine.reset_cache()
        self._run_all()
        self._all_is_quiet()
        for engine in self.engines:
            engine.crash()
        self._run_all()
        self._all_is_quiet()
        assert self.store.ram.slots.taken_bytes == 0 == self.store.lending.lent_bytes, "slots are lost"
        assert not any(self.store.ram.slots._free.values()) and self.store.ram.slots.closing is None, "slots are lost"
        assert len(self.store.ram.slots._unassigned) == self.store.ram.slots.slabs, "slabs are lost"
        self.counts.update(self.store.stats.snapshot())

    def _all_is_quiet(self) -> None:
        assert not self.expected.leases and not self.store.leases.bytes, "a lease outlived its request"
        assert not self.wiping, "something is never wiped"
        left = {ticket: self.store.retention._forgetting._open[ticket] for ticket in self.operator.open}
        assert not left, f"something is never forgotten: {left}"
        invariants_decisions.all_is_quiet(self.store, self.expected)
        if self.drives is not None:
            self.drives.flush()
            self.after(0.0, "a flush", self.store_was_called)
            self._run_all()
            invariants_below.all_is_quiet(self.store, self.expected, self.drives)
        if self.gpu is not None:
            self.gpu.all_is_quiet()

    def _run_all(self) -> None:
        while self._due:
            self._step()
