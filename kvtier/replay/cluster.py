"""One node, its engines and a trace: which request waits how long for its first token.

    comes --a router picks the engine that would answer first--> asks the node (arms.py)
          --its blocks come: drives to RAM, RAM to engine--> ready
          --the engine has done what is ahead of it--> computes the rest --> first token; its blocks are saved

What is simulated takes its time: prompts are computed one after the other, each link carries one thing after the other.
What is not: decoding, batches of prompts, copies from an engine to RAM, the engine's memory while it loads.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from kvtier.block import BELOW, leading
from kvtier.decision import Ask
from kvtier.estimators import Link, Prefill, PrefillFit
from kvtier.replay.arms import DECIDING, asks
from kvtier.replay.caches import PrefixLru
from kvtier.replay.clock import Clock, Pace, Wire
from kvtier.replay.node import Node, Tiers, keys_of
from kvtier.replay.remote import SharedRemote
from kvtier.replay.trace import Request, Trace

PACE_S = 0.5  # how often an engine says how fast and how busy it is


@dataclass(frozen=True)
class Shape:
    """What a trace is replayed on."""

    engines: int
    prefill: Prefill
    kv_bytes: int  # of a token
    cache_bytes: int  # of each engine's own cache
    host_bytes_per_s: float  # RAM to engine, each engine its own
    host_latency_s: float
    tiers: Tiers
    static_tokens: int = 1024


@dataclass
class Outcome:
    """What one arm came to. Seconds and tokens."""

    arm: str
    ttft_s: np.ndarray
    prompt_tokens: int
    resident_tokens: int  # the engines' own caches had them
    cpu_tokens: int  # taken from RAM
    nvme_tokens: int  # and from the drives
    remote_tokens: int  # and from the remote
    away_tokens: int  # only the remote had these when they were asked for
    prefill_s: float  # computed, all engines
    loaded_prefill_s: float  # not computed, because it was loaded
    seconds: float  # until the last first token
    engines: int
    read_busy_s: float  # of the drives
    counters: dict[str, int]

    @property
    def hit_rate(self) -> float:
        return (self.resident_tokens + self.cpu_tokens + self.nvme_tokens + self.remote_tokens) / self.prompt_tokens


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    request: Request
    keys: bytes
    engine: "_Engine"
    resident: int  # blocks
    in_ram: int = 0  # blocks behind them
    on_node: int = 0  # in RAM or on the drives
    matched: int = 0  # anywhere
    loaded: int = 0
    is_open: bool = False  # its lookup waits
    is_due: bool = False
    is_ready: bool = False
    load_s: float = 0.0
    computed_from: int = 0  # tokens that needn't be computed, as far as is known
    prefill_s: float = 0.0  # for the rest


@dataclass(eq=False)
class _Engine:
    name: str
    cache: PrefixLru
    wire: Wire
    learnt: PrefillFit
    pace: Pace = field(default_factory=Pace)
    queue: deque[_Job] = field(default_factory=deque)
    queued_s: float = 0.0  # prefill of those in the queue
    running: _Job | None = None
    free_at: float = 0.0
    said_at: float = -PACE_S

    def backlog_s(self, now: float) -> float:
        return max(0.0, self.free_at - now) + self.queued_s


def replay(trace: Trace, shape: Shape, arm: str, progress: Callable[[int], None] = lambda done: None) -> Outcome:
    """`progress` hears how many requests have their first token."""
    clock = Clock()
    served = Served(clock, trace, shape, arm, progress)
    served.begin()
    while not served.is_done and clock.step():
        pass
    return served.outcome()


def engines_needed(trace: Trace, prefill: Prefill, load: float) -> int:
    """So many that computing every prompt whole takes no more than this share of their time."""
    work_s = sum(prefill.seconds(0, request.prompt_tokens) for request in trace.requests)
    return max(1, math.ceil(work_s / max(trace.seconds, 1e-9) / load))


class Served:
    """A node's engines and the trace that they serve, on a clock that others may share."""

    def __init__(
        self,
        clock: Clock,
        trace: Trace,
        shape: Shape,
        arm: str,
        progress: Callable[[int], None] = lambda done: None,
        remote: SharedRemote | None = None,
    ) -> None:
        self._clock, self._trace, self._shape, self._arm, self._progress = clock, trace, shape, arm, progress
        self._decides, self._has_remote = arm in DECIDING, remote is not None
        self._block_bytes = shape.kv_bytes * trace.block_tokens
        self._node: Node | None = None
        if arm != "none":
            knows = Link(shape.host_latency_s, shape.host_bytes_per_s) if arm == "oracle" else None
            of_block = self._block_bytes, trace.block_tokens
            self._node = Node(clock, shape.tiers, *of_block, self._decides, knows, remote=remote)
        blocks = shape.cache_bytes // self._block_bytes
        self._engines = [self._engine(f"engine-{number}", blocks) for number in range(shape.engines)]
        self._waiting: dict[tuple[str, int], _Job] = {}
        self._ttft_s = np.zeros(len(trace.requests))
        self._tokens = dict.fromkeys(("resident", "cpu", "nvme", "remote", "away"), 0)
        self._prefill_s = self._loaded_prefill_s = 0.0
        self._done = 0

    def _engine(self, name: str, cache_blocks: int) -> _Engine:
        wire = Wire(self._clock, self._shape.host_latency_s, self._shape.host_bytes_per_s)
        if self._node is not None:
            self._node.join(name)
        return _Engine(name, PrefixLru(cache_blocks), wire, PrefillFit(self._shape.prefill.chunk_tokens))

    def begin(self) -> None:
        """Its requests come, from now on."""
        if self._node is not None:
            self._node.answered = self._answered
        self._plan_next(enumerate(self._trace.requests))

    @property
    def is_done(self) -> bool:
        return self._done == len(self._trace.requests)

    def outcome(self) -> Outcome:
        assert self.is_done, "a request was forgotten"
        return Outcome(
            self._arm,
            self._ttft_s,
            self._trace.prompt_tokens,
            self._tokens["resident"],
            self._tokens["cpu"],
            self._tokens["nvme"],
            self._tokens["remote"],
            self._tokens["away"],
            self._prefill_s,
            self._loaded_prefill_s,
            self._clock.now,
            len(self._engines),
            0.0 if self._node is None else self._node.reads.busy_s,
            {} if self._node is None else self._node.store.stats.snapshot(),
        )

    # --- a request comes -----------------------------------------------------------------------------------------

    def _plan_next(self, arrivals: Iterator[tuple[int, Request]]) -> None:
        following = next(arrivals, None)
        if following is not None:
            self._clock.at(following[1].at, lambda: self._arrive(*following, arrivals))

    def _arrive(self, number: int, request: Request, arrivals: Iterator[tuple[int, Request]]) -> None:
        self._plan_next(arrivals)
        now, trace, prefill = self._clock.now, self._trace, self._shape.prefill
        resident_of = {engine.name: engine.cache.match(request.blocks) for engine in self._engines}

        def answers_in(engine: _Engine) -> float:
            resident = trace.hit_tokens(request, resident_of[engine.name])
            return engine.backlog_s(now) + prefill.seconds(resident, request.prompt_tokens)

        engine = min(self._engines, key=answers_in)
        job = _Job(number, request, keys_of(trace.whole(request)), engine, resident_of[engine.name])
        backlog_s = engine.backlog_s(now)
        engine.queue.append(job)
        self._expect(job)
        engine.pace.arrived(now)
        if not self._asks(job, backlog_s):
            self._ready(job)

    def _asks(self, job: _Job, backlog_s: float) -> bool:
        """Whether something may be fetched for it."""
        if self._node is None or not job.keys:
            return False
        engine, trace = job.engine, self._trace
        job.in_ram, job.on_node, job.matched = self._node.match(job.keys, job.resident)
        resident = trace.hit_tokens(job.request, job.resident)
        matched_tokens = trace.hit_tokens(job.request, job.resident + job.matched) - resident
        ask = Ask(str(job.number), job.request.prompt_tokens, resident, backlog_s)
        if not asks(self._arm, matched_tokens, self._shape.static_tokens):
            self._node.notice(engine.name, job.number, job.keys, ask)
            return False
        self._say_pace(engine)
        job.is_open = True
        self._waiting[engine.name, job.number] = job
        slots = self._node.lookup(engine.name, job.number, job.keys, job.resident, ask)
        if slots is not None:
            self._answered(engine.name, job.number, slots)
        else:
            self._advance(engine)
        return True

    def _say_pace(self, engine: _Engine) -> None:
        assert self._node is not None
        now = self._clock.now
        if self._decides and now - engine.said_at >= PACE_S:
            engine.said_at = now
            prefill = self._shape.prefill if self._arm == "oracle" else engine.learnt.model()
            self._node.pace(engine.name, prefill, engine.pace.arrivals_per_s(now), engine.pace.busy(now))

    # --- its blocks come -------------------------------------------------------------------------------------------

    def _answered(self, engine: str, lease: int, slots: np.ndarray) -> None:
        job = self._waiting.pop((engine, lease))
        job.is_open = False
        job.loaded = leading(slots[job.resident :] < BELOW)
        self._expect(job)
        if job.loaded:
            begun = self._clock.now
            arrives = job.engine.wire.send(job.loaded * self._block_bytes)
            self._clock.at(arrives, lambda: self._loaded(job, begun))
        else:
            self._loaded(job, self._clock.now)

    def _loaded(self, job: _Job, begun: float) -> None:
        assert self._node is not None
        job.load_s = self._clock.now - begun
        self._node.release(job.engine.name, job.number, job.loaded, job.load_s)
        self._ready(job)

    def _ready(self, job: _Job) -> None:
        job.is_ready = True
        self._advance(job.engine)

    # --- it is computed ----------------------------------------------------------------------------------------------

    def _advance(self, engine: _Engine) -> None:
        if engine.running is not None or not engine.queue:
            return
        for job in engine.queue:
            if job.is_ready:
                self._begin(job)
                return
            if job.is_open and not job.is_due and self._node is not None:  # nothing is ahead of it
                job.is_due = True
                self._clock.at(self._clock.now, lambda job=job: self._due(job))  # type: ignore[misc]

    def _due(self, job: _Job) -> None:
        assert self._node is not None
        if job.is_open and self._decides:
            self._node.due(job.engine.name, job.number)

    def _begin(self, job: _Job) -> None:
        engine, now = job.engine, self._clock.now
        engine.queue.remove(job)
        self._expect(job)
        engine.queued_s -= job.prefill_s
        engine.running, engine.free_at = job, now + job.prefill_s
        engine.pace.worked(job.prefill_s, now)
        self._clock.at(engine.free_at, lambda: self._end(job, now))

    def _end(self, job: _Job, begun: float) -> None:
        engine, now, request = job.engine, self._clock.now, job.request
        self._ttft_s[job.number] = now - request.at
        self._count(job)
        engine.running = None
        engine.cache.use(request.blocks)
        if self._node is not None:
            self._learn(job)
            self._say_outcome(job, begun)
            self._node.save(engine.name, job.keys, str(job.number))
            self._node.end(engine.name, job.keys, str(job.number))
        self._done += 1
        self._progress(self._done)
        self._advance(engine)

    def _learn(self, job: _Job) -> None:
        """As a connector does, from the engine's steps."""
        end, chunk = job.request.prompt_tokens, self._shape.prefill.chunk_tokens
        for begin in range(job.computed_from, end if self._decides else 0, chunk):
            stop = min(end, begin + chunk)
            job.engine.learnt.observe(stop - begin, stop**2 - begin**2, self._shape.prefill.seconds(begin, stop))

    def _expect(self, job: _Job) -> None:
        """What is left to compute, by what is known now. The last token always is: it makes the first of the answer."""
        have = max(job.resident + job.loaded, job.engine.cache.match(job.request.blocks) if job.is_ready else 0)
        tokens = min(self._trace.hit_tokens(job.request, have), job.request.prompt_tokens - 1)
        job.computed_from = tokens
        before, job.prefill_s = job.prefill_s, self._shape.prefill.seconds(tokens, job.request.prompt_tokens)
        job.engine.queued_s += job.prefill_s - before

    # --- what came of it -----------------------------------------------------------------------------------------------

    def _count(self, job: _Job) -> None:
        trace, request, prefill = self._trace, job.request, self._shape.prefill
        resident = trace.hit_tokens(request, job.resident)
        in_ram = trace.hit_tokens(request, job.resident + min(job.in_ram, job.loaded))
        loaded = trace.hit_tokens(request, job.resident + job.loaded)
        self._tokens["resident"] += resident
        on_node = trace.hit_tokens(request, job.resident + min(job.on_node, job.loaded)) if self._has_remote else loaded
        self._tokens["cpu"] += in_ram - resident
        self._tokens["nvme"] += on_node - in_ram
        self._tokens["remote"] += loaded - on_node
        held = [trace.hit_tokens(request, job.resident + n) for n in (job.on_node, job.matched)]
        self._tokens["away"] += held[1] - held[0]
        self._prefill_s += job.prefill_s
        self._loaded_prefill_s += prefill.seconds(resident, request.prompt_tokens) - prefill.seconds(
            loaded, request.prompt_tokens
        )

    def _say_outcome(self, job: _Job, begun: float) -> None:
        if not self._decides or self._node is None:
            return
        request, trace = job.request, self._trace
        resident = trace.hit_tokens(request, job.resident)
        loaded = trace.hit_tokens(request, job.resident + job.loaded) - resident
        seconds = {
            "ttft_us": self._clock.now - request.at,
            "wait_us": begun - request.at,
            "load_us": job.load_s,
            "prefill_us": self._clock.now - begun,
        }
        self._node.store.outcome(
            job.engine.name,
            str(job.number),
            {name: round(value * 1e6) for name, value in seconds.items()}
            | {
                "prompt_tokens": request.prompt_tokens,
                "resident_tokens": resident,
                "loaded_tokens": loaded,
                "computed_tokens": request.prompt_tokens - resident - loaded,
            },
            self._clock.now,
        )
