"""A Wire: one connection, plain or with TLS, TCP or a unix socket, without a stream or a transport between.

Memory is filled and sent by the kernel itself, in one of three ways:

    on the loop     what would block is done by the loop's own callback, as soon as there is something
    in an exchange  a large value, plain: by a thread that knows no Python, so that nobody waits for anybody's GIL
    in a thread     a large value, with TLS

Whoever is cancelled may take it that no memory is touched any more: a callback looks first whether it is still wanted,
and a thread ends before the cancelled call does, for its socket was shut down.

A wire is one coroutine's at a time.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from kvtier.tiers.remote.base import Refused, Unreachable
from kvtier.tiers.remote.exchanges import PATIENCE_S, Buffer, Exchanges

LARGE_BYTES = 256 * 1024  # less isn't worth waking a thread for
BLOCKED = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
AT_ONCE = int(socket.MSG_DONTWAIT)  # as numbers: these are made for each call, and socket's own words take longer
LOOK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


@dataclass(frozen=True)
class Address:
    """A host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Wire:
    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, exchanges: Exchanges, threads: ThreadPoolExecutor
    ) -> None:
        """`threads` are for TLS."""
        self.address, self._tls = address, tls
        self._exchanges, self._threads = exchanges, threads
        self._socket: socket.socket | None = None

    @property
    def _is_alive(self) -> bool:
        """As far as is known here: a server that ended has said so, one that froze has not."""
        if self._socket is None:
            return False
        try:  # the plain socket's: what lies below TLS
            said = socket.socket.recv(self._socket, 1, LOOK)
        except BLOCKED:
            return True
        except OSError:
            return False
        return bool(said) and self._tls is not None  # without TLS there is nothing that it could say unasked

    async def _connect(self) -> None:
        """Unreachable, or Refused when its certificate is not to be trusted."""
        try:
            self._socket = await self._connected()
            if self._tls is not None:
                await self._shake_hands(self._tls)
            else:
                self._socket.settimeout(None)  # its calls wait or don't as their flags say
                limit = struct.pack("@ll", 0, int(PATIENCE_S * 1e6))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        except (OSError, ValueError, OverflowError) as error:  # the latter of a name or a port that can't be one
            self.close()
            raise Unreachable(f"{self.address}: {error}") from error

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- bytes ---------------------------------------------------------------------------------------------------

    def _sent(self, pieces: list[memoryview]) -> int:
        assert self._socket is not None
        if self._tls is not None:
            return self._socket.send(pieces[0])
        return self._socket.sendmsg(pieces, (), AT_ONCE)

    def _received(self, target: memoryview) -> int:
        assert self._socket is not None
        count = self._socket.recv_into(target) if self._tls is not None else self._socket.recv_into(target, 0, AT_ONCE)
        if not count:
            raise ConnectionResetError("the server closed the connection")
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
            if self._tls is not None and size >= LARGE_BYTES:
                return await self._in_thread(attempt)
            try:
                attempt()
            except BLOCKED:
                await self._when(ready, attempt)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise Refused(f"{self.address}: {error.verify_message}") from error
        except OSError as error:
            raise self._lost(str(error)) from error

    async def _in_thread(self, attempt: Callable[[], None]) -> None:
        """What TLS costs is its arithmetic: several at once on several cores."""
        assert self._socket is not None
        peer = self._socket

        def work() -> None:
            peer.settimeout(None)
            try:
                attempt()
            finally:
                peer.settimeout(0)

        working = self._threads.submit(work)
        try:
            await asyncio.wrap_future(working)
        finally:
            if not working.done() and not working.cancel():  # cancelled: then the thread ends at once, and touches no more
                with contextlib.suppress(OSError):  # what lies below TLS: an SSLSocket's own would first go on without it
                    socket.socket.shutdown(peer, socket.SHUT_RDWR)
                wait([working])

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

    async def _exchanged(self, message: Sequence[Buffer], answer: Sequence[memoryview], expected: bytes) -> int:
        """Bytes of the answer."""
        if self._socket is None:
            raise Unreachable(f"{self.address}: no connection")
        error, received = await self._exchanges.exchange(self._socket, message, answer, expected)
        if error:
            raise self._lost(os.strerror(error))
        return received

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
