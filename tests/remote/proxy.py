"""A TCP proxy that does to a connection what networks do. Its loop has a thread of its own; switches are method calls.

    with FaultProxy("127.0.0.1", 6379) as proxy:
        connect to ("127.0.0.1", proxy.port)
        proxy.latency(0.2)      each piece, each way, comes so much later
        proxy.blackhole()       nothing comes any more, either way; new connections are accepted and hear nothing
        proxy.reset()           what is open is reset, and what comes too
        proxy.refuse()          nobody listens any more; what is open is reset
        proxy.throttle(1e6)     so many bytes a second, each way, all connections together
        proxy.flip(0.01)        of the pieces from the server of at least FLIP_MIN bytes, such a share has one bit flipped
        proxy.errors(0.05)      such a share of pieces from the client ends in a reset of its connection instead
        proxy.flap(1.0)         so many times a second: half the time as reset(), half the time well
        proxy.heal()            all is well again; connections that are in a blackhole hear what they missed

A server on a unix socket is named by its path alone; the proxy's own path is `proxy.path` then.

Switches add up; each takes effect on open connections at once, and returns when it has. Randomness is seeded.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

PIECE_BYTES = 64 * 1024
FLIP_MIN = 1024  # smaller pieces are protocol, not values
AT_ONCE_S = 0.02  # of its rate, that a throttle lets pass in one go


class FaultProxy:
    def __init__(self, host: str, port: int = 0, seed: int = 0) -> None:
        self._host, self._server_port = host, port
        self.path = "" if port else f"{host}.proxy"
        self.port = 0
        self._random = random.Random(seed)
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flapping: asyncio.Task[None] | None = None
        self._well()
        self.connections = self.flipped = self.failed = 0  # since the start
        self._listener = self._bound()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._acceptor: asyncio.Server | None = None
        self._do(self._listen())

    # --- switches --------------------------------------------------------------------------------------------------

    def latency(self, seconds: float) -> None:
        self._set(lambda: setattr(self, "_latency_s", seconds))

    def throttle(self, bytes_per_s: float) -> None:
        self._set(lambda: setattr(self, "_bytes_per_s", bytes_per_s))

    def flip(self, share: float) -> None:
        self._set(lambda: setattr(self, "_flips", share))

    def errors(self, share: float) -> None:
        self._set(lambda: setattr(self, "_errors", share))

    def blackhole(self) -> None:
        self._set(self._passes.clear)

    def reset(self) -> None:
        self._set(self._begin_reset)

    def refuse(self) -> None:
        self._do(self._refuse())

    def flap(self, times_a_second: float) -> None:
        self._do(self._begin_flapping(times_a_second))

    def heal(self) -> None:
        self._do(self._heal())

    def close(self) -> None:
        if self._thread.is_alive():
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set(self, change: Callable[[], object]) -> None:
        async def on_loop() -> None:
            change()

        self._do(on_loop())

    def _do(self, work: Any) -> None:
        done: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        done.result(10)

    # --- the loop --------------------------------------------------------------------------------------------------

    def _well(self) -> None:
        self._latency_s, self._bytes_per_s = 0.0, float("inf")
        self._flips = self._errors = 0.0
        self._resets = False
        self._passes = asyncio.Event()
        self._passes.set()
        self._free_at = 0.0  # when the throttled line is free

    def _bound(self) -> socket.socket:
        if self.path:
            Path(self.path).unlink(missing_ok=True)
            return socket.create_server(self.path, family=socket.AF_UNIX)
        bound = socket.create_server(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        return bound

    async def _to_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.path:
            return await asyncio.open_unix_connection(self._host)
        return await asyncio.open_connection(self._host, self._server_port)

    async def _listen(self) -> None:
        self._acceptor = await asyncio.start_server(self._accept, sock=self._listener)

    async def _heal(self) -> None:
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        passes = self._passes
        self._well()
        passes.set()  # for those who wait
        if self._acceptor is None:
            self._listener = self._bound()
            await self._listen()

    async def _refuse(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        self._reset_all()

    async def _end(self) -> None:
        await self._heal()
        await self._refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin_flapping(self, times_a_second: float) -> None:
        async def flap() -> None:
            while True:
                self._begin_reset()
                await asyncio.sleep(0.5 / times_a_second)
                self._resets = False
                await asyncio.sleep(0.5 / times_a_second)

        self._flapping = asyncio.create_task(flap())

    def _begin_reset(self) -> None:
        self._resets = True
        self._reset_all()

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(writer)
        self._links.add(link)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._resets:
                return link.reset()
            await self._passes.wait()
            far_reader, far_writer = await self._to_server()
            link.far = far_writer
            there = asyncio.create_task(self._pipe(link, reader, far_writer, from_client=True))
            back = asyncio.create_task(self._pipe(link, far_reader, writer, from_client=False))
            self._tasks |= {there, back}
            await asyncio.gather(there, back, return_exceptions=True)
            self._tasks -= {there, back}
        except OSError:
            link.reset()  # the server is away
        finally:
            self._tasks.discard(task)
            self._links.discard(link)
            link.close()

    async def _pipe(
        self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool
    ) -> None:
        loop, due = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](maxsize=16)
        delivering = asyncio.create_task(self._deliver(due, writer))
        try:
            while piece := await reader.read(PIECE_BYTES):
                if from_client and self._random.random() < self._errors:
                    self.failed += 1
                    link.reset()
                    break
                if not from_client and len(piece) >= FLIP_MIN and self._random.random() < self._flips:
                    piece = self._flipped(piece)
                await due.put((loop.time() + self._latency_s, piece))
            await due.put((loop.time() + self._latency_s, b""))
            await delivering
        except OSError:
            link.reset()
        finally:
            delivering.cancel()

    async def _deliver(self, due: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        """In order, each at its time: latency costs time and no bandwidth."""
        loop = asyncio.get_running_loop()
        while True:
            at, piece = await due.get()
            await asyncio.sleep(at - loop.time())
            await self._passes.wait()
            if not piece:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            await self._send(piece, writer)

    async def _send(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        step = len(piece) if self._bytes_per_s == float("inf") else max(1, int(self._bytes_per_s * AT_ONCE_S))
        for begin in range(0, len(piece), step):
            part = piece[begin : begin + step]
            self._free_at = max(self._free_at, loop.time()) + len(part) / self._bytes_per_s
            if self._bytes_per_s != float("inf"):
                await asyncio.sleep(self._free_at - loop.time())
            await self._passes.wait()
            writer.write(part)
            await writer.drain()

    def _flipped(self, piece: bytes) -> bytes:
        self.flipped += 1
        changed = bytearray(piece)
        changed[self._random.randrange(FLIP_MIN // 2, len(piece))] ^= 1 << self._random.randrange(8)
        return bytes(changed)


class _Link:
    """One connection: the client's end, and the server's when there is one."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.near = near
        self.far: asyncio.StreamWriter | None = None

    def reset(self) -> None:
        for writer in filter(None, (self.near, self.far)):
            end = writer.get_extra_info("socket")
            if end is not None and not writer.transport.is_closing():
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    def close(self) -> None:
        for writer in filter(None, (self.near, self.far)):
            writer.close()
