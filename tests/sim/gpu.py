"""The GPU tier in the simulated world: a device whose orders end late, in any order, and fail; the copies in it; and who
reads them. What must hold of the mirror is checked here too.

The device keeps the contract of kvtier/tiers/base.py: from the start of a copy to its end its slot is read, and its place
is written. What a lookup was answered with is held against what lies at that place until the lease is over.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from kvtier.block import ABSENT, BELOW, SLOT_UNIT, BlockKey
from kvtier.mirror import NOBODY, Mirror
from kvtier.policy import KEPT
from kvtier.transfer import Demote, Erase, Finished, Transfer

from .arena_model import ArenaModel

if TYPE_CHECKING:
    from .expected_sessions import Oblivion
    from .simulation import Simulation

SLAB = 2 * 1024 * 1024
FAULTS = (0.0, 0.05, 0.3)  # how many orders fail

Asker = tuple[str, int]  # engine, lease


class Gpu:
    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.capacity = sim.random.randint(1, 2) * SLAB
        self._faults = sim.random.choice(FAULTS)
        self._mean_s = sim.random.choice((0.005, 0.05, 0.3))

    def attach(self) -> None:
        """A daemon starts, on a device where nothing is."""
        store = self.sim.store
        store.attach_gpu(self.capacity)
        assert store.mirror is not None
        self.mirror: Mirror = store.mirror
        self.device = ArenaModel(self.mirror.places.units)
        self._seen: dict[int, list[int]] = {}  # what a copy saw of its slot at its start
        self._was: dict[int, list] = {}  # what lay where it is to be erased
        self._refuses_until = 0.0
        self._tickets = itertools.count(1)
        self._of_use: set[BlockKey] = set()  # ever found by a lookup, or pinned by a user
        self._promised: dict[Asker, list[tuple[int, BlockKey]]] = {}  # places that it may read
        self._doomed: dict[int, set[int]] = {}  # by ticket of what is to be forgotten: places

    # --- what engines do -------------------------------------------------------------------------------------------

    def joined(self, engine: str) -> None:
        if self.sim.chance(0.8):
            self.mirror.readers.add(engine)
        else:
            self.mirror.readers.discard(engine)

    def answered(self, asker: Asker, answer: list[int], keys: list[BlockKey]) -> list[int]:
        """As the server sends it."""
        said = self.sim.store.answered(*asker, np.array(answer, np.uint32)).tolist()
        promised = []
        for slot, told, key in zip(answer, said, keys, strict=True):
            if slot < BELOW:
                self._of_use.add(key)
            if told == slot:
                continue
            place = told - self.mirror.base
            assert slot < BELOW and asker[0] in self.mirror.readers, f"{asker[0]} is told place {place} and can't read it"
            promised.append((place, key))
        self._promised[asker] = promised
        self._keep_promises()
        return said

    def released(self, asker: Asker) -> None:
        self._promised.pop(asker, None)

    def left(self, engine: str) -> None:
        self._promised = {asker: places for asker, places in self._promised.items() if asker[0] != engine}
        assert engine not in self.mirror.readers, f"{engine} is gone and reads"

    # --- after each event ------------------------------------------------------------------------------------------

    def serve(self) -> None:
        now, ram = self.sim.now, self.sim.store.ram
        if ram.policy.kept_in_slab.any():
            self._of_use |= {key for key, slot in ram.index._slot_of.items() if ram.policy.queues(slot) == KEPT}
        writable = now >= self._refuses_until
        orders = self.mirror.transfers(now, writable)
        assert writable or not orders, "orders for a device that takes none"
        for order in orders:
            assert order.ticket == next(self._tickets), "a ticket is used twice"
            self._start(order)
        self.check()

    def _start(self, order: Transfer) -> None:
        assert isinstance(order, Demote | Erase)
        if isinstance(order, Demote):
            assert self.sim.store.ram.index.key(order.slot) == order.key, f"{order} of another block"
            assert order.key in self._of_use, f"{order} of what was of use once at most"
            self._seen[order.ticket] = self.sim.arena.begin_read(_units(order.slot, order.size))
            self.sim.expected.pins_by_writes[order.slot] += 1
        else:
            self._was[order.ticket] = self.device.content(_units(order.place, order.size))
        self._write(_who(order), order.place, order.size)
        life = self.sim.life
        self.sim.after(self.sim.delay(self._mean_s), f"{_who(order)} ends", lambda: self._end(order, life))

    def _write(self, who: str, place: int, size: int) -> None:
        units = set(_units(place, size))
        for asker, promised in self._promised.items():
            for other, key in promised:
                theirs = set(_units(other, len(self.sim.contents[key]) * SLOT_UNIT))
                assert not theirs & units, f"{who} writes what {asker} may read"
        self.device.begin_write(who, sorted(units))

    def _end(self, order: Demote | Erase, life: int) -> None:
        if life != self.sim.life:
            return
        sim = self.sim
        sim.store_was_called()
        fault = "io" if sim.chance(self._faults) else ""
        if fault:
            self._refuses_until = sim.now + sim.random.uniform(0.05, 0.5)
            sim.after(self._refuses_until - sim.now, "the device takes orders", sim.store_was_called)
        if isinstance(order, Demote):
            units = _units(order.slot, order.size)
            content = sim.arena.content(units)
            sim.arena.end_read(units, self._seen.pop(order.ticket))
            self.device.end_fill(_who(order), order.place, None if fault and sim.chance(0.5) else content)
            sim.expected.pins_by_writes[order.slot] -= 1
        else:
            was = self._was.pop(order.ticket)
            self.device.end_fill(_who(order), order.place, was if fault else None)
        sim.store.gpu_finished(Finished(order.ticket, fault), sim.now)
        sim.expected.free_what_nobody_holds()

    # --- what is forgotten by wish ---------------------------------------------------------------------------------

    def copies(self) -> dict[int, int]:
        """Slot -> place, of what is there and what is on its way."""
        slots = np.flatnonzero(self.mirror._place != ABSENT)
        there = dict(zip(slots.tolist(), self.mirror._place[slots].tolist(), strict=True))
        return there | {order.slot: order.place for order in self.mirror._copying.values()}

    def forget(self, ticket: int, before: dict[int, int], oblivion: Oblivion) -> None:
        """`before`: what `copies` said."""
        self._doomed[ticket] = {before[slot] for slot in oblivion.slots & set(before)}

    def nothing_is_left_of(self, ticket: int, oblivion: Oblivion, proof: dict[str, dict[str, int]]) -> None:
        places = self._doomed.pop(ticket)
        assert proof["blocks"]["gpu"] == len(places), "how many copies are said to be overwritten"
        meanings = {self.sim.contents[key][0][0] for key in oblivion.keys}
        for place in places:
            content = self.device.content([place])[0]
            assert content is None or content[0] not in meanings, f"bytes of it are at place {place}"

    # --- what must hold --------------------------------------------------------------------------------------------

    def check(self) -> None:
        mirror, ram = self.mirror, self.sim.store.ram
        slots = np.flatnonzero(mirror._place != ABSENT).tolist()
        places = mirror._place[slots].tolist()
        copying = {order.place: order for order in mirror._copying.values()}
        erasing = [order.place for order in mirror._erasing.values()] + [place for place, _ in mirror._to_erase]
        taken = places + list(copying) + erasing
        assert len(set(taken)) == len(taken), "a place has two uses"
        assert sum(map(mirror.places.size_of, taken)) == mirror.places.taken_bytes, "places are lost"
        assert mirror.copies == len(slots), "copies"
        at = np.flatnonzero(mirror._slot_at != NOBODY)
        assert dict(zip(at.tolist(), mirror._slot_at[at].tolist(), strict=True)) == dict(zip(places, slots, strict=True))
        assert mirror.copying_bytes == sum(order.size for order in copying.values()), "copying_bytes"
        assert mirror._doomed >= set(erasing), "what is erased that nobody has doomed"
        for slot, place in zip(slots, places, strict=True):
            assert ram.index.holds(slot) or ram.index.is_pinned(slot), f"slot {slot} is free and has a copy"
            assert mirror.places.size_of(place) == ram.slots.size_of(slot), f"place {place} has another size"
            if ram.index.holds(slot):
                content = self.sim.contents[ram.index.key(slot)]
                assert self.device.holds_whole(place, content), f"place {place} does not hold {content[0][0]} whole"
        open_ = {(name, lease) for name in self.sim.store.lending.engines for lease in self.sim.store.leases.of(name)}
        assert mirror._leases <= open_, "leases that are over are remembered"
        self._keep_promises()

    def _keep_promises(self) -> None:
        for asker, promised in self._promised.items():
            for place, key in promised:
                assert self.mirror._slot_at[place] != NOBODY, f"place {place}, which {asker} may read, is given away"
                is_right = self.device.holds_whole(place, self.sim.contents[key])
                assert is_right, f"place {place}, which {asker} may read, holds something else"

    def all_is_quiet(self) -> None:
        assert self.mirror.is_idle and not self._promised, "something of the device never ends"
        assert not self.mirror.reading, "leases on places that nobody has: the end of the daemon would wait for them"
        for size, heap in self.mirror._oldest.items():
            named = {slot for _, slot in heap}
            lost = [slot for slot in self.copies() if self.mirror._has_copy(slot, size) and slot not in named]
            assert not lost, f"the copies of slots {lost} are never the oldest"


def _units(first: int, size: int) -> list[int]:
    return list(range(first, first + size // SLOT_UNIT))


def _who(order: Demote | Erase) -> str:
    return f"the {'copy' if isinstance(order, Demote) else 'erasure'} {order.ticket}"
