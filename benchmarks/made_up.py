"""Request traces that nobody measured: each is made of one habit that a policy could be fooled by. They say where a policy
is worse than LRU, not how good it is. Used by bench_policy.py."""

import random
from collections.abc import Callable, Iterator

from kvtier.replay.trace import BLOCK_TOKENS, Request, Trace

REQUESTS = 4000
Made = Iterator[tuple[float, tuple[object, ...]]]  # seconds, names of the blocks


def _document(name: object, blocks: int) -> tuple[object, ...]:
    return tuple((name, i) for i in range(blocks))


def one_shots(chance: random.Random) -> Made:
    """Any of 1,500 documents, each as likely as the others, whatever was read before."""
    for n in range(REQUESTS):
        yield n * 0.5, _document(chance.randrange(1500), 8)


def scans(chance: random.Random) -> Made:
    """Half of the prompts never come back; the others ask about 200 documents again and again."""
    for n in range(REQUESTS):
        yield n * 0.5, _document(-n if chance.random() < 0.5 else 1 + chance.randrange(200), 12)


def loop(chance: random.Random) -> Made:
    """One document after the other, always in the same order, a little more than fits 25 % of what there is. LRU has no
    hit."""
    for n in range(REQUESTS):
        yield n * 0.5, _document(n % 200 if n % 8 else f"new {n}", 10)


def popular(chance: random.Random) -> Made:
    """Documents of Zipf's popularity, and a question of its own behind each."""
    weights = [1 / (rank + 1) for rank in range(1000)]
    for n, document in enumerate(chance.choices(range(1000), weights, k=REQUESTS)):
        yield n * 0.3, (*_document(document, 6), f"question {n}", f"rest {n}")


def short_chats(chance: random.Random) -> Made:
    """Ten long system prompts, and chats of one to three short turns behind them."""
    weights = [1 / (rank + 1) for rank in range(10)]
    said = []
    for n in range(REQUESTS // 2):
        system = _document(f"system {chance.choices(range(10), weights)[0]}", 16)
        at, turns = n * 0.6, ()
        for turn in range(chance.choice((1, 1, 2, 3))):
            turns += tuple((n, turn, i) for i in range(chance.choice((1, 1, 2))))
            said.append((at, (*system, *turns)))
            at += chance.lognormvariate(3.5, 1)
    yield from sorted(said, key=lambda one: one[0])


def agents_then_people(chance: random.Random) -> Made:
    """For half of the time gaps of a second or two and many turns; then gaps of minutes, and half of them never end so."""
    said = []
    for n in range(REQUESTS // 8):
        is_agent = n % 2 == 0
        at = chance.uniform(0, 1800) + (0 if is_agent else 1800)
        blocks = _document(("agent" if is_agent else "chat", n), 4)
        for turn in range(chance.randrange(6, 20) if is_agent else 12):
            said.append((at, blocks))
            blocks += tuple((n, turn, i) for i in range(2))
            at += chance.uniform(0.5, 2.5) if is_agent else chance.lognormvariate(4.8, 1)
            if not is_agent and chance.random() < 0.4:
                break
    yield from sorted(said, key=lambda one: one[0])


def switching(chance: random.Random) -> Made:
    """Two crowds by turns, ten minutes each: one always comes back after a minute, of the other nobody does."""
    said = []
    for n in range(REQUESTS):
        at = chance.uniform(0, 3600)
        blocks = _document(n, 6)
        said.append((at, blocks))
        if at % 1200 < 600:
            said.append((at + chance.uniform(40, 80), (*blocks, (n, "more"))))
    yield from sorted(said, key=lambda one: one[0])


MAKERS: dict[str, Callable[[random.Random], Made]] = {
    maker.__name__: maker for maker in (one_shots, scans, loop, popular, short_chats, agents_then_people, switching)
}


def made_up(name: str, seed: int = 1) -> Trace:
    """The whole blocks of its prompts only: each is BLOCK_TOKENS and some more."""
    numbers: dict[object, int] = {}
    requests = []
    for at, blocks in MAKERS[name](random.Random(seed)):
        numbered = tuple(numbers.setdefault(blocks[: i + 1], len(numbers)) for i in range(len(blocks)))
        requests.append(Request(at, len(blocks) * BLOCK_TOKENS, 100, numbered))
    return Trace(name, BLOCK_TOKENS, tuple(requests))
