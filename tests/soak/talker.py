"""An engine for the soak: a process with the real clients, that holds conversations and looks at every byte it loads.

    python talker.py SOCKET NAME MODEL BLOCK_BYTES SEED

Each of its requests begins, asks, loads what is here and compares it, saves what isn't, and is over. Which conversation,
how long, and which requests are given up follows from the seed; keys and bytes follow from the conversation, so another
engine of the model shares them. It prints one JSON object a second: what it has counted. "wrong" is what must never be.
"""

import contextlib
import hashlib
import itertools
import json
import mmap
import os
import random
import sys
import time
from pathlib import Path

from kvtier import protocol
from kvtier.block import BELOW, KEY_BYTES, SLOT_UNIT, block_key, pack_keys, unpack_keys
from kvtier.client import SchedulerClient
from kvtier.worker_client import WorkerClient

SESSIONS, TURNS, BLOCKS_A_TURN = 24, 5, 3  # of a model: a small world that comes back again and again
LEND, ANSWER_S, STEP_S, TELL_S = 24, 0.5, 0.002, 1.0
TENANTS = (b"", b"t" * KEY_BYTES)


def names_of(session: int, turns: int) -> list[bytes]:
    """Its blocks, in prefix order. Conversations share their first two."""
    own = [b"session %d, block %d" % (session, i) for i in range(turns * BLOCKS_A_TURN)]
    return [b"system prompt %d" % i for i in range(2)] + own


def content_of(key: bytes, size: int) -> bytes:
    """Every part depends on the key; cheaper than a hash of all."""
    piece = hashlib.shake_128(key).digest(4096)
    return piece * (size // len(piece))


def outcome(prompt: int, loaded: int) -> dict[str, int]:
    """Of a request with so many tokens, as decision.OUTCOME names it."""
    times = {"ttft_us": 100_000, "wait_us": 100, "load_us": 1000, "prefill_us": 90_000}
    return {**times, "prompt_tokens": prompt, "loaded_tokens": loaded, "computed_tokens": prompt - loaded}


class Talker:
    def __init__(self, socket: Path, name: str, model: str, size: int, seed: int) -> None:
        hello = protocol.Hello(protocol.VERSION, protocol.SCHEDULER, name, model.encode().ljust(32, b"."), size, 16, LEND)
        self._scheduler = SchedulerClient(socket, hello, workers=1)
        self._worker = WorkerClient(socket, protocol.Hello(protocol.VERSION, protocol.WORKER, name, b"", 0, 0, 0))
        self._arena: mmap.mmap | None = None
        self._size, self._chance = size, random.Random(seed)
        self._requests = itertools.count()
        self._told = 0.0
        self.counts = dict.fromkeys(("requests", "loaded", "saved", "wrong", "unanswered", "without"), 0)

    def step(self) -> None:
        """As an engine does between two forward passes."""
        now = time.monotonic()
        self._scheduler.poll(now)
        self._worker.poll(now)
        if (given := self._worker.take_arena()) is not None:
            self._unmap()
            self._arena = mmap.mmap(given.fd, given.size)
            os.close(given.fd)
            self._worker.mapped(now)
        if self._worker.draining:
            self._unmap()
            self._worker.hang_up(now)
        if now - self._told > TELL_S:
            self._told = now
            print(json.dumps(self.counts), flush=True)

    def _unmap(self) -> None:
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def request(self) -> None:
        chance, client = self._chance, self._scheduler
        self.counts["requests"] += 1
        if not client.ready or self._arena is None:
            self.counts["without"] += 1
            return
        session, request = chance.randrange(SESSIONS), f"request {next(self._requests)}"
        keys = pack_keys(block_key(client.secret, name) for name in names_of(session, chance.randint(1, TURNS)))
        now = time.monotonic()
        client.begin(request, now, session=f"session {session}", tenant=TENANTS[session % 2])
        generation, prompt = client.generation, len(keys) // KEY_BYTES * 16
        lease = client.lookup(keys, 0, now, request=request, prompt_tokens=prompt)
        slots = self._answer(lease)
        if slots is None or chance.random() < 0.05:
            self.counts["unanswered"] += slots is None
            client.release(lease, 0, time.monotonic())
            return
        loaded = self._load(keys, slots)
        client.release(lease, loaded, time.monotonic())
        if chance.random() < 0.95:
            self._save(keys, slots, generation, request)
        client.outcome(request, outcome(prompt, loaded * 16), time.monotonic())
        client.touch(keys, time.monotonic(), request)

    def _answer(self, lease: int) -> list[int] | None:
        until = time.monotonic() + ANSWER_S
        while (answer := self._scheduler.answer(lease)) is None:
            self.step()
            if time.monotonic() > until or not self._scheduler.generation:
                return None
            time.sleep(STEP_S)
        return answer.tolist()

    def _load(self, keys: bytes, slots: list[int]) -> int:
        """Of what is here, every byte is looked at."""
        here = 0
        for key, slot in zip(unpack_keys(keys), slots, strict=True):
            if slot < BELOW and self._arena is not None:
                at = slot * SLOT_UNIT
                here += 1
                self.counts["wrong"] += self._arena[at : at + self._size] != content_of(key, self._size)
        self.counts["loaded"] += here
        return here

    def _save(self, keys: bytes, slots: list[int], generation: int, request: str) -> None:
        """What isn't here, as far as slots are lent."""
        names, filled, before, parents = [], [], bytes(KEY_BYTES), []
        for key, slot in zip(unpack_keys(keys), slots, strict=True):
            if slot > BELOW:
                if not (lent := self._scheduler.borrow(1)) or self._arena is None:
                    break
                at = lent[0] * SLOT_UNIT
                self._arena[at : at + self._size] = content_of(key, self._size)
                names.append(key)
                filled += lent
                parents.append(before)
            before = key
        if names:
            now = time.monotonic()
            self._scheduler.commit(pack_keys(names), filled, generation, now, parents=pack_keys(parents), request=request)
            self.counts["saved"] += len(names)

    def run(self) -> None:
        while True:
            self.step()
            self.request()
            for _ in range(self._chance.randint(1, 10)):
                self.step()
                time.sleep(STEP_S)


if __name__ == "__main__":
    socket, name, model, size, seed = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        Talker(Path(socket), name, model, int(size), int(seed)).run()
