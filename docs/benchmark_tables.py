"""The tables of docs/benchmarks.md, from what `make compare` left in benchmarks/results/. Markdown; pure.

Each is a function of all results, by their file's name, and is named in benchmarks.template as `{{its_name}}`. Below
each stands where it is from. Those of bench_storage.py: storage_tables.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compare import report

Results = Mapping[str, Mapping[str, Any]]
NOTHING, NOWHERE = "&mdash;", "Nowhere in this run."
TTFT_S, WRITTEN = "ttft_mean_s", "written"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], source: str, results: Results, words: int = 1) -> str:
    """`source`: the name of its results. `words`: so many columns aren't figures."""
    lines = [["---" if i < words else "--:" for i in range(len(head))], *rows]
    command = results[source].get("command", f"python benchmarks/{source}.py --json").removeprefix("python ")
    made = f"*From [{source}.json](../benchmarks/results/{source}.json), made by `{command}`.*"
    return "\n".join([_line(head), *(_line(map(_cell, line)) for line in lines), "", made])


def sourced(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of words whose last column says where each line is from."""
    lines = [["---"] * len(head), *(map(_cell, row) for row in rows)]
    made = "*From the files that the last column names, each made by `benchmarks/NAME.py --json`.*"
    return "\n".join([_line(head), *map(_line, lines), "", made])


def _link(source: str) -> str:
    return f"[{source}](../benchmarks/results/{source}.json)"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip() or NOTHING


def shown(figure: Any, factor: float = 1.0) -> str:
    """A spread as its median with least and most; or a number alone. Empty where there is none."""
    if figure is None or isinstance(figure, str):
        return figure or ""
    if not isinstance(figure, Mapping):
        return number(figure * factor)
    low, middle, high = (number(figure[key] * factor) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 or not value else 3
    return f"{value:,.{digits}f}"


# --- side by side ------------------------------------------------------------------------------------------------


def taking_part(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in result["contenders"] if not one["absent"]]


def short(results: Results) -> str:
    """Mean TTFT of every workload and contender; in bold the best, and what is as good."""
    result = results["compare_peers"]
    names = [one["name"] for one in taking_part(result)]
    rows = []
    for workload, described in result["workloads"].items():
        found = report.figures(result, workload, TTFT_S)
        best = min(found.values(), default=0.0) * (1 + report.TIE)
        cells = [(f"**{number(found[n])}**" if found[n] <= best else number(found[n])) if n in found else "" for n in names]
        rows.append([f"{workload[0]}. {described['title']}", *cells])
    return table(["TTFT mean, s", *(report.title_of(result, n) for n in names)], rows, "compare_peers", results)


def behind(results: Results) -> str:
    """In a sentence: the workloads whose lowest mean somebody else has."""
    result = results["compare_peers"]
    found = [loss for loss in report.losses(result) if loss["figure"] == "TTFT mean"]
    said = [
        f"{loss['workload'][0]}. {result['workloads'][loss['workload']]['title']} "
        f"({loss['by']} {number(loss['best'] / 1e3)} s, kvtier {number(loss['kvtier'] / 1e3)} s)"
        for loss in found
    ]
    return f"**Where somebody else has a lower mean:** {'; '.join(said) or 'nowhere in this run'}."


def goals(results: Results) -> str:
    """All that was asked for, each with where it is from."""
    words = {True: "reached", False: "**missed**", None: ""}
    rows = [
        [goal["goal"], goal["bar"], goal["measured"], goal["best_peer"] or "", words[goal["holds"]], _link(source)]
        for source, result in results.items()
        for goal in result.get("goals", ())
    ]
    return sourced(["Goal", "asked", "kvtier", "best of the others", "", "from"], rows) if rows else ""


def contenders(results: Results) -> str:
    result = results["compare_peers"]
    rows = [
        [one["title"], one["version"], f"**absent:** {one['absent']}" if one["absent"] else one["mode"]]
        for one in result["contenders"]
    ]
    head = ["Contender", "version", "how it is set up, or why it is absent"]
    return table(head, rows, "compare_peers", results, words=3)


def hits(results: Results) -> str:
    result = results["compare_peers"]
    head = ["128 MiB of KV, ms", "engine's own hit", "RAM", "over the own hit", "disk", "over the own hit"]
    rows = []
    for one in result["contenders"]:
        hit = result.get("hits", {}).get(one["name"])
        if hit is None or hit.get("absent"):
            why = (hit or one)["absent"]
            rows.append([one["title"], f"absent: {why}" if why else "not measured", "", "", "", ""])
            continue
        ways = [hit.get("ram_s", hit.get("no_ram")), hit.get("ram_over_hit_s"), hit.get("disk_s", hit.get("no_disk")),
                hit.get("disk_over_hit_s")]  # fmt: skip
        rows.append([one["title"], *(shown(figure, 1e3) for figure in [hit.get("engine_hit_s"), *ways])])
    return table(head, rows, "compare_peers", results)


def workloads(results: Results) -> str:
    """A heading, a sentence and a table each."""
    result = results["compare_peers"]
    parts = []
    for name, described in result["workloads"].items():
        heading = f"### {name[0]}. {described['title']}"
        rounds = described["rounds"]
        what = f"{described['what'].rstrip('.')}. {rounds} round{'' if rounds == 1 else 's'}."
        parts.append("\n\n".join([heading, what, _workload(results, name)]))
    return "\n\n".join(parts)


def _workload(results: Results, name: str) -> str:
    result = results["compare_peers"]
    cells = result["cells"][name]
    measures = [m for m in report.MEASURES if any(m[0] in cell for cell in cells.values())]
    heads = [f"{words}, {unit}" if unit else words for _, words, unit, _, _ in measures]
    rows = []
    for one in result["contenders"]:
        cell = cells.get(one["name"], {"absent": one["absent"] or "it took no part"})
        if "absent" in cell:
            rows.append([one["title"], f"absent: {cell['absent']}", *[""] * len(heads)])
            continue
        same = "{} of {}".format(*cell["same_text"]) if cell.get("same_text") and cell["same_text"][1] else ""
        rows.append([one["title"], *(shown(cell.get(key), factor) for key, _, _, factor, _ in measures), same])
    return table(["Contender", *heads, "same text"], rows, "compare_peers", results)


def losses(results: Results) -> str:
    """Every figure that somebody is better in. Of what is written, somebody who keeps anything."""
    result = results["compare_peers"]
    keepers = {name: {n: c for n, c in of.items() if n not in report.PLAIN} for name, of in result["cells"].items()}
    found = [loss for loss in report.losses(result) if loss["figure"] != WRITTEN]
    found += [loss for loss in report.losses({**result, "cells": keepers}) if loss["figure"] == WRITTEN]
    rows = []
    for loss in sorted(found, key=lambda loss: list(result["workloads"]).index(loss["workload"])):
        key = next(m[0] for m in report.MEASURES if m[1] == loss["figure"])
        cells = result["cells"][loss["workload"]]
        best = next(c["name"] for c in result["contenders"] if c["title"] == loss["by"])
        near = "the rounds overlap" if _overlap(cells[report.OURS][key], cells[best][key]) else ""
        unit = f", {loss['unit']}" if loss["unit"] else ""
        title = f"{loss['workload'][0]}. {result['workloads'][loss['workload']]['title']}"
        rows.append([title, loss["figure"] + unit, loss["by"], number(loss["best"]), number(loss["kvtier"]), near])
    head = ["Workload", "figure", "whose", "the best", "kvtier", ""]
    return table(head, rows, "compare_peers", results, words=3) if rows else NOWHERE


def _overlap(mine: Any, its: Any) -> bool:
    return isinstance(mine, Mapping) and mine["min"] <= its["max"] and its["min"] <= mine["max"]


# --- scale and nodes ---------------------------------------------------------------------------------------------


def scale(results: Results) -> str:
    blocks = results["bench_scale"]["blocks"]
    rows = [
        ("bytes a block", lambda of: shown(of.get("bytes_per_block"))),
        ("memory of kvtierd, MiB", lambda of: shown(of.get("rss_mib"))),
        ("restart, s", lambda of: shown(of.get("restart_s"))),
        ("catalogue on the drive, MiB", lambda of: shown(of.get("catalogue_mib"))),
        ("longest step of the event loop, its own CPU time, ms", lambda of: shown(of.get("pause_max_ms"))),
        ("the same by the clock, ms", lambda of: shown(of.get("pauses", {}).get("step_by_clock_max_ms"))),
        ("an empty round trip, p50, us", lambda of: shown(of.get("ping_us", {}).get("p50"))),
        ("an empty round trip, p99, us", lambda of: shown(of.get("ping_us", {}).get("p99"))),
    ]
    sizes = sorted({int(n) for of in blocks.values() for n in of.get("lookup_us", {})})
    for n in sizes:
        for p in ("p50", "p99"):
            rows.append(
                (f"lookup of {n:,} keys, {p}, us", lambda of, n=n, p=p: shown(of["lookup_us"].get(str(n), {}).get(p)))
            )
    lines = [[name, *(of(one) for one in blocks.values())] for name, of in rows]
    return table(["", *(f"{int(n):,} blocks" for n in blocks)], lines, "bench_scale", results)


def clients(results: Results) -> str:
    keys = {"lookups_per_s": "lookups a second, all", "p50_us": "p50, us", "p99_us": "p99, us"}
    rows = [[n, *(shown(of.get(key)) for key in keys)] for n, of in results["bench_scale"]["clients"].items()]
    return table(["Clients at once", *keys.values()], rows, "bench_scale", results)


NODE_ARMS = {
    "nothing": "only the engines' own caches",
    "alone": "kvtier, no remote",
    "kvtier": "kvtier with the remote",
    "always": "the remote, always fetching",
    "ideal": "a remote that takes no time",
}

NODE_FIGURES = (
    ("ttft_mean_s", "TTFT mean, s", 1),
    ("ttft_p99_s", "p99, s", 1),
    ("own_hits", "from the own cache, %", 100),
    ("ram_hits", "RAM, %", 100),
    ("remote_hits", "the remote, %", 100),
    ("fetched_share", "of what only the remote has, taken, %", 100),
    ("read_gb_s", "read, GB/s", 1),
    ("read_busy", "remote busy, %", 100),
)


def nodes(results: Results) -> str:
    result = results["bench_nodes"]
    rows = [
        [f"{int(n):,}", NODE_ARMS[arm], *(number(of[arm][key]["median"] * factor) for key, _, factor in NODE_FIGURES)]
        for n, of in result["nodes"].items()
        for arm in result["arms"]
    ]
    return table(["Nodes", "with", *(words for _, words, _ in NODE_FIGURES)], rows, "bench_nodes", results)


def node_losses(results: Results) -> str:
    """Of means, against everything that can be had: the remote that takes no time can't."""
    result = results["bench_nodes"]
    rows = []
    for n, of in result["nodes"].items():
        mean = {arm: of[arm][TTFT_S]["median"] for arm in result["arms"] if arm != "ideal"}
        best = min(mean, key=mean.__getitem__)
        if mean[report.OURS] > mean[best] * (1 + report.TIE):
            rows.append([f"{int(n):,}", NODE_ARMS[best], number(mean[best]), number(mean[report.OURS])])
    head = ["Nodes on one remote (simulated): TTFT mean, s", "whose", "the best", "kvtier"]
    return table(head, rows, "bench_nodes", results, words=2) if rows else NOWHERE
