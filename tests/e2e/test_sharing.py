"""Who gets whose blocks: another engine of the same model, at once; another model, another tenant, never."""

import random

import pytest
from engine import Engine
from kvtierd import eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32


def _prompt(seed: int, length: int = 300) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


@pytest.fixture(scope="module")
def first(shared_engine) -> Engine:
    return shared_engine


@pytest.fixture(scope="module")
def second(first, start_engine, tiny_llama_path, with_kvtier_unjoined) -> tuple[Engine, int]:
    """Another engine of the same model beside the first, and the tokens that came from kvtier for its first request."""
    first.generate([_prompt(1)])
    engine = start_engine(tiny_llama_path, connector=with_kvtier_unjoined, block_size=BLOCK)
    return engine, engine.generate([_prompt(1)])[0].external_tokens


def test_a_second_engines_first_request_finds_what_the_first_has_served(second):
    _, external = second
    assert external == 288


def test_what_one_engine_saves_the_other_loads_with_the_same_result(first, second):
    other, _ = second
    saved = first.generate([_prompt(2)])[0]
    hit = first.generate([_prompt(2)])[0]
    loaded = other.generate([_prompt(2)])[0]
    assert loaded.external_tokens == 288
    assert saved.tokens == loaded.tokens
    assert hit.logprobs == loaded.logprobs


def test_blocks_are_of_use_while_the_request_that_makes_them_still_runs(first, second):
    other, _ = second
    prompt = _prompt(3)
    first.add("long", prompt, 250)
    running = first.step(100).tokens["long"]
    turn = prompt + running
    loaded = other.generate([turn], 4)[0]
    assert 50 < len(running) < 250
    assert loaded.external_tokens > len(prompt)
    assert first.finish()["long"].tokens[: len(running)] == running


def test_a_salt_separates_tenants(first, second):
    other, _ = second
    first.generate([_prompt(4)], salt="tenant A")
    assert other.generate([_prompt(4)], salt="tenant B")[0].external_tokens == 0
    assert other.generate([_prompt(4)])[0].external_tokens == 0
    assert other.generate([_prompt(4)], salt="tenant A")[0].external_tokens == 288


@pytest.mark.long
def test_another_model_of_the_same_shape_never_hits(first, start_engine, other_llama_path, with_kvtier_unjoined):
    first.generate([_prompt(5)])
    other = start_engine(other_llama_path, connector=with_kvtier_unjoined, block_size=BLOCK)
    assert other.generate([_prompt(5)])[0].external_tokens == 0
    other.stop()


@pytest.mark.long
def test_another_dtype_never_hits(first, start_engine, tiny_llama_path, with_kvtier_unjoined):
    first.generate([_prompt(6)])
    other = start_engine(tiny_llama_path, connector=with_kvtier_unjoined, block_size=BLOCK, dtype="float32")
    assert other.generate([_prompt(6)])[0].external_tokens == 0
    other.stop()


def test_an_engine_that_is_killed_gives_everything_back_within_a_second(first, second, kvtierd):
    other, _ = second
    before = len(kvtierd.snapshot()["engines"])
    other.kill()
    eventually(lambda: len(kvtierd.snapshot()["engines"]) == before - 1, within=1.0)
    prompt = _prompt(7)
    first.generate([prompt])
    assert first.reset()
    assert first.generate([prompt])[0].external_tokens == 288


def test_after_a_weight_update_nothing_older_is_served_again(first, start_engine, tiny_llama_path, with_kvtier_unjoined):
    old, new = _prompt(8), _prompt(9)
    first.generate([old])
    assert first.reset()
    assert first.generate([old])[0].external_tokens == 288

    assert first.reset(connector=True)  # what a weight update calls
    assert first.generate([old])[0].external_tokens == 0
    first.generate([new])
    assert first.reset()
    assert first.generate([new])[0].external_tokens == 288  # the new epoch works like the old one

    # An engine that starts afterwards has the weights of the disk: neither epoch of the other's is for it.
    joined = start_engine(tiny_llama_path, connector=with_kvtier_unjoined, block_size=BLOCK)
    assert joined.generate([old])[0].external_tokens == 0
    assert joined.generate([new])[0].external_tokens == 0
    joined.stop()
