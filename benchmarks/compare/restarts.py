"""(e), (f): conversations go idle, the engine or all of the node's software restarts in order, and they come back.

Each comes back with the prompt that it had, so the text must be the same. Who keeps nothing outside of its engine has
nothing else to restart: its (e) is its (f). A full run restarts one contender at a time; a quick one two at a time, so
that its `restart_s` is too long. Times to the first token are taken while no engine starts in both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from engine import Answer
from spreads import spread

from compare.contender import Contender
from compare.measures import Slice, cell, usage
from compare.starting import AT_A_TIME, FAILURES, in_pairs, reason
from compare.workloads import ANSWER, Take, Tokens

TOKENS = 900  # seven blocks of all there is, and a rest
CONVERSATIONS, QUICK_CONVERSATIONS = 5, 3

Say = Callable[[str], None]
Cells = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Restart:
    name: str
    title: str
    what: str
    do: Callable[[Contender], None]


ENGINE = Restart(
    "e_engine_restart",
    "The engine restarts",
    f"{CONVERSATIONS} conversations of {TOKENS} tokens go idle, the engine restarts, and they come back one by one.",
    Contender.restart_engine,
)
NODE = Restart(
    "f_node_restart",
    "All of the node's software restarts",
    "As before, with the engine and the daemon beside it restarted in order. Without a daemon it is the same.",
    Contender.restart_node,
)
WORKLOADS = {each.name: {"title": each.title, "what": each.what, "rounds": 1} for each in (ENGINE, NODE)}


def cells(contenders: Sequence[Contender], take: Take, quick: bool, say: Say) -> dict[str, Cells]:
    """By workload and contender. All engines run before and, unless a contender failed, after."""
    count, at_a_time = (QUICK_CONVERSATIONS, AT_A_TIME) if quick else (CONVERSATIONS, 1)
    found: dict[str, Cells] = {ENGINE.name: {}, NODE.name: {}}
    for restart in (ENGINE, NODE):
        prompts = [take(TOKENS) for _ in range(count)]
        whose = [each for each in contenders if restart is ENGINE or each.daemon_pids()]
        for pair in _parts(whose, at_a_time):
            say(f"{restart.title}: {' and '.join(each.title for each in pair)}")
            found[restart.name] |= _restarted(restart, pair, prompts)
    without = {each.name: found[ENGINE.name][each.name] for each in contenders if each.name not in found[NODE.name]}
    return found | {NODE.name: found[NODE.name] | without}


def _parts(contenders: Sequence[Contender], size: int) -> Iterator[Sequence[Contender]]:
    for first in range(0, len(contenders), size):
        yield contenders[first : first + size]


def _restarted(restart: Restart, contenders: Sequence[Contender], prompts: Sequence[Tokens]) -> Cells:
    before: dict[str, list[Answer]] = {}
    took_s: dict[str, float] = {}

    def do(contender: Contender) -> None:
        begun = monotonic()
        restart.do(contender)
        took_s[contender.name] = monotonic() - begun

    found: Cells = {}
    for contender in contenders:
        try:
            before[contender.name] = _spoken(contender, prompts)
            _idle(contender)
        except FAILURES as failure:
            found[contender.name] = {"absent": reason(failure)}
    failed = in_pairs([each for each in contenders if each.name in before], do)
    found |= {name: {"absent": why} for name, why in failed.items()}
    for contender in contenders:
        if contender.name not in found:
            try:
                found[contender.name] = _come_back(contender, prompts, before[contender.name], took_s[contender.name])
            except FAILURES as failure:
                found[contender.name] = {"absent": reason(failure)}
    return found


def _idle(contender: Contender) -> None:
    assert contender.engine is not None
    contender.engine.reset()
    contender.settle()


def _come_back(
    contender: Contender, prompts: Sequence[Tokens], before: Sequence[Answer], restart_s: float
) -> dict[str, Any]:
    used, begun = usage(contender.pids()), monotonic()
    answers = _spoken(contender, prompts)
    seconds = monotonic() - begun
    contender.settle()
    ttfts = [answer.ttft or 0.0 for answer in answers]
    measured = Slice(ttfts, seconds, len(prompts), usage(contender.pids()) - used, [answer.tokens for answer in answers])
    return {
        **cell([measured], [answer.tokens for answer in before]),
        "served_tokens": served(answers, prompts),
        "before_ttft_s": spread(answer.ttft or 0.0 for answer in before),
        "restart_s": restart_s,
        "first_token_after_s": restart_s + ttfts[0],
    }


def _spoken(contender: Contender, prompts: Sequence[Tokens]) -> list[Answer]:
    """One by one."""
    assert contender.engine is not None
    return [contender.engine.generate([list(prompt)], ANSWER, logprobs=0)[0] for prompt in prompts]


def served(answers: Sequence[Answer], prompts: Sequence[Tokens]) -> float:
    """The share of the prompts' tokens that came from outside of the engine."""
    return sum(answer.external_tokens or 0 for answer in answers) / sum(map(len, prompts))
