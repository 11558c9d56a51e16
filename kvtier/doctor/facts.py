"""What checks look at: the machine, the settings, and what the running kvtierd says of itself."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvtier import observer
from kvtier.client import SYSTEM_FOLDER, usual_socket
from kvtier.config import DAEMON, Config
from kvtier.doctor.system import System
from kvtier.errors import ConfigError, DaemonError
from kvtier.settings import drive_folders, load

TIMEOUT_S = 5.0
DEFAULTS = "defaults"
SERVICE_FOLDER = Path(SYSTEM_FOLDER) / "kvtier"
SERVICE_SETTINGS = "/etc/kvtier/kvtier.toml"


@dataclass(frozen=True)
class Facts:
    system: System
    settings: Config
    source: str  # where the settings are from
    socket: Path
    admin_socket: Path
    state: Mapping[str, Any] | None = None  # the snapshot of the kvtierd that runs; None: there is none
    trouble: str = ""  # why there is none

    @property
    def pid(self) -> int | None:
        """Of the kvtierd that runs, where its process can be seen from here."""
        pid = self.state["pid"] if self.state else None
        return pid if pid and is_kvtierd(command_of(self.system, pid)) else None

    @property
    def proc(self) -> str:
        """Of kvtierd; where none is to be seen, our own, which is of the same user and shell, perhaps."""
        return f"/proc/{self.pid or 'self'}"

    @cached_property
    def limits(self) -> dict[str, tuple[str, str]]:
        """Soft and hard, by name, as /proc has them."""
        found = {}
        for line in self.system.read(f"{self.proc}/limits").splitlines()[1:]:
            words = line[26:].split()
            if len(words) >= 2:
                found[line[:26].strip()] = words[0], words[1]
        return found

    def status(self, field: str, pid: int | None = None) -> str:
        """A field of /proc/PID/status."""
        for line in self.system.read(f"/proc/{pid}/status" if pid else f"{self.proc}/status").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        return ""

    @property
    def owner(self) -> int:
        """The user of kvtierd; of one that can't be seen, ours."""
        words = self.status("Uid").split() if self.pid else []
        if len(words) > 1:
            return int(words[1])
        found = self.system.stat(self.socket)
        return self.system.user() if found is None else found.st_uid

    @property
    def drives(self) -> list[Path]:
        return drive_folders(self.settings)


def gather(
    system: System, config: Path | None = None, socket: Path | None = None, default_admin: str = "admin.sock"
) -> Facts:
    """Settings: those of the file; else those that the running kvtierd was started with; else those of the service, where
    it is the service that we look at; else the defaults. ConfigError: the file is wrong."""
    settings = load(config, []) if config is not None else Config(DAEMON, {})
    path = socket or Path(settings.text("server.socket") or usual_socket())
    state: Mapping[str, Any] | None = None
    trouble = ""
    try:
        state = observer.ask(path, TIMEOUT_S)
    except DaemonError as error:
        trouble = str(error)
    source = str(config) if config is not None else DEFAULTS
    if config is None and (found := _settings_of(system, path, state)) is not None:
        settings, source = found
    admin = Path(settings.text("admin.socket") or path.with_name(default_admin))
    return Facts(system, settings, source, path, admin, state, trouble)


def _settings_of(system: System, socket: Path, state: Mapping[str, Any] | None) -> tuple[Config, str] | None:
    """And where they are from. None: nobody can say."""
    command = command_of(system, state["pid"]) if state is not None else []
    if state is not None and is_kvtierd(command):
        cwd = Path(system.target(f"/proc/{state['pid']}/cwd"))
        file, overrides = given_to(command)
        with contextlib.suppress(ConfigError):  # a file that isn't for us to read
            return load(cwd / file if file else None, overrides), f"kvtierd, process {state['pid']}"
    if socket.parent == SERVICE_FOLDER and system.read(SERVICE_SETTINGS):
        return load(system.path(SERVICE_SETTINGS), []), SERVICE_SETTINGS
    return None


def command_of(system: System, pid: int | str) -> list[str]:
    """Its arguments; none: there is no such process, or not for us."""
    text = system.read(f"/proc/{pid}/cmdline")
    return text.rstrip("\0").split("\0") if text else []


def is_kvtierd(command: list[str]) -> bool:
    """Its script, or a Python that was told to run it."""
    return any(Path(word).name == "kvtierd" or "kvtier.daemon" in word for word in command[:4])


def given_to(command: list[str]) -> tuple[str, list[str]]:
    """--config and --set of a kvtierd's arguments."""
    file, overrides = "", []
    words = iter(command)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "--set"):
            value = value if equals else next(words, "")
            if name == "--config":
                file = value
            else:
                overrides.append(value)
    return file, overrides
