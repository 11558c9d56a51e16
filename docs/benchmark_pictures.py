"""The pictures of docs/benchmarks.md, from what `make compare` left in benchmarks/results/. SVG by name; pure."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmark_tables import NODE_ARMS, Results, number, taking_part
from compare import report
from draw import Bar, Panel, Point, bars, lines, picture

Picture = Callable[[Results], str]


def compare(results: Results) -> str:
    """Mean TTFT of every workload and contender."""
    result = results["compare_peers"]
    here = sorted(taking_part(result), key=lambda one: one["name"] != report.OURS)
    groups = []
    for workload, described in result["workloads"].items():
        cells = result["cells"][workload]
        found = [
            _bar(one["title"], colour, cells[one["name"]]["ttft_mean_s"], " s")
            for colour, one in enumerate(here)
            if "ttft_mean_s" in cells.get(one["name"], {})
        ]
        if found:
            groups.append((f"{workload[0]}. {described['title']}", found))
    panel = bars(groups, "seconds, mean time to first token; lines: from the best round to the worst", is_log=True)
    return picture("Time to first token: less is better", [panel])


def _bar(label: str, colour: int, figure: Any, unit: str = "") -> Bar:
    middle, low, high = _ends(figure)
    return Bar(label, colour, middle, low, high, number(middle) + unit)


def _ends(figure: Any) -> tuple[float, float, float]:
    if isinstance(figure, Mapping):
        return figure["median"], figure["min"], figure["max"]
    return figure, figure, figure


def _point(x: float, figure: Any, factor: float = 1.0) -> Point:
    return Point(x, *(value * factor for value in _ends(figure)))


def storage(results: Results) -> str:
    """Shares of the limit with blocks of the middle size."""
    result = results["bench_storage"]
    sizes = result["sizes_mib"]
    size = sizes[len(sizes) // 2]
    groups = []
    for medium, limit in (("memory", "memcpy"), ("disk", "O_DIRECT")):
        engines = sorted(result["engines"], key=lambda one: not one["name"].startswith(report.OURS))
        measured = [(one, result[medium][one["name"]][str(size)]) for one in engines if one["name"] in result[medium]]
        for way in ("put", "get"):
            found = [_bar(one["title"], _colour(one, i), of[way]) for i, (one, of) in enumerate(measured) if way in of]
            groups.append((f"{medium}, {way}: share of {limit}", found))
    title = f"Storage engines alone, blocks of {size} MiB: more is better"
    return picture(
        title, [bars([group for group in groups if group[1]], "share of the limit in the same round", False, 1.0)]
    )


def _colour(engine: Mapping[str, Any], number: int) -> int:
    return 0 if engine["name"].startswith(report.OURS) else number + 1


def scale(results: Results) -> str:
    """How memory, restart and lookups grow with blocks, keys and clients."""
    result = results["bench_scale"]
    blocks = {int(n): of for n, of in result["blocks"].items()}
    many = {f"{n:,} blocks": of["lookup_us"] for n, of in blocks.items()}
    panels = [
        lines("Memory", ("blocks", "bytes a block"),
              {"kvtierd": [_point(n, of["bytes_per_block"]) for n, of in blocks.items()]}, (True, False), 200),
        lines("Restart", ("blocks", "seconds"), {"kvtierd": [_point(n, of["restart_s"]) for n, of in blocks.items()]},
              mark=60),
        lines("Lookup, p99", ("keys", "milliseconds"),
              {name: [_point(int(n), p["p99"], 1e-3) for n, p in of.items()] for name, of in many.items()}),
        lines("Lookups of many clients", ("clients", "milliseconds"),
              {p: [_point(int(n), of[f"{p}_us"], 1e-3) for n, of in result["clients"].items()] for p in ("p50", "p99")}),
    ]  # fmt: skip
    return picture("Scale; dashed: what was asked for at 10 million blocks", panels, 2)


def nodes(results: Results) -> str:
    """Time to first token, and what is taken from the remote."""
    result = results["bench_nodes"]
    of = {int(n): arms for n, arms in result["nodes"].items()}
    order = ["kvtier", *(arm for arm in result["arms"] if arm != "kvtier")]

    def drawn(title: str, unit: str, key: str, factor: float, arms: list[str], few: int) -> Panel:
        """Medians alone: runs with other seeds are asked other things."""
        series = {
            NODE_ARMS[arm]: [_point(n, arms_of[arm][key]["median"], factor) for n, arms_of in of.items() if n >= few]
            for arm in arms
        }
        return lines(title, ("nodes that share one remote", unit), series, (True, False), None, [*map(order.index, arms)])

    remote = [arm for arm in order if arm not in ("nothing", "alone")]
    panels = [
        drawn("Time to first token, mean", "seconds", "ttft_mean_s", 1, order, 1),
        drawn(
            "Of what only the remote has, taken", "percent", "fetched_share", 100, remote, 2
        ),  # of one node it has nothing
    ]
    return picture("1 to 1,000 nodes on one remote, simulated", panels, 2)


PICTURES: dict[str, tuple[str, Picture]] = {  # file -> the results that it needs
    "compare.svg": ("compare_peers", compare),
    "storage.svg": ("bench_storage", storage),
    "scale.svg": ("bench_scale", scale),
    "nodes.svg": ("bench_nodes", nodes),
}
