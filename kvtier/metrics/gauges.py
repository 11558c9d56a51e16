"""Which series show what there is now: of the tiers, of their users, of the process. Pure."""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any

from kvtier.metrics.family import COUNTER, GAUGE, Family, Snapshot, Values, by_tier, by_word, gauge

DAY_S = 86_400.0
BREAKER_STATES = {"closed": 0, "half-open": 1, "open": 2}
ROLES = ("scheduler", "worker", "observer")


def _links(field: str, scale: float) -> Callable[[Snapshot], Mapping[str, Any]]:
    return lambda s: {tier: s["decisions"]["links"].get(tier, {}).get(field, 0) * scale for tier in ("nvme", "remote")}


def _guarded(snapshot: Snapshot) -> Mapping[str, Any]:
    judged = snapshot["decisions"]["guard"]["tiers"]
    return {tier: judged.get(tier, {}).get("on", True) for tier in ("cpu", "nvme", "remote")}


def _clients(snapshot: Snapshot) -> Mapping[str, Any]:
    roles = [client["role"] for client in snapshot["clients"]]
    return {role: roles.count(role) for role in ROLES}


def _drive_life_s(snapshot: Snapshot) -> float:
    days = snapshot["tiers"].get("nvme", {}).get("days_of_life")
    return inf if days is None else days * DAY_S


def _used_codec(state: Any) -> Mapping[str, Any]:
    """What the codec in use has done in a tier; nothing where none is used."""
    coding = state.get("coding") or {}
    done: Mapping[str, Any] = coding.get("codecs", {}).get(str(coding.get("codec", "")).partition(":")[0], {})
    return done


def _codec_speeds(snapshot: Snapshot) -> Iterable[tuple[Values, Any]]:
    for tier in ("nvme", "remote"):
        used = _used_codec(snapshot["tiers"].get(tier, {}))
        for way in ("encode", "decode"):
            yield (tier, way), used.get(f"{way}_bytes_per_s", 0)


def _codec_ratios(snapshot: Snapshot) -> Mapping[str, Any]:
    return {tier: _used_codec(snapshot["tiers"].get(tier, {})).get("ratio") or 1 for tier in ("nvme", "remote")}


def _word(version: str) -> str:
    """As a label's value."""
    return "".join(c for c in version if c.isalnum() or c in ".+-_")


NOW = (
    Family(
        "kvtier_build_info", GAUGE, "1; its label says which kvtier this is", ("version",),
        lambda s: [((_word(s["version"]),), 1)], "version",
    ),
    gauge("kvtier_uptime_seconds", "since this kvtierd began", "uptime_s", lambda s: s["uptime_s"]),
    by_tier("kvtier_tier_capacity_bytes", "what a tier has room for; 0: there is no such tier", "gpu cpu nvme",
            "capacity_bytes"),
    by_tier("kvtier_tier_used_bytes", "what of it is taken", "gpu cpu nvme", "used_bytes"),
    by_tier("kvtier_tier_block_bytes", "what the blocks of a tier have in RAM; more than is taken where a codec made them "
            "smaller", "nvme", "block_bytes"),
    by_word("kvtier_codec_ratio", "how many times smaller the codec that a tier uses now makes blocks; 1: it uses none",
            "tier", "tiers.*.coding.codecs.*.ratio", _codec_ratios),
    Family("kvtier_codec_bytes_per_second", GAUGE, "bytes of blocks that one thread encodes or decodes with the codec that "
           "a tier uses now; 0: not measured", ("tier", "operation"), _codec_speeds,
           "tiers.*.coding.codecs.*.encode_bytes_per_s, decode_bytes_per_s"),
    by_tier("kvtier_tier_blocks", "blocks that are in a tier", "gpu cpu nvme", "blocks"),
    by_tier("kvtier_tier_known_blocks", "blocks known to be in the remote", "remote", "known_there"),
    by_tier("kvtier_tier_waiting_blocks", "blocks that wait to be written to a tier", "gpu nvme remote", "candidates"),
    by_tier("kvtier_tier_waiting_lookups", "lookups that wait for blocks of a tier", "nvme remote", "waiting_lookups"),
    by_tier("kvtier_tier_reading_bytes", "what is being read from a tier", "nvme remote", "reading_bytes"),
    by_tier("kvtier_tier_writing_bytes", "what is being written to a tier", "nvme remote", "writing_bytes"),
    by_tier("kvtier_tier_read_only", "1: a tier takes no writes now; the log says why", "gpu nvme remote", "read_only"),
    by_word("kvtier_tier_on", "0: a tier was slower than computing in the last minute and is off", "tier",
            "decisions.guard.tiers.*.on", _guarded),
    by_tier("kvtier_breaker_state", "whether the remote is left alone: 0 no (closed), 1 it is tried (half-open), 2 yes "
            "(open)", "remote", "breaker", lambda state: BREAKER_STATES.get(state, 0)),
    by_tier("kvtier_write_budget_left_bytes", "what may be written to a tier at once; then writes wait for their budget",
            "nvme remote", "budget_left_bytes"),
    gauge("kvtier_disk_bytes", "what the NVMe tier takes on its drives", "tiers.nvme.disk_bytes",
          lambda s: s["tiers"].get("nvme", {}).get("disk_bytes", 0)),
    gauge("kvtier_drive_life_seconds", "how long the drives last at the present rate of writes, by their rating",
          "tiers.nvme.days_of_life", _drive_life_s),
    by_word("kvtier_link_bytes_per_second", "how fast a tier is believed to be read; 0: there is no such tier", "tier",
            "decisions.links.*.bytes_per_s", _links("bytes_per_s", 1)),
    by_word("kvtier_link_latency_seconds", "how long a read from a tier is believed to take before its first byte", "tier",
            "decisions.links.*.latency_us", _links("latency_us", 1e-6)),
    gauge("kvtier_lent_bytes", "slots that engines hold to save into", "tiers.cpu.lent_bytes",
          lambda s: s["tiers"]["cpu"]["lent_bytes"]),
    gauge("kvtier_leased_bytes", "blocks that leases keep in RAM", "tiers.cpu.leased_bytes",
          lambda s: s["tiers"]["cpu"]["leased_bytes"]),
    gauge("kvtier_leases", "leases that are open", "engines.*.leases", lambda s: sum(e["leases"] for e in s["engines"])),
    gauge("kvtier_waiting_decisions", "requests that wait for their answer", "decisions.waiting",
          lambda s: s["decisions"]["waiting"]),
    gauge("kvtier_engine_connected", "engines that are connected", "engines", lambda s: len(s["engines"])),
    gauge("kvtier_engine_unpinned_bytes", "the most of the arena that an engine's GPU copies slowly, for its worker may "
          "lock too little memory", "engines.*.unpinned_bytes",
          lambda s: max((e["unpinned_bytes"] for e in s["engines"]), default=0)),
    by_word("kvtier_clients", "processes that are connected", "role", "clients.*.role", _clients),
    by_word("kvtier_sessions", "sessions that are known, by their state", "state", "retention.sessions",
            lambda s: s["retention"]["sessions"]),
    gauge("kvtier_session_pinned_bytes", "what users have pinned", "retention.pinned_bytes",
          lambda s: s["retention"]["pinned_bytes"]),
    gauge("kvtier_session_pin_quota_bytes", "what users may pin", "retention.pin_quota_bytes",
          lambda s: s["retention"]["pin_quota_bytes"]),
    gauge("kvtier_pinned_bytes", "what of the arena is locked in RAM", "arena.pinned",
          lambda s: s["tiers"]["cpu"]["capacity_bytes"] if s["arena"]["pinned"] else 0),
    gauge("kvtier_huge_page_bytes", "what of the arena lies in huge pages", "arena.huge_bytes",
          lambda s: s["arena"]["huge_bytes"]),
    gauge("kvtier_decision_regret_seconds_total", "what requests waited longer than the other choice was expected to take",
          "decisions.regret_s", lambda s: s["decisions"]["regret_s"], COUNTER),
    gauge("kvtier_saved_prefill_seconds", "what engines did not have to compute, less what loads cost them; falls where "
          "loads were a mistake", "decisions.saved_gpu_s", lambda s: s["decisions"]["saved_gpu_s"]),
    gauge("process_cpu_seconds_total", "what kvtierd has computed, user and system", "process.cpu_s",
          lambda s: s["process"]["cpu_s"], COUNTER),
    gauge("process_resident_memory_bytes", "what kvtierd has in RAM, the arena included as far as it was touched",
          "process.resident_bytes", lambda s: s["process"]["resident_bytes"]),
    gauge("process_open_fds", "its open descriptors", "process.open_fds", lambda s: s["process"]["open_fds"]),
    gauge("process_max_fds", "how many it may have", "process.max_fds", lambda s: s["process"]["max_fds"]),
    gauge("process_start_time_seconds", "when it began, since 1970", "process.started_s",
          lambda s: s["process"]["started_s"]),
)  # fmt: skip
