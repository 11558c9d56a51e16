"""The contract over real servers: a RemoteTier of each kind of remote, with its server as remote/kinds.py has it."""

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from contract.factories import PlacedTier, RemoteFactory
from remote.kinds import Kind

from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.base import NAMES_MAX, Remote
from kvtier.tiers.remote.breaker import Breaker
from kvtier.tiers.remote.envelope import DIGEST_SHOWN, HEADER_BYTES
from kvtier.tiers.remote.remote import Deadlines

PATIENCE_S = 20.0  # on a busy machine
UNHURRIED = Deadlines(PATIENCE_S, PATIENCE_S)
tests = itertools.count(1)
T = TypeVar("T")


class OwnNames:
    """Of one test: what others wrote to the same server isn't there."""

    def __init__(self, remote: Remote, test: int) -> None:
        self._remote, self._own = remote, f"{test:0{DIGEST_SHOWN}x}"
        self.written: set[str] = set()

    def own(self, name: str) -> str:
        return self._own + name[DIGEST_SHOWN:]

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        return await self._remote.lengths([self.own(name) for name in names])

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        return await self._remote.get(self.own(name), header, body)

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        self.written.add(name)
        await self._remote.put(self.own(name), header, body)

    async def delete(self, names: Sequence[str]) -> None:
        await self._remote.delete([self.own(name) for name in names])

    async def close(self) -> None:
        await self._remote.close()


class Served:
    """A kind with its server, and a remote on a loop of its own, to look behind the back of tiers."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self._runner = kind, asyncio.Runner()
        self.remote = open_remote(kind.url, kind.settings)
        self.tests: list[OwnNames] = []

    def tidy(self) -> None:
        """Servers have not room for all that all tests write."""
        for test in self.tests:
            names = [test.own(name) for name in sorted(test.written)]
            for at in range(0, len(names), NAMES_MAX):
                self.run(self.remote.delete(names[at : at + NAMES_MAX]))
        self.tests.clear()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def close(self) -> None:
        self.run(self.remote.close())
        self._runner.close()


class ServedFactory(RemoteFactory):
    def __init__(self, served: Served) -> None:
        super().__init__()
        served.tidy()
        self._served, self._test = served, next(tests)
        self._behind = OwnNames(served.remote, self._test)
        self.overwrites = served.kind.overwrites

    def make(self, folder: Path) -> PlacedTier:
        remote = OwnNames(open_remote(self._served.kind.url, self._served.kind.settings), self._test)
        self._served.tests.append(remote)
        tier = PlacedTier(remote, np.frombuffer(self._arena, np.uint8), deadlines=UNHURRIED, breaker=Breaker(3, PATIENCE_S))
        tier.names = {}
        return tier

    def crash(self, tier: PlacedTier) -> PlacedTier:
        return self.reopen(tier)

    def flip_bit(self, tier: PlacedTier, place: int, offset: int) -> None:
        name = tier.names[place]
        value = self._served.run(self._value(name))
        value[HEADER_BYTES + offset] ^= 1
        self._served.run(self._behind.delete([name]))  # some leave what is there
        self._served.run(self._behind.put(name, bytes(value[:HEADER_BYTES]), memoryview(value)[HEADER_BYTES:]))

    def raw(self, tier: PlacedTier, place: int, size: int) -> bytes:
        """What the remote has; zeros where it has nothing."""
        return bytes(self._served.run(self._value(tier.names[place])))[HEADER_BYTES:] or bytes(size)

    async def _value(self, name: str) -> bytearray:
        (length,) = await self._behind.lengths([name])
        value = bytearray(length or 0)
        if length:
            assert await self._behind.get(name, memoryview(value)[:HEADER_BYTES], memoryview(value)[HEADER_BYTES:])
        return value
