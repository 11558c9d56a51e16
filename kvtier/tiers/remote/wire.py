"""A Wire: one connection, plain or with TLS, TCP or a unix socket, without a stream or a transport between.

Memory is filled and sent by the kernel itself, in one of three ways:

    on the loop     what would block is done by the loop's own callback, as soon as there is something
    spinning        nobody else is on the way and the server is near: sleeping would take longer than its answer;
                    and what is sent there is sent by one call that may wait SPIN_S_MAX for room
    in a thread     others are on the way, and the value is large: the kernel copies several on several cores

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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from kvtier.tiers.remote.base import Refused, Unreachable

THREAD_BYTES = 256 * 1024  # less isn't worth waking a thread for
SPIN_S, SPIN_S_MAX = 0.0001, 0.003  # without a byte, and in all
BLOCKED = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Address:
    """A host and a port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Wire:
    def __init__(self, address: Address, tls: ssl.SSLContext | None) -> None:
        self.address, self._tls = address, tls
        self.may_spin = False  # nobody else waits for the loop
        self.threads: ThreadPoolExecutor | None = None  # that copy large values, while others wait for the loop
        self._socket: socket.socket | None = None
        self._moved = 0  # bytes, either way
        self._flags: int = socket.MSG_DONTWAIT
        self._sleeps = False  # in one call of the kernel

    @property
    def _is_alive(self) -> bool:
        """As far as is known here: a server that ended has said so, one that froze has not."""
        if self._socket is None:
            return False
        try:  # the plain socket's: what lies below TLS
            said = socket.socket.recv(self._socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
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
        except OSError as error:
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
            count = self._socket.send(pieces[0])
        else:
            count = self._socket.sendmsg(pieces, [], self._flags & socket.MSG_DONTWAIT)
        if self._sleeps:  # once: what is left now goes by the loop
            self._flags = socket.MSG_DONTWAIT
        self._moved += count
        return count

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
            is_write = ready == self._loop.add_writer
            try:
                self._slept(attempt) if self.may_spin and is_write and size >= THREAD_BYTES else attempt()
            except BLOCKED:
                if is_write or not self.may_spin or not self._spun(attempt):
                    await self._when(ready, attempt)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise Refused(f"{self.address}: {error.verify_message}") from error
        except OSError as error:
            raise self._lost(str(error)) from error

    def _slept(self, attempt: Callable[[], None]) -> None:
        """A call of the kernel sends all of it, if it need not wait for longer than SPIN_S_MAX at a time."""
        if self._tls is not None or self._socket is None:
            return attempt()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(SPIN_S_MAX * 1e6)))
        self._flags, self._sleeps = socket.MSG_WAITALL, True
        try:
            attempt()
        finally:
            self._sleeps = False
            self._flags = socket.MSG_DONTWAIT
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, 0))

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
