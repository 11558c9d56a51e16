"""(h): the daemon of a contender is killed, or stands still, in the midst of requests.

One request at a time, at a steady pace: a conversation that comes back and a fresh one in turn. What comes back is more
than the engine's own cache holds and lies in the contender's tiers. While a fresh one is computed, the daemon is killed
or stopped by a signal; the requests go on, and it is started again or thawed; then conversations come back until one is
served from the tiers.

Who has no answer in `answer_s` is given up: that long counts as its time to the first token, which is too short, and the
engine is killed and started anew. What else was to be asked until then is not: its series is shorter, so it has no median
and no use of processor and disk to compare. One request at a time: how many more would have waited, this doesn't show.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from engine import Answer, EngineError
from spreads import spread

from compare.contender import PATIENCE_S, Contender
from compare.measures import Slice, Usage, cell, usage
from compare.starting import FAILURES, reason
from compare.workloads import ANSWER, Take, Tokens

TOKENS = 900
STRIKE_S = 0.1  # after a request came, which computes for longer
KEPT = 10  # conversations, 70 blocks: the engine's own cache has 64
PHASES = BEFORE, DURING, AFTER = "before", "during", "after"
OF_ALL = ("ttft_p50_s", "cpu_s", "written_mib")  # figures of a series that mean little if less was asked
NO_DAEMON = "no daemon: what it keeps lives in the engine's process"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Requests of each phase, and seconds: between the starts of two, until one is given up, and until it is that a
    contender serves again."""

    before: int
    during: int
    after: int
    pace_s: float
    answer_s: float
    again_s: float


FULL = Plan(before=6, during=12, after=6, pace_s=0.75, answer_s=40.0, again_s=30.0)
QUICK = Plan(before=4, during=4, after=2, pace_s=0.5, answer_s=20.0, again_s=10.0)


# --- what happens to a daemon ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    name: str
    title: str
    what: str
    strike: Callable[[Contender], None]
    end: Callable[[Contender], None]


def _signal(contender: Contender, number: int, until: str) -> None:
    """To all processes of the daemon; returns when each is in one of these states of /proc or gone."""
    pids = contender.daemon_pids()
    for pid in pids:
        os.kill(pid, number)
    deadline = time.monotonic() + PATIENCE_S
    while any(_state(pid) not in until for pid in pids):
        assert time.monotonic() < deadline, f"signal {number} has no effect"
        time.sleep(0.001)


def _state(pid: int) -> str:
    """One letter; X: there is none of this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


KILLED = Fault(
    "h_daemon_killed",
    "The daemon is killed",
    "SIGKILL in the midst of requests, one at a time; later it is started again.",
    lambda contender: _signal(contender, signal.SIGKILL, "ZX"),
    lambda contender: contender.start_daemon(),
)
FROZEN = Fault(
    "h_daemon_frozen",
    "The daemon stands still",
    "SIGSTOP in the midst of requests, one at a time; later SIGCONT.",
    lambda contender: _signal(contender, signal.SIGSTOP, "T"),
    lambda contender: _signal(contender, signal.SIGCONT, "RSD"),
)
WORKLOADS = {each.name: {"title": each.title, "what": each.what, "rounds": 1} for each in (KILLED, FROZEN)}


# --- one series of requests --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One request: `begun_s` from the start of the series, `seconds` until its answer or until it was given up."""

    phase: str
    begun_s: float
    seconds: float
    ttft_s: float
    served: int = 0  # tokens of the prompt from the tiers
    is_same: bool | None = None  # as the conversation's answer was at first; None: it is fresh, or has no answer
    failure: str = ""


class Series:
    """Whose engine is dead, or was given up, it has started anew when the fault is over."""

    def __init__(self, contender: Contender, plan: Plan, kept: Sequence[tuple[Tokens, list[int]]], fresh: Sequence[Tokens]):
        """`kept`: conversations in the tiers, with what was answered."""
        self._contender, self._plan = contender, plan
        self._returning, self._fresh = cycle(kept), iter(fresh)
        self._pids = contender.pids()
        self._usage, self._last = Usage(0.0, 0), usage(self._pids)
        self._begun = self._due = time.monotonic()
        self.asked: list[Asked] = []
        self.answers: list[list[int]] = []
        self.engine_lived = True

    def run(self, fault: Fault) -> dict[str, Any]:
        self._paced(BEFORE, self._plan.before)
        try:
            if self._strike(fault):
                self._paced(DURING, self._plan.during - 1)
        finally:  # who stands still can't be stopped in order either
            over_s = self._now()
            fault.end(self._contender)
        daemon_s = self._now() - over_s
        self._revive()
        self._until_served()
        self._paced(AFTER, self._plan.after)
        measured = Slice([each.ttft_s for each in self.asked], self._now(), len(self.asked), self._usage, self.answers)
        compared = [each.is_same for each in self.asked if each.is_same is not None]
        return {
            **cell([measured], None),
            **({} if self.engine_lived else dict.fromkeys(OF_ALL)),
            **summed_up(self.asked, over_s),
            "same_text": [sum(compared), len(compared)],
            "not_asked": self._plan.during - sum(each.phase == DURING for each in self.asked),
            "engine_lived": self.engine_lived,
            "daemon_start_s": daemon_s,
        }

    def _strike(self, fault: Fault) -> bool:
        """In the midst of a fresh request: what it computes is to be kept, and nobody is there to take it. Whether there is
        still an engine."""

        def strike() -> None:
            time.sleep(STRIKE_S)
            fault.strike(self._contender)

        self._wait()
        with ThreadPoolExecutor(1) as beside:
            struck = beside.submit(strike)
            is_alive = self._ask(DURING, returns=False)
            struck.result()
        return is_alive

    def _paced(self, phase: str, count: int) -> None:
        for number in range(count):
            self._wait()
            if not self._ask(phase, returns=number % 2 == 0):
                break

    def _wait(self) -> None:
        """Until the next request is due: at once where the one before it took its time."""
        self._due = max(self._due + self._plan.pace_s, time.monotonic())
        time.sleep(max(0.0, self._due - time.monotonic()))

    def _until_served(self) -> None:
        """Conversations come back, each as soon as the one before it is answered."""
        deadline = time.monotonic() + self._plan.again_s
        while self._ask(AFTER, returns=True) and not self.asked[-1].served and time.monotonic() < deadline:
            pass
        self._revive()

    def _ask(self, phase: str, returns: bool) -> bool:
        """Whether there is still an engine."""
        engine = self._contender.engine
        assert engine is not None
        prompt, first = next(self._returning) if returns else (next(self._fresh), None)
        usual, engine.timeout = engine.timeout, self._plan.answer_s
        begun_s = self._now()
        try:
            answer = engine.generate([list(prompt)], ANSWER, logprobs=0, drain=False)[0]
        except EngineError as error:
            seconds = self._now() - begun_s
            given_up = f"no answer in {self._plan.answer_s:.0f} s"
            failure = given_up if seconds >= self._plan.answer_s else reason(error)
            self.asked.append(Asked(phase, begun_s, seconds, seconds, failure=failure))
        else:
            self._note(phase, begun_s, answer, first)
        engine.timeout = usual
        self._count()
        return engine.alive()

    def _note(self, phase: str, begun_s: float, answer: Answer, first: list[int] | None) -> None:
        is_same = None if first is None else answer.tokens == first
        seconds = self._now() - begun_s
        self.asked.append(Asked(phase, begun_s, seconds, answer.ttft or seconds, answer.external_tokens or 0, is_same))
        self.answers.append(answer.tokens)

    def _revive(self) -> None:
        engine = self._contender.engine
        assert engine is not None
        if not engine.alive():
            self.engine_lived = False
            self._contender.restart_engine()

    def _count(self) -> None:
        """What was used since the last look, unless other processes have come since."""
        pids = self._contender.pids()
        now = usage(pids)
        if pids == self._pids:
            self._usage += now - self._last
        self._pids, self._last = pids, now

    def _now(self) -> float:
        return time.monotonic() - self._begun


def summed_up(asked: Sequence[Asked], over_s: float) -> dict[str, Any]:
    """`over_s`: when the daemon was started again or thawed. Pure."""
    phases = {phase: [each for each in asked if each.phase == phase] for phase in PHASES}
    from_then_on = phases[DURING] + phases[AFTER]
    failures = [each.failure for each in from_then_on if each.failure]
    served = [each for each in phases[AFTER] if each.served]
    return {
        **{phase: _phase(those) for phase, those in phases.items()},
        "longest_before_s": max((each.seconds for each in phases[BEFORE]), default=None),
        "longest_s": max((each.seconds for each in from_then_on), default=None),
        "failed": len(failures),
        "failures": sorted(set(failures)),
        "served_again_after_s": served[0].begun_s + served[0].ttft_s - over_s if served else None,
    }


def _phase(asked: Sequence[Asked]) -> dict[str, Any]:
    returned = [each for each in asked if each.is_same is not None]
    return {
        "requests": len(asked),
        "ttft_s": spread(each.ttft_s for each in asked) if asked else None,
        "served": [sum(each.served > 0 for each in returned), len(returned)],
    }


# --- all of them ---------------------------------------------------------------------------------------------------


def cells(contenders: Sequence[Contender], take: Take, quick: bool, say: Say) -> dict[str, dict[str, Any]]:
    """By workload and contender. All engines run before and, unless a contender failed, after."""
    plan = QUICK if quick else FULL
    kept = [take(TOKENS) for _ in range(KEPT)]
    fresh = {fault: list(_fresh(plan, take)) for fault in (KILLED, FROZEN)}
    found: dict[str, dict[str, Any]] = {KILLED.name: {}, FROZEN.name: {}}
    for contender in contenders:
        if not contender.daemon_pids():
            found[KILLED.name][contender.name] = found[FROZEN.name][contender.name] = {"absent": NO_DAEMON}
            continue
        for fault in (KILLED, FROZEN):
            say(f"{fault.title}: {contender.title}")
            try:
                series = Series(contender, plan, _kept(contender, kept), fresh[fault])
                found[fault.name][contender.name] = series.run(fault)
            except FAILURES as failure:
                found[fault.name][contender.name] = {"absent": reason(failure)}
    return found


def _fresh(plan: Plan, take: Take) -> Iterator[Tokens]:
    """As many as a series asks, every second one."""
    for count in (plan.before, plan.during, plan.after):
        for _ in range(count // 2):
            yield take(TOKENS)


def _kept(contender: Contender, prompts: Sequence[Tokens]) -> list[tuple[Tokens, list[int]]]:
    """Each was asked, and all that can be written of them is."""
    assert contender.engine is not None
    answers = [contender.engine.generate([list(prompt)], ANSWER, logprobs=0)[0].tokens for prompt in prompts]
    contender.settle()
    return list(zip(prompts, answers))
