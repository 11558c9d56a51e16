"""What codecs make of the blocks below RAM, and what that bought: a table for kvtier stats, a line for kvtier top."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from kvtier.cli.page import harmless, short_count, short_size, table
from kvtier.config import format_size

PREFIXES = {"nvme": "", "remote": "remote_"}  # of a tier's counters
RAW = "none"

State = Mapping[str, Any]


def codings(now: State) -> Iterator[tuple[str, State]]:
    """Of the tiers that may have frames, as a snapshot tells it."""
    for tier in PREFIXES:
        coding = now["tiers"].get(tier, {}).get("coding")
        if coding is not None:
            yield tier, coding


def more_blocks(tier: State) -> int:
    """How many of its blocks a tier wouldn't have room for, if no codec had made them smaller."""
    as_in_ram, taken = tier.get("block_bytes", 0), tier.get("used_bytes", 0)
    return round(tier.get("blocks", 0) * (1 - taken / as_in_ram)) if as_in_ram > taken else 0


def spared_bytes(now: State, tier: str) -> int:
    """What a codec left to be neither written to a tier nor read from it."""
    return sum(now["counters"].get(f"{PREFIXES[tier]}spared_{way}_bytes", 0) for way in ("read", "write"))


def tables_of(now: State) -> list[Table]:
    """What each codec did, and why it is used or isn't; nothing where nobody wants one and none did anything."""
    shown = table("codecs", "blocks", "ratio", "encode GB/s", "decode GB/s", "more blocks fit", "not moved", "")
    rows = 0
    for tier, coding in codings(now):
        if coding["wanted"] == RAW and not any(done["blocks"] for done in coding["codecs"].values()):
            continue
        bought = (f"{more_blocks(now['tiers'][tier]):,}" if tier == "nvme" else "", format_size(spared_bytes(now, tier)))
        used = name_of(coding)
        if used not in coding["codecs"]:
            shown.add_row(f"{used} for {tier}", *[""] * 4, *bought, _why(coding))
            rows += 1
        for name, done in sorted(coding["codecs"].items(), key=lambda row: row[0] != used):
            why = _why(coding) if name == used else f"not used: {harmless(done['why_not'])}"
            shown.add_row(f"{name} for {tier}", *_done(done), *(bought if name == used else ("", "")), why)
            rows += 1
    return [shown] if rows else []


def name_of(coding: State) -> str:
    """Of the codec in use, without what it is told."""
    return harmless(str(coding["codec"]).partition(":")[0])


def line_of(now: State) -> str:
    """For a narrow screen; empty where no codec is in use."""
    parts = []
    for tier, coding in codings(now):
        used = name_of(coding)
        if used == RAW:
            continue
        ratio = coding["codecs"].get(used, {}).get("ratio") or 1.0
        more = more_blocks(now["tiers"][tier])
        fits = f", {short_count(more)} blocks more fit" if more else ""
        spared = short_size(spared_bytes(now, tier))
        parts.append(f"{tier} {used} {ratio:.2f}x{fits}" + (f", {spared} not moved" if spared else ""))
    return f"codecs: {'; '.join(parts)}" if parts else ""


def _why(coding: State) -> str:
    return f"used: {harmless(coding['why'])}"


def _done(done: State) -> tuple[str, ...]:
    """Blocks, ratio, speeds; nothing where nothing was measured."""
    speeds = (done["encode_bytes_per_s"], done["decode_bytes_per_s"])
    return (
        f"{done['blocks']:,}" if done["blocks"] else "",
        f"{done['ratio']:.3f}" if done["ratio"] else "",
        *(f"{speed / 1e9:.2f}" if speed else "" for speed in speeds),
    )
