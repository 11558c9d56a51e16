"""kvtier top: a live screen of tiers, sessions and decisions, for 80 columns and more."""

import argparse
import json
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvtier import observer
from kvtier.cli.codecs import line_of
from kvtier.cli.explain import LAST
from kvtier.cli.page import harmless, page, short_count, short_size, short_time
from kvtier.cli.sessions import add_sockets, admin_socket, table_of
from kvtier.cli.stats import FLOWS, rate, state_of_remote
from kvtier.errors import DaemonError
from kvtier.listing import LIMIT_MAX, SORTS
from kvtier.usage import examples

REFRESH_S = 1.0
ANSWER_S = 2.0  # a key is heard after so long at the latest
DECISIONS = 4  # shown, where there is the usual height
HEIGHT_USUAL = 20
KEYS = {
    b"q": "quit", b"s": "sort", b"r": "reverse", b"p": "pause",
    b"j": "down", b"k": "up", b"\x1b[B": "down", b"\x1b[A": "up", b"\x1bOB": "down", b"\x1bOA": "up",
}  # fmt: skip
_KEY = re.compile(rb"\x1b[\[O][A-D]|.", re.DOTALL)
HELP = "q quit  s sort  r reverse  p pause  j/k scroll"

State = Mapping[str, Any]


@dataclass
class View:
    """What its user has chosen to see."""

    sort: str = SORTS[0]
    is_reversed: bool = False
    is_paused: bool = False
    first: int = 0  # session that is shown
    is_over: bool = False

    def press(self, key: bytes) -> bool:
        """Whether it means something."""
        meant = KEYS.get(key)
        if meant == "quit":
            self.is_over = True
        elif meant == "sort":
            self.sort, self.first = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], 0
        elif meant == "reverse":
            self.is_reversed, self.first = not self.is_reversed, 0
        elif meant == "pause":
            self.is_paused = not self.is_paused
        elif meant in ("down", "up"):
            self.first = max(0, self.first + (1 if meant == "down" else -1))
        return meant is not None


@dataclass
class Seen:
    """What the daemon has told, and what it told before; `trouble`: why there is nothing newer."""

    before: State = field(default_factory=dict)
    now: State = field(default_factory=dict)
    sessions: Sequence[State] = ()
    known: int = 0
    decisions: Sequence[State] = ()
    trouble: str = ""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "top",
        help="a live screen of tiers, sessions and decisions",
        description=f"Redraws every second. Keys: {HELP}. Without a terminal it prints once and ends.",
        epilog=examples("kvtier top", "kvtier top --sort bytes", exits="0 good; 1 no kvtierd; 2 wrong usage"),
    )
    parser.add_argument("--sort", choices=SORTS, default=SORTS[0], help="sessions by what (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and end")
    add_sockets(parser)


def run(given: argparse.Namespace) -> None:
    """Draws to stdout. DaemonError when there is no daemon at the start; later ones are waited for."""
    from kvtier.admin.caller import AdminCaller  # gRPC takes its time: only those who need it wait for it

    view, seen = View(given.sort), Seen()
    with AdminCaller(admin_socket(given), ANSWER_S) as caller:

        def look() -> None:
            limit = LIMIT_MAX if view.is_reversed else min(LIMIT_MAX, view.first + 100)
            state = observer.ask(given.socket, ANSWER_S)
            seen.sessions, seen.known = caller.sessions(view.sort, limit)
            seen.decisions = observer.explain(given.socket, LAST, DECISIONS, ANSWER_S)[-DECISIONS:]
            seen.before, seen.now = seen.now or state, state

        look()
        if given.json:
            print(json.dumps({**seen.now, "sessions": seen.sessions, "decided": seen.decisions}))
        elif sys.stdin.isatty() and sys.stdout.isatty():
            _live(view, seen, look)
        else:
            console = page()
            console.print(screen_of(seen, view, console.width, len(seen.sessions) + 100))


# --- the terminal --------------------------------------------------------------------------------------------


def _live(view: View, seen: Seen, look: Any) -> None:
    """Until its user quits."""
    console = page()
    with _keys(sys.stdin.fileno()) as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + REFRESH_S
        while not view.is_over:
            live.update(screen_of(seen, view, console.width, console.height), refresh=True)
            sorted_by = (view.sort, view.is_reversed)
            for key in pressed(max(0.0, due - time.monotonic())):
                view.press(key)
            if time.monotonic() >= due or sorted_by != (view.sort, view.is_reversed):
                due = time.monotonic() + REFRESH_S
                if not view.is_paused:
                    _look_again(seen, look)


def _look_again(seen: Seen, look: Any) -> None:
    try:
        look()
        seen.trouble = ""
    except DaemonError as error:
        seen.trouble = str(error)


@contextmanager
def _keys(fd: int) -> Iterator[Any]:
    """A function that waits so many seconds for keys. Afterwards the terminal is as it was, however this ends."""

    def pressed(seconds: float) -> list[bytes]:
        if not select.select([fd], [], [], seconds)[0]:
            return []
        read = os.read(fd, 1024)
        return _KEY.findall(read) if read else [b"q"]  # the terminal has gone away

    before = termios.tcgetattr(fd)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


# --- the screen ----------------------------------------------------------------------------------------------


def screen_of(seen: Seen, view: View, width: int, height: int) -> Group:
    """No more lines than `height`, none longer than `width`. Sessions have the lines that nothing else needs; `view`
    doesn't go beyond the last of them."""
    above: list[RenderableType] = [_title(seen, view, width), _tiers(seen)]
    below = [*_remote(seen, width), *_codecs(seen, width)]
    above += [*below, *_sums(seen, width)]
    lines = 4 + len(seen.now["tiers"]) + len(below)
    if seen.decisions and height >= HEIGHT_USUAL:
        above += ["", _decisions(seen.decisions, width)]
        lines += 2 + len(seen.decisions)
    room = max(1, height - lines - 3)  # an empty line, the header, the last line
    rows = list(reversed(seen.sessions)) if view.is_reversed else list(seen.sessions)
    view.first = min(view.first, max(0, len(rows) - room))
    shown = rows[view.first : view.first + room]
    order = f"{len(rows) and view.first + 1}-{view.first + len(shown)} of {seen.known:,} by {view.sort}"
    last = f"{order}{', reversed' if view.is_reversed else ''}  {HELP}"
    return Group(*above, "", table_of(shown, width, view.sort), _line(last, width, "dim"))


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(harmless(text), style=style, no_wrap=True, overflow="ellipsis")
    line.truncate(width, overflow="ellipsis")
    return line


def _title(seen: Seen, view: View, width: int) -> Text:
    if seen.trouble:
        return _line(f"as it was before: {seen.trouble}", width, "bold red")
    now = seen.now
    paused = "  paused" if view.is_paused else ""
    engines = f"{len(now['engines'])} engine{'s' if len(now['engines']) != 1 else ''}"
    return _line(f"kvtierd {now['version']}  up {short_time(now['uptime_s'])}  {engines}{paused}", width, "bold")


def _narrow(*columns: tuple[str, int]) -> Table:
    """Of so many columns each."""
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, (name, width) in enumerate(columns):
        holds_words = number == 0 or name in ("", "request")
        made.add_column(name, justify="left" if holds_words else "right", width=width, no_wrap=True, overflow="ellipsis")
    return made


def _tiers(seen: Seen) -> Table:
    shown = _narrow(("tier", 6), ("capacity", 8), ("used", 6), ("%", 4), ("blocks", 7), ("GB/s in", 7), ("out", 6))
    for name, tier in seen.now["tiers"].items():
        capacity = tier.get("capacity_bytes")  # a remote's is its own business
        shown.add_row(
            harmless(name),
            short_size(capacity) if capacity else "",
            (short_size(tier["used_bytes"]) or "0") if capacity else "",
            f"{tier['used_bytes'] / capacity:.0%}" if capacity else "",
            short_count(tier["blocks" if capacity else "known_there"]),
            *(f"{rate(seen.before, seen.now, counter):.2f}" for counter in FLOWS[name]),
        )
    return shown


def _sums(seen: Seen, width: int) -> tuple[Text, Text]:
    """What sessions there are, and what was decided."""
    kept = seen.now["retention"]
    counts = [f"{n:,} {state}" for state, n in kept["sessions"].items() if n]
    pinned = f"; {short_size(kept['pinned_bytes'])} pinned" if kept["pinned_bytes"] else ""
    made, counters = seen.now["decisions"], seen.now["counters"]
    decided = (
        f"decisions: {short_count(counters['decided_fetch'])} fetched, "
        f"{short_count(counters['decided_recompute'])} computed; "
        f"{short_count(counters['loaded_tokens'])} tokens saved, {made['saved_gpu_s']:,.1f} GPU s net"
    )
    off = [name for name, tier in made["guard"]["tiers"].items() if not tier["on"]]
    return (
        _line(f"sessions: {', '.join(counts) or 'none'}{pinned}", width),
        _line(decided + (f"; off: {', '.join(off)}" if off else ""), width),
    )


def _remote(seen: Seen, width: int) -> list[Text]:
    """Where there is one, what it is like."""
    remote = seen.now["tiers"].get("remote")
    if remote is None:
        return []
    state = state_of_remote(remote)
    if state == "good":
        state = f"{remote['hit_share']:.0%} hits, asked in {remote['ask_ms']:.1f} ms"
    if remote["read_only"] and not remote["is_away"]:
        state += f"; no writes: {remote['reason']}"
    return [_line(f"remote: {remote['url']}, {state}", width)]


def _codecs(seen: Seen, width: int) -> list[Text]:
    """Where blocks are made smaller, by how much."""
    line = line_of(seen.now)
    return [_line(line, width)] if line else []


def _decisions(records: Sequence[State], width: int) -> Table:
    """One line a decision, the newest last."""
    request = max(8, width - 60)
    shown = _narrow(("at", 8), ("prompt", 7), ("matched", 7), ("offered", 7), ("actual", 7), ("request", request), ("", 17))
    for record in records:
        took = (record.get("actual") or {}).get("ttft_ms")
        shown.add_row(
            time.strftime("%H:%M:%S", time.localtime(record.get("at", 0))),
            *(short_count(record.get(f"{name}_tokens") or 0) for name in ("prompt", "matched", "offered")),
            "" if took is None else f"{took:.0f}ms",
            harmless(record.get("request", "")),
            harmless(record.get("reason") or ""),
        )
    return shown
