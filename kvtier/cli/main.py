"""kvtier and tier-stats: arguments in, exit code out. 0 good, 1 no daemon, 2 wrong usage."""

import argparse
import sys
from pathlib import Path

from kvtier import __version__
from kvtier.cli import stats
from kvtier.client import default_socket
from kvtier.errors import DaemonError


def main() -> None:
    _run(sys.argv[1:], "kvtier")


def tier_stats() -> None:
    """`tier-stats` is `kvtier stats`."""
    _run(["stats", *sys.argv[1:]], "tier-stats")


def _run(arguments: list[str], program: str) -> None:
    parser = argparse.ArgumentParser(prog="kvtier", description="Watch kvtierd.")
    parser.add_argument("--version", action="version", version=f"kvtier {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shown = commands.add_parser(
        "stats",
        prog=program if program != "kvtier" else None,
        help="tiers, engines, leases, and what was not saved and why",
        description="What kvtierd holds and does. On a terminal it stays and redraws; elsewhere it prints once.",
    )
    shown.add_argument("--socket", type=Path, default=default_socket(), metavar="PATH", help="default: %(default)s")
    shown.add_argument("-1", dest="once", action="store_true", help="print once and end")
    shown.add_argument("--json", action="store_true", help="print one JSON object and end")
    shown.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between redraws (%(default)g)")
    given = parser.parse_args(arguments)
    try:
        stats.run(given.socket, once=given.once or not sys.stdout.isatty(), as_json=given.json, interval=given.interval)
    except DaemonError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
