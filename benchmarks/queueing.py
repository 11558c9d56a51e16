"""What bench_decide.py drives: engines that prefill in the order of arrival, and one tier that moves loads in the order
of asking.

One prefill at a time an engine, whole; decodes take nothing. A request whose blocks are on their way blocks nobody: an
engine that is free takes the earliest request that is ready. Every arm sees the same requests, slow phases and stalls.
"""

import heapq
import math
import random
import statistics
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from kvtier.cost import Pressure
from kvtier.estimators import Prefill, PrefillFit

GB = 1e9
SUFFIX = 256  # tokens of every prompt that are new
MEDIAN, SIGMA, SHORTEST, LONGEST = 8192, 1.0, 64, 131_072  # tokens of a prefix, log-normal
HITS = 0.8  # share of requests whose prefix is stored
NOISE = 0.1  # sigma of the log of a prefill's time: what no model foresees
ADMIT_S, COPY_RATE = 0.02, 55 * GB  # from the arena to the engine: its scheduler looks once a step
LATENCY_S = 0.001  # of the tier
STALL_S = 60.0
SLOW_S, USUAL_S = 5.0, 45.0  # mean length of a slow phase, and of the time between two
SLOWER = 10.0
PIECES = 8  # of a load, at most: what a re-plan may take of it
PIECE_MIN = 64 * 1024**2
LOOK_S = 0.2  # between two looks at what is under way
WINDOW_S = 60.0  # over which an engine learns its arrivals and how busy it is
PACE_S = 0.5  # between two tellings of what an engine learnt


@dataclass(frozen=True)
class Model:
    """A model on its GPUs: the true prefill, and KV bytes a token."""

    prefill: Prefill
    token_bytes: int


LLAMA_8B = Model(Prefill(8e-3, 25.7e-6, 0.589e-9, 8192), 128 * 1024)
LLAMA_8B_A100 = Model(Prefill(12e-3, 74.6e-6, 1.680e-9, 2048), 128 * 1024)
LLAMA_70B = Model(Prefill(16e-3, 69.2e-6, 0.828e-9, 8192), 320 * 1024)


@dataclass(frozen=True)
class Scenario:
    """`load`: prefill seconds that arrive a second if nothing is loaded, an engine; or `link_busy`: share of the time
    that the tier is busy if everything is loaded."""

    name: str
    rate: float  # bytes/s of the tier
    load: float = 0.7
    link_busy: float = 0.0
    phases: bool = False
    stalls: float = 0.0  # share of the loads of which one piece stalls
    engines: int = 1
    unseen: bool = False  # each engine is a node of its own: no kvtierd sees what the others ask of the tier
    model: Model = LLAMA_8B
    requests_as: str = ""  # the scenario whose requests these are, where they are another's

    @property
    def is_steady(self) -> bool:
        """Nothing changes that kvtier can't see."""
        return not (self.phases or self.stalls or self.unseen)


@dataclass(slots=True, eq=False)
class Request:
    number: int
    at: float
    prefix: int
    stored: bool
    noise: float
    stall: float  # which share of its load comes before the piece that stalls; 2: none stalls
    engine: int
    taken: int = 0  # tokens that it loads, or waits for
    pieces: list[bool] = field(default_factory=list)  # which have come
    sizes: list[int] = field(default_factory=list)
    waits: bool = False
    stuck_since: float = math.inf  # others that were asked for later came, and a piece of it didn't
    expected_s: float = 0.0  # of prefill
    backlog_s: float = 0.0  # when it arrived
    begun: float = 0.0
    ttft: float = 0.0

    @property
    def prompt(self) -> int:
        return self.prefix + SUFFIX

    @property
    def arrived(self) -> int:
        """Tokens without a gap."""
        n = self.pieces.index(False) if False in self.pieces else len(self.pieces)
        return self.taken * n // max(1, len(self.pieces))


class Phases:
    """The tier's true rate at any time."""

    def __init__(self, scenario: Scenario, numbers: random.Random) -> None:
        self._starts, self._rates = [0.0], [scenario.rate]
        now = 0.0
        while scenario.phases and now < 50_000:
            now += numbers.expovariate(1 / USUAL_S)
            self._starts.append(now)
            self._rates.append(scenario.rate / SLOWER)
            now += numbers.expovariate(1 / SLOW_S)
            self._starts.append(now)
            self._rates.append(scenario.rate)

    def end(self, start: float, size: float) -> float:
        """When so many bytes that begin at `start` are through."""
        i = bisect_right(self._starts, start) - 1
        while i + 1 < len(self._starts):
            room = (self._starts[i + 1] - start) * self._rates[i]
            if size <= room:
                break
            size -= room
            i += 1
            start = self._starts[i]
        return start + size / self._rates[i]


def requests_of(scenario: Scenario, seed: int, n: int) -> tuple[list[Request], Phases, float]:
    """The requests, the tier's phases, and the true arrivals per second of one engine."""
    numbers = random.Random(f"{scenario.requests_as or scenario.name} {seed}")

    def prefix() -> int:
        return int(min(max(numbers.lognormvariate(math.log(MEDIAN), SIGMA), SHORTEST), LONGEST))

    sample = random.Random(0)
    usual = [int(min(max(sample.lognormvariate(math.log(MEDIAN), SIGMA), SHORTEST), LONGEST)) for _ in range(20_000)]
    if scenario.link_busy:
        bytes_mean = statistics.fmean(usual) * scenario.model.token_bytes * HITS
        arrivals = scenario.link_busy * scenario.rate / bytes_mean
    else:
        work = statistics.fmean(scenario.model.prefill.seconds(0, p + SUFFIX) for p in usual)
        arrivals = scenario.load * scenario.engines / work
    now, made = 0.0, []
    for number in range(n):
        now += numbers.expovariate(arrivals)
        stall = numbers.random() if numbers.random() < scenario.stalls else 2.0
        made.append(
            Request(
                number, now, prefix(), numbers.random() < HITS, math.exp(numbers.gauss(0, NOISE)), stall,
                numbers.randrange(scenario.engines),
            )
        )  # fmt: skip
    return made, Phases(scenario, numbers), arrivals / scenario.engines


class Engine:
    """One prefill server; what it knows of its arrivals and of how busy it is."""

    def __init__(self, chunk_tokens: int) -> None:
        self.ready: list[tuple[int, Request]] = []
        self.current: Request | None = None
        self.ahead_s = 0.0  # expected prefill of all requests that are here and not begun
        self.fit = PrefillFit(chunk_tokens)
        self.told = self.fit.model()
        self.told_at = -math.inf
        self._arrivals = self._busy_s = 0.0
        self._begun: float | None = None
        self._seen = 0.0

    def tick(self, now: float, arrived: int = 0) -> None:
        kept = math.exp(-(now - self._seen) / WINDOW_S)
        self._arrivals = self._arrivals * kept + arrived
        self._busy_s = self._busy_s * kept + (now - self._seen if self.current is not None else 0.0)
        self._seen = now

    def pressure(self, now: float) -> Pressure:
        window = WINDOW_S * (1 - math.exp(-max(now, 1.0) / WINDOW_S))
        return Pressure(self.backlog_s(now), self._arrivals / window, min(1.0, self._busy_s / window))

    def backlog_s(self, now: float) -> float:
        under_way = max(0.0, self.current.expected_s - (now - self.current.begun)) if self.current else 0.0
        return max(0.0, self.ahead_s) + under_way

    def learn(self, request: Request, took: float, true: Prefill) -> None:
        """Its steps, one a chunk, as the scheduler sees them."""
        start = request.taken
        while start < request.prompt:
            end = min(request.prompt, start + true.chunk_tokens)
            share = true.seconds(start, end) / true.seconds(request.taken, request.prompt)
            self.fit.observe(end - start, end * end - start * start, took * share)
            start = end

    def tell(self, now: float) -> None:
        if now - self.told_at >= PACE_S:
            self.told, self.told_at = self.fit.model(), now


class Arm:
    """How many tokens of a prefix to load: this one takes everything that is stored, and waits for it. Who re-plans
    (`looks`) also hears what becomes of its loads; `daemon` is the number of the kvtierd that asked."""

    looks = False

    def take(self, request: Request, node: "Node", now: float) -> int:
        return request.prefix

    def keeps_waiting(self, request: Request, node: "Node", ahead: int, remaining: int, now: float) -> bool:
        return True

    def asked(self, daemon: int, n: int, now: float) -> None: ...

    def came(self, daemon: int, n: int, now: float) -> None: ...

    def dropped(self, daemon: int, n: int, now: float) -> None: ...

    def copied(self, n: int, took: float) -> None: ...


Piece = tuple[Request, int, int]  # of a request, the how manieth, when it was asked for


class Node:
    """The engines and their tier under one arm."""

    def __init__(self, scenario: Scenario, seed: int, n: int, arm: Arm) -> None:
        self.scenario = scenario
        self.requests, self._phases, self.arrivals = requests_of(scenario, seed, n)
        self._arm = arm
        self.engines = [Engine(scenario.model.prefill.chunk_tokens) for _ in range(scenario.engines)]
        self.under_way: dict[Request, None] = {}
        self._pieces: deque[Piece] = deque()
        self._moving: Piece | None = None
        self._asked = count()
        self._newest_come: dict[int, int] = {}  # by daemon
        self._unmoved: dict[Request, dict[int, int]] = {}
        self._free_at = 0.0  # when all that was asked of the tier will be through
        self._looking = False
        self._order = count()
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self.tier_busy_s = self.prefill_s = self.loaded_prefill_s = 0.0

    def run(self) -> list[float]:
        """TTFT of every request, in seconds."""
        for request in self.requests:
            self._at(request.at, self._arrive, request)
        while self._events:
            now, _, what, with_what = heapq.heappop(self._events)
            what(now, with_what)
        return [request.ttft for request in self.requests]

    def daemon_of(self, request: Request) -> int:
        return request.engine if self.scenario.unseen else 0

    def end_of(self, request: Request, now: float) -> float:
        """When a load of this request's prefix would be in the engine. Only the oracle may ask."""
        size = request.prefix * self.scenario.model.token_bytes
        through = self._phases.end(max(now, self._free_at), size) + LATENCY_S
        return through + (STALL_S if request.stall < 1 else 0.0) + ADMIT_S + size / COPY_RATE

    def _at(self, when: float, what: Callable[..., None], with_what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, with_what))

    def _arrive(self, now: float, request: Request) -> None:
        engine = self.engines[request.engine]
        engine.tick(now, arrived=1)
        request.taken = self._arm.take(request, self, now) if request.stored else 0
        self._expect(request, 1)
        if not request.taken:
            self._ready(now, request)
            return
        request.waits = True
        self.under_way[request] = None
        size = request.taken * self.scenario.model.token_bytes
        pieces = min(PIECES, max(1, size // PIECE_MIN)) if self._arm.looks else 1
        request.sizes = [size // pieces] * pieces
        request.pieces = [False] * pieces
        self._unmoved[request] = {}
        self._arm.asked(self.daemon_of(request), sum(request.sizes), now)
        for i in range(pieces):
            number = next(self._asked)
            self._unmoved[request][i] = number
            self._pieces.append((request, i, number))
        self._free_at = self._phases.end(max(now, self._free_at), size)
        if self._moving is None:
            self._move(now)
        if self._arm.looks and not self._looking:
            self._looking = True
            self._at(now + LOOK_S, self._look, None)

    def _expect(self, request: Request, sign: int) -> None:
        engine = self.engines[request.engine]
        if sign > 0:
            known = engine.told if self._arm.looks and engine.told.is_calibrated else self.scenario.model.prefill
            request.expected_s = known.seconds(request.taken, request.prompt)
        engine.ahead_s += sign * request.expected_s

    # --- the tier ---

    def _move(self, now: float) -> None:
        """The next piece that somebody still wants."""
        self._moving = None
        while self._pieces and not self._pieces[0][0].waits:
            self._pieces.popleft()
        if self._pieces:
            self._moving = piece = self._pieces.popleft()
            end = self._phases.end(now, piece[0].sizes[piece[1]])
            self.tier_busy_s += end - now
            self._at(end, self._moved, piece)

    def _moved(self, now: float, piece: Piece) -> None:
        request, i, _ = piece
        stalls = request.stall < 1 and i == int(request.stall * len(request.sizes))
        self._at(now + LATENCY_S + (STALL_S if stalls else 0.0), self._come, piece)
        self._move(now)

    def _come(self, now: float, piece: Piece) -> None:
        request, i, number = piece
        request.pieces[i] = True
        daemon = self.daemon_of(request)
        if self._unmoved[request].pop(i, None) is not None:
            self._arm.came(daemon, request.sizes[i], now)
        self._newest_come[daemon] = max(self._newest_come.get(daemon, -1), number)
        if request.waits and all(request.pieces):
            self._admit(now, request)

    def _admit(self, now: float, request: Request) -> None:
        """What arrived goes from the arena to the engine."""
        request.waits = False
        self.under_way.pop(request, None)
        took = ADMIT_S + request.taken * self.scenario.model.token_bytes / COPY_RATE if request.taken else 0.0
        if took:
            self._arm.copied(request.taken * self.scenario.model.token_bytes, took)
        self._at(now + took, self._ready, request)

    def _look(self, now: float, _: Any) -> None:
        """Re-plan what is under way."""
        moving = [self._moving] if self._moving else []
        sums: dict[Request, tuple[int, int]] = {}
        ahead: dict[int, int] = {}
        for request, i, _number in [*moving, *self._pieces]:
            if request.waits:
                daemon = self.daemon_of(request)
                before, own = sums.get(request, (ahead.get(daemon, 0), 0))
                sums[request] = (before, own + request.sizes[i])
                ahead[daemon] = ahead.get(daemon, 0) + request.sizes[i]
        for request in list(self.under_way):
            newest = self._newest_come.get(self.daemon_of(request), -1)
            if min(self._unmoved[request].values(), default=newest) >= newest:
                request.stuck_since = math.inf
            else:
                request.stuck_since = min(request.stuck_since, now)
            before, own = sums.get(request, (0, sum(request.sizes[i] for i in self._unmoved[request])))
            if not self._arm.keeps_waiting(request, self, before, own, now):
                self._give_up(now, request)
        self._looking = bool(self.under_way)
        if self._looking:
            self._at(now + LOOK_S, self._look, None)

    def _give_up(self, now: float, request: Request) -> None:
        """Takes what is here. What is moving goes on, what isn't yet is not wanted any more."""
        for i in list(self._unmoved[request]):
            if self._moving is None or self._moving[:2] != (request, i):
                self._arm.dropped(self.daemon_of(request), request.sizes[i], now)
                del self._unmoved[request][i]
        self._expect(request, -1)
        request.taken = request.arrived
        self._expect(request, 1)
        self._admit(now, request)

    # --- the engine ---

    def _ready(self, now: float, request: Request) -> None:
        engine = self.engines[request.engine]
        heapq.heappush(engine.ready, (request.number, request))
        if engine.current is None:
            self._begin(now, engine)

    def _begin(self, now: float, engine: Engine) -> None:
        engine.tick(now)
        engine.current = None
        if engine.ready:
            _, request = heapq.heappop(engine.ready)
            self._expect(request, -1)
            engine.current, request.begun = request, now
            took = self.scenario.model.prefill.seconds(request.taken, request.prompt) * request.noise
            self.prefill_s += took
            self.loaded_prefill_s += self.scenario.model.prefill.seconds(0, request.prompt) * request.noise - took
            self._at(now + took, self._end, request)

    def _end(self, now: float, request: Request) -> None:
        engine = self.engines[request.engine]
        request.ttft = now - request.at
        if self._arm.looks:
            engine.learn(request, now - request.begun, self.scenario.model.prefill)
        self._begin(now, engine)
