"""What is learnt from what happens: an engine's prefill, a tier's way."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.cost import Candidate, Pressure, choose
from kvtier.estimators import Link, Prefill, PrefillFit

at_leisure = settings(deadline=None)  # the machine may be busy

MIB = 1024**2
GPU = Prefill(8e-3, 25.7e-6, 0.589e-9, 8192, steps=1000)  # Llama-3-8B on an H100
PROMPT = 20_000


# --- prefill ---


def taught(fit: PrefillFit, true: Prefill, steps: int, seed: int = 0, noise: float = 0.05) -> None:
    """Steps of all kinds."""
    numbers = random.Random(seed)
    for _ in range(steps):
        start, new = numbers.choice([0, 0, 8192, 24_576]), numbers.randrange(64, 8192)
        decodes = numbers.randrange(0, 32)
        took = true.seconds(start, start + new) * math.exp(numbers.gauss(0, noise))
        fit.observe(new, (start + new) ** 2 - start**2, took, decodes)
        fit.observe(0, 0, true.step_s * math.exp(numbers.gauss(0, noise)), decodes)


def error(learnt: Prefill, true: Prefill) -> float:
    """The largest relative one, over prompts of usual lengths."""
    ends = [(0, 1024), (0, 8192), (0, 32_768), (8192, 16_384)]
    return max(abs(learnt.seconds(*pair) / true.seconds(*pair) - 1) for pair in ends)


@pytest.mark.parametrize("slower", [0.2, 1, 50])
def test_an_engine_is_learnt_from_its_steps(slower):
    true = replace(GPU, step_s=GPU.step_s * slower, token_s=GPU.token_s * slower, pair_s=GPU.pair_s * slower)
    fit = PrefillFit(8192)
    assert not fit.model().is_calibrated
    taught(fit, true, 60)
    assert fit.model().is_calibrated
    assert error(fit.model(), true) < 0.1


def test_an_engine_that_becomes_twice_as_slow_is_known_after_ten_steps():
    fit = PrefillFit(8192)
    taught(fit, GPU, 100)
    slow = replace(GPU, step_s=2 * GPU.step_s, token_s=2 * GPU.token_s, pair_s=2 * GPU.pair_s)
    taught(fit, slow, 9, seed=1)
    assert error(fit.model(), slow) < 0.2


def test_a_step_that_took_forever_says_little():
    fit = PrefillFit(8192)
    taught(fit, GPU, 100)
    fit.observe(4096, 4096**2, 60.0)
    taught(fit, GPU, 20, seed=1)
    assert error(fit.model(), GPU) < 0.1


def test_what_was_learnt_before_is_believed_from_the_first_request():
    fit = PrefillFit(8192, prior=GPU)
    assert fit.model().is_calibrated
    assert error(fit.model(), GPU) < 1e-6


@at_leisure
@given(
    st.lists(
        st.tuples(st.integers(0, 10**5), st.integers(0, 10**11), st.floats(allow_nan=True), st.integers(0, 999)),
        max_size=40,
    )
)
def test_whatever_the_steps_were_no_coefficient_is_negative(steps):
    fit = PrefillFit(8192)
    for step in steps:
        fit.observe(*step)
    model = fit.model()
    assert min(model.step_s, model.token_s, model.pair_s) >= 0
    assert all(math.isfinite(c) for c in (model.step_s, model.token_s, model.pair_s))


def test_each_chunk_is_a_step():
    assert GPU.seconds(0, 8193) - GPU.seconds(0, 8192) > GPU.step_s
    assert GPU.seconds(0, 8192) - GPU.seconds(0, 8191) < GPU.step_s
    assert GPU.seconds(8192, 8192) == 0


def test_a_prefill_goes_over_the_wire():
    assert error(Prefill.from_counts(GPU.to_counts()), GPU) < 1e-3


odd_counts = st.dictionaries(
    st.sampled_from(["step_ns", "token_ps", "pair_fs", "chunk_tokens", "steps", "latency_us", "bytes_per_s"]),
    st.one_of(st.integers(), st.floats(), st.none(), st.text(), st.lists(st.integers())),
)


@at_leisure
@given(odd_counts)
def test_odd_counts_of_the_wire_hurt_nobody(counts):
    prefill = Prefill.from_counts(counts)
    assert 0 <= prefill.seconds(0, PROMPT) < math.inf
    choose(prefill, 0, PROMPT, [Candidate(8192, 0.1, "nvme")], Pressure())[0].as_counts()
    assert Prefill.from_counts(prefill.to_counts()).to_counts() == prefill.to_counts()
    link = Link.from_counts(counts)
    assert 0 < link.seconds(MIB) < math.inf
    PrefillFit(prefill.chunk_tokens, prior=prefill).observe(512, 512**2, 0.02)


# --- a link ---


class Tier:
    """A true tier: one transfer after the other."""

    def __init__(self, link: Link, latency_s: float, bytes_per_s: float) -> None:
        self.link, self.latency_s, self.bytes_per_s, self.now = link, latency_s, bytes_per_s, 0.0

    def transfer(self, n: int) -> None:
        self.link.ask(n, self.now)
        self.now += self.latency_s + n / self.bytes_per_s
        self.link.done(n, self.now)
        self.now += 0.01

    def burst(self, n: int, times: int) -> None:
        """Side by side: all come at the end."""
        for _ in range(times):
            self.link.ask(n, self.now)
        self.now += self.latency_s + n * times / self.bytes_per_s
        for _ in range(times):
            self.link.done(n, self.now)
        self.now += 0.01

    @property
    def off_by(self) -> float:
        n = 64 * MIB
        return self.link.seconds(n) / (self.latency_s + n / self.bytes_per_s)


@pytest.mark.parametrize("change", [10, 3, 1 / 3, 1 / 10])
def test_a_tier_of_another_speed_is_known_after_less_than_ten_transfers(change):
    tier = Tier(Link(0.001, 7e9), 0.001, 7e9)
    for _ in range(30):
        tier.transfer(64 * MIB)
    assert tier.off_by == pytest.approx(1, rel=0.05)
    tier.bytes_per_s /= change
    tier.latency_s *= change
    for _ in range(9):
        tier.transfer(64 * MIB)
    assert tier.off_by == pytest.approx(1, rel=0.25)


def test_completions_that_come_in_bursts_are_right_on_the_whole():
    tier = Tier(Link(0.001, 1e9), 0.001, 7e9)
    for _ in range(20):
        tier.burst(2 * MIB, 32)
    assert tier.off_by == pytest.approx(1, rel=0.25)


def test_latency_is_told_from_bandwidth():
    tier = Tier(Link(0.001, 7e9), 0.05, 1e9)
    for i in range(200):
        tier.transfer((1 + i % 64) * MIB)
    assert tier.link.latency_s == pytest.approx(0.05, rel=0.3)
    assert tier.link.bytes_per_s == pytest.approx(1e9, rel=0.3)


def test_the_queue_is_in_front_of_what_is_asked():
    link = Link(0.0, 1e9)
    link.ask(500_000_000, 0.0)
    assert link.seconds(500_000_000) == pytest.approx(1.0, rel=0.01)
    assert link.seconds(500_000_000, ahead=0) == pytest.approx(0.5, rel=0.01)


def test_a_slow_phase_that_nobody_sees_the_end_of_fades():
    tier = Tier(Link(0.001, 7e9), 0.001, 7e9)
    for _ in range(30):
        tier.transfer(64 * MIB)
    usual = tier.link.seconds(64 * MIB, now=tier.now)
    tier.bytes_per_s /= 10
    for _ in range(5):
        tier.transfer(64 * MIB)
    assert tier.link.seconds(64 * MIB, now=tier.now) > 5 * usual
    assert tier.link.seconds(64 * MIB, now=tier.now + 60) < 3 * usual


def test_a_link_that_went_silent_is_stuck_and_looks_slower_every_moment():
    tier = Tier(Link(0.001, 1e9), 0.001, 1e9)
    tier.transfer(64 * MIB)
    link, asked_at = tier.link, tier.now
    link.ask(MIB, asked_at)
    assert link.silent_s(asked_at + 0.2) == pytest.approx(0.2) and link.silent_s(asked_at + 0.2) < link.stall_limit_s()
    assert link.silent_s(asked_at + 2) > link.stall_limit_s()
    assert link.seconds(MIB, now=asked_at + 0.2) == pytest.approx(link.seconds(MIB))
    assert link.seconds(MIB, now=asked_at + 4) > link.seconds(MIB, now=asked_at + 2) > 10 * link.seconds(MIB)


def test_what_is_stuck_does_not_make_the_others_look_slow():
    tier = Tier(Link(0.001, 7e9), 0.001, 7e9)
    for _ in range(30):
        tier.transfer(64 * MIB)
    tier.link.ask(64 * MIB, tier.now)  # never comes
    tier.now += 5.0
    tier.transfer(64 * MIB)
    tier.link.drop(64 * MIB, tier.now)
    assert tier.off_by < 1.5


def test_an_idle_link_is_not_silent():
    link = Link(0.001, 1e9)
    assert link.silent_s(100.0) == 0
    link.ask(MIB, 100.0)
    link.drop(MIB, 100.1)
    assert link.silent_s(200.0) == 0


def test_a_stall_does_not_make_the_next_one_look_usual():
    link = Link(0.001, 1e9)
    link.ask(MIB, 0.0)
    link.done(MIB, 60.0)
    assert link.stall_limit_s() < 60


def test_a_link_whose_queue_is_not_ours_learns_from_whole_transfers():
    link = Link(0.001, 1e9)
    for i in range(100):
        link.observe((1 + i % 8) * 64 * MIB, 0.02 + (1 + i % 8) * 64 * MIB / 50e9)
    assert link.seconds(256 * MIB) == pytest.approx(0.02 + 256 * MIB / 50e9, rel=0.1)
    assert link.queued_bytes == 0


@at_leisure
@given(st.lists(st.tuples(st.sampled_from(["ask", "done", "drop"]), st.integers(1, 2**34), st.floats(0, 10))))
def test_the_queue_is_counted_exactly(orders):
    link, queued, now = Link(0.001, 1e9), 0, 0.0
    for what, n, later in orders:
        now += later
        n = min(n, queued) if what != "ask" else n
        queued += n if what == "ask" else -n
        getattr(link, what)(n, now)
        assert link.queued_bytes == queued
        assert 0 <= link.seconds(MIB, now=now) < math.inf
        assert 0 <= link.silent_s(now) <= now and 0 < link.stall_limit_s() < math.inf


def test_more_is_never_done_than_was_asked_for():
    link = Link(0.001, 1e9)
    link.ask(100, 0.0)
    link.done(1000, 1.0)
    assert link.queued_bytes == 0
    link.done(1, 2.0)
    link.drop(1, 2.0)
    assert link.queued_bytes == 0


def test_a_link_is_not_believed_to_carry_much_more_than_it_did():
    """All loads are of one length, so that no latency can be told from it."""
    link = Link(0.002, 2e9)
    assert link.delivered_per_s == link.bytes_per_s
    for _ in range(300):
        link.observe(8 * 2**20, 1e-4 + 8 * 2**20 / 12e9)
    assert link.delivered_per_s <= 1.3 * 12e9
