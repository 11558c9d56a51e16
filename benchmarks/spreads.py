"""What several rounds measured: a table with a line a figure, and how much the rounds differed."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any


def spread(values: Iterable[float]) -> dict[str, float]:
    """Of what the rounds measured: at least one."""
    found = sorted(values)
    return {"median": statistics.median(found), "min": found[0], "max": found[-1]}


def print_spreads(outcome: Mapping[str, Any], what: str, bars: Mapping[str, float]) -> None:
    """`outcome`: the figures, and their "spreads" over the rounds: median, least and most; and the "machine"."""
    machine = outcome["machine"]
    print(f"{machine['cores']} cores, load {machine['load_average']:.1f}, {what}")
    print(f"{'':30}{'':>10}{'median (least-most) of a round':>34}{'bar':>8}")
    for name, spread in outcome["spreads"].items():
        rounds = f"{spread['median']:.5g} ({spread['min']:.5g}-{spread['max']:.5g})"
        print(f"{name:30}{outcome[name]:10.5g}{rounds:>34}{bars.get(name, ''):>8}")
