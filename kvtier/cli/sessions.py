"""kvtier sessions: one line a session. What `kvtier top` shows of them is made here too."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kvtier.admin import default_admin_socket
from kvtier.cli.page import harmless, page, short_count, short_size, short_time
from kvtier.client import usual_socket
from kvtier.listing import LIMIT_MAX, SORTS
from kvtier.usage import examples

Row = Mapping[str, Any]

NAME_COLUMNS_MIN = 8
LIMIT = 100


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "sessions",
        help="the sessions that kvtierd knows, one line each",
        description="What kvtierd knows of each conversation: what it has in which tier, and when it is expected back.",
        epilog=examples(
            "kvtier sessions --sort bytes --limit 20",
            "kvtier sessions --tenant 3fa9c1d20b77 --json",
            exits="0 good; 1 no kvtierd; 2 wrong usage",
        ),
    )
    parser.add_argument("--sort", choices=SORTS, default=SORTS[0], help="by what (%(default)s)")
    parser.add_argument("--limit", type=_limit, default=LIMIT, metavar="N", help=f"at most {LIMIT_MAX} (%(default)d)")
    parser.add_argument("--tenant", default="", metavar="ID", help="only of this tenant: its 12 hex digits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_sockets(parser)


def add_socket(parser: argparse.ArgumentParser) -> None:
    found = "where kvtierd listens; default: $KVTIER_SOCKET, else kvtier/kvtierd.sock in $XDG_RUNTIME_DIR, else in /run"
    parser.add_argument("--socket", type=Path, default=usual_socket(), metavar="PATH", help=found)


def add_sockets(parser: argparse.ArgumentParser) -> None:
    add_socket(parser)
    parser.add_argument("--admin", type=Path, metavar="PATH", help="admin.socket; default: admin.sock beside the other")


def admin_socket(given: argparse.Namespace) -> Path:
    return given.admin or default_admin_socket(given.socket)


def run(given: argparse.Namespace) -> None:
    """Prints to stdout. DaemonError when there is no daemon."""
    from kvtier.admin.caller import AdminCaller  # gRPC takes its time: only those who need it wait for it

    with AdminCaller(admin_socket(given)) as caller:
        rows, known = caller.sessions(given.sort, given.limit, tenant=given.tenant)
    if given.json:
        print(json.dumps({"sessions": rows, "known": known}))
        return
    console = page()
    console.print(table_of(rows, console.width))
    if known > len(rows):
        print(f"{len(rows):,} of {known:,} sessions; --limit N shows more")


def table_of(rows: Sequence[Row], width: int, sort: str = "") -> Table:
    """Within so many columns; what finds no room is left out, the least needed first. `sort`: of which column it is
    told."""
    columns = _fitting(rows, width)
    name_width = width - sum(columns[name][0] + 1 for name in columns) - 1
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    shown.add_column("session", width=max(NAME_COLUMNS_MIN, name_width), no_wrap=True, overflow="ellipsis")
    for name, (columns_wide, _) in columns.items():
        is_left = name in ("state", "tool")
        style = "reverse" if SORT_COLUMNS.get(sort) == name else "bold"
        shown.add_column(name, justify="left" if is_left else "right", width=columns_wide, no_wrap=True, header_style=style)
    for row in rows:
        shown.add_row(harmless(row["session"]), *(say(row) for _, say in columns.values()))
    if not rows:
        shown.add_row("none")
    return shown


def _fitting(rows: Sequence[Row], width: int) -> dict[str, tuple[int, Callable[[Row], str]]]:
    columns = dict(COLUMNS)
    if not any(row["bytes"].get("remote") for row in rows):
        del columns["remote"]
    for name in DISPENSABLE:
        if NAME_COLUMNS_WANTED + sum(columns[name][0] + 1 for name in columns) < width:
            break
        columns.pop(name, None)
    return columns


def _returns(row: Row) -> str:
    expected = row["expected_return_s"]
    return "" if expected is None else "now" if expected <= 0 else short_time(expected)


def _pin(row: Row) -> str:
    return short_time(row["pin_left_s"]) if row["pinned"] else ""


def _blocks_gone(row: Row) -> str:
    gone = row["blocks"].get("gone", 0)
    return short_count(gone) if gone else ""


COLUMNS: dict[str, tuple[int, Callable[[Row], str]]] = {  # how wide, and what stands there
    "state": (10, lambda row: harmless(row["state"])),
    "idle": (4, lambda row: short_time(row["idle_s"])),
    "turns": (5, lambda row: short_count(row["turns"])),
    "tokens": (6, lambda row: short_count(row["tokens"])),
    "cpu": (5, lambda row: short_size(row["bytes"].get("cpu", 0))),
    "nvme": (5, lambda row: short_size(row["bytes"].get("nvme", 0))),
    "remote": (6, lambda row: short_size(row["bytes"].get("remote", 0))),
    "gone": (5, _blocks_gone),
    "returns": (7, _returns),
    "chance": (6, lambda row: f"{row['return_chance']:.0%}"),
    "pin": (4, _pin),
    "tool": (16, lambda row: harmless(row["tool"])),
}
DISPENSABLE = ("tool", "gone", "turns", "returns", "remote")
NAME_COLUMNS_WANTED = 16
SORT_COLUMNS = {"idle": "idle", "tokens": "tokens", "bytes": "cpu", "return": "returns", "turns": "turns"}


def _limit(text: str) -> int:
    """argparse shows what is wrong."""
    limit = int(text)
    if not 1 <= limit <= LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {LIMIT_MAX}")
    return limit
