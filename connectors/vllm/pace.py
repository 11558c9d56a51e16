"""What the engine does and how fast: what kvtierd must know to tell whether a load is worth it.

The prefill model is learnt from the engine's own steps. A step lasts from when it was scheduled, or when the one before
it was over if that came later, until its output is processed; so neither idle time nor steps that were scheduled ahead
count. The prefill work that is ahead of a request is the model's word on what all requests before it have left to
compute, of which only sums are kept.

Cost: a few microseconds a step, whatever the number of requests that decode.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtier.connectors.vllm.journey import Journey

from kvtier.estimators import PrefillFit

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

WARM_UP_STEPS = 3  # prefill steps that are not learnt from: first of their shape, they compile and allocate
DECODE_STEPS = 16  # of so many that only decode, one is learnt from: they are many and alike
STEPS_AHEAD_MAX = 8  # vLLM schedules two; more have lost their outputs
MEMORY_S = 30.0  # for how long an arrival or a busy second counts, as a time constant
MEMORY_MIN_S = 1.0  # of it that must have passed: one arrival is no rate


@dataclass(slots=True)
class _Step:
    scheduled_at: float
    new_tokens: int  # of prompts
    pairs: int  # sum of end^2 - start^2 over these prompts: what attention takes
    decodes: int
    is_plain: bool  # nothing else was done in it
    ended: list[tuple[str, Journey]] = field(default_factory=list)  # prompts of which it computes the last token


class Pace:
    def __init__(self, chunk_tokens: int) -> None:
        """`chunk_tokens`: of how many at most a step is."""
        self._chunk_tokens = chunk_tokens
        self._fit = PrefillFit(chunk_tokens)
        self._model = self._fit.model()
        self._journeys: dict[str, Journey] = {}  # whose prompts are not computed yet
        self._tokens_left = 0  # of these, to compute
        self._pairs_left = 0
        self._steps: deque[_Step] = deque()  # scheduled and not over, oldest first
        self._last_end = 0.0
        self._prefill_steps = self._decode_steps = 0
        self._running = 0
        self._arrivals = self._busy_s = self._watched_s = 0.0  # those of the past count less
        self._watched_at: float | None = None

    # --- requests --------------------------------------------------------------------------------------------------

    def arrive(self, req_id: str, request: "Request", resident: int, now: float) -> float:
        """Seconds of prefill work that are ahead of this new request, `resident` of whose tokens need none."""
        ahead = self.backlog_s
        self.leave(req_id)  # a session's next turn may have the name of its last
        self._age(now)
        self._arrivals += 1
        journey = self._journeys[req_id] = Journey(request, resident, now)
        self._add(journey, 1)
        return ahead

    def resident(self, req_id: str, tokens: int) -> None:
        """What the engine's own cache has of it, when vLLM looks."""
        journey = self._journeys.get(req_id)
        if journey is not None:
            self._add(journey, -1)
            journey.resident(tokens)
            self._add(journey, 1)

    def load_ordered(self, req_id: str, tokens: int, now: float) -> None:
        journey = self._journeys.get(req_id)
        if journey is not None:
            self._add(journey, -1)
            journey.load_ordered(tokens, now)
            self._add(journey, 1)

    def loaded(self, req_id: str, seconds: float) -> None:
        journey = self._journeys.get(req_id)
        if journey is not None:
            journey.loaded(seconds)

    def leave(self, req_id: str) -> None:
        """However it ended."""
        journey = self._journeys.pop(req_id, None)
        if journey is not None:
            self._add(journey, -1)

    def clear(self) -> None:
        """Start again from nothing, but for what was learnt."""
        self._journeys.clear()
        self._steps.clear()
        self._tokens_left = self._pairs_left = 0

    @property
    def backlog_s(self) -> float:
        """Seconds of prefill work that the engine has left."""
        steps = self._tokens_left / self._chunk_tokens
        model = self._model
        return model.step_s * steps + model.token_s * self._tokens_left + model.pair_s * self._pairs_left

    # --- steps -----------------------------------------------------------------------------------------------------

    def begin(self, output: "SchedulerOutput", now: float) -> None:
        """A step was scheduled."""
        scheduled = output.num_scheduled_tokens
        step = _Step(now, 0, 0, len(scheduled), not output.has_sync_kv_loads)
        for req_id in self._journeys.keys() & scheduled.keys():
            self._prefill(req_id, scheduled[req_id], step)
        drafts = sum(map(len, output.scheduled_spec_decode_tokens.values()))
        # What was preempted computes its answer's tokens again: work that is neither of a prompt nor a decode.
        step.is_plain &= output.total_num_scheduled_tokens == step.new_tokens + step.decodes + drafts
        if scheduled:
            self._running = step.decodes
        if len(self._steps) >= STEPS_AHEAD_MAX:
            self._steps.clear()
        self._steps.append(step)

    def _prefill(self, req_id: str, tokens: int, step: _Step) -> None:
        journey = self._journeys[req_id]
        start = journey.request.num_computed_tokens
        end = start + tokens
        step.new_tokens += tokens
        step.pairs += end * end - start * start
        step.decodes -= 1
        self._add(journey, -1)
        journey.computing(start, end, step.scheduled_at)
        if end < journey.prompt:
            self._add(journey, 1)
        else:
            del self._journeys[req_id]
            step.ended.append((req_id, journey))

    def end(self, now: float) -> list[tuple[str, dict[str, int]]]:
        """The oldest step's output is there. Returns what became of the requests that have their first token by it."""
        if not self._steps:
            return []
        step = self._steps.popleft()
        seconds = now - max(step.scheduled_at, self._last_end)
        self._last_end = now
        if step.new_tokens:
            self._age(now)
            self._busy_s += seconds
            self._prefill_steps += 1
        elif step.decodes:
            self._decode_steps += 1
        is_told = step.new_tokens or (step.decodes and self._decode_steps % DECODE_STEPS == 0)
        if is_told and step.is_plain and self._prefill_steps > WARM_UP_STEPS:
            self._fit.observe(step.new_tokens, step.pairs, seconds, step.decodes)
        return [(req_id, journey.outcome(now)) for req_id, journey in step.ended]

    def counts(self, now: float) -> dict[str, int]:
        """For kvtierd."""
        self._age(now)
        self._model = self._fit.model()
        watched_s = max(self._watched_s, MEMORY_MIN_S)
        return {
            **self._model.to_counts(),
            "arrivals_mhz": round(self._arrivals / watched_s * 1e3),
            "busy_permille": min(1000, round(self._busy_s / watched_s * 1e3)),
            "running": self._running,
        }

    def _add(self, journey: Journey, sign: int) -> None:
        self._tokens_left += sign * (journey.prompt - journey.position)
        self._pairs_left += sign * (journey.prompt**2 - journey.position**2)

    def _age(self, now: float) -> None:
        """What was counted so far counts less by now."""
        if self._watched_at is not None:
            kept = math.exp((self._watched_at - now) / MEMORY_S)
            self._arrivals *= kept
            self._busy_s *= kept
            self._watched_s = self._watched_s * kept + MEMORY_S * (1 - kept)
        self._watched_at = now
