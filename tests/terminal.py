"""Commands as installed: run to their end, or on a terminal of their own. Or within this process, which saves a start."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from kvtierd import PATIENCE_S

from kvtier.cli.main import main

COMMANDS = Path(sys.executable).parent
TERMINAL = (50, 160)  # lines, columns


def run(*words: object, **options: object) -> subprocess.CompletedProcess:
    program, *arguments = map(str, words)
    return subprocess.run(
        [str(COMMANDS / program), *arguments], capture_output=True, text=True, timeout=PATIENCE_S, **options
    )


def run_here(program: str, *words: object) -> subprocess.CompletedProcess:
    """`kvtier` in this process."""
    assert program == "kvtier"
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", [program, *map(str, words)]):
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *words: object, size: tuple[int, int] = TERMINAL) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a run in the background ignores it, and so would this child
            program, *arguments = map(str, words)
            of_its_own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
            os.execve(COMMANDS / program, [program, *arguments], {**of_its_own, "TERM": "xterm-256color"})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))
        self.shown = ""

    def read_until(self, seen: str, times: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.shown.count(seen) < times:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._fd], [], [], 0.1)[0]:
                self.shown += os.read(self._fd, 65536).decode(errors="replace")

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def modes(self) -> int:
        """Its local modes, of which ICANON and ECHO are."""
        return termios.tcgetattr(self._fd)[3]

    def status(self) -> int:
        """Its exit status, once it has ended; what it still printed is in `shown`."""
        with contextlib.suppress(OSError):  # the terminal ends with its program
            while data := os.read(self._fd, 65536):
                self.shown += data.decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)
