"""The nodes of bench_nodes.py: what they are asked, and what is made of it."""

import bench_nodes
import pytest
from bench_nodes import ARMS, FIGURES, Agents

SHORT = Agents(seconds=20.0)


def test_a_seed_has_its_own_requests_and_always_the_same():
    once, again, other = (bench_nodes.traces_of(5, SHORT, seed) for seed in (1, 1, 2))
    assert once == again != other


def test_so_many_come_a_node_and_second_and_each_in_its_turn():
    traces = bench_nodes.traces_of(200, Agents(), seed=3)
    requests = [request for trace in traces for request in trace.requests]
    assert len(requests) == pytest.approx(200 * Agents().requests_per_node_s * Agents().seconds, rel=0.15)
    for trace in traces:
        times = [request.at for request in trace.requests]
        assert times == sorted(times) and all(0 <= at < Agents().seconds for at in times)


def test_prompts_are_whole_blocks_and_a_rest_that_is_nobody_elses():
    requests = [r for trace in bench_nodes.traces_of(20, SHORT, seed=1) for r in trace.requests]
    assert all(len(r.blocks) == -(-r.prompt_tokens // 512) for r in requests)
    rests = [r.blocks[-1] for r in requests if r.prompt_tokens % 512]
    assert len(rests) == len(set(rests))


def test_an_agent_moves_to_other_nodes_with_what_it_said():
    traces = bench_nodes.traces_of(20, SHORT, seed=1)
    seen_at: dict[int, set[int]] = {}
    for node, trace in enumerate(traces):
        for request in trace.requests:
            if len(request.blocks) > 8:
                seen_at.setdefault(request.blocks[8], set()).add(node)
    assert sum(len(nodes) > 1 for nodes in seen_at.values()) > 0.3 * len(seen_at)


def test_every_arm_has_every_figure_of_the_same_requests():
    runs = {arm: bench_nodes.run((2, arm, 1)) for arm in ARMS}
    assert len({count for _, count, _ in runs.values()}) == 1
    assert all(set(figures) == set(FIGURES) for _, _, figures in runs.values())
    assert runs["nothing"][2]["ram_hits"] == runs["alone"][2]["remote_hits"] == runs["alone"][2]["read_gb_s"] == 0
    assert runs["always"][2]["fetched_share"] >= runs["kvtier"][2]["fetched_share"] > 0


def test_the_worst_number_of_nodes_is_what_the_goal_is_judged_by():
    def of(kvtier: float) -> dict[str, dict[str, dict[str, float]]]:
        return {arm: {"ttft_mean_s": {"median": mean}} for arm, mean in (("nothing", 2.0), ("kvtier", kvtier))}

    (goal,) = bench_nodes.goals({"1": of(1.0), "1000": of(2.5)})
    assert (goal["measured"], goal["holds"]) == ("1.25 x (1,000 nodes)", False)
    (goal,) = bench_nodes.goals({"1": of(1.0), "1000": of(1.5)})
    assert (goal["measured"], goal["holds"]) == ("0.75 x (1,000 nodes)", True)
