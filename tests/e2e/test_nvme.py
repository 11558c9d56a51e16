"""A real engine whose blocks come back from the drive: after they left RAM, after kvtierd died, after everything did."""

import random
from collections.abc import Iterator

import pytest
from engine import Engine
from kvtierd import KVTierd, eventually

from kvtier import observer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32
PROMPT = 300  # tokens
WHOLE = PROMPT // BLOCK * BLOCK
SMALL = {
    "cpu.capacity": "32 MiB",
    "nvme.capacity": "512 MiB",
    "nvme.endurance_dwpd": 1000,
    "nvme.stage_deadline_ms": 10_000,
    "cost.mode": "always",
}


def _prompt(seed: int) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(PROMPT)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    folder = tmp_path_factory.mktemp("nvme")
    with KVTierd(folder, {**SMALL, "policy.name": "lru", "nvme.paths": folder / "drive"}) as running:
        yield running


@pytest.fixture(scope="module")
def connector(daemon, connector_for) -> dict:
    asked = connector_for(daemon, lookup_deadline_ms=10_000)
    asked["kv_connector_extra_config"]["blocks_per_chunk"] = 1
    return asked


@pytest.fixture(scope="module")
def engine(daemon, connector, start_engine, tiny_llama_path) -> Engine:
    return start_engine(tiny_llama_path, connector=connector, block_size=BLOCK)


def _talk(engine: Engine, prompt: list[int]):
    return engine.generate([prompt])[0]


def _push_out_of_ram(engine: Engine, daemon: KVTierd) -> None:
    """Other users' prompts, until RAM has been filled once over."""
    before = daemon.counter("evicted_blocks")
    blocks = daemon.cpu()["capacity_bytes"] // daemon.snapshot()["engines"][0]["slot_bytes"]
    seeds = iter(range(1000, 9000))
    while daemon.counter("evicted_blocks") - before < blocks:
        engine.generate([_prompt(next(seeds)) for _ in range(16)], 1)
    assert observer.flush(daemon.socket, 30)


def test_a_conversation_that_left_ram_comes_back_from_the_drive_bit_for_bit(engine, daemon):
    _talk(engine, _prompt(1))
    hit = _talk(engine, _prompt(1))
    _push_out_of_ram(engine, daemon)
    engine.reset()
    before = daemon.counter("promoted_blocks")
    loaded = _talk(engine, _prompt(1))
    assert loaded.external_tokens == WHOLE
    assert daemon.counter("promoted_blocks") - before == WHOLE // BLOCK
    assert (loaded.tokens, loaded.logprobs) == (hit.tokens, hit.logprobs)


def test_blocks_begin_to_be_read_when_the_request_arrives_however_long_it_waits_for_its_turn(engine, daemon):
    _talk(engine, _prompt(5))
    _push_out_of_ram(engine, daemon)
    engine.reset()
    before = daemon.counter("promoted_blocks")
    engine.add("waits", _prompt(5))  # and no step is made
    eventually(lambda: daemon.counter("promoted_blocks") - before == WHOLE // BLOCK)
    assert engine.finish()["waits"].external_tokens == WHOLE


def test_what_the_engines_own_cache_covers_is_read_from_no_tier(engine, daemon):
    _talk(engine, _prompt(2))
    eventually(lambda: daemon.engine(daemon.snapshot()["engines"][0]["engine"])["leases"] == 0)
    assert observer.flush(daemon.socket, 30)
    read = [daemon.counter(name) for name in ("promoted_bytes", "loaded_bytes")]
    again = _talk(engine, _prompt(2))
    assert again.external_tokens == 0 and again.cached_tokens == WHOLE
    assert [daemon.counter(name) for name in ("promoted_bytes", "loaded_bytes")] == read


def test_kvtierd_dies_and_comes_back_and_the_first_request_of_the_same_engine_is_served_from_the_drive(engine, daemon):
    _talk(engine, _prompt(3))
    hit = _talk(engine, _prompt(3))
    assert observer.flush(daemon.socket, 30)
    daemon.restart()
    engine.reset()
    loaded = _talk(engine, _prompt(3))
    assert loaded.external_tokens == WHOLE
    assert (loaded.tokens, loaded.logprobs) == (hit.tokens, hit.logprobs)


def test_both_restart_and_the_conversation_goes_on_where_it_was(engine, daemon, connector, start_engine, tiny_llama_path):
    _talk(engine, _prompt(4))
    hit = _talk(engine, _prompt(4))
    engine.stop()
    assert daemon.terminate() == 0
    daemon.start()
    again = start_engine(tiny_llama_path, connector=connector, block_size=BLOCK)
    loaded = _talk(again, _prompt(4))
    assert loaded.external_tokens == WHOLE
    assert (loaded.tokens, loaded.logprobs) == (hit.tokens, hit.logprobs)
    assert daemon.counter("corrupt_blocks") == 0
