"""Leases: engines' rights to read blocks, and the lookups that open them. Pure.

    lookup --all in RAM, or nowhere-------------------------------> answered
       |'--some of it below, or away--> waits (staging.py) -------> answered later, its lease growing block by block
       '---the remote may have more---> aside (seeking.py) -------> looked up again

How much of what is here is offered, and how long it is worth waiting: deciding.py. What is not offered is answered as
BELOW; but what only the remote has as ABSENT, for it is to be here too, when its engine has computed it. What a lease
has stays where it is until the lease ends. A lease has no time limit: the engine may be copying.

Of a remote nothing is waited for but what is worth it, and nothing that is here waits for it: a lookup that a slow remote
would keep gives up what lies there, and goes on waiting for the drives.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from kvtier.away import Away
from kvtier.block import ABSENT, BELOW, Kind
from kvtier.deciding import Decisions
from kvtier.decision import Matched
from kvtier.errors import OrderError, ProtocolError
from kvtier.lookup import NONE, NOTHING, Lookup, Lying, Queues, count
from kvtier.lower import Lower
from kvtier.ram import Ram
from kvtier.seeking import Aside, Seeking
from kvtier.staging import Asker, Staging, Waiting, Wanted
from kvtier.stats import Stats

LEASES_MAX = 4096  # open leases of one engine
STAGED = {"nvme": ("nvme",), "remote": ("nvme", "remote")}  # by the deepest tier that is taken: where blocks are read from

Answer = tuple[str, int, np.ndarray]  # engine, lease, slots
Found = tuple[np.ndarray, np.ndarray]  # positions, and places on the drives


@dataclass
class _Lease:
    slots: np.ndarray
    kind: Kind
    namespace: int
    skip: int = 0  # so many of the first the engine has itself
    queues: Queues | None = None  # where its blocks stand in RAM while it is open
    tenant: int = 0  # the number of whose request it is
    in_ram: int = 0  # behind what the engine has: so many were in RAM when it was opened
    from_remote: list[int] = field(default_factory=list)  # positions
    reason: str = ""  # why it waits for less than it was to get


class Leases:
    def __init__(self, ram: Ram, bytes_max: int, stats: Stats, decisions: Decisions, staging: Staging) -> None:
        self.decisions = decisions
        self.bytes = 0  # pinned by all leases; a block that is leased twice counts twice
        self.lower: Lower | None = None
        self.away: Away | None = None
        self.stage_s: dict[str, float] = {}  # how long a lookup may wait for a tier
        self.seeking = Seeking()
        self._ram, self._stats, self._staging = ram, stats, staging
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

    # --- lookups ---------------------------------------------------------------------------------------------

    def lookup(self, one: Lookup) -> np.ndarray | None:
        """As BlockStore.lookup has it."""
        return self._look_up(one, one.at, is_first=True)

    def _look_up(self, one: Lookup, now: float, *, is_first: bool) -> np.ndarray | None:
        slots = self._ram.find(one.keys, one.namespace, one.kind.slot_bytes)
        here = slots[slots != ABSENT].astype(np.intp)
        if is_first:
            self._stats.add("lookups")
            self._stats.add("lookup_keys", len(slots))
            self._stats.add("found_keys", len(here))
        drives = NOTHING
        away: Lying | None = NOTHING
        refusal = "" if self._ram.tenants.may_load(one.tenant) else "tenant_loads"
        if len(here) < len(slots):
            drives = self._below(one, slots, is_first)
            away = NOTHING if refusal else self._away(one, slots, now, is_first)
        if one.queues is not None:
            self._ram.use(here, one.queues)
        for tier in (self.lower, self.away):
            if tier is not None:
                tier.demotions.used_again(here)
        if away is None:
            return None
        tiers, end = STAGED["remote"], len(slots)
        lease = _Lease(here, one.kind, one.namespace, one.skip, one.queues, one.tenant)
        if one.ask.request:
            is_away = self.away is not None and self.away.is_away and self.away.shares(one.namespace)
            frames = NOTHING if self.lower is None else self.lower.frames(*drives)
            matched = one.matched(slots, away, is_away, frames)
            lease.in_ram = matched.cpu_blocks
            deepest = self.decisions.decide(one.asker, one.ask, matched, now, refusal)
            tiers, end = STAGED.get(deepest, ()), self._cut(slots, deepest, matched, one.skip, one.kind)
            lease.slots = slots[slots < BELOW].astype(np.intp)
        elif refusal:
            slots[slots < BELOW], lease.slots, tiers = BELOW, NONE, ()
        wanted = self._wanted(one, slots, drives, away, tiers, end)
        if len(lease.slots) or wanted:
            wanted = self._open(one.asker, lease, slots, wanted)
        if not wanted:
            self._offered(one.asker, slots, lease, now)
            return slots
        self._stage(one.asker, slots, wanted, now)
        return None

    def _below(self, one: Lookup, slots: np.ndarray, is_first: bool) -> Found:
        """Marks in `slots` what is on the drives. Positions and places of that."""
        if self.lower is None or not len(self.lower.extents) or not len(slots):
            return NOTHING
        positions, places = self.lower.mark(one.keys, slots, (one.namespace, one.kind.slot_bytes))
        self.lower.extents.touch(places)
        if is_first:
            self._stats.add("found_below_keys", len(places))
        return positions, places

    def _away(self, one: Lookup, slots: np.ndarray, now: float, is_first: bool) -> Lying | None:
        """What only the remote has, as far as is known. What isn't known is asked. None: it is worth waiting for the
        answer."""
        if self.away is None:
            return NOTHING
        absent = np.flatnonzero(slots[one.skip :] == ABSENT) + one.skip
        if not len(absent) or not self.away.serves(one.namespace):
            return NOTHING
        keys = one.keys_at(absent)
        look = self.away.look(keys, one.namespace, one.kind.is_chain, now)
        if look.question:
            self.away.ask(one.namespace, look.question, one.kind.is_chain)
        if is_first and (look.question or look.is_awaited):
            unknown = len(keys) - sum(1 for size in look.sizes if size) if look.is_awaited else len(look.question)
            if self._waits_for_answer(one, keys, unknown, now):
                return None
        stored = np.array(look.sizes, dtype=np.int64)
        fits = (stored > 0) & (stored <= one.kind.slot_bytes)  # what does not, somebody made up
        which = slice(count(fits, one.kind)) if one.kind.is_chain else fits
        found = absent[: len(fits)][which]
        self._stats.add("found_remote_keys", len(found))  # also where the answer was waited for
        return found, stored[which]

    def _waits_for_answer(self, one: Lookup, keys: list[bytes], unknown: int, now: float) -> bool:
        assert self.away is not None
        aside = Aside(one, now, set(), unknown)
        aside.until += self._patience(aside, one.ask.backlog_s)
        if aside.until <= now:
            return False
        self._check_room(one.asker)
        aside.questions = self.away.awaited(keys)
        self.seeking.put(aside)
        return True

    def _patience(self, aside: Aside, backlog_s: float) -> float:
        """Seconds, from its lookup on."""
        assert self.away is not None
        one = aside.lookup
        tokens = round(aside.unknown * one.block_tokens)
        n = aside.unknown * self.away.coding.expected(one.namespace, one.kind.slot_bytes)
        ask = replace(one.ask, backlog_s=backlog_s)
        return self.decisions.patience_to_ask(one.asker[0], ask, tokens, self.away.ask_s, self.away.hit_share, n)

    def _wanted(
        self, one: Lookup, slots: np.ndarray, drives: Found, away: Lying, tiers: tuple[str, ...], end: int
    ) -> list[Wanted]:
        """What is to be staged when all that these tiers have before `end` is taken; in prefix order."""
        if not tiers or not (len(drives[0]) or len(away[0])):
            return []
        end, wanted = min(end, one.end(slots, away[0])), []
        if self.lower is not None:
            wanted = self.lower.wanted(one.keys, *drives, range(one.skip, end), one.kind.is_chain)
        if len(away[0]) and "remote" in tiers:
            wanted += one.wanted(away, end)
            wanted.sort(key=lambda wish: wish.position)
        return wanted

    @staticmethod
    def _cut(slots: np.ndarray, tier: str, matched: Matched, skip: int, kind: Kind) -> int:
        """Marks in `slots` what is not offered. Returns where that begins; in no chain, the end."""
        blocks = {"cpu": matched.cpu_blocks, "nvme": matched.lower_blocks, "remote": matched.all_blocks}
        end = 0 if not tier else skip + blocks[tier] if kind.is_chain else len(slots)
        slots[end:][slots[end:] < BELOW] = BELOW
        return end

    def _check_room(self, asker: Asker) -> None:
        mine = self._of.setdefault(asker[0], {})
        if asker[1] in mine or asker in self.seeking:
            raise OrderError(f"lease {asker[1]} is open already")
        if len(mine) + len(self.seeking.askers(asker[0])) >= LEASES_MAX:
            raise ProtocolError("too_many", f"an engine may hold {LEASES_MAX} leases")

    def _open(self, asker: Asker, lease: _Lease, slots: np.ndarray, wanted: list[Wanted]) -> list[Wanted]:
        """Pins what is here, within what leases may pin. Returns what of `wanted` there is still room for."""
        self._check_room(asker)
        room = max(0, (self._bytes_max - self.bytes) // lease.kind.slot_bytes)
        if room < len(lease.slots):
            self._stats.add("refused_leases", len(lease.slots) - room)
            slots[np.flatnonzero(slots < BELOW)[room:]] = BELOW
            lease.slots = lease.slots[:room]
        self._of[asker[0]][asker[1]] = lease
        self._ram.tenants.load_begins(lease.tenant)
        self._pin(lease.slots, lease.kind.slot_bytes)
        return wanted[: room - len(lease.slots)]

    def _stage(self, asker: Asker, slots: np.ndarray, wanted: list[Wanted], now: float) -> None:
        slots[[one.position for one in wanted if one.tier == "remote"]] = BELOW
        self._stats.add("staged_lookups")
        until = now + max(self.stage_s[tier] for tier in {one.tier for one in wanted})
        self._staging.begin(asker, slots, wanted, now, until)

    # --- their end -------------------------------------------------------------------------------------------

    def release(self, asker: Asker, now: float) -> int:
        """The lease is over; how many blocks it had. One that found nothing was never open."""
        self.seeking.take(asker)
        self._staging.forget(asker, now)
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
            if asker[0] == engine:
                self.seeking.take(asker)
                self._staging.forget(asker, now)
                self.decisions.forget(asker)
        self._answers = [answer for answer in self._answers if answer[0] != engine]

    def leave(self, engine: str, now: float) -> None:
        self.leaving(engine, now)
        for lease in self._of.pop(engine, {}).values():
            self._unpin(lease)

    # --- lookups that wait -----------------------------------------------------------------------------------

    def waiting(self) -> list[Asker]:
        return [*self._staging.waiting, *self.seeking.askers()]

    def answers(self) -> list[Answer]:
        """Of lookups that had to wait, since the last call."""
        ready, self._answers = self._answers, []
        return ready

    def replan(self, now: float) -> None:
        """Time has passed: who has waited long enough, or need not wait any longer, is answered with what is here."""
        if self.seeking:
            for asker in self.seeking.askers() if self.away is None or self.away.is_away else self.seeking.late(now):
                self._look_again(asker, now)
        for asker, remaining_s in self._staging.outlook(now):
            self._think_over(asker, self._staging.waiting[asker], remaining_s, now)

    def _think_over(self, asker: Asker, waiting: Waiting, remaining_s: dict[str, float], now: float) -> None:
        longest_s = max(remaining_s.values())
        if waiting.until <= now:
            self._cut_short(asker, now, "timed_out")
        elif not self.decisions.keeps_waiting(asker, self._arrived(asker, waiting.answer), longest_s, now):
            reason = "timed_out" if longest_s == float("inf") else "too_dear"
            if len(remaining_s) > 1 and remaining_s["remote"] == longest_s:
                self._go_without_remote(asker, waiting, reason, now)
            else:
                self._cut_short(asker, now, reason)

    def due(self, asker: Asker, now: float) -> None:
        """Its request could run now."""
        if asker in self.seeking:
            aside = self.seeking[asker]
            aside.until = min(aside.until, aside.lookup.at + self._patience(aside, 0.0))
            if aside.until <= now:
                self._look_again(asker, now)
        self.decisions.due(asker, now)
        if asker in self._staging.waiting:
            self.replan(now)

    def note_arrivals(self, now: float) -> None:
        """Blocks that lookups waited for: what came is leased and stands in the answer. Questions that are over."""
        arrived, self._staging.arrived = self._staging.arrived, []
        for asker, key in arrived:
            waiting = self._staging.waiting.get(asker)
            if waiting is not None and key in waiting.positions:
                self._arrive(asker, waiting, key, now)
        if self.away is not None and self.away.answered:
            answered, self.away.answered = self.away.answered, []
            for asker in self.seeking.answered(answered):
                self._look_again(asker, now)

    def _look_again(self, asker: Asker, now: float) -> None:
        aside = self.seeking.take(asker)
        assert aside is not None
        answer = self._look_up(aside.again(now), now, is_first=False)
        if answer is not None:
            self._answers.append((*asker, answer))

    def _arrive(self, asker: Asker, waiting: Waiting, key: bytes, now: float) -> None:
        """This one came, or never will."""
        positions, tier = waiting.take(key)
        lease = self._of[asker[0]][asker[1]]
        slot = int(self._ram.find(key, lease.namespace, lease.kind.slot_bytes)[0])
        if slot != ABSENT and self.bytes + lease.kind.slot_bytes * len(positions) <= self._bytes_max:
            waiting.answer[positions] = slot
            came = np.full(len(positions), slot, dtype=np.intp)
            lease.slots = np.append(lease.slots, came)
            lease.from_remote += positions if tier == "remote" else ()
            self._pin(came, lease.kind.slot_bytes)
        elif slot == ABSENT and (self.lower is None or key not in self.lower.extents):
            waiting.answer[positions] = ABSENT
            if tier == "remote":
                self._is_missing(asker, waiting, lease, positions[0], now)
        if not waiting.positions:
            self._answer(asker, now)

    def _is_missing(self, asker: Asker, waiting: Waiting, lease: _Lease, position: int, now: float) -> None:
        """The remote doesn't have this one any more, or is away. What stands behind it in a chain is of no use."""
        if self.away is not None and self.away.is_away:
            lease.reason = "remote_away"
        if lease.kind.is_chain:
            self._give_up(asker, waiting, [key for key, at in waiting.positions.items() if at[0] > position], now)

    def _go_without_remote(self, asker: Asker, waiting: Waiting, reason: str, now: float) -> None:
        """What comes from there is not waited for any more; in a chain, nor what stands behind it."""
        lease = self._of[asker[0]][asker[1]]
        away = [key for key, tier in waiting.tiers.items() if tier == "remote"]
        if lease.kind.is_chain:
            first = min(waiting.positions[key][0] for key in away)
            away = [key for key, at in waiting.positions.items() if at[0] >= first]
        lease.reason = reason
        self._give_up(asker, waiting, away, now)
        if not waiting.positions:
            self._cut_short(asker, now, reason)
        else:
            self._stats.add("staged_short")

    def _give_up(self, asker: Asker, waiting: Waiting, keys: list[bytes], now: float) -> None:
        self._mark_absent(waiting, keys)
        self._staging.give_up(asker, keys, now)

    @staticmethod
    def _mark_absent(waiting: Waiting, keys: list[bytes]) -> None:
        """Those of the remote: they are to be saved here when they are computed."""
        for key in keys:
            if waiting.tiers[key] == "remote":
                waiting.answer[waiting.positions[key]] = ABSENT

    def _cut_short(self, asker: Asker, now: float, reason: str) -> None:
        self._stats.add("staged_short")
        self._answer(asker, now, reason)

    def _arrived(self, asker: Asker, answer: np.ndarray) -> int:
        """How many blocks, from the first that the engine lacks, are here."""
        lease = self._of[asker[0]][asker[1]]
        return count(answer[lease.skip :] < BELOW, lease.kind)

    def _answer(self, asker: Asker, now: float, reason: str = "") -> None:
        waiting = self._staging.forget(asker, now)
        assert waiting is not None
        answer = waiting.answer
        self._mark_absent(waiting, list(waiting.positions))
        here = np.flatnonzero(answer < BELOW)
        gone = [i for i in here.tolist() if not self._ram.index.holds(int(answer[i]))]  # dropped while it waited
        answer[gone] = ABSENT
        lease = self._of[asker[0]][asker[1]]
        if lease.queues is not None:
            self._ram.use(answer[answer < BELOW].astype(np.intp), lease.queues)
        self._offered(asker, answer, lease, now, reason or lease.reason)
        self._answers.append((*asker, answer))

    def _offered(self, asker: Asker, answer: np.ndarray, lease: _Lease, now: float, reason: str = "") -> None:
        """Tells the decision what came of it."""
        good = answer[lease.skip :] < BELOW
        blocks = count(good, lease.kind)
        good = good[: blocks if lease.kind.is_chain else None]
        came = [at - lease.skip for at in lease.from_remote]
        away = sum(1 for at in came if at < len(good) and good[at])
        in_ram = min(lease.in_ram, blocks - away)
        self.decisions.answered(asker, {"cpu": in_ram, "nvme": blocks - in_ram - away, "remote": away}, now, reason)

    # --- how -------------------------------------------------------------------------------------------------

    def _pin(self, slots: np.ndarray, slot_bytes: int) -> None:
        self._ram.pin(slots)
        self.bytes += len(slots) * slot_bytes

    def _unpin(self, lease: _Lease) -> None:
        self._ram.tenants.load_ends(lease.tenant)
        self.bytes -= len(lease.slots) * lease.kind.slot_bytes
        self._ram.unpin(lease.slots)
