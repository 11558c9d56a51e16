"""How a server ends, so that another can go on; and how it goes on with what was left to it.

    ends      nobody new is let in --> Drain to each worker --> most hang up --> those who have not are named
    goes on   who was named is a worker of an engine that is leaving, until its process is gone or connects anew

It knows the server's engines as the server does.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from kvtier import protocol
from kvtier.departing import started_at
from kvtier.handing_over import Worker
from kvtier.members import Client, Members
from kvtier.server import Server

LOOK_S = 0.02  # between looks whether somebody has hung up


async def drain_gpu(server: Server, within_s: float) -> bool:
    """Nobody new is let in, no more answers name places of the GPU tier, and workers that read there finish their
    copies. Whether nobody reads there any more: a worker has hung up, or its engine has no lease on a place. Those of
    an idle engine hear nothing before its next step, and nobody need wait for them."""
    server.refuse_all()
    mirror = server.store.mirror
    if mirror is None:
        return True
    mirror.end()
    mapping = [client for client in server.clients if client.mapped is not None and client.mapped.maps_gpu]
    _tell(server, mapping)

    def is_read() -> bool:
        return any(worker in server.clients and worker.engine in mirror.reading for worker in mapping)

    return await _until(lambda: not is_read(), within_s)


async def drain_workers(server: Server, within_s: float) -> bool:
    """Nobody new is let in, and workers finish their copies. Whether all have hung up; those of an idle engine hear
    nothing before its next step."""
    server.refuse_all()
    _tell(server, [client for client in server.clients if client.role == protocol.WORKER])
    return await _until(lambda: not any(client.role == protocol.WORKER for client in server.clients), within_s)


def lingering(server: Server) -> dict[str, list[Worker]]:
    """Of each engine that the store knows, the processes that may still copy."""
    return {
        name: [Worker(worker.pid, started_at(worker.pid), worker.uid) for worker in members.workers]
        for name, members in server._engines.items()
        if members.joined and members.workers
    }


def abandon(server: Server) -> None:
    """Its store was handed over: what ends now is no news to it."""
    server.refuse_all()
    for client in server.clients:
        server._loop.remove_reader(client.sock)
        server._loop.remove_writer(client.sock)
        client.sock.close()
    server.clients.clear()


def go_on(server: Server, leftovers: Mapping[str, Sequence[Worker]]) -> None:
    """With engines that the store has taken over, of which these workers may still copy. On the running loop."""
    now = time.monotonic()
    for name, workers in leftovers.items():
        server._last_generation += 1
        members = Members(server._last_generation, workers[0].uid, joined=True)
        server._engines[name] = members
        for worker in workers:
            with socket.socket() as nowhere:
                client = Client(nowhere, worker.pid, worker.uid, now, protocol.WORKER, name, ending=True)
            members.workers.add(client)
            server._departing.linger(client, worker.started)


def _tell(server: Server, workers: Sequence[Client]) -> None:
    for worker in workers:
        server._send(worker, protocol.encode(protocol.Drain()))


async def _until(is_so: Callable[[], bool], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while not is_so() and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
    return is_so()
