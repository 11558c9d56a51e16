"""What compare_peers.py says of its figures: goals, losses, tables; with made-up figures."""

import io
from typing import Any

import pytest
from compare import report
from rich.console import Console

TITLES = {"recompute": "vLLM, no cache", "prefix": "vLLM's prefix cache", "lmcache": "LMCache", "kvtier": "kvtier"}
GOALS = (
    "RAM", "disk", "three times", "behind none", "throughput", "engine restarted", "software restarted", "slow disk",
)  # fmt: skip


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value * 0.9, "max": value * 1.1}


def cells(key: str, **values: float) -> dict[str, dict[str, Any]]:
    return {name: {key: spread(value)} for name, value in values.items()}


def result(**changed: Any) -> dict[str, Any]:
    """All goals hold."""
    qa = cells("ttft_return_mean_s", recompute=1.2, prefix=1.21, lmcache=0.4, kvtier=0.3)
    for name, mean in {"recompute": 1.1, "prefix": 1.1, "lmcache": 0.7, "kvtier": 0.55}.items():
        qa[name]["ttft_mean_s"] = spread(mean)
    made: dict[str, dict[str, Any]] = {
        "a_multi_round_qa": qa,
        "d_no_reuse": cells("throughput_share", recompute=1, prefix=0.995, lmcache=0.97, kvtier=0.992),
        "e_engine_restart": {
            n: {"served_tokens": s} for n, s in {"recompute": 0.0, "lmcache": 0.99, "kvtier": 0.98}.items()
        },
        "f_node_restart": {n: {"served_tokens": s} for n, s in {"recompute": 0.0, "lmcache": 0.0, "kvtier": 0.98}.items()},
        "g_slow_disk": cells("p99_over_no_offload", prefix=1, lmcache=3.4, kvtier=1.04),
    } | changed.pop("cells", {})
    return {
        "contenders": [
            {"name": n, "title": t, "version": f"{n} 1", "mode": "usual", "absent": None} for n, t in TITLES.items()
        ],
        "hits": {
            "lmcache": {"ram_over_hit_s": spread(0.022), "disk_over_hit_s": spread(0.091)},
            "kvtier": {"ram_over_hit_s": spread(0.0061), "disk_over_hit_s": spread(0.031)},
        },
        "cells": made,
        "workloads": {name: {"title": name, "what": "what it is", "rounds": 1} for name in made},
    } | changed  # fmt: skip


def goals(**changed: Any) -> dict[str, dict[str, Any]]:
    return dict(zip(GOALS, report.goals(result(**changed)), strict=True))


def judged(workload: str, key: str, goal: str, **values: float) -> bool | None:
    return goals(cells={workload: cells(key, **values)})[goal]["holds"]


def test_all_goals_of_a_good_run_hold():
    assert all(goal["holds"] is True for goal in goals().values())


def test_a_goal_says_what_was_measured_and_who_was_best_of_the_others():
    assert goals()["RAM"] == {
        "goal": "RAM hit over the engine's own, 128 MiB",
        "bar": "at most 10 ms",
        "measured": "6.1 ms",
        "best_peer": "22.0 ms (LMCache)",
        "holds": True,
    }
    assert goals()["three times"]["measured"] == "4.00 x; over all turns 2.00 x"
    assert goals()["behind none"]["best_peer"] == "400.0 ms (LMCache)"
    assert goals()["engine restarted"]["best_peer"] == "99 % (LMCache)"
    assert goals()["slow disk"]["best_peer"] == "3.40 x (LMCache)"
    assert goals()["throughput"]["best_peer"] == "0.970 (LMCache)"


@pytest.mark.parametrize("over_s, holds", [(0.0100, True), (0.0101, False)])
def test_a_ram_hit_may_cost_ten_milliseconds(over_s, holds):
    assert goals(hits={"kvtier": {"ram_over_hit_s": spread(over_s)}})["RAM"]["holds"] is holds


@pytest.mark.parametrize("over_s, holds", [(0.0500, True), (0.0501, False)])
def test_a_disk_hit_may_cost_fifty(over_s, holds):
    assert goals(hits={"kvtier": {"disk_over_hit_s": spread(over_s)}})["disk"]["holds"] is holds


@pytest.mark.parametrize("mine, three_times, behind_none", [(0.39, True, True), (0.41, False, True), (0.51, False, False)])
def test_returning_turns_are_three_times_as_fast_as_recomputing_and_behind_no_peer(mine, three_times, behind_none):
    found = cells("ttft_return_mean_s", recompute=1.2, lmcache=0.5, kvtier=mine)
    judged = goals(cells={"a_multi_round_qa": found})
    assert (judged["three times"]["holds"], judged["behind none"]["holds"]) == (three_times, behind_none)


@pytest.mark.parametrize("share, holds", [(0.99, True), (0.989, False)])
def test_without_reuse_one_percent_of_throughput_may_be_lost(share, holds):
    assert judged("d_no_reuse", "throughput_share", "throughput", recompute=1, kvtier=share) is holds


@pytest.mark.parametrize("times, holds", [(1.1, True), (1.11, False)])
def test_a_slow_disk_may_cost_a_tenth_of_p99(times, holds):
    assert judged("g_slow_disk", "p99_over_no_offload", "slow disk", prefix=1, kvtier=times) is holds


@pytest.mark.parametrize(
    "workload, goal", [("e_engine_restart", "engine restarted"), ("f_node_restart", "software restarted")]
)
def test_after_a_restart_nine_tenths_come_from_the_tiers(workload, goal):
    for share, holds in ((0.9, True), (0.89, False)):
        assert goals(cells={workload: {"kvtier": {"served_tokens": share}}})[goal]["holds"] is holds


def test_what_was_not_measured_neither_holds_nor_misses():
    for goal in report.goals({"contenders": [], "cells": {}}):
        assert goal["holds"] is None and goal["measured"] == "not measured"


def test_a_contender_that_cannot_do_a_cell_is_no_peer_there():
    found = cells("ttft_return_mean_s", recompute=1.2, kvtier=0.3) | {"lmcache": {"absent": "it has no room"}}
    goal = goals(cells={"a_multi_round_qa": found})["behind none"]
    assert goal["holds"] and goal["best_peer"] == "1200.0 ms (vLLM, no cache)"


# --- losses ---


def losses(**figures: dict[str, float]) -> list[tuple[str, str, str]]:
    made = {key: cells(key, **values) for key, values in figures.items()}
    merged: dict[str, dict[str, Any]] = {}
    for of_key in made.values():
        for name, cell in of_key.items():
            merged[name] = merged.get(name, {}) | cell
    found = report.losses({"contenders": result()["contenders"], "cells": {"a_multi_round_qa": merged}})
    return [(loss["workload"], loss["figure"], loss["by"]) for loss in found]


def test_every_figure_in_which_somebody_is_better_is_a_loss():
    found = losses(
        ttft_mean_s={"recompute": 1.2, "lmcache": 0.3, "kvtier": 0.4},
        requests_per_s={"recompute": 5, "lmcache": 4, "kvtier": 3},
        cpu_s={"recompute": 10, "lmcache": 9, "kvtier": 8},
    )
    assert found == [("a_multi_round_qa", "TTFT mean", "LMCache"), ("a_multi_round_qa", "requests/s", "vLLM, no cache")]


def test_two_percent_are_no_loss():
    assert losses(cpu_s={"recompute": 10, "kvtier": 10.2}) == []
    assert losses(cpu_s={"recompute": 10, "kvtier": 10.3}) == [("a_multi_round_qa", "CPU", "vLLM, no cache")]
    assert losses(requests_per_s={"recompute": 1, "kvtier": 0.985}) == []


def test_a_loss_is_told_in_the_tables_unit():
    found = report.losses(result(cells={"b_agent_loop": cells("ttft_p99_s", prefix=0.2, kvtier=0.25)}))
    assert {
        "workload": "b_agent_loop", "figure": "TTFT p99", "unit": "ms", "kvtier": 250.0, "best": 200.0,
        "by": "vLLM's prefix cache",
    } in found  # fmt: skip


# --- tables ---


def printed(found: dict[str, Any]) -> str:
    console = Console(width=220, record=True, file=io.StringIO())
    for table in report.tables(found | {"goals": report.goals(found)}):
        console.print(table)
    return console.export_text()


def test_tables_name_all_contenders_with_their_spreads_and_reasons():
    found = result(
        cells={"b_agent_loop": cells("ttft_mean_s", prefix=0.2, kvtier=0.1) | {"lmcache": {"absent": "it died"}}}
    )
    found["contenders"].append({"name": "x", "title": "Another", "version": "x 2", "mode": "", "absent": "no such package"})
    said = printed(found)
    assert all(word in said for word in (*TITLES.values(), "no such package", "it died"))
    assert "100 (90.0 to 110)" in said and "holds" in said


def test_a_goal_that_is_missed_is_not_overlooked():
    assert "MISSED" in printed(result(cells={"d_no_reuse": cells("throughput_share", recompute=1, kvtier=0.9)}))


def test_a_restart_has_a_table_of_its_own_figures():
    assert "from tiers, %" in printed(result()) and "98.0" in printed(result())
