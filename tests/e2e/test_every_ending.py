"""However a request ends, what was saved of it is right: at every offset of a block, aborted, preempted and resumed.

The twin of each conversation runs under another cache_salt, which separates caches and changes no arithmetic: the twin
comes back from the engine's own cache, the conversation from kvtier.
"""

import mmap
import os
import random
from pathlib import Path

import pytest
from engine import Answer, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32


def _prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


@pytest.fixture(scope="module")
def engine(shared_engine) -> Engine:
    return shared_engine


@pytest.fixture(scope="module")
def cramped(start_engine, tiny_llama_path, with_kvtier_unjoined) -> Engine:
    """Room for 24 blocks: six conversations can't run at once."""
    return start_engine(
        tiny_llama_path,
        connector=with_kvtier_unjoined,
        block_size=BLOCK,
        num_gpu_blocks=24,
        extra={"max_model_len": 512},
    )


def _second_turn(prompt: list[int], answer: Answer) -> list[int]:
    return prompt + answer.tokens + [7, 11, 13]


def test_requests_that_end_at_every_offset_of_a_block(engine):
    for offset in range(BLOCK):
        prompt = _prompt(offset, 2 * BLOCK + offset)
        twin = engine.generate([prompt], 20, salt="twin")[0]
        own = engine.generate([_second_turn(prompt, twin)], 8, salt="twin")[0]

        first = engine.generate([prompt], 20, salt="idle")[0]
        assert engine.reset()
        back = engine.generate([_second_turn(prompt, first)], 8, salt="idle")[0]

        assert first.tokens == twin.tokens
        assert back.external_tokens == back.cached_tokens == own.cached_tokens
        assert back.cached_tokens == (len(prompt) + 20 - 1) // BLOCK * BLOCK
        assert (back.tokens, back.logprobs) == (own.tokens, own.logprobs)


def test_an_aborted_request_leaves_only_right_blocks(engine):
    for tokens in (1, 2, 9, 29, 30, 31, 70):
        prompt = _prompt(100 + tokens, 5 * BLOCK + 3)
        full = engine.generate([prompt], 80, salt="full")[0]
        turn = _second_turn(prompt, full)
        _give_up_after(engine, tokens, prompt, "twin")
        own = engine.generate([turn], 8, salt="twin")[0]
        _give_up_after(engine, tokens, prompt, "idle")
        assert engine.reset()
        back = engine.generate([turn], 8, salt="idle")[0]
        assert own.external_tokens == 0
        assert back.external_tokens == own.cached_tokens >= 5 * BLOCK
        assert (back.tokens, back.logprobs) == (own.tokens, own.logprobs)


def _give_up_after(engine: Engine, tokens: int, prompt: list[int], salt: str) -> None:
    engine.add("given up", prompt, 80, salt=salt)
    while len(engine.step().tokens["given up"]) < tokens:
        pass
    engine.abort("given up")
    engine.finish()


def test_a_preempted_and_resumed_request_comes_back_equal(cramped):
    prompts = [_prompt(300 + i, 200 + i) for i in range(6)]
    alone = [cramped.generate([prompt], 60, salt=f"alone {i}")[0] for i, prompt in enumerate(prompts)]
    before = cramped.preemptions()
    crowded = cramped.generate(prompts, 60, salt=[f"crowd {i}" for i in range(6)])
    assert cramped.preemptions() > before
    assert [answer.tokens for answer in crowded] == [answer.tokens for answer in alone]
    # With AVX-512 the last bits depend on what else is in the batch, and so what was saved differs in them, too.
    by_batch = [answer.logprobs for answer in crowded] != [answer.logprobs for answer in alone]
    for i, prompt in enumerate(prompts):
        turn = _second_turn(prompt, alone[i])
        assert cramped.reset()
        back = cramped.generate([turn], 8, salt=f"crowd {i}")[0]
        assert cramped.reset()
        twin = cramped.generate([turn], 8, salt=f"alone {i}")[0]
        assert back.external_tokens == twin.external_tokens == 256 // BLOCK * BLOCK
        assert back.tokens == twin.tokens
        assert by_batch or back.logprobs == twin.logprobs


def test_one_corrupted_byte_in_the_arena_changes_the_answer(engine, kvtierd):
    """The control that shows that the comparisons above can fail."""
    prompt = _prompt(400, 6 * BLOCK + 5)
    with _arena(kvtierd) as memory:
        before = bytes(memory)
        first = engine.generate([prompt], 8, salt="control")[0]
        own = engine.generate([prompt], 8, salt="control")[0]
        changed = next(i for i in range(0, len(memory), 4096) if memory[i : i + 4096] != before[i : i + 4096])
        memory[changed + 1] ^= 0x40  # the exponent of one bfloat16
        assert engine.reset()
        back = engine.generate([prompt], 8, salt="control")[0]
    assert back.external_tokens == own.cached_tokens
    assert first.tokens == own.tokens
    assert back.logprobs != own.logprobs


def _arena(kvtierd) -> mmap.mmap:
    """The daemon's memory, by the descriptor that it holds."""
    for entry in Path(f"/proc/{kvtierd.pid}/fd").iterdir():
        if "memfd:kvtier" in os.readlink(entry):
            with entry.open("r+b") as handle:
                return mmap.mmap(handle.fileno(), 0)
    raise AssertionError("kvtierd holds no arena")
