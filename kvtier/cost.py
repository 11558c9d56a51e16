"""Fetch or recompute: which tiers to take a prompt's beginning from, and how long to wait for it. Pure.

For each candidate, to take k tokens more than the engine has:

    T = max(load, backlog) + prefill of the rest       until this request's first token
    E = arrivals * R * (backlog + R / 2) / (1 - busy)  what all others wait because R seconds are computed, not loaded

and the least T + E wins. The tier's queue is part of the load and isn't priced again: that would drive work to the
engine just when it has too much. T is concave in k, so only the boundaries between tiers can be best, and nothing else
is a candidate.

What prefill and loads take is learnt (kvtier/estimators.py). Until an engine's prefill is known, a floor and a deadline
decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kvtier.estimators import COUNT_MAX, Prefill, bounded

PRICE = 1.0  # seconds of this request that one second of all others is worth
BUSY_MAX = 0.95
GAIN_MIN_S, GAIN_MIN_SHARE = 0.005, 0.05  # a smaller gain isn't worth the traffic
PATIENCE = 1.25  # how much worse than giving up waiting may look: hysteresis
UNCALIBRATED_TOKENS_MIN = 256
ASK_SHARE = 0.25  # of what an answer is expected to save, asking may take
ASK_TIMES, ASK_S_MIN = 4.0, 0.01  # so many times as long as usual an answer is waited for, and at least so long,
ASK_WAIT_SHARE = 0.1  # and at least this share of what it is expected to save: the first one is slower, it connects
ASK_ALWAYS_S = 0.5  # where nothing is weighed
UNCALIBRATED_S, UNCALIBRATED_S_PER_TOKEN, UNCALIBRATED_S_MAX = 0.25, 0.1 / 1024, 30.0


@dataclass(frozen=True, slots=True)
class Pressure:
    """What else the engine has to do."""

    backlog_s: float = 0.0  # of prefill, ahead of this request
    arrivals_per_s: float = 0.0
    busy: float = 0.0  # share of the time with prefill work, 0 to 1
    running: int = 0  # requests that decode

    def price_s(self, computed_s: float) -> float:
        """What all others together wait longer when so much is computed now. The wait of those who come while the
        engine is at it, and while the queue this leaves drains."""
        queue_s = self.backlog_s + computed_s / 2
        return PRICE * self.arrivals_per_s * computed_s * queue_s / (1 - min(self.busy, BUSY_MAX))


@dataclass(frozen=True, slots=True)
class Candidate:
    """Take so many tokens beyond the resident ones, which are there after load_s. `tier`: the deepest used, or "". `also`:
    other tiers below RAM that it needs."""

    tokens: int
    load_s: float
    tier: str
    also: tuple[str, ...] = ()


class Estimate(NamedTuple):
    """What taking a candidate would mean, and what that assumes. A tuple, for thousands are made a second."""

    candidate: Candidate
    ttft_s: float
    price_s: float
    recompute_s: float  # of what matched and isn't taken
    rest_s: float  # of what didn't match, which is computed in any case
    pressure: Pressure
    prefill: Prefill

    @property
    def cost_s(self) -> float:
        return self.ttft_s + self.price_s

    def as_counts(self) -> dict[str, int | str]:
        """As JSON values, times in us."""
        return {
            "tokens": self.candidate.tokens,
            "tier": self.candidate.tier,
            **{
                f"{name}_us": bounded(seconds * 1e6, 0, COUNT_MAX)
                for name, seconds in (
                    ("load", self.candidate.load_s),
                    ("ttft", self.ttft_s),
                    ("price", self.price_s),
                    ("recompute", self.recompute_s),
                    ("rest", self.rest_s),
                    ("backlog", self.pressure.backlog_s),
                )
            },
            "arrivals_mhz": bounded(self.pressure.arrivals_per_s * 1000, 0, COUNT_MAX),
            "busy_permille": bounded(self.pressure.busy * 1000, 0, 1000),
            **self.prefill.to_counts(),
        }


def choose(
    prefill: Prefill, resident: int, prompt: int, candidates: Sequence[Candidate], pressure: Pressure
) -> list[Estimate]:
    """What each candidate and taking none would mean, the best first."""
    if not any(candidate.tokens == 0 for candidate in candidates):
        candidates = [Candidate(0, 0.0, ""), *candidates]
    matched = min(prompt, resident + max(candidate.tokens for candidate in candidates))
    rest_s = prefill.seconds(matched, prompt)
    estimates = []
    for candidate in candidates:
        have = min(prompt, resident + candidate.tokens)
        recompute_s = prefill.seconds(have, matched)
        ttft_s = max(candidate.load_s, pressure.backlog_s) + prefill.seconds(have, prompt)
        price_s = pressure.price_s(recompute_s)
        estimates.append(Estimate(candidate, ttft_s, price_s, recompute_s, rest_s, pressure, prefill))
    best = _best(estimates) if prefill.is_calibrated else _best_unknown(estimates)
    return [best, *sorted((e for e in estimates if e is not best), key=_order)]


def keeps_waiting(
    prefill: Prefill,
    resident: int,
    prompt: int,
    arrived: int,
    remaining_s: float,
    pressure: Pressure,
    wanted: int | None = None,
) -> bool:
    """Whether a load of `wanted` tokens (all of the prompt's, when not said), `arrived` of them here and the rest in
    `remaining_s`, is still worth waiting for; else what arrived is taken and the rest computed."""
    end = prompt if wanted is None else min(prompt, resident + wanted)
    have = min(end, resident + arrived)
    if not prefill.is_calibrated:
        return remaining_s <= uncalibrated_limit_s(end - have)
    computed_s = prefill.seconds(have, end)
    give_up_s = pressure.backlog_s + computed_s + pressure.price_s(computed_s)
    return remaining_s <= PATIENCE * give_up_s


def patience_to_ask(gain_s: float, backlog_s: float, ask_s: float) -> float:
    """Seconds to wait for an answer that usually takes `ask_s` and is expected to save `gain_s`; 0: it isn't waited for.
    What the engine has to do first hides it."""
    if ask_s >= max(backlog_s, ASK_SHARE * gain_s if gain_s >= GAIN_MIN_S else 0.0):
        return 0.0
    return backlog_s + min(gain_s, max(ASK_S_MIN, ASK_TIMES * ask_s, ASK_WAIT_SHARE * gain_s))


def uncalibrated_limit_s(tokens: int) -> float:
    """How long to wait for so many tokens while nobody knows what computing them takes."""
    return min(UNCALIBRATED_S_MAX, UNCALIBRATED_S + UNCALIBRATED_S_PER_TOKEN * tokens)


def _best(estimates: Sequence[Estimate]) -> Estimate:
    none = min((e for e in estimates if e.candidate.tokens == 0), key=_order)
    best = min(estimates, key=_order)
    gain = none.cost_s - best.cost_s
    return best if gain > max(GAIN_MIN_S, GAIN_MIN_SHARE * none.cost_s) else none


def _best_unknown(estimates: Sequence[Estimate]) -> Estimate:
    fit = [
        e
        for e in estimates
        if e.candidate.tokens == 0
        or (
            e.candidate.tokens >= UNCALIBRATED_TOKENS_MIN and e.candidate.load_s <= uncalibrated_limit_s(e.candidate.tokens)
        )
    ]
    return max(fit, key=lambda e: (e.candidate.tokens, -e.candidate.load_s))


def _order(estimate: Estimate) -> tuple[float, int]:
    return estimate.cost_s, estimate.candidate.tokens
