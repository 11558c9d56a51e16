"""Frames to store calls, answers to frames. One event loop owns everything here and in the store; no thread, no lock.

Sockets are handled by hand, not by asyncio's streams: a Lookup is answered within the callback that read it, and the
arena's descriptor has to go out as ancillary data.

The daemon never closes a worker's socket first. A worker may be copying into the arena; it hangs up when its copies
are done (or the kernel does, when it dies: departing.py), and only then are the slots of its engine free:

    scheduler's socket ends --> Drain to each worker --> each hangs up --> store.leave
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kvtier import __version__, dispatch, protocol
from kvtier.access import Access, peer_of
from kvtier.block import namespace_secret, pack_slots, witness_secret
from kvtier.config import Config
from kvtier.departing import Departing
from kvtier.errors import CODES, OrderError, ProtocolError
from kvtier.lending import GUEST
from kvtier.members import Client, Members
from kvtier.store import BlockStore
from kvtier.users import Users, root_of

log = logging.getLogger("kvtierd")

ACCEPT_PAUSE_S = 0.5  # after the process ran out of descriptors
EXPLAINED_MAX = 256  # decisions in an answer
SHOWN_MAX = 256  # engines, and clients, in a snapshot: with the longest names they still fit a frame


class Server:
    def __init__(self, store: BlockStore, arena_fd: int, config: Config, root: bytes, generation: int) -> None:
        self.store = store
        self.clients: set[Client] = set()
        self._arena_fd = arena_fd
        self._root = root
        self._generation = self._last_generation = generation
        self._max_clients = config.count("server.max_clients")
        self._hello_timeout_s = config.number("server.hello_timeout_ms") / 1e3
        self._send_buffer = config.count("server.send_buffer")
        self._engines: dict[str, Members] = {}
        self._departing = Departing(self._part)
        self._listener: socket.socket | None = None
        self._started = time.monotonic()
        self.access = Access()  # who may connect
        self.users = Users()  # whose engines share blocks
        self.facts: dict[str, object] = {}  # what the daemon knows beside the store, or how to ask, for observers
        self.for_workers: dict[str, Any] = {}  # further fields of their Welcome: the GPU tier's memory
        self.tier_states: dict[str, Callable[[], Mapping[str, object]]] = {}  # and of the tiers beside it, by name
        self.on_join: Callable[[str, bytes], None] = lambda engine, namespace: None
        self.on_leave: Callable[[str], None] = lambda engine: None  # before the store knows
        self.after_event: Callable[[], None] = self.settle  # runs after whatever a client said
        self._flushes: dict[int, Client] = {}  # who asked for it
        self._last_flush = 0

    @property
    def last_generation(self) -> int:
        """That anybody had."""
        return self._last_generation

    # --- the listening socket --------------------------------------------------------------------------------

    def listen(self, listener: socket.socket) -> None:
        """Whoever connects waits."""
        self._listener = listener

    def serve(self) -> None:
        """Those who wait, and all who come, on the running loop; nobody once it is closed."""
        self._loop = asyncio.get_running_loop()
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._on_accept)

    def close(self) -> None:
        self.refuse_all()
        for client in list(self.clients):
            self._forget(client)

    def refuse_all(self) -> None:
        """Nobody new is let in."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _on_accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # out of descriptors: leave the others alone, try again soon
            log.warning("can't accept a connection: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_PAUSE_S, self.serve)
            return
        sock.setblocking(False)
        pid, uid, _ = peer_of(sock)
        client = Client(sock, pid, uid, time.monotonic())
        self.clients.add(client)
        self._loop.add_reader(sock, self._on_readable, client)
        if not self.access.allows(sock):
            self._refuse(client, ProtocolError("not_allowed", f"user {client.uid} may not use this kvtierd"))
        elif len(self.clients) > self._max_clients:
            self._refuse(client, ProtocolError("too_many", f"server.max_clients = {self._max_clients} is reached"))
        else:
            self._loop.call_later(self._hello_timeout_s, self._expect_hello, client)

    def _expect_hello(self, client: Client) -> None:
        if client in self.clients and not client.role:
            self._refuse(client, OrderError("no Hello in time"))

    # --- one client ------------------------------------------------------------------------------------------

    def _on_readable(self, client: Client) -> None:
        try:
            data = client.sock.recv(protocol.RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.keep_last(data)
        if not data:
            self._forget(client)
        elif not client.ending:
            try:
                for message in client.reader.feed(data):
                    self._handle(client, message)
                    if client.ending:
                        break
            except ProtocolError as error:
                self._refuse(client, error)
        self.after_event()

    def _handle(self, client: Client, message: protocol.Message) -> None:
        if isinstance(message, dispatch.FROM_SCHEDULERS):
            if client.role != protocol.SCHEDULER:
                raise OrderError(f"{type(message).__name__} is for an engine's scheduler that has said Hello")
            namespace = self._engines[client.engine].namespace
            answer = dispatch.carry_out(self.store, client.engine, namespace, message, time.monotonic())
            if answer:
                self._send(client, answer)
        elif isinstance(message, protocol.Hello):
            self._on_hello(client, message)
        elif isinstance(message, protocol.Mapped) and client.role == protocol.WORKER:
            client.mapped = message
            self._departing.arrive(client)
            self._note_readers(client.engine)
            self._send_workers(self._engines[client.engine])
        elif isinstance(message, protocol.Ask) and client.role:
            self._send(client, protocol.encode(protocol.Snapshot(self.snapshot())))
        elif isinstance(message, protocol.Flush) and client.role == protocol.OBSERVER:
            self._on_flush(client)
        elif isinstance(message, protocol.Explain) and client.role == protocol.OBSERVER:
            user = None if self.users.see_all(client.uid) else self.users.name(client.uid)
            records = self.store.decisions.explain(message.request, min(message.last, EXPLAINED_MAX), user)
            self._send(client, protocol.encode(protocol.Explained({"decisions": records[-EXPLAINED_MAX:]})))
        else:
            raise OrderError(f"{type(message).__name__} is not allowed now")

    def _on_hello(self, client: Client, hello: protocol.Hello) -> None:
        if client.role:
            raise OrderError("a second Hello")
        if hello.engine.startswith(GUEST) or not hello.engine.isprintable():
            raise ProtocolError("bad_frame", f"an engine's name is printable and does not begin with {GUEST}")
        if hello.role == protocol.OBSERVER:
            client.role = hello.role
            self._welcome(client, self._generation, b"", 0)
        elif hello.role == protocol.WORKER:
            self._join_worker(client, hello)
        elif hello.role == protocol.SCHEDULER:
            self._join_scheduler(client, hello)
        else:
            raise ProtocolError("bad_order", f"no role {hello.role!r}")
        self.store.stats.add("clients_joined")

    def _join_worker(self, client: Client, hello: protocol.Hello) -> None:
        members = self._members(client, hello.engine)
        if members is not None and self._departing.comes_anew(client.pid, members.workers):
            members = self._members(client, hello.engine)
        if members is not None and members.joined and members.scheduler is None:
            raise ProtocolError("engine_leaving", CODES["engine_leaving"])
        members = members or self._new_members(client, hello.engine)
        client.role, client.engine = hello.role, hello.engine
        members.workers.add(client)
        self._note_readers(client.engine)
        self._welcome(client, members.generation, b"", 0)

    def _join_scheduler(self, client: Client, hello: protocol.Hello) -> None:
        members = self._members(client, hello.engine)
        if members is not None and members.joined:
            raise ProtocolError("engine_leaving", CODES["engine_leaving"])
        user = self.users.name(client.uid)
        namespace, epoch, lend = dispatch.join(self.store, hello, user, time.monotonic())
        members = members or self._new_members(client, hello.engine)
        client.role, client.engine = hello.role, hello.engine
        members.scheduler, members.joined, members.namespace = client, True, namespace
        secret, witness = namespace_secret(self._root, namespace, epoch), witness_secret(root_of(user, self._root))
        self._welcome(client, members.generation, secret, lend, witness)
        self.on_join(hello.engine, namespace)
        self._send_workers(members)

    def _members(self, client: Client, engine: str) -> Members | None:
        """The engine's processes that are here. ProtocolError: they are of another user than this client."""
        members = self._engines.get(engine)
        if members is not None and members.uid != client.uid:
            raise ProtocolError("not_allowed", f"an engine of another user is named {engine}")
        return members

    def _new_members(self, client: Client, engine: str) -> Members:
        self._last_generation += 1
        members = self._engines[engine] = Members(self._last_generation, client.uid)
        return members

    def _welcome(self, client: Client, generation: int, secret: bytes, lend: int, witness_secret: bytes = b"") -> None:
        capacity = self.store.ram.slots.capacity
        welcome = protocol.Welcome(protocol.VERSION, generation, capacity, secret, lend, witness_secret)
        if client.role != protocol.WORKER:
            self._send(client, protocol.encode(welcome))
            return
        frame = protocol.encode(replace(welcome, **self.for_workers))
        try:  # the first bytes on a fresh socket: its buffer takes them whole
            sent = socket.send_fds(client.sock, [frame], [self._arena_fd])
            assert sent == len(frame)
        except OSError:
            self._forget(client)

    def _note_readers(self, engine: str) -> None:
        """Whether places of the GPU tier may stand in answers to it: each of its workers reads all of a block."""
        if self.store.mirror is not None:
            readers = self.store.mirror.readers
            (readers.add if self._engines[engine].maps_gpu else readers.discard)(engine)

    # --- what an observer says -------------------------------------------------------------------------------

    def _on_flush(self, client: Client) -> None:
        if self.store.lower is None:
            self._send(client, protocol.encode(protocol.Flushed(0)))
            return
        self._last_flush += 1
        self._flushes[self._last_flush] = client
        self.store.flush(self._last_flush)

    # --- sending ---------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Send what the last event brought about."""
        for engine, lease, slots in self.store.leases.answers():
            self._send_to(engine, dispatch.found(self.store, engine, lease, slots))
        self._send_lends()

    def flushed(self, flush: int, is_durable: bool) -> None:
        """To be told of each flush that is over."""
        client = self._flushes.pop(flush, None)
        if client is not None and client in self.clients:
            self._send(client, protocol.encode(protocol.Flushed(int(is_durable))))

    def beat(self) -> None:
        """To be called a few times a second: whoever waits for blocks hears that the daemon is alive."""
        for engine, lease in self.store.leases.waiting():
            self._send_to(engine, protocol.encode(protocol.Staging(lease)))

    def _send_to(self, engine: str, frame: bytes) -> None:
        scheduler = self._engines[engine].scheduler
        assert scheduler is not None, "an engine that is leaving is told nothing"
        self._send(scheduler, frame)

    def _send_lends(self) -> None:
        for engine, slots in self.store.lends():
            self._send_to(engine, protocol.encode(protocol.Lend(pack_slots(slots))))

    def _send_workers(self, members: Members) -> None:
        if members.scheduler is not None:
            self._send(members.scheduler, protocol.encode(protocol.Workers(len(members.mapped()))))

    def _send(self, client: Client, frame: bytes) -> None:
        if client.ending:  # an Error is the last that it hears
            return
        if not client.unsent:
            try:
                sent = client.sock.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # its end shows up as a readable socket
            if sent == len(frame):
                return
            frame = frame[sent:]
            self._loop.add_writer(client.sock, self._on_writable, client)
        client.unsent += frame
        if len(client.unsent) > self._send_buffer:
            log.warning("client of process %(process)d doesn't read; it is disconnected", {"process": client.pid})
            client.unsent.clear()
            self._hang_up(client)

    def _on_writable(self, client: Client) -> None:
        try:
            del client.unsent[: client.sock.send(client.unsent)]
        except BlockingIOError:
            return
        except OSError:
            client.unsent.clear()
        if not client.unsent:
            self._loop.remove_writer(client.sock)
            if client.ending:
                self._shut(client)

    # --- ends ------------------------------------------------------------------------------------------------

    def _refuse(self, client: Client, error: ProtocolError) -> None:
        """Tell it why, then hang up. What others have stays untouched."""
        who = {"process": client.pid, "role": client.role or "no Hello", "error": error}
        log.info("process %(process)d (%(role)s) is hung up on: %(error)s", who)
        refused = not client.role and error.code not in ("bad_frame", "bad_order")
        self.store.stats.add("clients_refused" if refused else "protocol_errors")
        self._send(client, protocol.encode(protocol.Error(error.code, str(error))))
        self._hang_up(client)

    def _hang_up(self, client: Client) -> None:
        client.ending = True
        if not client.unsent:
            self._shut(client)

    def _shut(self, client: Client) -> None:
        """Say that no more comes. A worker ends the connection itself when its copies are done; others lose it now."""
        if client.role == protocol.WORKER:
            try:
                client.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._forget(client)
        else:
            self._loop.call_soon(self._forget, client)

    def _forget(self, client: Client) -> None:
        if client not in self.clients:
            return
        self.clients.discard(client)
        client.ending = True
        self._loop.remove_reader(client.sock)
        self._loop.remove_writer(client.sock)
        client.sock.close()
        members = self._engines.get(client.engine)
        if members is None:
            return
        self._note_readers(client.engine)
        if client is members.scheduler:
            members.scheduler = None
            self.store.leaving(client.engine, time.monotonic())
            for worker in members.workers:
                self._send(worker, protocol.encode(protocol.Drain()))
        elif client.mapped:
            self._send_workers(members)
        self._departing.leave(client)

    def _part(self, client: Client) -> None:
        """It is gone, and none of its copies runs."""
        members = self._engines[client.engine]
        members.workers.discard(client)
        self._note_readers(client.engine)
        if members.scheduler is None and not members.workers:
            del self._engines[client.engine]
            if members.joined:
                self.on_leave(client.engine)
                self.store.leave(client.engine, time.monotonic())
                log.info("engine %(engine)s is gone; its slots and leases are free", {"engine": client.engine})

    # --- what there is ---------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        now = time.monotonic()
        clients = [client.row(now) for client in sorted(self.clients, key=lambda c: c.since) if client.role]
        held = self.store.snapshot(now)
        for name, state in self.tier_states.items():
            held["tiers"][name] |= state()
        engines = [row | self._engines[row["engine"]].copying(self.store.ram.slots.capacity) for row in held["engines"]]
        return {
            "version": __version__,
            "generation": self._generation,
            "uptime_s": round(now - self._started, 3),
            **{name: fact() if callable(fact) else fact for name, fact in self.facts.items()},
            **held,
            "engines": engines[:SHOWN_MAX],
            "clients": clients[:SHOWN_MAX],
        }
