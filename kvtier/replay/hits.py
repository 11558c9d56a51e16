"""How many prompt tokens the daemon's own BlockStore would have known, with each of its policies, where nothing takes time.

    kvtier         as kvtierd runs it: by what a block's room is worth
    kvtier-lru     the least recently used goes first
    kvtier-s3fifo, kvtier-arc   as their authors have it

Beside the reference policies (caches.py) two things are different. What an engine saves are whole blocks, so the last,
partial one of a prompt is never a hit. And what the engine is lent to save into holds no block: so many slots there are
beyond the capacity that it never holds more, and at most ROOM_SHARE less.
"""

from collections.abc import Sequence

from kvtier.arena import SLAB_ALIGN, slab_bytes_for
from kvtier.block import BELOW, SLOT_UNIT, leading
from kvtier.decision import Ask
from kvtier.replay.clock import Clock
from kvtier.replay.node import LEND_BLOCKS, Node, Tiers, keys_of
from kvtier.replay.sessions import Told
from kvtier.replay.trace import Trace
from kvtier.session import Hints

STORE_POLICIES = {"kvtier": "value", "kvtier-lru": "lru", "kvtier-s3fifo": "s3fifo", "kvtier-arc": "arc"}
ROOM_SHARE = 1 / 64
ENGINE = "engine"


def hits_of_store(trace: Trace, capacity: int, policy: str, told: Sequence[Told] = ()) -> int:
    """Hit tokens with room for `capacity` blocks. `told`: what clients say of each request (sessions.py); without it
    the store knows what it sees."""
    clock = Clock()
    node = _node(clock, capacity, trace.block_tokens, policy)
    hits, ticked_at = 0, 0.0
    for number, request in enumerate(trace.requests):
        whole = trace.whole(request)
        if not whole:
            continue  # nothing to ask for, nothing to save
        clock.now = request.at
        if clock.now > ticked_at:
            node.store.retention.tick(clock.now)
            ticked_at = clock.now
        keys, name = keys_of(whole), str(number)
        if told:
            node.begin(ENGINE, name, Hints(session=told[number].session, end=told[number].ends))
        slots = node.lookup(ENGINE, number, keys, 0, Ask(name, request.prompt_tokens))
        assert slots is not None
        n = leading(slots < BELOW)
        hits += trace.hit_tokens(request, n)
        node.release(ENGINE, number, n, 0.0)
        node.save(ENGINE, keys, name)
        node.end(ENGINE, keys, name)
    return hits


def _node(clock: Clock, capacity: int, block_tokens: int, policy: str) -> Node:
    """Arenas consist of whole slabs. What is more than was asked for is lent to an engine that never uses it."""
    lend = max(2, min(LEND_BLOCKS, int(2 * capacity * ROOM_SHARE)))
    needed = capacity + lend // 2  # it is lent more when it has less than half
    arena = SLAB_ALIGN
    while (held := arena // slab_bytes_for(arena) * slab_bytes_for(arena)) < needed * SLOT_UNIT:
        arena += SLAB_ALIGN
    node = Node(clock, Tiers(held), SLOT_UNIT, block_tokens, decides=False, policy=policy, share=1.0)
    if surplus := held // SLOT_UNIT - needed:
        node.join("nobody", surplus)
    node.join(ENGINE, lend)
    return node
