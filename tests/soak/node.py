"""The node of the soak: a kvtierd with drives and a remote, engines that talk (talker.py), and what can befall them."""

import contextlib
import heapq
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from admin_caller import caller_of
from chat import nvme_settings
from kvtierd import KVTierd, eventually, root_file
from remote.servers import Absent, Redis, redis_or_valkey

from kvtier.errors import DaemonError

MODELS = (("small", 64 * 1024), ("small", 64 * 1024), ("large", 1024 * 1024))  # of the engines; some share blocks
# What was freed goes back at once, and is not spread over a heap a thread: what is left is what is in use.
ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
PROGRAM = Path(__file__).with_name("talker.py")
SESSIONS = 24  # as talker.py has them


class Sample(NamedTuple):
    at: float
    anonymous: int  # bytes, of neither the arena nor a file
    descriptors: int
    threads: int


def sample_of(pid: int) -> Sample:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory, threads = int(fields["RssAnon"].split()[0]) * 1024, int(fields["Threads"])
    return Sample(time.monotonic(), memory, len(os.listdir(f"/proc/{pid}/fd")), threads)


class Engine:
    """One process. What it has counted is what it said last."""

    def __init__(self, daemon: KVTierd, folder: Path, number: int, chance: random.Random) -> None:
        model, size = MODELS[number % len(MODELS)]
        self.said = folder / f"engine {number}.log"
        words = [sys.executable, "-P", PROGRAM, daemon.socket, f"engine {number}", model, size, chance.getrandbits(32)]
        # It finds modules as we do, wherever kvtier is.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.said.open("wb") as log:
            self.process = subprocess.Popen([*map(str, words)], stdout=log, stderr=subprocess.STDOUT, env=environment)

    def counts(self) -> Counter[str]:
        lines = [line for line in self.said.read_text().splitlines() if line.endswith("}")]
        return Counter(json.loads(lines[-1])) if lines else Counter()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> Counter[str]:
        """Without a goodbye."""
        self.process.kill()
        self.process.wait()
        return self.counts()


class Node:
    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.events: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.folder = folder
        self.remote: Redis | None = None
        more: dict[str, object] = {
            "log.level": "warning",
            "cost.mode": "always",
            "cost.log_bytes": "256 KiB",
            "nvme.drain_s": 5,
        }
        with contextlib.suppress(Absent):
            self.remote = Redis(folder / "remote", redis_or_valkey())
            more |= {"remote.url": self.remote.url, "remote.secret_file": root_file(folder)}
        self.daemon = KVTierd(folder, {**nvme_settings(folder), **more})
        self.daemon.environment |= ONE_HEAP
        self._numbers = itertools.count()
        self._engines: list[Engine] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._deaths = itertools.count()

    def __enter__(self) -> "Node":
        if self.remote is not None:
            self.remote.start()
        self.daemon.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            print(f"kvtierd said at last:\n{self.daemon.said()[-4000:]}", file=sys.stderr)
        for engine in self._engines:
            engine.end()
        self.daemon.kill()
        if self.remote is not None:
            self.remote.kill()

    # --- its life --------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._engines = [self._engine() for _ in MODELS]

    def _engine(self) -> Engine:
        """Of the next model; no name comes twice."""
        return Engine(self.daemon, self.folder, next(self._numbers), self.chance)

    def close(self) -> None:
        """Nobody is connected any more, and all that was begun is over."""
        while self._later:
            heapq.heappop(self._later)[2]()
        for engine in self._engines:
            self.counts += engine.end()
        self._engines = []
        eventually(lambda: not self.daemon.snapshot()["engines"])
        eventually(self.is_quiet)

    def is_quiet(self) -> bool:
        tiers = self.daemon.snapshot()["tiers"]
        below = [tier for name, tier in tiers.items() if name != "cpu"]
        return not any(tier.get("writing_bytes") or tier.get("reading_bytes") for tier in below)

    def live(self, seconds: float, faults: dict[str, float], every_s: float) -> list[Sample]:
        """So long, with a fault every so often; a sample a second."""
        samples = []
        until, next_fault = time.monotonic() + seconds, time.monotonic()
        while (now := time.monotonic()) < until:
            if now >= next_fault:
                name = self.chance.choices(list(faults), list(faults.values()))[0]
                self.events[name] += 1
                getattr(self, name)()
                next_fault = time.monotonic() + self.chance.uniform(0.5, 1.5) * every_s
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            samples.append(sample_of(self.daemon.pid))
            time.sleep(max(0.0, 1 - (time.monotonic() - now)))
        return samples

    def totals(self) -> Counter[str]:
        return self.counts + sum((engine.counts() for engine in self._engines), Counter())

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._deaths), what))

    # --- what can befall it: the names of faults -------------------------------------------------------------

    def engine_killed(self) -> None:
        at = self.chance.randrange(len(self._engines))
        self.counts += self._engines[at].end()
        self._engines[at] = self._engine()

    def engine_frozen(self) -> None:
        engine = self.chance.choice(self._engines)
        engine.signal(signal.SIGSTOP)
        self._after(self.chance.uniform(0.5, 3), lambda: engine.signal(signal.SIGCONT))

    def kvtierd_killed(self) -> None:
        self.daemon.restart()

    def kvtierd_restarted(self) -> None:
        assert self.daemon.terminate() == 0, self.daemon.said()[-2000:]
        self.daemon.start()

    def kvtierd_frozen(self) -> None:
        self.daemon.stop_()
        time.sleep(self.chance.uniform(0.2, 1))
        self.daemon.cont()

    def remote_killed(self) -> None:
        if self.remote is not None and not self.remote.has_ended:
            self.remote.kill()
            self._after(self.chance.uniform(0.5, 6), self.remote.start)

    def remote_frozen(self) -> None:
        remote = self.remote
        if remote is not None and not remote.has_ended:
            remote.freeze()
            self._after(self.chance.uniform(0.5, 4), lambda: None if remote.has_ended else remote.thaw())

    def told(self) -> None:
        """A word on a session, as a gateway says it."""
        session = f"session {self.chance.randrange(SESSIONS)}"
        with caller_of(self.daemon) as admin, contextlib.suppress(DaemonError):  # nobody knows it, or it takes too long
            match self.chance.choice(("park", "warm", "pin", "end", "forget", "sessions")):
                case "forget":
                    admin.forget(session, timeout_s=5)
                case "pin":
                    admin.pin(session, seconds=5)
                case "sessions":
                    admin.sessions()
                case word:
                    getattr(admin, word)(session)
