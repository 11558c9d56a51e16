"""What the connector learns of its engine's speed and business. No engine runs here: steps are what the test says."""

import random
import statistics
import time
from types import SimpleNamespace

import pytest

pace = pytest.importorskip("kvtier.connectors.vllm.pace", reason="the connector is not installed")

CHUNK = 512
STEP_S, TOKEN_S, PAIR_S = 4e-3, 50e-6, 2e-9


class FakeEngine:
    """A first-come-first-served scheduler that computes as fast as the constants above say."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pace = pace.Pace(CHUNK)
        self.requests: dict[str, SimpleNamespace] = {}
        self.outcomes: dict[str, dict[str, int]] = {}

    def arrive(self, req_id: str, prompt: int, resident: int = 0) -> float:
        self.requests[req_id] = SimpleNamespace(num_prompt_tokens=prompt, num_computed_tokens=resident)
        return self.pace.arrive(req_id, self.requests[req_id], resident, self.now)

    def decode(self, req_id: str) -> None:
        self.requests[req_id] = SimpleNamespace(num_prompt_tokens=1, num_computed_tokens=1)

    def step(self, drafts: int = 0) -> None:
        room, scheduled, seconds = CHUNK, {}, STEP_S
        for req_id, request in self.requests.items():
            left = request.num_prompt_tokens - request.num_computed_tokens
            tokens = min(room, left) if left > 0 else 1 + drafts
            if tokens:
                start, end = request.num_computed_tokens, request.num_computed_tokens + tokens
                scheduled[req_id] = tokens
                room -= tokens
                seconds += TOKEN_S * tokens + PAIR_S * (end**2 - start**2) if left > 0 else 0.0
        self.begin(scheduled, drafts)
        for req_id, tokens in scheduled.items():
            self.requests[req_id].num_computed_tokens += tokens
        self.now += seconds
        self.end()

    def begin(self, scheduled: dict[str, int], drafts: int = 0) -> None:
        output = SimpleNamespace(
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            scheduled_spec_decode_tokens={req_id: [0] * drafts for req_id in scheduled if drafts},
            has_sync_kv_loads=False,
        )
        self.pace.begin(output, self.now)

    def end(self) -> None:
        for req_id, counts in self.pace.end(self.now):
            assert req_id not in self.outcomes, "told once"
            self.outcomes[req_id] = counts

    def run(self, req_id: str) -> dict[str, int]:
        while req_id not in self.outcomes:
            self.step()
        del self.requests[req_id]
        return self.outcomes[req_id]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def learnt(engine) -> FakeEngine:
    """After some dozen prompts of many lengths, with pauses between them."""
    chance = random.Random(1)
    for i in range(40):
        engine.arrive(f"teacher {i}", chance.randrange(20, 5000))
        engine.run(f"teacher {i}")
        engine.now += chance.expovariate(1.0)
        engine.step()  # an empty one
    engine.pace.counts(engine.now)
    return engine


def test_the_prefill_model_is_the_engines_whatever_pauses_there_are(learnt):
    model = learnt.pace._model
    assert model.is_calibrated
    for start, end in [(0, 512), (0, 4000), (3000, 4000), (10, 100)]:
        true = STEP_S * -(-(end - start) // CHUNK) + TOKEN_S * (end - start) + PAIR_S * (end**2 - start**2)
        assert model.seconds(start, end) == pytest.approx(true, rel=0.1)


def test_the_first_steps_are_not_learnt_from(engine):
    for i in range(pace.WARM_UP_STEPS):
        engine.arrive(f"cold {i}", 100)
        engine.now += 30  # a compiler was called
        engine.run(f"cold {i}")
    assert engine.pace.counts(engine.now)["steps"] == 0


def test_steps_scheduled_ahead_take_from_the_end_of_the_one_before(learnt, monkeypatch):
    took = []
    monkeypatch.setattr(learnt.pace._fit, "observe", lambda new, pairs, seconds, decodes: took.append(seconds))
    learnt.arrive("ahead", 2 * CHUNK)
    learnt.begin({"ahead": CHUNK})
    learnt.requests["ahead"].num_computed_tokens = CHUNK
    learnt.now += 0.01
    learnt.begin({"ahead": CHUNK})  # before the first one's output
    learnt.now += 0.09
    learnt.end()
    assert not learnt.outcomes.get("ahead")
    learnt.now += 0.1
    learnt.end()
    assert took == pytest.approx([0.1, 0.1])
    assert learnt.outcomes["ahead"]["prefill_us"] == pytest.approx(200_000)


def test_what_is_ahead_of_a_request_is_what_those_before_it_have_left(learnt):
    assert learnt.arrive("first", 4096) == pytest.approx(0, abs=1e-9)
    ahead = learnt.arrive("second", 4096, resident=2048)
    assert ahead == pytest.approx(learnt.pace._model.seconds(0, 4096), rel=0.01)
    learnt.step()
    rest = learnt.pace._model.seconds(CHUNK, 4096) + learnt.pace._model.seconds(2048, 4096)
    assert learnt.arrive("third", 10) == pytest.approx(rest, rel=0.05)


def test_what_is_loaded_resident_or_gone_is_no_work(learnt):
    for name in ("loaded", "resident", "gone"):
        learnt.arrive(name, 4096)
    learnt.pace.load_ordered("loaded", 4096, learnt.now)
    learnt.pace.resident("resident", 4096)
    learnt.pace.leave("gone")
    learnt.pace.leave("never there")
    assert learnt.pace.backlog_s == pytest.approx(0, abs=1e-9)


def test_a_load_that_failed_is_work_again(learnt):
    learnt.arrive("unlucky", 4096)
    before = learnt.pace.backlog_s
    learnt.pace.load_ordered("unlucky", 4000, learnt.now)
    learnt.pace.resident("unlucky", 0)
    assert learnt.pace.backlog_s == pytest.approx(before)


def test_the_outcome_says_where_the_time_and_the_tokens_went(learnt):
    learnt.arrive("request", 2000)
    learnt.now += 0.5  # in the queue
    learnt.pace.resident("request", 512)
    learnt.pace.load_ordered("request", 1024, learnt.now)
    learnt.now += 0.2
    learnt.pace.loaded("request", 0.19)
    learnt.requests["request"].num_computed_tokens = 512 + 1024
    said = learnt.run("request")
    assert said["wait_us"] == 500_000
    assert said["load_us"] == 190_000
    assert said["ttft_us"] == 700_000 + said["prefill_us"]
    assert (said["prompt_tokens"], said["resident_tokens"]) == (2000, 512)
    assert (said["loaded_tokens"], said["computed_tokens"]) == (1024, 464)


def test_a_preempted_request_is_told_of_when_its_prompt_is_computed_and_never_again(learnt):
    learnt.arrive("victim", 2000)
    learnt.step()
    learnt.pace.resident("victim", 0)  # preempted, vLLM looks again
    learnt.requests["victim"].num_computed_tokens = 0
    assert learnt.run("victim")["computed_tokens"] == 2000
    learnt.requests["victim"] = SimpleNamespace(num_prompt_tokens=2000, num_computed_tokens=0)
    for _ in range(6):
        learnt.step()
    assert learnt.pace.backlog_s == pytest.approx(0, abs=1e-9)


def test_recomputed_answers_and_drafts_are_not_taken_for_prefill(learnt):
    steps = learnt.pace.counts(learnt.now)["steps"]
    learnt.requests["resumed"] = SimpleNamespace(num_prompt_tokens=2000, num_computed_tokens=0)
    learnt.arrive("beside it", 100)
    learnt.begin({"resumed": 400, "beside it": 50})
    learnt.now += 1
    learnt.end()
    assert learnt.pace.counts(learnt.now)["steps"] == steps
    learnt.begin({"resumed": 4, "beside it": 50}, drafts=3)
    assert not learnt.pace._steps[-1].is_plain  # prompts have no drafts: this output contradicts itself
    learnt.end()


def test_arrivals_and_business_are_rates_from_the_start_and_fade(engine):
    for i in range(200):
        engine.arrive(f"request {i}", 1000)
        engine.run(f"request {i}")
        engine.now += 0.1
    counts = engine.pace.counts(engine.now)
    one = 2 * STEP_S + TOKEN_S * 1000 + PAIR_S * 1000**2
    assert counts["arrivals_mhz"] == pytest.approx(1e3 / (one + 0.1), rel=0.1)
    assert counts["busy_permille"] == pytest.approx(1e3 * one / (one + 0.1), rel=0.1)
    engine.now += 3 * pace.MEMORY_S
    assert engine.pace.counts(engine.now)["arrivals_mhz"] < 0.1 * counts["arrivals_mhz"]


def test_outputs_that_never_come_are_forgotten(engine):
    for _ in range(100):
        engine.begin({})
    assert len(engine.pace._steps) <= pace.STEPS_AHEAD_MAX


def test_a_step_costs_little_however_many_requests_decode_or_wait(learnt, e2e_report):
    for i in range(256):
        learnt.decode(f"decoding {i}")
    for i in range(1000):
        learnt.pace.arrive(f"waiting {i}", SimpleNamespace(num_prompt_tokens=1000, num_computed_tokens=0), 0, learnt.now)
    scheduled = {f"decoding {i}": 1 for i in range(256)}
    output = SimpleNamespace(
        num_scheduled_tokens=scheduled,
        total_num_scheduled_tokens=256,
        scheduled_spec_decode_tokens={},
        has_sync_kv_loads=False,
    )
    took = []
    for _ in range(300):
        begun = time.perf_counter()
        learnt.pace.begin(output, learnt.now)
        learnt.pace.end(learnt.now + 0.02)
        took.append(time.perf_counter() - begun)
    median = statistics.median(took)
    e2e_report(f"pace: a step of 256 decodes beside 1000 waiting takes {median * 1e6:.1f} us")
    assert median < 1e-3  # 30 us is the aim
