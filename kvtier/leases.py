"""Leases: engines' rights to read blocks, and the lookups that open them. Pure.

    lookup --all in RAM, or nowhere-----------------------> answered
       '----some of it below--> waits (staging.py) -------> answered later, its lease growing block by block

How much of what is here is offered, and how long it is worth waiting: decision.py. What is not offered is answered as
BELOW. What a lease has stays where it is until the lease ends. A lease has no time limit: the engine may be copying.
"""

from dataclasses import dataclass

import numpy as np

from kvtier.block import ABSENT, BELOW, KEY_BYTES, Kind, leading
from kvtier.deciding import Decisions
from kvtier.decision import Ask, Matched
from kvtier.errors import OrderError, ProtocolError
from kvtier.lower import Lower
from kvtier.ram import Ram
from kvtier.staging import Asker, Wanted
from kvtier.stats import Stats

LEASES_MAX = 4096  # open leases of one engine

Answer = tuple[str, int, np.ndarray]  # engine, lease, slots
Queues = tuple[int, int]


@dataclass
class _Lease:
    slots: np.ndarray
    kind: Kind
    skip: int = 0  # so many of the first the engine has itself
    in_ram: int = 0  # behind these: so many were in RAM when it was opened
    queues: Queues | None = None  # where its blocks stand in RAM while it is open


class Leases:
    def __init__(self, ram: Ram, bytes_max: int, stats: Stats, decisions: Decisions) -> None:
        self.decisions = decisions
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

    def snapshot(self, engine: str) -> dict[str, object]:
        """How many it has open, and of how many blocks."""
        open_ = self._of.get(engine, {}).values()
        return {"leases": len(open_), "leased_blocks": sum(len(lease.slots) for lease in open_)}

    # --- events ----------------------------------------------------------------------------------------------

    def lookup(
        self, asker: Asker, keys: bytes, kind: Kind, queues: Queues | None, *, skip: int, ask: Ask, now: float
    ) -> np.ndarray | None:
        """As BlockStore.lookup has it. `queues`: where its blocks are to stand in RAM, see Ram.use."""
        slots = self._ram.index.find(keys)
        here = slots[slots != ABSENT].astype(np.intp)
        self._stats.add("lookups")
        self._stats.add("lookup_keys", len(slots))
        self._stats.add("found_keys", len(here))
        wanted = self._below(keys, slots, kind, skip)
        if queues is not None:
            self._ram.use(here, queues)
        if self.lower is not None:
            self.lower.demotions.used_again(here)
        in_ram = 0
        if ask.request:
            matched = _matched(keys, slots, skip, kind, ask)
            in_ram = matched.cpu_blocks
            tier = self.decisions.decide(asker, ask, matched, now)
            wanted = self._cut(slots, wanted, tier, matched, skip, kind)
            here = slots[slots < BELOW].astype(np.intp)
        if len(here) or wanted:
            wanted = self._open(asker, _Lease(here, kind, skip, in_ram, queues), slots, wanted)
        if not wanted:
            self._offered(asker, slots, _Lease(here, kind, skip, in_ram), now)
            return slots
        assert self.lower is not None
        self._stats.add("staged_lookups")
        self.lower.staging.begin(asker, slots, wanted, now, now + self.stage_s)
        return None

    @staticmethod
    def _cut(slots: np.ndarray, wanted: list[Wanted], tier: str, matched: Matched, skip: int, kind: Kind) -> list[Wanted]:
        """Marks in `slots` what is not offered. Returns what is to be staged."""
        end = {"": 0, "cpu": skip + matched.cpu_blocks, "nvme": skip + matched.all_blocks}[tier]
        if not kind.is_chain and tier:
            end = len(slots)
        rest = slots[end:]
        rest[rest < BELOW] = BELOW
        return wanted if tier == "nvme" else []

    def _open(self, asker: Asker, lease: _Lease, slots: np.ndarray, wanted: list[Wanted]) -> list[Wanted]:
        """Pins what is here, within what leases may pin. Returns what of `wanted` there is still room for."""
        mine = self._of.setdefault(asker[0], {})
        if asker[1] in mine:
            raise OrderError(f"lease {asker[1]} is open already")
        if len(mine) >= LEASES_MAX:
            raise ProtocolError("too_many", f"an engine may hold {LEASES_MAX} leases")
        room = max(0, (self._bytes_max - self.bytes) // lease.kind.slot_bytes)
        if room < len(lease.slots):
            self._stats.add("refused_leases", len(lease.slots) - room)
            slots[np.flatnonzero(slots < BELOW)[room:]] = BELOW
            lease.slots = lease.slots[:room]
        mine[asker[1]] = lease
        self._pin(lease.slots, lease.kind.slot_bytes)
        return wanted[: room - len(lease.slots)]

    def release(self, asker: Asker, now: float) -> int:
        """The lease is over; how many blocks it had. One that found nothing was never open."""
        if self.lower is not None:
            self.lower.staging.forget(asker, now)
        self.decisions.forget(asker)
        self._answers = [answer for answer in self._answers if answer[:2] != asker]  # nobody waits for it any more
        lease = self._of.get(asker[0], {}).pop(asker[1], None)
        if lease is None:
            return 0
        self._unpin(lease)
        return len(lease.slots)

    def leaving(self, engine: str, now: float) -> None:
        """It will hear no answer."""
        for asker in self.waiting():
            if asker[0] == engine and self.lower is not None:
                self.lower.staging.forget(asker, now)
                self.decisions.forget(asker)
        self._answers = [answer for answer in self._answers if answer[0] != engine]

    def leave(self, engine: str, now: float) -> None:
        self.leaving(engine, now)
        for lease in self._of.pop(engine, {}).values():
            self._unpin(lease)

    # --- lookups that wait -----------------------------------------------------------------------------------

    def waiting(self) -> list[Asker]:
        return list(self.lower.staging.waiting) if self.lower is not None else []

    def answers(self) -> list[Answer]:
        """Of lookups that had to wait, since the last call."""
        ready, self._answers = self._answers, []
        return ready

    def replan(self, now: float) -> None:
        """Time has passed: who has waited long enough, or need not wait any longer, is answered with what is here."""
        if self.lower is None:
            return
        for asker, remaining_s in self.lower.staging.outlook(now):
            waiting = self.lower.staging.waiting[asker]
            if waiting.until <= now:
                self._cut_short(asker, now, "timed_out")
            elif not self.decisions.keeps_waiting(asker, self._arrived(asker, waiting.answer), remaining_s, now):
                self._cut_short(asker, now, "timed_out" if remaining_s == float("inf") else "too_dear")

    def due(self, asker: Asker, now: float) -> None:
        """Its request could run now."""
        self.decisions.due(asker, now)
        if self.lower is not None and asker in self.lower.staging.waiting:
            self.replan(now)

    def _cut_short(self, asker: Asker, now: float, reason: str) -> None:
        self._stats.add("staged_short")
        self._answer(asker, now, reason)

    def _arrived(self, asker: Asker, answer: np.ndarray) -> int:
        """How many blocks, from the first that the engine lacks, are here."""
        lease = self._of[asker[0]][asker[1]]
        return _count(answer[lease.skip :] < BELOW, lease.kind)

    def note_arrivals(self, now: float) -> None:
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
            if slot != ABSENT and self.bytes + lease.kind.slot_bytes * len(positions) <= self._bytes_max:
                waiting.answer[positions] = slot
                came = np.full(len(positions), slot, dtype=np.intp)
                lease.slots = np.append(lease.slots, came)
                self._pin(came, lease.kind.slot_bytes)
            elif slot == ABSENT and key not in self.lower.extents:
                waiting.answer[positions] = ABSENT
            if not waiting.positions:
                self._answer(asker, now)

    def _answer(self, asker: Asker, now: float, reason: str = "") -> None:
        assert self.lower is not None
        waiting = self.lower.staging.forget(asker, now)
        assert waiting is not None
        answer = waiting.answer
        here = np.flatnonzero(answer < BELOW)
        gone = [i for i in here.tolist() if not self._ram.index.holds(int(answer[i]))]  # dropped while it waited
        answer[gone] = ABSENT
        lease = self._of[asker[0]][asker[1]]
        if lease.queues is not None:
            self._ram.use(answer[answer < BELOW].astype(np.intp), lease.queues)
        self._offered(asker, answer, lease, now, reason)
        self._answers.append((*asker, answer))

    def _offered(self, asker: Asker, answer: np.ndarray, lease: _Lease, now: float, reason: str = "") -> None:
        """Tells the decision what came of it."""
        blocks = _count(answer[lease.skip :] < BELOW, lease.kind)
        in_ram = min(lease.in_ram, blocks)
        self.decisions.answered(asker, {"cpu": in_ram, "nvme": blocks - in_ram}, now, reason)

    # --- how -------------------------------------------------------------------------------------------------

    def _below(self, keys: bytes, slots: np.ndarray, kind: Kind, skip: int) -> list[Wanted]:
        """Marks in `slots` what only the tier below has. Returns what of it is to be staged."""
        if self.lower is None or not len(self.lower.extents) or not len(slots):
            return []
        wanted, places = self.lower.wanted(keys, slots, skip, kind.is_chain)
        self.lower.extents.touch(places)
        self._stats.add("found_below_keys", len(places))
        return wanted

    def _pin(self, slots: np.ndarray, slot_bytes: int) -> None:
        self._ram.pin(slots)
        self.bytes += len(slots) * slot_bytes

    def _unpin(self, lease: _Lease) -> None:
        self.bytes -= len(lease.slots) * lease.kind.slot_bytes
        self._ram.unpin(lease.slots)


def _matched(keys: bytes, slots: np.ndarray, skip: int, kind: Kind, ask: Ask) -> Matched:
    """What is where, of the blocks behind the first `skip`."""
    beyond = slots[skip:]
    tokens = float(kind.block_tokens)
    in_ram, found = _count(beyond < BELOW, kind), _count(beyond != ABSENT, kind)
    if not kind.is_chain:  # each cache group has blocks of its own: of which tokens, only the engine knows
        tokens = (ask.prompt_tokens - ask.resident_tokens) / max(1, len(beyond))
    below = int((beyond[: found if kind.is_chain else None] == BELOW).sum())
    holes = np.flatnonzero(beyond == ABSENT)
    first = (skip + int(holes[0])) * KEY_BYTES if len(holes) else None
    missing = None if first is None else keys[first : first + KEY_BYTES]
    return Matched(in_ram, found, below, kind.slot_bytes, tokens, missing)


def _count(good: np.ndarray, kind: Kind) -> int:
    """How many are good; in a chain, from the first on."""
    return leading(good) if kind.is_chain else int(good.sum())
