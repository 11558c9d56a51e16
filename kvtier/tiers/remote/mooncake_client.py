"""The program that speaks to a Mooncake Store for kvtierd; mooncake.py starts it, and says why it is one.

    python -m kvtier.tiers.remote.mooncake_client SOCKET MEMORY BYTES

SOCKET and MEMORY are file descriptors. The first message on the socket says how to set up, which is done when the first
call comes: when that fails, [0, why] is said, and the program ends. Each message after it is one call, and gets
[number, answer] when it has ended:

    [number, "lengths", names]               the length of each, or a code
    [number, "get", [name], begin, size]     how long it is; what fits lies in the memory
    [number, "put", [name], begin, size]     0 or a code
    [number, "delete", names]                0 or a code for each

It ends when the socket does.
"""

import ctypes
import mmap
import os
import signal
import socket
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack

from kvtier.tiers.remote.mooncake import MISSING, THREADS, WRONG_SIZE

RPC_TIMEOUT_MS = 3000  # a call of a frozen master; 30 s if nothing is said
BYE_S = 1.2  # to take leave of the master


class Client:
    """The store, and what it is asked, a thread for each call: they block in C++, where nothing can end them."""

    def __init__(self, peer: socket.socket, memory: mmap.mmap, store: Any) -> None:
        self._peer, self._store = peer, store
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._bytes, self._is_set_up = len(memory), False
        self._threads, self._speaker = ThreadPoolExecutor(THREADS), ThreadPoolExecutor(1)

    def set_up(self, settings: Mapping[str, Any]) -> str:
        """What went wrong. Once is enough."""
        if self._is_set_up:
            return ""
        master = settings["master"]
        try:
            hostname = settings["hostname"] or address_towards(master)
        except OSError as error:
            return str(error)
        code = self._store.setup(hostname, "P2PHANDSHAKE", settings["segment"], 0, settings["protocol"],
                                 settings["devices"], master)  # fmt: skip
        code = code or self._store.register_buffer(self._address, self._bytes)
        self._is_set_up = code == 0
        return "" if self._is_set_up else f"its client found no way to the master ({code})"

    def take(self, number: int, verb: str, *call: Any) -> None:
        self._threads.submit(self._do, number, getattr(self, f"_{verb}"), *call)

    def _do(self, number: int, verb: Any, *call: Any) -> None:
        self.say(number, verb(*call))

    def say(self, number: int, answer: object) -> None:
        """One after the other, so that no two are mixed."""
        self._speaker.submit(self._peer.sendall, msgpack.packb([number, answer]))

    def _lengths(self, names: list[str], begin: int, size: int) -> list[int]:
        """Two questions: the second one's silence may be an error, and it logs a line for each that isn't there."""
        found: list[int] = self._store.batch_is_exist(names)
        there = [name for name, code in zip(names, found, strict=True) if code == 1]
        replicas = self._store.batch_get_replica_desc(there) if there else {}
        lengths = {name: self._length(name, replicas.get(name, [])) for name in there}
        return [lengths[name] if code == 1 else code or MISSING for name, code in zip(names, found, strict=True)]

    def _length(self, name: str, replicas: list[Any]) -> int:
        if replicas and replicas[0].is_memory_replica():
            return int(replicas[0].get_memory_descriptor().buffer_descriptor.size)
        return int(self._store.get_size(name))

    def _get(self, names: list[str], begin: int, size: int) -> int:
        code = int(self._store.get_into(names[0], self._address + begin, size))
        return int(self._store.get_size(names[0])) if code == WRONG_SIZE else code  # it is longer

    def _put(self, names: list[str], begin: int, size: int) -> int:
        """0 as well when it is there already: to write over it would make it unreadable for so long."""
        return int(self._store.put_from(names[0], self._address + begin, size))

    def _delete(self, names: list[str], begin: int, size: int) -> list[int]:
        """Those that have a lease, too: whoever asked for one a moment ago has."""
        found: list[int] = self._store.batch_remove(names, True)
        return found

    def close(self) -> None:
        """A segment of ours leaves the store."""
        self._speaker.shutdown()
        signal.setitimer(signal.ITIMER_REAL, BYE_S)  # which ends the process, whatever blocks
        self._store.close()


def address_towards(master: str) -> str:
    """Ours, as the master sees it. Nothing is sent."""
    host, _, port = master.rpartition(":")
    kind, protocol, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0][:5]
    with socket.socket(kind, protocol) as peer:
        peer.connect(where)
        return str(peer.getsockname()[0])


def main() -> None:
    peer = socket.socket(fileno=int(sys.argv[1]))
    memory = mmap.mmap(int(sys.argv[2]), int(sys.argv[3]))
    messages = msgpack.Unpacker(peer.makefile("rb", buffering=0))
    settings = next(messages)
    os.environ.setdefault("MC_RPC_TIMEOUT_MS", str(RPC_TIMEOUT_MS))
    os.environ.setdefault("MC_STORE_CLIENT_SETUP_RETRIES", "1")
    client, wrong = None, ""
    try:
        from mooncake.store import MooncakeDistributedStore

        client = Client(peer, memory, MooncakeDistributedStore())
    except ImportError as error:  # of a library of the system
        wrong = str(error)
    for message in messages:
        wrong = wrong or (client.set_up(settings) if client is not None else "")
        if wrong or client is None:
            peer.sendall(msgpack.packb([0, wrong]))
            os._exit(1)
        client.take(*message)
    if client is not None:
        client.close()
    os._exit(0)  # without those who still block


if __name__ == "__main__":
    main()
