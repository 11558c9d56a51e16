"""What a client may ask of kvtier through a real engine: not to keep, not to load; and that nonsense costs nothing."""

import random
from typing import Any

import pytest
from engine import Answer, Engine
from kvtierd import KVTierd, eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32
WHOLE = 288  # tokens of a prompt in whole blocks


def _prompt(seed: int, length: int = 300) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


def _ask(engine: Engine, prompt: list[int], **hints: Any) -> Answer:
    """Nothing comes from the engine's own cache."""
    assert engine.reset()
    return engine.generate([prompt], kv_transfer_params={"kvtier": hints} if hints else None)[0]


def _counted(engine: Engine, daemon: KVTierd, name: str, more: int, before: int) -> bool:
    """Whether so many more have been counted. An engine reports in its steps, once a second."""
    engine.generate([_prompt(599, 10)], 2, kv_transfer_params={"kvtier": {"no_store": True, "no_load": True}})
    return daemon.counter(name) == before + more


@pytest.fixture(scope="module")
def engine(shared_engine) -> Engine:
    return shared_engine


def test_no_store_leaves_no_block_and_the_answer_is_the_same(engine, kvtierd):
    before, skipped = kvtierd.snapshot(), kvtierd.counter("skipped_no_store")
    asked = _ask(engine, _prompt(501), no_store=True)
    after = kvtierd.snapshot()
    assert after["tiers"] == before["tiers"]
    assert [after["counters"][n] for n in ("saved_blocks", "known_blocks")] == [
        before["counters"][n] for n in ("saved_blocks", "known_blocks")
    ]
    again = _ask(engine, _prompt(501))
    assert again.external_tokens == 0
    assert (again.tokens, again.logprobs) == (asked.tokens, asked.logprobs)
    eventually(lambda: _counted(engine, kvtierd, "skipped_no_store", WHOLE // BLOCK, skipped))


def test_no_store_still_loads_what_others_have_saved(engine, kvtierd):
    saved = _ask(engine, _prompt(502))
    before = kvtierd.counter("saved_blocks")
    turn = _prompt(502) + saved.tokens + _prompt(503, 100)
    loaded = _ask(engine, turn, no_store=True)
    assert loaded.external_tokens == WHOLE
    assert kvtierd.counter("saved_blocks") == before


def test_no_load_computes_and_keeps_nothing_twice(engine, kvtierd):
    computed = _ask(engine, _prompt(504))
    # What kvtierd's answer comes too late for is copied again, and then found to be known; it is not kept twice.
    before = {name: kvtierd.counter(name) for name in ("loaded_blocks", "saved_blocks")}
    again = _ask(engine, _prompt(504), no_load=True)
    assert (again.cached_tokens, again.external_tokens) == (0, 0)
    assert (again.tokens, again.logprobs) == (computed.tokens, computed.logprobs)
    assert {name: kvtierd.counter(name) for name in before} == before
    assert _ask(engine, _prompt(504)).external_tokens == WHOLE


def test_wrong_hints_are_counted_and_the_answer_is_the_same(engine, kvtierd):
    before = kvtierd.counter("hints_ignored")
    plain = _ask(engine, _prompt(505))
    wrong = {"sesion": "a chat", "ttl_s": "soon", "pin": 1, "max_tier": ["cpu"], "tool": "\x1b[2J"}
    answer = _ask(engine, _prompt(505), **wrong)
    assert answer.external_tokens == WHOLE
    assert answer.tokens == plain.tokens
    eventually(lambda: _counted(engine, kvtierd, "hints_ignored", len(wrong), before))
    assert kvtierd.counter("connector_faults") == 0
    said = engine.log.read_text()
    assert said.count("there is no hint 'sesion'; did you mean 'session'?") == 1
    assert said.count("pin must be true or false") == 1


def test_good_hints_of_every_kind_change_no_answer(engine, kvtierd):
    plain = _ask(engine, _prompt(506))
    good = {"session": "a chat", "tool": "search", "end": True, "expect_return_s": 3, "ttl_s": 60, "pin": True,
            "max_tier": "cpu"}  # fmt: skip
    answer = _ask(engine, _prompt(506), **good)
    assert (answer.external_tokens, answer.tokens) == (WHOLE, plain.tokens)
    assert kvtierd.counter("protocol_errors") == kvtierd.counter("connector_faults") == 0
