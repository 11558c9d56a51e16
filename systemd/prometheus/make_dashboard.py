"""Writes dashboard.json, what Grafana imports: python systemd/prometheus/make_dashboard.py

A panel a line below: its title, unit, what it says, and its queries with their legends. A query that would divide nothing
by nothing while a node is idle gives nothing instead.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DAEMON = 'instance=~"$instance"'
STAT_WIDTH, WIDTH, HEIGHT, COLUMNS = 4, 8, 8, 24

Panel = tuple[str, str, str, dict[str, str]]


def series(name: str, labels: str = "") -> str:
    return f"{name}{{{', '.join(filter(None, (DAEMON, labels)))}}}"


def summed(query: str, by: str) -> str:
    return f"sum by ({by}) ({query})" if by else f"sum({query})"


def rate(name: str, by: str = "", labels: str = "") -> str:
    return summed(f"rate({series(name, labels)}[$__rate_interval])", by)


def total(name: str, by: str = "", labels: str = "") -> str:
    return summed(series(name, labels), by)


def share(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0)"


def quantile(q: float, name: str, by: str = "") -> str:
    return f"histogram_quantile({q:g}, {rate(f'{name}_bucket', f'le, {by}'.rstrip(', '))}) >= 0"


def both(name: str) -> dict[str, str]:
    return {"half of them": quantile(0.5, name), "99 of 100": quantile(0.99, name)}


LOADED = rate("kvtier_lookup_tokens_total", labels='result="loaded"')
GLANCE: list[Panel] = [
    ("Daemons", "none", "How many kvtierd answer.", {"": f"count({series('kvtier_build_info')})"}),
    ("Engines", "none", "How many engines are connected to them.", {"": total("kvtier_engine_connected")}),
    ("Prompt tokens from kvtier", "percentunit", "Of all prompt tokens, those that engines loaded and did not compute.",
     {"": share(LOADED, rate("kvtier_lookup_tokens_total"))}),
    ("Prefill saved", "s", "What engines did not have to compute, less what loads cost them, since the daemons began.",
     {"": total("kvtier_saved_prefill_seconds")}),
    ("Corrupt blocks, 24 h", "none", "Blocks that came back as other bytes than were written. Each was a miss. More than "
     "none: look at the drive or the remote.", {"": f"sum(increase({series('kvtier_blocks_corrupt_total')}[1d]))"}),
    ("Remote left alone", "none", "0: the remote answers. 1: it is tried. 2: it failed or was silent, and is left alone.",
     {"": f"max({series('kvtier_breaker_state')})"}),
]  # fmt: skip
ROWS: dict[str, list[Panel]] = {
    "What engines gain": [
        ("Prompt tokens by where they came from", "short", "A second: from the engine's own cache (resident), from kvtier "
         "(loaded), or computed.", {"{{result}}": rate("kvtier_lookup_tokens_total", "result")}),
        ("Tokens not computed again", "short", "A second: what loads brought.",
         {"tokens": rate("kvtier_prefill_tokens_avoided_total")}),
        ("Decisions", "reqps", "Requests that were offered blocks (fetch), or none (recompute).",
         {"{{choice}}": rate("kvtier_decisions_total", "choice")}),
        ("Why not all tokens were offered", "reqps", "kvtier explain tells it of a single request.",
         {"{{reason}}": rate("kvtier_decisions_short_total", "reason")}),
        ("Regret", "percentunit", "Seconds, a second, that requests waited longer than the other choice was to take.",
         {"regret": rate("kvtier_decision_regret_seconds_total")}),
        ("Time to an answer", "s", "From a request's lookup to its answer. Long where it waits for blocks from below RAM.",
         both("kvtier_lookup_duration_seconds")),
        ("Time of a load", "s", "From an engine's order to its end: all blocks of a request.",
         both("kvtier_load_duration_seconds")),
        ("Lookups", "reqps", "Questions which of a request's blocks are here.",
         {"lookups": rate("kvtier_lookup_requests_total")}),
        ("Keys found", "percentunit", "Of the block keys that a tier was asked for, after those above it.",
         {"{{tier}}": share(rate("kvtier_lookups_total", "tier", 'result="hit", tier!="remote"'),
                            rate("kvtier_lookups_total", "tier"))}),
    ],
    "Tiers": [
        ("Used", "percentunit", "Of what a tier has room for. A full tier is usual; what it evicts is what matters.",
         {"{{tier}}": share(total("kvtier_tier_used_bytes", "tier"), total("kvtier_tier_capacity_bytes", "tier"))}),
        ("Blocks", "short", "How many are in a tier.", {"{{tier}}": total("kvtier_tier_blocks", "tier")}),
        ("Blocks that left", "ops", "By tier and why.",
         {"{{tier}}, {{reason}}": rate("kvtier_evictions_total", "tier, reason")}),
        ("Tiers that are on", "none", "0: a tier was slower than computing in the last minute, and is off.",
         {"{{tier}}": f"min by (tier) ({series('kvtier_tier_on')})"}),
        ("Tiers that take no writes", "none", "1: the log says why.",
         {"{{tier}}": f"max by (tier) ({series('kvtier_tier_read_only')})"}),
        ("Sessions", "short", "Conversations that are known, by their state.",
         {"{{state}}": total("kvtier_sessions", "state")}),
    ],
    "Transfers": [
        ("Bytes moved", "Bps", "By way.", {"{{src}} to {{dst}}": rate("kvtier_transfer_bytes_total", "src, dst")}),
        ("Bytes not moved", "Bps", "What codecs spared, by way: blocks lie below RAM as smaller frames.",
         {"{{src}} to {{dst}}": rate("kvtier_transfer_spared_bytes_total", "src, dst")}),
        ("Codecs", "none", "How many times smaller the codec in use makes blocks. 1: none is used; kvtier stats says why.",
         {"{{tier}}": f"max by (tier) ({series('kvtier_codec_ratio')})"}),
        ("Time of a transfer", "s", "99 of 100 blocks take at most so long between two tiers, from the order on.",
         {"{{src}} to {{dst}}": quantile(0.99, "kvtier_transfer_duration_seconds", "src, dst")}),
        ("Speed of reads, as believed", "Bps", "What decisions assume of a tier.",
         {"{{tier}}": f"max by (tier) ({series('kvtier_link_bytes_per_second')})"}),
        ("Blocks that wait to be written", "short", "Many for long: the tier is slower than its writes come.",
         {"{{tier}}": total("kvtier_tier_waiting_blocks", "tier")}),
        ("Blocks that were not written", "ops", "By tier and why.",
         {"{{tier}}, {{reason}}": rate("kvtier_blocks_not_written_total", "tier, reason")}),
        ("Errors of drives, devices and the remote", "ops", "No request fails: reads are misses, writes are tried again.",
         {"{{tier}} {{operation}}": rate("kvtier_io_errors_total", "tier, operation")}),
        ("Write budget left", "bytes", "What may be written at once; then writes wait for nvme.endurance_dwpd or "
         "remote.write_rate.", {"{{tier}}": f"min by (tier) ({series('kvtier_write_budget_left_bytes')})"}),
        ("Life of the drives", "s", "At the present rate of writes, by the drives' rating.",
         {"drives": f"min({series('kvtier_drive_life_seconds')})"}),
        ("Lookups that wait for blocks", "short", "By the tier that they wait for.",
         {"{{tier}}": total("kvtier_tier_waiting_lookups", "tier")}),
    ],
    "Engines": [
        ("Blocks that were not saved", "ops", "By why. no_slot: the arena is too small, or its tiers below too slow.",
         {"{{reason}}": rate("kvtier_blocks_not_saved_total", "reason")}),
        ("Trouble of engines", "ops", "All of it costs speed, never an answer.",
         {"late lookups": rate("kvtier_lookups_late_total"), "failed loads": rate("kvtier_failed_loads_total"),
          "faults": rate("kvtier_connector_faults_total")}),
        ("What engines hold of RAM", "bytes", "Slots lent to save into; blocks that leases keep.",
         {"lent": total("kvtier_lent_bytes"), "leased": total("kvtier_leased_bytes")}),
        ("Lent slots that became no block", "ops", "By why.",
         {"{{reason}}": rate("kvtier_slots_reclaimed_total", "reason")}),
        ("Clients", "none", "Processes that are connected, by their role.", {"{{role}}": total("kvtier_clients", "role")}),
        ("Engines that left or died", "ops", "Their slots and leases came back.",
         {"engines": rate("kvtier_engines_gone_total")}),
    ],
    "kvtierd": [
        ("CPU", "percentunit", "Of one core.", {"{{instance}}": rate("process_cpu_seconds_total", "instance")}),
        ("Memory", "bytes", "In RAM, the arena included; and what of the arena is locked there.",
         {"resident": total("process_resident_memory_bytes"), "pinned": total("kvtier_pinned_bytes")}),
        ("Lateness of the loop", "s", "So long whatever came had to wait.", both("kvtier_loop_delay_seconds")),
        ("Descriptors", "none", "Open, of those that it may have.",
         {"open": f"max({series('process_open_fds')})", "most": f"min({series('process_max_fds')})"}),
    ],
}  # fmt: skip


def panel(number: int, one: Panel, kind: str, place: dict[str, int]) -> dict[str, Any]:
    title, unit, meaning, queries = one
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {"refId": chr(ord("A") + i), "datasource": source, "expr": query, "legendFormat": legend or "__auto"}
        for i, (legend, query) in enumerate(queries.items())
    ]
    return {
        "id": number,
        "type": kind,
        "title": title,
        "description": meaning,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    }


def panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for i, one in enumerate(GLANCE):
        made.append(panel(len(made) + 1, one, "stat", {"x": i * STAT_WIDTH, "y": 0, "w": STAT_WIDTH, "h": 4}))
    y = 4
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        )
        y += 1
        for i, one in enumerate(row):
            line, column = divmod(i, COLUMNS // WIDTH)
            place = {"x": column * WIDTH, "y": y + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            made.append(panel(len(made) + 1, one, "timeseries", place))
        y += -(-len(row) // (COLUMNS // WIDTH)) * HEIGHT
    return made


def dashboard() -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    instances = {
        "name": "instance",
        "label": "node",
        "type": "query",
        "datasource": source,
        "query": "label_values(kvtier_build_info, instance)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
    sources = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "kvtier",
        "title": "kvtier",
        "description": "KV cache of idle conversations: what engines gain by it, its tiers, and what is wrong.",
        "tags": ["kvtier", "llm"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [sources, instances]},
        "panels": panels(),
    }


if __name__ == "__main__":
    (HERE / "dashboard.json").write_text(json.dumps(dashboard(), indent=1) + "\n")
