"""Fetch or recompute: the rule."""

import math
import timeit
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.cost import ASK_S_MIN, ASK_TIMES, ASK_WAIT_SHARE, Candidate, Pressure, choose, keeps_waiting, patience_to_ask
from kvtier.estimators import Prefill

at_leisure = settings(deadline=None)  # the machine may be busy

GPU = Prefill(8e-3, 25.7e-6, 0.589e-9, 8192, steps=1000)  # Llama-3-8B on an H100
IDLE = Pressure()
PROMPT = 20_000

seconds = st.floats(0, 100)
pressures = st.builds(Pressure, st.floats(0, 60), st.floats(0, 20), st.floats(0, 1), st.integers(0, 256))
prefills = st.builds(
    Prefill,
    st.floats(0, 0.1),
    st.floats(1e-7, 1e-3),
    st.floats(0, 1e-8),
    st.sampled_from([512, 2048, 8192]),
    st.sampled_from([0, 1000]),
)


@st.composite
def ladders(draw: st.DrawFn) -> list[Candidate]:
    """What RAM alone offers, and what RAM and the drives do: more, and not earlier."""
    cpu, nvme = sorted(draw(st.tuples(st.integers(1, PROMPT), st.integers(1, PROMPT))))
    first, later = sorted(draw(st.tuples(seconds, seconds)))
    return [Candidate(cpu, first, "cpu"), Candidate(nvme, later, "nvme")]


def loaded(prefill: Prefill, candidates: list[Candidate], pressure: Pressure = IDLE, prompt: int = PROMPT) -> int:
    return choose(prefill, 0, prompt, candidates, pressure)[0].candidate.tokens


def nvme(tokens: int, load_s: float) -> list[Candidate]:
    return [Candidate(tokens, load_s, "nvme")]


# --- the rule ---


def test_a_fast_tier_is_loaded_from_and_a_slow_one_is_not():
    assert loaded(GPU, nvme(8192, 0.1)) == 8192  # computing takes 0.26 s
    assert loaded(GPU, nvme(8192, 0.5)) == 0


def test_a_gain_of_less_than_five_percent_is_not_worth_the_traffic():
    computed = GPU.seconds(0, PROMPT) - GPU.seconds(8192, PROMPT)
    assert loaded(GPU, nvme(8192, computed - 0.02 * GPU.seconds(0, PROMPT))) == 0
    assert loaded(GPU, nvme(8192, computed - 0.10 * GPU.seconds(0, PROMPT))) == 8192


def test_what_the_engine_has_to_do_first_hides_a_load():
    assert loaded(GPU, nvme(8192, 0.5), Pressure(backlog_s=1.0)) == 8192


def test_others_that_would_wait_make_computing_dearer():
    assert loaded(GPU, nvme(8192, 0.35)) == 0
    assert loaded(GPU, nvme(8192, 0.35), Pressure(arrivals_per_s=4.0, busy=0.9)) == 8192


def test_ram_alone_is_taken_where_the_drives_are_slow():
    candidates = [Candidate(4096, 0.01, "cpu"), Candidate(8192, 5.0, "nvme")]
    assert [e.candidate.tokens for e in choose(GPU, 0, PROMPT, candidates, IDLE)] == [4096, 0, 8192]


def test_an_estimate_says_what_it_assumed():
    pressure = Pressure(0.25, 2.0, 0.5, 7)
    counts = choose(GPU, 0, 10_000, nvme(8192, 0.1), pressure)[0].as_counts()
    assert counts["tier"] == "nvme" and counts["tokens"] == 8192
    assert counts["load_us"] == 100_000 and counts["backlog_us"] == 250_000
    assert counts["arrivals_mhz"] == 2000 and counts["busy_permille"] == 500
    assert counts["token_ps"] == 25_700_000 and counts["recompute_us"] == 0
    assert counts["ttft_us"] == 250_000 + int(GPU.seconds(8192, 10_000) * 1e6)


@at_leisure
@given(prefills, ladders(), pressures)
def test_the_chosen_one_is_a_candidate_and_all_are_told_of(prefill, candidates, pressure):
    told = [estimate.candidate for estimate in choose(prefill, 0, PROMPT, candidates, pressure)]
    assert sorted(c.tokens for c in told) == sorted([0, *(c.tokens for c in candidates)])


@at_leisure
@given(prefills, ladders(), pressures, st.floats(0, 1))
def test_faster_tiers_never_load_fewer_tokens(prefill, candidates, pressure, faster):
    fast = [replace(c, load_s=c.load_s * faster) for c in candidates]
    assert loaded(prefill, fast, pressure) >= loaded(prefill, candidates, pressure)


@at_leisure
@given(prefills, ladders(), pressures, st.floats(0, 100))
def test_a_longer_queue_never_loads_more(prefill, candidates, pressure, queue_s):
    cpu, drives = candidates
    longer = [cpu, replace(drives, load_s=drives.load_s + queue_s)]
    assert loaded(prefill, longer, pressure) <= loaded(prefill, candidates, pressure)


@at_leisure
@given(prefills, ladders(), pressures, st.integers(0, PROMPT))
def test_nothing_between_two_boundaries_is_better_than_both(prefill, candidates, pressure, tokens):
    """With one step for all of it; chunks make small stairs."""
    prefill = replace(prefill, chunk_tokens=10**6, steps=1000)
    end = candidates[1]
    between = Candidate(min(tokens, end.tokens), end.load_s * min(tokens, end.tokens) / end.tokens, "nvme")
    costs = {e.candidate: e.ttft_s for e in choose(prefill, 0, PROMPT, [end, between], IDLE)}
    none = next(cost for candidate, cost in costs.items() if candidate.tokens == 0)
    assert costs[between] >= min(none, costs[end]) * (1 - 1e-9) - prefill.step_s


def test_an_engine_that_nobody_knows_loads_what_is_long_and_near():
    unknown = Prefill(0, 0, 0, 8192)
    assert loaded(unknown, nvme(255, 0.01)) == 0
    assert loaded(unknown, nvme(256, 0.01)) == 256
    assert loaded(unknown, nvme(4096, 0.6)) == 4096  # a quarter of a second, and a tenth for each 1024 tokens
    assert loaded(unknown, nvme(4096, 0.7)) == 0


def test_a_decision_costs_less_than_three_thousand_square_roots():
    """50 us on the machine it was written on; bench_decide.py measures it."""
    candidates = [Candidate(4096, 0.01, "cpu"), Candidate(8192, 0.2, "nvme")]
    one = min(timeit.repeat(lambda: choose(GPU, 0, PROMPT, candidates, Pressure(0.3, 3.0, 0.6)), number=200, repeat=5))
    yardstick = min(timeit.repeat(lambda: sum(math.sqrt(x) for x in range(1000)), number=200, repeat=5))
    assert one < 3 * yardstick


# --- to wait for an answer or not ---


def test_an_answer_is_waited_for_that_costs_little_of_what_it_may_save():
    assert patience_to_ask(gain_s=1.0, backlog_s=0.0, ask_s=0.1) == pytest.approx(ASK_TIMES * 0.1)
    assert patience_to_ask(gain_s=1.0, backlog_s=0.0, ask_s=0.3) == 0.0
    assert patience_to_ask(gain_s=0.05, backlog_s=0.0, ask_s=0.0001) == ASK_S_MIN


def test_an_answer_that_is_expected_to_save_much_may_be_late():
    """As the first one is, which connects."""
    assert patience_to_ask(gain_s=7.0, backlog_s=0.0, ask_s=0.005) == pytest.approx(ASK_WAIT_SHARE * 7.0)


def test_an_answer_that_comes_before_the_engine_could_begin_costs_nothing():
    assert patience_to_ask(gain_s=0.0, backlog_s=0.5, ask_s=0.3) == 0.5
    assert patience_to_ask(gain_s=0.0, backlog_s=0.5, ask_s=0.5) == 0.0


@at_leisure
@given(seconds, seconds, seconds)
def test_nobody_waits_longer_for_an_answer_than_what_it_may_save(gain_s, backlog_s, ask_s):
    assert 0 <= patience_to_ask(gain_s, backlog_s, ask_s) <= backlog_s + gain_s


# --- to wait or not ---


def test_a_load_that_will_come_soon_is_waited_for():
    assert keeps_waiting(GPU, 0, PROMPT, 0, 0.1, IDLE, wanted=8192)


def test_a_load_that_takes_longer_than_computing_what_is_missing_is_given_up():
    assert not keeps_waiting(GPU, 0, PROMPT, 0, 0.5, IDLE, wanted=8192)
    assert not keeps_waiting(GPU, 0, PROMPT, 8000, 0.1, IDLE, wanted=8192)
    assert not keeps_waiting(GPU, 0, PROMPT, 0, math.inf, Pressure(backlog_s=10.0), wanted=8192)


def test_it_is_waited_for_while_the_engine_has_other_work():
    assert keeps_waiting(GPU, 0, PROMPT, 0, 0.5, Pressure(backlog_s=0.5), wanted=8192)


def test_giving_up_is_priced():
    assert keeps_waiting(GPU, 0, PROMPT, 0, 0.5, Pressure(arrivals_per_s=4.0, busy=0.9), wanted=8192)


def test_an_engine_that_nobody_knows_waits_until_its_deadline():
    unknown = Prefill(0, 0, 0, 8192)
    assert keeps_waiting(unknown, 0, PROMPT, 0, 0.6, IDLE, wanted=4096)
    assert not keeps_waiting(unknown, 0, PROMPT, 0, 0.7, IDLE, wanted=4096)


@at_leisure
@given(prefills, pressures, st.integers(0, PROMPT), seconds, seconds)
def test_who_gives_up_would_not_wait_longer(prefill, pressure, arrived, remaining_s, more_s):
    if not keeps_waiting(prefill, 0, PROMPT, arrived, remaining_s, pressure):
        assert not keeps_waiting(prefill, 0, PROMPT, arrived, remaining_s + more_s, pressure)
