"""1 to 1,000 nodes that share one remote: what it brings, where it is the bottleneck, and what kvtier does then.

    python benchmarks/bench_nodes.py [--json] [--quick]        some 3 minutes; --quick 30 s, at most 100 nodes

A simulation (kvtier/replay/fleet.py), not machines: each node has the BlockStore and the decisions of kvtierd itself, and
its own seeded agents, whose requests it computes one after the other. Each other turn of an agent, by chance, goes to
another node, for the router knows nothing of caches. All nodes read and write one remote, which carries one block after
the other at 50 GB/s each way (four servers at 100 Gb/s), as each node's own network does at 12.5 GB/s.

    nothing   only the engines' own caches: everything else is computed
    alone     kvtier with RAM, and no remote
    kvtier    kvtier with RAM and the remote. It begins with what it would remember of a remote that nobody else uses
    always    the same, and all that is found is fetched, however long it takes
    ideal     the remote takes no time, nor does the way to it

Keys: `nodes` {n: {arm: figures}}; of n nodes several runs with other seeds (`runs`), each figure their median, least and
most. `ttft_mean_s`, `ttft_p50_s`, `ttft_p99_s` of all requests of a run; `own_hits`, `ram_hits`, `remote_hits`, shares of
all prompt tokens; `fetched_share`, of the tokens that only the remote had when they were asked for, those that were taken
from there; `read_gb_s`, `written_gb_s` of the remote, all nodes together; `read_busy`, `write_busy`, how much of its time
it had to do (above 1: what was asked for in this time takes longer); `engines_busy`. `requests` of all runs of n nodes.
`goals`: kvtier's mean over that of `nothing`, the worst n, at most 1.
`rig`: what was simulated; `arms`: the lines above.

Confessions. Written by the authors of kvtier, who also chose the agents, the hardware and the speeds; nothing here was
measured on a network. What a simulation doesn't show: packets, contention within a server, slow or dead nodes, calls that
fail and the breaker, the processor time of kvtierd, decodes that are slowed by loads, and batches of prompts. The remote
has room for everything and loses nothing; to ask it takes a round trip and none of its throughput; it serves nodes in
the order in which they ask. All nodes begin empty, so the first turns find less than later ones would. Where kvtier
loses: where the remote has much to spare, to whoever fetches blindly, since kvtier has to be convinced first; and against
`alone`, where a remote that is far too slow was tried, again and again, to learn that it still is.
"""

import argparse
import gc
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import command, machine, versions
from spreads import spread

from kvtier.replay.cluster import Shape
from kvtier.replay.fleet import FleetOutcome, replay_nodes
from kvtier.replay.node import Tiers
from kvtier.replay.presets import GPUS, MODELS, speed_of
from kvtier.replay.remote import RemoteSpeed
from kvtier.replay.trace import BLOCK_TOKENS, Request, Trace

GB, GIB = 10**9, 1024**3
MODEL, GPU = "llama-3-70b", "h100"
OWN_CACHE_BYTES, RAM_BYTES, HOST_LATENCY_S = 16 * GIB, 64 * GIB, 0.0001  # the first: what decodes leave of the GPUs
REMOTE = RemoteSpeed(50 * GB, 50 * GB, 0.002, 12.5 * GB, writes_per_node=1 * GIB)
IDEAL = RemoteSpeed(1e18, 1e18, 0.0, 1e18, writes_per_node=1 * GIB)

ARMS: dict[str, tuple[str, RemoteSpeed | None]] = {
    "nothing": ("none", None),
    "alone": ("kvtier", None),
    "kvtier": ("kvtier", REMOTE),
    "always": ("always", REMOTE),
    "ideal": ("kvtier", IDEAL),
}
RUNS = {1: 20, 10: 8, 100: 1, 1000: 1}  # seeds, by nodes: of few nodes there are few requests
QUICK_RUNS = {1: 10, 10: 3, 100: 1}
FIGURES = ("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "own_hits", "ram_hits", "remote_hits", "fetched_share", "read_gb_s",
           "written_gb_s", "read_busy", "write_busy", "engines_busy")  # fmt: skip


@dataclass(frozen=True)
class Agents:
    """Whose prompts these are. Tokens and seconds; medians are of log-normal distributions."""

    seconds: float = 45.0
    requests_per_node_s: float = 0.4
    turns: float = 8.0  # on the mean
    first_tokens: float = 12_000.0  # median of the first prompt, behind the system's
    more_tokens: float = 900.0  # median of what a turn adds
    most_tokens: int = 98_304
    gap_s: float = 6.0  # median, from one turn to the next
    spread: float = 0.6  # sigma of all these
    moves: float = 0.5  # share of the turns that go to any node
    systems: int = 16  # prompts that agents begin with
    system_blocks: int = 4


def traces_of(nodes: int, agents: Agents, seed: int) -> list[Trace]:
    """What each node is asked. Agents that began before are in the midst of it, and nobody knows what they said."""
    chance = random.Random(seed)
    before_s = 1.5 * agents.turns * agents.gap_s
    requests: list[list[Request]] = [[] for _ in range(nodes)]
    numbers = iter(range(agents.systems * agents.system_blocks, sys.maxsize))
    for _ in range(round(nodes * agents.requests_per_node_s * (agents.seconds + before_s) / agents.turns)):
        for at, request in _turns(agents, chance, chance.uniform(-before_s, agents.seconds), numbers, nodes):
            requests[at].append(request)
    named = (sorted(of_one, key=lambda request: request.at) for of_one in requests)
    return [Trace(f"node {i}", BLOCK_TOKENS, tuple(of_one)) for i, of_one in enumerate(named)]


def _turns(
    agents: Agents, chance: random.Random, at: float, numbers: Iterator[int], nodes: int
) -> Iterator[tuple[int, Request]]:
    """Of one agent: where each goes."""

    def about(median: float) -> float:
        return chance.lognormvariate(math.log(median), agents.spread)

    node, system = chance.randrange(nodes), chance.randrange(agents.systems)
    blocks = [system * agents.system_blocks + i for i in range(agents.system_blocks)]
    tokens = len(blocks) * BLOCK_TOKENS + round(about(agents.first_tokens))
    while at < agents.seconds:
        tokens = min(tokens, agents.most_tokens)
        while len(blocks) < tokens // BLOCK_TOKENS:
            blocks.append(next(numbers))
        if at >= 0:
            tail = (next(numbers),) if tokens % BLOCK_TOKENS else ()
            yield node, Request(at, tokens, 100, (*blocks, *tail))
        if chance.random() < 1 / agents.turns:
            return
        at += about(agents.gap_s)
        tokens += 1 + round(about(agents.more_tokens))
        node = chance.randrange(nodes) if chance.random() < agents.moves else node


def shape() -> Shape:
    model = MODELS[MODEL]
    speed = speed_of(model, GPUS[GPU])
    tiers = Tiers(RAM_BYTES)
    return Shape(1, speed.prefill, model.kv_bytes("auto"), OWN_CACHE_BYTES, speed.host_bytes_per_s, HOST_LATENCY_S, tiers)


# --- measuring ---------------------------------------------------------------------------------------------------

Job = tuple[int, str, int]  # nodes, arm, seed


def run(job: Job) -> tuple[Job, int, dict[str, float]]:
    """The requests, and the figures."""
    nodes, arm, seed = job
    gc.collect()  # what the run before left
    gc.disable()  # nothing is garbage before the end, and there are millions of objects
    traces = [trace for trace in traces_of(nodes, Agents(), seed) if trace.requests]
    outcome = replay_nodes(traces, shape(), *ARMS[arm])
    return job, len(outcome.ttft_s), figures(outcome)


def figures(outcome: FleetOutcome) -> dict[str, float]:
    waits, prompts = outcome.ttft_s, outcome.tokens("prompt")
    away, seconds = outcome.tokens("away"), outcome.seconds
    found = {
        "ttft_mean_s": waits.mean(),
        "ttft_p50_s": np.quantile(waits, 0.5),
        "ttft_p99_s": np.quantile(waits, 0.99),
        "own_hits": outcome.tokens("resident") / prompts,
        "ram_hits": outcome.tokens("cpu") / prompts,
        "remote_hits": outcome.tokens("remote") / prompts,
        "fetched_share": outcome.tokens("remote") / away if away else 0.0,
        "read_gb_s": outcome.read_bytes / seconds / GB,
        "written_gb_s": outcome.written_bytes / seconds / GB,
        "read_busy": outcome.read_busy_s / seconds,
        "write_busy": outcome.write_busy_s / seconds,
        "engines_busy": sum(node.prefill_s for node in outcome.nodes) / seconds / len(outcome.nodes),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def measure(runs: dict[int, int]) -> dict[str, Any]:
    """The longest first, so that the last to end is a short one. The arms of one seed have the same requests."""
    jobs = [(n, arm, seed) for n in sorted(runs, reverse=True) for arm in reversed(ARMS) for seed in range(1, runs[n] + 1)]
    found: dict[int, dict[str, list[dict[str, float]]]] = {n: {arm: [] for arm in ARMS} for n in runs}
    requests = dict.fromkeys(runs, 0)
    with ProcessPoolExecutor() as pool:
        for done, ((n, arm, _), count, values) in enumerate(pool.map(run, jobs), 1):
            found[n][arm].append(values)
            requests[n] += count if arm == "nothing" else 0
            print(f"\r... {done} of {len(jobs)}: {n} nodes, {arm}".ljust(64), end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        str(n): {
            **{arm: {name: spread(v[name] for v in values) for name in FIGURES} for arm, values in found[n].items()},
            "requests": requests[n],
            "runs": runs[n],
        }
        for n in sorted(runs)
    }


def goals(nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """As the other benchmarks have them."""
    over = {n: of["kvtier"]["ttft_mean_s"]["median"] / of["nothing"]["ttft_mean_s"]["median"] for n, of in nodes.items()}
    worst = max(over, key=over.__getitem__)
    return [
        {
            "goal": f"TTFT mean with a remote for up to {int(max(nodes, key=int)):,} nodes, over computing; the worst",
            "bar": "at most 1 x",
            "measured": f"{over[worst]:.2f} x ({int(worst):,} nodes)",
            "best_peer": "",
            "holds": over[worst] <= 1,
        }
    ]


def rig() -> dict[str, Any]:
    of = shape()
    return {
        "model": MODEL,
        "engine": f"{speed_of(MODELS[MODEL], GPUS[GPU]).gpus} x {GPU}",
        "kv_bytes_per_token": of.kv_bytes,
        "own_cache_gib": OWN_CACHE_BYTES / GIB,
        "ram_gib": RAM_BYTES / GIB,
        "remote": dict(vars(REMOTE)),
        "agents": vars(Agents()),
    }


def print_table(outcome: dict[str, Any]) -> None:
    columns = ("mean s", "p99 s", "own hits", "RAM hits", "remote hits", "fetched", "read GB/s", "busy", "written GB/s")
    names = ("ttft_mean_s", "ttft_p99_s", "own_hits", "ram_hits", "remote_hits", "fetched_share", "read_gb_s", "read_busy",
             "written_gb_s")  # fmt: skip
    print(f"{'nodes arm':14}" + "".join(f"{column:>14}" for column in columns))
    for n, of in outcome["nodes"].items():
        for arm in ARMS:
            print(f"{n + ' ' + arm:14}" + "".join(f"{of[arm][name]['median']:14.3f}" for name in names))
    for goal in outcome["goals"]:
        print(f"{goal['goal']}: {goal['measured']} {goal['bar']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="at most 100 nodes, and fewer seeds")
    given = parser.parse_args()
    begun, now = time.monotonic(), machine()
    nodes = measure(QUICK_RUNS if given.quick else RUNS)
    outcome = {
        "nodes": nodes,
        "goals": goals(nodes),
        "arms": list(ARMS),
        "rig": rig(),
        "quick": given.quick,
        "seconds": round(time.monotonic() - begun, 1),
        "machine": now,
        "versions": versions("numpy"),
        "command": command(),
    }
    if given.json:
        print(json.dumps(outcome))
    else:
        print_table(outcome)


if __name__ == "__main__":
    main()
