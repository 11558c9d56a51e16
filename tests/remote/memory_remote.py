"""A remote in this process's memory, with all the faults that a real one may have, one switch each."""

import asyncio
from collections.abc import Callable, Sequence

from kvtier.tiers.remote.base import Corrupt, Full, Refused, Unreachable


class MemoryRemote:
    """What is in `values` outlives the tier; `under_way` and `most` say how many calls there are, and were at once."""

    def __init__(self, values: dict[str, bytes] | None = None) -> None:
        self.values = {} if values is None else values
        self.delay_s = 0.0  # of each call
        self.write_delay_s = 0.0
        self.hangs = False  # calls that are under way too
        self.fails: Callable[[str], BaseException | None] = lambda verb: None
        self.is_full = self.is_read_only = self.is_closed = False
        self.calls: list[str] = []  # verbs
        self.deleted: list[str] = []
        self.under_way = self.most = 0

    def hang(self, hangs: bool = True) -> None:
        self.hangs = hangs

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        await self._call("lengths")
        return [len(self.values[name]) if name in self.values else None for name in names]

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        await self._call("get")
        value = self.values.get(name)
        if value is None:
            return False
        if len(value) != len(header) + len(body):
            raise Corrupt(f"{len(value)} bytes")
        header[:], body[:] = value[: len(header)], value[len(header) :]
        return True

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        await self._call("put", self.write_delay_s)
        if self.is_full:
            raise Full("no room")
        self.values[name] = header + body.tobytes()

    async def delete(self, names: Sequence[str]) -> None:
        await self._call("delete")
        for name in names:
            self.deleted.append(name)
            self.values.pop(name, None)

    async def close(self) -> None:
        self.is_closed = True

    async def _call(self, verb: str, delay_s: float = 0.0) -> None:
        assert not self.is_closed
        self.calls.append(verb)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.delay_s + delay_s)
            while self.hangs:
                await asyncio.sleep(0.01)
        finally:
            self.under_way -= 1
        if error := self.fails(verb):
            raise error
        if self.is_read_only and verb in ("put", "delete"):
            raise Refused("this replica takes no writes")


def first(n: int, error: type[BaseException] = Unreachable) -> Callable[[str], BaseException | None]:
    """For `fails`: so many calls fail, the others don't."""
    left = [n]

    def fails(verb: str) -> BaseException | None:
        left[0] -= 1
        return error("made to fail") if left[0] >= 0 else None

    return fails


def always(error: type[BaseException]) -> Callable[[str], BaseException | None]:
    return lambda verb: error("made to fail")


def never(verb: str) -> None:
    return None
