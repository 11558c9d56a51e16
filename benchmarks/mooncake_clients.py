"""What bench_remote.py compares the mooncake kind with, and how both are given what it takes: values under new names.

RawStore        the store's own client in this process, straight from and to the caller's memory; one for all threads, for
                it has threads of its own

A put of a name that is there moves nothing, so each has a name of its own; those before are deleted outside of the time.
"""

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remote.mooncake_servers import Mooncake
from remote.servers import LOOPBACK
from remote_clients import Client, KVTier, Threaded

from kvtier.tiers.remote import open_remote

SIZE = "1GB"


class Names:
    """A new one for each put."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._last: dict[str, str] = {}
        self._old: list[str] = []

    def fresh(self, name: str) -> str:
        if name in self._last:
            self._old.append(self._last[name])
        self._last[name] = f"{name[:17]}{next(self._numbers):032x}"
        return self._last[name]

    def last(self, name: str) -> str:
        return self._last[name]

    def old(self) -> list[str]:
        """Nobody asks for these any more."""
        found, self._old = self._old, []
        return found


class KVTierStore(KVTier):
    def __init__(self, url: str) -> None:
        super().__init__(open_remote(url, {}))
        self._names = Names()

    async def put_one(self, name: str, memory: memoryview) -> None:
        await super().put_one(self._names.fresh(name), memory)

    async def get_one(self, name: str, memory: memoryview) -> None:
        await super().get_one(self._names.last(name), memory)

    def tidy(self) -> None:
        self._runner.run(self._remote.delete(self._names.old()))


class RawStore:
    def __init__(self, store: Any, names: Names) -> None:
        self._store, self._names = store, names

    def put(self, name: str, memory: memoryview) -> None:
        assert self._store.put_from(self._names.fresh(f"r{name[1:]}"), address_of(memory), memory.nbytes) == 0

    def get(self, name: str, memory: memoryview) -> None:
        found = self._store.get_into(self._names.last(f"r{name[1:]}"), address_of(memory), memory.nbytes)
        assert found == memory.nbytes

    def close(self) -> None:
        """One for all threads."""


class RawStores(Threaded):
    def __init__(self, port: int) -> None:
        from mooncake.store import MooncakeDistributedStore

        self._store, self._names = MooncakeDistributedStore(), Names()
        assert self._store.setup(LOOPBACK, "P2PHANDSHAKE", 0, 0, "tcp", "", f"{LOOPBACK}:{port}") == 0
        super().__init__(lambda: RawStore(self._store, self._names))

    def tidy(self) -> None:
        for name in self._names.old():
            self._store.remove(name, True)

    def close(self) -> None:
        super().close()
        self._store.close()


def address_of(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@contextlib.contextmanager
def mooncake(folder: Path) -> Iterator[dict[str, Callable[[], Client]]]:
    """As bench_remote.SERVERS takes it."""
    with Mooncake(folder, SIZE) as server:
        yield {"kvtier": lambda: KVTierStore(server.url), "raw_store": lambda: RawStores(server.master.port)}
