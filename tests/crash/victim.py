"""A kvtierd that tests let die: with a failpoint or a fault in its environment, and a stopwatch at its start."""

import os
import signal
import subprocess
import time
from pathlib import Path

from kvtierd import PATIENCE_S, KVTierd, Peer, observer_hello

from kvtier import protocol

LOOK_S = 0.002


class Victim(KVTierd):
    """`folder` holds its socket and its log; `settings` as its --set takes them."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        super().__init__(folder, {"cpu.capacity": "32 MiB", "cpu.pin": "no", **settings})
        self.environment: dict[str, str] = {}  # more than the test's own
        self._begun = 0.0
        self.status: int | None = None  # of the last one that ended; -9: killed

    def launch(self) -> None:
        """Begins a new process and doesn't wait for it."""
        self._begun = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                preexec_fn=self.before_exec,
            )

    def start(self) -> None:
        assert self.begin() is not None, (self.status, self.said()[-2000:])

    def begin(self) -> float | None:
        self.launch()
        return self.welcome()

    def welcome(self) -> float | None:
        """Seconds from the exec to the first Welcome; None when it died before that."""
        while time.monotonic() - self._begun < PATIENCE_S:
            if self.has_ended():
                return None
            try:
                with Peer(self.socket) as peer:
                    peer.say(observer_hello())
                    if isinstance(peer.hear_any(), protocol.Welcome):
                        return time.monotonic() - self._begun
            except OSError:
                time.sleep(LOOK_S)
        raise AssertionError(f"no Welcome in {PATIENCE_S} s: {self.said()[-2000:]}")

    def has_ended(self) -> bool:
        """Then `status` says how."""
        if self.process is not None and self.process.poll() is not None:
            self.status, self.process = self.process.returncode, None
        return self.process is None

    def wait(self, within: float = PATIENCE_S) -> int:
        """Its status, when it ends by itself."""
        assert self.process is not None
        self.process.wait(within)
        self.has_ended()
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        if self.process is not None and not self.has_ended():
            os.kill(self.process.pid, signal.SIGKILL)
            self.wait()
