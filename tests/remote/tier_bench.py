"""Orders of a RemoteTier, and what comes of them; and one over a remote in memory, for tests that look at both."""

import select
import time
from collections.abc import Sequence

import numpy as np
from remote.memory_remote import MemoryRemote

from kvtier.block import KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.tiers.remote.breaker import Breaker
from kvtier.tiers.remote.envelope import HEADER_BYTES, name_of
from kvtier.tiers.remote.remote import Deadlines, RemoteTier
from kvtier.transfer import FAULTS, Demote, Erase, Finished, Promote, Remember, Seek, Transfer

WAIT_S = 30.0
DIGEST, OTHER_DIGEST = b"\x0d" * 32, b"\x0e" * 32  # of the namespaces 7 and 8
A = b"a" * KEY_BYTES
SILENT_S, PROBE_S = 0.6, 0.3
SHORT = Deadlines(0.25, 0.5)


class Orders:
    """A tier, and what was ordered of it: each is finished, and none twice."""

    def __init__(self, tier: RemoteTier) -> None:
        self.tier = tier
        self.ticket = 0
        self.slowest = 0.0  # s, of those that were waited for together
        self._open: set[int] = set()

    def next(self) -> int:
        self.ticket += 1
        return self.ticket

    def do(self, *orders: Transfer) -> list[Finished]:
        """In the order in which they are finished."""
        return self.do_some(orders, len(orders))

    def do_some(self, orders: Sequence[Transfer], n: int) -> list[Finished]:
        """The first n that are finished."""
        begun = time.monotonic()
        self.start(*orders)
        done = self.wait(n)
        self.slowest = max(self.slowest, time.monotonic() - begun)
        return done

    def start(self, *orders: Transfer) -> None:
        for order in orders:
            self._open.add(order.ticket)
            self.tier.start(order)

    def wait(self, n: int) -> list[Finished]:
        done: list[Finished] = []
        until = time.monotonic() + WAIT_S
        while len(done) < n:
            assert select.select([self.tier.fileno()], [], [], until - time.monotonic())[0], "never finished"
            done += self.poll()
        return done

    def poll(self) -> list[Finished]:
        done = self.tier.poll()
        for one in done:
            assert one.fault in ("", *FAULTS)
            self._open.remove(one.ticket)  # KeyError: finished twice, or never ordered
        return done

    def close(self) -> None:
        """And nothing is left open."""
        self.tier.close()
        self.poll()
        assert not self._open, "never finished"


class Bench(Orders):
    """With the remote under it, and deadlines that are short."""

    def __init__(self, deadlines: Deadlines = SHORT, silent_s: float = SILENT_S) -> None:
        self.remote = MemoryRemote()
        self.arena = np.zeros(64 * SLOT_UNIT, np.uint8)
        breaker = Breaker(3, silent_s, PROBE_S)
        super().__init__(RemoteTier(self.remote, self.arena, deadlines=deadlines, breaker=breaker))
        self.do(Remember(-1, DIGEST, 7, 0), Remember(-2, OTHER_DIGEST, 8, 0))

    def faults(self, *orders: Transfer) -> list[str]:
        return [done.fault for done in self.do(*orders)]

    def demote(self, key: bytes = A, slot: int = 0, namespace: int = 7, units: int = 1) -> Demote:
        return Demote(self.next(), key, slot, 0, units * SLOT_UNIT, namespace, 0)

    def promote(self, key: bytes = A, slot: int = 9, namespace: int = 7, units: int = 1) -> Promote:
        return Promote(self.next(), key, slot, 0, units * SLOT_UNIT, 0, namespace)

    def seek(self, *keys: bytes, namespace: int = 7) -> Seek:
        return Seek(self.next(), namespace, pack_keys(keys))

    def erase(self, key: bytes = A) -> Erase:
        return Erase(self.next(), 0, SLOT_UNIT, key, 7)

    def breaker(self) -> str:
        return str(self.tier.state()["breaker"])

    def until_breaker(self, state: str) -> float:
        """Seconds."""
        begun = time.monotonic()
        while self.breaker() != state:
            assert time.monotonic() < begun + WAIT_S
            time.sleep(0.005)
        return time.monotonic() - begun

    def damage(self, key: bytes = A, at: int = HEADER_BYTES + 5) -> None:
        value = bytearray(self.remote.values[name_of(DIGEST, key)])
        value[at] ^= 1
        self.remote.values[name_of(DIGEST, key)] = bytes(value)
