"""Deciding, request by request: how many of its matched blocks it is offered, and what came of that. Pure.

    decide --nothing is to be staged-> answered --outcome--> ended
       '------staging--> keeps_waiting? ... -> answered ------'

The rule: cost.py. When a tier is not trusted: guard.py. What is where, and who waits: leases.py, staging.py. What one
decision is: decision.py; of those that ended the newest are kept, and the log gets each once.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kvtier.cost import (
    ASK_ALWAYS_S,
    ASK_TIMES,
    GAIN_MIN_S,
    UNCALIBRATED_TOKENS_MIN,
    Candidate,
    Estimate,
    Pressure,
    choose,
    keeps_waiting,
    patience_to_ask,
    uncalibrated_limit_s,
)
from kvtier.decision import OUTCOME, Ask, Decision, Matched
from kvtier.estimators import Link, Prefill
from kvtier.ghosts import Ghosts
from kvtier.guard import Guard
from kvtier.stats import Stats

MODES = ("decide", "always", "shadow")
KEPT = 4096  # records, open ones included
OPEN_MAX = 8192  # requests whose outcome is not known yet
ENGINE_LATENCY_S, ENGINE_BYTES_PER_S = 0.02, 8e9  # arena to engine, until it was measured: a step, and a memory copy
WEIGHED_TOKENS = 8192  # what a token of a prompt of this length takes stands for all
WASTE_SHARE, WASTE_BURST_S = 0.1, 5.0  # of an engine's time may go into computing what was given up while it came

Asker = tuple[str, int]  # engine, lease


@dataclass(slots=True)
class _Engine:
    namespace: str
    prefill: Prefill
    link: Link  # arena to engine
    user: str = ""
    arrivals_per_s: float = 0.0
    busy: float = 0.0
    running: int = 0
    believed: Mapping[str, int] = field(default_factory=dict)  # of the links
    believed_at: tuple[int, ...] = ()  # samples of each
    fetching: dict[int, float] = field(default_factory=dict)  # lease -> seconds of prefill that it is to save
    waste_s: float = WASTE_BURST_S
    waste_at: float = 0.0


class Decisions:
    def __init__(self, ghosts: Ghosts, stats: Stats) -> None:
        self.mode = "always"  # until the daemon says
        self.guard = Guard(0.0)
        self.drives: Link | None = None  # to RAM, as the next
        self.remote: Link | None = None
        self.engine_link = (ENGINE_LATENCY_S, ENGINE_BYTES_PER_S)  # believed of an engine that joins
        self.epoch_s = 0.0  # from the daemon's clock to seconds since 1970
        self.saved_gpu_s = 0.0
        self.regret_s = 0.0
        self._ghosts, self._stats = ghosts, stats
        self._witnesses = Ghosts()  # witness -> the namespace that asked last
        self._engines: dict[str, _Engine] = {}
        self._waiting: dict[Asker, Decision] = {}
        self._open: dict[tuple[str, str], Decision] = {}
        self._kept: deque[Decision] = deque(maxlen=KEPT)
        self._ended: list[Decision] = []

    # --- engines ---------------------------------------------------------------------------------------------

    def join(self, engine: str, namespace: str, now: float, user: str = "") -> None:
        self._engines[engine] = _Engine(namespace, Prefill(0.0, 0.0, 0.0, 1), Link(*self.engine_link), user, waste_at=now)

    def leave(self, engine: str) -> None:
        self._engines.pop(engine, None)
        for asker in [asker for asker in self._waiting if asker[0] == engine]:
            del self._waiting[asker]
        for name in [name for name in self._open if name[0] == engine]:
            self._end(self._open.pop(name))

    def pace(self, engine: str, counts: Mapping[str, int]) -> None:
        """What it says of its speed. A model that knows less than ours doesn't replace it."""
        mine = self._engines[engine]
        prefill = Prefill.from_counts(counts)
        if prefill.is_calibrated or not mine.prefill.is_calibrated:
            mine.prefill = prefill
        mine.arrivals_per_s = counts.get("arrivals_mhz", 0) / 1e3
        mine.busy = min(1.0, counts.get("busy_permille", 0) / 1e3)
        mine.running = counts.get("running", 0)

    def prefill(self, engine: str) -> Prefill:
        return self._engines[engine].prefill

    def seconds_a_byte(self, engine: str, token_bytes: float) -> dict[bool, float]:
        """What a byte in RAM saves when it is read: computing it, or reading it from the drives where they have it too.
        Empty while nobody knows."""
        prefill = self._engines[engine].prefill
        if not prefill.is_calibrated:
            return {}
        computed = prefill.seconds(0, WEIGHED_TOKENS) / WEIGHED_TOKENS / token_bytes
        fetched = computed if self.drives is None else 1 / self.drives.bytes_per_s
        return {False: computed, True: min(computed, fetched)}

    def loaded(self, engine: str, n: int, seconds: float) -> None:
        """It has loaded so many bytes in so many seconds."""
        if n and seconds > 0:
            self._stats.observe("load", seconds)
            self._engines[engine].link.observe(n, seconds)

    # --- one request -------------------------------------------------------------------------------------------

    def decide(self, asker: Asker, ask: Ask, matched: Matched, now: float, refusal: str = "") -> str:
        """The deepest tier whose blocks the request is offered; empty: none. `refusal`: why it may have none at all."""
        mine = self._engines[asker[0]]
        decision = Decision(asker[0], ask, self.mode, now, matched.tokens, block_tokens=matched.block_tokens)
        decision.user, decision.frames = mine.user, matched.frames
        backlog_s = self._backlog_s(mine, ask)
        decision.backlog_until = now + backlog_s
        self._remember(decision)
        tier = self._choose(mine, decision, matched, backlog_s)
        if refusal and decision.fetch is not None and not decision.held_out:
            tier, decision.reason, decision.chosen = "", refusal, decision.without
        if tier and decision.chosen is not None:
            mine.fetching[asker[1]] = self._saved_s(mine, decision, decision.chosen.candidate.tokens)
        self._say_why_missing(mine, decision, matched)
        self._waiting[asker] = decision
        return tier

    def _choose(self, mine: _Engine, decision: Decision, matched: Matched, backlog_s: float) -> str:
        """The deepest tier to take; and why not all that matched."""
        ask, now = decision.ask, decision.at
        candidates = self._candidates(mine, matched, now)
        off = [] if self.mode == "always" else self._off(candidates, now)
        open_ = [c for c in candidates if not any(tier in off for tier in (c.tier, *c.also))]
        pressure = Pressure(backlog_s, mine.arrivals_per_s, mine.busy, mine.running)
        estimates = choose(mine.prefill, ask.resident_tokens, ask.prompt_tokens, open_, pressure)
        if self.mode == "always":
            estimates.sort(key=lambda e: -e.candidate.tokens)
        chosen = estimates[0]
        decision.estimates, decision.chosen, decision.calibrated = estimates, chosen, mine.prefill.is_calibrated
        decision.links = self._links(mine)
        decision.queued = {tier: link.queued_bytes for tier, link in self._below.items()}
        if not decision.calibrated:
            decision.patience_until = now + uncalibrated_limit_s(chosen.candidate.tokens)
        if len(open_) < len(candidates):
            decision.reason = "tier_off"
            decision.detail = ", ".join(off)
        elif chosen.candidate.tokens < candidates[-1].tokens:
            decision.reason = "too_short" if self._is_short(mine, decision) else "too_dear"
        if chosen.candidate.tokens and self.mode == "decide" and self.guard.is_held_out(ask.request):
            decision.held_out, decision.reason = True, "hold_out"
        return "" if decision.held_out or self.mode == "shadow" else chosen.candidate.tier

    def _candidates(self, mine: _Engine, matched: Matched, now: float) -> list[Candidate]:
        return matched.candidates(mine.link, self._below, now)

    def _off(self, candidates: Sequence[Candidate], now: float) -> list[str]:
        """Of the tiers that these need, those that are not trusted."""
        tiers = dict.fromkeys(tier for c in candidates if c.tier for tier in (*c.also, c.tier))
        return [tier for tier in tiers if not self.guard.is_on(tier, now)]

    @property
    def _below(self) -> dict[str, Link]:
        """Of the tiers below RAM."""
        links = {"nvme": self.drives, "remote": self.remote}
        return {tier: link for tier, link in links.items() if link is not None}

    def _links(self, mine: _Engine) -> Mapping[str, int]:
        links = {"cpu": mine.link, **self._below}
        samples = tuple(link.samples for link in links.values())
        if mine.believed_at != samples:
            mine.believed = {f"{tier}_{name}": n for tier, link in links.items() for name, n in link.to_counts().items()}
            mine.believed_at = samples
        return mine.believed

    def _is_short(self, mine: _Engine, decision: Decision) -> bool:
        """Whether a link of any bandwidth would be too slow for it."""
        assert decision.without is not None and decision.fetch is not None
        if not decision.calibrated:
            return True
        fetch = decision.fetch.candidate
        ways = [self._below[tier] for tier in (*fetch.also, fetch.tier) if tier in self._below]
        latency_s = mine.link.latency_s + max((way.latency_s for way in ways), default=0.0)
        return decision.without.recompute_s <= latency_s + GAIN_MIN_S

    def _say_why_missing(self, mine: _Engine, decision: Decision, matched: Matched) -> None:
        """Why what is missing is missing; and that this namespace has met these tokens."""
        witness = decision.ask.witness
        other = self._witnesses.cause(witness) if witness else None
        if not decision.reason and matched.missing is not None:
            cause = self._ghosts.cause(matched.missing)
            if matched.is_remote_away:
                decision.reason = "remote_away"
            elif cause is not None:
                decision.reason, decision.detail = "evicted", cause
            elif other is not None and other != mine.namespace and not matched.all_blocks:
                decision.reason, decision.detail = "namespace_differs", f"{other} has met them"
            else:
                decision.reason = "never_stored"
        if witness:
            self._witnesses.add(witness, mine.namespace)

    def patience_to_ask(
        self, engine: str, ask: Ask, unknown_tokens: int, ask_s: float, hit_share: float, unknown_bytes: int = 0
    ) -> float:
        """Seconds that it is worth to wait, before the decision, for the answer whether the remote has the last
        `unknown_tokens` of the prompt, of `unknown_bytes`; 0: go on without. Asking usually takes `ask_s`, and finds
        `hit_share` of what it is asked for."""
        mine = self._engines[engine]
        if self.remote is None or unknown_tokens <= 0 or self.mode == "shadow":
            return 0.0
        if self.mode == "always" or not ask.request:
            return max(ASK_ALWAYS_S, ASK_TIMES * ask_s)
        if self.guard.is_held_out(ask.request):
            return 0.0
        backlog_s = self._backlog_s(mine, ask)
        if mine.prefill.is_calibrated:
            computed_s = mine.prefill.seconds(max(0, ask.prompt_tokens - unknown_tokens), ask.prompt_tokens)
            price_s = Pressure(backlog_s, mine.arrivals_per_s, mine.busy, mine.running).price_s(computed_s)
            saved_s = max(0.0, computed_s + price_s - self.remote.seconds(unknown_bytes))
        else:
            saved_s = uncalibrated_limit_s(unknown_tokens) if unknown_tokens >= UNCALIBRATED_TOKENS_MIN else 0.0
        return patience_to_ask(hit_share * saved_s, backlog_s, ask_s)

    @staticmethod
    def _backlog_s(mine: _Engine, ask: Ask) -> float:
        """The engine counts whoever waits for its blocks as if all were computed; it can't know better."""
        return max(0.0, ask.backlog_s - sum(mine.fetching.values()))

    def due(self, asker: Asker, now: float) -> None:
        """Nothing is ahead of the request any more."""
        if asker in self._waiting:
            self._waiting[asker].backlog_until = now

    def keeps_waiting(self, asker: Asker, arrived_blocks: int, remaining_s: float, now: float) -> bool:
        """Whether what is still on its way is worth it. An infinite `remaining_s`: nothing moves."""
        decision = self._waiting.get(asker)
        if decision is None or decision.chosen is None:
            return True
        mine = self._engines[asker[0]]
        ask, wanted = decision.ask, decision.chosen.candidate.tokens
        arrived = round(arrived_blocks * decision.block_tokens)
        backlog_s = max(0.0, decision.backlog_until - now)
        if remaining_s == float("inf"):
            return backlog_s > 0  # there is nothing to lose yet
        if decision.mode == "always":
            return True
        if not mine.prefill.is_calibrated:
            return now < decision.patience_until
        pressure = Pressure(backlog_s, mine.arrivals_per_s, mine.busy, mine.running)
        resident, prompt = ask.resident_tokens, ask.prompt_tokens
        if keeps_waiting(mine.prefill, resident, prompt, arrived, remaining_s, pressure, wanted):
            return True
        given_up_s = self._saved_s(mine, decision, wanted) - self._saved_s(mine, decision, arrived)
        return not self._may_waste(mine, given_up_s, now)

    @staticmethod
    def _saved_s(mine: _Engine, decision: Decision, tokens: int) -> float:
        """What the engine need not compute with so many tokens loaded."""
        resident = decision.ask.resident_tokens
        return mine.prefill.seconds(resident, resident + tokens)

    @staticmethod
    def _may_waste(mine: _Engine, seconds: float, now: float) -> bool:
        mine.waste_s = min(WASTE_BURST_S, mine.waste_s + (now - mine.waste_at) * WASTE_SHARE)
        mine.waste_at = now
        if seconds > mine.waste_s:
            return False
        mine.waste_s -= seconds
        return True

    def answered(self, asker: Asker, offered: Mapping[str, int], now: float, reason: str = "") -> None:
        """So many blocks of each tier were offered. `reason`: why what was staged is not all there."""
        decision = self._waiting.pop(asker, None)
        if decision is None:
            return
        decision.answered_at = now
        self._stats.observe("answer", now - decision.at)
        decision.offered = {tier: round(n * decision.block_tokens) for tier, n in offered.items() if n}
        decision.offered_tokens = round(sum(offered.values()) * decision.block_tokens)
        fetching = self._engines[asker[0]].fetching
        if asker[1] in fetching:
            fetching[asker[1]] = self._saved_s(self._engines[asker[0]], decision, decision.offered_tokens)
        if reason and decision.reason in ("", "never_stored", "evicted"):
            decision.reason, decision.detail = reason, f"{decision.offered_tokens} tokens had come"
        self._stats.add("decided_fetch" if decision.offered_tokens else "decided_recompute")
        if decision.reason:
            self._stats.add(f"missed_{decision.reason}")

    def forget(self, asker: Asker) -> None:
        """Its lease is over: it was loaded, or never will be."""
        self._waiting.pop(asker, None)
        self._engines[asker[0]].fetching.pop(asker[1], None)

    def outcome(self, engine: str, request: str, counts: Mapping[str, int], now: float) -> None:
        """Its first token is there."""
        decision = self._open.pop((engine, request), None)
        if decision is None:
            return
        decision.actual = {name: counts.get(name, 0) for name in OUTCOME}
        for name in ("prompt_resident_tokens", "prompt_loaded_tokens", "prompt_computed_tokens"):
            self._stats.add(name, max(0, decision.actual[name.removeprefix("prompt_")]))
        ttft_s = decision.actual["ttft_us"] / 1e6
        if decision.without is not None and decision.calibrated:
            self._learn(decision, ttft_s, decision.without, now)
        self._end(decision)

    def _learn(self, decision: Decision, ttft_s: float, without: Estimate, now: float) -> None:
        """`without`: what was expected of computing it all."""
        assert decision.actual is not None and decision.chosen is not None
        other_s, wanted = without.ttft_s, decision.chosen.candidate
        if decision.held_out:
            self.guard.note_held_out(ttft_s, without.ttft_s, now)
            other_s = decision.chosen.ttft_s
        elif wanted.tokens and decision.mode != "shadow":
            if decision.mode == "decide":  # also when it waited and got nothing: that is the tier's doing
                self.guard.note_loaded(wanted.tier, ttft_s, without.ttft_s, now)
                for other in wanted.also if ttft_s < without.ttft_s else ():  # which of them is to blame nobody knows
                    self.guard.note_loaded(other, ttft_s, without.ttft_s, now)
            decision.gain_s = without.recompute_s + without.rest_s - decision.actual["prefill_us"] / 1e6
            self.saved_gpu_s += decision.gain_s
        elif decision.fetch is not None:
            other_s = decision.fetch.ttft_s
        else:
            return  # there was no choice
        decision.regret_s = max(0.0, ttft_s - other_s)
        self.regret_s += decision.regret_s

    # --- what there is -----------------------------------------------------------------------------------------

    def explain(self, request: str, last: int, user: str | None = None) -> list[dict[str, object]]:
        """Records, the newest last: of this request, or of the `last` newest if it is "last"; of engines of this user, or
        of all. vLLM appends something of its own to the name that its user knows."""
        kept = [d for d in self._kept if user is None or d.user == user]
        if request == "last":
            chosen: Iterable[Decision] = kept[-last:] if last else ()
        else:
            chosen = [d for d in kept if d.ask.request == request or d.ask.request.startswith(f"{request}-")]
        return [decision.record(self.epoch_s) for decision in chosen]

    def take_ended(self) -> list[dict[str, object]]:
        """Records that are complete, since the last call; for the log."""
        ended, self._ended = self._ended, []
        return [decision.record(self.epoch_s) for decision in ended]

    def guard_changes(self) -> list[str]:
        """Sentences for the log: tiers that turned themselves off, or on again, since the last call."""
        return [
            f"tier {tier} is {'on again' if is_on else 'off'}: in the last minute its loads saved {saved_s:.2f} s"
            for tier, is_on, saved_s in self.guard.changes()
        ]

    def snapshot(self) -> dict[str, object]:
        """As JSON values: seconds, bytes per second, counts."""
        return {
            "mode": self.mode,
            "saved_gpu_s": round(self.saved_gpu_s, 3),
            "regret_s": round(self.regret_s, 3),
            "waiting": len(self._waiting),
            "links": {
                name: {**link.to_counts(), "stall_limit_us": round(link.stall_limit_s() * 1e6)}
                for name, link in self._below.items()
            },
            "engines": {
                name: {**e.prefill.to_counts(), "calibrated": e.prefill.is_calibrated, "link": e.link.to_counts()}
                for name, e in self._engines.items()
            },
            "guard": self.guard.snapshot(),
        }

    # --- how -----------------------------------------------------------------------------------------------------

    def _remember(self, decision: Decision) -> None:
        name = (decision.engine, decision.ask.request)
        before = self._open.pop(name, None)
        if before is not None:  # it asked again: the former question has no outcome of its own
            self._end(before)
        elif len(self._open) >= OPEN_MAX:
            self._end(self._open.pop(next(iter(self._open))))
        self._open[name] = decision
        self._kept.append(decision)

    def _end(self, decision: Decision) -> None:
        if len(self._ended) < OPEN_MAX:  # where nobody takes them, as in a store without a daemon
            self._ended.append(decision)
