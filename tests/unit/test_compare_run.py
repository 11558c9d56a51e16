"""How compare_peers.py runs: whose turn it is, what becomes of who fails, when requests are sent; engines are made up."""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from compare import asking, run, starting
from compare.clock import Clock
from compare.contender import Contender
from compare.measures import Slice, Usage
from compare.workloads import Request, Workload
from engine import EngineError


class Fake(Contender):
    def __init__(self, name: str) -> None:
        self.name = self.title = name
        self.engine = None
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")

    def restart_node(self) -> None:
        self.done.append("restart")

    def discard(self) -> None:
        self.done.append("discard")


def workload(rounds: int, slices: int = 1) -> Workload:
    requests = [Request((1, 2)), Request((1, 2, 3), returns=True)]
    return Workload("a_made_up", "Made up", "it is", rounds, lambda _: [requests] * slices)


def slice_of(speed: float = 1.0) -> Slice:
    return Slice([0.4, 0.2], 2 / speed, 2, Usage(1.0, 1 << 20), [[7], [8]])


@dataclass
class Asked:
    """Instead of engines: who was asked, in order; `breaks` says who fails, and with what."""

    names: list[str] = field(default_factory=list)
    breaks: dict[str, Exception] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)

    def __call__(self, contender: Contender, requests: list[Request]) -> Slice:
        self.names.append(contender.name)
        if contender.name in self.breaks:
            raise self.breaks[contender.name]
        return slice_of(self.speeds.get(contender.name, 1.0))


@pytest.fixture
def asked(monkeypatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(run, "ask", found)
    return found


def run_of(*names: str) -> run.Run:
    return run.Run([Fake(name) for name in names], Clock({}))


def cells_of(made: run.Run, asked_for: Workload) -> dict[str, run.Cell]:
    return made.cells(asked_for)[0]


def test_each_slice_is_opened_by_another_contender(asked):
    run_of("recompute", "prefix", "kvtier").cells(workload(rounds=2, slices=2))
    assert [asked.names[i] for i in range(0, 12, 3)] == ["recompute", "prefix", "kvtier", "recompute"]
    assert all(sorted(asked.names[i : i + 3]) == ["kvtier", "prefix", "recompute"] for i in range(0, 12, 3))


def test_a_cell_has_a_figure_a_round_and_those_of_what_returns(asked):
    cell = cells_of(run_of("kvtier"), workload(rounds=3, slices=2))["kvtier"]
    assert cell["requests"] == 12 and cell["cpu_s"]["median"] == 2 and cell["written_mib"]["median"] == 2
    assert cell["ttft_mean_s"]["median"] == pytest.approx(0.3) and cell["ttft_return_mean_s"]["median"] == 0.2


def test_who_fails_is_told_and_started_anew_and_the_others_go_on(asked):
    asked.breaks["lmcache"] = EngineError("step: no reply in 300 s; killed\n--- the end of the log\nmore")
    made = run_of("recompute", "lmcache", "kvtier")
    cells = cells_of(made, workload(rounds=2))
    assert cells["lmcache"] == {"absent": "EngineError: step: no reply in 300 s; killed"}
    assert asked.names == ["recompute", "lmcache", "kvtier", "kvtier", "recompute"]
    assert made.contenders[1].done == ["restart"]
    assert "ttft_mean_s" in cells["kvtier"] and list(cells) == ["recompute", "lmcache", "kvtier"]


def test_who_does_not_come_back_takes_no_further_part(asked, monkeypatch):
    def refuse(self):
        raise EngineError("start: it doesn't fit")

    asked.breaks["kvtier"] = OSError("gone")
    made = run_of("recompute", "kvtier")
    monkeypatch.setattr(Fake, "restart_node", refuse)
    made.cells(workload(rounds=1))
    assert [each.name for each in made.contenders] == ["recompute"]
    assert made.absent == {"kvtier": "EngineError: start: it doesn't fit"}


def test_a_mistake_of_the_benchmark_is_not_taken_for_a_failure(asked):
    asked.breaks["kvtier"] = KeyError("mistake")
    with pytest.raises(KeyError):
        run_of("kvtier").cells(workload(rounds=1))


def test_throughput_is_a_share_of_the_faster_of_those_without_a_cache_outside(asked):
    asked.speeds = {"recompute": 1.0, "prefix": 1.25, "kvtier": 1.2}
    cells = cells_of(run_of("recompute", "prefix", "kvtier"), workload(rounds=1))
    assert {name: cell["throughput_share"]["median"] for name, cell in cells.items()} == pytest.approx(
        {"recompute": 0.8, "prefix": 1.0, "kvtier": 0.96}
    )


def test_answers_are_compared_with_those_of_who_computes_all(asked):
    cells = cells_of(run_of("recompute", "kvtier"), workload(rounds=2))
    assert cells["kvtier"]["same_text"] == [4, 4]


def test_without_time_there_are_two_rounds_and_no_more(asked):
    late = run.Run([Fake("kvtier")], Clock({"a_made_up 3": 9.0, "later": 9.0}, limit_s=10.0))
    assert late.cells(workload(rounds=3))[1] == 2 and late.clock.left() == pytest.approx(9)
    in_time = run.Run([Fake("kvtier")], Clock({"a_made_up 3": 9.0, "later": 9.0}, limit_s=20.0))
    assert in_time.cells(workload(rounds=3))[1] == 3


# --- when requests are sent ---


class FakeEngine:
    """Each step answers what was there before it, and takes so long."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.added: list[tuple[float, str]] = []
        self.waiting: list[str] = []

    def add(self, request_id: str, prompt: list[int], max_tokens: int, logprobs: int) -> None:
        self.added.append((time.monotonic(), request_id))
        self.waiting.append(request_id)

    def step(self) -> SimpleNamespace:
        time.sleep(self.step_s if self.waiting else 0)
        self.waiting, done = [], self.waiting
        return SimpleNamespace(finished=done)

    def finish(self) -> dict[str, SimpleNamespace]:
        return {request_id: SimpleNamespace(ttft=0.1, tokens=[1]) for _, request_id in self.added}


def order(engine: FakeEngine) -> list[str]:
    return [request_id for _, request_id in engine.added]


def test_one_line_asks_one_thing_after_the_other():
    engine = FakeEngine()
    asking._serve(engine, [Request((1,))] * 3)
    assert order(engine) == ["ask-0", "ask-1", "ask-2"]


def test_lines_go_side_by_side():
    engine = FakeEngine()
    answers, _ = asking._serve(engine, [Request((1,), line=0), Request((1,), line=0), Request((1,), line=1)])
    assert order(engine) == ["ask-0", "ask-2", "ask-1"] and len(answers) == 3


def test_a_gap_begins_with_the_answer_before_it():
    engine = FakeEngine(step_s=0.05)
    begun = time.monotonic()
    asking._serve(engine, [Request((1,), gap_s=0.1), Request((1,), gap_s=0.2)])
    first, second = (at for at, _ in engine.added)
    assert first - begun >= 0.1 and second - first >= 0.25


def test_who_is_due_while_the_engine_steps_has_waited():
    engine = FakeEngine(step_s=0.3)
    _, late = asking._serve(engine, [Request((1,), line=0), Request((1,), gap_s=0.1, line=1)])
    assert late[0] < 0.1 < late[1]


# --- starts, and how long all takes ---


def test_two_start_at_a_time_and_reasons_are_told():
    together = threading.Barrier(2, timeout=30)

    def action(contender: Contender) -> None:
        together.wait()
        if contender.name == "b":
            raise EngineError("no room\nmore")

    assert starting.in_pairs([Fake(name) for name in "abcd"], action) == {"b": "EngineError: no room"}


def test_what_starts_outlives_the_call_that_started_it():
    threads: list[threading.Thread] = []
    starting.in_pairs([Fake("a")], lambda _: threads.append(threading.current_thread()))
    assert threads[0].is_alive()


def test_what_is_left_is_corrected_by_how_it_went():
    clock = Clock({"one": 100.0, "two": 50.0, "three": 10.0})
    assert clock.left() == 160
    clock.took = {"one": 200.0}
    assert clock.left() == 120
