"""kvtier stats: what the daemon holds and does. Rates are differences of two snapshots; the daemon keeps none."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table

from kvtier.cli.codecs import tables_of
from kvtier.cli.page import harmless, page, table
from kvtier.config import format_size
from kvtier.metrics import exposition
from kvtier.observer import ask
from kvtier.stats import COUNTERS

FLOWS = {
    "gpu": ("mirrored_bytes", "found_gpu_bytes"),
    "cpu": ("saved_bytes", "loaded_bytes"),
    "nvme": ("demoted_bytes", "promoted_bytes"),
    "remote": ("remote_demoted_bytes", "remote_promoted_bytes"),
}  # in, out
RATE_S = 0.2  # with -1: how long rates are measured


def run(socket: Path, *, once: bool, as_json: bool, as_prom: bool, interval: float) -> None:
    """Prints to stdout. DaemonError when there is no daemon."""
    before = ask(socket)
    if as_json:
        print(json.dumps(before))
        return
    if as_prom:
        print(exposition(before), end="")
        return
    if once:
        time.sleep(RATE_S)
        page().print(render(before, ask(socket)))
        return
    with Live(render(before, before), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(max(0.1, interval))
            now = ask(socket)
            live.update(render(before, now), refresh=True)
            before = now


def render(before: dict[str, Any], now: dict[str, Any]) -> Group:
    """Tables of one snapshot, with rates since the one before."""
    arena = now["arena"]
    pages = "2 MiB pages" if arena["huge_bytes"] else "4 KiB pages"
    pinned = "pinned" if arena["pinned"] else "not pinned"
    title = f"kvtierd {now['version']}  up {_duration(now['uptime_s'])}  pid {now['pid']}  arena {pages}, {pinned}"
    tiers = [_device(now["tiers"]["gpu"])] if "gpu" in now["tiers"] else []
    tiers += [_drives(now["tiers"]["nvme"])] if "nvme" in now["tiers"] else []
    tiers += [_remote(now["tiers"]["remote"])] if "remote" in now["tiers"] else []
    tiers += tables_of(now)
    engines = [_engines(now), *[_workers(now)] * bool(now["engines"])]
    return Group(title, _tiers(before, now), *tiers, *engines, _sessions(now), _decisions(now), _counters(now))


def rate(before: Mapping[str, Any], now: Mapping[str, Any], counter: str) -> float:
    """In thousands of millions a second."""
    if now["generation"] != before["generation"]:  # of another daemon
        return 0.0
    return (now["counters"][counter] - before["counters"][counter]) / max(1e-9, now["uptime_s"] - before["uptime_s"]) / 1e9


def _tiers(before: dict[str, Any], now: dict[str, Any]) -> Table:
    shown = table("tier", "capacity", "used", "blocks", "lent", "leased", "hit tokens", "GB/s in", "GB/s out")
    for name, tier in now["tiers"].items():
        capacity = tier.get("capacity_bytes")  # a remote's is its own business
        shown.add_row(
            name,
            format_size(capacity) if capacity else "",
            f"{format_size(tier['used_bytes'])} ({tier['used_bytes'] / capacity:.0%})" if capacity else "",
            f"{tier['blocks']:,}" if "blocks" in tier else "",
            format_size(tier["lent_bytes"]) if "lent_bytes" in tier else "",
            format_size(tier["leased_bytes"]) if "leased_bytes" in tier else "",
            f"{tier['hit_tokens']:,}" if "hit_tokens" in tier else "",
            *(f"{rate(before, now, counter):.2f}" for counter in FLOWS[name]),
        )
    return shown


def _device(gpu: dict[str, Any]) -> Table:
    """The GPU tier's device, and who reads there."""
    shown = table("GPU tier", "state", "registered", "to copy", "read by")
    shown.add_row(
        gpu["device"][:40],
        f"refuses: {gpu['reason'][:60]}" if gpu["read_only"] else "good" if gpu["is_well"] else "not read: a copy failed",
        format_size(gpu["pinned_bytes"]),
        f"{gpu['candidates'] + gpu['pending']:,}",
        f"{gpu['readers']:,} engines",
    )
    return shown


def _drives(nvme: dict[str, Any]) -> Table:
    """The NVMe tier's drives: how they are used, and how long they last."""
    shown = table("drives", "state", "I/O", "to write", "writes a day", "budget a day", "budget left", "days of life")
    life = nvme["days_of_life"]
    shown.add_row(
        ", ".join(drive["path"] for drive in nvme["drives"])[:40],
        f"read-only: {nvme['reason']}" if nvme["read_only"] else "good, encrypted" if nvme.get("encrypted") else "good",
        nvme["io"],
        f"{nvme['candidates'] + nvme['writes_pending']:,}",
        format_size(nvme["written_bytes_per_day"]),
        format_size(nvme["budget_bytes_per_day"]),
        format_size(nvme["budget_left_bytes"]),
        "" if life is None else f"{life:,.0f}",
    )
    return shown


def _remote(remote: dict[str, Any]) -> Table:
    """The remote: whether it answers, what is known of it, what is asked, read and written."""
    shown = table("remote", "state", "known", "hits", "ask ms", "read", "written", "to write", "writes")
    shown.add_row(
        harmless(remote["url"])[:40],
        state_of_remote(remote),
        f"{remote['known_there']:,}",
        f"{remote['hit_share']:.0%}",
        f"{remote['ask_ms']:.1f}",
        format_size(remote["read_bytes"]),
        format_size(remote["written_bytes"]),
        f"{remote['candidates']:,}",
        f"stopped: {harmless(remote['reason'])[:60]}" if remote["read_only"] else "good",
    )
    return shown


def state_of_remote(remote: Mapping[str, Any]) -> str:
    """What its breaker says."""
    if remote["breaker"] == "closed":
        return "good"
    return f"left alone for {_duration(remote['breaker_seconds'])}: {harmless(remote['breaker_reason'])[:60]}"


def _engines(now: dict[str, Any]) -> Table:
    shown = table("engine", "processes", "block", "tokens/block", "lent slots", "leases", "leased blocks", "connected")
    for engine in now["engines"]:
        pids = [str(c["pid"]) for c in now["clients"] if c["engine"] == engine["engine"]]
        shown.add_row(
            engine["engine"][:24],
            " ".join(pids),
            format_size(engine["slot_bytes"]),
            str(engine["block_tokens"]),
            f"{engine['lent_slots']}/{engine['lend_target']}",
            str(engine["leases"]),
            str(engine["leased_blocks"]),
            _duration(engine["connected_s"]),
        )
    if not now["engines"]:
        shown.add_row("none is connected")
    return shown


def _workers(now: dict[str, Any]) -> Table:
    """How the engines' workers copy."""
    shown = table("copies", "by", "registered", "read the GPU tier", "")
    for engine in now["engines"]:
        unpinned = engine["unpinned_bytes"]
        shown.add_row(
            f"workers of {engine['engine'][:24]}",
            ", ".join(engine["copies"]) or "not yet",
            format_size(engine["pinned_bytes"]),
            "yes" if engine["maps_gpu"] else "no",
            f"! too little locked memory: {format_size(unpinned)} of the arena copied slowly" if unpinned else "",
        )
    return shown


def _sessions(now: dict[str, Any]) -> Table:
    """How many there are in each state; `kvtier sessions` lists them."""
    kept = now["retention"]
    shown = table("sessions", *kept["sessions"], "pinned", "pins at most")
    shown.add_row(
        f"{sum(kept['sessions'].values()):,}",
        *(f"{n:,}" for n in kept["sessions"].values()),
        format_size(kept["pinned_bytes"]),
        format_size(kept["pin_quota_bytes"]),
    )
    return shown


def _decisions(now: dict[str, Any]) -> Table:
    """Fetch or recompute: what came of it."""
    made, counters = now["decisions"], now["counters"]
    shown = table("decisions", "fetched", "computed", "held out", "tokens saved", "GPU s saved, net", "s of regret", "off")
    off = [name for name, tier in made["guard"]["tiers"].items() if not tier["on"]]
    shown.add_row(
        made["mode"],
        f"{counters['decided_fetch']:,}",
        f"{counters['decided_recompute']:,}",
        f"{counters['missed_hold_out']:,}",
        f"{counters['loaded_tokens']:,}",
        f"{made['saved_gpu_s']:,.1f}",
        f"{made['regret_s']:,.1f}",
        ", ".join(off) or "none",
    )
    return shown


def _counters(now: dict[str, Any]) -> Table:
    shown = table("since start", "", "")
    for name, meaning in COUNTERS.items():
        value = now["counters"].get(name, 0)
        if value:
            shown.add_row(name, f"{value:,}", meaning)
    return shown


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02}m" if hours else f"{m}m{s:02}s" if m else f"{s}s"
