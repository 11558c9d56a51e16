"""PeerService: what other nodes ask for, carried out by threads of its own, so that no block of theirs holds the daemon's
loop. What concerns the store crosses to the loop and back; bytes are copied and checked here.

    Get     cross: hold the block --> its checksum, chunk after chunk --> cross: let it go
    Put     cross: a slot --> chunk after chunk, its checksum --> cross: keep it, or give it up

Who may do what stands in the client's certificate (peer/rights.py); without TLS only this machine gets here, and may do
all. Each call has an end: its client's deadline, or CALL_S. gRPC's own limits hold back connections that are too greedy.
A fault in the store ends the daemon, as everywhere; it is raised on the loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from functools import partial
from typing import NoReturn, TypeVar

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvtier.admission import Budget
from kvtier.block import KEY_BYTES, BlockKey, Kind, unpack_keys
from kvtier.errors import DaemonError, ProtocolError
from kvtier.peer import (
    CALLS_MAX,
    CHUNK_BYTES,
    CONNECTIONS_MAX,
    KEYS_MAX,
    NAMESPACE_BYTES,
    OPTIONS,
    STREAMS_MAX,
    chunks,
    peer_pb2,
)
from kvtier.peer.certificates import Certificates, Pems
from kvtier.peer.reading import Reading
from kvtier.peer.rights import ALL, Rights, right_to, rights_of
from kvtier.stats import Stats
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.tiers.remote.envelope import HEADER_BYTES, Header
from kvtier.visitor import KNOWN, Held, Room, Visitor

log = logging.getLogger("kvtierd")

SERVICE = peer_pb2.DESCRIPTOR.services_by_name["Peer"].full_name
KEYS_A_TURN = 64  # of the loop: some 0.1 ms
TURN_S = 5.0  # a loop that doesn't come to it by then is no better than none
READ_S = 10.0  # a block from the drives is waited for
CALL_S = 30.0  # a call takes at most
CONNECTION_S = 300.0  # a connection, and CALL_S more; so calls end that have not begun, and those that watch or reflect
SWEEP_S = 1.0
NOBODYS = bytes(NAMESPACE_BYTES)  # a namespace that there isn't: who asks for it only wants an answer
SERVER_OPTIONS = (
    *OPTIONS,
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.http2.lookahead_bytes", 8 * CHUNK_BYTES),
    ("grpc.http2.bdp_probe", 0),  # the more a client sends unasked, the more memory it takes here
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),  # who is gone without a word is found out
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_connection_age_ms", int(CONNECTION_S * 1e3)),
    ("grpc.max_connection_age_grace_ms", int(CALL_S * 1e3)),
)
T = TypeVar("T")


class PeerService:
    def __init__(self, visitor: Visitor, stats: Stats, write_rate: float) -> None:
        """Others may write `write_rate` bytes in a second, all together. On the daemon's loop."""
        self._visitor, self._stats = visitor, stats
        self._budget = Budget.of_rate(write_rate, time.monotonic())
        self._loop = asyncio.get_running_loop()
        self._calls: dict[grpc.ServicerContext, float] = {}  # under way -> when it is to be over
        self._needs_rights = False
        self._health = health.HealthServicer()
        self._threads = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="kvtier-peer")
        self._server = grpc.server(
            self._threads, interceptors=(Reading(),), options=SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX
        )

    # --- its life --------------------------------------------------------------------------------------------

    def start(self, address: str, certificates: Certificates | None) -> None:
        """DaemonError: the address can't be had."""
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        try:
            if certificates is None:
                self._server.add_insecure_port(address)
            else:
                self._needs_rights = True
                self._server.add_secure_port(address, _credentials(certificates))
        except RuntimeError:
            raise DaemonError(f"can't listen on {address}; set peer.listen") from None
        self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        log.info("other nodes are served on %s, %s TLS", address, "with" if self._needs_rights else "without")
        self._sweep()

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """Chunks pass as they are."""
        return {
            "Lengths": grpc.unary_unary_rpc_method_handler(
                self.Lengths, peer_pb2.LengthsRequest.FromString, peer_pb2.LengthsResponse.SerializeToString
            ),
            "Get": grpc.unary_stream_rpc_method_handler(self.Get, peer_pb2.GetRequest.FromString),
            "Put": grpc.stream_unary_rpc_method_handler(self.Put, None, peer_pb2.PutResponse.SerializeToString),
            "Delete": grpc.unary_unary_rpc_method_handler(
                self.Delete, peer_pb2.DeleteRequest.FromString, peer_pb2.DeleteResponse.SerializeToString
            ),
        }

    async def stop(self, grace_s: float) -> None:
        """New calls are refused now; those that run may end within the time. No thread uses a slot after that."""
        self._health.enter_graceful_shutdown()
        ended = self._server.stop(grace_s)
        await self._loop.run_in_executor(None, ended.wait)
        await self._loop.run_in_executor(None, self._threads.shutdown)
        self._sweeping.cancel()

    def _sweep(self) -> None:
        now = time.monotonic()
        for context in [context for context, until in self._calls.copy().items() if until < now]:
            self._calls.pop(context, None)
            context.cancel()
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    # --- the calls, each in a thread -------------------------------------------------------------------------

    def Lengths(self, request: peer_pb2.LengthsRequest, context: grpc.ServicerContext) -> peer_pb2.LengthsResponse:
        """A piece of the question a turn of the loop."""
        keys = _keys(request.keys, context)
        lengths: list[int] = []
        if request.namespace != NOBODYS and (digest := self._digest(request.namespace, context)) is not None:
            step = KEYS_A_TURN * KEY_BYTES
            for at in range(0, len(keys), step):
                piece = keys[at : at + step]
                sizes = self._in_turn(partial(self._visitor.sizes, digest, piece), context)
                lengths += [size + HEADER_BYTES if size else 0 for size in sizes]
        return peer_pb2.LengthsResponse(lengths=lengths or [0] * (len(keys) // KEY_BYTES))

    def Get(self, request: peer_pb2.GetRequest, context: grpc.ServicerContext) -> Iterator[bytes]:
        key = _one_key(request.key, context)
        digest = self._digest(request.namespace, context)
        self._calls[context] = time.monotonic() + CALL_S
        held = None if digest is None else self._held(digest, key, context)
        try:
            if held is None:
                _refuse(context, grpc.StatusCode.NOT_FOUND, "no such block is here")
            yield from chunks.of_value(envelope.pack(held.header()), held.body)
        finally:
            self._calls.pop(context, None)
            if held is not None:
                self._loop.call_soon_threadsafe(self._let_go, held)

    def Put(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> peer_pb2.PutResponse:
        """What is here already, or comes while it is written, is as good."""
        self._calls[context] = time.monotonic() + CALL_S
        try:
            room, body = self._room_for(messages, context)
            if room is not None:
                is_good = False
                try:
                    is_good = _fill(room, body, messages, context)
                finally:
                    if not is_good:
                        self._loop.call_soon_threadsafe(self._visitor.give_up, room)
                if not is_good:
                    _refuse(context, grpc.StatusCode.DATA_LOSS, "the bytes are not those that the header means")
                self._keep(room)
            return peer_pb2.PutResponse()
        finally:
            self._calls.pop(context, None)

    def Delete(self, request: peer_pb2.DeleteRequest, context: grpc.ServicerContext) -> peer_pb2.DeleteResponse:
        keys = _keys(request.keys, context)
        digest = self._digest(request.namespace, context)
        if digest is not None:
            for key in unpack_keys(keys):
                self._in_turn(partial(self._visitor.drop, digest, key), context)
        return peer_pb2.DeleteResponse()

    # --- who may -----------------------------------------------------------------------------------------------

    def _digest(self, namespace: bytes, context: grpc.ServicerContext) -> bytes | None:
        """Of a namespace that the caller may use; None: it isn't known here. Or the call ends."""
        if len(namespace) < NAMESPACE_BYTES:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"namespace: {NAMESPACE_BYTES} bytes of its digest")
        self._require(self._rights(context), namespace, context)
        return self._in_turn(lambda: self._visitor.digest(namespace), context)

    def _rights(self, context: grpc.ServicerContext) -> Rights:
        return rights_of(context.auth_context().get("peer_uri", ())) if self._needs_rights else ALL

    @staticmethod
    def _require(rights: Rights, namespace: bytes, context: grpc.ServicerContext) -> None:
        if not rights.allow(namespace):
            code = grpc.StatusCode.PERMISSION_DENIED if rights else grpc.StatusCode.UNAUTHENTICATED
            what = "the client's certificate has no URI " + right_to(namespace)
            _refuse(context, code, f"{what} among its alternative names")

    # --- what is asked of the store, on the daemon's loop ----------------------------------------------------

    def _in_turn(self, work: Callable[[], T], context: grpc.ServicerContext) -> T:
        """In a turn of the loop of its own."""
        over: Future[T] = Future()

        def turn() -> None:
            if over.set_running_or_notify_cancel():
                over.set_result(work())

        self._loop.call_soon_threadsafe(turn)
        try:
            return over.result(TURN_S)
        except TooLate:
            if not over.cancel():
                return over.result(TURN_S)  # it has begun just now
        _refuse(context, grpc.StatusCode.UNAVAILABLE, "the daemon is busy")

    def _held(self, digest: bytes, key: BlockKey, context: grpc.ServicerContext) -> Held | None:
        """Waits for a block from the drives, as long as its caller does."""
        over: Future[Held | None] = Future()
        asked: list[asyncio.Future[Held | None]] = []

        def ask() -> None:
            answer = self._visitor.hold(digest, key)
            answer.add_done_callback(lambda answer: over.set_result(None if answer.cancelled() else answer.result()))
            asked.append(answer)

        def give_up() -> None:
            if asked:
                asked[0].cancel()

        self._loop.call_soon_threadsafe(ask)
        if not context.add_callback(lambda: self._loop.call_soon_threadsafe(give_up)):
            self._loop.call_soon_threadsafe(give_up)  # it is over already
        try:
            return over.result(READ_S)
        except TooLate:
            self._loop.call_soon_threadsafe(give_up)
            return over.result(TURN_S)  # None, unless it came just now

    def _let_go(self, held: Held) -> None:
        self._visitor.let_go(held)
        self._stats.add("peer_read_blocks")
        self._stats.add("peer_read_bytes", len(held.body))

    def _room_for(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> tuple[Room | None, memoryview]:
        """For the value that comes, and the first of its body; None: it is here already. Or the call ends."""
        header, body = _chunk(next(messages, b""), context)
        try:
            found = envelope.unpack_raw(bytes(header))
        except (Corrupt, OtherVersion) as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"the value's header: {error}")
        self._require(self._rights(context), found.digest, context)
        if found.epoch:
            _refuse(
                context, grpc.StatusCode.FAILED_PRECONDITION, "of a namespace that was reset; nobody else knows to what"
            )
        room = self._in_turn(lambda: self._taken(found), context)
        if isinstance(room, Room):
            return room, body
        if room != KNOWN:
            _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, room)
        return None, body

    def _taken(self, header: Header) -> Room | str:
        now = time.monotonic()
        if self._visitor.digest(header.digest) not in (None, header.digest):  # rights are of its first bytes
            return "another namespace begins like this one"
        if self._budget.is_short(header.size, now):
            self._stats.add("peer_refused_blocks")
            return "more than peer.write_rate is written"
        try:
            epoch = self._visitor.join(header.digest, Kind(header.size, 1, True))
        except ProtocolError as error:
            return str(error)
        room = self._visitor.room(header) if not epoch else "this namespace was reset here"
        if isinstance(room, Room):
            self._budget.spend(header.size)
        elif room != KNOWN:
            self._stats.add("peer_refused_blocks")
        return room

    def _keep(self, room: Room) -> None:
        """However long that takes: the slot is the store's then."""
        over: Future[None] = Future()

        def keep() -> None:
            if self._visitor.keep(room):
                self._stats.add("peer_saved_blocks")
                self._stats.add("peer_saved_bytes", room.header.size)
            over.set_result(None)

        self._loop.call_soon_threadsafe(keep)
        over.result(TURN_S)


def _fill(room: Room, piece: memoryview, messages: Iterator[bytes], context: grpc.ServicerContext) -> bool:
    """Whether it is what the header says; looked at piece by piece, while each is in the processor's cache."""
    at, checksum = 0, envelope.checksum_before(room.header.key)
    while at + len(piece) <= len(room.body):
        room.body[at : at + len(piece)] = piece
        checksum = envelope.checksum_after(checksum, np.frombuffer(piece, np.uint8)) if piece else checksum
        at += len(piece)
        message = next(messages, None)
        if message is None:
            if at == len(room.body):
                return checksum == room.header.checksum
            break
        header, piece = _chunk(message, context)
        if header:
            break
    _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"the body has not the {len(room.body)} bytes that the header says")


def _chunk(message: bytes, context: grpc.ServicerContext) -> tuple[memoryview, memoryview]:
    try:
        return chunks.parsed(message)
    except ValueError as error:
        _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _keys(keys: bytes, context: grpc.ServicerContext) -> bytes:
    if len(keys) % KEY_BYTES or len(keys) > KEYS_MAX * KEY_BYTES:
        _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"keys: {KEY_BYTES} bytes each, at most {KEYS_MAX} of them")
    return keys


def _one_key(key: bytes, context: grpc.ServicerContext) -> BlockKey:
    if len(key) != KEY_BYTES:
        _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"key: {KEY_BYTES} bytes")
    return key


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError("abort raises")


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Clients show a certificate, or they don't get in. Files that have changed are read again."""

    def configured(pems: Pems) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], root_certificates=pems.ca)

    def fresh() -> grpc.ServerCertificateConfiguration | None:
        pems = certificates.fresh()
        return None if pems is None else configured(pems)

    return grpc.dynamic_ssl_server_credentials(configured(certificates.pems), fresh, require_client_authentication=True)
