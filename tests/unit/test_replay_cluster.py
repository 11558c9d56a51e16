"""A node and its engines: who waits how long for the first token, whatever decides what is fetched."""

import numpy as np
import pytest
from conversations import trace_of

from kvtier.estimators import CALIBRATED_STEPS, Prefill
from kvtier.replay.arms import ARMS
from kvtier.replay.cluster import Shape, engines_needed, replay
from kvtier.replay.node import Tiers
from kvtier.replay.trace import Request, Trace

GB = 10**9
PREFILL = Prefill(0.0, 40e-6, 0.6e-9, 8192, CALIBRATED_STEPS)
KV_BYTES = 128 * 1024
BLOCK_BYTES = KV_BYTES * 512


def shape(**changes) -> Shape:
    tiers = {"cpu_bytes": 256 * BLOCK_BYTES, "nvme_bytes": 4096 * BLOCK_BYTES, **changes}
    return Shape(2, PREFILL, KV_BYTES, 32 * BLOCK_BYTES, 55e9, 1e-4, Tiers(**tiers), 1024)


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Trace:
    return trace_of(tmp_path_factory.mktemp("trace"), seed=7, sessions=250, seconds=400)


def mean(trace: Trace, arm: str, **changes) -> float:
    return float(replay(trace, shape(**changes), arm).ttft_s.mean())


@pytest.mark.parametrize("arm", ARMS)
def test_every_request_gets_its_first_token_and_each_token_is_counted_once(trace, arm):
    outcome = replay(trace, shape(), arm)
    assert (outcome.ttft_s > 0).all() and len(outcome.ttft_s) == len(trace.requests)
    assert 0 <= outcome.hit_rate <= 1 and outcome.prefill_s > 0
    assert (outcome.cpu_tokens + outcome.nvme_tokens > 0) == (arm != "none")
    whole = sum(PREFILL.seconds(0, request.prompt_tokens) for request in trace.requests)
    assert outcome.prefill_s + outcome.loaded_prefill_s <= whole * 1.001


def test_the_same_question_has_the_same_answer(trace):
    once, again = (replay(trace, shape(), "kvtier") for _ in range(2))
    assert np.array_equal(once.ttft_s, again.ttft_s) and once.counters == again.counters


def test_a_lone_request_waits_for_its_own_computation_only():
    alone = Trace("one", 512, (Request(0.0, 1000, 1, (1, 2)),))
    assert mean(alone, "none") == pytest.approx(PREFILL.seconds(0, 1000))


def test_a_prompt_that_came_back_waits_for_its_load_and_its_rest():
    blocks = tuple(range(40))
    turns = Trace("two", 512, (Request(0.0, 40 * 512, 1, blocks), Request(100.0, 40 * 512 + 88, 1, (*blocks, 99))))
    small = Shape(1, PREFILL, KV_BYTES, 0, 55e9, 1e-4, Tiers(256 * BLOCK_BYTES))
    outcome = replay(turns, small, "always")
    load_s = 40 * BLOCK_BYTES / 55e9 + 1e-4
    assert outcome.ttft_s[1] == pytest.approx(load_s + PREFILL.seconds(40 * 512, 40 * 512 + 88))
    assert outcome.cpu_tokens == 40 * 512 and outcome.resident_tokens == 0


def test_an_engine_takes_first_who_is_ready():
    """A load holds up nobody else."""
    blocks = tuple(range(100))
    first = Request(0.0, 100 * 512, 1, blocks)
    back, other = Request(100.0, 100 * 512 + 8, 1, (*blocks, 201)), Request(100.001, 512, 1, (202,))
    slow_host = Shape(1, PREFILL, KV_BYTES, 0, 1e9, 1e-4, Tiers(512 * BLOCK_BYTES))
    outcome = replay(Trace("three", 512, (first, back, other)), slow_host, "always")
    assert outcome.ttft_s[2] == pytest.approx(PREFILL.seconds(0, 512)) and outcome.ttft_s[1] > 6


def test_on_good_tiers_fetching_wins_and_kvtier_is_no_worse(trace):
    none, always, kvtier = (mean(trace, arm) for arm in ("none", "always", "kvtier"))
    assert always < 0.8 * none
    assert kvtier < 1.1 * always


def test_on_a_link_that_is_too_slow_fetching_loses_and_kvtier_does_not(trace):
    none, always, kvtier = (mean(trace, arm, nvme_read_bytes_per_s=0.3e9) for arm in ("none", "always", "kvtier"))
    assert always > 2 * none
    assert kvtier < 1.05 * none


def test_what_kvtier_has_to_learn_costs_little(trace):
    for speed in (0.5e9, 2e9, 6e9):
        kvtier, oracle = (mean(trace, arm, nvme_read_bytes_per_s=speed) for arm in ("kvtier", "oracle"))
        assert kvtier < 1.15 * oracle


def test_more_ram_is_worth_something(trace):
    few, many = (replay(trace, shape(cpu_bytes=n * BLOCK_BYTES, nvme_bytes=0), "kvtier") for n in (64, 1024))
    assert many.hit_rate > 1.2 * few.hit_rate and many.ttft_s.mean() < few.ttft_s.mean()


def test_so_many_engines_that_they_are_not_too_busy(trace):
    outcome = replay(trace, shape(), "none")
    work_s = sum(PREFILL.seconds(0, request.prompt_tokens) for request in trace.requests)
    n = engines_needed(trace, PREFILL, 0.8)
    assert work_s / trace.seconds / n <= 0.8 < work_s / trace.seconds / (n - 1 or 1) or n == 1
    assert outcome.engines == 2
