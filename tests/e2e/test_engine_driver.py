"""The driver and the models that the other end-to-end tests rely on, without any connector."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import Engine, EngineError

pytestmark = [pytest.mark.engine, pytest.mark.long]  # the harness itself, not kvtier

PROMPT_TOKENS = 700
BLOCK = 128  # vLLM's block on CPU
CACHED = PROMPT_TOKENS // BLOCK * BLOCK


def prompt_of(seed: int, length: int = PROMPT_TOKENS) -> list[int]:
    """Tokens that both tiny models have and that are not special."""
    generator = random.Random(seed)
    return [generator.randrange(10, 990) for _ in range(length)]


@pytest.fixture(scope="module")
def llama(start_engine: Callable[..., Engine], tiny_llama_path: Path) -> Engine:
    return start_engine(tiny_llama_path)


@pytest.fixture(scope="module")
def gemma2(start_engine: Callable[..., Engine], tiny_gemma2_path: Path) -> Engine:
    return start_engine(tiny_gemma2_path)


@pytest.fixture(params=["llama", "gemma2"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    assert found.reset()
    return found


def test_a_hit_answers_like_another_hit_bit_for_bit(engine: Engine) -> None:
    prompt = prompt_of(1)
    cold, first, second = (engine.generate([prompt])[0] for _ in range(3))
    assert (cold.cached_tokens, first.cached_tokens, second.cached_tokens) == (0, CACHED, CACHED)
    assert cold.tokens == first.tokens == second.tokens
    assert first.logprobs == second.logprobs
    assert len(cold.tokens) == len(cold.logprobs) == 16
    assert cold.external_tokens == first.external_tokens == 0
    assert cold.finish_reason == "length"
    assert cold.ttft is not None and first.ttft is not None and 0 < first.ttft < cold.ttft


def test_an_early_token_changes_the_answer(engine: Engine) -> None:
    prompt = prompt_of(2)
    changed = [*prompt[:5], prompt[5] + 1, *prompt[6:]]
    answer, other = engine.generate([prompt, changed])
    assert other.cached_tokens == 0
    assert answer.tokens != other.tokens
    best = answer.tokens[0]
    assert abs(answer.logprobs[0][best] - other.logprobs[0].get(best, -20.0)) > 0.1


def test_salts_keep_requests_apart(llama: Engine) -> None:
    prompt = prompt_of(3)
    assert [a.cached_tokens for a in llama.generate([prompt], salt="a")] == [0]
    assert [a.cached_tokens for a in llama.generate([prompt] * 3, salt=["a", "b", None])] == [CACHED, 0, 0]


def test_other_weights_answer_otherwise(llama: Engine, start_engine: Callable[..., Engine], other_llama_path: Path) -> None:
    prompt = prompt_of(1)
    other = start_engine(other_llama_path)
    assert other.generate([prompt])[0].tokens != llama.generate([prompt])[0].tokens
    other.stop()
    assert not other.alive()


def test_steps_and_abort(llama: Engine) -> None:
    expected = llama.generate([prompt_of(4)])[0].tokens
    assert llama.reset()
    llama.add("kept", prompt_of(4))
    llama.add("dropped", prompt_of(5), max_tokens=200)
    progress = llama.step(4)
    assert progress.finished == [] and set(progress.tokens) == {"kept", "dropped"}
    assert 0 < len(progress.tokens["kept"]) <= 4
    llama.abort("dropped")
    assert set(llama.step(1).tokens) == {"kept"}
    answers = llama.finish()
    assert list(answers) == ["kept"]
    assert answers["kept"].tokens == expected
    assert llama.step(1).tokens == {}
    assert llama.reset(), "an aborted request keeps its blocks"


def test_an_impossible_request_is_an_error_and_no_more(llama: Engine) -> None:
    with pytest.raises(EngineError, match="maximum context length"):
        llama.generate([prompt_of(6, 5000)])
    assert len(llama.generate([prompt_of(6)], max_tokens=3)[0].tokens) == 3


def test_metrics(llama: Engine) -> None:
    before = llama.metrics()["vllm:generation_tokens"]
    llama.generate([prompt_of(7)], max_tokens=4)
    assert llama.metrics()["vllm:generation_tokens"] == before + 4
    assert llama.preemptions() == 0
    assert llama.memory() > 200 << 20


@pytest.mark.long
def test_the_death_of_the_engine_process_is_an_error(start_engine: Callable[..., Engine], tiny_llama_path: Path) -> None:
    engine = start_engine(tiny_llama_path, multiprocess=True)
    cold, hit = (engine.generate([prompt_of(1)])[0] for _ in range(2))
    assert (cold.cached_tokens, hit.cached_tokens, hit.tokens) == (0, CACHED, cold.tokens)
    pids = engine.pids()
    assert len(pids["driver"]) == len(pids["engine_core"]) == len(pids["workers"]) == 1
    os.kill(pids["engine_core"][0], signal.SIGKILL)
    with pytest.raises(EngineError, match="the end of"):
        engine.generate([prompt_of(2, 4000)], max_tokens=64)
    engine.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_running(pid) for family in pids.values() for pid in family):
        time.sleep(0.1)
    assert not [pid for family in pids.values() for pid in family if _running(pid)]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
