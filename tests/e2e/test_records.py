"""Every request leaves one record at kvtierd: what was there, what was offered and why, and what came of it."""

import random
from collections.abc import Iterator

import pytest
from engine import Engine
from kvtierd import KVTierd, eventually

from kvtier import observer
from kvtier.cost import GAIN_MIN_S, GAIN_MIN_SHARE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32
PROMPT = 300  # tokens
WHOLE = PROMPT // BLOCK * BLOCK
TEACHERS = 20


def _prompt(seed: int, length: int = PROMPT) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """With the defaults that users have, but no hold-out."""
    with KVTierd(tmp_path_factory.mktemp("records"), {"cpu.capacity": "256 MiB", "cost.holdout": 0}) as running:
        yield running


@pytest.fixture(scope="module")
def engine(daemon, connector_for, start_engine, tiny_llama_path) -> Engine:
    connector = connector_for(daemon, lookup_deadline_ms=10_000)
    connector["kv_connector_extra_config"]["blocks_per_chunk"] = 1
    return start_engine(tiny_llama_path, connector=connector, block_size=BLOCK)


def _asked(daemon: KVTierd, engine: Engine, prompt: list[int]) -> dict:
    """The record that this prompt leaves."""
    before = len(observer.explain(daemon.socket, "last", 256))
    answer = engine.generate([prompt], 4)[0]
    records = eventually(lambda: observer.explain(daemon.socket, "last", 256)[before:])
    assert len(records) == 1
    said = eventually(lambda: observer.explain(daemon.socket, records[0]["request"])[-1:])[0]
    assert said["actual"]["ttft_ms"] / 1e3 <= answer.ttft
    assert said["saved_tokens"] == answer.external_tokens
    assert said["resident_tokens"] == answer.cached_tokens - answer.external_tokens
    return said


def test_a_new_prompt_was_never_stored_and_is_computed(daemon, engine):
    said = _asked(daemon, engine, _prompt(1))
    assert (said["prompt_tokens"], said["matched_tokens"], said["arm"]) == (PROMPT, 0, "recompute")
    assert said["reason"] == "never_stored"
    actual = said["actual"]
    assert actual["load_ms"] == 0 < actual["prefill_ms"] <= actual["ttft_ms"]


def test_what_the_engines_own_cache_has_is_known_when_the_request_arrives(daemon, engine):
    _asked(daemon, engine, _prompt(2))
    said = _asked(daemon, engine, _prompt(2))
    assert (said["resident_tokens"], said["matched_tokens"]) == (WHOLE, 0)


def test_before_anything_is_known_of_the_engine_much_is_fetched_and_little_is_computed(daemon, engine):
    for seed, length in ((3, PROMPT), (4, 4 * BLOCK + 5)):
        _asked(daemon, engine, _prompt(seed, length))
        assert engine.reset()
        said = _asked(daemon, engine, _prompt(seed, length))
        assert not said["calibrated"]
        assert said["matched"] == {"cpu": length // BLOCK * BLOCK, "nvme": 0}
        if length == PROMPT:
            assert (said["offered_tokens"], said["saved_tokens"], said["reason"]) == (WHOLE, WHOLE, "")
            assert said["actual"]["load_ms"] > 0
        else:
            assert (said["offered_tokens"], said["reason"]) == (0, "too_short")


def test_once_the_engine_is_known_it_is_offered_what_is_expected_to_be_faster(daemon, engine):
    stored = [_prompt(100 + i, BLOCK * (1 + i % 9) + 5) for i in range(TEACHERS)]
    for prompt in stored:
        engine.generate([prompt], 4)
    eventually(lambda: _asked(daemon, engine, _prompt(random.randrange(1000, 10**6))) and _has_learnt(daemon))
    assert engine.reset()
    for prompt in stored:
        said = _asked(daemon, engine, prompt)
        assert said["calibrated"] and said["matched_tokens"] == len(prompt) // BLOCK * BLOCK
        assert said["offered_tokens"] == said["saved_tokens"]
        without_ms = said["predicted"]["recompute_ms"]
        least_gain_ms = max(GAIN_MIN_S * 1e3, GAIN_MIN_SHARE * without_ms)
        if without_ms - said["predicted"]["fetch_ms"] > least_gain_ms or said["offered_tokens"]:
            assert (said["offered_tokens"], said["reason"]) == (said["matched_tokens"], "")
        else:
            assert said["reason"] in ("too_dear", "too_short")


def _has_learnt(daemon: KVTierd) -> bool:
    return daemon.snapshot()["decisions"]["engines"].popitem()[1]["calibrated"]


def test_requests_that_end_before_their_first_token_leave_no_outcome(daemon, engine):
    engine.add("gone", _prompt(5), 4)
    engine.abort("gone")
    engine.step()
    engine.finish()
    assert _asked(daemon, engine, _prompt(6))["matched_tokens"] == 0
