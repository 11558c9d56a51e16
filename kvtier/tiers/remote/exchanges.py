"""Exchanges: what a loop's coroutines send and receive by _native.WireIo, without the GIL: a message, and its answer."""

import asyncio
import errno
import socket
from collections.abc import Sequence

from kvtier import _native

PATIENCE_S = 0.003  # each socket has it as its time limit
Buffer = bytes | memoryview


class Exchanges:
    """Of one loop. No thread and no descriptor before the first exchange.

    While one is alone on its way, the loop's own thread does it, if the kernel keeps it waiting for no more than PATIENCE_S
    at a time: to wake a thread and to be woken by it takes longer than most answers of a server nearby.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._io: _native.WireIo | None = None
        self._waiting: dict[int, asyncio.Future[tuple[int, int]]] = {}  # by ticket
        self._calls = 0

    async def exchange(
        self, peer: socket.socket, message: Sequence[Buffer], answer: Sequence[memoryview], expected: bytes
    ) -> tuple[int, int]:
        """An errno or 0, and how many bytes of the answer were received: fewer than all if it begins otherwise than
        `expected`. Whoever is cancelled finds the socket shut down, and the memory touched no more."""
        io = self._io or self._begun()
        self._calls += 1
        try:
            if self._calls == 1:
                await asyncio.sleep(0)  # who else wants to go now has begun
            if self._calls == 1:
                ticket, error, received = io.try_here(peer.fileno(), message, answer, expected)
                if not ticket:
                    return error, received
            else:
                ticket = io.submit(peer.fileno(), message, answer, expected)
            return await self._end_of(io, ticket)
        finally:
            self._calls -= 1

    async def _end_of(self, io: _native.WireIo, ticket: int) -> tuple[int, int]:
        done = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            return await done
        except asyncio.CancelledError:
            io.cancel(ticket)
            raise
        finally:
            self._waiting.pop(ticket, None)

    def _begun(self) -> _native.WireIo:
        io = self._io = _native.WireIo(self._at_once)
        asyncio.get_running_loop().add_reader(io.fileno(), self._hear, io)
        return io

    def _hear(self, io: _native.WireIo) -> None:
        for ticket, error, received in io.poll():
            done = self._waiting.pop(ticket)
            if not done.done():
                done.set_result((error, received))

    def close(self) -> None:
        """What is under way fails."""
        if self._io is None:
            return
        asyncio.get_running_loop().remove_reader(self._io.fileno())
        self._io.close()
        self._io = None
        for done in self._waiting.values():
            if not done.done():
                done.set_result((errno.ECONNABORTED, 0))
