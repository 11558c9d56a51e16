"""kvtier doctor: what is wrong with this machine, for kvtier, and what to do."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from kvtier import __version__
from kvtier.admin import default_admin_socket
from kvtier.cli.page import harmless, page
from kvtier.client import usual_socket
from kvtier.doctor.checks import Check, examine
from kvtier.doctor.facts import gather
from kvtier.doctor.findings import BAD, LEVELS, OK, WARN, Finding, worst
from kvtier.doctor.system import System
from kvtier.usage import examples

STYLES = {OK: "green", WARN: "yellow", BAD: "bold red"}
WIDTH = max(len(level) for level in LEVELS) + 1
NAME_WIDTH = 20


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="is this machine as kvtier needs it? what to do where it isn't",
        description="Looks at memory, drives, GPUs, engines, permissions and versions, with the settings of the kvtierd "
        "that runs, or of a file. Changes nothing, asks no network, and needs no kvtierd. Each line is ok, warn (kvtier "
        "works, but slower or less safely than it might) or bad (it does not), with what to do. Run it as root, or as the "
        "user of kvtierd: others see less.",
        epilog=examples(
            "kvtier doctor",
            "kvtier doctor --config /etc/kvtier/kvtier.toml",
            "kvtier doctor --json --strict",
            exits="0 nothing is bad; 1 something is bad or, with --strict, worth a warning; 2 wrong usage, or a wrong file",
        ),
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="its settings (those of the kvtierd that runs)")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="where kvtierd listens (as the settings say)")
    parser.add_argument("--strict", action="store_true", help="warnings count, too")
    parser.add_argument("--quiet", action="store_true", help="only what is not ok")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(given: argparse.Namespace) -> None:
    """Prints to stdout. Ends the process with 1 when something is bad. ConfigError: the file is wrong."""
    admin = default_admin_socket(usual_socket()).name
    found = list(examine(gather(System(), given.config, given.socket, admin)))
    counts = {level: sum(finding.level == level for _, finding in found) for level in LEVELS}
    if given.json:
        print(json.dumps(report(found, counts)))
    else:
        show(page(), [one for one in found if not given.quiet or one[1].level != OK], counts)
    if counts[BAD] or (given.strict and counts[WARN]):
        sys.exit(1)


def report(found: list[tuple[Check, Finding]], counts: dict[str, int]) -> dict[str, Any]:
    """As JSON values."""
    rows = [
        {"subject": check.subject, "check": check.name, "level": one.level, "said": one.said, "cure": one.cure}
        for check, one in found
    ]
    return {"version": __version__, "level": worst([row["level"] for row in rows]), "counts": counts, "checks": rows}


def show(console: Console, found: list[tuple[Check, Finding]], counts: dict[str, int]) -> None:
    """A line a finding, and one below it that says what to do."""
    subject = ""
    for check, finding in found:
        if check.subject != subject:
            subject = check.subject
            console.print(Text(subject, "bold"))
        line = Text.assemble((finding.level.ljust(WIDTH), STYLES[finding.level]), check.name.ljust(NAME_WIDTH - WIDTH))
        console.print(line.append(harmless(finding.said)), soft_wrap=True)
        if finding.cure:
            console.print(Text(" " * NAME_WIDTH + "-> " + harmless(finding.cure)), soft_wrap=True)
    console.print(", ".join(f"{n} {level}" for level, n in counts.items()))
