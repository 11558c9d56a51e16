"""What bench_remote.py compares the peer kind with, and how both are given what a peer takes: blocks, under new keys.

RawPeer         gRPC's blocking calls to the same kvtierd, chunks as they are; no deadline, no errors
BareLoop        grpc.aio on both sides, with a server of its own that keeps messages as they come and sends them again. It
                copies nothing into slots and checks nothing: as fast as gRPC with asyncio can move these bytes

A peer keeps what it has under a key, so each put has a key of its own; the header's checksum is made within the time.
"""

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc.experimental import ChannelOptions
from remote.peer_server import PeerServer
from remote.servers import LOOPBACK, free_ports
from remote_clients import Client, KVTier, OnLoop, Threaded

from kvtier.block import KEY_BYTES, BlockKey
from kvtier.peer import OPTIONS, chunks
from kvtier.tiers.remote import envelope, open_remote
from kvtier.tiers.remote.envelope import DIGEST_BYTES, HEADER_BYTES, Header, name_of

DIGEST = b"\x07" * DIGEST_BYTES
GET, PUT = "/kvtier.v1.Peer/Get", "/kvtier.v1.Peer/Put"
ANSWER = b"\x0a"


class Keys:
    """A new one for each put of a name."""

    def __init__(self, who: str) -> None:
        self._who, self._numbers = who, itertools.count()
        self._last: dict[str, BlockKey] = {}

    def fresh(self, name: str, memory: memoryview) -> tuple[BlockKey, bytes]:
        """And the header of what is there."""
        said = f"{self._who} {name} {next(self._numbers)}".encode()
        key = self._last[name] = blake2b(said, digest_size=KEY_BYTES).digest()
        checksum = envelope.checksum_of(key, np.frombuffer(memory, np.uint8))
        return key, envelope.pack(Header(key, len(memory), checksum, DIGEST, 0))

    def last(self, name: str) -> BlockKey:
        return self._last[name]


class KVTierPeer(KVTier):
    """As the tier uses it."""

    def __init__(self, url: str, settings: dict[str, object]) -> None:
        super().__init__(open_remote(url, settings))
        self._keys = Keys("kvtier")

    async def put_one(self, name: str, memory: memoryview) -> None:
        key, header = self._keys.fresh(name, memory)
        await self._remote.put(name_of(DIGEST, key), header, memory)

    async def get_one(self, name: str, memory: memoryview) -> None:
        header = bytearray(HEADER_BYTES)
        assert await self._remote.get(name_of(DIGEST, self._keys.last(name)), memoryview(header), memory)


class RawPeer:
    """`keys` are those of all threads."""

    def __init__(self, connect: Callable[[Any], grpc.Channel], keys: Keys) -> None:
        self._channel = connect(
            [*OPTIONS, (ChannelOptions.SingleThreadedUnaryStream, 1), ("grpc.use_local_subchannel_pool", 1)]
        )
        self._get, self._put = self._channel.unary_stream(GET), self._channel.stream_unary(PUT)
        self._keys = keys

    def put(self, name: str, memory: memoryview) -> None:
        _, header = self._keys.fresh(name, memory)
        self._put(chunks.of_value(header, memory))

    def get(self, name: str, memory: memoryview) -> None:
        have = 0
        for message in self._get(b"\x0a\x08" + DIGEST[:8] + b"\x12\x10" + self._keys.last(name)):
            _, piece = chunks.parsed(message)
            memory[have : have + len(piece)] = piece
            have += len(piece)
        assert have == len(memory)

    def close(self) -> None:
        self._channel.close()


class BareLoop(OnLoop):
    def __init__(self, port: int) -> None:
        super().__init__()
        self._port, self._channel = port, None

    async def put_one(self, name: str, memory: memoryview) -> None:
        async def messages() -> AsyncIterator[bytes]:
            yield name.encode()
            for message in chunks.of_value(b"", memory):
                yield message

        assert await self._open().stream_unary(PUT)(messages()) == ANSWER

    async def get_one(self, name: str, memory: memoryview) -> None:
        have = 0
        async for message in self._open().unary_stream(GET)(name.encode()):
            _, piece = chunks.parsed(message)
            memory[have : have + len(piece)] = piece
            have += len(piece)
        assert have == len(memory)

    def _open(self) -> Any:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"{LOOPBACK}:{self._port}", options=OPTIONS)
        return self._channel

    def close(self) -> None:
        if self._channel is not None:
            self._runner.run(self._channel.close())
        super().close()


class _BareHandler(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._values: dict[str, list[bytes]] = {}

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        async def get(name: bytes, context: Any) -> AsyncIterator[bytes]:
            for message in self._values[name.decode()]:
                yield message

        async def put(messages: AsyncIterator[bytes], context: Any) -> bytes:
            name, *value = [message async for message in messages]
            self._values[name.decode()] = value
            return ANSWER

        if details.method == GET:
            return grpc.unary_stream_rpc_method_handler(get)
        return grpc.stream_unary_rpc_method_handler(put)


async def serve(port: int) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_BareHandler(),))
    server.add_insecure_port(f"{LOOPBACK}:{port}")
    await server.start()
    print("serves", flush=True)
    await server.wait_for_termination()


@contextlib.contextmanager
def bare_server() -> Iterator[int]:
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield port
        finally:
            process.kill()


@contextlib.contextmanager
def peer(folder: Path, with_tls: bool = False) -> Iterator[dict[str, Callable[[], Client]]]:
    """As bench_remote.SERVERS takes it."""
    with PeerServer(folder, with_tls, **{"cpu.capacity": "1 GiB"}) as server, bare_server() as bare:
        settings, keys = server.settings_of(), Keys("raw")

        def connect(options: Sequence[tuple[str, Any]]) -> grpc.Channel:
            target = server.url.partition("://")[2]
            if not settings:
                return grpc.insecure_channel(target, options)
            ca, certificate, key = (Path(str(file)).read_bytes() for file in settings.values())
            return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options)

        clients: dict[str, Callable[[], Client]] = {
            "kvtier": lambda: KVTierPeer(server.url, settings),
            "raw_stub": lambda: Threaded(lambda: RawPeer(connect, keys)),
        }
        yield clients if with_tls else clients | {"bare_aio": lambda: BareLoop(bare)}


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
