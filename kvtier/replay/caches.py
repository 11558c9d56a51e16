"""How many prompt tokens a cache of so many blocks would have known, whatever keeps it. Reference policies, exact.

A block is a hit only if all before it are. A request finds what is there when it comes, and all its blocks are
candidates to stay when it goes.

    infinite   nothing is ever dropped
    min        Belady's optimum, which knows the future: it keeps the blocks that are read again the soonest, and doesn't
               take in what is read later than all it has. Of one request's blocks the tail goes first. So it keeps whole
               prefixes, and no policy has more hits.
    lru        the least recently used goes first, and the tail of a request before its head

They keep what was published: also the last, partial block of a prompt. The daemon's own policies: hits.py.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable

from kvtier.replay.trace import Trace

_NEVER = 1 << 62


def infinite(trace: Trace, capacity: int = 0) -> int:
    """Hit tokens; `capacity` is not looked at."""
    seen: set[int] = set()
    hits = 0
    for request in trace.requests:
        n = next((i for i, block in enumerate(request.blocks) if block not in seen), len(request.blocks))
        hits += trace.hit_tokens(request, n)
        seen.update(request.blocks)
    return hits


def lru(trace: Trace, capacity: int) -> int:
    cache = PrefixLru(capacity)
    hits = 0
    for request in trace.requests:
        hits += trace.hit_tokens(request, cache.match(request.blocks))
        cache.use(request.blocks)
    return hits


def belady(trace: Trace, capacity: int) -> int:
    """MIN, with bypass."""
    following = _next_uses(trace)
    cache: dict[int, int] = {}  # block -> the request that uses it next
    farthest: list[tuple[int, int, int]] = []  # -next, -position, block: what goes first comes first
    hits = 0
    for number, request in enumerate(trace.requests):
        n = next((i for i, block in enumerate(request.blocks) if block not in cache), len(request.blocks))
        hits += trace.hit_tokens(request, n)
        for position, block in enumerate(request.blocks):
            used = following[number][position]
            if used == _NEVER:
                cache.pop(block, None)
            else:
                cache[block] = used
                heapq.heappush(farthest, (-used, -position, block))
        while len(cache) > capacity:
            used, _, block = heapq.heappop(farthest)
            if cache.get(block) == -used:  # else an entry of a use that is over
                del cache[block]
    return hits


POLICIES: dict[str, Callable[[Trace, int], int]] = {"infinite": infinite, "min": belady, "lru": lru}


class PrefixLru:
    """Least recently used, tail first. Also an engine's own cache."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()  # the one to go first comes first

    def match(self, blocks: tuple[int, ...]) -> int:
        """How many of the first are here."""
        for i, block in enumerate(blocks):
            if block not in self._blocks:
                return i
        return len(blocks)

    def use(self, blocks: tuple[int, ...]) -> None:
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)


def _next_uses(trace: Trace) -> list[list[int]]:
    """By request and position: the number of the next request that has this block."""
    later: dict[int, int] = {}
    uses = []
    for number in range(len(trace.requests) - 1, -1, -1):
        blocks = trace.requests[number].blocks
        uses.append([later.get(block, _NEVER) for block in blocks])
        later.update(dict.fromkeys(blocks, number))
    return uses[::-1]
