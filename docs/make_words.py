"""`make words`: every page that says what the source says. With --check: whether they still do.

Man pages and completion are made from the parsers; docs/options.md, counters.md and metrics.md from their declarations. All
of it is committed, so that nobody who installs kvtier needs what makes it; tests/docs compares them.
"""

import sys
from pathlib import Path

import reference
from completion import SHELLS, completion
from man_page import Entry, page

from kvtier import daemon
from kvtier.cli import main as cli
from kvtier.config import DAEMON

ROOT = Path(__file__).parents[1]
PARSERS = {"kvtierd": daemon.parser, "kvtier": cli.parser, "tier-stats": cli.tier_stats_parser}
REFERENCE = {"options": reference.options, "counters": reference.counters, "metrics": reference.metrics}
SECTIONS = {"kvtierd": 8, "kvtier": 1, "tier-stats": 1}
ABOUT = {
    "kvtierd": "keeps the KV cache of idle conversations",
    "kvtier": "watch and care for kvtierd",
    "tier-stats": "what kvtierd holds and does",
}
SOCKET = ("KVTIER_SOCKET", "Where kvtierd listens, for kvtierd, engines and commands. Settings and options go before it.")
FILES = [
    ("/etc/kvtier/kvtier.toml", "The service's settings."),
    ("/etc/kvtier/key", "The key of what is encrypted on drives and in the remote."),
    ("/run/kvtier/kvtierd.sock", "Where engines connect, unless server.socket or KVTIER_SOCKET says otherwise."),
    ("/run/kvtier/admin.sock", "Where `kvtier` and gateways speak of sessions; beside the other."),
]
SIGNALS = [("SIGTERM, SIGINT", "Write what is worth it below RAM, for at most nvme.drain_s, and end.")]
DAEMON_ENVIRONMENT = [
    SOCKET,
    ("XDG_RUNTIME_DIR", "Where the socket's folder is made without a setting; /run if unset."),
    ("STATE_DIRECTORY, XDG_STATE_HOME", "Where what is learnt of the machine is kept without cost.state."),
    ("CREDENTIALS_DIRECTORY", "Where systemd puts the credentials that a setting names."),
    ("KVTIER_REMOTE_PASSWORD", "The remote's password, without remote.password_file."),
]


def more_of(program: str) -> dict[str, list[Entry]]:
    """The sections that no parser knows of."""
    if program != "kvtierd":
        return {"environment": [SOCKET]}
    settings = [(f"{o.name} = {reference.shown(o, o.default).strip('`') or '(empty)'}", o.why) for o in DAEMON]
    return {"settings": settings, "signals": SIGNALS, "environment": DAEMON_ENVIRONMENT, "files": FILES}


def words() -> dict[Path, str]:
    """Every page, by its path below the root of the source."""
    pages = {Path(f"docs/{name}.md"): made() for name, made in REFERENCE.items()}
    titles = [f"{name}({section})" for name, section in SECTIONS.items()]
    for name, parser in PARSERS.items():
        see = [title for title in titles if not title.startswith(f"{name}(")]
        file = Path(f"systemd/man/{name}.{SECTIONS[name]}")
        pages[file] = page(parser(), SECTIONS[name], ABOUT[name], more_of(name), see)
        for shell in SHELLS:
            pages[completion_file(name, shell)] = completion(parser(), shell)
    return pages


def completion_file(name: str, shell: str) -> Path:
    return Path("systemd/completion") / (f"{name}.bash" if shell == "bash" else f"_{name}")


def stale() -> list[str]:
    """The pages that don't say any more what the source says."""
    return [str(path) for path, text in words().items() if not _holds(ROOT / path, text)]


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text() == text


def main() -> None:
    if "--check" in sys.argv[1:]:
        for path in stale():
            print(f"{path} doesn't say what the source says: make words", file=sys.stderr)
        sys.exit(1 if stale() else 0)
    for path, text in words().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
