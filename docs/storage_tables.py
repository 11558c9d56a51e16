"""The tables of docs/benchmarks.md about storage engines alone. Markdown; pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmark_tables import NOWHERE, Results, number, shown, table
from compare import report

DEFAULTS = {"memory": "kvtier", "disk": "kvtier_nvme"}  # kvtier as its users have it
LIMITS = {"memory": "memcpy", "disk": "O_DIRECT"}
MANY, ONE = {"put": "put", "get": "get"}, {"put_one": "put", "get_one": "get"}  # requests of many blocks; a block a call
CPU = "cpu_s_per_gb"


def memory(results: Results) -> str:
    return _shares(results, "memory", MANY)


def memory_one(results: Results) -> str:
    return _shares(results, "memory", ONE)


def disk(results: Results) -> str:
    return _shares(results, "disk", MANY)


def _shares(results: Results, medium: str, ways: Mapping[str, str]) -> str:
    return _table(results, medium, f"Share of {LIMITS[medium]}", results["bench_storage"][medium], ways)


def storage_cpu(results: Results) -> str:
    """Of memory, and below it of the disk."""
    return "\n\n".join(
        _table(results, medium, f"Processor, s a GB, {medium}", results["bench_storage"].get(CPU, {}), MANY)
        for medium in LIMITS
    )


def _table(results: Results, medium: str, heading: str, figures: Mapping[str, Any], ways: Mapping[str, str]) -> str:
    """A line for each engine that was measured, or is absent with its reason."""
    result = results["bench_storage"]
    columns = [(str(size), way) for size in result["sizes_mib"] for way in ways]
    rows = []
    for engine in result["engines"]:
        of = figures.get(engine["name"])
        if engine["medium"] != medium or (of is None and not engine["absent"]):
            continue
        cells = [f"absent: {engine['absent']}"] if of is None else [shown(of.get(n, {}).get(way)) for n, way in columns]
        rows.append([engine["title"], *cells, *[""] * (len(columns) - len(cells))])
    return table([heading, *(f"{ways[way]} {size} MiB" for size, way in columns)], rows, "bench_storage", results)


def storage_losses(results: Results) -> str:
    """Wherever another engine has more of the limit, or takes less processor time, than kvtier with its defaults."""
    titles = {engine["name"]: engine["title"] for engine in results["bench_storage"]["engines"]}
    rows = []
    for words, mine, found, better in _compared(results["bench_storage"]):
        best = better(found, key=found.__getitem__)
        if abs(found[best] - mine) > report.TIE * max(found[best], mine) and better(found[best], mine) != mine:
            rows.append([words, titles[best], number(found[best]), number(mine)])
    head = ["Storage alone", "whose", "the best", "kvtier"]
    return table(head, rows, "bench_storage", results, words=2) if rows else NOWHERE


def _compared(result: Mapping[str, Any]) -> Iterator[tuple[str, float, dict[str, float], Any]]:
    """What, kvtier's figure, the other engines', and which is better."""
    for medium, ours in DEFAULTS.items():
        others = [engine["name"] for engine in result["engines"] if engine["name"] in result[medium]]
        others = [name for name in others if not name.startswith(report.OURS)]
        for size in map(str, result["sizes_mib"]):
            for figures, ways, unit, better in (
                (result[medium], MANY, f"share of {LIMITS[medium]}", max),
                (result[medium], ONE, f"a block a call, share of {LIMITS[medium]}", max),
                (result.get(CPU, {}), MANY, "processor, s a GB", min),
            ):
                for key, way in ways.items():
                    found = {name: _middle(figures, name, size, key) for name in (ours, *others)}
                    known = {name: figure for name, figure in found.items() if figure is not None}
                    if ours in known and len(known) > 1:
                        mine = known.pop(ours)
                        yield f"{medium}, {way} of {size} MiB: {unit}", mine, known, better


def _middle(figures: Mapping[str, Any], name: str, size: str, key: str) -> float | None:
    return report.middle(figures.get(name, {}).get(size, {}).get(key))


def storage_engines(results: Results) -> str:
    rows = [
        [one["title"], one["version"], f"**absent:** {one['absent']}" if one["absent"] else one["mode"], one["durable"]]
        for one in results["bench_storage"]["engines"]
    ]
    head = ["Engine", "version", "how it is set up, or why it is absent", "whether a put survives a crash"]
    return table(head, rows, "bench_storage", results, words=4)
