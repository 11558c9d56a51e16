"""SmolLM2 with its trained weights: what comes back from kvtier is what the engine would have had itself.

The oracle is the engine's own prefix-cache hit of the same length: bit for bit. A cold run multiplies matrices of other
shapes, so its last bits differ; its greedy text may differ only where two tokens were equally likely within that noise.
"""

import ast
import inspect
from dataclasses import dataclass

import pytest
from engine import Answer, Engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BLOCK = 128
SHORTEST = 300  # tokens
SOME, ALL = (3, 900), (20, 3000)  # prompts, tokens of the longest
ANSWER = 12  # tokens
NOISE = {"float32": 2e-3, "bfloat16": 0.1}  # log-probability; measured 2e-5 and 0.06 on a larger model


@dataclass
class Trial:
    prompt: list[int]
    cold: Answer
    hit: Answer
    loaded: Answer


def _lengths(prompts: int, longest: int) -> list[int]:
    """From SHORTEST to `longest`, more of them short, none a whole number of blocks."""
    lengths = [round(SHORTEST + (longest - SHORTEST) * (i / (prompts - 1)) ** 4) for i in range(prompts)]
    return [n + (n % BLOCK == 0) for n in lengths]


def _real_text(tokenizer, tokens: int, number: int) -> list[int]:
    """So many tokens of English and Python: a part of the standard library's source that no other prompt has."""
    text = inspect.getsource(ast) + inspect.getsource(inspect)
    ids = tokenizer.encode(f"Text number {number}.\n" + text[number * 3000 :])
    assert len(ids) >= tokens
    return ids[:tokens]


@pytest.fixture(scope="module")
def smollm2(start_engine, smollm2_path, with_kvtier, real_dtype) -> Engine:
    # Two threads: one request at a time, the same ones for all of them, so the arithmetic stays the same.
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "OMP_NUM_THREADS": "2"}
    return start_engine(smollm2_path, connector=with_kvtier, multiprocess=True, dtype=real_dtype, env=threads)


@pytest.fixture(scope="module", params=[pytest.param(SOME, id="some"), pytest.param(ALL, id="all", marks=pytest.mark.long)])
def trials(request, smollm2, smollm2_path) -> list[Trial]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    made = []
    assert smollm2.reset(connector=True)  # some and all have prompts in common
    for number, length in enumerate(_lengths(*request.param)):
        prompt = _real_text(tokenizer, length, number)
        cold = smollm2.generate([prompt], ANSWER)[0]
        hit = smollm2.generate([prompt], ANSWER)[0]
        assert smollm2.reset()
        loaded = smollm2.generate([prompt], ANSWER)[0]
        made.append(Trial(prompt, cold, hit, loaded))
    return made


def test_every_whole_block_of_every_prompt_comes_back(trials):
    for trial in trials:
        whole = len(trial.prompt) // BLOCK * BLOCK
        assert (trial.cold.cached_tokens, trial.hit.cached_tokens) == (0, whole)
        assert trial.hit.external_tokens == 0
        assert (trial.loaded.cached_tokens, trial.loaded.external_tokens) == (whole, whole)


def test_text_and_log_probabilities_equal_the_engines_own_hit_bit_for_bit(trials):
    assert len(trials) in (SOME[0], ALL[0])
    for trial in trials:
        assert trial.loaded.tokens == trial.hit.tokens
        assert trial.loaded.logprobs == trial.hit.logprobs


def test_a_cold_run_says_the_same_but_where_two_tokens_are_equally_likely(trials, real_dtype, e2e_report):
    same = 0
    for trial in trials:
        differs = [i for i, (a, b) in enumerate(zip(trial.cold.tokens, trial.loaded.tokens)) if a != b]
        if not differs:
            same += 1
            continue
        first = differs[0]
        best, second = sorted(trial.cold.logprobs[first].values(), reverse=True)[:2]
        e2e_report(
            f"prompt of {len(trial.prompt)} tokens: cold and loaded part at answer token {first}, where the two best "
            f"tokens are {best - second:.4f} apart"
        )
        assert best - second <= NOISE[real_dtype]
    e2e_report(f"real weights, {real_dtype}: {len(trials)} prompts equal to the engine's own hit, {same} to a cold run")


def test_coming_back_is_much_cheaper_than_computing(trials):
    longest = trials[-1]
    assert longest.loaded.ttft < longest.cold.ttft / 2
