"""A node that has nothing but a remote, for bench_ttft.py: every kvtierd that it runs is new, with empty RAM and no drives.

A first kvtierd computes a prompt with its engine and is drained, so that the remote has it, and ends. Each later one finds
it there or doesn't. The engine stays, and its own cache is emptied.
"""

import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import PATIENCE_S, Daemon
from engine import Answer, Engine
from kvtierd import root_file
from remote.servers import Redis

from kvtier import observer
from kvtier.estimators import CALIBRATED_STEPS

ANSWER = 8  # tokens


class FarNode:
    def __init__(self, remote: Redis, folder: Path, start_engine: Callable[[Path], Engine]) -> None:
        """`start_engine`: beside a kvtierd on that socket."""
        folder.mkdir()
        self._folder, self._remote = folder, remote
        self.socket = folder / "kvtierd.sock"
        self._settings = {"remote.url": remote.url, "remote.secret_file": root_file(folder)}
        self._fresh = random.Random(7)
        self._ttfts: list[float] = []
        self._records: list[dict[str, Any]] = []
        self._daemon = self._start("former")
        try:
            self._engine = start_engine(self.socket)
        except BaseException:
            self._daemon.stop()
            raise

    def _start(self, name: str) -> Daemon:
        """With what is learnt in a folder of its own."""
        settings = {**self._settings, "cost.state": self._folder / f"state of {name}"}
        return Daemon(self.socket, self._folder / f"{name}.log", None, settings)

    def seed(self, prompt: list[int]) -> None:
        """The remote has it afterwards, and this kvtierd is another."""
        for _ in range(CALIBRATED_STEPS):
            self._compute_something()
        self._engine.generate([prompt], ANSWER)
        drain = [str(Path(sys.executable).with_name("kvtier")), "drain", "--socket", str(self.socket)]
        subprocess.run(drain, check=True, stdout=subprocess.DEVNULL)
        self._daemon.stop()
        self._daemon = self._start("far")

    def first_request(self, prompt: list[int]) -> Answer:
        """Of a kvtierd that has just started."""
        self._daemon.restart()
        until = time.monotonic() + PATIENCE_S
        while not self._is_back():
            assert time.monotonic() < until, "the engine doesn't come back to kvtierd"
        self._engine.reset()
        answer = self._engine.generate([prompt], ANSWER)[0]
        while not (last := list(observer.explain(self.socket, "last"))[-1])["actual"]:
            assert time.monotonic() < until + PATIENCE_S, "nobody says how it ended"
            time.sleep(0.01)
        self._ttfts.append(answer.ttft)
        self._records.append(last)
        return answer

    def _is_back(self) -> bool:
        """Whether the engine asks this kvtierd, was lent slots, and has said how fast it is."""
        self._compute_something()
        engines, decisions = observer.ask(self.socket)["engines"], list(observer.explain(self.socket, "last"))
        return bool(engines and engines[0]["lent_slots"] and decisions and decisions[-1]["calibrated"])

    def _compute_something(self) -> None:
        self._engine.generate([[self._fresh.randrange(1000, 40_000) for _ in range(160)]], 2)

    def result(self) -> dict[str, object]:
        """Medians of what the first requests took, and what was decided and predicted."""
        arms = Counter(record["arm"] for record in self._records)
        predicted = {arm: [r["predicted"][f"{arm}_ms"] for r in self._records] for arm in ("fetch", "recompute")}
        known = {arm: [ms / 1e3 for ms in those if ms is not None] for arm, those in predicted.items()}
        return {
            "remote_s": round(statistics.median(self._ttfts), 4),
            "remote_s_spread": [round(min(self._ttfts), 4), round(max(self._ttfts), 4)],
            "remote_decisions": dict(arms),
            "remote_predicted_s": {arm: round(statistics.median(seconds), 4) for arm, seconds in known.items() if seconds},
            "remote_tokens": round(statistics.median(r["offered"].get("remote", 0) for r in self._records)),
            "remote": f"{self._remote.name} on loopback",
        }

    def stop(self) -> None:
        self._engine.stop()
        self._daemon.stop()
