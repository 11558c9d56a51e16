"""kvtier and tier-stats: arguments in, exit code out. 0 good, 1 no daemon or something is bad, 2 wrong usage."""

import argparse
import sys
from pathlib import Path

from kvtier import __version__, observer
from kvtier.cli import (
    calibrate,
    doctor,
    drain,
    explain,
    install_service,
    moving,
    secret,
    sessions,
    simulate,
    size,
    stats,
    top,
    verbs,
    verify,
)
from kvtier.cli.sessions import add_socket
from kvtier.errors import ConfigError, DaemonError, KVTierError
from kvtier.usage import Parser, examples

WITH_PARSERS = {
    "sessions": sessions,
    "top": top,
    **dict.fromkeys(verbs.VERBS, verbs),
    **dict.fromkeys(moving.VERBS, moving),
    "drain": drain,
    "doctor": doctor,
    "explain": explain,
    "calibrate": calibrate,
    "secret": secret,
    "install-service": install_service,
    "simulate": simulate,
    "size": size,
}


STATS = (
    "What kvtierd holds and does: tiers, engines, leases, sessions, decisions, and what was not saved and why. On a "
    "terminal it stays and redraws; elsewhere it prints once."
)
STATS_EXITS = "0 good; 1 no kvtierd answers; 2 wrong usage"


def main() -> None:
    _run(parser().parse_args())


def tier_stats() -> None:
    """`tier-stats` is `kvtier stats`."""
    _run(tier_stats_parser().parse_args())


def _run(given: argparse.Namespace) -> None:
    try:
        if given.command == "stats":
            once = given.once or not sys.stdout.isatty()
            stats.run(given.socket, once=once, as_json=given.json, as_prom=given.prom, interval=given.interval)
        elif given.command == "flush":
            if not observer.flush(given.socket, given.timeout):
                raise DaemonError("the NVMe tier is off or read-only: not everything would survive a crash now")
        elif given.command == "verify":
            if not verify.run(given.folder, as_json=given.json, key_file=given.key_file):
                sys.exit(1)
        else:
            WITH_PARSERS[given.command].run(given)
    except KVTierError as error:
        print(f"{given.program}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


def parser() -> Parser:
    """Of `kvtier`, with all its commands."""
    made = Parser(
        prog="kvtier",
        description="Watch and care for kvtierd, which keeps the KV cache of idle conversations. `kvtier COMMAND --help` "
        "says more of each command.",
        epilog=examples(
            "kvtier stats -1",
            "kvtier explain",
            "kvtier sessions --sort bytes",
            exits="0 good; 1 no kvtierd answers, or something is bad; 2 wrong usage or settings; 130 interrupted",
        ),
    )
    made.set_defaults(program="kvtier")
    made.add_argument("--version", action="version", version=f"kvtier {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shown = commands.add_parser(
        "stats",
        help="tiers, engines, leases, and what was not saved and why",
        description=STATS,
        epilog=examples("kvtier stats", "kvtier stats --json", exits=STATS_EXITS),
    )
    _add_stats(shown)
    flushed = commands.add_parser(
        "flush",
        help="write what is in RAM and worth it to NVMe; end when it survives a crash",
        description="Writes every block that is in RAM and worth a write, and waits until all of them survive a crash.",
        epilog=examples(
            "kvtier flush --timeout 120",
            exits="0 every block that was in RAM and worth a write survives a crash now; 1 not all do, or there is no "
            "kvtierd; 2 wrong usage",
        ),
    )
    flushed.add_argument("--timeout", type=float, default=60.0, metavar="S", help="give up after (%(default)g)")
    add_socket(flushed)
    verified = commands.add_parser(
        "verify",
        help="read every block of an NVMe tier and check it",
        description="For a tier that no kvtierd uses now. Corrupt blocks are forgotten.",
        epilog=examples(
            "kvtier verify /mnt/nvme0/kvtier /mnt/nvme1/kvtier",
            exits="0 all is good; 1 something was bad, or the tier is in use; 2 wrong usage",
        ),
    )
    verified.add_argument("folder", type=Path, nargs="+", metavar="FOLDER", help="those of nvme.paths, in their order")
    verified.add_argument("--key-file", default="", metavar="FILE", help="encryption.key_file, where they are encrypted")
    verified.add_argument("--json", action="store_true", help="print one JSON object")
    for subcommand in dict.fromkeys(WITH_PARSERS.values()):
        subcommand.add_parser(commands)
    return made


def tier_stats_parser() -> Parser:
    """Of `tier-stats`."""
    epilog = examples("tier-stats", "tier-stats -1", "tier-stats --json", exits=STATS_EXITS)
    made = Parser(prog="tier-stats", description=STATS, epilog=epilog)
    made.set_defaults(program="tier-stats", command="stats")
    made.add_argument("--version", action="version", version=f"tier-stats {__version__}")
    _add_stats(made)
    return made


def _add_stats(made: argparse.ArgumentParser) -> None:
    made.add_argument("-1", dest="once", action="store_true", help="print once and end")
    made.add_argument("--json", action="store_true", help="print one JSON object and end")
    made.add_argument("--prom", action="store_true", help="print what Prometheus reads at metrics.listen, and end")
    made.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between redraws (%(default)g)")
    add_socket(made)
