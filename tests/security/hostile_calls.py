"""Calls of a kvtierd's admin and peer services that nobody should make, all of it made from a seed.

Requests are messages of the service with fields of any value, whole or with damage, and the file of an exported
conversation with damage; to methods that there are and that there aren't, as streams where there is one message and the
other way round. A call may end in any way but one: that the service didn't know what to do.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from kvtierd import PATIENCE_S, some_keys

from kvtier.admin import admin_pb2
from kvtier.block import unpack_keys
from kvtier.peer import peer_pb2

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
PEER = peer_pb2.DESCRIPTOR.services_by_name["Peer"]
CALL_S = 0.5  # a Drain goes on for as long as one listens, a stream of one message too few waits for the next
HEARD_MAX, PIECES_MAX = 1, 4
TEXTS = ("first", "second", "mine", "", "x" * 300, "\0", "../..", "~", "idle", "name", "0" * 12, "f" * 12, "\U0001f600")
NUMBERS = (0, 1, 7, 1000, 2**31, 2**32 - 1)
SECONDS = (0.0, 1.5, -1.0, 1e300, float("inf"), float("nan"))
# What a service answers on purpose; UNAVAILABLE: more streams than a connection may have, or it is gone, which shows.
ANSWERS = {
    grpc.StatusCode[name]
    for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "DATA_LOSS",
                 "UNIMPLEMENTED", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "PERMISSION_DENIED",
                 "UNAVAILABLE")
}  # fmt: skip
NO_MESSAGE = "Unexpected <class 'google.protobuf.message.DecodeError'>"  # gRPC's word: it never came to us


class Words(NamedTuple):
    """What requests are made of besides chance: the file of a conversation, and digests that are known."""

    parcel: bytes
    namespaces: tuple[bytes, ...]


def whole(chance: random.Random, kind: type[Message], words: Words) -> Message:
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if chance.random() < 0.2:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, chance.choice(TEXTS))
        elif field.type == FieldDescriptor.TYPE_BYTES:
            setattr(message, field.name, _bytes(chance, field.name, words))
        elif field.type == FieldDescriptor.TYPE_DOUBLE:
            setattr(message, field.name, chance.choice(SECONDS))
        elif field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
            setattr(message, field.name, chance.choice(NUMBERS))
    return message


def _bytes(chance: random.Random, field: str, words: Words) -> bytes:
    """A good one, mostly."""
    if chance.random() < 0.2:
        return chance.randbytes(chance.choice((0, 1, 8, 15, 17, 96, 300)))
    match field:
        case "namespace":
            return chance.choice(words.namespaces)[:8]
        case "key" | "keys":
            keys = unpack_keys(some_keys(6, f"key {chance.randrange(9)}"))
            return b"".join(keys[: 1 if field == "key" else chance.randrange(7)])
        case "header":
            return b"" if chance.random() < 0.3 else words.parcel[-96:]
    at = chance.randrange(len(words.parcel))
    return words.parcel[at : at + chance.choice((1, 100, 60_000))]


def damaged(chance: random.Random, message: bytes) -> bytes:
    body = bytearray(message or b"\0")
    match chance.randrange(4):
        case 0:
            body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        case 1:
            del body[chance.randrange(len(body)) :]
        case 2:
            at = chance.randrange(len(body))
            body[at:at] = chance.randbytes(chance.randrange(1, 30))
        case 3:
            body = bytearray(chance.randbytes(chance.randrange(1, 100)))
    return bytes(body)


def file_of(chance: random.Random, words: Words) -> Iterator[bytes]:
    """A conversation's, in pieces; mostly with one thing wrong."""
    parcel = bytearray(words.parcel)
    if chance.random() < 0.8:
        at = min(int(chance.expovariate(1 / 500)), len(parcel) - 1)  # the head more than the blocks
        parcel[at] = chance.randrange(256)
    if chance.random() < 0.3:
        del parcel[chance.randrange(len(parcel)) :]
    step = chance.choice((1000, 65_536, 250_000))
    for begin in range(0, min(len(parcel), PIECES_MAX * step), step):
        yield admin_pb2.ImportRequest(piece=bytes(parcel[begin : begin + step])).SerializeToString()


class HostileCaller:
    """Of one service. A connection for each batch."""

    def __init__(self, target: str, service: ServiceDescriptor, words: Words, at_once: int) -> None:
        self._target, self._service, self._words, self._at_once = target, service, words, at_once
        self.answers: dict[str, int] = {}

    def batch(self, number: int, calls: int) -> None:
        """So many, all that follows from the seed `number`; AssertionError: an answer that there may not be."""
        chance = random.Random(number)
        under_way: list[Any] = []
        with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(calls):
                under_way.append(self._call(channel, chance))
                if len(under_way) >= self._at_once:
                    self._end(chance, under_way.pop(chance.randrange(len(under_way))))
            for call in under_way:
                self._end(chance, call)

    def _call(self, channel: grpc.Channel, chance: random.Random) -> Any:
        method = chance.choice(self._service.methods)
        path, sends, answers = f"/{self._service.full_name}/{method.name}", method.client_streaming, method.server_streaming
        if chance.random() < 0.03:
            path += chance.choice(("", "s", "/", "\n"))[:1].strip() or "x"
        if chance.random() < 0.05:
            sends, answers = not sends, chance.random() < 0.5
        requests = self._requests(chance, GetMessageClass(method.input_type), method.name == "Import")
        if not sends:
            request = next(requests)
            make = channel.unary_stream if answers else channel.unary_unary
            return make(path)(request, timeout=CALL_S) if answers else make(path).future(request, timeout=CALL_S)
        make = channel.stream_stream if answers else channel.stream_unary
        return make(path)(requests, timeout=CALL_S) if answers else make(path).future(requests, timeout=CALL_S)

    def _requests(self, chance: random.Random, kind: type[Message], is_import: bool) -> Iterator[bytes]:
        """gRPC asks for them in a thread of its own, so they are made beforehand."""
        if is_import and chance.random() < 0.7:
            return iter(list(file_of(chance, self._words)))
        made = []
        for _ in range(chance.choice((1, 1, 2, PIECES_MAX))):
            message = whole(chance, kind, self._words).SerializeToString()
            made.append(damaged(chance, message) if chance.random() < 0.3 else message)
        return iter(made)

    def _end(self, chance: random.Random, call: Any) -> None:
        """Hears it out, or goes away."""
        if chance.random() < 0.1:
            call.cancel()
        try:
            if hasattr(call, "result"):
                call.result(PATIENCE_S)
            else:
                for heard, _ in enumerate(call):
                    if heard >= HEARD_MAX:
                        call.cancel()
        except (grpc.RpcError, grpc.FutureCancelledError):
            pass
        code, details = call.code(), call.details() or ""
        self.answers[code.name] = self.answers.get(code.name, 0) + 1
        assert code in ANSWERS or details.startswith(NO_MESSAGE), (code, details)
