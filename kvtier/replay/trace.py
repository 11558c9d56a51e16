"""A request trace in Mooncake's JSONL: one request a line.

    {"timestamp": 3000, "input_length": 1100, "output_length": 20, "hash_ids": [7, 8, 12]}

`timestamp` in ms; `hash_ids` names the blocks of the prompt, `block_tokens` tokens each, the last of them maybe partial.
An id stands for its block and all before it; ids that don't are chained here, so that this holds for whatever was read.
A line may name its session (`session`, or `session_id`), and have a `delay` in place of a timestamp: ms after the session's
former line.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from kvtier.errors import ConfigError

BLOCK_TOKENS = 512  # Mooncake's
TICK_S_MIN = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    at: float  # seconds since the trace began
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]  # numbers of this trace: equal for equal blocks after equal ones
    session: str = ""  # as the trace has it; "": it doesn't say


@dataclass(frozen=True)
class Trace:
    name: str
    block_tokens: int
    requests: tuple[Request, ...]  # in the order of their arrival

    @cached_property
    def unique_blocks(self) -> int:
        return len({block for request in self.requests for block in request.blocks})

    @cached_property
    def prompt_tokens(self) -> int:
        return sum(request.prompt_tokens for request in self.requests)

    @property
    def seconds(self) -> float:
        return self.requests[-1].at - self.requests[0].at

    def hit_tokens(self, request: Request, blocks: int) -> int:
        """What its first `blocks` blocks are worth."""
        return min(request.prompt_tokens, blocks * self.block_tokens)

    def whole(self, request: Request) -> tuple[int, ...]:
        """Its blocks without the last, partial one: what an engine saves."""
        return request.blocks[: request.prompt_tokens // self.block_tokens]

    def first(self, requests: int) -> "Trace":
        return replace(self, requests=self.requests[:requests])

    def faster(self, factor: float) -> "Trace":
        """The same requests, arriving `factor` times as fast."""
        return replace(self, requests=tuple(replace(request, at=request.at / factor) for request in self.requests))

    def smeared(self, seed: int) -> "Trace":
        """Where most requests share a timestamp, it was rounded to a tick: they are spread over it, in their order. A
        burst at each tick is the publisher's, not the users'."""
        ticks = sorted({request.at for request in self.requests})
        gaps = [after - before for before, after in pairwise(ticks)]
        if not gaps or len(ticks) * 2 > len(self.requests) or (tick := median(gaps)) < TICK_S_MIN:
            return self
        chance = random.Random(seed)
        times = sorted(request.at + chance.random() * tick for request in self.requests)
        return replace(self, requests=tuple(replace(r, at=at) for r, at in zip(self.requests, times)))


def read(path: Path, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """ConfigError, with the line and the cure, when it is no such trace."""
    try:
        with path.open(encoding="utf-8") as lines:
            requests = list(_requests(path, lines))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}; name a JSONL file of requests") from None
    if not requests:
        raise ConfigError(f"{path}: no request in it; each line is one, with timestamp, input_length and hash_ids")
    requests.sort(key=lambda request: request.at)
    _require_blocks_of(block_tokens, path, requests)
    begun = requests[0].at
    return Trace(path.name, block_tokens, tuple(replace(request, at=request.at - begun) for request in requests))


def _requests(path: Path, lines: Iterable[str]) -> Iterator[Request]:
    numbers: dict[tuple[int, object], int] = {}
    last_of: dict[object, float] = {}  # session -> ms
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            said = json.loads(text)
            session = said.get("session", said.get("session_id"))
            at = _timestamp(said, session, last_of)
            yield Request(
                at / 1000,
                int(said["input_length"]),
                int(said.get("output_length", 0)),
                _chained(said["hash_ids"], numbers),
                "" if session is None else str(session),
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            lacks = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{path}:{line}: {lacks}; a line is a JSON object with timestamp (ms), input_length (tokens), hash_ids"
            ) from None


def _timestamp(said: dict[str, Any], session: object, last_of: dict[object, float]) -> float:
    """ms."""
    if "timestamp" in said:
        at = float(said["timestamp"])
    elif session is not None and "delay" in said:
        at = last_of.get(session, 0.0) + float(said["delay"])
    else:
        raise KeyError("timestamp")
    if not math.isfinite(at):
        raise ValueError(f"a timestamp of {at}")
    if session is not None:
        last_of[session] = at
    return at


def _chained(ids: list[object], numbers: dict[tuple[int, object], int]) -> tuple[int, ...]:
    """A number for each block together with all before it."""
    blocks, before = [], -1
    for one in ids:
        before = numbers.setdefault((before, one), len(numbers))
        blocks.append(before)
    return tuple(blocks)


def _require_blocks_of(block_tokens: int, path: Path, requests: list[Request]) -> None:
    wrong = next((r for r in requests if r.prompt_tokens < 1 or len(r.blocks) != -(-r.prompt_tokens // block_tokens)), None)
    if wrong is None:
        return
    fits = [r for r in requests if r.blocks]
    lowest = max((-(-r.prompt_tokens // len(r.blocks)) for r in fits), default=1)
    highest = min(((r.prompt_tokens - 1) // (len(r.blocks) - 1) for r in fits if len(r.blocks) > 1), default=lowest)
    cure = "mend or drop such lines"
    if lowest <= highest and all(r.blocks for r in requests):
        rounded = 2 ** (highest.bit_length() - 1)
        cure = f"try --block-tokens {rounded if lowest <= rounded else lowest}"
    raise ConfigError(
        f"{path}: a prompt of {wrong.prompt_tokens} tokens has {len(wrong.blocks)} hash_ids, which are no blocks of "
        f"{block_tokens} tokens; {cure}"
    )
