"""docs/benchmarks.md says what the results say: all contenders, all tables' sources, and every loss."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import benchmark_tables
import draw
import make_benchmarks
import pytest
import storage_tables
from benchmark_pictures import PICTURES
from compare import report

ROOT = make_benchmarks.ROOT
TEMPLATE = make_benchmarks.TEMPLATE.read_text()
COMMITTED = make_benchmarks.results_in(make_benchmarks.RESULTS)
SOURCE = re.compile(
    r"\*From \[(\w+)\.json\]\(\.\./benchmarks/results/\1\.json\), made by `(benchmarks/\w+\.py) .*--json.*`\.\*"
)
REFUSAL = "RuntimeError: it needs a | GPU"


def spread(middle: float) -> dict[str, float]:
    return {"median": middle, "min": middle * 0.9, "max": middle * 1.1}


def cell(seconds: float, written: float = 0.0) -> dict[str, Any]:
    times = {f"ttft_{key}_s": spread(seconds) for key in ("mean", "p50", "p99")}
    return {**times, "requests_per_s": spread(1 / seconds), "written_mib": spread(written), "same_text": [3, 3]}


def contender(name: str, absent: str | None = None) -> dict[str, Any]:
    return {"name": name, "title": f"the {name}", "version": "1", "mode": "as it is", "absent": absent}


@pytest.fixture
def made_up() -> dict[str, Any]:
    """kvtier is the fastest in one workload and not in the other; a peer is absent."""
    header = {"machine": {"cpu": "one", "cores": 2, "memory_gib": 24, "kernel": "6", "load_average": 0.1}, "seconds": 60,
              "versions": {"vllm": "1"}, "quick": False}  # fmt: skip
    compared = {
        **header,
        "command": "python benchmarks/compare_peers.py --json",
        "contenders": [contender("recompute"), contender("peer"), contender("gone", REFUSAL), contender("kvtier")],
        "workloads": {
            name: {"title": f"all of {name}", "what": "it is asked", "rounds": 3} for name in ("a_won", "d_lost")
        },
        "cells": {
            "a_won": {"recompute": cell(3), "peer": cell(2, 50), "kvtier": cell(1, 60)},
            "d_lost": {"recompute": cell(1.25), "peer": {"absent": "it hung"}, "kvtier": cell(4.5, 70)},
        },
        "hits": {"peer": {"engine_hit_s": spread(0.1), "ram_s": spread(0.2), "no_disk": "it has none"}},
        "goals": [{"goal": "fast", "bar": "at most 1 s", "measured": "4.5 s", "best_peer": None, "holds": False}],
    }
    return {**COMMITTED, "compare_peers": compared}


def rows_of(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def section(page: str, heading: str) -> str:
    return re.split(r"^## ", page.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]


# --- what is committed ---------------------------------------------------------------------------------------


def test_what_is_generated_is_what_the_results_say_now():
    assert make_benchmarks.stale() == [], "python docs/make_benchmarks.py"


@pytest.mark.parametrize("page", [Path("docs/benchmarks.md"), Path("README.md")])
def test_every_table_says_which_file_and_which_command_it_is_from(page):
    text = (ROOT / page).read_text()
    if page.name == "README.md":
        found = make_benchmarks.MARKED.search(text)
        assert found is not None
        text = found[0].replace("](benchmarks/", "](../benchmarks/")
    tables = re.findall(r"((?:^\|.*\n)+)\n(.*)", text, re.MULTILINE)
    assert tables or not set(make_benchmarks.SIDE_BY_SIDE) & set(COMMITTED)
    for table, below in tables:
        source = SOURCE.fullmatch(below)
        if source is None:  # each line has its own
            assert below.startswith("*From the files") and all(
                "benchmarks/results/" in row[-1] for row in rows_of(table)[2:]
            )
        else:
            assert source[1] in COMMITTED and (ROOT / source[2]).is_file()


def test_the_page_names_all_that_make_compare_measured_and_nothing_else():
    named = set(re.findall(r"results/(\w+)\.json", (ROOT / "docs/benchmarks.md").read_text()))
    assert named == set(COMMITTED) & set(make_benchmarks.SIDE_BY_SIDE)


@pytest.mark.skipif("compare_peers" not in COMMITTED, reason="no run beside peers is committed")
def test_the_committed_run_is_whole_and_every_contender_of_it_is_in_every_table():
    result = COMMITTED["compare_peers"]
    assert not result["quick"]
    assert_all_are_named(make_benchmarks.page(TEMPLATE, COMMITTED), result)
    assert_losses_are_named(make_benchmarks.page(TEMPLATE, COMMITTED), result)


# --- what is made of results ---------------------------------------------------------------------------------


def assert_all_are_named(page: str, result: Any) -> None:
    """In each workload's table, and among the contenders with the reason why not."""
    for name, described in result["workloads"].items():
        rows = rows_of(page.partition(f"\n### {name[0]}. {described['title']}\n")[2].partition("\n*From")[0])
        for one in result["contenders"]:
            (row,) = (row for row in rows if row[0] == one["title"])
            reason = result["cells"][name].get(one["name"], one).get("absent")
            assert reason is None or row[1] == f"absent: {in_a_cell(reason)}"
    listed = {row[0]: row[2] for row in rows_of(section(page, "Contenders"))}
    for one in result["contenders"]:
        assert listed[one["title"]] == (f"**absent:** {in_a_cell(one['absent'])}" if one["absent"] else one["mode"])


def in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def median_of(figure: Any) -> float | None:
    return figure["median"] if isinstance(figure, dict) else figure


def assert_losses_are_named(page: str, result: Any) -> None:
    """By a reckoning of its own."""
    rows = rows_of(section(page, "Where kvtier loses"))
    for name, cells in result["cells"].items():
        title = f"{name[0]}. {result['workloads'][name]['title']}"
        for key, words, _, factor, better in report.MEASURES:
            whose = [n for n in cells if not (key == "written_mib" and n in report.PLAIN)]
            found = {n: median for n in whose if (median := median_of(cells[n].get(key))) is not None}
            best = better(found.values(), default=0.0)
            if "kvtier" in found and abs(found["kvtier"] - best) > 0.0201 * max(found["kvtier"], best):
                (row,) = (row for row in rows if row[0] == title and row[1].partition(",")[0] == words)
                assert row[4] == benchmark_tables.number(found["kvtier"] * factor)
                assert row[3] == benchmark_tables.number(best * factor)


def test_every_contender_is_in_every_table_and_who_is_absent_with_the_reason(made_up):
    page = make_benchmarks.page(TEMPLATE, made_up)
    assert_all_are_named(page, made_up["compare_peers"])
    assert "absent: it hung" in page and "RuntimeError: it needs a \\| GPU" in page


def test_every_figure_in_which_kvtier_is_not_the_best_is_among_its_losses(made_up):
    page = make_benchmarks.page(TEMPLATE, made_up)
    assert_losses_are_named(page, made_up["compare_peers"])
    lost = section(page, "Where kvtier loses")
    assert "| d. all of d_lost | TTFT mean, ms | the recompute | 1,250 | 4,500 |" in lost
    assert "a. all of a_won | TTFT" not in lost and "a. all of a_won | written" in lost


def test_the_first_screen_says_who_wrote_it_and_what_was_lost(made_up):
    first = make_benchmarks.page(TEMPLATE, made_up).partition("\n## ")[0]
    assert "authors of kvtier wrote" in first
    assert "| a. all of a_won | 3.00 | 2.00 | **1.00** |" in first
    assert "lower mean:** d. all of d_lost (the recompute 1.25 s, kvtier 4.50 s)." in first


def test_storage_losses_are_those_of_kvtier_with_its_defaults_and_of_processor_time_too():
    def engine(name: str, medium: str = "memory") -> dict[str, Any]:
        return {**contender(name), "medium": medium, "durable": "no"}

    shares = {"kvtier": 0.5, "kvtier_two_threads": 2.0, "peer": 0.8}
    stored = {
        "sizes_mib": [2],
        "engines": [engine("memcpy"), *map(engine, shares), {**engine("gone", "disk"), "absent": REFUSAL}],
        "memory": {name: {"2": {"put": spread(share), "get": spread(0.5)}} for name, share in shares.items()},
        "disk": {},
        "cpu_s_per_gb": {"memcpy": {"2": {"put": 0.01}}, "kvtier": {"2": {"put": 0.2}}, "peer": {"2": {"put": 0.1}}},
    }
    lost = storage_tables.storage_losses({"bench_storage": stored})
    assert rows_of(lost)[2:] == [
        ["memory, put of 2 MiB: share of memcpy", "the peer", "0.80", "0.50"],
        ["memory, put of 2 MiB: processor, s a GB", "the peer", "0.10", "0.20"],
    ]
    assert [row[0] for row in rows_of(storage_tables.memory({"bench_storage": stored}))[2:]] == [
        "the kvtier", "the kvtier_two_threads", "the peer"
    ]  # fmt: skip
    assert "absent: RuntimeError: it needs a \\| GPU" in storage_tables.disk({"bench_storage": stored})


def test_nodes_lose_to_what_can_be_had_alone():
    means = {"nothing": 3.0, "alone": 2.0, "kvtier": 1.5, "always": 1.4, "ideal": 1.0}
    of = {arm: {"ttft_mean_s": spread(mean)} for arm, mean in means.items()}
    result = {"nodes": {"10": of, "1000": of | {"always": of["nothing"]}}, "arms": list(means)}
    lost = benchmark_tables.node_losses({"bench_nodes": result})
    assert rows_of(lost)[2:] == [["10", "the remote, always fetching", "1.40", "1.50"]]


def test_a_section_without_results_is_left_out(made_up):
    page = make_benchmarks.page(TEMPLATE, {})
    assert "## Scale" not in page and "## Contenders" not in page and "{{" not in page and "<!--" not in page
    assert "## Contenders" in make_benchmarks.page(TEMPLATE, {"compare_peers": made_up["compare_peers"]})


def test_a_number_in_the_text_is_the_one_of_the_results(made_up):
    text = "{{compare_peers:seconds*0.01666667|.0f}} min, {{compare_peers:cells.a_won.peer.ttft_mean_s.median|.1f}} s"
    assert make_benchmarks.page(text, made_up) == "1 min, 2.0 s"
    with pytest.raises(KeyError):
        make_benchmarks.page("{{compare_peers:nobody|s}}", made_up)


def test_other_results_make_another_page_elsewhere(made_up, tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    (results / "compare_peers.json").write_text(json.dumps(made_up["compare_peers"]))
    (results / "bench_scale.json").touch()  # it could not run there
    monkeypatch.setattr("sys.argv", ["make_benchmarks.py", "--results", str(results), "--to", str(tmp_path / "quick")])
    before = make_benchmarks.committed()
    make_benchmarks.main()
    assert "## Contenders" in (tmp_path / "quick" / "benchmarks.md").read_text()
    assert (tmp_path / "quick" / "pictures" / "compare.svg").is_file()
    assert make_benchmarks.committed() == before


def test_the_readme_has_the_goals_between_its_two_marks(made_up):
    marks = "before\n<!-- benchmarks: by hand -->\nold\n<!-- end of benchmarks -->\nafter\n"
    text = make_benchmarks.readme(marks, {"compare_peers": made_up["compare_peers"]})
    assert text.startswith("before\n<!-- benchmarks: by hand -->\n| Goal | asked |") and text.endswith("-->\nafter\n")
    assert "| fast | at most 1 s | 4.5 s | &mdash; | **missed** | [compare_peers]" in text and "old" not in text
    assert "](benchmarks/results/compare_peers.json)" in text
    with pytest.raises(ValueError, match="README"):
        make_benchmarks.readme("no marks", made_up)


# --- pictures ------------------------------------------------------------------------------------------------


def test_a_picture_is_the_same_bytes_each_time_and_says_all_it_shows(made_up):
    drawn = PICTURES["compare.svg"][1](made_up)
    assert drawn == PICTURES["compare.svg"][1](made_up)
    texts = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"a. all of a_won", "the kvtier", "the peer", "4.50 s"} <= set(texts)
    assert "the gone" not in texts and "prefers-color-scheme: dark" in drawn


def test_on_a_log_axis_ten_times_as_much_is_as_far_everywhere():
    scale = draw.Scale([0.1, 100], 300, is_log=True)
    assert scale(10) - scale(1) == pytest.approx(scale(100) - scale(10))
    assert scale.low < 0.1 and scale.high > 100 and {0.1, 1, 10, 100} <= {round(tick, 6) for tick in scale.ticks()}


def test_a_linear_axis_begins_at_nothing():
    scale = draw.Scale([3, 17], 100, is_log=False)
    assert (scale(0), scale(20), scale.ticks()) == (0, 100, [0, 5, 10, 15, 20])
