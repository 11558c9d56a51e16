"""A RespWire: a Wire to a server that speaks RESP 2. Values are received straight into the caller's memory.

    take a wire --> [open] --> send a command or many --> their replies, in order --> is_clean? put it back : close it

Whoever is cancelled between leaves a wire that is not clean: nothing was written to its memory since, and nothing will
be. A wire is one coroutine's at a time.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kvtier.tiers.remote.base import Corrupt, Full, Refused, RemoteError, Unreachable
from kvtier.tiers.remote.exchanges import Buffer, Exchanges
from kvtier.tiers.remote.wire import LARGE_BYTES, Address, Wire, drop

INBOX_BYTES = 64 * 1024
OK, END = b"+OK\r\n", b"\r\n"
SKIPPED_BYTES_MAX = INBOX_BYTES - 2  # of a value that nobody wants; of a longer one the connection goes
REPLY_BYTES_MAX = 4 * 1024**2  # of one reply with all that is in it; a cluster's slots are the longest

# How an error begins -> what it means. What isn't here may be over another time: LOADING, BUSY, CLUSTERDOWN, TRYAGAIN, ...
REFUSALS: dict[str, type[RemoteError]] = {
    "NOAUTH": Refused,
    "WRONGPASS": Refused,
    "NOPERM": Refused,
    "READONLY": Refused,
    "NOREPLICAS": Refused,  # it takes writes only while replicas hear of them
    "OOM": Full,
    "MISCONF": Full,  # it can't write its own disk, and takes nothing until it can
    "WRONGTYPE": Corrupt,  # somebody else's
    "ERR DB": Refused,  # no such database
    "ERR AUTH": Refused,  # it knows no passwords
    "ERR SELECT": Refused,  # a cluster has one database
}

Reply = bytes | int | list["Reply"] | RemoteError | None


class Moved(Refused):
    """A node of a cluster: another one has this slot. `asking`: for this once."""

    def __init__(self, slot: int, host: str, port: int, asking: bool) -> None:
        super().__init__(f"this is a cluster, slot {slot} is at {host}:{port}: write redis+cluster://")
        self.slot, self.host, self.port, self.asking = slot, host, port, asking


@dataclass(frozen=True)
class Login:
    """What a server wants to hear first."""

    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0

    def commands(self) -> list[list[bytes]]:
        said = []
        if self.password:
            user = [self.username.encode()] if self.username else []
            said.append([b"AUTH", *user, self.password.encode()])
        if self.database:
            said.append([b"SELECT", b"%d" % self.database])
        return said


class RespWire(Wire):
    def __init__(
        self,
        address: Address,
        login: Login,
        tls: ssl.SSLContext | None,
        exchanges: Exchanges,
        threads: ThreadPoolExecutor,
    ) -> None:
        super().__init__(address, tls, exchanges, threads)
        self._login = login
        self._inbox = bytearray(INBOX_BYTES)
        self._begin = self._end = 0  # of what is in the inbox
        self._awaited = 0  # replies
        self._heard = 0  # bytes of the reply that is read now, or a few more
        self._is_ready = False  # connected, and logged in

    @property
    def is_clean(self) -> bool:
        """Nothing is half done, half said or half heard."""
        return self._is_ready and not self._awaited and self._begin == self._end

    @property
    def is_open(self) -> bool:
        return self._is_ready and self._is_alive

    async def open(self) -> None:
        self.close()
        await self._connect()
        said = self._login.commands()
        if said:
            await self.send([packed(command) for command in said], len(said))
            replies = [await self.reply() for _ in said]
            for reply in replies:
                if isinstance(reply, RemoteError):
                    raise reply
        self._is_ready = True

    def close(self) -> None:
        super().close()
        self._begin = self._end = self._awaited = 0
        self._is_ready = False

    # --- commands and replies ------------------------------------------------------------------------------------

    async def send(self, pieces: Sequence[Buffer], commands: int = 1) -> None:
        """So many commands, all in all these bytes."""
        self._awaited += commands
        size = sum(memoryview(piece).nbytes for piece in pieces)
        if self._tls is None and size >= LARGE_BYTES and self._begin == self._end:
            self._begin, self._end = 0, await self._exchanged(pieces, [memoryview(self._inbox)[: len(OK)]], OK)
            return
        rest = [memoryview(piece) for piece in pieces]

        def attempt() -> None:
            while rest:
                drop(rest, self._sent(rest))

        await self._done(attempt, self._loop.add_writer, size)

    async def reply(self) -> Reply:
        """An error is returned, for the replies after it belong to others."""
        self._heard = 0
        reply = await self._any_reply(0)
        self._awaited -= 1
        return reply

    async def ask_into(self, pieces: Sequence[Buffer], header: memoryview, body: memoryview) -> bool:
        """One command, and its value of exactly their sizes; False: there is none. Raises what the server or its size say
        against it."""
        size = header.nbytes + body.nbytes
        begin = b"$%d\r\n" % size
        if self._tls is None and size >= LARGE_BYTES:
            is_whole = await self._value_exchanged(pieces, begin, header, body)
        else:
            await self.send(pieces)
            is_whole = await self._value_into(begin, header, body)
        if is_whole:
            self._awaited -= 1
            return True
        line = await self._line()
        if line[:1] != b"$":
            reply = await self._meant(line, 0)
            self._awaited -= 1
            raise reply if isinstance(reply, RemoteError) else Corrupt("no value")
        found = self._number(line)
        if 0 <= found <= SKIPPED_BYTES_MAX:
            await self._bytes(found)
        if found <= SKIPPED_BYTES_MAX:
            self._awaited -= 1
        if found >= 0:
            raise Corrupt(f"{found} bytes instead of {size}")
        return False

    async def _value_exchanged(self, pieces: Sequence[Buffer], line: bytes, header: memoryview, body: memoryview) -> bool:
        """As `_value_into`, with the command before it."""
        assert self._begin == self._end, "the replies before were heard"
        self._awaited += 1
        inbox, most = memoryview(self._inbox), len(line) + header.nbytes
        answer = [inbox[:most], body, inbox[most : most + len(END)]]
        received = await self._exchanged(pieces, answer, line)
        if received < most + body.nbytes + len(END):
            self._begin, self._end = 0, received
            return False
        header[:] = inbox[len(line) : most]
        self._begin, self._end = most, most + len(END)
        await self._end_of_value()
        return True

    async def _value_into(self, line: bytes, header: memoryview, body: memoryview) -> bool:
        """False: the reply begins with another line; what came of it is in the inbox."""
        assert self._begin == self._end, "the replies before were heard"
        self._begin = self._end = 0
        inbox, most, rest = memoryview(self._inbox), len(line) + header.nbytes, body

        def attempt() -> None:
            nonlocal rest
            while self._end < most:
                self._end += self._received(inbox[self._end : most])
                if not line.startswith(inbox[: min(self._end, len(line))]):
                    return
            while rest:
                rest = rest[self._received(rest) :]

        await self._done(attempt, self._loop.add_reader, body.nbytes)
        if self._end < most or inbox[: len(line)] != line:
            return False
        header[:] = inbox[len(line) : most]
        self._begin = most
        await self._end_of_value()
        return True

    async def _any_reply(self, depth: int) -> Reply:
        return await self._meant(await self._line(), depth)

    async def _meant(self, line: bytes, depth: int) -> Reply:
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return refusal(rest.decode(errors="replace"), self.address)
        if kind == b":":
            return self._number(line)
        if kind == b"$":
            size = self._number(line)
            return None if size < 0 else await self._bytes(size)
        if kind == b"*" and depth < 8 and (count := self._number(line)) <= INBOX_BYTES:
            await asyncio.sleep(0)  # what is there already is read without waiting; deadlines have their turn
            return None if count < 0 else [await self._any_reply(depth + 1) for _ in range(count)]
        raise self._lost("this is no Redis")

    def _number(self, line: bytes) -> int:
        if not line[1:].removeprefix(b"-").isdigit() or len(line) > 20:
            raise self._lost("this is no Redis")
        return int(line[1:])

    # --- bytes ---------------------------------------------------------------------------------------------------

    async def _line(self) -> bytes:
        while (end := self._inbox.find(b"\r\n", self._begin, self._end)) < 0:
            await self._more()
        line = bytes(memoryview(self._inbox)[self._begin : end])
        self._begin = end + 2
        return line

    async def _bytes(self, size: int) -> bytes:
        if size > SKIPPED_BYTES_MAX:
            raise self._lost(f"a reply of {size} bytes")
        while self._end - self._begin < size:
            await self._more()
        self._begin += size
        found = bytes(memoryview(self._inbox)[self._begin - size : self._begin])
        await self._end_of_value()
        return found

    async def _end_of_value(self) -> None:
        while self._end - self._begin < 2:
            await self._more()
        if self._inbox[self._begin : self._begin + 2] != b"\r\n":
            raise self._lost("a value without its end")
        self._begin += 2

    async def _more(self) -> None:
        """At least one byte more in the inbox."""
        if self._begin:
            self._inbox[: self._end - self._begin] = self._inbox[self._begin : self._end]
            self._begin, self._end = 0, self._end - self._begin
        if self._end == len(self._inbox) or self._heard > REPLY_BYTES_MAX:
            raise self._lost("this is no Redis")
        await self._done(self._hear, self._loop.add_reader)

    def _hear(self) -> None:
        count = self._received(memoryview(self._inbox)[self._end :])
        self._end += count
        self._heard += count


def packed(words: Sequence[bytes], more: int | None = None) -> bytes:
    """A command. `more`: bytes of one more word, which is sent after it, with its end."""
    count = len(words) + (more is not None)
    head = b"*%d\r\n" % count + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
    return head if more is None else head + b"$%d\r\n" % more


def refusal(text: str, address: Address) -> RemoteError:
    """What a server answered instead of doing it."""
    word, _, rest = text.partition(" ")
    if word in ("MOVED", "ASK"):
        with contextlib.suppress(ValueError):
            slot, _, where = rest.partition(" ")
            host, _, port = where.rpartition(":")
            return Moved(int(slot), host or address.host, int(port), word == "ASK")
    meant = next((error for begin, error in REFUSALS.items() if text.startswith(begin)), Unreachable)
    return meant(f"{address}: {text}")
