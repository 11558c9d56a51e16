"""What a comparison showed: the goals, judged from the cells alone; where kvtier isn't the best; tables for people. Pure.

A figure of a cell is a spread over the rounds; where one number is judged or compared it is the median of the rounds.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table

Result = Mapping[str, Any]
Goal = dict[str, Any]
OURS, NOTHING, PREFIX = "kvtier", "recompute", "prefix"
PLAIN = (NOTHING, PREFIX)  # keep nothing outside of the engine
TIE = 0.02  # so close, two figures are as good as each other

# What a cell is judged by: key, words, unit, factor, and which is better.
Measure = tuple[str, str, str, float, Callable[..., float]]
MEASURES: tuple[Measure, ...] = (
    ("ttft_mean_s", "TTFT mean", "ms", 1e3, min),
    ("ttft_p50_s", "TTFT p50", "ms", 1e3, min),
    ("ttft_p99_s", "TTFT p99", "ms", 1e3, min),
    ("ttft_return_mean_s", "returning TTFT mean", "ms", 1e3, min),
    ("requests_per_s", "requests/s", "", 1.0, max),
    ("cpu_s", "CPU", "s", 1.0, min),
    ("written_mib", "written", "MiB", 1.0, min),
    ("served_tokens", "from tiers", "%", 100.0, max),
    ("longest_s", "longest answer", "s", 1.0, min),
    ("served_again_after_s", "served again after", "s", 1.0, min),
)


def middle(figure: Any) -> float | None:
    return figure["median"] if isinstance(figure, Mapping) else figure


def figures(result: Result, workload: str, key: str) -> dict[str, float]:
    """By contender, where it was measured."""
    cells = result["cells"].get(workload, {})
    found = {name: middle(cell.get(key)) for name, cell in cells.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def title_of(result: Result, name: str) -> str:
    return next((c["title"] for c in result["contenders"] if c["name"] == name), name)


# --- goals -------------------------------------------------------------------------------------------------------------


def goals(result: Result) -> list[Goal]:
    """Each with what was measured, the best peer's figure, and whether it holds; None: it was not measured."""
    return [
        _over_hit(result, "ram", "RAM", 10),
        _over_hit(result, "disk", "disk", 50),
        _faster(result),
        _not_behind(result),
        _throughput(result),
        *(_served(result, workload) for workload in ("e_engine_restart", "f_node_restart")),
        _slow_disk(result),
    ]


def _goal(goal: str, bar: str, measured: str | None, best_peer: str = "", holds: bool | None = None) -> Goal:
    if measured is None:
        return {"goal": goal, "bar": bar, "measured": "not measured", "best_peer": best_peer, "holds": None}
    return {"goal": goal, "bar": bar, "measured": measured, "best_peer": best_peer, "holds": holds}


def _peer(result: Result, found: Mapping[str, float], better: Callable[..., float], shown: Callable[[float], str]) -> str:
    """The best of all but kvtier: its figure and its name."""
    others = {name: figure for name, figure in found.items() if name != OURS}
    if not others:
        return ""
    best = better(others, key=others.__getitem__)  # type: ignore[call-overload]
    return f"{shown(others[best])} ({title_of(result, best)})"


def _over_hit(result: Result, tier: str, word: str, bar_ms: float) -> Goal:
    over = {name: middle(hit.get(f"{tier}_over_hit_s")) for name, hit in result.get("hits", {}).items()}
    found = {name: seconds for name, seconds in over.items() if seconds is not None}
    mine = found.get(OURS)
    return _goal(
        f"{word} hit over the engine's own, 128 MiB",
        f"at most {bar_ms:.0f} ms",
        None if mine is None else _ms(mine),
        _peer(result, found, min, _ms),
        mine is not None and mine * 1e3 <= bar_ms,
    )


def _faster(result: Result) -> Goal:
    goal, bar = "multi-round questions: TTFT mean of returning turns against recompute", "at least 3 x faster"
    found = figures(result, "a_multi_round_qa", "ttft_return_mean_s")
    every = figures(result, "a_multi_round_qa", "ttft_mean_s")
    if OURS not in found or NOTHING not in found:
        return _goal(goal, bar, None)
    times = {name: found[NOTHING] / seconds for name, seconds in found.items() if name != NOTHING}
    all_turns = f"; over all turns {_times(every[NOTHING] / every[OURS])}" if {OURS, NOTHING} <= every.keys() else ""
    return _goal(goal, bar, f"{_times(times[OURS])}{all_turns}", _peer(result, times, max, _times), times[OURS] >= 3)


def _not_behind(result: Result) -> Goal:
    goal, bar = "multi-round questions: TTFT mean of returning turns against peers", "behind none"
    found = figures(result, "a_multi_round_qa", "ttft_return_mean_s")
    others = [seconds for name, seconds in found.items() if name != OURS]
    if OURS not in found or not others:
        return _goal(goal, bar, None)
    return _goal(goal, bar, _ms(found[OURS]), _peer(result, found, min, _ms), found[OURS] <= min(others))


def _throughput(result: Result) -> Goal:
    """A share is a quotient of one round, taken to the faster of the two that keep nothing."""
    goal, bar = "no reuse: throughput against plain vLLM", "at least 0.99"
    shares = figures(result, "d_no_reuse", "throughput_share")
    if OURS not in shares:
        return _goal(goal, bar, None)
    peers = {name: share for name, share in shares.items() if name not in PLAIN}
    return _goal(goal, bar, f"{shares[OURS]:.3f}", _peer(result, peers, max, lambda x: f"{x:.3f}"), shares[OURS] >= 0.99)


def _served(result: Result, workload: str) -> Goal:
    """The share of the tokens that came from outside of the engine; the last, partial blocks are stored by nobody."""
    words = {"e_engine_restart": "engine restarted", "f_node_restart": "node's software restarted"}[workload]
    goal, bar = f"{words}: of what returns, served from the tiers", "at least 90 % of its tokens"
    shares = figures(result, workload, "served_tokens")
    if OURS not in shares:
        return _goal(goal, bar, None)
    return _goal(goal, bar, _percent(shares[OURS]), _peer(result, shares, max, _percent), shares[OURS] >= 0.9)


def _slow_disk(result: Result) -> Goal:
    """A quotient of one round, taken to the engine that has its own cache and nothing beside."""
    goal, bar = "a disk ten times slower: TTFT p99 against no offload", "at most 1.1 x"
    times = figures(result, "g_slow_disk", "p99_over_no_offload")
    if OURS not in times:
        return _goal(goal, bar, None)
    peers = {name: over for name, over in times.items() if name not in PLAIN}
    return _goal(goal, bar, _times(times[OURS]), _peer(result, peers, min, _times), times[OURS] <= 1.1)


def _times(factor: float) -> str:
    return f"{factor:.2f} x"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


# --- losses ------------------------------------------------------------------------------------------------------------


def losses(result: Result) -> list[dict[str, Any]]:
    """Every figure of every cell in which somebody is better than kvtier by more than TIE."""
    found = []
    for workload in result["cells"]:
        for key, words, unit, factor, better in MEASURES:
            measured = figures(result, workload, key)
            if OURS not in measured:
                continue
            best = better(measured, key=measured.__getitem__)  # type: ignore[call-overload]
            mine, its = measured[OURS], measured[best]
            if abs(mine - its) <= TIE * max(abs(mine), abs(its)):
                continue
            found.append({
                "workload": workload, "figure": words, "unit": unit, "kvtier": mine * factor, "best": its * factor,
                "by": title_of(result, best),
            })  # fmt: skip
    return found


# --- tables ------------------------------------------------------------------------------------------------------------


def tables(result: Result) -> Iterator[Table]:
    yield _contenders(result)
    if result.get("hits"):
        yield _hits(result)
    for workload in result["cells"]:
        yield _cells(result, workload)
    yield _goals(result)
    yield _losses(result)


def _contenders(result: Result) -> Table:
    table = Table("name", "contender", "version", "mode", title="who is compared")
    for one in result["contenders"]:
        table.add_row(one["name"], one["title"], one["version"], one["absent"] or one["mode"])
    return table


def _hits(result: Result) -> Table:
    table = Table("contender", "engine's own", "RAM", "over it", "disk", "over it", title="a hit of 128 MiB, ms")
    for name, hit in result["hits"].items():
        if "absent" in hit:
            table.add_row(name, hit["absent"])
            continue
        keys = ("engine_hit_s", "ram_s", "ram_over_hit_s", "disk_s", "disk_over_hit_s")
        reasons = {"ram_s": hit.get("no_ram"), "disk_s": hit.get("no_disk")}
        table.add_row(name, *(shown(hit.get(key), 1e3) or reasons.get(key) or "" for key in keys))
    return table


def _cells(result: Result, workload: str) -> Table:
    described = result["workloads"][workload]
    cells = result["cells"][workload]
    present = [m for m in MEASURES if any(m[0] in cell for cell in cells.values())]
    heads = [f"{words}, {unit}" if unit else words for _, words, unit, _, _ in present]
    table = Table("contender", *heads, "same text", title=f"{workload[0]}. {described['title']}", caption=described["what"])
    for name, cell in cells.items():
        if "absent" in cell:
            table.add_row(name, cell["absent"])
            continue
        same = "{} of {}".format(*cell["same_text"]) if cell.get("same_text") else ""
        table.add_row(name, *(shown(cell.get(key), factor) for key, _, _, factor, _ in present), same)
    return table


def shown(figure: Any, factor: float) -> str:
    """The median, and from the least to the most where there are several."""
    if figure is None or figure == []:
        return ""
    if not isinstance(figure, Mapping):
        return number(figure * factor)
    low, high = figure["min"] * factor, figure["max"] * factor
    spread = "" if low == high else f" ({number(low)} to {number(high)})"
    return number(figure["median"] * factor) + spread


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _goals(result: Result) -> Table:
    table = Table("goal", "bar", "measured", "best of the others", "", title="goals")
    for goal in result["goals"]:
        word = {True: "holds", False: "MISSED", None: ""}[goal["holds"]]
        table.add_row(goal["goal"], goal["bar"], goal["measured"], goal["best_peer"], word)
    return table


def _losses(result: Result) -> Table:
    table = Table("workload", "figure", "kvtier", "best", "by", title="where kvtier isn't the best")
    for loss in losses(result):
        kvtier, best = (f"{number(loss[key])} {loss['unit']}".strip() for key in ("kvtier", "best"))
        table.add_row(loss["workload"], loss["figure"], kvtier, best, loss["by"])
    return table
