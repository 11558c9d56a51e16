"""What bench_remote.py compares kvtier's remotes with: the least that a client can do, one thread for each call at once.

RawRedis        a blocking socket: one sendmsg, and recv_into the memory. No pool, no deadline, no errors
RawCluster      the same, of each node; where each name lies is known before
ValkeyPy        the usual package, as it comes
RawHttp         http.client with URLs that were signed before, readinto the memory
Obstore         obstore's blocking calls, the value left in the client's own memory; ObstoreLoop its coroutines
KVTier          a Remote on one thread's loop
"""

import asyncio
import http.client
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

from kvtier.tiers.remote.base import Remote

HEADER = bytes(128)


class Client(Protocol):
    def put(self, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None: ...
    def get(self, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None: ...
    def tidy(self) -> None: ...  # before each of these, outside of the time
    def close(self) -> None: ...


class Threaded:
    """Each thread has a connection, and takes every `at_once`th name."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connections: list[Any] = []
        self._threads = ThreadPoolExecutor(16)

    def put(self, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None:
        self._share_out("put", names, memory, at_once)

    def get(self, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None:
        self._share_out("get", names, memory, at_once)

    def _share_out(self, what: str, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None:
        while len(self._connections) < at_once:
            self._connections.append(self._connect())

        def work(number: int) -> None:
            move = getattr(self._connections[number], what)
            for each in range(number, len(names), at_once):
                move(names[each], memory[each])

        list(self._threads.map(work, range(at_once)))

    def tidy(self) -> None:
        """Nothing is left behind."""

    def close(self) -> None:
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()


class RawRedis:
    def __init__(self, where: str | tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        self._socket.connect(where)
        if not isinstance(where, str):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, name: str, memory: memoryview) -> None:
        head = f"*3\r\n$3\r\nSET\r\n${len(name)}\r\n{name}\r\n${memory.nbytes}\r\n".encode()
        sent = self._socket.sendmsg([head, memory, b"\r\n"])
        if sent < len(head) + memory.nbytes:
            self._socket.sendall(memory[sent - len(head) :])
            sent = len(head) + memory.nbytes
        self._socket.sendall(b"\r\n"[sent - len(head) - memory.nbytes :])
        assert self._socket.recv(16) == b"+OK\r\n"

    def get(self, name: str, memory: memoryview) -> None:
        self._socket.sendall(f"*2\r\n$3\r\nGET\r\n${len(name)}\r\n{name}\r\n".encode())
        head = b"$%d\r\n" % memory.nbytes
        assert self._socket.recv(len(head), socket.MSG_WAITALL) == head
        assert self._socket.recv_into(memory, 0, socket.MSG_WAITALL) == memory.nbytes
        assert self._socket.recv(2, socket.MSG_WAITALL) == b"\r\n"

    def close(self) -> None:
        self._socket.close()


class RawCluster:
    def __init__(self, places: Sequence[tuple[str, int]], place_of: Callable[[str], int]) -> None:
        self._nodes, self._place_of = [RawRedis(where) for where in places], place_of

    def put(self, name: str, memory: memoryview) -> None:
        self._nodes[self._place_of(name)].put(name, memory)

    def get(self, name: str, memory: memoryview) -> None:
        self._nodes[self._place_of(name)].get(name, memory)

    def close(self) -> None:
        for node in self._nodes:
            node.close()


class ValkeyPy:
    def __init__(self, **where: Any) -> None:
        from valkey import Valkey

        self._client = Valkey(**where)

    def put(self, name: str, memory: memoryview) -> None:
        self._client.set(name, memory)

    def get(self, name: str, memory: memoryview) -> None:
        assert len(self._client.get(name)) == memory.nbytes  # type: ignore[arg-type]

    def close(self) -> None:
        self._client.close()


class RawHttp:
    def __init__(self, objects: Any, names: Sequence[str]) -> None:
        import obstore

        self._paths: dict[tuple[str, str], str] = {}
        for verb in ("GET", "PUT"):
            for name, url in zip(names, obstore.sign(objects, verb, list(names), timedelta(hours=1)), strict=True):  # type: ignore[arg-type]
                parts = urlsplit(url)
                self._paths[verb, name] = f"{parts.path}?{parts.query}"
        self._peer = http.client.HTTPConnection(parts.netloc, blocksize=1 << 20)
        self._peer.connect()
        self._peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, name: str, memory: memoryview) -> None:
        self._peer.request("PUT", self._paths["PUT", name], memory)
        answer = self._peer.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()

    def get(self, name: str, memory: memoryview) -> None:
        self._peer.request("GET", self._paths["GET", name])
        answer, have = self._peer.getresponse(), 0
        while count := answer.readinto(memory[have:]):
            have += count
        assert (answer.status, have) == (200, memory.nbytes)
        answer.read()

    def close(self) -> None:
        self._peer.close()


class Obstore:
    def __init__(self, objects: Any) -> None:
        self._objects = objects

    def put(self, name: str, memory: memoryview) -> None:
        import obstore

        obstore.put(self._objects, name, memory, use_multipart=False)

    def get(self, name: str, memory: memoryview) -> None:
        import obstore

        assert len(obstore.get(self._objects, name).bytes()) == memory.nbytes

    def close(self) -> None:
        pass


class OnLoop:
    """`put` and `get` of one name are coroutines; so many tasks take every `at_once`th name."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def put(self, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None:
        self._runner.run(self._share_out(self.put_one, names, memory, at_once))

    def get(self, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None:
        self._runner.run(self._share_out(self.get_one, names, memory, at_once))

    async def _share_out(self, move: Any, names: Sequence[str], memory: Sequence[memoryview], at_once: int) -> None:
        async def work(number: int) -> None:
            for each in range(number, len(names), at_once):
                await move(names[each], memory[each])

        await asyncio.gather(*map(work, range(at_once)))

    def tidy(self) -> None:
        """Nothing is left behind."""

    async def put_one(self, name: str, memory: memoryview) -> None:
        raise NotImplementedError

    async def get_one(self, name: str, memory: memoryview) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._runner.close()


class ObstoreLoop(OnLoop):
    def __init__(self, objects: Any) -> None:
        super().__init__()
        self._objects = objects

    async def put_one(self, name: str, memory: memoryview) -> None:
        import obstore

        await obstore.put_async(self._objects, name, memory, use_multipart=False)

    async def get_one(self, name: str, memory: memoryview) -> None:
        import obstore

        found = await obstore.get_async(self._objects, name)
        assert len(await found.bytes_async()) == memory.nbytes


class KVTier(OnLoop):
    """With a header before each value."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self._remote = remote

    async def put_one(self, name: str, memory: memoryview) -> None:
        await self._remote.put(name, HEADER, memory)

    async def get_one(self, name: str, memory: memoryview) -> None:
        assert await self._remote.get(name, memoryview(bytearray(len(HEADER))), memory)

    def close(self) -> None:
        self._runner.run(self._remote.close())
        super().close()
