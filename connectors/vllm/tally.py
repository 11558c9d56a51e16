"""kvtier's part of one engine, for vLLM's own metrics: /metrics shows it with that engine's labels, its log sums it up.

What kvtierd counts is of all its engines together; this is what one of them did with it. vLLM takes it once a step, from
the scheduler's process to the frontend's, where `METRICS` is all that is known of it.
"""

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingHistogramMetadata,
    OffloadingMetricMetadata,
)

CONNECTED = "vllm:kvtier_connected"
LOADED_TOKENS, SAVED_TOKENS = "vllm:kvtier_loaded_tokens", "vllm:kvtier_saved_tokens"
LOAD_SECONDS = "vllm:kvtier_load_seconds"
NOT_SAVED = "vllm:kvtier_blocks_not_saved"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

COUNTED = {  # as kvtierd's counters call it -> name, value of its label
    "skipped_no_slot": (NOT_SAVED, ("no_slot",)),
    "skipped_no_store": (NOT_SAVED, ("no_store",)),
    "skipped_away": (NOT_SAVED, ("away",)),
    "failed_saves": (NOT_SAVED, ("failed",)),
    "failed_loads": ("vllm:kvtier_failed_loads", ()),
    "lookups_late": ("vllm:kvtier_lookups_late", ()),
    "hints_ignored": ("vllm:kvtier_hints_ignored", ()),
    "connector_faults": ("vllm:kvtier_faults", ()),
}

METRICS: dict[str, OffloadingMetricMetadata] = {
    CONNECTED: OffloadingGaugeMetadata("1: kvtierd answers this engine. 0: it goes without."),
    LOADED_TOKENS: OffloadingCounterMetadata("Prompt tokens that were loaded and not computed."),
    SAVED_TOKENS: OffloadingCounterMetadata("Tokens whose blocks were saved."),
    LOAD_SECONDS: OffloadingHistogramMetadata("From the order of a request's load to its end.", buckets=SECONDS),
    NOT_SAVED: OffloadingCounterMetadata(
        "Blocks that were computed and not saved: no slot in time, their client's wish, no kvtierd, a copy that failed.",
        labelnames=("reason",),
    ),
    "vllm:kvtier_failed_loads": OffloadingCounterMetadata("Loads that were not carried out; their tokens were computed."),
    "vllm:kvtier_lookups_late": OffloadingCounterMetadata("Lookups that were not answered in time and became misses."),
    "vllm:kvtier_hints_ignored": OffloadingCounterMetadata("Hints of requests that were wrong or unknown."),
    "vllm:kvtier_faults": OffloadingCounterMetadata("Unexpected errors at the engine's edge; it went on without kvtier."),
}


class Tally:
    """What was counted since vLLM took it last; the first time all counters, so that they are there from the start."""

    def __init__(self) -> None:
        self._stats = OffloadingConnectorStats()
        self._connected: bool | None = None  # as vLLM knows it
        for name in (LOADED_TOKENS, SAVED_TOKENS):
            self._stats.increase_counter(name, 0)
        for name, values in COUNTED.values():
            self._stats.increase_counter(name, 0, values)

    def count(self, name: str, n: int) -> None:
        """`name`: as kvtierd's counters call it; not all of them are of interest here."""
        if name in COUNTED:
            metric, values = COUNTED[name]
            self._stats.increase_counter(metric, n, values)

    def saved(self, tokens: int) -> None:
        self._stats.increase_counter(SAVED_TOKENS, tokens)

    def loaded(self, tokens: int, seconds: float) -> None:
        self._stats.increase_counter(LOADED_TOKENS, tokens)
        self._stats.observe_histogram(LOAD_SECONDS, seconds)

    def take(self, connected: bool) -> OffloadingConnectorStats | None:
        if connected != self._connected:
            self._connected = connected
            self._stats.set_gauge(CONNECTED, int(connected))
        if self._stats.is_empty():
            return None
        taken, self._stats = self._stats, OffloadingConnectorStats()
        return taken
