"""A family of series: its name, its labels, what it means, what of a snapshot it is, how it is written down. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any

from kvtier.stats import BUCKETS_S

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

Snapshot = Mapping[str, Any]  # as Server.snapshot makes it
Values = tuple[str, ...]  # of the labels, in their order
Read = Callable[[Snapshot], Iterable[tuple[Values, Any]]]


@dataclass(frozen=True)
class Family:
    name: str
    kind: str
    meaning: str
    labels: Values
    read: Read  # of a histogram: the names of its durations
    source: str  # what of a snapshot it is, for people
    counters: frozenset[str] = frozenset()  # of stats.COUNTERS, that it shows

    def text(self, snapshot: Snapshot) -> str:
        """As Prometheus reads it."""
        show = _histogram if self.kind == HISTOGRAM else _samples
        return f"# HELP {self.name} {self.meaning}\n# TYPE {self.name} {self.kind}\n" + "".join(show(self, snapshot))


def counted(name: str, meaning: str, labels: str, series: Mapping[str, str]) -> Family:
    """`labels` and the keys of `series`: words; a series' value: the name of a counter, or of two whose difference never
    falls."""
    names = [(tuple(values.split()), counters.split(" - ")) for values, counters in series.items()]

    def read(snapshot: Snapshot) -> Iterable[tuple[Values, int]]:
        counters = snapshot["counters"]
        for values, (counter, *less) in names:
            yield values, counters[counter] - sum(counters[name] for name in less)

    shown = frozenset(counter for _, counters in names for counter in counters)
    return Family(name, COUNTER, meaning, tuple(labels.split()), read, "counters: " + ", ".join(series.values()), shown)


def gauge(name: str, meaning: str, source: str, read: Callable[[Snapshot], Any], kind: str = GAUGE) -> Family:
    return Family(name, kind, meaning, (), lambda snapshot: [((), read(snapshot))], source)


def by_tier(name: str, meaning: str, tiers: str, field: str, read: Callable[[Any], Any] = lambda value: value) -> Family:
    """A field of these tiers of the snapshot; 0 where there is no such tier."""
    names = tiers.split()

    def values(snapshot: Snapshot) -> Iterable[tuple[Values, Any]]:
        for tier in names:
            state = snapshot["tiers"].get(tier)
            yield (tier,), 0 if state is None else read(state.get(field, 0))

    return Family(name, GAUGE, meaning, ("tier",), values, f"tiers.*.{field}")


def by_word(name: str, meaning: str, label: str, source: str, read: Callable[[Snapshot], Mapping[str, Any]]) -> Family:
    return Family(name, GAUGE, meaning, (label,), lambda s: [((word,), n) for word, n in read(s).items()], source)


def took(name: str, meaning: str, labels: str, series: Mapping[str, str]) -> Family:
    found = [(tuple(values.split()), duration) for values, duration in series.items()]
    return Family(
        name, HISTOGRAM, meaning, tuple(labels.split()), lambda _: found, "durations: " + ", ".join(series.values())
    )


def _samples(family: Family, snapshot: Snapshot) -> Iterable[str]:
    for values, value in family.read(snapshot):
        yield f"{family.name}{_labelled(family.labels, values)} {_number(value)}\n"


def _histogram(family: Family, snapshot: Snapshot) -> Iterable[str]:
    labels = (*family.labels, "le")
    for values, duration in family.read(snapshot):
        took, so_far = snapshot["durations"][duration], 0
        for bound, count in zip(_BOUNDS, took["counts"]):
            so_far += count
            yield f"{family.name}_bucket{_labelled(labels, (*values, bound))} {so_far}\n"
        own = _labelled(family.labels, values)
        yield f"{family.name}_sum{own} {_number(took['sum_s'])}\n{family.name}_count{own} {so_far}\n"


@cache
def _labelled(labels: Values, values: Values) -> str:
    """{tier="cpu"}: few words, all of them ours."""
    if not labels:
        return ""
    return "{" + ",".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True)) + "}"


def _number(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return "+Inf" if value == inf else repr(value)
    return str(int(value))


_BOUNDS = (*(_number(bound) for bound in BUCKETS_S), "+Inf")
