"""Many nodes and one remote: what one computed another finds, and a remote that is too slow for all harms nobody."""

from dataclasses import replace

import numpy as np
import pytest

from kvtier.block import pack_keys
from kvtier.estimators import CALIBRATED_STEPS, Prefill
from kvtier.replay.clock import Clock
from kvtier.replay.cluster import Shape, replay
from kvtier.replay.fleet import FleetOutcome, replay_nodes
from kvtier.replay.node import Node, Tiers, keys_of
from kvtier.replay.remote import Door, RemoteSpeed, SharedRemote
from kvtier.replay.trace import Request, Trace

GB = 10**9
PREFILL = Prefill(0.0, 40e-6, 0.6e-9, 8192, CALIBRATED_STEPS)
KV_BYTES = 128 * 1024
BLOCK_BYTES = KV_BYTES * 512
SHAPE = Shape(1, PREFILL, KV_BYTES, 0, 55e9, 1e-4, Tiers(256 * BLOCK_BYTES))
SPEED = RemoteSpeed(20 * GB, 20 * GB, 0.002, 10 * GB, writes_per_node=5 * GB)


def asks(at: float, blocks: tuple[int, ...]) -> Request:
    return Request(at, len(blocks) * 512 + 8, 1, (*blocks, 10**9 + int(at * 1000)))


def traces_of(*requests: list[Request]) -> list[Trace]:
    return [Trace(f"node {i}", 512, tuple(of_one)) for i, of_one in enumerate(requests)]


def crowd(nodes: int, seconds: float = 40.0) -> list[Trace]:
    """Documents that somebody asks about on one node after the other, every second a request a node."""
    chance = np.random.default_rng(5)
    requests: list[list[Request]] = [[] for _ in range(nodes)]
    for n in range(int(nodes * seconds)):
        document = int(chance.integers(nodes * 8))
        blocks = tuple(document * 100 + i for i in range(30))
        requests[int(chance.integers(nodes))].append(asks(n / nodes, blocks))
    return traces_of(*requests)


def mean(outcome: FleetOutcome) -> float:
    return float(outcome.ttft_s.mean())


def test_what_one_node_computed_twice_another_finds():
    blocks = tuple(range(40))
    traces = traces_of([asks(0, blocks), asks(10, blocks)], [asks(40, blocks)])
    outcome = replay_nodes(traces, SHAPE, "always", SPEED)
    assert outcome.nodes[1].remote_tokens == outcome.nodes[1].away_tokens == 40 * 512
    assert (outcome.written_bytes, outcome.read_bytes) == (40 * BLOCK_BYTES, 40 * BLOCK_BYTES)
    (waited,) = outcome.nodes[1].ttft_s
    read_s, copied_s = 40 * BLOCK_BYTES / SPEED.node_bytes_per_s, 40 * BLOCK_BYTES / 55e9
    assert read_s + copied_s < waited < 0.5 * PREFILL.seconds(0, 40 * 512)


def test_what_was_used_once_is_not_written():
    blocks = tuple(range(40))
    outcome = replay_nodes(traces_of([asks(0, blocks)], [asks(40, blocks)]), SHAPE, "kvtier", SPEED)
    assert outcome.written_bytes == outcome.read_bytes == outcome.tokens("remote") == 0


def test_without_a_remote_nodes_know_nothing_of_each_other():
    traces = crowd(3, seconds=20)
    together = replay_nodes(traces, SHAPE, "kvtier", None)
    for trace, of_one in zip(traces, together.nodes):
        assert np.array_equal(of_one.ttft_s, replay(trace, SHAPE, "kvtier").ttft_s)
    assert together.tokens("remote") == together.tokens("away") == 0


def test_a_fast_remote_is_worth_something_to_all():
    traces = crowd(4)
    alone, shared = (replay_nodes(traces, SHAPE, "kvtier", speed) for speed in (None, SPEED))
    assert shared.tokens("remote") > 0.8 * shared.tokens("away") > 0
    assert mean(shared) < 0.9 * mean(alone)


def test_where_the_remote_is_too_slow_kvtier_computes_and_who_always_fetches_waits():
    traces, slow = crowd(4), replace(SPEED, read_bytes_per_s=0.5 * GB)
    alone, kvtier, always = (
        replay_nodes(traces, SHAPE, arm, speed) for arm, speed in (("kvtier", None), ("kvtier", slow), ("always", slow))
    )
    assert mean(always) > 2 * mean(alone)
    assert mean(kvtier) < 1.1 * mean(alone)
    assert kvtier.tokens("remote") < 0.5 * kvtier.tokens("away")


def test_the_same_question_has_the_same_answer():
    once, again = (replay_nodes(crowd(3, seconds=20), SHAPE, "kvtier", SPEED) for _ in range(2))
    assert np.array_equal(once.ttft_s, again.ttft_s) and once.read_bytes == again.read_bytes


def test_progress_hears_of_every_request():
    heard: list[int] = []
    replay_nodes(crowd(2, seconds=10), SHAPE, "none", None, heard.append)
    assert heard == list(range(1, 21))


def test_a_block_comes_when_both_the_remote_and_the_nodes_network_have_carried_it():
    clock = Clock()
    remote = SharedRemote(clock, RemoteSpeed(1000.0, 1000.0, 0.5, node_bytes_per_s=100.0))
    near, other = Door(clock, remote), Door(clock, remote)
    assert near.read(100) == pytest.approx(1.0)  # its own network: the remote had carried it after 0.1 s and 0.5 s
    assert other.read(100) == pytest.approx(1.0)  # networks go side by side
    assert [other.read(100) for _ in range(9)][-1] == pytest.approx(10.0)
    assert near.write(2000) == pytest.approx(20.0) and remote.written_bytes == 2000


def test_a_node_knows_what_lies_where():
    clock = Clock()
    remote = SharedRemote(clock, SPEED)
    node = Node(clock, Tiers(256 * BLOCK_BYTES), BLOCK_BYTES, 512, decides=False, remote=remote)
    node.join("engine")
    keys = keys_of(range(6))
    node.save("engine", keys_of(range(2)), "one")
    remote.blocks.update(keys[i * 16 : i * 16 + 16] for i in (2, 3, 5))
    assert node.match(keys, 0) == (2, 2, 4)
    assert pack_keys(sorted(remote.blocks)) == keys_of((2, 3, 5))
