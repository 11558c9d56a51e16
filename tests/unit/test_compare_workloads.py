"""What compare_peers.py asks of all contenders: sizes, what returns and what is shared, and that nothing else is."""

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from compare import workloads
from compare.contender import Rig
from compare.texts import Library, OutOfText
from compare.workloads import Request, Tokens

BLOCK, RAM_BLOCKS = 128, Rig.ram_blocks


def fresh() -> workloads.Take:
    """Texts without a common token."""
    numbers = itertools.count()
    return lambda count: tuple(itertools.islice(numbers, count))


def run(take: workloads.Take | None = None, quick: bool = False) -> dict[str, workloads.Workload]:
    return {each.name: each for each in workloads.of_a_run(take or fresh(), RAM_BLOCKS * BLOCK, quick)}


def requests_of(workload: workloads.Workload, number: int = 0) -> list[Request]:
    return [request for part in workload.slices(number) for request in part]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def blocks_of(prompts: Sequence[Tokens]) -> set[Tokens]:
    """All whole blocks, each known by the prompt up to its end."""
    return {prompt[:end] for prompt in prompts for end in range(BLOCK, len(prompt) + 1, BLOCK)}


def test_the_same_texts_make_the_same_requests():
    one, other = run(), run()
    for name in one:
        assert one[name].slices(0) == other[name].slices(0)


def test_a_round_has_nothing_of_a_former_one():
    for quick in (False, True):
        for workload in run(quick=quick).values():
            rounds = [{token for request in requests_of(workload, n) for token in request.prompt} for n in range(3)]
            assert not rounds[0] & rounds[1] and not (rounds[0] | rounds[1]) & rounds[2]


def test_a_quick_run_has_the_same_workloads_and_asks_less():
    full, quick = run(), run(quick=True)
    assert list(full) == list(quick)
    for name in full:
        assert 0 < len(requests_of(quick[name])) < len(requests_of(full[name]))
        assert quick[name].rounds < full[name].rounds


def test_rounds_can_be_given():
    made = workloads.of_a_run(fresh(), RAM_BLOCKS * BLOCK, quick=False, rounds=7)
    assert {each.rounds for each in made} == {7}


def test_all_answers_are_short_and_all_prompts_fit_the_model():
    for workload in run().values():
        assert all(request.max_tokens == 4 and len(request.prompt) + 4 <= 8192 for request in requests_of(workload))


# --- (a) ---


def test_each_of_twenty_sessions_asks_three_times_and_always_after_all_others():
    slices = run()["a_multi_round_qa"].slices(0)
    assert [len(part) for part in slices] == [20, 20, 20]
    for first, second, third in zip(*slices):
        assert len(first.prompt) < len(second.prompt) < len(third.prompt)
        assert second.prompt[: len(first.prompt)] == first.prompt and third.prompt[: len(second.prompt)] == second.prompt
    assert [[request.returns for request in part] for part in slices] == [[False] * 20, [True] * 20, [True] * 20]


def test_sessions_have_nothing_in_common():
    first = [set(request.prompt) for request in run()["a_multi_round_qa"].slices(0)[-1]]
    assert all(not a & b for a, b in itertools.combinations(first, 2))


def test_ram_holds_a_third_of_what_the_sessions_have():
    workload = run()["a_multi_round_qa"]
    held = len(blocks_of([request.prompt for request in workload.slices(0)[-1]]))
    assert RAM_BLOCKS / held == pytest.approx(1 / 3, abs=0.02)
    assert "33%" in workload.what


# --- (b) ---


def by_line(requests: Sequence[Request]) -> Iterator[list[Request]]:
    for line in sorted({request.line for request in requests}):
        yield [request for request in requests if request.line == line]


def test_an_agents_prompt_goes_on_where_its_former_one_ended():
    agents = list(by_line(requests_of(run()["b_agent_loop"])))
    assert [len(agent) for agent in agents] == [6] * 5
    for agent in agents:
        assert [request.returns for request in agent] == [False] + [True] * 5
        for before, after in itertools.pairwise(agent):
            assert after.prompt[: len(before.prompt)] == before.prompt and len(after.prompt) >= len(before.prompt)


def test_lengths_and_gaps_of_agents_are_the_traces():
    requests = requests_of(run()["b_agent_loop"])
    firsts = [len(request.prompt) for request in requests if not request.returns]
    assert min(firsts) >= 1270 / 2 and max(firsts) <= 3148 / 2 and sorted(firsts)[2] == pytest.approx(1533 / 2, rel=0.15)
    gaps = sorted(request.gap_s for request in requests)
    assert 0.5 <= gaps[0] < 0.71 and 2.03 < gaps[-1] <= 4.21 and gaps[len(gaps) // 2] == pytest.approx(1.08, rel=0.05)
    assert max(len(request.prompt) for request in requests) <= 2048


def test_agents_differ_from_round_to_round_in_order_and_not_in_what_they_are():
    workload = run()["b_agent_loop"]
    rounds = [requests_of(workload, number) for number in range(2)]
    gaps = [[request.gap_s for request in requests] for requests in rounds]
    assert gaps[0] != gaps[1] and sorted(gaps[0]) == sorted(gaps[1])


def test_few_values_are_spread_as_the_whole_distribution():
    few = sorted(workloads.quantiles(workloads.GAP_S, 4, random.Random(1)))
    assert few == pytest.approx([0.737, 0.975, 1.2, 1.912], abs=0.001)


# --- (c) ---


def test_questions_share_documents_and_never_a_question():
    requests = requests_of(run()["c_rag"])
    assert len(requests) == 24
    assert {len(request.prompt) for request in requests} == {128 + 2 * 512 + 60}
    questions = [set(request.prompt[-60:]) for request in requests]
    assert all(not a & b for a, b in itertools.combinations(questions, 2))
    documents = [request.prompt[start : start + 512] for request in requests for start in (128, 640)]
    assert len(set(documents)) <= 12 and len(documents) == 48


def test_only_a_question_whose_first_document_came_first_before_returns():
    requests = requests_of(run()["c_rag"])
    for number, request in enumerate(requests):
        longest = max((common(request.prompt, earlier.prompt) for earlier in requests[:number]), default=0)
        assert longest in (0, 128, 640, 1152)
        assert request.returns == (longest >= 640)
    assert {request.returns for request in requests} == {True, False}


def test_the_first_document_is_asked_about_most():
    numbers = random.Random(1)
    asked = workloads.questions(fresh(), numbers, documents=12, count=3000)
    firsts = sorted((sum(r.prompt[128] == d for r in asked) for d in {r.prompt[128] for r in asked}), reverse=True)
    assert firsts[0] / 3000 == pytest.approx(1 / sum(1 / rank for rank in range(1, 13)), abs=0.03)
    assert firsts[0] / firsts[1] == pytest.approx(2, rel=0.25)


# --- (d) ---


def test_nothing_is_shared_where_nothing_is_to_be():
    requests = requests_of(run()["d_no_reuse"])
    assert len(blocks_of([request.prompt for request in requests])) == len(requests) == 24
    assert {len(request.prompt) for request in requests} == {200}
    assert len({token for request in requests for token in request.prompt}) == 24 * 200
    assert not any(request.returns for request in requests)


def test_four_are_asked_at_once():
    lines = list(by_line(requests_of(run()["d_no_reuse"])))
    assert [len(line) for line in lines] == [6] * 4
    assert all(request.gap_s == 0 for line in lines for request in line)


# --- texts ---


def letters(text: str) -> list[int]:
    return list(text.encode())


def test_texts_are_the_same_each_time_and_no_stretch_overlaps_another():
    one, other = Library(letters), Library(letters)
    stretches = [one.take(20_000) for _ in range(10)]
    assert stretches == [other.take(20_000) for _ in range(10)]
    assert sum(stretches, ()) == Library(letters).take(200_000)


def test_there_is_text_enough_for_all_workloads_and_their_first_blocks_differ():
    """A token is some three letters."""
    library = Library(letters)
    made = workloads.of_a_run(lambda count: library.take(3 * count), RAM_BLOCKS * BLOCK, quick=False)
    prompts = [
        request.prompt
        for workload in made
        for number in range(workload.rounds)
        for request in requests_of(workload, number)
        if not request.returns and workload.name != "c_rag"
    ]
    assert len({prompt[: 3 * BLOCK] for prompt in prompts}) == len(prompts)


def test_who_takes_too_much_is_told():
    with pytest.raises(OutOfText):
        Library(lambda _: [1]).take(10_000)
