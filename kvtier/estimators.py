"""What things take, learnt from what happens: an engine's prefill, a tier's transfers. Pure.

Each estimator learns a shape slowly (what a step, a token, a byte take beside each other) and a scale quickly (all of
it takes so many times as long right now). A little error costs nothing; a queue or a slow phase that goes unseen does.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

CALIBRATED_STEPS = 8  # prefill steps after which a prefill model is believed
USUAL_PREFILL = (8e-3, 26e-6, 0.6e-9, 0.1e-3)  # s a step, a token, a pair, a decode: only their proportions matter
STEP_HALF_LIFE = 2000  # steps
STEP_TOKENS_MIN = 16  # of a prompt in a step; with fewer, it is as good as one that only decodes
STEP_S_MAX = 600.0  # what took longer was no step
STEP_PRIOR = 50  # steps that a given prior counts for
SCALE_STEPS = 7  # the median of so many says how much slower than its model the engine is right now
OUTLIER = 3.0  # times what was expected: a step counts for no more
LINK_HALF_LIFE = 100  # samples
LINK_PRIOR = 5  # samples
SAMPLE_S = 0.002  # a busy link is measured over at least so long: completions come in bursts
SAMPLE_KEPT = 0.6  # of the weight of what was before, by one more sample: nine tell of any change
SLOWDOWN_MAX = 100.0  # times as long as expected that one sample may count for
DELIVERED_FACTOR = 1.25  # times what came in the last samples' time, latencies too, a link is believed to carry
FADE_S = 5.0  # half-life of a slow phase that nobody sees the end of, for nobody loads any more
STALL_FACTOR, STALL_MIN_S = 4.0, 0.25  # a stall: so many times what 99 % take, and at least so long
RIDGE = 3e-4  # share of all evidence: where nothing was learnt, the proportions of the prior hold
SOLVED_AT_ONCE, SOLVED_EVERY = 32, 16  # samples: at first each counts, later they hardly change anything
# What is believed of the wire
STEP_NS_MAX, TOKEN_PS_MAX, PAIR_FS_MAX = 60 * 10**9, 10**12, 10**12
CHUNK_TOKENS_MAX, COUNT_MAX = 2**20, 2**40
LATENCY_US_MAX, BYTES_PER_S_MIN, BYTES_PER_S_MAX = 60 * 10**6, 10**6, 10**13
USUAL_LINK = (1000, 10**9)  # us, bytes/s


class _Shape:
    """Seconds as a sum of features times coefficients, none negative: least squares with forgetting.

    In units of the prior, where every coefficient is 1. A sample counts by what the prior expected it to take, so that
    a burst of completions at one moment, the first of which seems to have taken all the time, is right on the whole.
    """

    def __init__(self, prior: Sequence[float], prior_samples: float, half_life: float) -> None:
        self._prior = [max(p, 1e-18) for p in prior]
        self._kept = 0.5 ** (1 / half_life)
        self._prior_samples = prior_samples
        self._prior_weight = 0.0
        self._squares = [[0.0] * len(prior) for _ in prior]
        self._products = [0.0] * len(prior)
        self._samples = 0
        self.coefficients = list(self._prior)

    def predict(self, features: Sequence[float]) -> float:
        return sum(c * x for c, x in zip(self.coefficients, features))

    def learn(self, features: Sequence[float], seconds: float) -> None:
        u = [p * x for p, x in zip(self._prior, features)]
        expected = sum(u)
        if expected <= 0:
            return
        if not self._samples:
            self._prior_weight = self._prior_samples * expected
        kept, self._samples = self._kept, self._samples + 1
        self._prior_weight *= kept
        for i, ui in enumerate(u):  # so few that an array would take longer
            weight = ui / expected
            self._squares[i] = [s * kept + weight * uj for s, uj in zip(self._squares[i], u)]
            self._products[i] = self._products[i] * kept + weight * seconds
        if self._samples < SOLVED_AT_ONCE or self._samples % SOLVED_EVERY == 0:
            self._solve()

    def _solve(self) -> None:
        squares, products = np.array(self._squares), np.array(self._products)
        ridge = self._prior_weight + RIDGE * float(squares.trace())
        squares += ridge * np.eye(len(products))
        products += ridge
        solved = np.zeros(len(products))
        free = np.arange(len(products))
        while len(free):  # what would be negative is nothing
            found = np.linalg.solve(squares[np.ix_(free, free)], products[free])
            solved[free] = np.maximum(found, 0.0)
            if (found >= 0).all():
                break
            solved[free] = 0.0
            free = free[found >= 0]
        self.coefficients = (solved * self._prior).tolist()


@dataclass(frozen=True, slots=True)
class Prefill:
    """How long an engine computes prompt tokens: so much a step, a token, and a pair of tokens that see each other."""

    step_s: float
    token_s: float
    pair_s: float
    chunk_tokens: int
    steps: int = 0  # that it was learnt from

    @property
    def is_calibrated(self) -> bool:
        return self.steps >= CALIBRATED_STEPS and self.token_s + self.pair_s > 0

    def seconds(self, resident: int, end: int) -> float:
        """To compute tokens `resident` to `end` with the former there."""
        new = end - resident
        if new <= 0:
            return 0.0
        steps = -(-new // self.chunk_tokens)
        return self.step_s * steps + new * (self.token_s + self.pair_s * (end + resident))

    def to_counts(self) -> dict[str, int]:
        """For the wire, and for the calibration file."""
        return {
            "step_ns": bounded(self.step_s * 1e9, 0, STEP_NS_MAX),
            "token_ps": bounded(self.token_s * 1e12, 0, TOKEN_PS_MAX),
            "pair_fs": bounded(self.pair_s * 1e15, 0, PAIR_FS_MAX),
            "chunk_tokens": bounded(self.chunk_tokens, 1, CHUNK_TOKENS_MAX),
            "steps": bounded(self.steps, 0, COUNT_MAX),
        }

    @classmethod
    def from_counts(cls, counts: Mapping[str, object]) -> "Prefill":
        """Whatever a peer or a file says: what is odd is bounded, what is missing is nothing."""
        return cls(
            bounded(counts.get("step_ns"), 0, STEP_NS_MAX) / 1e9,
            bounded(counts.get("token_ps"), 0, TOKEN_PS_MAX) / 1e12,
            bounded(counts.get("pair_fs"), 0, PAIR_FS_MAX) / 1e15,
            bounded(counts.get("chunk_tokens"), 1, CHUNK_TOKENS_MAX),
            bounded(counts.get("steps"), 0, COUNT_MAX),
        )


class PrefillFit:
    """Learns a Prefill from an engine's steps, those that only decode too: they show what a step itself takes."""

    def __init__(self, chunk_tokens: int, prior: Prefill | None = None) -> None:
        self._chunk_tokens = max(1, chunk_tokens)
        known = prior is not None and prior.is_calibrated
        proportions: tuple[float, ...] = USUAL_PREFILL
        if prior is not None and known:
            said = (prior.step_s, prior.token_s, prior.pair_s, USUAL_PREFILL[3])
            # What was nothing may become something
            proportions = tuple(max(s, usual / 1000) for s, usual in zip(said, USUAL_PREFILL))
        self._shape = _Shape(proportions, STEP_PRIOR if known else 1e-6, STEP_HALF_LIFE)
        self._steps = prior.steps if prior is not None and known else 0
        self._observed = 0
        self._scales: deque[float] = deque(maxlen=SCALE_STEPS)
        self._decodes = 0.0  # beside a prefill, on the mean

    def observe(self, new_tokens: int, pairs: int, seconds: float, decodes: int = 0) -> None:
        """One step of the engine. `pairs`: the sum over its requests of end^2 - start^2."""
        if not 0 < seconds <= STEP_S_MAX:
            return
        features = (1.0, new_tokens, pairs, decodes)
        expected = self._shape.predict(features)
        if new_tokens >= STEP_TOKENS_MIN:
            self._steps += 1
            self._observed += 1
            self._decodes += 0.05 * (decodes - self._decodes)
            if self._observed > CALIBRATED_STEPS and expected > 0:
                self._scales.append(seconds / expected)
        if self._observed > CALIBRATED_STEPS:
            seconds = min(seconds, OUTLIER * expected * self._scale)
        self._shape.learn(features, seconds)

    def model(self) -> Prefill:
        step, token, pair, decode = (c * self._scale for c in self._shape.coefficients)
        return Prefill(step + decode * self._decodes, token, pair, self._chunk_tokens, self._steps)

    @property
    def _scale(self) -> float:
        return median(self._scales) if len(self._scales) == SCALE_STEPS else 1.0


class Link:
    """One tier's way to where its blocks are needed, in the order of asking.

    Learnt from is what drains while it is busy, so that transfers side by side are no riddle. Times are of one clock.
    """

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        self.queued_bytes = 0
        self.samples = 0
        self._shape = _Shape((max(latency_s, 1e-6), 1 / max(bytes_per_s, 1.0)), LINK_PRIOR, LINK_HALF_LIFE)
        self._took = self._took_starts = self._took_bytes = 0.0  # the last samples: their seconds, and what came in them
        self._learnt_at = -math.inf
        self._since = self._moved_at = 0.0  # the present sample's beginning; when something came last
        self._bytes = 0  # of the present sample
        self._starts = 0  # 1: it began with an idle link, and so with a latency
        self._gap_s = SAMPLE_S  # 99 % of the gaps between completions are shorter
        self._asked = 0  # bytes of the last transfer

    def ask(self, n: int, now: float) -> None:
        if self.queued_bytes == 0:
            self._since = self._moved_at = now
            self._bytes, self._starts = 0, 1
        elif self.silent_s(now) > STALL_MIN_S and self.silent_s(now) > self.stall_limit_s():
            self._since = now  # what is queued is stuck, and not because the link were slow
        self._asked = max(0, n)
        self.queued_bytes += self._asked

    def done(self, n: int, now: float) -> None:
        if self.queued_bytes == 0:
            return
        n = min(n, self.queued_bytes)
        self.queued_bytes -= n
        self._bytes += n
        gap = max(0.0, now - self._moved_at)
        self._gap_s = min(gap, self._gap_s * 1.5) if gap > self._gap_s else max(SAMPLE_S, self._gap_s * 0.995)
        self._moved_at = max(now, self._moved_at)
        if self.queued_bytes == 0 or now - self._since >= SAMPLE_S:
            self._learn(self._starts, self._bytes, max(0.0, now - self._since), now)
            self._since, self._bytes, self._starts = max(now, self._since), 0, 0

    def drop(self, n: int, now: float) -> None:
        self.queued_bytes = max(0, self.queued_bytes - n)

    def observe(self, n: int, seconds: float) -> None:
        """A whole transfer, alone, on a link whose queue isn't ours."""
        if n > 0 and seconds > 0 and math.isfinite(seconds):
            self._learn(1, n, seconds, -math.inf)

    def seconds(self, n: int, ahead: int | None = None, now: float | None = None) -> float:
        """How long until n more bytes are here, behind `ahead` others. With `now` it knows that a slow phase may be
        over since, and that a link which has gone silent is slower than it was."""
        latency, per_byte = self._shape.coefficients
        return (latency + per_byte * (n + (self.queued_bytes if ahead is None else ahead))) * self._scale(now)

    def silent_s(self, now: float) -> float:
        """Busy, but nothing came for so long."""
        return max(0.0, now - self._moved_at) if self.queued_bytes else 0.0

    def stall_limit_s(self) -> float:
        """After a longer silence something is stuck."""
        return max(STALL_FACTOR * max(self._gap_s, self.seconds(self._asked, ahead=0)), STALL_MIN_S)

    @property
    def latency_s(self) -> float:
        return self._shape.coefficients[0] * self._scale(None)

    @property
    def bytes_per_s(self) -> float:
        return 1 / max(self._shape.coefficients[1] * self._scale(None), 1 / BYTES_PER_S_MAX)

    @property
    def delivered_per_s(self) -> float:
        """`bytes_per_s`, as far as the last samples bear it out: where all loads are of one length nobody can tell what of
        their time is latency, and a bandwidth is believed that there never was."""
        if not self._took:
            return self.bytes_per_s
        return min(self.bytes_per_s, DELIVERED_FACTOR * self._took_bytes / self._took)

    def to_counts(self) -> dict[str, int]:
        """For the calibration file: as it usually is, not as it is in this moment's phase."""
        latency, per_byte = self._shape.coefficients
        return {
            "latency_us": bounded(latency * 1e6, 0, LATENCY_US_MAX),
            "bytes_per_s": bounded(1 / max(per_byte, 1 / BYTES_PER_S_MAX), BYTES_PER_S_MIN, BYTES_PER_S_MAX),
            "samples": bounded(self.samples, 0, COUNT_MAX),
        }

    @classmethod
    def from_counts(cls, counts: Mapping[str, object]) -> "Link":
        return cls(
            bounded(counts.get("latency_us"), 0, LATENCY_US_MAX, USUAL_LINK[0]) / 1e6,
            float(bounded(counts.get("bytes_per_s"), BYTES_PER_S_MIN, BYTES_PER_S_MAX, USUAL_LINK[1])),
        )

    def _learn(self, starts: int, n: int, took: float, now: float) -> None:
        expected = self._shape.predict((starts, n))
        took = min(took, SLOWDOWN_MAX * expected)
        # Of a burst the first to come takes all the time, and the rest none: that is one sample
        kept = SAMPLE_KEPT ** min(1.0, max(took, starts * expected) / SAMPLE_S)
        self._took = self._took * kept + took
        self._took_starts = self._took_starts * kept + starts
        self._took_bytes = self._took_bytes * kept + n
        self._learnt_at = now
        self.samples += 1
        self._shape.learn((starts, n), took)

    def _scale(self, now: float | None) -> float:
        """How many times as long as usual it takes."""
        latency, per_byte = self._shape.coefficients
        expected = latency * self._took_starts + per_byte * self._took_bytes
        if expected <= 0:
            return 1.0
        if now is None:
            return max(self._took / expected, 1 / SLOWDOWN_MAX)
        unheard = max(0.0, self.silent_s(now) - self.stall_limit_s()) if self.queued_bytes else 0.0
        scale = max((self._took + unheard) / expected, 1 / SLOWDOWN_MAX)
        if scale > 1 and not unheard and self._learnt_at > -math.inf:
            scale = 1 + (scale - 1) * 0.5 ** (max(0.0, now - self._learnt_at) / FADE_S)
        return scale


def bounded(value: object, least: int, most: int, otherwise: int | None = None) -> int:
    """A number that may be anything, as a count within its bounds; `otherwise` when it is none."""
    if not isinstance(value, int | float) or value != value:
        return least if otherwise is None else otherwise
    return round(min(max(value, least), most))
