"""Starts of engines, which take most of the time of a run: two at a time, one a core."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from compare.contender import CannotDo, Contender

AT_A_TIME = 2
LOOK_S = 0.2
# Its threads live as long as the run: a server that is to end with who started it would end with the thread.
STARTERS = ThreadPoolExecutor(AT_A_TIME)
# What a contender may break with; all else is a mistake in the benchmark.
FAILURES = (CannotDo, AssertionError, OSError, RuntimeError, subprocess.SubprocessError)


def reason(failure: BaseException) -> str:
    """The first line of what is said, which names what was refused; a log may follow."""
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return f"{type(failure).__name__}: {lines[0].strip()}" if lines else type(failure).__name__


def in_pairs(contenders: Iterable[Contender], action: Callable[[Contender], None]) -> dict[str, str]:
    """Of those that failed, by name, the reason. An interrupt ends what is under way first."""
    started = {STARTERS.submit(action, contender): contender for contender in contenders}
    try:
        wait(started)
    except KeyboardInterrupt:
        for future in started:
            future.cancel()
        while wait(started, timeout=LOOK_S).not_done:  # who was starting a daemon goes on with its engine
            _kill_engines()
        raise
    return {contender.name: reason(failure) for future, contender in started.items() if (failure := _failure_of(future))}


def _failure_of(future: Future[None]) -> BaseException | None:
    failure = future.exception()
    if failure is not None and not isinstance(failure, FAILURES):
        raise failure
    return failure


def _kill_engines() -> None:
    """Those of this process, so that nobody waits until they have started."""
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, path.read_text().split()):
            with contextlib.suppress(OSError):
                if "driver.py" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
