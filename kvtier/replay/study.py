"""A question to a trace, and what was found: each policy at each capacity, each arm on the node. Arms run beside each
other, a process each; none knows of another."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kvtier.replay.caches import POLICIES
from kvtier.replay.cluster import Outcome, Shape, replay
from kvtier.replay.codecs import BreakEven, CodecSpeed, Way, block_tokens_of, break_even
from kvtier.replay.hits import STORE_POLICIES, hits_of_store
from kvtier.replay.trace import Trace

POLL_S = 0.2
WHAT_IF_ARM = "kvtier"  # more RAM and other codecs are asked of what kvtierd would do
CURVE_SHARES = tuple(float(share) for share in np.geomspace(0.005, 1.0, 16))  # of the unique blocks, for a picture


@dataclass(frozen=True)
class Question:
    trace: Trace  # as it was published
    policies: Sequence[str]
    capacities: Sequence[int]  # blocks
    shape: Shape | None = None  # None: hit rates only
    arms: Sequence[str] = ()
    more_cpu_bytes: int = 0  # what if there were so much more RAM
    other_codecs: Sequence[CodecSpeed] = ()  # and what if the drives had these
    remote: Way | None = None  # of a remote, for the break-even alone
    evened: Sequence[CodecSpeed] = ()  # whose break-evens are asked for
    draws: bool = False  # hit rates for a whole curve
    seed: int = 1


@dataclass
class Findings:
    question: Question
    hits: dict[tuple[str, int], float] = field(default_factory=dict)  # policy, capacity -> share of the prompt tokens
    arms: dict[str, Outcome] = field(default_factory=dict)
    with_more: Outcome | None = None
    with_codecs: dict[str, Outcome] = field(default_factory=dict)
    break_evens: list[BreakEven] = field(default_factory=list)
    took_s: float = 0.0

    def curve(self, policy: str) -> list[tuple[int, float]]:
        return sorted((capacity, rate) for (name, capacity), rate in self.hits.items() if name == policy)


# Of a worker process: what all its tasks have in common.
_traces: list[Trace] = []
_done: MutableSequence[int] = []


def answer(question: Question, progress: Callable[[float], None], processes: int = 0) -> Findings:
    """`progress` hears the share of the work that is done, a few times a second."""
    begun = time.monotonic()
    arms = _arms(question)
    done = multiprocessing.Array("q", max(1, len(arms)), lock=False)
    traces = [question.trace, question.trace.smeared(question.seed)]
    workers = processes or os.cpu_count() or 1
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(traces, done))
    try:
        outcomes = [pool.submit(_replay, number, shape, arm) for number, (arm, shape) in enumerate(arms)]
        hits = {one: pool.submit(_hits, *one) for one in _cells(question)}
        _watch([*outcomes, *hits.values()], done, len(arms) * len(question.trace.requests), progress)
        found = Findings(question, {one: future.result() for one, future in hits.items()})
        results = [future.result() for future in outcomes]
    finally:
        pool.shutdown(cancel_futures=True)
    results, others = results[: len(question.arms)], results[len(question.arms) :]
    found.arms = {outcome.arm: outcome for outcome in results}
    found.with_codecs = {codec.name: outcome for codec, outcome in zip(question.other_codecs, others)}
    if question.more_cpu_bytes:
        found.with_more = others[-1]
    found.break_evens = list(_break_evens(question))
    found.took_s = time.monotonic() - begun
    return found


def _arms(question: Question) -> list[tuple[str, Shape]]:
    """What is replayed: the arms, the node with other codecs, and last the one with more RAM."""
    if question.shape is None or not question.arms:
        return []
    tiers = question.shape.tiers
    arms = [(arm, question.shape) for arm in question.arms]
    for codec in question.other_codecs:
        arms.append((WHAT_IF_ARM, replace(question.shape, tiers=replace(tiers, codec=codec))))
    if question.more_cpu_bytes:
        more = replace(tiers, cpu_bytes=tiers.cpu_bytes + question.more_cpu_bytes)
        arms.append((WHAT_IF_ARM, replace(question.shape, tiers=more)))
    return arms


def _break_evens(question: Question) -> Iterator[BreakEven]:
    """Of the drives and the remote, each with each codec."""
    shape = question.shape
    if shape is None or question.remote is None:
        return
    tiers, block_bytes = shape.tiers, shape.kv_bytes * block_tokens_of(shape.kv_bytes)
    drives = Way(tiers.nvme_read_bytes_per_s, tiers.nvme_write_bytes_per_s, tiers.nvme_latency_s)
    for codec in question.evened:
        in_places = codec.in_places(block_bytes)
        yield break_even("nvme", drives, in_places, tiers.codec_threads, shape.prefill, shape.kv_bytes)
    for codec in question.evened:
        yield break_even("remote", question.remote, codec, tiers.codec_threads, shape.prefill, shape.kv_bytes)


def _cells(question: Question) -> Iterator[tuple[str, int]]:
    unique = question.trace.unique_blocks
    for policy in question.policies:
        if policy == "infinite":
            yield policy, unique
            continue
        curve = [max(1, int(unique * share)) for share in CURVE_SHARES] if question.draws and policy in POLICIES else []
        yield from ((policy, capacity) for capacity in sorted({*question.capacities, *curve}))


def _watch(futures: Sequence[Future[Any]], done: Sequence[int], requests: int, progress: Callable[[float], None]) -> None:
    """Ends with the last of them, or with the first that failed."""
    while not all(future.done() for future in futures):
        if any(future.done() and future.exception() is not None for future in futures):
            return
        whole = sum(future.done() for future in futures) / len(futures)
        progress(min(whole, sum(done) / requests) if requests else whole)
        time.sleep(POLL_S)
    progress(1.0)


def _begin(traces: list[Trace], done: MutableSequence[int]) -> None:
    global _done
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word
    _traces[:] = traces
    _done = done


def _hits(policy: str, capacity: int) -> float:
    trace = _traces[0]
    if policy in STORE_POLICIES:
        return hits_of_store(trace, capacity, STORE_POLICIES[policy]) / trace.prompt_tokens
    return POLICIES[policy](trace, capacity) / trace.prompt_tokens


def _replay(number: int, shape: Shape, arm: str) -> Outcome:
    def progress(done: int) -> None:
        _done[number] = done

    return replay(_traces[1], shape, arm, progress)
