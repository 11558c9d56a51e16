"""Nodes of several users and tenants, all of whom have limits.

What is modelled beside far_world.py: whose bytes lie in each unit of the arena, also what is left of former blocks and of
copies that failed; so an engine that is lent bytes of another user is found out.
"""

from __future__ import annotations

from kvtier.block import SLOT_UNIT
from kvtier.store import BlockStore
from kvtier.tenants import Limits

from . import invariants_tenants
from .arena_model import ArenaModel, Meaning
from .far_world import FarWorld
from .node import Node


class TracedArena(ArenaModel):
    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.traces: list[set[str]] = [set() for _ in range(units)]  # of each unit: engines, and namespaces of reads

    def begin_write(self, who: str, units: list[int]) -> None:
        super().begin_write(who, units)
        for unit in units if "'" in who else ():
            self.traces[unit].add(who.split("'")[0])  # an engine

    def end_write(self, who: str, units: list[int], slot: int, meaning: Meaning, whole: bool) -> None:
        super().end_write(who, units, slot, meaning, whole)
        for unit in units if whole else ():
            self.traces[unit] = {who.split("'")[0]}

    def end_fill(self, who: str, slot: int, content: list | None) -> None:
        mine = [unit for unit, writer in enumerate(self._writer) if writer == who]
        super().end_fill(who, slot, content)
        for unit in mine if content else ():
            self.traces[unit] = {content[unit - slot][0][0]}  # the namespace

    def wipe(self, units: list[int]) -> None:
        super().wipe(units)
        for unit in units:
            self.traces[unit] = set()


class CrowdedNode(Node):
    arena_model = TracedArena

    def user_of(self, digest: bytes) -> str:
        return self.world.users[digest]

    def _start_daemon(self, former: object = None) -> None:
        super()._start_daemon(former)
        self.store.ram.tenants.limits = self.world.limits(self._shape[0])
        self._is_exact = self.chance(0.7)
        if self._is_exact:
            self.store.ram.charging.lasts_s = 0.0  # nothing that could go is missed
        self._watch_charges(self.store)
        self._watch_reads(self.store)
        sound = self.store.lends

        def lends() -> list[tuple[str, list[int]]]:
            given = sound()
            for engine, slots in given:
                for slot in slots:
                    self._is_clean(engine, slot)
            return given

        self.store.lends = lends

    def _tick(self) -> None:
        super()._tick()
        if self._is_exact:
            invariants_tenants.nobody_has_more_than_he_may(self.store)

    def serve(self) -> None:
        is_looked_at = self.is_called
        super().serve()
        if is_looked_at:
            invariants_tenants.check(self.store)

    def _watch_charges(self, store: BlockStore) -> None:
        charging = store.ram.charging
        makes_room, evict, paying = charging.makes_room, charging._evict, []

        def heard(number: int, *of: object) -> bool:
            paying.append(number)
            is_made = makes_room(number, *of)
            paying.pop()
            return is_made

        def heard_evict(slot: int, cause: str) -> None:
            whose = store.ram.tenants.of(slot)
            assert not paying or whose == paying[-1], f"tenant {paying} has too much, and tenant {whose} pays"
            evict(slot, cause)

        charging.makes_room, charging._evict = heard, heard_evict

    def _watch_reads(self, store: BlockStore) -> None:
        sound, arena = store.ram.residue.filling, self.arena

        def filling(slot: int, size: int, namespace: int) -> None:
            digest = next(digest for digest, known in store.namespaces.items() if known.number == namespace)
            for unit in range(slot, slot + size // SLOT_UNIT):
                arena.traces[unit].add(digest[:4].hex())
            sound(slot, size, namespace)

        store.ram.residue.filling = filling

    def _is_clean(self, engine: str, slot: int) -> None:
        mine = self._user(engine)
        for unit in range(slot, slot + self.store.ram.slots.size_of(slot) // SLOT_UNIT):
            for trace in self.arena.traces[unit]:
                assert self._user(trace) == mine, f"{engine} is lent slot {slot} with bytes of {trace}"

    def _user(self, whose: str) -> str:
        """Of an engine, or of a namespace as meanings have it."""
        digest = next((digest for digest in self.world.users if digest[:4].hex() == whose), None)
        return self.world.users[digest or self.world.namespaces[int(whose.split("-")[1])].digest]


class Crowd(FarWorld):
    node = CrowdedNode

    def __init__(self, seed: int, plant=lambda store: None) -> None:
        self._seed_of_limits = seed
        super().__init__(seed, plant)

    @property
    def users(self) -> dict[bytes, str]:
        """By namespace."""
        names = ("", "bob" if self._seed_of_limits % 3 else "")
        return {namespace.digest: name for namespace, name in zip(self.namespaces, names, strict=True)}

    def limits(self, capacity: int) -> Limits:
        return Limits(
            bytes=int(self.random.choice((0, 0.15, 0.3, 0.5)) * capacity),
            blocks=self.random.choice((0, 0, 2, 5)),
            loads=self.random.choice((0, 1, 2)),
            write_rate=self.random.choice((0.0, 2.0**17)),
        )
