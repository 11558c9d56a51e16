"""MooncakeRemote: mooncake://, RAM that machines lend to each other by Mooncake Store (0.3.13 and later).

    mooncake://master[:port][?segment=8GiB][&protocol=rdma][&devices=mlx5_0,mlx5_1][&hostname=10.0.0.7]

`segment`: how much of this node's RAM is lent to the store, while kvtierd runs; nothing if not given. `protocol`: tcp if
not given. `hostname`: at which other nodes reach this one; if not given, the address by which it reaches the master.

Its client is a process of its own (mooncake_client.py). It blocks in C++ without deadlines (60 s when the owner of a
value is frozen), and a thread of kvtierd would be held for so long, and then the end of kvtierd. It also listens on all
addresses of the node, with neither passwords nor TLS. So it has nothing but the values that are on their way, in memory
that both processes map:

    put     header and body -> a piece of that memory -> the store
    get     the store -> a piece -> header and body, if somebody still waits for them

A call that nobody waits for any more keeps its piece, and a thread of the client, until it ends. When HUNG_MAX are like
that the client is killed, and the next call starts another; so it does when the client has ended by itself.

A store that has no room drops what it acknowledged, and one that lost the owner of a value says for some 10 s that it is
there. A question for what is there grants a lease for 10 s, against which nothing is evicted.
"""

import asyncio
import contextlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import mooncake
import msgpack
import numpy as np

from kvtier.config import parse_size
from kvtier.errors import ConfigError
from kvtier.tiers.remote.base import CALLS_MAX, Corrupt, Full, Refused, Unreachable

assert mooncake.__path__, "it is there; only the client loads what is in it"
PROGRAM = "kvtier.tiers.remote.mooncake_client"
PORT = 50051
MEMORY_BYTES = 256 * 1024**2  # a page that was never used takes none
HUNG_MAX = 16  # calls that nobody waits for
THREADS = CALLS_MAX + HUNG_MAX
READ_BYTES = 64 * 1024
QUIET_S = 1.0  # then we look whether there is a master
HELD_S = 0.02  # a connection that lives so long was not refused by somebody in between
CLOSE_S = 1.5
SETTINGS = ("segment", "protocol", "devices", "hostname")
PROTOCOLS = ("tcp", "rdma")

# The store's codes.
NO_ROOM, WRONG_SIZE, NOT_WHOLE, MISSING, GONE, DAMAGED, NO_MASTER = -200, -600, -703, -704, -712, -801, -900
QUOTA, NO_TENANT = -1700, -1701
NOT_THERE = (MISSING, NOT_WHOLE, GONE)
WORDS = {NO_MASTER: "no master answers", -901: "its master is silent", -800: "the owner of a value doesn't answer"}


@dataclass(eq=False, slots=True)
class _Call:
    number: int
    verb: str
    names: Sequence[str]
    begin: int  # of its piece
    size: int
    answer: "asyncio.Future[Any]"
    is_left: bool = False  # nobody waits for it


class MooncakeRemote:
    def __init__(self, host: str, port: int, settings: Mapping[str, object]) -> None:
        """The client is started at once: it imports for half a second, longer than the first call has time."""
        self._master, self._settings = (host, port), {**settings, "master": f"{host}:{port}"}
        self._client: _Client | None = None
        with contextlib.suppress(OSError):  # the first call tries again
            self._client = _Client(self._settings)

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        if not names:
            return []
        async with self._call("lengths", names) as (answers, _):
            return [None if answer in NOT_THERE else number_of(answer) for answer in answers]

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        size = header.nbytes + body.nbytes
        async with self._call("get", [name], size) as (length, piece):
            if length in NOT_THERE:
                return False
            if number_of(length) != size:
                raise Corrupt(f"{length} bytes instead of {size}")
            copy(piece[: header.nbytes], header)
            copy(piece[header.nbytes :], body)
        return True

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        async with self._call("put", [name], len(header) + body.nbytes, memoryview(header), body) as (answer, _):
            number_of(answer)

    async def delete(self, names: Sequence[str]) -> None:
        """Not while a write that nobody waits for might make it again."""
        if self._client is not None and self._client.is_writing(names):
            raise Unreachable("a write of it has not ended")
        if names:
            async with self._call("delete", names) as (answers, _):
                for answer in answers:
                    _ = answer in NOT_THERE or number_of(answer)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.end()

    @contextlib.asynccontextmanager
    async def _call(
        self, verb: str, names: Sequence[str], size: int = 0, *content: memoryview
    ) -> AsyncIterator[tuple[Any, memoryview]]:
        """Its answer, and its piece of the memory that the client maps, too."""
        client = self._well()
        if not client.has_answered:
            await self._look(client)
            client = self._well()
        call = client.begin(verb, names, size, content)
        try:
            answered, _ = await asyncio.wait([call.answer], timeout=QUIET_S)
            if not answered:
                await self._look(client)
            answer = await asyncio.shield(call.answer)
            if answer == NO_MASTER or answer == [NO_MASTER] * len(names):
                await self._look(client)
            yield answer, client.memory[call.begin : call.begin + size]
        finally:
            client.leave(call)

    def _well(self) -> "_Client":
        if self._client is None or not self._client.is_well:
            if self._client is not None:
                self._client.kill("so many of its calls hung that its client was ended")
            self._client = _Client(self._settings)
        return self._client

    async def _look(self, client: "_Client") -> None:
        """Whether there is a master: the client takes 4 s to say that there is none."""
        try:
            reader, writer = await asyncio.open_connection(*self._master)
            try:
                async with asyncio.timeout(HELD_S):
                    await reader.read(1)
                raise ConnectionResetError(WORDS[NO_MASTER])
            except TimeoutError:
                return  # it holds the line
            finally:
                writer.close()
        except OSError:
            self._lose(client)
            raise

    def _lose(self, client: "_Client") -> None:
        """It takes seconds to find a master that is back; another one does so at once. But what is in memory that it lends
        would go with it."""
        if client is self._client and client.was_asked and not self._settings["segment"]:
            client.kill(WORDS[NO_MASTER])
            self._well()


def number_of(answer: int) -> int:
    """What isn't below 0 is no error."""
    if answer >= 0:
        return answer
    said = WORDS.get(answer, f"Mooncake's error {answer}")
    errors = {NO_ROOM: Full("no room"), QUOTA: Full("no room"), DAMAGED: Corrupt(said), NO_TENANT: Refused(said)}
    raise errors.get(answer, Unreachable(said))


def copy(these: memoryview, there: memoryview) -> None:
    """Other threads run meanwhile."""
    if these.nbytes:
        np.copyto(np.frombuffer(there, np.uint8), np.frombuffer(these, np.uint8))


class _Client:
    """The process, as long as it lives."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        """Started. From the first call on it belongs to that call's loop."""
        shared = os.memfd_create("kvtier-mooncake")
        os.ftruncate(shared, MEMORY_BYTES)
        self.memory = memoryview(mmap.mmap(shared, MEMORY_BYTES))
        ours, theirs = socket.socketpair()
        handed = [theirs.fileno(), shared]
        command = [sys.executable, "-P", "-m", PROGRAM, *map(str, handed), str(MEMORY_BYTES)]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=handed, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(shared)
        self._calls: dict[int, _Call] = {}
        self._count = 0
        self._why = "its client ended"
        self.has_answered = False
        self._early = bytearray()
        ours.sendall(msgpack.packb(settings))
        self._ours = ours
        self._writer: asyncio.StreamWriter | None = None
        self._talk: asyncio.Task[None] | None = None

    @property
    def is_well(self) -> bool:
        is_over = self._process.poll() is not None if self._talk is None else self._talk.done()
        return not is_over and len(self._hung()) < HUNG_MAX

    @property
    def was_asked(self) -> bool:
        """So it looked for the master already."""
        return self._count > 0

    def is_writing(self, names: Sequence[str]) -> bool:
        """One of them, for nobody."""
        return not {call.names[0] for call in self._hung() if call.verb == "put"}.isdisjoint(names)

    def _hung(self) -> list[_Call]:
        return [call for call in self._calls.values() if call.is_left]

    def begin(self, verb: str, names: Sequence[str], size: int, content: Sequence[memoryview]) -> _Call:
        if self._talk is None:
            self._talk = asyncio.get_running_loop().create_task(self._talking())
        begin = at = self._room_for(size)
        for part in content:
            copy(part, self.memory[at : at + part.nbytes])
            at += part.nbytes
        self._count += 1
        call = _Call(self._count, verb, names, begin, size, asyncio.get_running_loop().create_future())
        self._calls[call.number] = call
        self._say([call.number, verb, list(names), begin, size])
        return call

    def leave(self, call: _Call) -> None:
        """Nobody waits for it any more."""
        call.is_left = True
        if call.answer.done():
            self._calls.pop(call.number, None)

    def _room_for(self, size: int) -> int:
        """The first place where so much is free."""
        at = 0
        for call in sorted(self._calls.values(), key=lambda call: call.begin):
            if at + size <= call.begin:
                break
            at = max(at, -(-(call.begin + call.size) // mmap.PAGESIZE) * mmap.PAGESIZE)
        if at + size > MEMORY_BYTES:
            raise Unreachable("its memory is full of calls that have not ended")
        return at

    def _say(self, message: object) -> None:
        packed = msgpack.packb(message)
        if self._writer is None:
            self._early += packed
        else:
            self._writer.write(packed)

    async def _talking(self) -> None:
        """As long as it lives."""
        reader, self._writer = await asyncio.open_connection(sock=self._ours)
        self._writer.write(self._early)
        said = msgpack.Unpacker()
        with contextlib.suppress(OSError):
            while part := await reader.read(READ_BYTES):
                said.feed(part)
                for number, answer in said:
                    self._heard(number, answer)
        self.kill(self._why)

    def _heard(self, number: int, answer: Any) -> None:
        if number == 0:  # of setting up: it ends now, if that went wrong
            self._why = str(answer)
            return
        self.has_answered = True
        call = self._calls[number]
        call.answer.set_result(answer)
        if call.is_left:
            self._calls.pop(number)

    def kill(self, why: str) -> None:
        """What is under way ends now, and nothing writes into its pieces any more."""
        self._process.kill()
        self._hang_up()
        if self._talk is not None:
            self._talk.cancel()
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(Unreachable(why))
                call.answer.exception()  # looked at: perhaps nobody else does

    async def end(self) -> None:
        """It takes leave of the master, if it does so in time."""
        self._hang_up()
        until = asyncio.get_running_loop().time() + CLOSE_S
        while self._process.poll() is None and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        self.kill("closed")
        if self._talk is not None:
            await asyncio.gather(self._talk, return_exceptions=True)
        self._process.wait()

    def _hang_up(self) -> None:
        if self._writer is None:
            self._ours.close()
        else:
            self._writer.close()


# --- the URL -----------------------------------------------------------------------------------------------------


def connect(url: str, settings: Mapping[str, object]) -> MooncakeRemote:
    parts = urlsplit(url)
    if settings:
        raise ConfigError(f"mooncake:// has no setting {min(settings)!r}; what it has stands in its URL")
    try:
        host, port = parts.hostname, parts.port or PORT
        given = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        segment = parse_size(given.get("segment", "0"))
    except ValueError as error:
        raise ConfigError(f"mooncake://: what stands in its URL is wrong: {error}") from error
    if not host or parts.username or parts.password or parts.path.strip("/") or parts.fragment:
        raise ConfigError("mooncake:// needs a master, as mooncake://host:50051, and nothing else before '?'")
    if unknown := sorted(given.keys() - set(SETTINGS)):
        raise ConfigError(f"mooncake:// has no {unknown[0]!r} in its URL; it has {', '.join(SETTINGS)}")
    protocol = given.get("protocol", PROTOCOLS[0])
    if protocol not in PROTOCOLS:
        raise ConfigError(f"mooncake:// moves values by {' or '.join(PROTOCOLS)}, not by {protocol!r}")
    named = {name: given.get(name, "") for name in ("hostname", "devices")}
    return MooncakeRemote(host, port, {"segment": segment, "protocol": protocol, **named})
