"""PeerService over a store of its own, with real gRPC: what hostile and unlucky clients do leaves nothing behind."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from remote.servers import LOOPBACK, free_ports

from kvtier import peer_service
from kvtier.block import SLOT_UNIT
from kvtier.peer import CALLS_MAX, CHUNK_BYTES, CONNECTIONS_MAX, KEYS_MAX, STREAMS_MAX, chunks, peer_pb2, peer_pb2_grpc
from kvtier.peer_service import PeerService
from kvtier.store import BlockStore
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.envelope import Header, checksum_of
from kvtier.visitor import Visitor

MIB = 1024**2
BLOCK = MIB
RED = b"red".ljust(32)
FRAME = envelope.pack(Header(bytes(16), 2 * SLOT_UNIT, 0, RED, 0, b"", SLOT_UNIT, b"\x01\x01\0\0"))
PATIENCE_S = 30.0
Code = grpc.StatusCode


class World:
    """A loop in a thread of its own, with a store and its service; and a client."""

    def __init__(self, write_rate: float = 1e12) -> None:
        self.store = BlockStore(64 * MIB, lend_share=0.5, lease_share=0.5)
        self.arena = np.zeros(64 * MIB, np.uint8)
        (self.port,) = free_ports(1)
        self.faults: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.service: PeerService = self.on_loop(lambda: self._open(write_rate))
        self.channel = grpc.insecure_channel(f"{LOOPBACK}:{self.port}")
        self.stub = peer_pb2_grpc.PeerStub(self.channel)

    def _open(self, write_rate: float) -> PeerService:
        self.visitor = Visitor(self.store, self.arena, lambda: None, "peer")
        service = PeerService(self.visitor, self.store.stats, write_rate)
        service.start(f"{LOOPBACK}:{self.port}", None)
        return service

    def on_loop(self, work: Callable[[], Any]) -> Any:
        over: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: over.set_result(work()))
        return over.result(PATIENCE_S)

    def close(self) -> None:
        self.channel.close()
        asyncio.run_coroutine_threadsafe(self.service.stop(0.1), self._loop).result(PATIENCE_S)
        self.on_loop(self.visitor.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(self, number: int, body: bytes | None = None, **call: Any) -> bytes:
        body = os.urandom(BLOCK) if body is None else body
        self.stub.Put(iter(value(number, body)), timeout=PATIENCE_S, **call)
        return body

    def get(self, number: int) -> bytes:
        return b"".join(chunk.body for chunk in self.stub.Get(self.request(number), timeout=PATIENCE_S))

    def request(self, number: int) -> peer_pb2.GetRequest:
        return peer_pb2.GetRequest(namespace=RED[:8], key=key(number))

    @property
    def is_at_rest(self) -> bool:
        """Nothing is lent or held."""

        def look() -> bool:
            lent = any(engine.lent for engine in self.store.lending.engines.values())
            return not lent and not self.visitor._held_bytes and not self.visitor._lent_bytes

        return bool(self.on_loop(look))

    def until_rest(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.is_at_rest:
            assert time.monotonic() < until
            time.sleep(0.01)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def header_of(number: int, body: bytes, size: int | None = None, epoch: int = 0) -> bytes:
    size = len(body) if size is None else size
    return envelope.pack(Header(key(number), size, checksum_of(key(number), np.frombuffer(body, np.uint8)), RED, epoch))


def value(number: int, body: bytes, **header: Any) -> list[peer_pb2.Chunk]:
    messages = chunks.of_value(header_of(number, body, **header), memoryview(body))
    return [peer_pb2.Chunk.FromString(message) for message in messages]


@contextlib.contextmanager
def refused(code: Code, words: str | None = None) -> Iterator[None]:
    with pytest.raises(grpc.RpcError, match=words) as error:
        yield
    assert error.value.code() is code, error.value


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()
    assert not made.faults


def test_what_was_put_is_got(world):
    body = world.put(1)
    assert world.get(1) == body
    world.until_rest()


def test_what_is_there_already_is_as_good(world):
    body = world.put(1)
    world.put(1, body)
    world.put(1, os.urandom(BLOCK))
    assert world.get(1) == body
    assert world.store.stats["peer_saved_blocks"] == 1


def test_a_block_that_is_not_here_is_not_found(world):
    with refused(Code.NOT_FOUND):
        world.get(1)
    world.put(1)
    with refused(Code.NOT_FOUND):
        world.get(2)


# --- what is no value --------------------------------------------------------------------------------------------


def test_bytes_that_do_not_fit_the_header_are_refused(world):
    body = os.urandom(BLOCK)
    damaged = value(1, body)
    damaged[2].body = damaged[2].body[:-1] + bytes([damaged[2].body[-1] ^ 1])
    with refused(Code.DATA_LOSS):
        world.stub.Put(iter(damaged), timeout=PATIENCE_S)
    world.until_rest()
    with refused(Code.NOT_FOUND):
        world.get(1)


@pytest.mark.parametrize("size", [BLOCK - SLOT_UNIT, BLOCK + SLOT_UNIT, SLOT_UNIT])
def test_a_body_that_is_shorter_or_longer_than_its_header_says_is_refused(world, size):
    with refused(Code.INVALID_ARGUMENT, "bytes that the header says"):
        world.stub.Put(iter(value(1, os.urandom(BLOCK), size=size)), timeout=PATIENCE_S)
    world.until_rest()


@pytest.mark.parametrize("size", [0, 1, SLOT_UNIT + 1, 1 << 40])
def test_a_size_that_no_block_has_is_refused(world, size):
    with refused(Code.RESOURCE_EXHAUSTED):
        world.stub.Put(iter(value(1, os.urandom(SLOT_UNIT), size=size)), timeout=PATIENCE_S)
    world.until_rest()


@pytest.mark.parametrize("header", [b"", b"x", bytes(112), bytes(range(112)), bytes(10_000), FRAME])
def test_a_header_that_is_none_is_refused(world, header):
    with refused(Code.INVALID_ARGUMENT, "the value's header"):
        world.stub.Put(iter([peer_pb2.Chunk(header=header, body=bytes(SLOT_UNIT))]), timeout=PATIENCE_S)


def test_a_second_header_is_refused(world):
    parts = value(1, os.urandom(BLOCK))
    parts[1].header = parts[0].header
    with refused(Code.INVALID_ARGUMENT):
        world.stub.Put(iter(parts), timeout=PATIENCE_S)
    world.until_rest()


def test_nothing_at_all_is_refused(world):
    with refused(Code.INVALID_ARGUMENT):
        world.stub.Put(iter(()), timeout=PATIENCE_S)


def test_another_epoch_is_refused(world):
    with refused(Code.FAILED_PRECONDITION):
        world.stub.Put(iter(value(1, os.urandom(SLOT_UNIT), epoch=3)), timeout=PATIENCE_S)


def test_a_message_that_is_too_large_is_refused(world):
    with refused(Code.RESOURCE_EXHAUSTED, "larger than max"):
        body = os.urandom(4 * CHUNK_BYTES)
        world.stub.Put(iter([peer_pb2.Chunk(header=header_of(1, body), body=body)]), timeout=PATIENCE_S)
    world.until_rest()


@pytest.mark.parametrize("keys", [b"x", bytes(17), bytes(16 * (KEYS_MAX + 1))])
@pytest.mark.parametrize("method", ["Lengths", "Delete"])
def test_keys_that_are_none_or_too_many_are_refused(world, keys, method):
    request = {"Lengths": peer_pb2.LengthsRequest, "Delete": peer_pb2.DeleteRequest}[method]
    with refused(Code.INVALID_ARGUMENT, "at most 1024"):
        getattr(world.stub, method)(request(namespace=RED[:8], keys=keys), timeout=PATIENCE_S)


@pytest.mark.parametrize("namespace", [b"", b"short"])
def test_a_namespace_has_eight_bytes(world, namespace):
    with refused(Code.INVALID_ARGUMENT, "8 bytes"):
        world.stub.Lengths(peer_pb2.LengthsRequest(namespace=namespace, keys=key(1)), timeout=PATIENCE_S)
    with refused(Code.INVALID_ARGUMENT, "8 bytes"):
        list(world.stub.Get(peer_pb2.GetRequest(namespace=namespace, key=key(1)), timeout=PATIENCE_S))


def test_bytes_that_are_no_chunk_are_refused(world):
    put = world.channel.stream_unary("/kvtier.v1.Peer/Put", None, None)
    with refused(Code.INVALID_ARGUMENT, "chunk"):
        put(iter([b"\x12\xff\xff"]), timeout=PATIENCE_S)


# --- who goes away, or doesn't go on -----------------------------------------------------------------------------


def half(body: bytes, stop: threading.Event) -> Iterator[peer_pb2.Chunk]:
    parts = value(1, body)
    yield from parts[:2]
    stop.wait(PATIENCE_S)


def test_half_a_put_leaves_nothing(world):
    stop = threading.Event()
    call = world.stub.Put.future(half(os.urandom(BLOCK), stop))
    until = time.monotonic() + PATIENCE_S
    while world.is_at_rest:
        assert time.monotonic() < until
    call.cancel()
    world.until_rest()
    stop.set()
    assert world.store.ram.slots.taken_bytes == 0


def test_a_deadline_ends_half_a_put(world):
    stop = threading.Event()
    with refused(Code.DEADLINE_EXCEEDED):
        world.stub.Put(half(os.urandom(BLOCK), stop), timeout=0.3)
    world.until_rest()
    stop.set()


def test_who_does_not_go_on_is_cut_off(world, monkeypatch):
    monkeypatch.setattr(peer_service, "CALL_S", 0.2)
    stop = threading.Event()
    with refused(Code.CANCELLED):
        world.stub.Put(half(os.urandom(BLOCK), stop), timeout=PATIENCE_S)
    stop.set()
    world.until_rest()


def test_who_does_not_read_on_is_cut_off_and_holds_nothing(world, monkeypatch):
    monkeypatch.setattr(peer_service, "CALL_S", 0.2)
    for number in range(8):
        world.put(number)
    reads = [world.stub.Get(world.request(number)) for number in range(8)]
    for read in reads:
        next(read)
    world.until_rest()
    for read in reads:
        read.cancel()


def test_a_connection_that_says_nothing_or_nonsense_holds_up_nobody(world):
    with contextlib.ExitStack() as undone:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500):
            peer = undone.enter_context(socket.create_connection((LOOPBACK, world.port)))
            peer.sendall(said)
        body = world.put(1)
        assert world.get(1) == body


def test_connections_that_say_nothing_are_bounded_and_end(world):
    body = world.put(1)
    with contextlib.ExitStack() as undone:
        for _ in range(CONNECTIONS_MAX + 10):
            undone.enter_context(socket.create_connection((LOOPBACK, world.port)))
        assert world.get(1) == body, "who was connected before goes on"
        with grpc.insecure_channel(f"{LOOPBACK}:{world.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            read = peer_pb2_grpc.PeerStub(channel).Get(world.request(1), timeout=PATIENCE_S, wait_for_ready=True)
            assert b"".join(chunk.body for chunk in read) == body


# --- limits ------------------------------------------------------------------------------------------------------


def test_so_many_calls_are_carried_out_and_more_are_refused(world):
    stops, calls, channels = [threading.Event() for _ in range(CALLS_MAX + 8)], [], []
    for number, stop in enumerate(stops):  # one connection alone may not have so many
        if number % (STREAMS_MAX // 2) == 0:
            channels.append(grpc.insecure_channel(f"{LOOPBACK}:{world.port}", [("grpc.use_local_subchannel_pool", 1)]))
        calls.append(peer_pb2_grpc.PeerStub(channels[-1]).Put.future(waiting(stop), timeout=PATIENCE_S))
    until = time.monotonic() + PATIENCE_S
    while sum(call.done() for call in calls) < 8:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert {call.code() for call in calls if call.done()} == {Code.RESOURCE_EXHAUSTED}
    for stop in stops:
        stop.set()
    assert sum(call.exception().code() is Code.INVALID_ARGUMENT for call in calls) == CALLS_MAX, "they said nothing"
    for channel in channels:
        channel.close()
    assert world.put(1) == world.get(1)


def waiting(stop: threading.Event) -> Iterator[peer_pb2.Chunk]:
    stop.wait(PATIENCE_S)
    yield from ()


def test_more_than_the_rate_is_refused():
    world = World(write_rate=BLOCK / 10)
    with refused(Code.RESOURCE_EXHAUSTED, "peer.write_rate"):
        for number in range(30):
            world.put(number)
    assert 1 <= world.store.stats["peer_saved_blocks"] < 30
    assert world.store.stats["peer_refused_blocks"] == 1
    world.close()


def test_where_there_is_no_room_it_is_refused_and_reads_go_on(world):
    body = world.put(0)
    world.on_loop(lambda: setattr(world.visitor, "_lent_max", 0) or setattr(world.visitor, "_lent_bytes", 1))
    with refused(Code.RESOURCE_EXHAUSTED, "no room"):
        world.put(1)
    world.on_loop(lambda: setattr(world.visitor, "_lent_bytes", 0))
    assert world.get(0) == body


def test_reads_that_find_too_much_held_wait_for_their_turn(world):
    bodies = [world.put(number) for number in range(12)]
    world.on_loop(lambda: setattr(world.visitor, "_held_max", 2 * BLOCK))
    found: dict[int, bytes] = {}
    readers = [threading.Thread(target=lambda n=n: found.update({n: world.get(n)})) for n in range(12)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [found[number] for number in range(12)] == bodies
    world.until_rest()


def test_a_fault_in_the_store_is_the_loop_s(world):
    world.put(1)

    def broken(digest: bytes, keys: bytes) -> list[int]:
        raise AssertionError("the store is wrong")

    world.visitor.sizes = broken  # type: ignore[method-assign]
    with pytest.raises(grpc.RpcError):
        world.stub.Lengths(peer_pb2.LengthsRequest(namespace=RED[:8], keys=key(1)), timeout=1)
    assert [str(fault["exception"]) for fault in world.faults] == ["the store is wrong"]
    world.faults.clear()


def test_calls_that_nobody_ends_end_with_their_connection(monkeypatch):
    """Those that were begun and say nothing, and those that watch: or a few would take all that there may be."""
    short = {"grpc.max_connection_age_ms": 300, "grpc.max_connection_age_grace_ms": 200}
    named = dict(peer_service.SERVER_OPTIONS)
    assert short.keys() <= named.keys()
    monkeypatch.setattr(peer_service, "SERVER_OPTIONS", tuple((named | short).items()))
    world, stop = World(), threading.Event()
    watch = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    silent = world.channel.stream_unary("/kvtier.v1.Peer/Lengths").future(waiting(stop), timeout=PATIENCE_S)
    with refused(Code.UNAVAILABLE):
        list(watch)
    with refused(Code.UNAVAILABLE):
        silent.result()
    stop.set()
    assert world.put(1) == world.get(1), "on another connection"
    world.close()


def test_a_namespace_that_begins_like_one_that_is_known_is_refused(world):
    """Rights are of the first bytes: whoever has one could hide the namespace that is meant."""
    body = world.put(1)
    other = RED[:8] + bytes(24)
    header = envelope.pack(Header(key(2), BLOCK, checksum_of(key(2), np.frombuffer(body, np.uint8)), other, 0))
    messages = [peer_pb2.Chunk.FromString(message) for message in chunks.of_value(header, memoryview(body))]
    with refused(Code.RESOURCE_EXHAUSTED, "begins like this one"):
        world.stub.Put(iter(messages), timeout=PATIENCE_S)
    assert world.get(1) == body and len(world.store.namespaces) == 1
