"""What a full disk must not do to a daemon, step by step: for faults of a library and for a filesystem that is full."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kvtierd import SLOT, eventually
from load import BATCH, Talker
from oracle import Model, Oracle
from victim import Victim

from kvtier import observer
from kvtier.block import BELOW

HOT = 64  # blocks in RAM, and on the drive
SAVED_MEANWHILE = 32
SAVED_MAX = 320  # so many fit in RAM


@dataclass
class Times:
    """Seconds."""

    read_only: float  # from the last save before it
    recovered: float  # from the end of the fault
    slowest_hit: float  # of lookups in RAM, while the disk was full


class FullDisk:
    """A daemon whose disk is going to be full, and an engine that goes on all the same."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.model = Model("model", SLOT)
        self.oracle = Oracle([self.model], True, 1 << 40)
        self.talker = self._join()
        self.slowest = 0.0
        self.save(HOT)
        assert observer.flush(victim.socket, 30)
        self.model.safe = set(self.model.saved)

    def _join(self) -> Talker:
        talker = Talker(self.victim, self.model, self.oracle)
        self.model.secret = talker.secret
        return talker

    def save(self, n: int) -> None:
        for _ in range(0, n, 8):
            self.talker.save_new(8)

    @property
    def is_read_only(self) -> bool:
        return self.victim.snapshot()["tiers"]["nvme"]["read_only"]

    def hits_go_on(self) -> None:
        """All that was saved is found in RAM."""
        begun = time.monotonic()
        slots = self.talker.where(sorted(self.model.saved))
        self.slowest = max(self.slowest, time.monotonic() - begun)
        assert max(slots) < BELOW, "it was in RAM and is not any more"

    def suffer(self, seconds: float, begin: Callable[[], None], end: Callable[[], None]) -> Times:
        """The disk is full for so long. What is saved meanwhile is on the drive afterwards."""
        evicted = self.victim.counter("evicted_blocks")
        begin()
        begun = time.monotonic()
        self.save(SAVED_MEANWHILE)
        while not self.is_read_only:  # it isn't before something must be written for which there is no room
            assert len(self.model.saved) < SAVED_MAX, "the fault shows nowhere"
            if time.monotonic() > begun + 1:
                begun = time.monotonic()
                self.save(8)
            time.sleep(0.01)
        read_only = time.monotonic() - begun
        while time.monotonic() < begun + seconds:
            self.hits_go_on()
            time.sleep(0.02)
        assert self.victim.counter("evicted_blocks") == evicted
        end()
        ended = time.monotonic()
        eventually(lambda: observer.flush(self.victim.socket, 30))
        eventually(lambda: not self.is_read_only)
        return Times(read_only, time.monotonic() - ended, self.slowest)

    def everything_survives_a_kill(self) -> None:
        self.victim.restart()
        self.talker.close()
        self.talker = self._join()
        self.talker.must_find = True
        self.model.safe = set(self.model.saved)
        keys = sorted(self.model.saved)
        for i in range(0, len(keys), BATCH):
            self.talker.ask(keys[i : i + BATCH])
            self.talker.hear_answers()
        assert not self.oracle.wrong and not self.oracle.lost, (self.oracle.wrong, self.oracle.lost, self.victim.said())
        assert self.oracle.served == len(keys)

    def close(self) -> None:
        self.talker.close()
        self.victim.kill()
