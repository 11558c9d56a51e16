"""kvtier install-service: lays out what systemd needs to run kvtierd, and keeps what is there of an operator's own."""

import argparse
import os
import pwd
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtier.config import example_toml
from kvtier.errors import ConfigError, DaemonError
from kvtier.secret_file import fresh_root
from kvtier.usage import examples

PREFIX = "/usr/local"
EXECUTABLE = "/usr/bin/kvtierd"  # as the unit that we ship has it
SETTINGS, KEY, ROOT_SECRET = "etc/kvtier/kvtier.toml", "etc/kvtier/key", "etc/kvtier/root"
# What a service has otherwise than a kvtierd that somebody starts by hand.
LINES = {
    "server.group": 'group = "kvtier"',
    "admin.group": 'group = "kvtier-admin"',
    "metrics.listen": 'listen = "127.0.0.1:9469"',
    "encryption.key_file": 'key_file = "key"',
    "nvme.paths": '#paths = "/var/lib/kvtier/nvme"',
}
DROP_INS = {"gpu": "gpu.conf", "network": "network.conf"}
PROGRAMS = ("kvtier", "kvtierd", "tier-stats")


@dataclass(frozen=True)
class Piece:
    """One file that is laid out."""

    path: str  # below the root
    text: str
    mode: int = 0o644
    is_theirs: bool = False  # it stays as it is, when it is there


def add_parser(commands: Any) -> None:
    """What it takes."""
    parser = commands.add_parser(
        "install-service",
        help="lay out what systemd needs to run kvtierd",
        description="Writes kvtierd.service, its socket, the user and groups, man pages and completion, and, where they "
        "are missing, /etc/kvtier/kvtier.toml and a key for encryption. Settings and keys that are there stay as they "
        "are. Nothing is started: it says what to do next. After an upgrade of kvtier it is run again. Below another "
        "--root no key is made, for what is built there may be a package, and each machine has a key of its own.",
        epilog=examples(
            "sudo kvtier install-service",
            "kvtier install-service --dry-run --gpu",
            "kvtier install-service --root build/package --prefix /usr --kvtierd /usr/bin/kvtierd",
            exits="0 all is there; 1 a file can't be written; 2 wrong usage, or systemd could not start this kvtierd",
        ),
    )
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="lay it out below this folder")
    parser.add_argument(
        "--prefix", type=Path, default=Path(PREFIX), metavar="DIR", help="for units and pages (%(default)s)"
    )
    parser.add_argument("--kvtierd", type=Path, metavar="FILE", help="what the unit starts (the one of this installation)")
    parser.add_argument("--gpu", action="store_true", help="let it reach NVIDIA GPUs, for gpu.capacity")
    parser.add_argument("--network", action="store_true", help="let it reach other nodes, for remote.url and peer.listen")
    parser.add_argument("--key", action="store_true", help="make a key below --root too: it is one machine's own")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; say what would be written")


def run(given: argparse.Namespace) -> None:
    """Prints to stdout. DaemonError: a file can't be written. ConfigError: this kvtierd can't be started by systemd."""
    executable = given.kvtierd or _executable()
    with_root = (given.root / ROOT_SECRET).exists()
    wanted = [name for name in DROP_INS if getattr(given, name)]
    below = str(given.root)
    with_key = given.key or below == os.sep
    for piece in pieces(_shipped(), str(given.prefix).strip("/"), executable, wanted, with_root=with_root):
        if piece.path != KEY or with_key:
            print(f"{_lay(given.root, piece, given.dry_run):9} {given.root / piece.path}")
    if not given.dry_run:
        print(NEXT.format(first="" if with_key else MAKE_KEY), end="")


MAKE_KEY = "  kvtier secret /etc/kvtier/key                      # on each machine, before the first start\n"


NEXT = """
Next, as root:
{first}  systemd-sysusers && systemd-tmpfiles --create      # user kvtier, groups kvtier and kvtier-admin
  $EDITOR /etc/kvtier/kvtier.toml                    # cpu.capacity; nvme.paths
  systemctl edit kvtierd                             # drives elsewhere: [Service] ReadWritePaths=/mnt/nvme0/kvtier
  systemctl daemon-reload
  systemctl enable --now kvtierd.socket kvtierd      # after an upgrade: systemctl restart kvtierd
  usermod -aG kvtier USER                            # each user that runs engines; then it logs in anew
  usermod -aG kvtier,kvtier-admin USER               # who may see, pin and forget all sessions
Engines find it at /run/kvtier/kvtierd.sock. Nodes that share a remote share /etc/kvtier/key too.
"""


def pieces(
    shipped: Path, prefix: str, executable: Path, drop_ins: list[str], *, with_root: bool = False
) -> Iterator[Piece]:
    """All that is laid out, from the files that kvtier brings."""
    units = f"{prefix}/lib/systemd/system"
    unit = (shipped / "kvtierd.service").read_text()
    assert f"ExecStart={EXECUTABLE} " in unit
    unit = unit.replace(f"ExecStart={EXECUTABLE} ", f"ExecStart={_quoted(executable)} ")
    if with_root:
        unit = unit.replace("#LoadCredential=root:", "LoadCredential=root:")
    yield Piece(f"{units}/kvtierd.service", unit)
    yield Piece(f"{units}/kvtierd.socket", (shipped / "kvtierd.socket").read_text())
    for name in drop_ins:
        yield Piece(f"{units}/kvtierd.service.d/{DROP_INS[name]}", (shipped / DROP_INS[name]).read_text())
    yield Piece(f"{prefix}/lib/sysusers.d/kvtier.conf", (shipped / "kvtier.sysusers").read_text())
    yield Piece(f"{prefix}/lib/tmpfiles.d/kvtier.conf", (shipped / "kvtier.tmpfiles").read_text())
    yield from _documents(shipped, f"{prefix}/share")
    yield Piece(SETTINGS, example_toml(LINES), is_theirs=True)
    yield Piece(KEY, fresh_root() + "\n", 0o600, is_theirs=True)


def _documents(shipped: Path, share: str) -> Iterator[Piece]:
    for page in sorted((shipped / "man").iterdir()):
        yield Piece(f"{share}/man/man{page.suffix[1:]}/{page.name}", page.read_text())
    for program in PROGRAMS:
        completion = shipped / "completion"
        yield Piece(f"{share}/bash-completion/completions/{program}", (completion / f"{program}.bash").read_text())
        yield Piece(f"{share}/zsh/site-functions/_{program}", (completion / f"_{program}").read_text())
    for file in sorted((shipped / "prometheus").iterdir()):
        if file.suffix in (".yml", ".json") and ".test." not in file.name:
            yield Piece(f"{share}/kvtier/prometheus/{file.name}", file.read_text())


def _lay(root: Path, piece: Piece, is_dry: bool) -> str:
    """What became of it."""
    path = root / piece.path
    try:
        if os.path.lexists(path):
            if piece.is_theirs:
                return "kept"
            if path.read_text() == piece.text:
                return "unchanged"
        if not is_dry:
            _make_folder(path.parent)
            _write(path, piece)
    except OSError as error:
        cure = "; run it as root, or name another folder by --root" if isinstance(error, PermissionError) else ""
        raise DaemonError(f"can't write {path}: {error.strerror}{cure}") from None
    return "would be" if is_dry else "written"


def _make_folder(path: Path) -> None:
    """That all may enter, whatever our umask is."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _write(path: Path, piece: Piece) -> None:
    """Whole or not at all; with its mode from the first moment on, whatever our umask is."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as opened:
        opened.write(piece.text)
        os.fchmod(opened.fileno(), piece.mode)
    fresh.replace(path)


def _shipped() -> Path:
    """The files of systemd/: inside of what was installed, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(folder for folder in (package / "systemd", package.parent / "systemd") if folder.is_dir())


def _executable() -> Path:
    """kvtierd of this installation. ConfigError: there is none, or the unit may not see it."""
    found = Path(sys.executable).with_name("kvtierd")
    if not found.exists():
        raise ConfigError(f"there is no {found}: name kvtierd by --kvtierd")
    homes = [Path("/home"), Path("/run/user"), Path(pwd.getpwuid(0).pw_dir)]
    for needed in (found, Path(sys.executable).resolve()):
        if any(needed.is_relative_to(home) for home in homes):
            raise ConfigError(
                f"systemd starts it where no homes are to be seen (ProtectHome=), and it needs {needed}: install kvtier "
                "for all, such as `python3 -m venv /opt/kvtier && /opt/kvtier/bin/pip install kvtier`, or name another by "
                "--kvtierd"
            )
    return found


def _quoted(executable: Path) -> str:
    """As systemd reads it in ExecStart=. ConfigError: it would not find it."""
    if not executable.is_absolute() or "\n" in str(executable):
        raise ConfigError(f"--kvtierd {executable}: name it by its whole path")
    text = str(executable).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if any(c in text for c in " '\"\\") else text
