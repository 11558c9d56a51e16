"""The daemon's own store on a trace: its policies against the exact references."""

import pytest
from conversations import trace_of

from kvtier.replay.caches import belady, infinite, lru
from kvtier.replay.hits import STORE_POLICIES, hits_of_store
from kvtier.replay.sessions import told
from kvtier.replay.trace import Request, Trace


def whole_only(trace: Trace) -> Trace:
    """What an engine saves of it."""
    whole = tuple(
        Request(r.at, n * trace.block_tokens, r.output_tokens, trace.whole(r), r.session)
        for r in trace.requests
        if (n := r.prompt_tokens // trace.block_tokens)
    )
    return Trace(trace.name, trace.block_tokens, whole)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Trace:
    return whole_only(trace_of(tmp_path_factory.mktemp("trace"), seed=3, sessions=150))


@pytest.mark.parametrize("blocks", [64, 256])
def test_with_lru_the_store_has_the_hits_of_lru(trace, blocks):
    assert 2 * blocks < trace.unique_blocks
    assert lru(trace, blocks * 31 // 32) * 0.99 <= hits_of_store(trace, blocks, "lru") <= lru(trace, blocks) * 1.01


@pytest.mark.parametrize("policy", STORE_POLICIES.values())
@pytest.mark.parametrize("blocks", [64, 256])
def test_no_policy_beats_the_optimum_or_falls_far_behind_lru(trace, policy, blocks):
    assert lru(trace, blocks) * 0.8 <= hits_of_store(trace, blocks, policy) <= belady(trace, blocks)


@pytest.mark.parametrize("policy", STORE_POLICIES.values())
def test_with_room_for_all_each_policy_has_all_hits(trace, policy):
    assert hits_of_store(trace, trace.unique_blocks + 64, policy) == infinite(trace)


def test_who_hears_which_session_is_over_has_more_hits(trace):
    blocks = trace.unique_blocks // 20
    assert hits_of_store(trace, blocks, "value", told(trace)) > 1.1 * hits_of_store(trace, blocks, "lru")


def test_the_partial_end_of_a_prompt_is_no_hit():
    said, short = (1100, 0, (1, 2, 3)), Request(10.0, 9, 0, (4,))
    twice = Trace("two", 512, (Request(0.0, *said), Request(9.0, *said), short))
    assert infinite(twice) == 1100 and hits_of_store(twice, 100, "lru") == 1024
