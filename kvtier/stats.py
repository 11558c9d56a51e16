"""What is counted and how long things take, each declared once with its one-line meaning. Pure.

How that is shown to Prometheus: metrics.py.
"""

from bisect import bisect_left

COUNTERS: dict[str, str] = {
    "lookups": "questions which of a request's blocks are here",
    "lookup_keys": "block keys asked for",
    "found_keys": "of these, keys that were here",
    "found_below_keys": "keys asked for that were not in RAM but on NVMe",
    "found_remote_keys": "keys asked for that were on this node nowhere, but known to be in the remote",
    "refused_leases": "keys that were here but not offered, because leases already pin lease.max_share of the arena",
    "loaded_blocks": "blocks that engines loaded",
    "loaded_tokens": "tokens that engines did not have to compute again",
    "loaded_bytes": "bytes that engines loaded",
    "prompt_resident_tokens": "prompt tokens of requests that came to their first token: the engine's own cache had them",
    "prompt_loaded_tokens": "such tokens: the engine loaded them",
    "prompt_computed_tokens": "such tokens: the engine computed them",
    "saved_blocks": "blocks that engines saved",
    "saved_bytes": "bytes that engines saved",
    "known_blocks": "saved blocks that were here already, their slots given back",
    "evicted_blocks": "blocks that made room for others",
    "evicted_own_blocks": "of these, blocks that went for others of their own tenant: it had more than its share or quota",
    "refused_quota": "blocks not kept: their tenant has as much as it may (tenant.max_share, tenant.max_blocks)",
    "unkept_promotions": "blocks read from below and not kept: their tenant has as much as it may",
    "mirrored_blocks": "blocks copied to the GPU tier",
    "mirrored_bytes": "bytes copied to the GPU tier",
    "found_gpu_keys": "keys that engines were told to read from the GPU tier",
    "found_gpu_bytes": "bytes that engines were told to read from the GPU tier",
    "dropped_gpu_copies": "copies in the GPU tier that made room for others",
    "refused_gpu": "blocks not copied to the GPU tier: all that is there was used since, or is being read",
    "failed_gpu_copies": "copies to the GPU tier that the device could not carry out; tried again",
    "erased_gpu_blocks": "copies overwritten in the GPU tier because their session was forgotten by wish",
    "demoted_blocks": "blocks written to NVMe",
    "demoted_bytes": "bytes written to NVMe",
    "promoted_blocks": "blocks read back from NVMe, verified",
    "promoted_bytes": "bytes read back from NVMe",
    "spared_write_bytes": "bytes not written to NVMe, because a codec made the blocks smaller",
    "spared_read_bytes": "bytes not read back from NVMe, because a codec had made the blocks smaller",
    "larger_frames": "blocks that did not fit the smaller place a codec was expected to need; written again at once",
    "staged_lookups": "lookups that waited for blocks from NVMe",
    "staged_short": "of these, lookups answered with less than NVMe had, because computing the rest seemed faster",
    "decided_fetch": "requests that were offered blocks",
    "decided_recompute": "requests that were offered none",
    "missed_never_stored": "requests, not all of whose tokens were offered: nobody had saved the others",
    "missed_evicted": "such requests: others needed the room",
    "missed_namespace_differs": "such requests: an engine with other facts (model, dtype, layout, ranks) had saved them",
    "missed_too_short": "such requests: so few tokens are computed sooner than any load begins",
    "missed_too_dear": "such requests: computing was expected to be faster than fetching",
    "missed_timed_out": "such requests: the blocks did not come in time",
    "missed_tier_off": "such requests: the tier was slower than computing in the last minute",
    "missed_remote_away": "such requests: the remote, where they may be, did not answer",
    "missed_tenant_loads": "such requests: their tenant had as many leases open as it may (tenant.max_loads)",
    "missed_hold_out": "such requests: cost.holdout of them go without, to see what the others gain",
    "refused_orphans": "blocks not kept: the block before them is nowhere, so they would be of no use",
    "refused_forgotten": "blocks not kept: their session was forgotten by wish while they were saved",
    "refused_no_disk": "blocks not written to NVMe: their session wants them on no disk (max_tier)",
    "refused_ended": "blocks not written to NVMe: their session is over, or went on without them",
    "dropped_orphans": "blocks dropped from RAM because what comes before them was forgotten on NVMe",
    "erased_blocks": "blocks overwritten on NVMe because their session was forgotten by wish",
    "forgotten_blocks": "blocks on NVMe that made room for others",
    "corrupt_blocks": "blocks on NVMe whose bytes were not those that were written: misses, and forgotten",
    "failed_promotions": "reads that the drive could not carry out: misses",
    "failed_demotions": "writes that the drive could not carry out; tried again later",
    "unwritten_blocks": "blocks that left RAM before their turn to be written to NVMe came",
    "refused_first_use": "blocks not written to NVMe: used once, and less than half of a day's write budget is left",
    "refused_budget": "blocks not written to NVMe: the write budget (nvme.endurance_dwpd) is used up",
    "refused_queue": "blocks not written to NVMe: too many wait for it",
    "refused_tenant_rate": "blocks not written to NVMe: their tenant writes more than tenant.write_rate",
    "refused_too_large": "blocks not written to NVMe: larger than an extent; raise nvme.capacity",
    "remote_asked_keys": "keys that the remote was asked for",
    "remote_promoted_blocks": "blocks read from the remote, verified",
    "remote_promoted_bytes": "bytes read from the remote",
    "remote_gone_blocks": "reads of blocks that the remote had a while before and has no more: misses",
    "remote_corrupt_blocks": "blocks in the remote whose bytes were not those that were written: misses, and deleted there",
    "remote_failed_promotions": "reads that the remote did not answer: misses",
    "remote_erased_blocks": "blocks deleted in the remote because their session was forgotten by wish",
    "remote_demoted_blocks": "blocks written to the remote",
    "remote_demoted_bytes": "bytes written to the remote",
    "remote_spared_write_bytes": "bytes not written to the remote, because a codec made the blocks smaller",
    "remote_spared_read_bytes": "bytes not read from the remote, because a codec had made the blocks smaller",
    "remote_larger_frames": "blocks for the remote that no codec made smaller; written again at once, as they are",
    "remote_failed_demotions": "writes that the remote did not take; tried again later",
    "remote_unwritten_blocks": "blocks that left RAM before their turn to be written to the remote came",
    "remote_refused_max_tier": "blocks not written to the remote: their session wants them on this node only (max_tier)",
    "remote_refused_ended": "blocks not written to the remote: their session is over, or went on without them",
    "remote_refused_reset": "blocks not written to the remote: their engine reset its cache; no other node knows to what",
    "remote_refused_erasing": "blocks not written to the remote: what was forgotten of them is being deleted there",
    "remote_refused_tenant_rate": "blocks not written to the remote: their tenant writes more than tenant.write_rate",
    "remote_refused_queue": "blocks not written to the remote: too many wait for it (remote.write_rate)",
    "reset_blocks": "blocks dropped because an engine reset its cache (a weight update does)",
    "skipped_no_slot": "blocks not saved: no slot was lent to the engine in time",
    "skipped_no_store": "blocks not saved: their client asked so",
    "skipped_away": "blocks not saved: kvtierd was not connected",
    "failed_saves": "blocks not saved: the engine's worker could not copy them",
    "failed_loads": "loads that the engine's worker could not carry out; their tokens were computed instead",
    "lookups_late": "lookups that were not answered before connector.lookup_deadline_ms and became misses",
    "lookups_inline": "lookups answered within the scheduling step that asked",
    "hints_ignored": "hints of requests that were wrong or unknown; the log names each kind once",
    "connector_faults": "unexpected errors caught at the engine's edge; the engine went on without kvtier",
    "clients_joined": "connections that said hello",
    "clients_refused": "connections refused: other user, other version, too many",
    "protocol_errors": "clients that broke the protocol and were disconnected",
    "peer_read_blocks": "blocks that other nodes read here",
    "peer_read_bytes": "bytes that other nodes read here",
    "peer_saved_blocks": "blocks that other nodes wrote here",
    "peer_saved_bytes": "bytes that other nodes wrote here",
    "peer_refused_blocks": "blocks of other nodes that were not taken: no room, or more than peer.write_rate",
    "engines_gone": "engines that left or died; their slots and leases came back",
    "reclaimed_slots": "lent slots that came back unused from engines that left or died",
}

DURATIONS: dict[str, str] = {
    "answer": "from a request's lookup to its answer: long where it waits for blocks from below",
    "load": "from an engine's order of a load to its end: all blocks of a request, none of them from the GPU tier",
    "mirror": "of a copy to the GPU tier, from its order on",
    "nvme_demote": "of a write to NVMe, from its order on",
    "nvme_promote": "of a read from NVMe, from its order on",
    "remote_demote": "of a write to the remote, from its order on",
    "remote_promote": "of a read from the remote, from its order on",
    "tick": "that the daemon's loop was late to look at the clock: so long whatever came had to wait",
}
BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# What a connector may report of itself; the rest only the daemon counts.
REPORTED = frozenset(
    name
    for name in COUNTERS
    if name.startswith(("skipped_", "failed_", "lookups_")) or name in ("hints_ignored", "connector_faults")
)


class Histogram:
    """How many durations were at most so long, and longer than the bucket before."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Stats:
    """Counters and durations since the daemon's start. Never negative, never reset."""

    def __init__(self) -> None:
        self._count = dict.fromkeys(COUNTERS, 0)
        self._took = {name: Histogram() for name in DURATIONS}

    def add(self, name: str, n: int = 1) -> None:
        assert n >= 0, (name, n)
        self._count[name] += n

    def __getitem__(self, name: str) -> int:
        return self._count[name]

    def snapshot(self) -> dict[str, int]:
        return dict(self._count)

    def observe(self, name: str, seconds: float) -> None:
        """Something has taken so long."""
        self._took[name].observe(max(0.0, seconds))

    def durations(self) -> dict[str, dict[str, object]]:
        """As JSON values: how many fell into each bucket of BUCKETS_S and above, and seconds in all."""
        return {name: {"counts": list(took.counts), "sum_s": round(took.sum_s, 6)} for name, took in self._took.items()}
