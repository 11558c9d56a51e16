"""What a kvtierd of millions of blocks is asked: lookups by one engine or by many, and work of all kinds beside pings.

Each engine is a process. Blocks lie below RAM; `cost.mode = shadow` makes kvtierd look all up, decide, and offer nothing,
so that a lookup alone is measured and nothing is read; the load under which pauses are sought reads and writes.
"""

import contextlib
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kvtierd import Engine
from scale_store import MODEL, SESSION_BLOCKS, keys_of, session_name

from kvtier import protocol
from kvtier.admin import default_admin_socket
from kvtier.admin.caller import AdminCaller
from kvtier.block import ABSENT, KEY_BYTES, NO_KEY
from kvtier.errors import DaemonError

BLOCK_TOKENS = 16
PING_EVERY_S = 0.001
ECHO_BYTES = 64
FORK = multiprocessing.get_context("fork")


class Asker(Engine):
    """An engine that asks for what there is, request by request."""

    def __init__(self, path: Path, name: str, blocks: int, block_bytes: int, seed: int, lend: int = 8) -> None:
        super().__init__(path, name, model=MODEL, block_bytes=block_bytes, lend=lend)
        self._blocks, self._rng, self._requests, self._name = blocks, random.Random(seed), 0, name

    def window(self, n: int) -> bytes:
        """Of a random conversation: n blocks in their order."""
        last = (self._blocks - n) // SESSION_BLOCKS
        return keys_of(self._rng.randint(0, max(0, last)) * SESSION_BLOCKS, n)

    def lookup_s(self, n: int) -> float:
        """Seconds from a request's question to its answer, all of n blocks found. Then the request is over."""
        keys = self.window(n)
        self._requests += 1
        self._last_lease += 1
        request = f"{self._name} {self._requests}"
        frame = protocol.encode(
            protocol.Lookup(self._last_lease, keys, request=request, prompt_tokens=n * BLOCK_TOKENS + 1)
        )
        begun = time.perf_counter()
        self.sock.sendall(frame)
        answer = self.hear(protocol.Found)
        taken = time.perf_counter() - begun
        found = np.frombuffer(answer.slots, "<u4")
        assert len(found) == n and (found != ABSENT).all(), f"{(found == ABSENT).sum()} of {n} blocks are gone"
        self.say(protocol.Release(self._last_lease, 0), protocol.Touch(keys, request))
        return taken

    def ping_s(self) -> float:
        """Seconds of the smallest question and answer; all that was said before it is done."""
        self._last_lease += 1
        frame = protocol.encode(protocol.Lookup(self._last_lease, b""))
        begun = time.perf_counter()
        self.sock.sendall(frame)
        self.hear(protocol.Found)
        return time.perf_counter() - begun


def rounds_of_lookups(asker: Asker, sizes: list[int], rounds: int, of_a_size: int) -> dict[int, list[list[float]]]:
    """By number of keys, 0 is a ping: seconds of each, a list a round; in each round all of them in random order."""
    found: dict[int, list[list[float]]] = {n: [] for n in [0, *sizes]}
    for number in range(rounds + 1):
        order = [n for n in found for _ in range(of_a_size)]
        random.Random(number).shuffle(order)
        taken: dict[int, list[float]] = {n: [] for n in found}
        for n in order:
            taken[n].append(asker.lookup_s(n) if n else asker.ping_s())
            asker.ping_s()  # what the request left to do is done
        for n in found if number else ():  # the first warms up
            found[n].append(taken[n])
    return found


# --- processes beside each other ---------------------------------------------------------------------------------


class Worker:
    """`work(stop)` in a process of its own, until `stop()` says so; `result` is what it returned."""

    def __init__(self, work: Callable[[Callable[[], bool]], Any]) -> None:
        self._stop = FORK.Event()
        self._ours, theirs = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=self._run, args=(work, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def _run(self, work: Callable[[Callable[[], bool]], Any], out: Any) -> None:
        out.send(work(self._stop.is_set))

    def stop(self) -> None:
        self._stop.set()

    def result(self) -> Any:
        """Of one that was told to stop."""
        found = self._ours.recv()
        self._process.join()
        return found


def many(path: Path, clients: int, keys: int, seconds: float, blocks: int, block_bytes: int) -> list[list[float]]:
    """Seconds of each lookup that each of so many engines made, one after the other, for so long."""
    gate = FORK.Barrier(clients)

    def work(number: int, stop: Callable[[], bool]) -> list[float]:
        with Asker(path, f"of {clients}, number {number} at {time.monotonic_ns()}", blocks, block_bytes, number) as asker:
            gate.wait()
            taken = []
            while not stop():
                taken.append(asker.lookup_s(keys))
            return taken

    workers = [Worker(lambda stop, n=number: work(n, stop)) for number in range(clients)]
    time.sleep(seconds + 0.05 * clients)
    for worker in workers:
        worker.stop()
    return [worker.result() for worker in workers]


# --- pauses ------------------------------------------------------------------------------------------------------


def ping(path: Path, block_bytes: int, stop: Callable[[], bool]) -> dict[str, list[float]]:
    """Each ms, in turn: seconds that kvtierd's loop took to answer, and those that a bare echo took."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    echo = os.fork()
    if not echo:
        ours.close()
        while data := theirs.recv(ECHO_BYTES):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    found: dict[str, list[float]] = {"kvtierd": [], "echo": []}
    with Asker(path, f"pings at {time.monotonic_ns()}", 1, block_bytes, 0) as asker:
        while not stop():
            found["kvtierd"].append(asker.ping_s())
            begun = time.perf_counter()
            ours.sendall(bytes(ECHO_BYTES))
            ours.recv(ECHO_BYTES)
            found["echo"].append(time.perf_counter() - begun)
            time.sleep(PING_EVERY_S)
    ours.close()
    os.waitpid(echo, 0)
    return found


def churn(path: Path, blocks: int, block_bytes: int, seed: int, stop: Callable[[], bool]) -> dict[str, int]:
    """Conversations: one in two is new, the others come back from the drives. All are saved, and so others leave RAM and,
    when an extent is full, the drives."""
    rng, turns, new = random.Random(seed), 0, 0
    with Asker(path, f"churns {seed} at {time.monotonic_ns()}", blocks, block_bytes, seed, lend=256) as engine:
        mine = blocks * (2 + seed)  # its new keys begin here
        while not stop():
            turns += 1
            request = f"churn {seed} {turns}"
            old = engine.window(SESSION_BLOCKS) if rng.random() < 0.5 else b""
            first = keys_of(mine + new, 64)
            new += 64
            engine.say(protocol.Begin(request, session=f"{seed}.{turns}"))
            engine._last_lease += 1
            lease = engine._last_lease
            keys = old + first
            ask = protocol.Lookup(lease, keys, request=request, prompt_tokens=len(keys) // KEY_BYTES * BLOCK_TOKENS + 1)
            engine.say(ask)
            engine.say(protocol.Due(lease))
            engine.hear(protocol.Found)
            before = (old[-KEY_BYTES:] or NO_KEY) + first[:-KEY_BYTES]
            n = min(64, len(engine.lent))
            slots = np.array([engine.lent.pop(0) for _ in range(n)], "<u4").tobytes()
            engine.say(protocol.Commit(first[: n * KEY_BYTES], slots, before[: n * KEY_BYTES], request))
            engine.say(protocol.Release(lease, 0), protocol.Touch(old + first[: n * KEY_BYTES], request))
            time.sleep(0.1)
    return {"turns": turns, "saved": new}


def forget(path: Path, sessions: int, stop: Callable[[], bool]) -> dict[str, Any]:
    """Sessions of a former life, by name, one after the other."""
    rng, taken, gone = random.Random(1), [], 0
    with AdminCaller(default_admin_socket(path), 60.0) as admin:
        while not stop():
            begun = time.perf_counter()
            with contextlib.suppress(DaemonError):  # a session that the drives have lost
                gone += admin.forget(session_name(rng.randrange(sessions)))["blocks"]["nvme"]
            taken.append(time.perf_counter() - begun)
            time.sleep(1.0)
    return {"forgotten_blocks": gone, "forget_s": taken}
