"""What follows from a decision, as plain as Expected: which positions are offered, who waits how long, what the record
says at the end.

The choice itself is the cost model's, which has tests of its own. Here it is overheard: what Decisions said is taken for
given, within what mode, hold-out and tiers that are off allow; all that must come of it is worked out a second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from kvtier.block import ABSENT, BELOW, BlockKey
from kvtier.cost import Candidate
from kvtier.deciding import Decisions
from kvtier.decision import Ask, Decision

if TYPE_CHECKING:
    from .expected import Joined

Asker = tuple[str, int]  # engine, lease
NEVER = float("inf")


class Overheard:
    """Listens at a Decisions. `off`: tiers that its guard doesn't trust, whatever they do. `whims`: if there are some, its
    cost model is of any opinion, for what follows must be right whatever it says."""

    def __init__(self, decisions: Decisions, off: set[str], whims: Random | None) -> None:
        self.decisions = decisions
        if whims is not None and decisions.mode == "decide":
            self._have_whims(whims)
        self.tiers: dict[Asker, str] = {}  # by `decide`, of lookups that were not looked at yet
        self.refused: set[str] = set()  # tiers that the guard called off in the last `decide`
        self.waits: dict[Asker, tuple[int, float, bool]] = {}  # blocks arrived, seconds remaining, whether it waits on
        decide, keeps_waiting, is_on = decisions.decide, decisions.keeps_waiting, decisions.guard.is_on

        def decided(asker: Asker, *question: object) -> str:
            self.refused = set()
            self.tiers[asker] = decide(asker, *question)
            return self.tiers[asker]

        def judged(asker: Asker, arrived: int, remaining_s: float, now: float) -> bool:
            assert asker not in self.waits, f"{asker} is asked twice whether it waits on"
            keeps = keeps_waiting(asker, arrived, remaining_s, now)
            self.waits[asker] = arrived, remaining_s, keeps
            return keeps

        def trusted(tier: str, now: float) -> bool:
            if tier in off:
                self.refused.add(tier)
            return tier not in off and is_on(tier, now)

        decisions.decide, decisions.keeps_waiting, decisions.guard.is_on = decided, judged, trusted

    def _have_whims(self, whims: Random) -> None:
        decisions = self.decisions
        candidates, keeps_waiting = decisions._candidates, decisions.keeps_waiting

        def guessed(*question: object) -> list[Candidate]:
            """Loads seem to take any time."""
            loads = [(candidate, whims.choice((0.0, candidate.load_s, 99.0))) for candidate in candidates(*question)]
            return [replace(c, load_s=load_s if c.tokens else 0.0) for c, load_s in loads]

        def impatient(asker: Asker, arrived: int, remaining_s: float, now: float) -> bool:
            keeps = keeps_waiting(asker, arrived, remaining_s, now)
            is_free = asker in decisions._waiting and remaining_s < NEVER
            return keeps and not (is_free and whims.random() < 0.2)

        decisions._candidates, decisions.keeps_waiting = guessed, impatient


@dataclass
class Decided:
    """One request's question, as it stands."""

    engine: str
    ask: Ask
    decision: Decision  # the store's own record of it
    skip: int
    is_chain: bool
    block_tokens: float
    in_ram: int  # blocks
    reason: str
    backlog_until: float


@dataclass
class ExpectedDecisions:
    overheard: Overheard
    ghosts: dict[BlockKey, str] = field(default_factory=dict)  # why a key went
    witnesses: dict[bytes, bytes] = field(default_factory=dict)  # witness -> namespace that asked last
    open: dict[tuple[str, str], Decided] = field(default_factory=dict)  # engine, request -> no outcome yet
    asked: dict[Asker, Decided] = field(default_factory=dict)  # not answered yet
    fetching: set[Asker] = field(default_factory=set)  # whose lease is not over
    is_remote_away: bool = False  # there is one
    ended: list[tuple[str, str]] = field(default_factory=list)  # since the log took them

    # --- the question ----------------------------------------------------------------------------------------

    def decide(
        self,
        asker: Asker,
        ask: Ask,
        keys: list[BlockKey],
        found: list[int],
        skip: int,
        joined: Joined,
        resets: int,
        now: float,
    ) -> tuple[int, bool]:
        """`found` as the tiers have it; `resets` of the namespace. How many of the first positions are offered if they are
        in RAM; whether what is below is waited for."""
        beyond = found[skip:]
        in_ram, matched = _run(slot < BELOW for slot in beyond), _run(slot != ABSENT for slot in beyond)
        tokens = float(joined.block_tokens)
        if not joined.is_chain:
            in_ram, matched = sum(slot < BELOW for slot in beyond), sum(slot != ABSENT for slot in beyond)
            tokens = (ask.prompt_tokens - ask.resident_tokens) / max(1, len(beyond))
        below = [slot for slot in (beyond[:matched] if joined.is_chain else beyond) if slot == BELOW]
        tier = self.overheard.tiers.pop(asker)
        decision = self.overheard.decisions._kept[-1]
        assert (decision.engine, decision.ask, decision.at) == (asker[0], ask, now), "a decision is kept as another's"
        counted = {"cpu": round(matched * tokens) - round(len(below) * tokens), "nvme": round(len(below) * tokens)}
        assert decision.matched == counted, f"matched are {counted} tokens, not {decision.matched}"
        self._judge_tier(tier, decision, in_ram, len(below))
        missing = [key for key, slot in zip(keys[skip:], beyond, strict=True) if slot == ABSENT]
        self._judge_reason(decision, missing, joined.namespace, matched, self.is_remote_away and not resets)
        decided = Decided(
            asker[0], ask, decision, skip, joined.is_chain, tokens, in_ram, decision.reason, decision.backlog_until
        )
        assert now <= decision.backlog_until <= now + ask.backlog_s, "more is ahead of it than its engine said"
        if tier:
            self.fetching.add(asker)
        self._open(decided)
        self.asked[asker] = decided
        end = {"": 0, "cpu": skip + in_ram, "nvme": skip + matched}[tier]
        return end if joined.is_chain or not tier else len(found), tier == "nvme"

    def _judge_tier(self, tier: str, decision: Decision, in_ram: int, below: int) -> None:
        deepest = "nvme" if below else "cpu" if in_ram else ""
        decisions = self.overheard.decisions
        assert decision.mode == decisions.mode
        assert tier in ("", "cpu" if in_ram else "", deepest), f"{tier} is offered, and nothing is there"
        if decision.mode == "always":
            assert tier == deepest, "always is not always"
            return
        assert not tier or decision.mode == "decide", "shadow offers something"
        is_held_out = decisions.guard.is_held_out(decision.ask.request)
        assert not tier or not is_held_out, "a held out request is offered something"
        assert tier not in self.overheard.refused, f"{tier} is off and is offered"

    def _judge_reason(
        self, decision: Decision, missing: list[BlockKey], namespace: bytes, matched: int, is_away: bool
    ) -> None:
        reason, detail = "", ""
        other = self.witnesses.get(decision.ask.witness) if decision.ask.witness else None
        if missing:
            reason = "never_stored"
            if is_away:
                reason = "remote_away"
            elif missing[0] in self.ghosts:
                reason, detail = "evicted", self.ghosts[missing[0]]
            elif other not in (None, namespace) and not matched:
                reason, detail = "namespace_differs", f"namespace {other.hex()[:12]} has met them"
        if decision.ask.witness:
            self.witnesses[decision.ask.witness] = namespace
        if decision.reason in ("hold_out", "tier_off", "too_short", "too_dear"):  # what was found wasn't wanted
            assert matched, f"{decision.reason}, though nothing matched"
            assert (decision.reason == "tier_off") <= bool(self.overheard.refused)
        else:
            assert (decision.reason, decision.detail) == (reason, detail), "why something is missing"

    def _open(self, decided: Decided) -> None:
        name = decided.engine, decided.ask.request
        if self.open.pop(name, None) is not None:
            self.ended.append(name)
        self.open[name] = decided

    # --- while it waits --------------------------------------------------------------------------------------

    def due(self, asker: Asker, now: float) -> None:
        if asker in self.asked:
            self.asked[asker].backlog_until = now

    def keeps_waiting(self, asker: Asker, arrived: list[bool], remaining_s: float, now: float) -> bool:
        """Whether the store found that it waits on; `arrived`: of each position whether it is here."""
        decided = self.asked.get(asker)
        blocks, seconds, keeps = self.overheard.waits.pop(asker)
        assert seconds == remaining_s, f"{asker} is thought to wait for {seconds} s, not {remaining_s}"
        if decided is None:
            assert keeps, "who told of no request waits to the end"
            return True
        assert blocks == self._count(decided, arrived[decided.skip :]), f"of {asker}'s blocks {blocks} have come"
        if remaining_s == NEVER:
            assert keeps == (now < decided.backlog_until), "what stands still is waited for while others are ahead"
        else:
            assert keeps or decided.decision.mode == "decide", "always waits as long as something comes"
        return keeps

    # --- the end ---------------------------------------------------------------------------------------------

    def answered(self, asker: Asker, answer: list[int], now: float, cut: str = "") -> None:
        decided = self.asked.pop(asker, None)
        if decided is None:
            return
        decision, tokens = decided.decision, decided.block_tokens
        blocks = self._count(decided, [slot < BELOW for slot in answer[decided.skip :]])
        from_ram = min(blocks, decided.in_ram)
        offered = {"cpu": round(from_ram * tokens), "nvme": round((blocks - from_ram) * tokens)}
        assert decision.offered == {tier: n for tier, n in offered.items() if n}, f"{offered} were offered"
        assert decision.offered_tokens == round(blocks * tokens), "offered_tokens"
        assert decision.answered_at == now, "when it was answered"
        if cut and decided.reason in ("", "never_stored", "evicted"):
            decided.reason = cut
        assert decision.reason == decided.reason, f"the reason is {decided.reason}, not {decision.reason}"

    def forget(self, asker: Asker) -> None:
        self.asked.pop(asker, None)
        self.fetching.discard(asker)

    def leaving(self, engine: str) -> None:
        """It will hear no answer."""
        self.fetching -= {asker for asker in self.asked if asker[0] == engine}
        self.asked = {asker: decided for asker, decided in self.asked.items() if asker[0] != engine}

    def outcome(self, engine: str, request: str) -> None:
        if self.open.pop((engine, request), None) is not None:
            self.ended.append((engine, request))

    def leave(self, engine: str) -> None:
        self.fetching = {asker for asker in self.fetching if asker[0] != engine}
        for name in [name for name in self.open if name[0] == engine]:
            del self.open[name]
            self.ended.append(name)

    # --- how -------------------------------------------------------------------------------------------------

    @staticmethod
    def _count(decided: Decided, here: list[bool]) -> int:
        return _run(here) if decided.is_chain else sum(here)


def _run(good: Iterable[bool]) -> int:
    """How many are good, from the first on."""
    n = 0
    for is_good in good:
        if not is_good:
            break
        n += 1
    return n
