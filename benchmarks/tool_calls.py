"""Agents that wait for their tools: do a session's blocks lie in RAM when it comes back, though RAM holds a quarter of
what all sessions will come back for? A simulation on kvtierd's own store (kvtier.replay); used by bench_policy.py.

    request comes --blocks below RAM are staged--> prefill --> tokens are generated --> end: the tool runs --> returns

What is taken from the trace: each session's prompts, how long its answers are, and the gaps between its requests, as the
time that its tool takes. What is made up: that `alive` of them are alive at any time. They come in at a random moment of
the first seconds, in the midst of their lives, and another begins in place of one that is over: copies, as many as are
needed, which share with others what the trace's sessions share. Tokens come at DECODE_TOKENS_PER_S, prompts are computed
at PREFILL_TOKENS_PER_S, engines have no cache of their own and no queue. A session that is over says so in no variant.

RAM is RAM_SHARE of the blocks of all sessions that are alive, their mean over time if nobody waited. The drives'
speed is chosen such that they can bring what must be brought: all of it once a round takes about half of their time.

Returns are counted after the first tenth of the time. A return is in RAM when all blocks are that its session saved and
asks for again, at the moment when it asks.
"""

import heapq
import itertools
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvtier.block import BELOW, SLOT_UNIT, leading
from kvtier.decision import Ask
from kvtier.replay.clock import Clock
from kvtier.replay.node import Node, Tiers, keys_of
from kvtier.replay.trace import Trace
from kvtier.session import Hints

KV_BYTES = 128 * 1024  # of a token: Llama-3-8B
DECODE_TOKENS_PER_S = 50.0
PREFILL_TOKENS_PER_S = 20_000.0
HOST_BYTES_PER_S = 50e9  # RAM to engine
NVME_BYTES, NVME_BYTES_PER_S, NVME_WRITE_BYTES_PER_S = 4 << 40, 28e9, 16e9  # four drives
RAM_SHARE = 0.25
ALIVE, SECONDS, WINDOW_S = 80, 60.0, 5.0
ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a session."""

    blocks: tuple[int, ...]  # whole ones
    output_tokens: int
    gap_s: float  # until the next one, from its end on; 0: there is none

    @property
    def seconds(self) -> float:
        return self.output_tokens / DECODE_TOKENS_PER_S


Session = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """What the client says of the tool."""

    policy: str = "value"
    says: str = ""  # "": nothing; "tool": its name; "exact": the gap; "typical": the trace's median gap
    wrong_by: float = 1.0  # what it says of the time is so many times as long as it is


VARIANTS = {
    "exact": Variant(says="exact"),
    "typical": Variant(says="typical"),
    "tool_name": Variant(says="tool"),
    "too_long_10x": Variant(says="exact", wrong_by=10.0),
    "too_short_10x": Variant(says="exact", wrong_by=0.1),
    "no_hint": Variant(),
    "lru": Variant(policy="lru"),
}


@dataclass(slots=True)
class Return:
    in_ram: bool
    within: bool  # not later than the client said; of one that said nothing: yes
    wait_s: float = 0.0  # for its blocks to come, and to compute those that didn't
    known_blocks: int = 0
    blocks_in_ram: int = 0


def sessions_of(trace: Trace) -> list[Session]:
    """In the order in which they begin. The trace names them."""
    requests: dict[str, list[Any]] = {}
    for request in trace.requests:
        requests.setdefault(request.session, []).append(request)
    found = []
    for own in requests.values():
        gaps = [then.at - now.at for now, then in itertools.pairwise(own)] + [0.0]
        found.append(tuple(Step(trace.whole(r), r.output_tokens, gap) for r, gap in zip(own, gaps)))
    return found


def shared_blocks(sessions: Sequence[Session]) -> set[int]:
    """Those of more than one session."""
    seen = Counter(block for session in sessions for block in {block for step in session for block in step.blocks})
    return {block for block, n in seen.items() if n > 1}


def copies(sessions: Sequence[Session], alive: int, chance: random.Random) -> Iterator[Session]:
    """Sessions in random order, again and again; what is a session's own is another in each copy. The first `alive` are in
    the midst of their lives, and the more likely the longer they live: as if there had always been so many."""
    shared, unique = shared_blocks(sessions), 1 + max(b for session in sessions for step in session for b in step.blocks)
    begun = chance.choices(sessions, [len(session) for session in sessions], k=alive)
    new = (session for _ in itertools.count() for session in chance.sample(list(sessions), len(sessions)))
    for number, session in enumerate(itertools.chain((one[chance.randrange(len(one)) :] for one in begun), new), 1):
        offset = number * unique
        yield tuple(replace(step, blocks=tuple(b if b in shared else b + offset for b in step.blocks)) for step in session)


def live_blocks(sessions: Sequence[Session], alive: int, seconds: float, seed: int) -> float:
    """How many blocks all sessions that are alive will ask for again, on the mean over time, if nobody ever waits."""
    chance = random.Random(seed)
    queue = copies(sessions, alive, chance)
    use: Counter[int] = Counter()
    sampled: list[int] = []
    events: list[tuple[float, int, Session, int]] = []
    for number in range(alive):
        heapq.heappush(events, (chance.uniform(0, WINDOW_S), number, next(queue), 0))
    sample_at = seconds / 10
    while events:
        at, number, session, step = heapq.heappop(events)
        while sample_at <= min(at, seconds):
            sampled.append(sum(n > 0 for n in use.values()))
            sample_at += seconds / 100
        if at > seconds:
            break
        use.subtract(session[step - 1].blocks if step else ())
        if step == len(session):
            session, step = next(queue), 0
        use.update(session[step].blocks)
        heapq.heappush(events, (at + session[step].seconds + session[step].gap_s, number, session, step + 1))
    return statistics.fmean(sampled)


class Scene:
    """`alive` sessions on one node."""

    def __init__(self, trace: Trace, variant: Variant, ram_blocks: int, alive: int, seconds: float, seed: int, nvme: float):
        self.returns: list[Return] = []
        sessions = sessions_of(trace)
        gaps = [step.gap_s for session in sessions for step in session if step.gap_s]
        self._typical_s = statistics.median(gaps)
        self._block_bytes, self._block_tokens = KV_BYTES * trace.block_tokens, trace.block_tokens
        tiers = Tiers(ram_blocks * self._block_bytes, NVME_BYTES, nvme, NVME_WRITE_BYTES_PER_S)
        self._clock = Clock()
        self._node = Node(self._clock, tiers, self._block_bytes, trace.block_tokens, decides=False, policy=variant.policy)
        self.ram_blocks = self._node.store.ram.slots.capacity // SLOT_UNIT
        self._variant, self._seconds = variant, seconds
        self._node.join(ENGINE)
        self._node.answered = self._answered
        self._waiting: dict[int, _Job] = {}
        self._numbers = itertools.count()
        chance = random.Random(seed)
        self._queue = copies(sessions, alive, chance)
        for number in range(alive):
            self._begin_at(chance.uniform(0, WINDOW_S), f"{number}.0", next(self._queue))

    def run(self) -> "Scene":
        while self._clock.now < self._seconds and self._clock.step():
            pass
        return self

    @property
    def drives_busy(self) -> float:
        return self._node.reads.busy_s / self._clock.now

    # --- a session goes on -----------------------------------------------------------------------------------------

    def _begin_at(self, when: float, name: str, session: Session) -> None:
        self._clock.at(when, lambda: self._ask(_Job(next(self._numbers), name, session, 0, None)))

    def _ask(self, job: "_Job") -> None:
        keys = keys_of(job.step.blocks)
        job.asked_at = self._clock.now
        if job.returned is not None:
            saved = set(job.session[job.number_of_step - 1].blocks)
            known = sum(1 for _ in itertools.takewhile(saved.__contains__, job.step.blocks))
            job.returned.known_blocks = known
            job.returned.blocks_in_ram = min(known, self._node.match(keys, 0)[0])
            job.returned.in_ram = job.returned.blocks_in_ram == known
        if hints := self._hints(job):
            self._node.begin(ENGINE, str(job.number), hints)
        self._waiting[job.number] = job
        ask = Ask(str(job.number), len(job.step.blocks) * self._block_tokens)
        slots = self._node.lookup(ENGINE, job.number, keys, 0, ask)
        if slots is not None:
            self._answered(ENGINE, job.number, slots)

    def _hints(self, job: "_Job") -> Hints | None:
        variant, gap_s = self._variant, job.step.gap_s
        if not variant.says:
            return None
        expected_s = {"tool": 0.0, "exact": gap_s * variant.wrong_by, "typical": self._typical_s}[variant.says]
        return Hints(job.name, tool="bash" if gap_s else "", expect_return_s=expected_s if gap_s else 0.0)

    def _answered(self, engine: str, lease: int, slots: Any) -> None:
        job = self._waiting.pop(lease)
        loaded = leading(slots < BELOW)
        load_s = loaded * self._block_bytes / HOST_BYTES_PER_S
        if job.returned is not None:
            computed = max(0, job.returned.known_blocks - loaded) * self._block_tokens
            job.returned.wait_s = self._clock.now - job.asked_at + computed / PREFILL_TOKENS_PER_S
            if job.asked_at >= self._seconds / 10:
                self.returns.append(job.returned)
        prefill_s = (len(job.step.blocks) - loaded) * self._block_tokens / PREFILL_TOKENS_PER_S

        def loaded_all() -> None:
            self._node.release(ENGINE, job.number, loaded, load_s)
            self._clock.at(self._clock.now + prefill_s, computed_all)

        def computed_all() -> None:
            self._node.save(ENGINE, keys_of(job.step.blocks), str(job.number))
            self._clock.at(self._clock.now + job.step.seconds, lambda: self._end(job))

        self._clock.at(self._clock.now + load_s, loaded_all)

    def _end(self, job: "_Job") -> None:
        self._node.end(ENGINE, keys_of(job.step.blocks), str(job.number))
        gap_s = job.step.gap_s
        if not gap_s:
            user, turn = job.name.split(".")
            self._begin_at(self._clock.now, f"{user}.{int(turn) + 1}", next(self._queue))
            return
        hints = self._hints(job)
        within = hints is None or not hints.expect_return_s or gap_s <= hints.expect_return_s
        then = _Job(next(self._numbers), job.name, job.session, job.number_of_step + 1, Return(False, within))
        self._clock.at(self._clock.now + gap_s, lambda: self._ask(then))


@dataclass(slots=True, eq=False)
class _Job:
    number: int
    name: str  # of its session
    session: Session
    number_of_step: int
    returned: Return | None
    asked_at: float = 0.0

    @property
    def step(self) -> Step:
        return self.session[self.number_of_step]


def measure(
    trace: Trace, name: str, seed: int = 1, alive: int = ALIVE, seconds: float = SECONDS, nvme: float = NVME_BYTES_PER_S
) -> dict[str, Any]:
    """One variant."""
    live = live_blocks(sessions_of(trace), alive, seconds, seed)
    scene = Scene(trace, VARIANTS[name], round(live * RAM_SHARE), alive, seconds, seed, nvme).run()
    returns = scene.returns
    within = [one for one in returns if one.within]
    waits = sorted(one.wait_s for one in returns)
    return {
        "in_ram": round(_share(one.in_ram for one in within), 4),  # of the returns within the hinted time
        "in_ram_all": round(_share(one.in_ram for one in returns), 4),
        "blocks_in_ram": round(sum(r.blocks_in_ram for r in returns) / max(1, sum(r.known_blocks for r in returns)), 4),
        "within_share": round(len(within) / max(1, len(returns)), 4),
        "wait_ms_mean": round(statistics.fmean(waits) * 1e3, 2),
        "wait_ms_p99": round(waits[int(len(waits) * 0.99)] * 1e3, 1),
        "drives_busy": round(scene.drives_busy, 3),
        "returns": len(returns),
        "ram_blocks": scene.ram_blocks,
        "live_blocks": round(live),
    }


def _share(of: Iterator[bool]) -> float:
    found = list(of)
    return sum(found) / max(1, len(found))
