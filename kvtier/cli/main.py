"""kvtier and tier-stats: arguments in, exit code out. 0 good, 1 no daemon or something is bad, 2 wrong usage."""

import argparse
import sys
from pathlib import Path

from kvtier import __version__, observer
from kvtier.cli import calibrate, drain, explain, moving, secret, sessions, simulate, size, stats, top, verbs, verify
from kvtier.client import default_socket
from kvtier.errors import ConfigError, DaemonError, KVTierError

WITH_PARSERS = {
    "sessions": sessions,
    "top": top,
    **dict.fromkeys(verbs.VERBS, verbs),
    **dict.fromkeys(moving.VERBS, moving),
    "drain": drain,
    "explain": explain,
    "calibrate": calibrate,
    "secret": secret,
    "simulate": simulate,
    "size": size,
}


def main() -> None:
    _run(sys.argv[1:], "kvtier")


def tier_stats() -> None:
    """`tier-stats` is `kvtier stats`."""
    _run(["stats", *sys.argv[1:]], "tier-stats")


def _run(arguments: list[str], program: str) -> None:
    given = _parser(program).parse_args(arguments)
    try:
        if given.command == "stats":
            once = given.once or not sys.stdout.isatty()
            stats.run(given.socket, once=once, as_json=given.json, interval=given.interval)
        elif given.command == "flush":
            if not observer.flush(given.socket, given.timeout):
                raise DaemonError("the NVMe tier is off or read-only: not everything would survive a crash now")
        elif given.command == "verify":
            if not verify.run(given.folder, as_json=given.json):
                sys.exit(1)
        else:
            WITH_PARSERS[given.command].run(given)
    except KVTierError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvtier", description="Watch and care for kvtierd.")
    parser.add_argument("--version", action="version", version=f"kvtier {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shown = commands.add_parser(
        "stats",
        prog=program if program != "kvtier" else None,
        help="tiers, engines, leases, and what was not saved and why",
        description="What kvtierd holds and does. On a terminal it stays and redraws; elsewhere it prints once.",
    )
    shown.add_argument("-1", dest="once", action="store_true", help="print once and end")
    shown.add_argument("--json", action="store_true", help="print one JSON object and end")
    shown.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between redraws (%(default)g)")
    flushed = commands.add_parser(
        "flush",
        help="write what is in RAM and worth it to NVMe; end when it survives a crash",
        description="Exit code 0: every block that was in RAM and worth a write survives a crash now.",
    )
    flushed.add_argument("--timeout", type=float, default=60.0, metavar="S", help="give up after (%(default)g)")
    for command in (shown, flushed):
        command.add_argument("--socket", type=Path, default=default_socket(), metavar="PATH", help="default: %(default)s")
    verified = commands.add_parser(
        "verify",
        help="read every block of an NVMe tier and check it",
        description="For a tier that no kvtierd uses now. Corrupt blocks are forgotten. Exit code 1: something was bad.",
    )
    verified.add_argument("folder", type=Path, nargs="+", help="the folders of nvme.paths, in their order")
    verified.add_argument("--json", action="store_true", help="print one JSON object")
    for subcommand in dict.fromkeys(WITH_PARSERS.values()):
        subcommand.add_parser(commands)
    return parser
