"""kvtier drain: before maintenance. Writes what is worth keeping to the drives and the remote, and waits for that."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvtier.cli.page import harmless, page, table
from kvtier.cli.sessions import add_sockets, admin_socket
from kvtier.config import format_size
from kvtier.errors import DaemonError
from kvtier.usage import examples

TIMEOUT_S = 600.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "drain",
        help="write below what is worth keeping, before maintenance",
        description="What is in RAM and worth keeping is written to the drives and to the remote, and what only the drives "
        "have to the remote too, so that other nodes find it there. kvtierd goes on to serve: what engines save after this "
        "is not part of it, so stop sending them requests first.",
        epilog=examples(
            "kvtier drain --timeout 300",
            exits="0 all of it survives kvtierd now; 1 not all of it does, and why, or there is no kvtierd; 2 wrong usage",
        ),
    )
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="give up after (%(default)g)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_sockets(parser)


def run(given: argparse.Namespace) -> None:
    """Prints to stdout, progress to stderr. DaemonError: no daemon, or not all is safe, and why."""
    last = _watched(given)
    if given.json:
        print(json.dumps(last))
    elif last["blocks_written"]:
        page().print(render(last))
    if not last["safe"]:
        raise DaemonError(why_not(last))


def _watched(given: argparse.Namespace) -> dict[str, Any]:
    """The last that it said. Also when the time was over: then it isn't safe."""
    from kvtier.admin.caller import AdminCaller  # gRPC takes its time: only those who need it wait for it

    last: dict[str, Any] = {}
    console = Console(file=sys.stderr)
    columns = (TextColumn("draining"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        AdminCaller(admin_socket(given)) as caller,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=None)
        try:
            for last in caller.drain(given.timeout):
                left, done = sum(last["bytes_left"].values()), sum(last["bytes_written"].values())
                progress.update(task, total=left + done, completed=done, description=f"{format_size(left)} left")
        except DaemonError:
            if not last:
                raise
    return last


def render(last: dict[str, Any]) -> Table:
    """By tier: what was written, and what was not."""
    shown = table("drained", "blocks", "bytes", "left", "")
    for tier, blocks in last["blocks_written"].items():
        size, left = last["bytes_written"].get(tier, 0), last["blocks_left"].get(tier, 0)
        shown.add_row(harmless(tier), f"{blocks:,}", format_size(size), f"{left:,}")
    for reason, blocks in last["blocks_refused"].items():
        shown.add_row("not written", f"{blocks:,}", "", "", harmless(REASONS.get(reason, reason)))
    return shown


def why_not(last: dict[str, Any]) -> str:
    if not last["blocks_written"]:
        return "nothing is below RAM, what is there ends with kvtierd: set nvme.paths or remote.url, or use `kvtier export`"
    left = {tier: blocks for tier, blocks in last["blocks_left"].items() if blocks}
    if left:
        tiers = " and ".join(f"{blocks:,} blocks to {harmless(tier)}" for tier, blocks in left.items())
        return f"not written yet: {tiers}; kvtierd goes on with it: run this again, see `kvtier stats` for why it is slow"
    return "not all of it survives kvtierd: a tier is away or read-only, see `kvtier stats`; run this again when it is back"


REASONS: dict[str, str] = {
    "no_disk": "its session wants it on no disk (max_tier)",
    "max_tier": "its session wants it on no other machine (max_tier)",
    "ended": "its session is over",
    "reset": "its engine's weights were changed while it ran: of no use to others",
    "too_large": "larger than an extent",
    "erasing": "the remote is still deleting what was forgotten of it",
}
