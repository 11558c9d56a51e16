"""One folder, one oracle, one daemon after the other: each is started on what the killed one left, and killed again."""

import contextlib
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from arena_bytes import values_of
from kvtierd import SLOT
from load import Gone, Load
from oracle import Model, Oracle
from victim import Victim

from kvtier.failpoint import POINTS

MIB = 1024**2
AT_START = ("format_written", "extent_allocated", "catalogue_rebuilt_before_replace", "catalogue_replaced")
# Nothing is erased under this load, nor encrypted.
REACHED = tuple(point for point in POINTS if point != "zeroed" and not point.startswith("keys_"))
RECLAIMING = ("before_forget", "after_forget")  # reached only where the drives have no room for all
PASSAGES_MAX = {"payload_written": 60, "before_promote": 60, "promote_read": 60}  # others are passed less often
RANDOM, AFTER_FLUSH = "a random moment", "right after a flush"
RANDOM_S, LOAD_S, LIMIT_S = 1.0, 0.3, 60.0
FRAMED = 5 * SLOT  # the smallest block that lies there as a frame


@dataclass
class Tally:
    """Of several series."""

    kills: Counter = field(default_factory=Counter)  # by point, RANDOM, AFTER_FLUSH
    ready_s: list[float] = field(default_factory=list)
    served: int = 0
    acknowledged: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ready = sorted(self.ready_s)
        return (
            f"{self.kills.total()} kills, {self.acknowledged} blocks acknowledged, {len(self.lost)} of them lost, "
            f"{self.served} served, {len(self.wrong)} of them wrong; ready again after {ready[len(ready) // 2]:.2f} s "
            f"on the median and {ready[-1]:.2f} s at most; {dict(self.kills)}"
        )


class Series:
    """The seed decides everything but what the machine's clock and scheduler decide."""

    def __init__(self, folder: Path, seed: int, tally: Tally) -> None:
        self.chance = random.Random(seed)
        self.tally = tally
        self.is_small = seed % 2 == 1
        drives = 1 + seed // 2 % 2
        self.settings = {
            "nvme.paths": ",".join(str(folder / f"nvme{i}") for i in range(drives)),
            "nvme.capacity": f"{(32 if self.is_small else 384) * drives} MiB",
            "nvme.io": ("io_uring", "threads")[seed // 4 % 2],
            "nvme.codec": "exp12",
            "nvme.endurance_dwpd": 1000,
            "nvme.stage_deadline_ms": 60_000,
        }
        self.victim = Victim(folder, self.settings)
        models = Model("one", SLOT), Model("two", FRAMED, values_of)
        self.oracle = Oracle(models, not self.is_small, MIB * (1024 if self.is_small else 96))

    def points(self) -> list[str]:
        """Each that this series can reach, in the order of a first life."""
        return [point for point in REACHED if self.is_small or point not in RECLAIMING]

    def run(self, points: list[str]) -> None:
        try:
            for number, point in enumerate(points):
                self._life(point)
                assert not self.oracle.wrong and not self.oracle.lost, (number, point, self.oracle.wrong, self.oracle.lost)
            self._last_life()
        finally:
            self.victim.kill()
            self.tally.served += self.oracle.served
            self.tally.acknowledged += self.oracle.acknowledged
            self.tally.wrong += self.oracle.wrong
            self.tally.lost += self.oracle.lost

    def _life(self, point: str) -> None:
        """From a start to a death at this point."""
        named = {} if point not in POINTS else {"KVTIER_FAILPOINT": f"{point}:kill@{self._passage(point)}"}
        self.victim.environment, self.victim.status = named, None
        early = point == RANDOM and self.chance.random() < 0.15
        self.victim.launch()
        if early:
            self._kill_later()
        ready = self.victim.welcome()
        if ready is not None:
            self.tally.ready_s.append(ready)
            with contextlib.suppress(Gone):
                self._serve_until_death(point, early)
        assert self.victim.process is None or self.victim.wait() == -9, self.victim.said()[-2000:]
        assert self.victim.status == -9, (self.victim.status, self.victim.said()[-2000:])
        self.tally.kills[point] += 1
        self.oracle.restarted()

    def _passage(self, point: str) -> int:
        return 1 if point in (*AT_START, "closing") else self.chance.randint(1, PASSAGES_MAX.get(point, 5))

    def _serve_until_death(self, point: str, early: bool) -> None:
        with Load(self.victim, self.oracle, self.chance) as load:
            load.check()
            if point == AFTER_FLUSH:
                self._kill_after_flush(load)
                return
            if point == RANDOM and not early:
                self._kill_later()
            limit = threading.Event()
            timer = threading.Timer(LOAD_S if point == "closing" else LIMIT_S, limit.set)
            timer.start()
            try:
                while not limit.is_set():
                    load.round()
            finally:
                timer.cancel()
            assert point == "closing", f"{point} was not reached in {LIMIT_S} s"
        assert self.victim.process is not None
        self.victim.process.terminate()

    def _kill_after_flush(self, load: Load) -> None:
        for _ in range(self.chance.randint(1, 30)):
            load.round()
        load.flush()
        self.victim.kill()

    def _kill_later(self) -> None:
        """At a moment that has nothing to do with what the daemon does."""
        assert self.victim.process is not None
        threading.Timer(self.chance.uniform(0, RANDOM_S), self.victim.process.kill).start()

    def _last_life(self) -> None:
        self.victim.environment = {}
        self.victim.start()
        with Load(self.victim, self.oracle, self.chance) as load:
            load.check()
        assert not self.oracle.wrong and not self.oracle.lost, (self.oracle.wrong, self.oracle.lost)
