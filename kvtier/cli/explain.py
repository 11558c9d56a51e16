"""kvtier explain: why a request was offered what it was offered, and whether that was right.

Of the two arms, to fetch and to compute it all, only one is taken: what the other would have taken stays an estimate,
and is marked as one.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from kvtier import observer
from kvtier.cli.page import harmless, page, table
from kvtier.cli.sessions import add_socket
from kvtier.config import format_size
from kvtier.decision import REASONS
from kvtier.decision_log import FILES, line_of, read_last, state_folder
from kvtier.errors import DaemonError
from kvtier.usage import examples

LAST = "last"
LOGGED_MAX = 1_000_000  # records of a log that are looked through

Record = Mapping[str, Any]

# What to do about each reason of decision.REASONS
CURES: dict[str, str] = {
    "never_stored": "nothing, if the text is new; else `kvtier stats` shows what was not saved and why",
    "evicted": "raise cpu.capacity or nvme.capacity; `kvtier simulate` says what more room would bring",
    "namespace_differs": "start the engines with the same model, dtype, block size and parallelism; where the same weights "
    "lie under other paths, set weights_id",
    "too_short": "nothing: for so few tokens there is nothing to gain",
    "too_dear": "nothing, if the prediction was right; a faster drive or remote, or less load on it, makes fetching pay",
    "timed_out": "look whether a drive or the remote is slow or busy: `kvtier stats`, `kvtier calibrate`",
    "tier_off": "nothing: it is tried again now and then; look whether its drive or the remote is slow or busy",
    "remote_away": "look whether the remote of remote.url runs and can be reached; kvtierd tries it again by itself",
    "tenant_loads": "raise tenant.max_loads, or have fewer requests at once under this salt",
    "hold_out": "nothing; cost.holdout says how many requests go without",
}

PARTS = (  # of the time to the first token; where the predicted and the actual name is
    ("wait_ms", "from its arrival until the engine began with it"),
    ("staged_ms", "until the daemon had answered, with what had to come from the drives and the remote"),
    ("load_ms", "from the arena into the engine; predicted: all of the fetching"),
    ("prefill_ms", "computed by the engine"),
)
ASSUMED = {
    "cpu_latency_us": "latency, arena to engine",
    "cpu_bytes_per_s": "bandwidth, arena to engine",
    "nvme_latency_us": "latency, drives to arena",
    "nvme_bytes_per_s": "bandwidth, drives to arena",
    "nvme_queued_bytes": "reads of the drives ahead of it",
    "remote_latency_us": "latency, remote to arena",
    "remote_bytes_per_s": "bandwidth, remote to arena",
    "remote_queued_bytes": "reads of the remote ahead of it",
    "price_us": "others wait because of what is computed",
    "recompute_us": "computing what matched and isn't taken",
    "rest_us": "computing what didn't match",
    "backlog_us": "work of the engine ahead of it",
    "arrivals_mhz": "requests that arrive",
    "busy_permille": "the engine is busy",
}
PREFILL = ("step_ns", "token_ps", "pair_fs", "chunk_tokens", "steps")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "explain",
        help="why a request was offered what it was offered, and whether that was right",
        description="One decision of kvtierd: what matched and was offered, what was expected and what came, and why.",
        epilog=examples(
            "kvtier explain",
            "kvtier explain chatcmpl-6f0d3f5c --json",
            "kvtier explain --n 20",
            "kvtier explain chatcmpl-6f0d3f5c --log /var/lib/kvtier",
            exits="0 good; 1 no kvtierd, or no such request; 2 wrong usage",
        ),
    )
    parser.add_argument("request", nargs="?", default=LAST, help='a request\'s id, or "last" (the default)')
    parser.add_argument("--n", type=int, default=1, metavar="N", help="the N newest decisions, one line each")
    parser.add_argument("--json", action="store_true", help="print the records as a JSON array, newest last")
    parser.add_argument("--log", nargs="?", const="", metavar="FOLDER", help="look into the decision log, ask no kvtierd")
    add_socket(parser)


def run(given: argparse.Namespace) -> None:
    """Prints to stdout. DaemonError: no daemon, or no such request."""
    last = max(1, given.n)
    if given.log is None:
        found = list(observer.explain(given.socket, given.request, last))[-last:]
    else:
        found = _logged(state_folder(given.log), given.request, last)
    if not found:
        raise DaemonError(_unknown(given.request))
    if given.json:
        print(line_of(found))
    elif last > 1:
        page().print(list_of(found))
    else:
        page().print(page_of(found[-1]))


def _logged(folder: Path, request: str, last: int) -> list[dict[str, Any]]:
    try:
        if request == LAST:
            return read_last(folder, last)
        return [record for record in read_last(folder, LOGGED_MAX) if record.get("request") == request][-last:]
    except OSError as error:
        raise DaemonError(f"can't read the decision log in {folder}: {error.strerror}; name its folder") from None


def _unknown(request: str) -> str:
    if request == LAST:
        return "no decision was made yet"
    return (
        f"no decision is known of request {harmless(request)!r}; kvtierd keeps the newest, and those that ended are in "
        f"{FILES} files below cost.state: see --log"
    )


# --- one decision --------------------------------------------------------------------------------------------


def page_of(record: Record) -> Group:
    """All of one decision."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.get("at", 0)))
    title = f"request {harmless(record.get('request', ''))}  engine {harmless(record.get('engine', ''))}  {when}"
    parts: list[RenderableType] = [title, *_verdict(record), "", _tokens(record), "", _times(record)]
    if record.get("assumed"):
        parts += ["", _assumed(record)]
    return Group(*parts)


def _verdict(record: Record) -> list[str]:
    offered, matched = record.get("offered_tokens", 0), record.get("matched_tokens", 0)
    mode = record.get("mode")
    lines = [f"{_count(offered)} of {_count(matched)} matched tokens were offered to the engine"]
    if mode == "shadow":
        lines[0] += "; cost.mode is shadow: nothing is loaded, whatever is decided"
    if mode == "always":
        lines[0] += "; cost.mode is always: nothing was weighed"
    if record.get("actual") is not None and offered:
        saved, net = record.get("saved_tokens", 0), record.get("saved_gpu_ms", 0)
        lines.append(f"{_count(saved)} tokens were not computed; that saved the engine {_ms(net)} ms, net of its cost")
    for tier, (size, stored) in (record.get("frames") or {}).items():
        lines.append(
            f"{harmless(tier)}: a codec made {format_size(size)} of blocks into frames of {format_size(stored)}, "
            f"{size / max(1, stored):.2f} times smaller"
        )
    if record.get("regret_ms"):
        lines.append(f"the other arm would have been {_ms(record['regret_ms'])} ms faster, by the estimate")
    reason = record.get("reason")
    if reason:
        detail = f" ({harmless(record['detail'])})" if record.get("detail") else ""
        lines.append(f"why not more: {REASONS.get(reason, harmless(reason))}{detail}")
        lines.append(f"what to do:   {CURES.get(reason, 'install the same kvtier for daemon and command')}")
    return lines


def _tokens(record: Record) -> Table:
    tiers = sorted({*record.get("matched", {}), *record.get("offered", {})})
    shown = table("tokens", "all", *map(harmless, tiers), "")
    none = [""] * len(tiers)
    shown.add_row("prompt", _count(record.get("prompt_tokens")), *none)
    shown.add_row("resident", _count(record.get("resident_tokens")), *none, "in the engine's own cache")
    for name, words in (("matched", "found in a tier, beyond these"), ("offered", "in RAM, and worth it")):
        by_tier = [_count(record.get(name, {}).get(tier, 0)) for tier in tiers]
        shown.add_row(name, _count(record.get(f"{name}_tokens")), *by_tier, words)
    return shown


def _times(record: Record) -> Table:
    """Predicted and actual time to the first token, by arm and by part."""
    predicted, actual = record.get("predicted") or {}, record.get("actual")
    shown = table("milliseconds", "predicted", "actual", "")
    for arm, words in (("fetch", "fetch"), ("recompute", "compute it all")):
        guess = predicted.get(f"{arm}_ms")
        if arm != record.get("arm"):
            shown.add_row(words, _ms(guess), "", "" if guess is None else "not taken: no more than an estimate")
        elif actual is None:
            shown.add_row(words, _ms(guess), "", "taken; how it ended is not known")
        else:
            shown.add_row(words, _ms(guess), _ms(actual.get("ttft_ms")), "taken: time to the first token")
    for name, words in PARTS:
        guess, was = predicted.get(name), (actual or {}).get(name)
        if guess is not None or was is not None:
            shown.add_row(f"  {name.removesuffix('_ms')}", _ms(guess), _ms(was), words)
    return shown


def _assumed(record: Record) -> Table:
    assumed = dict(record["assumed"])
    shown = table("assumed", "", "")
    step_ns, token_ps, pair_fs, chunk, steps = (assumed.pop(name, 0) for name in PREFILL)
    if record.get("calibrated"):
        said = f"{step_ns / 1e6:.4g} ms a step of {chunk:,} tokens"
        said += f" + {token_ps / 1e6:.4g} us a token + {pair_fs / 1e6:.4g} ns a pair"
        shown.add_row("computing", said, f"learnt from {steps:,} steps")
    else:
        shown.add_row("computing", "not known yet", f"after {steps:,} steps: a floor and a deadline decide")
    for name in ("tokens", "tier", "load_us", "ttft_us"):
        assumed.pop(name, None)  # the other tables say as much
    for name, value in assumed.items():
        shown.add_row(ASSUMED.get(name, harmless(name)), _quantity(name, value))
    return shown


# --- several -------------------------------------------------------------------------------------------------


def list_of(records: Sequence[Record]) -> Table:
    """One line a decision, the newest last."""
    shown = table("at", "", "prompt", "resident", "matched", "offered", "fetch ms", "compute ms", "actual ms", "")
    for record in records:
        predicted, actual = record.get("predicted") or {}, record.get("actual") or {}
        taken = record.get("arm")
        guesses = {arm: _ms(predicted.get(f"{arm}_ms")) for arm in ("fetch", "recompute")}
        shown.add_row(
            time.strftime("%H:%M:%S", time.localtime(record.get("at", 0))),
            harmless(record.get("request", "")),
            *(_count(record.get(f"{name}_tokens")) for name in ("prompt", "resident", "matched", "offered")),
            *(guess + ("*" if guess and arm == taken else " ") for arm, guess in guesses.items()),
            _ms(actual.get("ttft_ms")),
            harmless(record.get("reason", "")),
        )
    shown.caption = "* taken; both are predictions"
    shown.caption_justify = "left"
    return shown


def _count(n: int | None) -> str:
    return "" if n is None else f"{n:,}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _quantity(name: str, value: object) -> str:
    """With the unit that its name ends in."""
    if not isinstance(value, int | float):
        return harmless(value)
    if name.endswith("_bytes_per_s"):
        return f"{value / 1e9:.3g} GB/s"
    if name.endswith("_bytes"):
        return format_size(value)
    if name.endswith("_us"):
        return f"{value / 1e3:,.1f} ms"
    if name.endswith("_mhz"):
        return f"{value / 1e3:.3g} a second"
    return f"{value / 1e3:.1%} of the time" if name.endswith("_permille") else f"{value:,}"
