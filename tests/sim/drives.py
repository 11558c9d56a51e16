"""The tier below in the simulated world: it is driven as the daemon does it, it crashes with the daemon, and what comes
back then is held against what must and must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtier.admission import Budget
from kvtier.block import PLACE_GRAIN, SLOT_UNIT, BlockKey, unpack_keys
from kvtier.codec import RAW, Codec
from kvtier.extents import Extents
from kvtier.store import DRIVE_BYTES_PER_S, DRIVE_LATENCY_S
from kvtier.tiers.base import Recovered
from kvtier.transfer import Demote, Erase, Finished, Flush, Forget, Promote, Remember, Transfer

from .arena_model import Meaning
from .drives_link import HeardLink
from .expected_below import ExpectedBelow, Wanted
from .expected_sessions import Oblivion
from .frames import content_in
from .heard_coding import HeardCoding
from .tier_model import ROTTEN, ZEROS, Disks, Luck, TierModel

if TYPE_CHECKING:
    from .simulation import Namespace, Simulation

EXTENT_UNITS = 32
BUDGETS = (*[2**40] * 4, 2**25, 2**21)  # bytes a day
REFUSALS = ("refused_no_disk", "refused_ended", "refused_budget", "refused_first_use", "refused_queue", "refused_too_large")
LUCK = (
    Luck(io=0.01),
    *[Luck(io=0.1, rots=0.15, hangs=0.03, late=0.2)] * 2,
    *[Luck(io=0.1, rots=0.05, late=0.1, read_s=0.1)] * 2,
)


class Drives:
    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        drives = sim.random.randint(1, 3)
        extents = max(drives + 1, sim.random.choice((2, 6, 8, 16)))  # the first are hardly more than the arena
        self.disks = Disks(extents, EXTENT_UNITS, drives)
        self.bytes_per_day = sim.random.choice(BUDGETS)
        self.luck = sim.random.choice(LUCK)
        self.stage_s = sim.random.choice((0.05, 1.0, 3.0))
        self._wakes_at: float | None = None
        self._flushes = 0
        self._at_flush: dict[int, dict[BlockKey, int]] = {}  # ticket -> what lay where when it was started
        # What a crash must bring back, and what it must not:
        self._durable: dict[BlockKey, int] = {}
        self._dying: list[tuple[bytes, int, set[BlockKey]]] = []  # namespace, epoch that ends them, keys
        self._dead: set[BlockKey] = set()

    def attach(self) -> None:
        """A daemon starts, and takes over what its predecessor left."""
        sim, disks = self.sim, self.disks
        self.tier = TierModel(disks, sim.arena, sim.random, lambda: sim.now, self.luck, sim.codecs)
        recovered = self.tier.recovered
        self._judge_recovered(recovered)
        self.extents = Extents(disks.extents, EXTENT_UNITS * SLOT_UNIT, disks.drives)
        columns = (recovered.places, recovered.sizes, recovered.namespaces, recovered.checksums, recovered.origins)
        odd = self.extents.recover(recovered.keys, *columns, recovered.stored)
        assert not odd, "what the tier recovered doesn't fit"
        link = HeardLink(lambda: sim.now, DRIVE_LATENCY_S, DRIVE_BYTES_PER_S)
        self.coding = None
        if sim.codecs is not None:
            extent_bytes = EXTENT_UNITS * SLOT_UNIT
            self.coding = HeardCoding(unit=PLACE_GRAIN, link=link, extent_bytes=extent_bytes, **sim.codecs.settings())
        budget = Budget(self.bytes_per_day, sim.now)
        sim.store.attach(self.extents, budget, self.stage_s, recovered.remembered, link, self.coding)
        sim.expected.below = ExpectedBelow(
            sim.expected, sim.store.ram.slots.capacity, self.bytes_per_day, self.stage_s, sim.now, link
        )
        sim.expected.below.recover(recovered)
        self._hear_of_ahead()

    def joined(self, namespace: Namespace) -> None:
        """An engine of it said what it wishes."""
        if self.coding is not None and namespace.wish != RAW:
            self.coding.wish(self.sim.store.namespaces[namespace.digest].number, namespace.wish)

    def wishes(self) -> dict[int, Codec]:
        """Of all engines that there are or were, by the number of their namespace."""
        wishes = {namespace.digest: namespace.wish for namespace in self.sim.talks}
        return {number: wishes[digest] for digest, number in self._below.numbers.items()}

    def crash(self) -> None:
        """With the daemon. What was being written is garbage."""
        for mine in self.tier.under_way.values():
            if isinstance(mine.order, Demote) and not mine.refused:
                self.disks.content.pop(mine.order.place, None)
        self.disks = self.tier.crash()
        self._wakes_at = None
        self._at_flush.clear()
        self._dying.clear()

    # --- after each event --------------------------------------------------------------------------------------

    def serve(self) -> None:
        sim, below = self.sim, self._below
        writable = not self.tier.read_only
        orders = sim.store.transfers(sim.now, writable)
        below.transfers(orders, sim.now, writable, self.refusals())
        for order in orders:
            self._note_order(order)
            self.tier.start(order)
        self._wake()

    def due(self, engine: str, lease: int) -> None:
        below, now = self._below, self.sim.now
        outlook = below.outlook(now)
        self.sim.store.due(engine, lease, now)
        self.sim.expected.decisions.due((engine, lease), now)
        if (engine, lease) in below.waiting:
            below.replan(outlook, now)

    def tick(self) -> None:
        """The store has a tick after this one's outlook."""
        outlook = self._below.outlook(self.sim.now)
        self.sim.store.tick(self.sim.now)
        self._below.replan(outlook, self.sim.now)
        late = [asker for asker, mine in self.sim.store.lower.staging.waiting.items() if mine.until <= self.sim.now]
        assert not late, f"{late} wait longer than any lookup may"

    def flush(self) -> None:
        self._flushes += 1
        demotions = self.sim.store.lower.demotions
        self.sim.store_was_called()
        self.sim.store.flush(self._flushes)
        self._below.flush(self._flushes, [*demotions._first, *demotions._again], self.refusals())

    def reset(self, namespace: bytes) -> None:
        below = self._below
        keys = {key for key, lying in below.blocks.items() if lying.namespace == namespace}
        keys |= {order.key for order in below.writes() if order.namespace == below.numbers[namespace]}
        self._dying.append((namespace, self.sim.expected.resets[namespace] + 1, keys))
        for key in keys:
            self._durable.pop(key, None)

    def note_expired(self) -> None:
        """What was dropped need not come back."""
        lying = {key: lying.place for key, lying in self._below.blocks.items()}
        self._durable = {key: place for key, place in self._durable.items() if lying.get(key) == place}

    def forget(self, ticket: int) -> None:
        """The store was told to; what of it was durable will be erased."""
        sessions, lower = self.sim.expected.sessions, self.sim.store.lower
        oblivion = sessions.oblivions[ticket]
        self._below.note_erasing(lower._erasing - self._below.erasing, oblivion)
        self._durable = {key: place for key, place in self._durable.items() if place not in oblivion.places}

    def nothing_is_left_of(self, oblivion: Oblivion, meanings: set[Meaning]) -> None:
        for place in oblivion.places:
            content = content_in(self.disks.content.get(place))
            is_theirs = isinstance(content, list) and any(isinstance(c, tuple) and c[0] in meanings for c in content)
            assert not is_theirs, f"bytes of it are at place {place}"
            assert place not in self.disks.records or self.disks.records[place].demote.key not in oblivion.keys
        self._dead |= oblivion.keys

    def check_content(self) -> None:
        """What the store could order to be read lies there whole, or has rotted since."""
        for key, lying in self._below.blocks.items():
            content = content_in(self.disks.content.get(lying.place))
            erased = [ZEROS] * (lying.place_bytes // SLOT_UNIT)  # its record survived a crash that it did not
            assert content in (ROTTEN, erased, self.sim.contents[key]), f"place {lying.place} doesn't hold what it should"

    def refusals(self) -> int:
        return sum(self.sim.store.stats[name] for name in REFUSALS)

    def _hear_of_ahead(self) -> None:
        """What is read before somebody asks for it."""
        staging, below = self.sim.store.lower.staging, self._below
        sound = staging.begin_ahead

        def begin_ahead(wanted: list, due: float, worth: float) -> int:
            known = {read.order.key for read in below.reads.values()} | {one.key for _, one, _ in below.ahead}
            for one in wanted:
                if one.key not in known:
                    known.add(one.key)
                    below.ahead.append((due, Wanted(one.key, one.place, one.size, one.parent, one.place_bytes), worth))
            below.ahead.sort(key=lambda one: one[0])
            return sound(wanted, due, worth)

        staging.begin_ahead = begin_ahead

    # --- how ---------------------------------------------------------------------------------------------------

    @property
    def _below(self) -> ExpectedBelow:
        assert self.sim.expected.below is not None
        return self.sim.expected.below

    def _at(self, when: float, what: str, action: Callable[[], None]) -> None:
        """Within this life of the daemon."""
        life = self.sim.life
        self.sim.at(when, f"the daemon {what}", lambda: action() if self.sim.life == life else None)

    def _wake(self) -> None:
        at = self.tier.wakes_at()
        if at is not None and (self._wakes_at is None or at < self._wakes_at):
            self._wakes_at = at
            self._at(at, "polls", self._poll)

    def _poll(self) -> None:
        if self._wakes_at is not None and self._wakes_at <= self.sim.now:
            self._wakes_at = None
        self.sim.store_was_called()
        for done in self.tier.poll():
            order = self._below.under_way[done.ticket]
            self.sim.log.append(f"{self.sim.now:9.4f}   {done.fault or 'done'}: {order}")
            self.sim.store.finished(done, self.sim.now)
            self._below.finished(done, self.sim.now)
            self._note_finished(order, done)
        self.check_content()
        if self.sim.chance(0.1):
            self.flush()

    # --- what survives -----------------------------------------------------------------------------------------

    def _note_order(self, order: Transfer) -> None:
        if isinstance(order, Demote | Promote):
            self.sim.operator.heard_of(order)
        if isinstance(order, Flush):
            self._at_flush[order.ticket] = {key: lying.place for key, lying in self._below.blocks.items()}
        elif isinstance(order, Forget):
            self._durable = {key: place for key, place in self._durable.items() if not order.first <= place < order.end}
        elif isinstance(order, Erase):
            self._durable = {key: place for key, place in self._durable.items() if place != order.place}
        elif isinstance(order, Demote):
            for keys in (self._dead, *(keys for _, _, keys in self._dying)):
                keys.discard(order.key)  # an engine that was not reset saved it again

    def _note_finished(self, order: Transfer, done: Finished) -> None:
        if isinstance(order, Flush):
            over = self.sim.store.flushed()
            assert [said for _, said in over] == [not done.fault], "a Flush is over, and what is said of it"
            assert self._below.flushes.pop(over[0][0], None) is not None, "a flush is over twice"
            lying = {key: lying.place for key, lying in self._below.blocks.items()}
            if not done.fault:
                at_start = self._at_flush[order.ticket]
                self._durable.update({key: place for key, place in at_start.items() if lying.get(key) == place})
        elif isinstance(order, Promote) and done.fault == "corrupt":
            self._durable.pop(order.key, None)
        elif isinstance(order, Remember) and not done.fault:
            for namespace, epoch, keys in self._dying:
                if namespace == order.digest and epoch <= order.epoch:
                    self._dead |= {key for key in keys if key not in self._below.blocks}
            self._dying = [(n, e, keys) for n, e, keys in self._dying if n != order.digest or e > order.epoch]

    def _judge_recovered(self, recovered: Recovered) -> None:
        found = dict(zip(unpack_keys(recovered.keys), recovered.places.tolist(), strict=True))
        lost = [place for key, place in self._durable.items() if found.get(key) != place]
        assert not lost, f"places {lost} were flushed and are not recovered"
        assert not self._dead & set(found), "blocks of before a reset are back"
