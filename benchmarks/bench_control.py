"""What does asking kvtierd cost an engine: one lookup, and everything that kvtier adds to a scheduling step?

    python benchmarks/bench_control.py            a table
    python benchmarks/bench_control.py --json     one JSON object: lookup_256_p50_us, lookup_256_p99_us,
                                                  lookup_2048_p50_us, step_overhead_p99_us, ping_p50_us,
                                                  dict_256_p50_us, ..., spreads, machine

A second process serves an index of 200,000 blocks. This one is the engine. In each round, interleaved:

    ping       a lookup of no keys: the smallest question and answer that the protocol has
    dict       the same 256 random keys in a dict of this process: no daemon at all
    lookup     SchedulerClient.lookup of a random window of the blocks, all hits, until the answer is here; then the
               lease is released, and an untimed ping waits until the daemon has done so
    steps      KVTierManager driven as vLLM's OffloadingConnectorScheduler drives it: 24 running requests that get a
               token a step, a new prompt of 1,000-8,000 tokens in 128-token blocks when one has ended, half of them
               the next turn of a conversation that was saved before. A step's overhead is the sum of all calls into
               the manager, waiting for the daemon included; step_computed is what of it this thread computed,
               which a busy machine disturbs less. A pause follows each step, as a forward pass would

Without vLLM there are no steps, and step_overhead is null.

Confessions. Written by the authors of kvtier. The server and the store are kvtierd's own but the arena behind them is
not there, because no byte of a block is asked for: 200,000 blocks would need 12 GiB. vLLM itself doesn't run: what its
OffloadingConnector costs is not shown, nor what the two processes take from each other's caches beside a busy engine.
The pause is 1 ms, a forward pass is longer and leaves colder caches. One engine asks; how several share one daemon is
not shown. On two shared noisy cores p99 shows the neighbours as much as kvtier: hence the ping in the same run.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from spreads import print_spreads

from kvtier import _native, protocol
from kvtier.block import ABSENT, KEY_BYTES, SLOT_UNIT, pack_keys, unpack_keys
from kvtier.client import SchedulerClient
from kvtier.config import CONNECTOR, DAEMON, GIB, Config
from kvtier.listener import bind
from kvtier.server import Server
from kvtier.store import BlockStore
from kvtier.worker_client import WorkerClient

BLOCKS = 200_000
CAPACITY = 16 * GIB
ROUNDS = 10
SAMPLES = {"ping": 200, "dict_256": 100, "lookup_256": 250, "lookup_2048": 50}  # a round
STEPS = 250  # a round
PAUSE_S = 0.001
RUNNING = 24
ANSWER_TOKENS = (64, 384)
PROMPT_TOKENS = (1_000, 8_000)
TURN_TOKENS = (100, 1_000)  # what a user adds to a conversation
BLOCK_TOKENS = 128
LEND = 256  # slots: four steps of 8,192 tokens
SEED = 20240917


def all_keys() -> bytes:
    """Packed; the same in both processes."""
    return np.random.default_rng(SEED).bytes(KEY_BYTES * BLOCKS)


# --- the daemon's side -------------------------------------------------------------------------------------------


def filled_store() -> BlockStore:
    settings = Config(DAEMON, {})
    store = BlockStore(
        CAPACITY,
        lend_share=settings.number("lend.max_share"),
        lease_share=settings.number("lease.max_share"),
        table=_native.KeyTable(expected=BLOCKS),
    )
    store.join("filler", b"f" * 32, SLOT_UNIT, BLOCK_TOKENS, 4096, now=0.0)
    keys = unpack_keys(all_keys())
    while keys:
        for _, slots in store.lends():
            taken = slots[: len(keys)]
            store.commit("filler", pack_keys(keys[: len(taken)]), np.array(taken, np.uint32))
            del keys[: len(taken)]
    store.leave("filler", 0.0)
    assert len(store.ram.index) == BLOCKS
    return store


async def serve(path: Path) -> None:
    """kvtierd's server on a filled store; ends when stdin does."""
    server = Server(filled_store(), os.memfd_create("no-arena"), Config(DAEMON, {}), os.urandom(32), 1)
    server.listen(bind(path))
    server.serve()
    print("serves", flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    await over.wait()
    server.close()


@contextlib.contextmanager
def daemon() -> Iterator[Path]:
    """Its socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kvtierd.sock"
        command = [sys.executable, __file__, "--serve", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"serves\n"
            yield path
            process.stdin.close()


# --- lookups -----------------------------------------------------------------------------------------------------


class Lookups:
    def __init__(self, path: Path, rng: random.Random) -> None:
        self.client = connected(path, "asks", b"f" * 32)
        self.packed = all_keys()
        self.known = {key: slot for slot, key in enumerate(unpack_keys(self.packed))}
        self.rng = rng

    def window(self, n: int) -> bytes:
        """The packed keys of n blocks that follow each other, as a conversation's do."""
        start = self.rng.randrange(BLOCKS - n) * KEY_BYTES
        return self.packed[start : start + n * KEY_BYTES]

    def ask(self, keys: bytes) -> tuple[int, np.ndarray]:
        client = self.client
        lease = client.lookup(keys, 0, time.monotonic())
        while (answer := client.answer(lease)) is None:
            client.wait(time.monotonic() + 1)
            client.poll(time.monotonic())
        return lease, answer

    def lookup(self, n: int) -> float:
        """Microseconds from the question to its answer."""
        keys = self.window(n)
        start = time.perf_counter()
        lease, answer = self.ask(keys)
        elapsed = time.perf_counter() - start
        assert len(answer) == n and (answer != ABSENT).all()
        self.client.release(lease, n, time.monotonic())
        self.client.release(self.ask(b"")[0], 0, time.monotonic())
        return elapsed * 1e6

    def dict_256(self) -> float:
        keys = self.window(256)
        start = time.perf_counter()
        get = self.known.get
        _ = [get(key, ABSENT) for key in unpack_keys(keys)]
        return (time.perf_counter() - start) * 1e6

    def round(self) -> dict[str, list[float]]:
        """All kinds of samples, shuffled, so that a bad moment hits all of them."""
        measures: dict[str, Callable[[], float]] = {
            "ping": lambda: self.lookup(0),
            "dict_256": self.dict_256,
            "lookup_256": lambda: self.lookup(256),
            "lookup_2048": lambda: self.lookup(2048),
        }
        order = [name for name, n in SAMPLES.items() for _ in range(n)]
        self.rng.shuffle(order)
        samples: dict[str, list[float]] = {name: [] for name in SAMPLES}
        for name in order:
            samples[name].append(measures[name]())
        return samples


def connected(path: Path, engine: str, namespace: bytes) -> SchedulerClient:
    """The client of an engine whose one worker has mapped the arena, or says so: nothing is copied here."""
    hello = protocol.Hello(protocol.VERSION, protocol.SCHEDULER, engine, namespace, SLOT_UNIT, BLOCK_TOKENS, LEND)
    client = SchedulerClient(path, hello, workers=1)
    worker = WorkerClient(path, protocol.Hello(protocol.VERSION, protocol.WORKER, engine, b"", 0, 0, 0))
    while not client.ready:
        now = time.monotonic()
        client.poll(now)
        worker.poll(now)
        if (arena := worker.take_arena()) is not None:
            os.close(arena.fd)
            worker.mapped(now)
    _WORKERS.append(worker)
    return client


_WORKERS: list[WorkerClient] = []  # their open sockets keep the engines going


# --- scheduling steps --------------------------------------------------------------------------------------------


class Request:
    """A turn of a conversation on its way through the scheduler."""

    def __init__(self, number: int, tokens: int, hashes: list[bytes], answer: int) -> None:
        self.request_id = f"request {number}"
        self.block_hashes = hashes  # of whole blocks; grows
        self.tokens = self.num_tokens = self.num_prompt_tokens = tokens
        self.num_computed_tokens = 0
        self.skip_reading_prefix_cache = False
        self.ends_at = tokens + answer
        self.stored = 0  # whole blocks that were offered to the manager

    def is_finished(self) -> bool:
        return False

    def grow(self) -> None:
        while len(self.block_hashes) < self.tokens // BLOCK_TOKENS:
            self.block_hashes.append(os.urandom(32))


class Steps:
    def __init__(self, path: Path, rng: random.Random) -> None:
        from kvtier.connectors.vllm.manager import KVTierManager
        from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext, make_offload_key

        self.rng = rng
        self.HIT, self.RETRY = LookupResult.HIT, LookupResult.RETRY
        self.context, self.key, self.step_end = ReqContext, make_offload_key, ScheduleEndContext([], [])
        # What KVTierManager reads of vLLM's configuration.
        groups = [SimpleNamespace(group_id=0, tokens_per_block=BLOCK_TOKENS)]
        config = SimpleNamespace(groups=groups, parallel=SimpleNamespace(world_size=1))
        spec = SimpleNamespace(config=config, blocks_per_chunk=1, tokens_per_hash=BLOCK_TOKENS)
        self.manager = KVTierManager(spec)
        self.manager.open(connected(path, "steps", b"s" * 32), Config(CONNECTOR, {}), PROMPT_TOKENS[1])
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.idle: list[Request] = []  # conversations between two turns
        self.jobs: list[int] = []  # tokens of what the workers copy
        self.made = 0
        self.spent = self.computed = 0.0  # in this step: by the clock, and on the processor
        self.hits = self.retries = 0

    def call(self, hook: Callable[..., Any], *arguments: object) -> Any:
        start, computed = time.perf_counter(), time.thread_time()
        result = hook(*arguments)
        self.computed += time.thread_time() - computed
        self.spent += time.perf_counter() - start
        return result

    def step(self) -> tuple[float, float]:
        """Microseconds that the manager took of this step: by the clock, and on the processor."""
        self.spent = self.computed = 0.0
        done, self.jobs = self.jobs, []
        if done:
            self.call(self.manager.settle, dict.fromkeys(done, (1, 0)))
        while len(self.running) + len(self.waiting) < RUNNING:
            self.arrive()
        for request in list(self.waiting):
            self.admit(request)
        for request in self.running:
            self.store(request)
        self.call(self.manager.on_schedule_end, self.step_end)
        self.call(self.manager.step_begins, self.scheduled())
        self.call(self.manager.step_ends)
        for request in list(self.running):
            request.num_computed_tokens = request.tokens
            request.tokens += 1
            request.grow()
            if request.tokens >= request.ends_at:
                self.end(request)
        return self.spent * 1e6, self.computed * 1e6

    def scheduled(self) -> SimpleNamespace:
        """What the manager reads of vLLM's SchedulerOutput: a prompt is computed whole in its first step."""
        tokens = {}
        for request in self.running:
            tokens[request.request_id] = request.tokens - request.num_computed_tokens
        total = sum(tokens.values())
        return SimpleNamespace(
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=total,
            scheduled_spec_decode_tokens={},
            has_sync_kv_loads=False,
        )

    def arrive(self) -> None:
        self.made += 1
        answer = self.rng.randint(*ANSWER_TOKENS)
        if self.idle and self.rng.random() < 0.5:
            before = self.idle.pop(self.rng.randrange(len(self.idle)))
            tokens, hashes = before.tokens + self.rng.randint(*TURN_TOKENS), before.block_hashes
        else:
            tokens, hashes = self.rng.randint(*PROMPT_TOKENS), []
        request = Request(self.made, tokens, hashes, answer)
        request.grow()
        self.waiting.append(request)
        self.call(self.manager.on_new_request, self.context(request.request_id))
        self.call(self.manager.attend, request, b"")

    def admit(self, request: Request) -> None:
        """Asks key by key until a miss, as vLLM does; goes on past a RETRY and then leaves the request for later."""
        context = self.context(request.request_id)
        keys = [self.key(block_hash, 0) for block_hash in request.block_hashes]
        results = self.call(self.look_up, keys, context)
        if self.RETRY in results:
            self.retries += 1
            return
        self.waiting.remove(request)
        self.running.append(request)
        hits = keys[: results.count(self.HIT)]
        self.hits += bool(hits)
        if hits:
            self.jobs.append(self.call(self.manager.prepare_load, hits, context).token)
            request.stored = len(hits)
        request.num_computed_tokens = len(hits) * BLOCK_TOKENS
        self.call(self.manager.admitted, request.request_id, len(hits) * BLOCK_TOKENS)

    def look_up(self, keys: list[bytes], context: object) -> list[object]:
        results = []
        for key in keys:
            result = self.manager.lookup(key, context)
            if result not in (self.HIT, self.RETRY):
                break
            results.append(result)
        return results

    def store(self, request: Request) -> None:
        """Whole blocks that this step computes are to be saved."""
        whole = request.tokens // BLOCK_TOKENS
        if whole <= request.stored:
            return
        keys = [self.key(block_hash, 0) for block_hash in request.block_hashes[request.stored : whole]]
        output = self.call(self.manager.prepare_store, keys, self.context(request.request_id))
        if output is None:  # slots are short: again in the next step
            return
        request.stored = whole
        if output.keys_to_store:
            self.jobs.append(output.store_spec.token)

    def end(self, request: Request) -> None:
        self.running.remove(request)
        self.call(self.manager.on_request_finished, self.context(request.request_id))
        if request.tokens < PROMPT_TOKENS[1]:
            self.idle.append(request)

    def run(self, steps: int) -> dict[str, list[float]]:
        samples: dict[str, list[float]] = {"step_overhead": [], "step_computed": []}
        for _ in range(steps):
            for name, taken in zip(samples, self.step()):
                samples[name].append(taken)
            time.sleep(PAUSE_S)
        return samples


# --- the report --------------------------------------------------------------------------------------------------


def spread(rounds: list[list[float]], percent: float) -> dict[str, float]:
    """Of one percentile, over the rounds."""
    values = [float(np.percentile(samples, percent)) for samples in rounds]
    return {name: round(of(values), 1) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def measure() -> dict[str, Any]:
    rng = random.Random(SEED)
    rounds: dict[str, list[list[float]]] = {}
    facts: dict[str, Any] = {"vllm": importlib.util.find_spec("vllm") is not None}
    with daemon() as path:
        lookups = Lookups(path, rng)
        steps = Steps(path, rng) if facts["vllm"] else None
        lookups.round()
        if steps is not None:
            steps.run(STEPS)
        for _ in range(ROUNDS):
            measured = lookups.round() | (steps.run(STEPS) if steps is not None else {})
            for name, samples in measured.items():
                rounds.setdefault(name, []).append(samples)
        if steps is not None:
            facts |= {"steps": ROUNDS * STEPS, "requests": steps.made, "loads": steps.hits, "retries": steps.retries}
    return {"facts": facts, "rounds": rounds}


def report() -> dict[str, Any]:
    result = measure()
    outcome, spreads = dict.fromkeys(("step_overhead_p50_us", "step_overhead_p99_us")), {}
    for name, rounds in result["rounds"].items():
        every = np.concatenate(rounds)
        for percent in (50, 99):
            outcome[f"{name}_p{percent}_us"] = round(float(np.percentile(every, percent)), 1)
            spreads[f"{name}_p{percent}_us"] = spread(rounds, percent)
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    return {**outcome, "blocks": BLOCKS, "rounds": ROUNDS, **result["facts"], "spreads": spreads, "machine": machine}


BARS = {"lookup_256_p50_us": 60, "lookup_2048_p50_us": 300, "step_overhead_p99_us": 200}


def print_table(outcome: dict[str, Any]) -> None:
    print_spreads(outcome, f"{outcome['blocks']:,} blocks", BARS)
    if outcome["vllm"]:
        print(
            f"{outcome['steps']:,} steps, {outcome['requests']} requests, {outcome['loads']} of them with a load, "
            f"{outcome['retries']} times answered later than the step"
        )
    else:
        print("no vLLM here: no steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--serve", type=Path, metavar="SOCKET", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        asyncio.run(serve(given.serve))
        return
    outcome = report()
    print(json.dumps(outcome)) if given.json else print_table(outcome)


if __name__ == "__main__":
    main()
