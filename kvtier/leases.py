"""Leases: engines' rights to read blocks, and the lookups that open them. Pure.

    lookup --all in RAM, or nowhere-----------------------> answered
       '----some of it below--> waits (staging.py) -------> answered later, its lease growing block by block

What a lease has stays where it is until the lease ends. A lease has no time limit: the engine may be copying.
"""

from dataclasses import dataclass

import numpy as np

from kvtier.block import ABSENT, BELOW, KEY_BYTES
from kvtier.errors import OrderError, ProtocolError
from kvtier.lower import Lower
from kvtier.ram import Ram
from kvtier.staging import Asker, Wanted
from kvtier.stats import Stats

LEASES_MAX = 4096  # open leases of one engine

Answer = tuple[str, int, np.ndarray]  # engine, lease, slots


@dataclass
class _Lease:
    slots: np.ndarray
    slot_bytes: int


class Leases:
    def __init__(self, ram: Ram, bytes_max: int, stats: Stats) -> None:
        self.bytes = 0  # pinned by all leases; a block that is leased twice counts twice
        self.lower: Lower | None = None
        self.stage_s = 0.0  # how long a lookup may wait for the tier below
        self._ram, self._stats = ram, stats
        self._bytes_max = bytes_max
        self._of: dict[str, dict[int, _Lease]] = {}  # engine -> its open leases
        self._answers: list[Answer] = []

    def of(self, engine: str) -> dict[int, np.ndarray]:
        """Its open leases and their slots."""
        return {number: lease.slots for number, lease in self._of.get(engine, {}).items()}

    # --- events ----------------------------------------------------------------------------------------------

    def lookup(
        self, asker: Asker, keys: bytes, slot_bytes: int, *, skip: int, is_chain: bool, now: float
    ) -> np.ndarray | None:
        """As BlockStore.lookup has it."""
        slots = self._ram.index.find(keys)
        here = slots[slots != ABSENT].astype(np.intp)
        self._stats.add("lookups")
        self._stats.add("lookup_keys", len(slots))
        self._stats.add("found_keys", len(here))
        wanted = self._below(keys, slots, slot_bytes, skip, is_chain)
        if not len(here) and not wanted:
            return slots
        self._ram.lru.touch(here)
        if self.lower is not None:
            self.lower.demotions.used_again(here)
        mine = self._of.setdefault(asker[0], {})
        if asker[1] in mine:
            raise OrderError(f"lease {asker[1]} is open already")
        if len(mine) >= LEASES_MAX:
            raise ProtocolError("too_many", f"an engine may hold {LEASES_MAX} leases")
        room = max(0, (self._bytes_max - self.bytes) // slot_bytes)
        if room < len(here):
            self._stats.add("refused_leases", len(here) - room)
            slots[np.flatnonzero(slots < BELOW)[room:]] = ABSENT
            here = here[:room]
        mine[asker[1]] = _Lease(here, slot_bytes)
        self._pin(here, slot_bytes)
        wanted = wanted[: room - len(here)]
        if not wanted:
            return slots
        assert self.lower is not None
        self._stats.add("staged_lookups")
        self.lower.staging.begin(asker, slots, wanted, now + self.stage_s)
        return None

    def release(self, asker: Asker) -> int:
        """The lease is over; how many blocks it had. One that found nothing was never open."""
        if self.lower is not None:
            self.lower.staging.forget(asker)
        lease = self._of.get(asker[0], {}).pop(asker[1], None)
        if lease is None:
            return 0
        self._unpin(lease)
        return len(lease.slots)

    def leaving(self, engine: str) -> None:
        """It will hear no answer."""
        for asker in self.waiting():
            if asker[0] == engine and self.lower is not None:
                self.lower.staging.forget(asker)
        self._answers = [answer for answer in self._answers if answer[0] != engine]

    def leave(self, engine: str) -> None:
        self.leaving(engine)
        for lease in self._of.pop(engine, {}).values():
            self._unpin(lease)

    # --- lookups that wait -----------------------------------------------------------------------------------

    def waiting(self) -> list[Asker]:
        return list(self.lower.staging.waiting) if self.lower is not None else []

    def answers(self) -> list[Answer]:
        """Of lookups that had to wait, since the last call."""
        ready, self._answers = self._answers, []
        return ready

    def expire(self, now: float) -> None:
        """What has waited long enough is answered with what is here."""
        if self.lower is not None:
            for asker in self.lower.staging.expired(now):
                self._stats.add("staged_short")
                self._answer(asker)

    def note_arrivals(self) -> None:
        """Blocks that lookups waited for: what came is leased and stands in the answer."""
        assert self.lower is not None
        staging = self.lower.staging
        arrived, staging.arrived = staging.arrived, []
        for asker, key in arrived:
            waiting = staging.waiting.get(asker)
            if waiting is None or key not in waiting.positions:
                continue
            positions = waiting.positions.pop(key)
            slot = int(self._ram.index.find(key)[0])
            lease = self._of[asker[0]][asker[1]]
            if slot != ABSENT and self.bytes + lease.slot_bytes * len(positions) <= self._bytes_max:
                waiting.answer[positions] = slot
                came = np.full(len(positions), slot, dtype=np.intp)
                lease.slots = np.append(lease.slots, came)
                self._pin(came, lease.slot_bytes)
            elif key not in self.lower.extents:
                waiting.answer[positions] = ABSENT
            if not waiting.positions:
                self._answer(asker)

    def _answer(self, asker: Asker) -> None:
        assert self.lower is not None
        waiting = self.lower.staging.forget(asker)
        assert waiting is not None
        answer = waiting.answer
        here = np.flatnonzero(answer < BELOW)
        gone = [i for i in here.tolist() if not self._ram.index.holds(int(answer[i]))]  # dropped while it waited
        answer[gone] = ABSENT
        self._ram.lru.touch(answer[answer < BELOW].astype(np.intp))
        self._answers.append((*asker, answer))

    # --- how -------------------------------------------------------------------------------------------------

    def _below(self, keys: bytes, slots: np.ndarray, slot_bytes: int, skip: int, is_chain: bool) -> list[Wanted]:
        """Marks in `slots` what only the tier below has. Returns what of it is to be staged."""
        if self.lower is None or not len(self.lower.extents) or not len(slots):
            return []
        missing = np.flatnonzero(slots == ABSENT)
        places = self.lower.extents.find(np.frombuffer(keys, f"V{KEY_BYTES}")[missing].tobytes())
        is_below = places != ABSENT
        slots[missing[is_below]] = BELOW
        self.lower.extents.touch(places[is_below])
        self._stats.add("found_below_keys", int(is_below.sum()))
        holes = missing[~is_below & (missing >= skip)]
        end = int(holes[0]) if is_chain and len(holes) else len(slots)  # behind a hole nothing is of use
        return [
            (position, keys[position * KEY_BYTES : (position + 1) * KEY_BYTES], place, slot_bytes)
            for position, place in zip(missing.tolist(), places.tolist())
            if place != ABSENT and skip <= position < end
        ]

    def _pin(self, slots: np.ndarray, slot_bytes: int) -> None:
        self._ram.pin(slots)
        self.bytes += len(slots) * slot_bytes

    def _unpin(self, lease: _Lease) -> None:
        self.bytes -= len(lease.slots) * lease.slot_bytes
        self._ram.unpin(lease.slots)
