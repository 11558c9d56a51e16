"""Whatever happens to the store of a simulation: it is told, so is Expected, and their answers are compared."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np

from kvtier.block import NO_KEY, SLOT_UNIT, BlockKey, pack_keys
from kvtier.decision import Ask
from kvtier.errors import ProtocolError
from kvtier.session import Hints
from kvtier.store import NOBODY, BlockStore

from . import invariants_decisions
from .drives import Drives
from .expected import Expected
from .gpu import Gpu

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from .simulation import Namespace


class Judged:
    now: float
    random: Random
    store: BlockStore
    expected: Expected
    drives: Drives | None
    gpu: Gpu | None
    counts: Counter[str]
    contents: dict
    chance: Callable[[float], bool]
    delay: Callable[[float], float]
    _store_was_called: bool
    _leaving: set[str]

    def store_was_called(self) -> None:
        self._store_was_called = True

    def join(self, engine: str, namespace: Namespace, lend: int) -> int:
        block_bytes = namespace.units * SLOT_UNIT - self.random.randrange(SLOT_UNIT)
        self._store_was_called = True
        tokens, is_chain = namespace.block_tokens, namespace.is_chain
        answer = self.store.join(engine, namespace.digest, block_bytes, tokens, lend, self.now, is_chain=is_chain)
        expected = self.expected.join(engine, namespace.digest, block_bytes, tokens, lend, is_chain)
        assert answer == expected, "epoch and target"
        if self.drives is not None:
            self.drives.joined(namespace)
        if self.gpu is not None:
            self.gpu.joined(engine)
        return answer[0]

    def leave(self, engine: str) -> None:
        self._store_was_called = True
        self._leaving.discard(engine)
        self.store.leave(engine, self.now)
        self.expected.leave(engine, self.now)
        if self.gpu is not None:
            self.gpu.left(engine)

    def want(self, engine: str, slots: int) -> None:
        self._store_was_called = True
        self.store.want(engine, slots)
        self.expected.want(engine, slots)

    def leaving(self, engine: str) -> None:
        self._store_was_called = True
        self._leaving.add(engine)
        self.store.leaving(engine, self.now)
        self.expected.leaving(engine)

    def reset(self, engine: str, namespace: Namespace) -> None:
        self._store_was_called = True
        if self.drives is not None:
            self.drives.reset(namespace.digest)
        self.store.reset(engine, namespace.digest)
        self.expected.reset(engine)

    def begin(self, engine: str, request: str, hints: Hints) -> None:
        """Nothing but the lookup of this request depends on it."""
        self.store.begin(engine, request, hints, self.now)
        self.expected.sessions.said[engine, request] = hints

    def lookup(self, engine: str, lease: int, keys: list[BlockKey], skip: int, ask: Ask = NOBODY) -> list[int] | None:
        """None: it waits, and the engine will be told."""
        self._store_was_called = True
        answer = self.store.lookup(engine, lease, pack_keys(keys), skip, self.now, ask)
        found = None if answer is None else answer.tolist()
        if ask.request:
            is_chain = self.expected.engines[engine].is_chain
            self.expected.sessions.asked(engine, ask.request, keys, is_chain, self.now)
        assert found == self.expected.lookup(engine, lease, keys, skip, ask, self.now), "what a lookup answers"
        return found

    def release(self, engine: str, lease: int, loaded: int, load_s: float) -> None:
        self._store_was_called = True
        if self.gpu is not None:
            self.gpu.released((engine, lease))
        self.store.release(engine, lease, loaded, self.now, load_s)
        self.expected.release(engine, lease)

    def due(self, engine: str, lease: int) -> None:
        self._store_was_called = True
        if self.drives is not None:
            self.drives.due(engine, lease)
        else:
            self.store.due(engine, lease, self.now)

    def pace(self, engine: str, counts: dict[str, int]) -> None:
        """Nothing but the next decision depends on it."""
        self.store.pace(engine, counts)

    def outcome(self, engine: str, request: str, counts: dict[str, int]) -> None:
        """It concerns nothing but decisions."""
        self.store.outcome(engine, request, counts, self.now)
        self.expected.decisions.outcome(engine, request)
        invariants_decisions.check(self.store, self.expected)

    def commit(self, engine: str, keys: list[BlockKey], slots: list[int], befores: list[BlockKey], request: str) -> None:
        """`befores`: for each the block before it, or empty."""
        self._store_was_called = True
        parents = pack_keys(before or NO_KEY for before in befores) if any(befores) else b""
        self.store.commit(engine, pack_keys(keys), np.array(slots, np.uint32), parents, request, self.now)
        self.expected.sessions.saves(engine, request, keys, self.now)
        self.expected.commit(engine, keys, slots, befores, request)

    def give_back(self, engine: str, slots: list[int]) -> None:
        self._store_was_called = True
        self.store.give_back(engine, np.array(slots, np.uint32))
        self.expected.give_back(engine, slots)

    def touch(self, engine: str, keys: list[BlockKey], request: str) -> None:
        self._store_was_called = True
        self.store.touch(engine, pack_keys(keys), request, self.now)
        self.expected.sessions.over(engine, request, keys, self.now)

    def commit_of_a_slot_that_is_not_lent(self, engine: str, key: BlockKey) -> None:
        self._store_was_called = True
        mine = self.store.lending.engines[engine].lent
        slots = [self.random.choice([slot for slot in range(self.store.ram.slots.units + 9) if slot not in mine])]
        if mine and self.chance(0.3):
            slots = [min(mine)] * 2  # its own, but twice
        try:
            self.store.commit(engine, key * len(slots), np.array(slots, np.uint32))
        except ProtocolError as error:
            assert error.code == "bad_slot"
        else:
            raise AssertionError(f"slots {slots} are not lent to {engine}, yet it could commit them")

    # --- wishes of an operator ---------------------------------------------------------------------------------

    def wish(self, verb: str, name: str, tenant: str) -> None:
        self._store_was_called = self.expected.lags = True
        retention, sessions = self.store.retention, self.expected.sessions
        if verb == "pin":
            retention.pin(name, self.delay(1.0), self.now, tenant)
        elif verb == "unpin":
            retention.pin(name, 0.0, self.now, tenant)
        elif verb == "warm":
            retention.warm(name, self.now, tenant)
        elif verb == "park":
            sessions.park(name, tenant)
            retention.park(name, self.now, tenant)
        else:
            sessions.end(name, tenant)
            retention.end(name, self.now, tenant)

    def forget(self, name: str, tenant: str) -> int:
        """A ticket."""
        self._store_was_called = self.expected.lags = True
        copies = {} if self.gpu is None else self.gpu.copies()
        ticket = self.store.retention.forget(name, tenant, self.now)
        self.expected.sessions.forget(name, tenant, ticket)
        if self.gpu is not None:
            self.gpu.forget(ticket, copies, self.expected.sessions.oblivions[ticket])
        if self.drives is not None:
            self.drives.forget(ticket)
        return ticket

    def nothing_is_left_of(self, ticket: int, proof: dict[str, object]) -> None:
        """It was forgotten by wish, and that is through."""
        oblivion = self.expected.sessions.through(ticket)
        answered = [slots for _, _, slots in self.store.leases._answers]
        assert not answered, "answers wait while it is looked whether anything is left"
        self.counts["forgotten_sessions"] += int(proof["sessions"])  # type: ignore[call-overload]
        if self.gpu is not None:
            self.gpu.nothing_is_left_of(ticket, oblivion, proof)  # type: ignore[arg-type]
        if self.drives is not None:
            self.drives.nothing_is_left_of(oblivion, {self.contents[key][0][0] for key in oblivion.keys})
