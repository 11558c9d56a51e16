"""A server of a peer that is measured: it may take its time to start, ends in order, and may write behind."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from remote.servers import Server

from compare.contender import PATIENCE_S

LOOK_S = 0.1
# A Server ends with the thread that started it: this one lives as long as the process.
_STARTER = ThreadPoolExecutor(1)


class PeerServer(Server):
    def start(self) -> None:
        if self.process is not None and self.has_ended:
            self.kill()  # somebody else did: what it left is cleared away
        _STARTER.submit(super().start).result()

    def serves(self) -> bool:
        """Looked at again and again while it starts."""
        raise NotImplementedError

    def answers(self) -> bool:
        return until(lambda: self.has_ended or self.serves())

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_S)
        self.kill()


def until(look: Callable[[], bool]) -> bool:
    """Whether it was so within PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def until_still(figure: Callable[[], Any], quiet_s: float) -> None:
    """Returns when it has not changed for so long, or after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    seen, since = figure(), time.monotonic()
    while time.monotonic() < min(since + quiet_s, deadline):
        time.sleep(quiet_s / 2)  # to be asked costs it processor time, which is counted
        if (now := figure()) != seen:
            seen, since = now, time.monotonic()
