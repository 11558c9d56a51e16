"""What each kind of remote is tested with: a URL, settings, and the server behind it. To add one, add it to KINDS."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from remote.mooncake_servers import Mooncake
from remote.servers import SECRET_KEY, Cluster, Redis, SeaweedFS, Server, redis_program, valkey_program

from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.base import Remote

PASSWORD = "a p@ss/word"
HEADER = 128  # bytes
T = TypeVar("T")


@dataclass
class Kind:
    url: str
    settings: dict[str, object] = field(default_factory=dict)
    server: Server | Cluster | Mooncake | None = None
    wrong: dict[str, object] | None = None  # settings that are refused
    keeps: bool = True  # what it has, when it is killed
    values: "type[Value] | None" = None  # what it takes, if it doesn't take any
    overwrites: bool = True  # what is there
    is_direct: bool = False  # values take another way than that to the server in its URL
    start_s: float = 0.0  # that its client may take to begin anew, on a busy machine

    def value(self, size: int) -> "Value":
        """About so many bytes of body."""
        return (self.values or Value).random(size)

    def length(self, size: int) -> int:
        """Of such a value, header and body."""
        value = self.value(size)
        return len(value.into_header) + len(value.body)

    def run(self, test: Callable[[Remote], Awaitable[T]], **settings: object) -> T:
        """A remote of its own for a coroutine, on a loop of its own."""

        async def with_remote() -> T:
            remote = open_remote(self.url, self.settings | settings)
            try:
                return await test(remote)
            finally:
                await remote.close()

        return asyncio.run(with_remote())


@contextmanager
def redis(folder: Path, program: Path, way: str) -> Iterator[Kind]:
    with Redis(folder, program, password=PASSWORD, tls=way == "tls") as server:
        url = {"tcp": server.url, "unix": server.unix_url, "tls": server.tls_url}[way]
        given: dict[str, object] = {"password": PASSWORD}
        if server.certificate:
            given["ca_file"] = str(server.certificate)
        yield Kind(url, given, server, wrong={"password": "guessed"}, keeps=False)


@contextmanager
def cluster(folder: Path, program: Path) -> Iterator[Kind]:
    with Cluster(folder, program) as servers:
        yield Kind(servers.url, {}, servers, keeps=False)


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Kind]:
    with SeaweedFS(folder) as server:
        yield Kind(server.url, dict(server.settings), server, wrong={"secret_access_key": SECRET_KEY[::-1]})


@contextmanager
def mooncake(folder: Path) -> Iterator[Kind]:
    with Mooncake(folder) as servers:
        yield Kind(servers.url, {}, servers, keeps=False, overwrites=False, is_direct=True, start_s=2.0)


@contextmanager
def peer(folder: Path, with_tls: bool) -> Iterator[Kind]:
    from remote.peer_server import BlockValue, PeerServer

    with PeerServer(folder, with_tls) as server:
        wrong = None
        if server.authority is not None:
            stranger = server.authority.sign("stranger")  # its certificate is good, and gives it no right
            wrong = {"cert_file": str(stranger.certificate), "key_file": str(stranger.key)}
        settings = server.settings_of()
        yield Kind(server.url, settings, server, wrong, keeps=False, values=BlockValue, overwrites=False)


@contextmanager
def local(folder: Path) -> Iterator[Kind]:
    yield Kind(f"file://{folder}/objects")


KINDS = {
    "valkey": lambda folder: redis(folder, valkey_program(), "tcp"),
    "valkey-unix": lambda folder: redis(folder, valkey_program(), "unix"),
    "redis": lambda folder: redis(folder, redis_program(), "tcp"),
    "redis-tls": lambda folder: redis(folder, redis_program(), "tls"),
    "valkey-cluster": lambda folder: cluster(folder, valkey_program()),
    "redis-cluster": lambda folder: cluster(folder, redis_program()),
    "s3-seaweedfs": seaweedfs,
    "mooncake": mooncake,
    "peer": lambda folder: peer(folder, with_tls=False),
    "peer-tls": lambda folder: peer(folder, with_tls=True),
    "file": local,
}


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Kind]:
    """`Absent` where its server can't be had."""
    with ExitStack() as undone:
        yield undone.enter_context(KINDS[name](folder))


@dataclass
class Value:
    """What is written, and the memory that it is read back into."""

    header: bytes
    body: bytearray
    into_header: bytearray
    into_body: bytearray

    @classmethod
    def random(cls, size: int) -> "Value":
        return cls(os.urandom(HEADER), bytearray(os.urandom(size)), bytearray(HEADER), bytearray(size))

    def head(self, name: str) -> bytes:
        return self.header

    async def put(self, remote: Remote, name: str) -> None:
        await remote.put(name, self.head(name), memoryview(self.body))

    async def get(self, remote: Remote, name: str) -> bool:
        return await remote.get(name, memoryview(self.into_header), memoryview(self.into_body))

    @property
    def came_back(self) -> bool:
        return (self.into_header, self.into_body) == (self.header, self.body)


def name_of(number: int) -> str:
    """As the tier makes them."""
    return f"{7:016x}/{number:032x}"
