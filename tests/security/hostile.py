"""Connections to a kvtierd that say what nobody should, all of it made from a seed.

A batch has some connections open at once: schedulers, workers, observers, and who hasn't said yet. What they say is drawn
from words (messages of every kind, made by hypothesis), from a conversation as an engine has it, with the slots that it was
really lent, and from both with damage: flipped bits, cut and joined frames, lengths that lie, fields of other types.
They hang up at any moment, and engines of the same name meet.
"""

import contextlib
import os
import random
import select
import socket
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgpack
from hypothesis import HealthCheck, Phase, given, seed, settings
from kvtierd import PATIENCE_S, SLOT, observer_hello, scheduler_hello, some_keys, worker_hello
from messages import messages

from kvtier import protocol
from kvtier.block import unpack_slots
from kvtier.dispatch import FROM_SCHEDULERS
from kvtier.errors import CODES, ProtocolError

WORDS, OPEN_MAX = 2000, 6
ANSWER_S = 0.05  # to wait for a Welcome at most
COUNTED = (protocol.Commit, protocol.GiveBack)  # of slots that are not lent
ENGINES, MODELS = ("one", "two", "three"), ("their", "other")
SESSIONS = ("first", "second", "mine", "~1")
LENGTHS = (0, 1, 3, protocol.FRAME_BYTES_MAX, protocol.FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1)
ODD = (None, True, -1, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, float("nan"), float("inf"), "", "x" * 300, b"", b"x" * 17,
       [], {}, [[[[[[[]]]]]]], {"a": {"b": [1]}}, {1: 2}, msgpack.ExtType(5, b"x"), msgpack.Timestamp(0))  # fmt: skip
_LENGTH = struct.Struct("<I")


@cache
def words() -> list[protocol.Message]:
    """The same each time."""
    found: list[protocol.Message] = []

    @seed(1)
    @settings(
        max_examples=WORDS, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(messages)
    def collect(message: protocol.Message) -> None:
        found.append(message)

    collect()
    return found


def frame_of(body: bytes, length: int | None = None) -> bytes:
    return _LENGTH.pack(len(body) if length is None else length) + body


def damaged(chance: random.Random, frame: bytes) -> bytes:
    body = bytearray(frame[_LENGTH.size :])
    match chance.randrange(7):
        case 0:
            for _ in range(chance.choice((1, 1, 2, 8))):
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
            return frame_of(body)
        case 1:
            return frame_of(body[: chance.randrange(1, len(body) + 1)])
        case 2:
            return frame_of(body, chance.choice(LENGTHS))
        case 3:
            at = chance.randrange(len(body))
            return frame_of(body[:at] + chance.randbytes(chance.randrange(1, 40)) + body[at:])
        case 4:
            return frame_of(chance.randbytes(chance.randrange(1, 60)))
        case 5:
            return frame[: chance.randrange(1, len(frame))]
    fields = msgpack.unpackb(body)
    at = chance.randrange(len(fields) + 1)
    if at == len(fields):
        return frame_of(msgpack.packb([*fields, chance.choice(ODD)]))
    fields[at] = chance.choice(ODD)
    return frame_of(msgpack.packb(fields[: chance.choice((at, len(fields), len(fields)))] or [chance.choice(ODD)]))


class Hostile:
    """One connection. What the daemon says is heard, and it must be a message."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self._chance = chance
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(PATIENCE_S)
        self._sock.connect(os.fspath(path))
        self._reader = protocol.FrameReader()
        self._lent: list[int] = []
        self._leases = 0
        self.is_over = False
        self.role = ""

    def close(self) -> None:
        self._sock.close()

    def listen(self) -> None:
        """To what is there; doesn't wait."""
        while not self.is_over and select.select([self._sock], [], [], 0)[0]:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, protocol.RECEIVE_BYTES, 4)
            except ConnectionResetError:
                data, fds = b"", []
            for fd in fds:
                os.close(fd)
            self.is_over = not data
            for message in self._reader.feed(data):
                if isinstance(message, protocol.Lend):
                    self._lent += unpack_slots(message.slots).tolist()
                elif isinstance(message, protocol.Error):
                    assert message.code in CODES, message
                    self.is_over = True

    def say_something(self) -> None:
        """One frame. What is the end of a connection mostly is the last that is said on it, for the rest isn't read."""
        chance = self._chance
        message, is_wrong = self._next_word()
        frame = protocol.encode(message)
        if chance.random() < 0.06:
            frame, is_wrong = damaged(chance, frame), True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._sock.sendall(frame)
        if isinstance(message, protocol.Hello) and not is_wrong:
            select.select([self._sock], [], [], ANSWER_S)  # what it is lent it needs for what it says next
        self.is_over = self.is_over or (is_wrong and chance.random() < 0.9)

    def _next_word(self) -> tuple[protocol.Message, bool]:
        """And whether it is wrong here."""
        chance = self._chance
        if not self.role and chance.random() < 0.95:
            self.role = chance.choice((protocol.SCHEDULER,) * 5 + (protocol.WORKER, protocol.OBSERVER))
            return self._hello(), False
        if self.role != protocol.SCHEDULER:
            return (protocol.Mapped() if self.role == protocol.WORKER else protocol.Ask()), False
        if chance.random() < 0.9:
            return next(self._talk()), False
        message = chance.choice(words())
        return message, not isinstance(message, FROM_SCHEDULERS) or isinstance(message, COUNTED)

    def _hello(self) -> protocol.Message:
        chance = self._chance
        engine = chance.choice(ENGINES) if chance.random() < 0.2 else f"engine {chance.getrandbits(64):x}"
        if self.role == protocol.SCHEDULER:
            size, lend = chance.choice((1, *[SLOT] * 9, 200_000, 2**40)), chance.choice((0, 1, 8, 8, 8, 300, 2**62))
            return scheduler_hello(engine, chance.choice(MODELS), size, lend)
        return worker_hello(engine) if self.role == protocol.WORKER else observer_hello()

    def _talk(self) -> Iterator[protocol.Message]:
        """What an engine says, more or less."""
        chance = self._chance
        keys, request = some_keys(chance.randrange(1, 6), f"key {chance.randrange(9)}"), f"request {chance.randrange(9)}"
        match chance.choice(("begin", "look", "look", "release", "save", "save", "save", "give", "touch", "ask", "more")):
            case "begin":
                tenant = chance.choice((b"", bytes([chance.randrange(3)]) * 16))
                yield protocol.Begin(request, chance.choice(("", *SESSIONS)), tenant)
            case "look":
                self._leases += 1
                yield protocol.Lookup(self._leases, keys, chance.choice((0, 0, 1, 9)), chance.choice(("", request)), 1000)
            case "release":
                yield protocol.Release(chance.randrange(self._leases + 1), chance.randrange(9))
            case "save":
                slots = [self._lent.pop() for _ in range(min(len(self._lent), len(keys) // 16))] or [chance.randrange(1100)]
                keys = keys[: 16 * len(slots)]
                parents = chance.choice((b"", bytes(16) + keys[:-16]))
                yield protocol.Commit(keys, b"".join(slot.to_bytes(4, "little") for slot in slots), parents, request)
            case "give":
                yield protocol.GiveBack((self._lent.pop() if self._lent else 7).to_bytes(4, "little"))
            case "touch":
                yield protocol.Touch(keys, request)
            case "ask":
                yield protocol.Ask()
            case "more":
                yield chance.choice((protocol.Want(chance.randrange(400)), protocol.Reset(), protocol.Due(self._leases)))


def batch(path: Path, number: int, frames: int) -> None:
    """So many frames, all that follows from the seed `number`. AssertionError: the daemon said what it may not."""
    chance = random.Random(number)
    with contextlib.ExitStack() as stack:
        there: list[Hostile] = []
        for _ in range(frames):
            if not there or (len(there) < OPEN_MAX and chance.random() < 0.3):
                there.append(Hostile(path, chance))
                stack.callback(there[-1].close)
            one = chance.choice(there)
            try:
                one.listen()
            except ProtocolError as error:
                raise AssertionError(f"the daemon sent nonsense: {error}") from error
            if not one.is_over:
                one.say_something()
            if one.is_over or chance.random() < 0.02:
                one.close()
                there.remove(one)
