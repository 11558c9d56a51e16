"""What a scheduler's client says of one request besides asking for its blocks."""

import os
from collections.abc import Iterator

import pytest
from kvtierd import KVTierd, eventually, scheduler_hello, some_keys, worker_hello

from kvtier import observer
from kvtier.block import BELOW
from kvtier.client import SchedulerClient
from kvtier.worker_client import WorkerClient


@pytest.fixture(scope="module")
def kvtierd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    with KVTierd(tmp_path_factory.mktemp("requests")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def scheduler(kvtierd: KVTierd) -> Iterator[SchedulerClient]:
    """Of an engine that is up and was lent its slots; its clock stands still."""
    made, worker = SchedulerClient(kvtierd.socket, scheduler_hello(), 1), WorkerClient(kvtierd.socket, worker_hello())
    eventually(lambda: made.poll(1.0) or made.slots_at_hand)
    arena = eventually(lambda: worker.poll(1.0) or worker.take_arena())
    os.close(arena.fd)
    worker.mapped(1.0)
    eventually(lambda: made.poll(1.0) or made.ready)
    yield made
    made.close()
    worker.close()


def test_a_lookup_of_a_request_leaves_a_record_that_its_outcome_completes(kvtierd, scheduler):
    saved = some_keys(2, "told")
    scheduler.commit(saved, scheduler.borrow(2), scheduler.generation, 1.0)
    scheduler.pace({"steps": 0, "arrivals_mhz": 1500, "running": 3}, 1.0)
    asked = {"request": "r", "prompt_tokens": 50, "resident_tokens": 16, "backlog_us": 5, "witness": some_keys(1, "w")}
    lease = scheduler.lookup(some_keys(3, "told"), 1, 1.0, **asked)
    eventually(lambda: scheduler.poll(1.0) or scheduler.answer(lease) is not None)
    scheduler.due(lease, 1.0)  # too late to matter
    scheduler.release(lease, 1, 1.0, 2000)
    scheduler.outcome("r", {"ttft_us": 3000, "load_us": 2000, "loaded_tokens": 16}, 1.0)
    record = eventually(lambda: [r for r in observer.explain(kvtierd.socket, "r") if r["actual"]])[0]
    assert (record["prompt_tokens"], record["resident_tokens"], record["matched_tokens"]) == (50, 16, 16)
    assert (record["actual"]["ttft_ms"], record["actual"]["load_ms"]) == (3.0, 2.0)


def test_a_request_that_is_due_makes_the_daemons_silence_count_from_then(kvtierd, scheduler):
    lease = scheduler.lookup(some_keys(1), 0, 1000.0)
    scheduler.due(lease, 1007.0)
    assert scheduler.silent_s(lease, 1008.0) == 1.0
    scheduler.release(lease, 0, 1008.0)
    scheduler.due(lease, 1009.0)  # it is over
    assert scheduler.silent_s(lease, 1010.0) == 0.0
    assert kvtierd.counter("protocol_errors") == 0


def test_witnesses_have_a_secret_that_is_not_the_keys(scheduler):
    assert len(scheduler.witness_secret) == 32
    assert scheduler.witness_secret != scheduler.secret


def test_what_is_known_of_a_request_is_heard_from_its_beginning_to_its_end(kvtierd, scheduler):
    known = {"session": "a chat", "tenant": some_keys(1, "tenant"), "tool": "search", "counts": {"ttl_ms": 60_000}}
    scheduler.begin("with a name", 1.0, **known)
    keys = some_keys(2, "of a chat")
    lease = scheduler.lookup(keys, 0, 1.0, request="with a name", prompt_tokens=40)
    eventually(lambda: scheduler.poll(1.0) or scheduler.answer(lease) is not None)
    scheduler.release(lease, 0, 1.0)
    of_request = {"parents": bytes(16) + keys[:16], "request": "with a name"}
    scheduler.commit(keys, scheduler.borrow(2), scheduler.generation, 1.0, **of_request)
    scheduler.touch(keys, 1.0, "with a name")
    lease = scheduler.lookup(keys, 0, 1.0)
    eventually(lambda: scheduler.poll(1.0) or scheduler.answer(lease) is not None)
    assert (scheduler.answer(lease) < BELOW).all()
    scheduler.release(lease, 0, 1.0)
    assert kvtierd.counter("protocol_errors") == 0
