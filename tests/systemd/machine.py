"""A machine with a real systemd, on which kvtier is installed as a service: this one's files, what it writes is its own.

An overlay of / is booted by systemd-nspawn, as far as kvtierd needs it. Python and kvtier are bound into it where no
home is in their way. Nothing of it stays: neither mounts nor cgroups nor files.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kvtierd import PATIENCE_S, eventually

import kvtier

BOOT_S = 120.0  # so long a start of anything may take
LOOK_S = 0.2
IN = "/opt/kvtier-test"  # what is bound into it lies below
PROGRAM = f"""#!/bin/sh
export LD_LIBRARY_PATH={IN}/python/lib PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH={IN}/kvtier:{IN}/packages:{IN}/tests
exec {IN}/python/bin/{{python}} {{arguments}} "$@"
"""
TARGET = "[Unit]\nRequires=basic.target\nWants=kvtierd.socket kvtierd.service\nAfter=basic.target\n"
NEEDED = ("systemd-nspawn", "systemd-sysusers", "systemd-tmpfiles", "nsenter", "mount", "setpriv")


class Absent(Exception):
    """Why there can't be one here."""


class Machine:
    """From its start until close(). `settings`: lines of the kvtier.toml that install-service writes, and what an operator
    makes of them."""

    def __init__(self, state: Path, settings: dict[str, str]) -> None:
        """`state`: its /var/lib/kvtier, on a real drive."""
        _check()
        self._name = f"kvtier-test-{os.getpid()}"
        self._folder = Path(tempfile.mkdtemp(prefix="kvtier-machine-", dir="/dev/shm"))
        self._closing = contextlib.ExitStack()
        self._closing.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self.console = self._folder / "console"
        try:
            self._make(settings)
            self._boot(state)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._closing.close()

    def run(self, *command: str, user: str = "", given: str = "") -> str:
        """What it prints. As root, or as a user with its groups."""
        ended = self.attempt(*_becoming(user), *command, given=given)
        assert ended.returncode == 0, (command, ended.stdout[-4000:], ended.stderr[-4000:], self.log()[-4000:])
        return ended.stdout.strip()

    def attempt(self, *command: str, given: str = "") -> subprocess.CompletedProcess:
        enter = ["nsenter", f"--target={self._leader}", "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", "env", "-i"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run([*enter, path, *command], input=given, capture_output=True, text=True, timeout=BOOT_S)

    def show(self, *properties: str) -> dict[str, str]:
        """Of kvtierd.service."""
        shown = self.run("systemctl", "show", "kvtierd.service", *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in shown.splitlines())

    def log(self) -> str:
        """What kvtierd said, and systemd of it."""
        return self.attempt("journalctl", "--no-pager", "-q", "-o", "cat", "-u", "kvtierd.service").stdout

    def kvtier(self, user: str, *arguments: str) -> subprocess.CompletedProcess:
        """The command, run by this user."""
        return self.attempt(*_becoming(user), f"{IN}/bin/kvtier", *arguments)

    def ask(self, user: str, **request: object) -> object:
        """What client.py answers, run by this user."""
        return json.loads(self.run(f"{IN}/bin/client", user=user, given=json.dumps(request)))

    def has(self, program: str) -> bool:
        return self.attempt("which", program).returncode == 0

    def is_up(self) -> bool:
        """kvtierd serves."""
        return self.show("ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}

    def wait(self) -> None:
        """Until kvtierd serves."""
        try:
            self.until(self.is_up)
        except AssertionError:
            raise AssertionError(self.log()[-4000:]) from None

    def until(self, look: Callable[[], bool]) -> None:
        """A look is a process or two; it is not taken more often than needed."""
        eventually(lambda: look() or time.sleep(LOOK_S), BOOT_S)

    # --- its start and end -----------------------------------------------------------------------------------

    def _make(self, settings: dict[str, str]) -> None:
        """The files: an overlay of ours, and in it what an operator would do."""
        upper, work, self._root = (self._folder / name for name in ("upper", "work", "root"))
        for made in (upper, work, self._root):
            made.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self._root)], capture_output=True)
        if mounted.returncode:
            raise Absent(f"no overlay of / can be mounted here: {mounted.stderr.decode().strip()}")
        self._closing.callback(subprocess.run, ["umount", "--lazy", str(self._root)], check=False)
        programs = self._root / f"{IN}/bin".strip("/")
        programs.mkdir(parents=True)
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for name, arguments in (
            ("kvtierd", "-c 'from kvtier.daemon import main; main()'"),
            ("kvtier", "-c 'from kvtier.cli.main import main; main()'"),
            ("client", f"{IN}/tests/systemd/client.py"),
        ):
            (programs / name).write_text(PROGRAM.format(python=python, arguments=arguments))
            (programs / name).chmod(0o755)
        (self._root / "etc/systemd/system/kvtier-test.target").write_text(TARGET)
        install = [str(Path(sys.executable).with_name("kvtier")), "install-service", f"--root={self._root}", "--key"]
        _done(*install, f"--kvtierd={IN}/bin/kvtierd")
        toml = self._root / "etc/kvtier/kvtier.toml"
        for line, instead in settings.items():
            assert f"\n{line}\n" in toml.read_text(), line
            toml.write_text(toml.read_text().replace(f"\n{line}\n", f"\n{instead}\n", 1))
        (self._root / "etc/sysusers.d").mkdir(exist_ok=True)
        users = ["u engine -", "m engine kvtier", "u stranger -", "u operator -"]
        users += ["m operator kvtier", "m operator kvtier-admin"]
        (self._root / "etc/sysusers.d/kvtier-test.conf").write_text("\n".join(users) + "\n")
        _done("systemd-sysusers", f"--root={self._root}")
        _done("systemd-tmpfiles", f"--root={self._root}", "--create", "kvtier.conf")

    def _boot(self, state: Path) -> None:
        # Not the machine's own id, which names a folder of logs, nor what is started there.
        for name in ("etc/machine-id", "etc/fstab"):
            (self._root / name).write_text("")
        ours = Path(kvtier.__file__).resolve().parents[1]
        bound = {
            f"{IN}/python": Path(sys.base_prefix), f"{IN}/packages": Path(sysconfig.get_path("purelib")),
            f"{IN}/kvtier": ours, f"{IN}/tests": Path(__file__).resolve().parents[1],
        }  # fmt: skip
        cgroups = self._cgroups()

        def enter() -> None:
            for group in cgroups:
                (group / "cgroup.procs").write_text("0")

        command = ["systemd-nspawn", "--quiet", f"--directory={self._root}", "--register=no", "--keep-unit",
                   "--private-network", "--capability=CAP_IPC_LOCK", "--console=pipe", "--link-journal=no",
                   f"--machine={self._name}", *(f"--bind-ro={path}:{place}" for place, path in bound.items()),
                   f"--bind={state}:/var/lib/kvtier"]  # fmt: skip
        tried = subprocess.run([*command[:5], "true"], capture_output=True, text=True, preexec_fn=enter)
        if tried.returncode:
            raise Absent(f"systemd-nspawn doesn't work here: {tried.stderr[-500:]}")
        with self.console.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, "--boot", "systemd.unit=kvtier-test.target"], stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True, preexec_fn=enter,
            )  # fmt: skip
        self._closing.callback(self._shut_down)
        self.until(self._has_booted)
        self.wait()

    def _has_booted(self) -> bool:
        assert self._process.poll() is None, self.console.read_text(errors="replace")[-4000:]
        self._leader = _first_process_below(self._process.pid)
        if not self._leader:
            return False
        state = self.attempt("systemctl", "show", "--property=ActiveState", "kvtier-test.target").stdout
        return state.strip() == "ActiveState=active"

    def _cgroups(self) -> list[Path]:
        """Of its own, so that two machines at once don't meet in one."""
        above = [Path("/sys/fs/cgroup", name) for name in ("systemd", "unified", "")]
        made = [folder / self._name for folder in above if (folder / "cgroup.procs").exists()]
        for group in made:
            try:
                group.mkdir()
            except OSError as error:
                raise Absent(f"no cgroup can be made here: {error}") from None
            self._closing.callback(_remove_cgroups, group)
        return made

    def _shut_down(self) -> None:
        """In order, or else at once."""
        for number, within in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, PATIENCE_S)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(within)


def _becoming(user: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []


def _check() -> None:
    if os.geteuid() != 0:
        raise Absent("only root can boot a systemd in a container")
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        raise Absent(f"there is no {', '.join(missing)} (Debian: systemd-container)")


def _done(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout


def _first_process_below(pid: int) -> int:
    """That descendant which is number 1 in the container; 0 before there is one."""
    waiting = [pid]
    while waiting:
        with contextlib.suppress(OSError):
            looked = waiting.pop()
            numbers = Path(f"/proc/{looked}/status").read_text().split("NSpid:")[1].splitlines()[0].split()
            if len(numbers) > 1 and numbers[-1] == "1":
                return looked
            waiting += map(int, Path(f"/proc/{looked}/task/{looked}/children").read_text().split())
    return 0


def _remove_cgroups(group: Path) -> None:
    """A cgroup is empty a moment after its last process has ended."""

    def removed() -> bool:
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not group.exists()

    eventually(removed)
