"""What a series of requests says when the daemon of a contender is killed or stands still, and what a restart is."""

import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from compare import faults, restarts
from compare.contender import CannotDo, Contender
from compare.faults import AFTER, BEFORE, DURING, FROZEN, KILLED, Asked, Plan, Series, summed_up
from engine import Answer, EngineError
from kvtierd import eventually

PLAN = Plan(before=4, during=4, after=2, pace_s=0.0, answer_s=60.0, again_s=5.0)


class FakeEngine:
    """Its answer is the prompt's first token. Of a prompt of tokens that it has seen all come from the tiers, while its
    daemon runs. Its daemon is struck within one of the requests."""

    def __init__(self, contender: "FakeContender") -> None:
        self.contender, self.timeout, self.is_alive = contender, 300.0, True

    def generate(self, prompts, max_tokens, **how):
        (prompt,) = prompts
        self.contender.asked += 1
        if self.contender.asked == self.contender.struck_in:
            eventually(lambda: not self.contender.runs)
        if not self.contender.runs and self.contender.dies:
            self.is_alive = False
        if not self.is_alive:
            raise EngineError("generate: the engine died (exit status 70)\n--- the end of its log")
        served = len(prompt) if tuple(prompt) in self.contender.seen and self.contender.runs else 0
        self.contender.seen.add(tuple(prompt))
        return [Answer(prompt[:1], [], served, served, 0.001, "length", None)]

    def alive(self):
        return self.is_alive

    def pids(self):
        return {"driver": [os.getpid()]}

    def reset(self):
        return True

    def stop(self):
        self.is_alive = False


class FakeContender(Contender):
    """With a daemon, a process that does nothing."""

    def __init__(self, name: str, dies: bool = False, keeps: bool = True) -> None:
        self.name = self.title = name
        self.dies, self.keeps, self.seen, self.daemon = dies, keeps, set(), None
        self.starts = self.asked = self.struck_in = 0
        self.start()

    @property
    def runs(self) -> bool:
        if self.daemon is None:
            return False
        return Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(") ")[2][0] not in "TZ"

    def start_engine(self):
        self.engine = FakeEngine(self)
        self.starts += 1

    def start_daemon(self):
        if self.keeps:
            self.stop_daemon()
            self.daemon = subprocess.Popen(["sleep", "60"])

    def stop_daemon(self):
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None

    def daemon_pids(self):
        return [] if self.daemon is None else [self.daemon.pid]


@pytest.fixture
def contender():
    """A function that makes one; all are stopped."""
    made = []

    def make(*arguments, **settings):
        made.append(FakeContender(*arguments, **settings))
        return made[-1]

    yield make
    for each in made:
        each.stop()


@pytest.fixture
def take():
    numbers = iter(range(1, 1000))
    return lambda tokens: (next(numbers),) * tokens


def prompts(first: int, count: int) -> list[tuple[int, ...]]:
    return [(first + i,) * 10 for i in range(count)]


def series(of: FakeContender, plan: Plan = PLAN) -> Series:
    kept = [(prompt, [prompt[0]]) for prompt in prompts(1, 3)]
    of.seen |= {prompt for prompt, _ in kept}
    of.struck_in = of.asked + plan.before + 1
    return Series(of, plan, kept, prompts(100, 5))


# --- what happens to a daemon --------------------------------------------------------------------------------


def test_a_daemon_is_gone_when_it_was_killed_and_runs_when_it_is_started_again(contender):
    one = contender("one")
    KILLED.strike(one)
    assert not one.runs
    KILLED.end(one)
    assert one.runs


def test_a_daemon_stands_still_until_it_is_thawed(contender):
    one = contender("one")
    FROZEN.strike(one)
    assert Path(f"/proc/{one.daemon.pid}/stat").read_text().rpartition(") ")[2][0] == "T"
    FROZEN.end(one)
    assert one.runs


# --- a series ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [KILLED, FROZEN])
def test_who_goes_on_without_its_daemon_has_lost_nothing_but_time(contender, fault):
    found = series(contender("one")).run(fault)
    assert [found[phase]["requests"] for phase in (BEFORE, DURING, AFTER)] == [4, 4, 3]
    assert [found[phase]["served"] for phase in (BEFORE, DURING, AFTER)] == [[2, 2], [0, 2], [2, 2]]
    assert found["failed"] == found["not_asked"] == 0 and found["failures"] == [] and found["engine_lived"]
    assert found["same_text"] == [6, 6] and found["requests"] == 11
    assert 0 < found["served_again_after_s"] < faults.FULL.again_s


def test_an_engine_that_dies_with_its_daemon_is_started_anew_and_asked_on(contender):
    one = contender("one", dies=True)
    found = series(one).run(KILLED)
    assert not found["engine_lived"] and one.starts == 2 and one.engine.timeout == 300.0
    assert found["failed"] == 1 == found["during"]["requests"]
    assert found["failures"] == ["EngineError: generate: the engine died (exit status 70)"]
    assert found["not_asked"] == 3 and found["cpu_s"] is found["ttft_p50_s"] is None
    assert found["after"]["served"] == [2, 2] and found["served_again_after_s"] > 0


def test_who_has_no_answer_in_time_is_recorded_with_the_time_that_was_waited(contender):
    one = contender("one", dies=True)
    asked = series(one, Plan(2, 2, 2, pace_s=0.0, answer_s=0.0, again_s=5.0))
    found = asked.run(FROZEN)
    assert found["failures"] == ["no answer in 0 s"]
    assert found["during"]["ttft_s"]["max"] == asked.asked[2].seconds > 0


def test_requests_start_at_a_steady_pace(contender):
    asked = series(contender("one"), Plan(4, 2, 2, pace_s=0.05, answer_s=60.0, again_s=5.0))
    asked.run(KILLED)
    begun = [each.begun_s for each in asked.asked if each.phase != AFTER]
    assert all(0.05 * (i + 1) <= at for i, at in enumerate(begun)) and len(begun) == 6


def test_who_does_not_serve_again_is_given_up(contender):
    one = contender("one")
    asked = series(one, Plan(2, 2, 2, pace_s=0.0, answer_s=60.0, again_s=0.05))
    one.start_daemon = lambda: None
    begun = time.monotonic()
    found = asked.run(KILLED)
    assert found["served_again_after_s"] is None and found["engine_lived"] and time.monotonic() - begun >= 0.05


def test_all_contenders_are_asked_the_same_and_who_has_no_daemon_says_so(contender, take, monkeypatch):
    monkeypatch.setattr(faults, "QUICK", PLAN)
    one, other, without = contender("one"), contender("other"), contender("without", keeps=False)
    found = faults.cells([one, other, without], take, quick=True, say=lambda text: None)
    assert found["h_daemon_killed"]["without"] == found["h_daemon_frozen"]["without"] == {"absent": faults.NO_DAEMON}
    assert found["h_daemon_killed"]["one"]["same_text"] == found["h_daemon_frozen"]["other"]["same_text"] == [6, 6]
    assert one.seen == other.seen and len(one.seen) == faults.KEPT + 10 and without.seen == set()


# --- how it is summed up -------------------------------------------------------------------------------------


def test_the_longest_is_of_what_was_asked_from_the_fault_on():
    asked = [
        Asked(BEFORE, 0.0, 9.0, 8.0, served=5, is_same=True),
        Asked(DURING, 10.0, 3.0, 2.0, is_same=True),
        Asked(DURING, 13.0, 60.0, 60.0, failure="no answer in 60 s"),
        Asked(AFTER, 75.0, 1.0, 0.5, is_same=False),
        Asked(AFTER, 76.0, 0.4, 0.25, served=5, is_same=True),
        Asked(AFTER, 77.0, 0.4, 0.25, served=5, is_same=True),
    ]
    found = summed_up(asked, over_s=74.0)
    assert found["longest_before_s"] == 9.0 and found["longest_s"] == 60.0
    assert found["failed"] == 1 and found["failures"] == ["no answer in 60 s"]
    assert found["served_again_after_s"] == 2.25
    assert found["before"] == {"requests": 1, "ttft_s": {"median": 8.0, "min": 8.0, "max": 8.0}, "served": [1, 1]}
    assert found["during"] == {"requests": 2, "ttft_s": {"median": 31.0, "min": 2.0, "max": 60.0}, "served": [0, 1]}
    assert found["after"]["served"] == [2, 3]


def test_a_series_that_ended_early_has_no_figures_for_what_was_not_asked():
    found = summed_up([Asked(DURING, 1.0, 2.0, 2.0, failure="gone")], over_s=3.0)
    assert found["longest_before_s"] is None and found["served_again_after_s"] is None
    assert found["before"] == {"requests": 0, "ttft_s": None, "served": [0, 0]}


# --- restarts ------------------------------------------------------------------------------------------------


def test_conversations_come_back_to_a_new_engine_and_to_a_new_daemon(contender, take):
    one, without = contender("one"), contender("without", keeps=False)
    daemon = one.daemon_pids()
    found = restarts.cells([one, without], take, quick=False, say=lambda text: None)
    of_engine, of_node = found["e_engine_restart"], found["f_node_restart"]
    assert of_engine["one"]["served_tokens"] == of_node["one"]["served_tokens"] == 1.0
    assert of_engine["without"]["served_tokens"] == 0.0 and of_node["without"] == of_engine["without"]
    assert of_engine["one"]["same_text"] == of_engine["without"]["same_text"] == [5, 5]
    assert one.starts == 3 and without.starts == 2 and one.daemon_pids() != daemon
    assert of_engine["one"]["first_token_after_s"] == of_engine["one"]["restart_s"] + 0.001


def test_who_cannot_restart_is_recorded_with_the_reason_and_keeps_nobody_else(contender, take):
    one, other = contender("one"), contender("other")

    def refuse() -> None:
        raise CannotDo("it won't")

    one.start_daemon = refuse
    found = restarts.cells([one, other], take, quick=True, say=lambda text: None)["f_node_restart"]
    assert found["one"] == {"absent": "CannotDo: it won't"} and found["other"]["same_text"] == [3, 3]


def test_the_share_is_of_all_tokens_of_the_prompts():
    answers = [SimpleNamespace(external_tokens=768), SimpleNamespace(external_tokens=None)]
    assert restarts.served(answers, [(1,) * 1000, (1,) * 1000]) == 0.384
