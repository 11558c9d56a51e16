"""kvtier export and import: one conversation as a file, from one node to another.

A file is written under a temporary name and gets its own when it is whole: what has the name is good. It holds prompts,
so nobody else may read it. "-" is a pipe; then what is said goes to stderr.
"""

import argparse
import json
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from kvtier.cli.page import harmless
from kvtier.cli.sessions import add_sockets, admin_socket
from kvtier.config import format_size
from kvtier.errors import ConfigError, DaemonError
from kvtier.usage import examples

PIPE = "-"
TIMEOUT_S = 3600.0  # a pipe may be a slow network

VERBS = {
    "export": (
        "write a session's blocks into a file, for another node",
        "What is in RAM and on drives of it goes into the file; the session stays. The file holds prompts: it is for its "
        "owner alone. Blocks that only a remote has are left out: the other node finds them there.",
        examples(
            "kvtier export chat-42 chat-42.kvtier",
            "kvtier export chat-42 - | ssh node-b kvtier import -",
            exits="0 the file is whole; 1 no kvtierd, no such session, or it is to stay on this node; 2 wrong usage",
        ),
    ),
    "import": (
        "take a session from another node's file",
        "Each block is verified. Both nodes need the same root secret (remote.secret_file), and engines of the same model.",
        examples(
            "kvtier import chat-42.kvtier",
            exits="0 all of it is here; 1 no kvtierd, or the file is damaged, or not all found room; 2 wrong usage",
        ),
    ),
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for verb, (help_text, description, epilog) in VERBS.items():
        parser = commands.add_parser(verb, help=help_text, description=description, epilog=epilog)
        if verb == "export":
            parser.add_argument("session", metavar="SESSION", help="its name, as `kvtier sessions` lists it")
            parser.add_argument("--tenant", default="", metavar="ID", help="of this tenant: 12 hex digits (of any)")
        parser.add_argument("file", metavar="FILE", help='"-": a pipe, as in `kvtier export S - | ssh B kvtier import -`')
        parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="give up after (%(default)g)")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        add_sockets(parser)


def run(given: argparse.Namespace) -> None:
    """Prints to stdout, progress to stderr. DaemonError: no daemon, or it can't be done, with the cure."""
    if given.command == "export":
        said = _export(given)
        print(json.dumps(said) if given.json else exported(said), file=sys.stderr if given.file == PIPE else sys.stdout)
        return
    said = _import(given)
    print(json.dumps(said) if given.json else imported(said))
    if said["blocks_without_room"]:
        sys.exit(1)


# --- export --------------------------------------------------------------------------------------------------


def _export(given: argparse.Namespace) -> dict[str, Any]:
    from kvtier.admin.caller import AdminCaller  # gRPC takes its time: only those who need it wait for it

    with AdminCaller(admin_socket(given)) as caller, _progress(given) as show:
        answers = caller.export(given.session, given.tenant, given.timeout)
        first = next(answers)  # nothing is written before the daemon agrees
        parcel = first["parcel"]
        with _written(given.file) as out:
            for answer in answers:
                out.write(answer["piece"])
                show(len(answer["piece"]), parcel["bytes"])
                parcel = answer["parcel"] or parcel
    return {"session": given.session, "file": given.file, **parcel}


def exported(said: dict[str, Any]) -> str:
    """In one line."""
    missing = said["blocks_missing"]
    left_out = f"; {missing:,} more are neither in RAM nor on a drive, or stand behind one" if missing else ""
    into = "a pipe" if said["file"] == PIPE else harmless(said["file"])
    size = format_size(said["bytes"])
    return f"session {harmless(said['session'])}: {said['blocks']:,} blocks, {size}, into {into}{left_out}"


@contextmanager
def _written(name: str) -> Iterator[BinaryIO]:
    """What is written gets this name when all is written; until then, and if it is not, nobody sees it."""
    if name == PIPE:
        yield from _piped()
        return
    path = Path(name)
    if _is_special(path):
        try:
            with open(name, "wb") as out:
                yield out
        except OSError as error:
            raise _cannot("write", name, error) from None
        return
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:64]}.", suffix=".part", dir=path.parent)  # 0600
    except OSError as error:
        raise _cannot("write", name, error) from None
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with open(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.rename(temporary, path)
    except OSError as error:
        raise _cannot("write", name, error) from None
    finally:
        Path(temporary).unlink(missing_ok=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    """In order: what is half written goes."""
    sys.exit(128 + number)


def _piped() -> Iterator[BinaryIO]:
    if sys.stdout.isatty():
        raise ConfigError("a session's bytes are nothing for a terminal: name a file, or a pipe behind this")
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        raise DaemonError("whoever was to take it has gone: look at what stands behind the pipe") from None


def _is_special(path: Path) -> bool:
    """A device or a pipe: never to be replaced by a file."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _cannot(verb: str, name: str, error: OSError) -> DaemonError:
    return DaemonError(f"can't {verb} {harmless(name)}: {error.strerror}; name another file")


# --- import --------------------------------------------------------------------------------------------------


def _import(given: argparse.Namespace) -> dict[str, Any]:
    from kvtier.admin import PIECE_BYTES
    from kvtier.admin.caller import AdminCaller

    with _read(given.file) as (file, size), AdminCaller(admin_socket(given)) as caller, _progress(given) as show:
        troubles: list[OSError] = []

        def pieces() -> Iterator[bytes]:
            """gRPC has a thread of its own for this, and keeps to itself what is raised there."""
            try:
                while piece := file.read(PIECE_BYTES):
                    show(len(piece), size)
                    yield piece
            except OSError as error:
                troubles.append(error)

        try:
            return caller.import_(pieces(), given.timeout)
        finally:
            if troubles:
                raise _cannot("read", given.file, troubles[0])


def imported(said: dict[str, Any]) -> str:
    """In one line."""
    names = ", ".join(harmless(name) for name in said["sessions"])
    parts = [f"{said['blocks_new']:,} blocks are new, {format_size(said['bytes_new'])}"]
    if said["blocks_known"]:
        parts.append(f"{said['blocks_known']:,} were known")
    if said["blocks_without_room"]:
        parts.append(f"{said['blocks_without_room']:,} found no room: raise cpu.capacity, or `kvtier end` what is over")
    return f"session {names}: {', '.join(parts)}"


@contextmanager
def _read(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """And its size; 0: nobody knows."""
    if name == PIPE:
        if sys.stdin.isatty():
            raise ConfigError("a terminal is no file of `kvtier export`: name one, or a pipe before this")
        yield sys.stdin.buffer, 0
        return
    try:
        with open(name, "rb", buffering=0) as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _cannot("read", name, error) from None


# --- both ----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(given: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """A function that takes how many bytes more, and of how many in all if that is known. Only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{given.command}ing", total=None)

        def show(more: int, of: int) -> None:
            progress.update(task, advance=more, total=of or None)

        yield show
