"""Sends the requests of a slice to a contender's engine as they are due, and measures what they took."""

import time
from collections import deque
from collections.abc import Sequence

from engine import Answer, Engine

from compare.contender import Contender
from compare.measures import Slice, usage
from compare.workloads import Request

LOOK_S = 0.005  # between two looks whether a request is due, while the engine has none


def ask(contender: Contender, requests: Sequence[Request]) -> Slice:
    """`seconds` end when the engine has nothing left to save; processor and bytes are counted until nothing is written
    behind either, so that the next contender has the machine to itself. Times to the first token begin when a request
    is due. Raises EngineError."""
    assert contender.engine is not None
    before, begun = usage(contender.pids()), time.monotonic()
    answers, late = _serve(contender.engine, requests)
    seconds = time.monotonic() - begun
    contender.settle()
    return Slice(
        ttfts=[(answer.ttft or 0.0) + waited for answer, waited in zip(answers, late)],
        seconds=seconds,
        requests=len(requests),
        usage=usage(contender.pids()) - before,
        answers=[answer.tokens for answer in answers],
    )


def _serve(engine: Engine, requests: Sequence[Request]) -> tuple[list[Answer], list[float]]:
    """The answers, and how long after it was due each request reached the engine, which takes none within a step."""
    waiting: dict[int, deque[int]] = {}  # of each line, the numbers of its requests
    for number, request in enumerate(requests):
        waiting.setdefault(request.line, deque()).append(number)
    begun = time.monotonic()
    due = {line: begun + requests[numbers[0]].gap_s for line, numbers in waiting.items()}
    running: dict[str, int] = {}
    late = [0.0] * len(requests)
    while due or running:
        now = time.monotonic()
        for line in [line for line, at in due.items() if at <= now]:
            number = waiting[line].popleft()
            late[number] = time.monotonic() - due.pop(line)
            running[f"ask-{number}"] = number
            request = requests[number]
            engine.add(f"ask-{number}", list(request.prompt), request.max_tokens, logprobs=0)
        finished = engine.step().finished  # also without requests: a connector may have something to do
        for name in [name for name in finished if name in running]:
            line = requests[running.pop(name)].line
            if waiting[line]:
                due[line] = time.monotonic() + requests[waiting[line][0]].gap_s
        if not running and due:
            time.sleep(max(0.0, min(LOOK_S, min(due.values()) - time.monotonic())))
    answers = engine.finish()
    return [answers[f"ask-{number}"] for number in range(len(requests))], late
