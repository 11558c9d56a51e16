"""An engine beside two CudaCopiers on the fake driver (stress.cpp): no byte differs and nothing leaks, whatever the
delays and the errors; and every bug that is planted is found, or all that would mean nothing."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_cuda import build

SEEDS, SEEDS_WITH_ERRORS = 1000, 160  # in test-long ten thousand more
PROCESSES = 4  # their threads sleep more than they work
SEEDS_FOR_A_PLANT = 200  # the first or second seed shows most of them
BYTES = "bytes of a |bytes that the engine read|(copy|kernel) touches freed memory"
LEAK = "live_(streams|events)"
FAILURE = "a job failed|seconds of a completion"

PLANTS = {
    # what a buggy backend would not have called, or elsewhere
    "wait_event_ignored": BYTES,
    "only_first_wait_counts": BYTES,
    "wait_takes_former_record": BYTES,
    "after_recorded_on_own_stream": BYTES,
    "done_event_recorded_early": BYTES,
    "query_says_done": f"{BYTES}|{FAILURE}",  # a job that is not over has no time, which is an error
    "copies_on_a_second_stream": BYTES,
    "source_read_at_the_call": BYTES,
    "event_handed_out_twice": f"{BYTES}|{FAILURE}",
    "batch_does_all_but_the_last": BYTES,
    "kernel_does_all_but_the_last": BYTES,
    "errors_ignored": BYTES,
    "destroy_forgotten": LEAK,
    # what a buggy caller would do
    "slot_freed_on_deadline": BYTES,
    "page_freed_at_submit": BYTES,
    "page_loaded_before_zeroing": BYTES,
}


@dataclass
class Outcome:
    """Of one run: what it counted, by name, and what it said."""

    status: int
    said: str
    counts: dict[str, int] = field(default_factory=dict)


def start(program: Path, library: Path, first: int, seeds: int, *words: str) -> subprocess.Popen[str]:
    command = [program, library, str(first), str(seeds), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome_of(process: subprocess.Popen[str]) -> Outcome:
    try:
        printed, said = process.communicate(timeout=250)
    finally:
        process.kill()
    counts = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", printed)}
    return Outcome(process.returncode, said, counts)


def run(program: Path, library: Path, first: int, seeds: int, *words: str) -> Outcome:
    return outcome_of(start(program, library, first, seeds, *words))


def assert_clean(outcomes: list[Outcome], seeds: int) -> None:
    assert [(outcome.status, outcome.said) for outcome in outcomes] == [(0, "")] * len(outcomes)
    total = {name: sum(outcome.counts[name] for outcome in outcomes) for name in outcomes[0].counts}
    assert (total["seeds"], total["differing"], total["leaks"], total["wrong"]) == (seeds, 0, 0, 0)
    assert total["jobs"] > 5 * seeds


def run_side_by_side(program: Path, library: Path, first: int, seeds: int, *words: str) -> list[Outcome]:
    each = seeds // PROCESSES
    running = [start(program, library, first + i * each, each, *words) for i in range(PROCESSES)]
    return [outcome_of(process) for process in running]


def test_in_a_thousand_seeds_no_byte_differs_and_nothing_leaks(stress_program, library):
    outcomes = run_side_by_side(stress_program(), library, 1, SEEDS)
    assert_clean(outcomes, SEEDS)
    assert [outcome.counts["failed"] for outcome in outcomes] == [0] * PROCESSES


def test_whatever_fails_says_so_and_the_rest_is_right(stress_program, library):
    outcomes = run_side_by_side(stress_program(), library, 1, SEEDS_WITH_ERRORS, "errors")
    assert_clean(outcomes, SEEDS_WITH_ERRORS)
    assert sum(outcome.counts["failed"] for outcome in outcomes) > SEEDS_WITH_ERRORS // 2


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(stress_program, library, plant):
    words = ["errors"] if plant == "errors_ignored" else []
    outcome = run(stress_program(), library, 1, SEEDS_FOR_A_PLANT, *words, plant)
    assert outcome.status in (1, -6), outcome.said  # -6: memory was gone when a copy came to it
    assert re.search(PLANTS[plant], outcome.said), outcome.said


def that_could_run(outcomes: list[Outcome]) -> list[Outcome]:
    if any("unexpected memory mapping" in outcome.said for outcome in outcomes):
        pytest.skip("this kernel lays out memory as ThreadSanitizer can't use it")
    return outcomes


@pytest.mark.parametrize("sanitize", [build.ADDRESS, build.THREAD])
def test_sanitizers_have_nothing_to_say(stress_program, library, sanitize):
    program = stress_program(sanitize)
    running = [start(program, library, 1, 60), start(program, library, 501, 60, "errors")]
    assert_clean(that_could_run([outcome_of(process) for process in running]), 120)


@pytest.mark.long
def test_in_ten_thousand_more_no_byte_differs_and_nothing_leaks(stress_program, library):
    assert_clean(run_side_by_side(stress_program(), library, 10_001, 10_000), 10_000)
    assert_clean(run_side_by_side(stress_program(), library, 20_001, 2000, "errors"), 2000)


@pytest.mark.long
@pytest.mark.parametrize("sanitize", [build.ADDRESS, build.THREAD])
def test_sanitizers_have_nothing_to_say_of_the_fake_either(stress_program, sanitize):
    program, library = stress_program(sanitize), build.library(sanitize=sanitize)
    running = [start(program, library, 1001, 200), start(program, library, 1501, 200, "errors")]
    assert_clean(that_could_run([outcome_of(process) for process in running]), 400)
