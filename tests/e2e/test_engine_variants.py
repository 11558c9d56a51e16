"""The same on engines of other kinds, with small models of random weights whose output depends on the whole context."""

import random
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

VARIANTS = {
    "blocks of 128 tokens": {},
    "blocks of 32 tokens": {"block_size": 32, "joined": False},
    "blocks of 32 tokens, four joined to one": {"block_size": 32},
    "chunked prefill": {"max_num_batched_tokens": 256},
    "FP8 KV": {"kv_cache_dtype": "fp8"},
    "tensor parallel 2": {"tensor_parallel": 2},
    "Gemma-2 hybrid": {"model": "tiny_gemma2_path"},
}


FLAGS = Path("/proc/cpuinfo").read_text()
NO_FP8 = pytest.mark.skipif(
    "avx512" not in FLAGS and "amx" not in FLAGS, reason="vLLM's FP8 KV on a CPU needs AVX-512 or AMX"
)


def _prompt(seed: int, length: int) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


LATER = ("blocks of 128 tokens", "blocks of 32 tokens", "blocks of 32 tokens, four joined to one", "tensor parallel 2")
MARKS = {"FP8 KV": NO_FP8, **dict.fromkeys(LATER, pytest.mark.long)}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, ())) for name in VARIANTS])
def variant(request, start_engine, with_kvtier, with_kvtier_unjoined):
    options = dict(VARIANTS[request.param])
    model = request.getfixturevalue(options.pop("model", "tiny_llama_path"))
    connector = with_kvtier if options.pop("joined", True) else with_kvtier_unjoined
    engine = start_engine(model, connector=connector, **options)
    yield engine, request.param
    engine.stop()


def test_a_reloaded_conversation_equals_the_engines_own_hit(variant):
    engine, salt = variant  # blocks are shared by all engines of the same model, so each variant has a salt of its own
    for seed, whole in enumerate((256, 640, 1536)):  # a few tokens more: blocks of 32 and of 128 hit the same length
        prompt = _prompt(seed, whole + 14)
        cold = engine.generate([prompt], salt=salt)[0]
        hit = engine.generate([prompt], salt=salt)[0]
        assert engine.reset()
        loaded = engine.generate([prompt], salt=salt)[0]
        assert cold.cached_tokens == 0
        assert loaded.external_tokens == loaded.cached_tokens == hit.cached_tokens == whole
        assert loaded.tokens == hit.tokens
        assert loaded.logprobs == hit.logprobs


def test_several_conversations_come_back_at_once(variant):
    """Run together, engines of several threads or ranks may batch them differently: text, not bits, is compared."""
    engine, salt = variant
    prompts = [_prompt(10 + i, 300 + 50 * i) for i in range(4)]
    alone = [engine.generate([prompt], salt=salt)[0] for prompt in prompts]
    assert engine.reset()
    together = engine.generate(prompts, salt=salt)
    for before, after in zip(alone, together):
        assert after.external_tokens > 0
        assert after.tokens == before.tokens


def test_one_early_token_changed_is_another_conversation(variant):
    engine, salt = variant
    prompt = _prompt(20, 700)
    first = engine.generate([prompt], salt=salt)[0]
    assert engine.reset()
    changed = prompt.copy()
    changed[5] = changed[5] + 1
    other = engine.generate([changed], salt=salt)[0]
    assert other.external_tokens == 0
    assert other.logprobs != first.logprobs
