"""What Prometheus is shown: every family once, with its labels, its meaning and what of a snapshot it is. Pure.

All that can be counted stands there from the start, at 0. No label names a session, a tenant, an engine or a key: values
of labels are those of a few fixed words.
"""

from typing import NamedTuple

from kvtier.metrics.counters import ALONE, GROUPED
from kvtier.metrics.durations import TOOK
from kvtier.metrics.family import Snapshot
from kvtier.metrics.gauges import NOW

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAMILIES = (*NOW, *GROUPED, *ALONE, *TOOK)


class Row(NamedTuple):
    """A family as documentation shows it."""

    name: str
    kind: str
    labels: str
    meaning: str
    source: str


def exposition(snapshot: Snapshot) -> str:
    """All families as Prometheus reads them."""
    return "".join(family.text(snapshot) for family in FAMILIES)


def rows() -> list[Row]:
    """All families, for the documentation."""
    return [Row(f.name, f.kind, ", ".join(f.labels), f.meaning, f.source) for f in FAMILIES]
