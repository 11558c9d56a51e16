"""kvtier warm, park, pin, end, forget: what a person or a script says of one session."""

import argparse
import json
from typing import Any

from rich.table import Table

from kvtier.cli.page import harmless, page, short_time, table
from kvtier.cli.sessions import add_sockets, admin_socket
from kvtier.config import format_size
from kvtier.errors import ConfigError
from kvtier.usage import examples

VERBS = {
    "warm": ("read a session's blocks into RAM: its user comes back soon", "Its blocks in lower tiers are read into RAM."),
    "park": ("let a session's blocks leave RAM", "It will be away for long: its blocks are the first to leave RAM."),
    "pin": ("keep a session's blocks in RAM", "As far as policy.pin_share of the arena allows."),
    "end": ("a session is over", "Nobody comes back: its blocks are the first to go."),
    "forget": (
        "remove a session, or all of a tenant, from every tier",
        "Its bytes are overwritten with zeros in RAM and on drives. Ends when that is through, and prints the proof.",
    ),
}
EXAMPLES = {
    "warm": ("kvtier warm chat-42",),
    "park": ("kvtier park chat-42",),
    "pin": ("kvtier pin chat-42 --for 7200", "kvtier pin chat-42 --off"),
    "end": ("kvtier end chat-42",),
    "forget": ("kvtier forget chat-42", "kvtier forget --tenant 3fa9c1d20b77"),
}
EXITS = "0 good; 1 no kvtierd, or nothing of that name is known; 2 wrong usage"
WHY_KEPT = "another session had them first, or has them too; forget that one, or its tenant"
WHY_LEFT = "none of these blocks is there any more; what other nodes stored of it stays until they forget it, too"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for verb, (help_text, description) in VERBS.items():
        epilog = examples(*EXAMPLES[verb], exits=EXITS)
        parser = commands.add_parser(verb, help=help_text, description=description, epilog=epilog)
        wanted = "?" if verb == "forget" else None
        parser.add_argument("session", nargs=wanted, metavar="SESSION", help="its name, as `kvtier sessions` lists it")
        parser.add_argument("--tenant", default="", metavar="ID", help="of this tenant: 12 hex digits (of any)")
        if verb == "pin":
            how_long = parser.add_mutually_exclusive_group()
            how_long.add_argument("--for", dest="seconds", type=float, metavar="S", help="seconds (policy.pin_s)")
            how_long.add_argument("--off", dest="seconds", action="store_const", const=0.0, help="no longer")
        if verb == "forget":
            parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="wait so long (%(default)g)")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        add_sockets(parser)


def run(given: argparse.Namespace) -> None:
    """Prints to stdout. DaemonError: no daemon, or nothing of that name is known."""
    from kvtier.admin.caller import AdminCaller  # gRPC takes its time: only those who need it wait for it

    name = given.session or ""
    with AdminCaller(admin_socket(given)) as caller:
        if given.command == "forget":
            if not name and not given.tenant:
                raise ConfigError("name a session, or a tenant with --tenant")
            proof = caller.forget(name, given.tenant, given.timeout)
            if given.json:
                print(json.dumps(proof))
                return
            page().print(proof_of(proof))
            if "remote" in proof["blocks"]:
                print(f"remote: {WHY_LEFT}")
            if proof["keys_shredded"]:
                print(f"data keys shredded: {proof['keys_shredded']:,}; no copy of the drives shows its blocks any more")
            if proof["shared_blocks_kept"]:
                print(f"{proof['shared_blocks_kept']:,} shared blocks are kept: {WHY_KEPT}")
            return
        options = {"seconds": given.seconds} if given.command == "pin" else {}
        answer = getattr(caller, given.command)(name, given.tenant, **options)
    if given.json:
        print(json.dumps({"session": name, **answer}))
    else:
        print(f"session {harmless(name)}: {said(given.command, answer, options.get('seconds'))}")


def said(verb: str, answer: dict[str, Any], seconds: float | None = None) -> str:
    """What came of it."""
    if verb == "end":
        return "is over" if answer["sessions"] == 1 else f"{answer['sessions']:,} sessions of this name are over"
    n = answer["blocks"]
    blocks = "1 block" if n == 1 else f"{n:,} blocks"
    if verb == "warm":
        return f"{blocks} to be read into RAM" if n else "no block is to be read: what is left of it is in RAM"
    if verb == "park":
        return f"{blocks} may leave RAM"
    if seconds == 0:
        return f"{blocks} no longer pinned"
    if not n:
        return "no block pinned: it has none in RAM, or policy.pin_share of the arena is pinned already"
    return f"{blocks} pinned" + (f" for {short_time(seconds)}" if seconds else "")


def proof_of(proof: dict[str, Any]) -> Table:
    """What was removed, by tier."""
    shown = table("forgotten", "blocks", "zeroed", "")
    for tier in proof["blocks"]:
        shown.add_row(harmless(tier), f"{proof['blocks'][tier]:,}", format_size(proof["bytes_zeroed"].get(tier, 0)), "")
    shown.add_row("sessions", f"{proof['sessions']:,}", "", "")
    return shown
