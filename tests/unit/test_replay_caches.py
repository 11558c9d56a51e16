"""Reference policies: exact on traces small enough to try everything, and in their order on others."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.replay.caches import PrefixLru, belady, infinite, lru
from kvtier.replay.node import whole_slabs
from kvtier.replay.trace import Request, Trace

# A tree of 9 blocks: a request is a path from the root.
PATHS = [(0,), (0, 1), (0, 1, 2), (0, 1, 3), (0, 4), (0, 4, 5), (6,), (6, 7), (6, 7, 8)]


def trace_over(paths: list[tuple[int, ...]]) -> Trace:
    return Trace("tiny", 1, tuple(Request(float(n), len(path), 0, path) for n, path in enumerate(paths)))


tiny = st.lists(st.sampled_from(PATHS), min_size=1, max_size=9).map(trace_over)
larger = st.lists(st.sampled_from(PATHS), min_size=1, max_size=60).map(trace_over)


def best_of_all(trace: Trace, capacity: int) -> int:
    """The most hits that any choice of what to keep could have: every choice is tried."""
    reached = {frozenset[int](): 0}
    for request in trace.requests:
        following: dict[frozenset[int], int] = {}
        for cache, hits in reached.items():
            found = next((i for i, block in enumerate(request.blocks) if block not in cache), len(request.blocks))
            known = sorted(cache | set(request.blocks))
            for kept in combinations(known, min(capacity, len(known))):
                following[frozenset(kept)] = max(following.get(frozenset(kept), 0), hits + found)
        reached = following
    return max(reached.values())


@settings(deadline=None, max_examples=60)
@given(tiny, st.integers(1, 4))
def test_min_is_the_best_that_can_be(trace, capacity):
    assert belady(trace, capacity) == best_of_all(trace, capacity)


@given(larger, st.integers(1, 9))
def test_infinite_is_no_less_than_min_and_min_no_less_than_lru(trace, capacity):
    assert infinite(trace) >= belady(trace, capacity) >= lru(trace, capacity)


@given(larger)
def test_with_room_for_all_each_policy_has_all_hits(trace):
    assert infinite(trace) == belady(trace, 9) == lru(trace, 9)


@given(larger, st.sampled_from([lru, belady]))
def test_more_room_never_means_fewer_hits(trace, policy):
    hits = [policy(trace, capacity) for capacity in range(1, 10)]
    assert hits == sorted(hits)


def test_lru_loses_a_conversations_tail_first():
    cache = PrefixLru(3)
    cache.use((1, 2, 3))
    cache.use((4,))
    assert cache.match((1, 2, 3)) == 2 and cache.match((4,)) == 1


def test_a_block_after_a_gap_is_no_hit():
    cache = PrefixLru(3)
    cache.use((1, 2))
    assert cache.match((9, 2)) == 0 and cache.match((1, 9, 2)) == 1


def test_hits_are_counted_in_tokens_and_the_last_block_may_be_partial(tmp_path):
    trace = Trace("two", 512, (Request(0.0, 700, 0, (1, 2)), Request(1.0, 700, 0, (1, 2)), Request(2.0, 1024, 0, (1, 3))))
    assert infinite(trace) == 700 + 512


def test_an_arena_holds_what_was_asked_for_within_a_few_hundredths():
    for blocks in (32, 100, 1000, 1827, 9139, 45_697, 100_000):
        held = whole_slabs(blocks * 65536) / 65536
        assert abs(held - blocks) <= max(16, 0.03 * blocks)
