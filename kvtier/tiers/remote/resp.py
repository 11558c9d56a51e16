"""A Wire: one connection to a server that speaks RESP 2. Values are received straight into the caller's memory.

    take a wire --> [open] --> send a command or many --> their replies, in order --> is_clean? put it back : close it

Whoever is cancelled between leaves a wire that is not clean: nothing was written to its memory since, and nothing will
be. A wire is one coroutine's at a time.

With a plain socket or TLS alike there is no stream or transport between: a receive that would block is done by the
loop's own callback as soon as there is something, so that a value of 2 MiB costs one task switch instead of dozens.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from kvtier.tiers.remote.base import Corrupt, Full, Refused, RemoteError, Unreachable

INBOX_BYTES = 64 * 1024
SKIPPED_BYTES_MAX = INBOX_BYTES - 2  # of a value that nobody wants; of a longer one the connection goes
THREAD_BYTES = 256 * 1024  # less isn't worth waking a thread for
SPIN_S, SPIN_S_MAX = 0.0001, 0.003  # without a byte, and in all
BLOCKED = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

# How an error begins -> what it means. What isn't here may be over another time: LOADING, BUSY, CLUSTERDOWN, TRYAGAIN, ...
REFUSALS: dict[str, type[RemoteError]] = {
    "NOAUTH": Refused,
    "WRONGPASS": Refused,
    "NOPERM": Refused,
    "READONLY": Refused,
    "OOM": Full,
    "MISCONF": Full,  # it can't write its own disk, and takes nothing until it can
    "WRONGTYPE": Corrupt,  # somebody else's
    "ERR DB": Refused,  # no such database
    "ERR AUTH": Refused,  # it knows no passwords
    "ERR SELECT": Refused,  # a cluster has one database
}

Buffer = bytes | memoryview
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


@dataclass(frozen=True)
class Address:
    """A host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Wire:
    def __init__(self, address: Address, login: Login, tls: ssl.SSLContext | None) -> None:
        self.address, self._login, self._tls = address, login, tls
        self._socket: socket.socket | None = None
        self._inbox = bytearray(INBOX_BYTES)
        self._begin = self._end = 0  # of what is in the inbox
        self._awaited = 0  # replies
        self._is_ready = False  # connected, and logged in
        self.may_spin = False  # nobody else waits for the loop
        self.threads: ThreadPoolExecutor | None = None  # that copy large values, while others wait for the loop
        self._moved = 0  # bytes, either way
        self._flags: int = socket.MSG_DONTWAIT

    @property
    def is_clean(self) -> bool:
        """Nothing is half done, half said or half heard."""
        return self._is_ready and not self._awaited and self._begin == self._end

    @property
    def is_open(self) -> bool:
        """As far as is known here: a server that ended has said so, one that froze has not."""
        if self._socket is None or not self._is_ready:
            return False
        try:  # the plain socket's: what lies below TLS
            said = socket.socket.recv(self._socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BLOCKED:
            return True
        except OSError:
            return False
        return bool(said) and self._tls is not None  # without TLS there is nothing that it could say unasked

    async def open(self) -> None:
        self.close()
        try:
            self._socket = await self._connected()
            if self._tls is not None:
                await self._shake_hands(self._tls)
            else:
                self._socket.settimeout(None)  # its calls wait or don't as their flags say
        except OSError as error:
            self.close()
            raise Unreachable(f"{self.address}: {error}") from error
        said = self._login.commands()
        if said:
            await self.send([packed(command) for command in said], len(said))
            replies = [await self.reply() for _ in said]
            for reply in replies:
                if isinstance(reply, RemoteError):
                    raise reply
        self._is_ready = True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._begin = self._end = self._awaited = 0
        self._is_ready = False

    # --- commands and replies ------------------------------------------------------------------------------------

    async def send(self, pieces: Sequence[Buffer], commands: int = 1) -> None:
        """So many commands, all in all these bytes."""
        self._awaited += commands
        rest = [memoryview(piece) for piece in pieces]
        size = sum(piece.nbytes for piece in rest)
        waits = self.threads is not None and size >= THREAD_BYTES  # and may as well wait for the answer

        def attempt() -> None:
            assert self._socket is not None
            while rest:
                sent = (
                    self._socket.send(rest[0])
                    if self._tls
                    else self._socket.sendmsg(rest, [], self._flags & socket.MSG_DONTWAIT)
                )
                self._moved += sent
                drop(rest, sent)
            if waits and self._begin == self._end:
                self._hear()

        await self._done(attempt, self._loop.add_writer, size)

    async def reply(self) -> Reply:
        """An error is returned, for the replies after it belong to others."""
        reply = await self._any_reply(0)
        self._awaited -= 1
        return reply

    async def reply_into(self, header: memoryview, body: memoryview) -> bool:
        """A value of exactly their sizes; False: there is none. Raises what the server or its size say against it."""
        size = header.nbytes + body.nbytes
        if await self._value_into(b"$%d\r\n" % size, header, body):
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

    async def _value_into(self, line: bytes, header: memoryview, body: memoryview) -> bool:
        """False: the reply begins with another line; what came of it is in the inbox. The body is never received there:
        it begins in the caller's memory, on a page mostly, and the kernel copies it faster than to an odd address."""
        assert self._begin == self._end, "the replies before were heard"
        self._begin = self._end = 0
        inbox, most, rest = memoryview(self._inbox), len(line) + header.nbytes, body

        def attempt() -> None:
            nonlocal rest
            while self._end < most:
                self._end += self._received([inbox[self._end : most]])
                if not line.startswith(inbox[: min(self._end, len(line))]):
                    return
            while rest:
                count = self._received([rest, inbox[most : most + 2]])
                self._end = most + max(0, count - rest.nbytes)
                rest = rest[count:]

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
        if kind == b"*" and depth < 8 and (count := self._number(line)) <= 4 * INBOX_BYTES:
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
        if self._end == len(self._inbox):
            raise self._lost("this is no Redis")
        await self._done(self._hear, self._loop.add_reader)

    def _hear(self) -> None:
        self._end += self._received([memoryview(self._inbox)[self._end :]])

    def _received(self, targets: list[memoryview]) -> int:
        """Into the first, and then into the others."""
        assert self._socket is not None
        if self._tls is not None:
            count = self._socket.recv_into(targets[0])
        elif len(targets) > 1:
            count = self._socket.recvmsg_into(targets, 0, self._flags)[0]
        else:  # no more than there is: it may be all that comes
            count = self._socket.recv_into(targets[0], 0, self._flags & socket.MSG_DONTWAIT)
        if not count:
            raise ConnectionResetError("the server closed the connection")
        self._moved += count
        return count

    # --- the loop ------------------------------------------------------------------------------------------------

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def _done(self, attempt: Callable[[], None], ready: Callable[..., None], size: int = 0) -> None:
        """`attempt` does what can be done without waiting; again whenever the socket is `ready`, until it is done."""
        if self._socket is None:
            raise Unreachable(f"{self.address}: no connection")
        try:
            if self.threads is not None and size >= THREAD_BYTES:
                return await self._in_thread(self.threads, attempt)
            try:
                attempt()
            except BLOCKED:
                if not (self.may_spin and ready == self._loop.add_reader and self._spun(attempt)):
                    await self._when(ready, attempt)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise Refused(f"{self.address}: {error.verify_message}") from error
        except OSError as error:
            raise self._lost(str(error)) from error

    def _spun(self, attempt: Callable[[], None]) -> bool:
        """Sleeping takes longer than a server on this machine takes for an answer: until it is done, or nothing comes."""
        begun = now = time.monotonic()
        until, moved = begun + SPIN_S, self._moved
        while now < until:
            os.sched_yield()
            with contextlib.suppress(*BLOCKED):
                attempt()
                return True
            now = time.monotonic()
            if self._moved != moved:
                until, moved = min(now + SPIN_S, begun + SPIN_S_MAX), self._moved
        return False

    async def _in_thread(self, threads: ThreadPoolExecutor, attempt: Callable[[], None]) -> None:
        """Most of what a value costs is the kernel's copy: several at once on several cores."""
        assert self._socket is not None
        peer = self._socket

        def work() -> None:
            self._waiting(True)
            try:
                attempt()
            finally:
                self._waiting(False)

        working = threads.submit(work)
        try:
            await asyncio.wrap_future(working)
        finally:
            if not working.done() and not working.cancel():  # cancelled: then the thread ends at once, and touches no more
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
                wait([working])

    def _waiting(self, is_wanted: bool) -> None:
        """Whether a call of the kernel waits: then one moves all of it. TLS has no such flags."""
        self._flags = socket.MSG_WAITALL if is_wanted else socket.MSG_DONTWAIT
        if self._tls is not None and self._socket is not None:
            self._socket.settimeout(None if is_wanted else 0)

    async def _when(self, ready: Callable[..., None], attempt: Callable[[], None]) -> None:
        assert self._socket is not None
        loop, fd = self._loop, self._socket.fileno()
        done = loop.create_future()

        def again() -> None:
            if done.done():  # cancelled, and its memory is somebody else's
                return
            try:
                attempt()
                done.set_result(None)
            except BLOCKED:
                pass
            except OSError as error:
                done.set_exception(error)

        ready(fd, again)
        try:
            await done
        finally:
            if ready == loop.add_reader:
                loop.remove_reader(fd)
            else:
                loop.remove_writer(fd)

    def _lost(self, why: str) -> Unreachable:
        self.close()
        return Unreachable(f"{self.address}: {why}")

    # --- connecting ----------------------------------------------------------------------------------------------

    async def _connected(self) -> socket.socket:
        if self.address.path:
            return await self._connected_to(socket.AF_UNIX, self.address.path)
        found = await self._loop.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        errors: list[OSError] = []
        for family, _, _, _, where in found:
            try:
                peer = await self._connected_to(family, where)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return peer
            except OSError as error:
                errors.append(error)
        raise errors[0] if errors else OSError("no address")

    async def _connected_to(self, family: int, where: object) -> socket.socket:
        with contextlib.ExitStack() as undone:
            peer = undone.enter_context(socket.socket(family, socket.SOCK_STREAM))
            peer.setblocking(False)
            await self._loop.sock_connect(peer, where)  # type: ignore[arg-type]
            undone.pop_all()
        return peer

    async def _shake_hands(self, tls: ssl.SSLContext) -> None:
        assert self._socket is not None
        plain = self._socket
        wrapped = tls.wrap_socket(plain, server_hostname=self.address.host, do_handshake_on_connect=False)
        self._socket = wrapped

        await self._done(wrapped.do_handshake, self._loop.add_reader)


def drop(pieces: list[memoryview], sent: int) -> None:
    """The first `sent` bytes of them are gone."""
    while pieces and sent >= pieces[0].nbytes:
        sent -= pieces.pop(0).nbytes
    if pieces:
        pieces[0] = pieces[0][sent:]


def packed(words: Sequence[bytes], more: int | None = None) -> bytes:
    """A command. `more`: bytes of one more word, which is sent after it, with its end."""
    count = len(words) + (more is not None)
    head = b"*%d\r\n" % count + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
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
