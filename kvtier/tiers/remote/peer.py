"""PeerRemote: grpc:// and grpcs://, another kvtierd that listens there (peer.listen).

    grpcs://host:port        TLS; settings ca_file, cert_file and key_file: it lets nobody in without a certificate
    grpc://127.0.0.1:port    without TLS, only to this machine

Calls are made by gRPC's threads and ours, not by its asyncio: that has one queue for all loops of a process, and news for
one would wake the others. A call that is cancelled has ended when no thread uses its memory any more.

A Way is a connection. Who was cut off without having heard anything, or was told that nobody is there, leaves it, and the
next call makes a new one: TCP may take a minute to find out that a network is well again, and gRPC waits between attempts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
from grpc.experimental import ChannelOptions

from kvtier.block import KEY_BYTES
from kvtier.errors import ConfigError
from kvtier.peer import NAMESPACE_BYTES, OPTIONS, chunks, is_loopback, peer_pb2
from kvtier.peer.certificates import Certificates
from kvtier.tiers.remote.base import CALLS_MAX, Corrupt, Full, NotOurs, Refused, RemoteError, Unreachable

SERVICE = peer_pb2.DESCRIPTOR.services_by_name["Peer"].full_name
SETTINGS = ("ca_file", "cert_file", "key_file")
CALL_S = 60.0  # a call's own deadline comes first; then nothing of it goes on for ever
STALE_S = 0.2  # whoever is cut off that late, and the server was silent, takes its way for dead
WAYS = 4  # connections, when there is something for each: what ends one ends its calls only
CLIENT_OPTIONS = (
    *OPTIONS,
    ("grpc.http2.lookahead_bytes", 4 * 1024**2),  # a value comes without asking for more of it
    ("grpc.http2.bdp_probe", 0),
    (ChannelOptions.SingleThreadedUnaryStream, 1),
    ("grpc.use_local_subchannel_pool", 1),  # a new way is a new connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
T = TypeVar("T")
Names = Sequence[str]


@dataclass(eq=False)
class _Way:
    channel: grpc.Channel
    heard_at: float = 0.0
    calls: int = 0
    is_left: bool = False


@dataclass(eq=False)
class _Read:
    """A call whose answer is received by a thread. Who cancels it waits until the thread has ended."""

    way: _Way
    rpc: Any = None
    is_cancelled: bool = False

    def begin(self, rpc: T) -> T:
        self.rpc = rpc
        if self.is_cancelled:
            self.rpc.cancel()
        return rpc

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.rpc is not None:
            self.rpc.cancel()


class _Messages:
    """What is sent, made piece by piece in a thread of gRPC's. After `end` it touches no memory any more."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self._is_over = self._is_busy = False

    def __iter__(self) -> "_Messages":
        return self

    def __next__(self) -> bytes:
        self._is_busy = True  # first: who ends it afterwards waits for us, and who did before is seen
        try:
            if self._is_over:
                raise StopIteration
            return next(self._messages)
        finally:
            self._is_busy = False

    async def end(self) -> None:
        self._is_over = True
        while self._is_busy:
            await _undisturbed(asyncio.sleep(0))


class PeerRemote:
    def __init__(self, target: str, certificates: Certificates | None) -> None:
        """No I/O. Without certificates: without TLS."""
        self._target, self._certificates = target, certificates
        self._ways: list[_Way] = []
        self._threads = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="kvtier-peer")

    # --- what a remote can do ----------------------------------------------------------------------------------

    async def lengths(self, names: Names) -> list[int | None]:
        found: dict[str, int | None] = {}
        for namespace, keys, some in _by_namespace(names):
            request = peer_pb2.LengthsRequest(namespace=namespace, keys=keys)
            try:
                answer = await self._ask("Lengths", request, peer_pb2.LengthsResponse.FromString)
            except NotOurs:
                continue  # as good as not there: reads of other namespaces go on
            if len(answer.lengths) != len(some):
                raise Unreachable(f"{self._target}: {len(answer.lengths)} answers to {len(some)} questions")
            found.update((name, length or None) for name, length in zip(some, answer.lengths))
        return [found.get(name) for name in names]

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        namespace, key = _parts(name)
        request = peer_pb2.GetRequest(namespace=namespace, key=key)

        def work(read: _Read) -> bool:
            stub = read.way.channel.unary_stream(f"/{SERVICE}/Get", peer_pb2.GetRequest.SerializeToString)
            return _receive(read.begin(stub(request, timeout=CALL_S)), read, header, body)

        try:
            async with self._on_a_way() as way:
                read = _Read(way)
                running = self._threads.submit(work, read)
                try:
                    return await asyncio.wrap_future(running)
                finally:
                    if not running.done():
                        read.cancel()
                    while not running.done():
                        await _undisturbed(asyncio.wait([asyncio.wrap_future(running)]))
        except NotOurs:
            return False

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        messages = _Messages(chunks.of_value(header, body))
        async with self._on_a_way() as way:
            stub = way.channel.stream_unary(f"/{SERVICE}/Put", None, peer_pb2.PutResponse.FromString)
            try:
                await _answer(stub.future(messages, timeout=CALL_S))
            finally:
                await messages.end()

    async def delete(self, names: Names) -> None:
        for namespace, keys, _ in _by_namespace(names):
            request = peer_pb2.DeleteRequest(namespace=namespace, keys=keys)
            await self._ask("Delete", request, peer_pb2.DeleteResponse.FromString)

    async def close(self) -> None:
        for way in list(self._ways):
            self._leave(way)
        self._threads.shutdown(wait=False)

    # --- calls -------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, request: Any, parse: Callable[[bytes], T]) -> T:
        async with self._on_a_way() as way:
            stub = way.channel.unary_unary(f"/{SERVICE}/{method}", type(request).SerializeToString, parse)
            answer: T = await _answer(stub.future(request, timeout=CALL_S))
            return answer

    @asynccontextmanager
    async def _on_a_way(self) -> AsyncIterator[_Way]:
        """Errors are a remote's from here on."""
        way, begun_at = self._taken(), time.monotonic()
        try:
            yield way
            way.heard_at = time.monotonic()
        except grpc.FutureCancelledError:
            raise Unreachable(f"{self._target}: cancelled") from None
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._leave(way)
            raise self._meaning_of(error) from None
        except asyncio.CancelledError:
            if time.monotonic() - begun_at > STALE_S and way.heard_at < begun_at:
                self._leave(way)
            raise
        finally:
            self._give(way)

    def _meaning_of(self, error: Any) -> RemoteError:
        """In a peer's words."""
        said = f"{self._target}: {error.details()}"
        match error.code():
            case grpc.StatusCode.PERMISSION_DENIED:
                return NotOurs(said)  # our certificate doesn't name this namespace
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.FAILED_PRECONDITION:
                return Refused(said)
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.UNIMPLEMENTED:
                return Refused(said)
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Full(said)
            case grpc.StatusCode.DATA_LOSS:
                return Corrupt(said)
        return Unreachable(said)

    # --- connections ---------------------------------------------------------------------------------------------

    def _taken(self) -> _Way:
        """The one with the fewest calls; a new one while all have some and there are not enough."""
        way = min(self._ways, key=lambda way: way.calls, default=None)
        if way is None or (way.calls and len(self._ways) < WAYS):
            way = _Way(self._channel())
            self._ways.append(way)
        way.calls += 1
        return way

    def _give(self, way: _Way) -> None:
        way.calls -= 1
        if way.is_left and not way.calls:
            way.channel.close()

    def _leave(self, way: _Way) -> None:
        """Nobody takes it any more; it is closed when no call is under way."""
        if way in self._ways:
            self._ways.remove(way)
        if not way.is_left and not way.calls:
            way.channel.close()
        way.is_left = True

    def _channel(self) -> grpc.Channel:
        if self._certificates is None:
            return grpc.insecure_channel(self._target, CLIENT_OPTIONS)
        self._certificates.fresh()
        ca, certificate, key = self._certificates.pems
        return grpc.secure_channel(self._target, grpc.ssl_channel_credentials(ca, key, certificate), CLIENT_OPTIONS)


async def _answer(rpc: Any) -> Any:
    """Of a call that gRPC's own thread carries out."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def wake() -> None:
        if not over.done():
            over.set_result(None)

    def told(_: object) -> None:
        with suppress(RuntimeError):  # nobody waits any more, and the loop has ended
            loop.call_soon_threadsafe(wake)

    rpc.add_done_callback(told)
    try:
        await over
    finally:
        rpc.cancel()  # nothing, if it is over
    return rpc.result()


def _receive(messages: Iterator[bytes], read: _Read, header: memoryview, body: memoryview) -> bool:
    """Straight into both, piece by piece. Corrupt: it is shorter, or longer."""
    at, is_first = 0, True
    try:
        for message in messages:
            read.way.heard_at = time.monotonic()
            try:
                its_header, piece = chunks.parsed(message)
            except ValueError as error:
                raise Corrupt(str(error)) from None
            if is_first and len(its_header) == len(header):
                header[:] = its_header
            elif is_first or its_header:
                raise Corrupt(f"a header of {len(its_header)} bytes")
            if at + len(piece) > len(body):
                raise Corrupt(f"more than {len(body)} bytes")
            body[at : at + len(piece)] = piece
            at, is_first = at + len(piece), False
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    finally:
        read.rpc.cancel()  # what of it still comes is nobody's
    if at < len(body):
        raise Corrupt(f"{at} bytes instead of {len(body)}")
    return True


async def _undisturbed(step: Awaitable[object]) -> None:
    """Whoever waits may be cancelled again: the memory is its own only when others are through with it."""
    with suppress(asyncio.CancelledError):
        await step


def _by_namespace(names: Names) -> list[tuple[bytes, bytes, list[str]]]:
    """Namespace, packed keys, names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    return [
        (bytes.fromhex(namespace), b"".join(_parts(name)[1] for name in some), some) for namespace, some in groups.items()
    ]


def _parts(name: str) -> tuple[bytes, bytes]:
    namespace, _, key = name.partition("/")
    found = bytes.fromhex(namespace), bytes.fromhex(key)
    assert len(found[0]) == NAMESPACE_BYTES and len(found[1]) == KEY_BYTES
    return found


# --- the URL -----------------------------------------------------------------------------------------------------


def connect(url: str, settings: Mapping[str, object]) -> PeerRemote:
    parts = urlsplit(url)
    scheme = parts.scheme
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"{scheme}:// needs a host and a port and nothing else, as {scheme}://host:7070")
    unknown = sorted(settings.keys() - set(SETTINGS))
    if unknown:
        raise ConfigError(f"{scheme}:// has no setting {unknown[0]!r}; it has {', '.join(SETTINGS)}")
    ca, certificate, key = files = [str(settings.get(name, "")) for name in SETTINGS]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if scheme == "grpcs":
        if not certificate:
            raise ConfigError("grpcs:// needs cert_file and key_file: a peer lets nobody in without a certificate")
        return PeerRemote(f"{host}:{port}", Certificates(ca, certificate, key, settings=SETTINGS))
    if any(files):
        raise ConfigError("a certificate without TLS: write grpcs://")
    if not is_loopback(parts.hostname):
        raise ConfigError(f"grpc://{parts.hostname} goes without TLS, which is for this machine alone: write grpcs://")
    return PeerRemote(f"{host}:{port}", None)
