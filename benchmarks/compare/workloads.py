"""What is asked of all contenders. Pure: given the same texts it makes the same requests.

Conversations are scripted: what stands in a later prompt as the answer to an earlier one is of the text, not what an
engine said, so that all contenders see the same prompts. Every call of slices() takes fresh texts: nothing of a former
round is of any use. Lengths are in tokens.
"""

import bisect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

Tokens = tuple[int, ...]
Take = Callable[[int], Tokens]  # so many tokens that were never taken before
ANSWER = 4


@dataclass(frozen=True)
class Request:
    """`line`: who asks. Everybody waits for an answer before the next question; all lines go side by side. `returns`: the
    prompt goes on where an earlier one of the same line or session ended."""

    prompt: Tokens
    max_tokens: int = ANSWER
    gap_s: float = 0.0  # from the answer before it, or from the start
    line: int = 0
    returns: bool = False


@dataclass(frozen=True)
class Workload:
    """`slices` makes one round: after each slice it is another contender's turn."""

    name: str
    title: str
    what: str
    rounds: int
    slices: Callable[[int], list[list[Request]]]

    def described(self) -> dict[str, object]:
        return {"title": self.title, "what": self.what, "rounds": self.rounds}


# --- (a): conversations that idle past each other ---------------------------------------------------------

SESSIONS, TURNS, FIRST, LATER = 20, 3, 1200, 300


def conversations(take: Take, sessions: int, turns: int) -> list[list[Request]]:
    """A slice a turn: every session's, one after the other."""
    prompts = [take(FIRST) for _ in range(sessions)]
    slices = [[Request(prompt) for prompt in prompts]]
    for _ in range(turns - 1):
        prompts = [prompt + take(LATER) for prompt in prompts]
        slices.append([Request(prompt, returns=True) for prompt in prompts])
    return slices


def multi_round_qa(take: Take, rounds: int, ram_tokens: int, sessions: int = SESSIONS, turns: int = TURNS) -> Workload:
    longest = FIRST + (turns - 1) * LATER
    return Workload(
        "a_multi_round_qa",
        "Multi-round questions",
        f"{sessions} conversations take turns one by one: {FIRST:,} tokens, then {LATER} more a turn, {turns} turns. "
        f"The RAM tier holds {ram_tokens / (sessions * longest):.0%} of what they have at the end, the engine's own less.",
        rounds,
        lambda _: conversations(take, sessions, turns),
    )


# --- (b): agents between their tools -----------------------------------------------------------------------------

# Of 402 requests of 20 runs of mini-swe (LMCache/lmcache-agent-trace, Apache-2.0), quantiles at SHARES. Each prompt goes
# on where the former of its run ended (median 99 % of the former's tokens). A gap is from request to request there, with
# the answer in it; here it is from the answer on.
SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
FIRST_TOKENS = (1270, 1330, 1359, 1533, 2192, 2845, 3148)
GROWTH_TOKENS = (11, 12, 12, 27, 186, 696, 2655)
GAP_S = (0.5, 0.71, 0.87, 1.08, 1.32, 2.03, 4.21)
SCALE, LONGEST = 0.5, 2048  # of lengths; gaps are as they were
AGENTS, STEPS = 5, 6


def quantiles(table: Sequence[float], count: int, numbers: random.Random) -> list[float]:
    """So many values spread over the whole distribution, in an order of chance: few are as many as it takes."""
    found = []
    for i in range(count):
        share = (i + 0.5) / count
        j = min(bisect.bisect_right(SHARES, share), len(SHARES) - 1)
        part = (share - SHARES[j - 1]) / (SHARES[j] - SHARES[j - 1])
        found.append(table[j - 1] + part * (table[j] - table[j - 1]))
    numbers.shuffle(found)
    return found


def agents(take: Take, numbers: random.Random, agents: int, steps: int) -> list[Request]:
    firsts = quantiles(FIRST_TOKENS, agents, numbers)
    growths = iter(quantiles(GROWTH_TOKENS, agents * (steps - 1), numbers))
    gaps = iter(quantiles(GAP_S, agents * steps, numbers))
    requests = []
    for line, first in enumerate(firsts):
        prompt = take(round(first * SCALE))
        requests.append(Request(prompt, gap_s=next(gaps), line=line))
        for _ in range(steps - 1):
            grown = min(len(prompt) + max(1, round(next(growths) * SCALE)), LONGEST)
            prompt += take(grown - len(prompt))
            requests.append(Request(prompt, gap_s=next(gaps), line=line, returns=True))
    return requests


def agent_loop(take: Take, rounds: int, count: int = AGENTS, steps: int = STEPS) -> Workload:
    return Workload(
        "b_agent_loop",
        "Agents between their tools",
        f"{count} agents at once, {steps} steps each, a tool's time between two: lengths and gaps spread as in 20 coding "
        f"runs of mini-swe, lengths halved and at most {LONGEST:,} tokens. The engine takes requests as they are due.",
        rounds,
        lambda number: [agents(take, random.Random(f"agents {number}"), count, steps)],
    )


# --- (c): documents that many ask about --------------------------------------------------------------------------

INSTRUCTION, DOCUMENT, QUESTION = 128, 512, 60
DOCUMENTS, QUESTIONS = 12, 24


def questions(take: Take, numbers: random.Random, documents: int, count: int) -> list[Request]:
    """Two documents a prompt, the first as often as Zipf has it, and so the second among the others."""
    instruction, shelf = take(INSTRUCTION), [take(DOCUMENT) for _ in range(documents)]
    weights = [1 / rank for rank in range(1, documents + 1)]
    requests, seen = [], set[int]()
    for _ in range(count):
        first = numbers.choices(range(documents), weights)[0]
        others = [i for i in range(documents) if i != first]
        second = numbers.choices(others, [weights[i] for i in others])[0]
        prompt = instruction + shelf[first] + shelf[second] + take(QUESTION)
        requests.append(Request(prompt, returns=first in seen))
        seen.add(first)
    return requests


def rag(take: Take, rounds: int, documents: int = DOCUMENTS, count: int = QUESTIONS) -> Workload:
    return Workload(
        "c_rag",
        "Questions about shared documents",
        f"{count} questions one by one, each behind two of {documents} documents of {DOCUMENT} tokens (Zipf). Only a "
        "common prefix is of use: the second document where the same two stood in the same order before, else the first.",
        rounds,
        lambda number: [questions(take, random.Random(f"rag {number}"), documents, count)],
    )


# --- (d): nothing is ever asked again ------------------------------------------------------------------------------

FRESH, AT_ONCE, TIMES = 200, 4, 6


def no_reuse(take: Take, rounds: int, times: int = TIMES) -> Workload:
    return Workload(
        "d_no_reuse",
        "No reuse at all",
        f"{AT_ONCE} fresh prompts of {FRESH} tokens at once, {times} times, each as soon as the one before it is answered.",
        rounds,
        lambda _: [[Request(take(FRESH), line=line) for _ in range(times) for line in range(AT_ONCE)]],
    )


# --- all of them -----------------------------------------------------------------------------------------------------


def of_a_run(take: Take, ram_tokens: int, quick: bool, rounds: int | None = None) -> list[Workload]:
    """Rounds are as many as should fit into the time of a run, if they aren't given."""
    if quick:
        made = [
            multi_round_qa(take, 1, ram_tokens, sessions=9, turns=2),
            agent_loop(take, 1, count=3, steps=3),
            rag(take, 1, documents=4, count=6),
            no_reuse(take, 2, times=3),
        ]
    else:
        made = [multi_round_qa(take, 3, ram_tokens), agent_loop(take, 2), rag(take, 2), no_reuse(take, 4)]
    return [workload if rounds is None else replace(workload, rounds=rounds) for workload in made]
