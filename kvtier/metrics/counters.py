"""Which series show the counters of stats.py. A counter that none of the families here shows gets one of its own. Pure."""

from kvtier.metrics.family import counted
from kvtier.stats import COUNTERS


def beginning(prefix: str) -> dict[str, str]:
    """All counters whose names begin so, by what follows."""
    return {name.removeprefix(prefix): name for name in COUNTERS if name.startswith(prefix)}


GROUPED = (
    counted(
        "kvtier_lookups_total",
        "block keys that lookups asked a tier for, after those above it",
        "tier result",
        {
            "cpu hit": "found_keys",
            "cpu miss": "lookup_keys - found_keys",
            "nvme hit": "found_below_keys",
            "nvme miss": "lookup_keys - found_keys - found_below_keys",
            "remote hit": "found_remote_keys",
        },
    ),
    counted("kvtier_lookup_requests_total", "questions which of a request's blocks are here", "", {"": "lookups"}),
    counted(
        "kvtier_lookup_tokens_total",
        "prompt tokens of requests that came to their first token, by where they came from: the engine's own cache "
        "(resident), kvtier (loaded), or computed",
        "result",
        {
            "resident": "prompt_resident_tokens",
            "loaded": "prompt_loaded_tokens",
            "computed": "prompt_computed_tokens",
        },
    ),
    counted(
        "kvtier_prefill_tokens_avoided_total",
        "tokens that engines did not have to compute again",
        "",
        {"": "loaded_tokens"},
    ),
    counted(
        "kvtier_transfer_bytes_total",
        "bytes moved; what engines load counts as from cpu, also where they read it in the GPU tier",
        "src dst",
        {
            "engine cpu": "saved_bytes",
            "cpu engine": "loaded_bytes",
            "cpu gpu": "mirrored_bytes",
            "cpu nvme": "demoted_bytes",
            "nvme cpu": "promoted_bytes",
            "cpu remote": "remote_demoted_bytes",
            "remote cpu": "remote_promoted_bytes",
            "cpu peer": "peer_read_bytes",
            "peer cpu": "peer_saved_bytes",
        },
    ),
    counted(
        "kvtier_transfer_blocks_total",
        "blocks moved, as kvtier_transfer_bytes_total",
        "src dst",
        {
            "engine cpu": "saved_blocks",
            "cpu engine": "loaded_blocks",
            "cpu gpu": "mirrored_blocks",
            "cpu nvme": "demoted_blocks",
            "nvme cpu": "promoted_blocks",
            "cpu remote": "remote_demoted_blocks",
            "remote cpu": "remote_promoted_blocks",
            "cpu peer": "peer_read_blocks",
            "peer cpu": "peer_saved_blocks",
        },
    ),
    counted(
        "kvtier_transfer_spared_bytes_total",
        "bytes not moved, because a codec made the blocks smaller",
        "src dst",
        {
            "cpu nvme": "spared_write_bytes",
            "nvme cpu": "spared_read_bytes",
            "cpu remote": "remote_spared_write_bytes",
            "remote cpu": "remote_spared_read_bytes",
        },
    ),
    counted(
        "kvtier_frames_larger_total",
        "blocks that a codec did not make as small as was expected; written again at once",
        "tier",
        {"nvme": "larger_frames", "remote": "remote_larger_frames"},
    ),
    counted(
        "kvtier_decisions_total",
        "requests, by what was decided: offered blocks, or none",
        "choice",
        {"fetch": "decided_fetch", "recompute": "decided_recompute"},
    ),
    counted(
        "kvtier_decisions_short_total",
        "requests, not all of whose tokens were offered, by why: see kvtier explain",
        "reason",
        beginning("missed_"),
    ),
    counted(
        "kvtier_evictions_total",
        "blocks that left a tier, by why: room for others, an engine's reset, orphaned, or a wish to forget",
        "tier reason",
        {
            "cpu room": "evicted_blocks",
            "nvme room": "forgotten_blocks",
            "gpu room": "dropped_gpu_copies",
            "cpu reset": "reset_blocks",
            "cpu orphan": "dropped_orphans",
            "nvme wish": "erased_blocks",
            "remote wish": "remote_erased_blocks",
            "gpu wish": "erased_gpu_blocks",
        },
    ),
    counted(
        "kvtier_blocks_corrupt_total",
        "blocks whose bytes were not those that were written: misses, and forgotten",
        "tier",
        {"nvme": "corrupt_blocks", "remote": "remote_corrupt_blocks"},
    ),
    counted(
        "kvtier_io_errors_total",
        "reads, writes and copies that a tier could not carry out; none fails a request",
        "tier operation",
        {
            "nvme read": "failed_promotions",
            "nvme write": "failed_demotions",
            "remote read": "remote_failed_promotions",
            "remote write": "remote_failed_demotions",
            "gpu write": "failed_gpu_copies",
        },
    ),
    counted(
        "kvtier_slots_reclaimed_total",
        "lent slots that did not become a block, by why: the block was here, it is an orphan, it was forgotten "
        "meanwhile, its tenant has as much as it may, the copy failed, the engine is gone",
        "reason",
        {
            "known": "known_blocks",
            "orphan": "refused_orphans",
            "forgotten": "refused_forgotten",
            "quota": "refused_quota",
            "failed": "failed_saves",
            "engine_gone": "reclaimed_slots",
        },
    ),
    counted(
        "kvtier_blocks_not_saved_total",
        "blocks that engines computed and did not save, by why: no slot in time, their client's wish, no kvtierd",
        "reason",
        beginning("skipped_"),
    ),
    counted(
        "kvtier_blocks_not_written_total",
        "blocks that a tier below did not get, by why",
        "tier reason",
        {
            "nvme first_use": "refused_first_use",
            "nvme budget": "refused_budget",
            "nvme queue": "refused_queue",
            "nvme too_large": "refused_too_large",
            "nvme max_tier": "refused_no_disk",
            "nvme ended": "refused_ended",
            "nvme tenant_rate": "refused_tenant_rate",
            "nvme too_late": "unwritten_blocks",
            "remote queue": "remote_refused_queue",
            "remote max_tier": "remote_refused_max_tier",
            "remote ended": "remote_refused_ended",
            "remote reset": "remote_refused_reset",
            "remote erasing": "remote_refused_erasing",
            "remote tenant_rate": "remote_refused_tenant_rate",
            "remote too_late": "remote_unwritten_blocks",
            "gpu in_use": "refused_gpu",
        },
    ),
)

_GROUPED = frozenset[str]().union(*(family.counters for family in GROUPED))
ALONE = tuple(
    counted(f"kvtier_{name}_total", meaning, "", {"": name}) for name, meaning in COUNTERS.items() if name not in _GROUPED
)
