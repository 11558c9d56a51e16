"""Engines whose blocks come back from the drives by way of a codec; every load is one after kvtierd was killed and started
again, so that nothing is in RAM.

Without loss: text and log-probabilities equal the engine's own hit, and a load from RAM, bit for bit. With loss, where the
engine asked for it: SmolLM2 with its trained weights, and how far its distributions are from those with exact blocks, at
the same tokens of real texts.
"""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import pytest
from engine import Answer, Engine, EngineError
from kvtierd import KVTierd, eventually
from real_kv import texts

from kvtier import observer
from kvtier.codec import Codec
from kvtier.tiers.encoders import why_not

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

BLOCK = 128  # tokens of SmolLM2's
WHOLE = 3 * BLOCK  # of a text, that are loaded
ANSWER = 8
AHEAD = range(1, 32, 2)  # tokens behind what is loaded, at which distributions are compared
TOP = 200  # log-probabilities of each
TINY_BLOCK, TINY_WHOLE = 512, 1024  # tokens of tiny_llama's: smaller blocks would not get smaller by a whole slot unit
SETTINGS = {
    "cpu.capacity": "128 MiB",
    "nvme.capacity": "1 GiB",
    "nvme.endurance_dwpd": 1000,
    "nvme.stage_deadline_ms": 60_000,
    "cost.mode": "always",
}
FLAGS = Path("/proc/cpuinfo").read_text()
NO_FP8 = pytest.mark.skipif(
    "avx512" not in FLAGS and "amx" not in FLAGS, reason="vLLM's FP8 KV on a CPU needs AVX-512 or AMX"
)
NO_ZSTD = pytest.mark.skipif(bool(why_not(Codec("expz"))), reason="libzstd is not here")
LOSSLESS = ["exp12", pytest.param("expz", marks=NO_ZSTD)]

Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    folder = tmp_path_factory.mktemp("codecs")
    with KVTierd(folder, {**SETTINGS, "nvme.paths": folder / "drive", "nvme.codec": "exp12"}) as running:
        yield running


@pytest.fixture(scope="module")
def start(daemon, connector_for, start_engine) -> Start:
    """An engine beside this daemon; `codec` is the connector's setting."""

    def begin(model: Path, codec: str = "", blocks_per_chunk: int = 1, **options: object) -> Engine:
        connector = connector_for(daemon, lookup_deadline_ms=10_000, **({"codec": codec} if codec else {}))
        connector["kv_connector_extra_config"]["blocks_per_chunk"] = blocks_per_chunk
        options = {"dtype": "bfloat16", "block_size": BLOCK, "timeout": 900.0, **options}
        return start_engine(model, connector=connector, extra={"max_logprobs": TOP}, **options)

    return begin


@pytest.fixture(scope="module")
def start_tiny(start, tiny_llama_path) -> Start:
    return lambda codec="", **options: start(tiny_llama_path, codec, TINY_BLOCK // BLOCK, **options)


@pytest.fixture(scope="module")
def tiny(start_tiny) -> Engine:
    return start_tiny()


def random_prompt(seed: int) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(TINY_WHOLE + 40)]


def begin_anew(daemon: KVTierd, engine: Engine, codec: str = "exp12") -> None:
    """What was saved lies on the drive alone; from now on blocks go there by this codec."""
    assert observer.flush(daemon.socket, 60)
    daemon._settings["nvme.codec"] = codec
    daemon.restart()
    wait_for(daemon, engine)


def wait_for(daemon: KVTierd, engine: Engine) -> None:
    """Until it has found the daemon again; of what it had computed it has nothing any more."""
    others = len(daemon.snapshot()["engines"])

    def is_there() -> bool:
        engine.generate([[5, 6, 7]], 1)
        return sum(bool(e["copies"] and e["lent_slots"]) for e in daemon.snapshot()["engines"]) > others

    eventually(is_there)
    engine.generate([[5, 6, 7]], 2)  # it hears that its worker is there, too
    assert engine.reset()


def talk(engine: Engine, prompt: list[int], salt: str, tokens: int = ANSWER) -> Answer:
    return engine.generate([prompt], tokens, salt=salt)[0]


def hit_and_loads(daemon: KVTierd, engine: Engine, prompt: list[int], codec: str, whole: int) -> list[Answer]:
    """The engine's own hit; a load from RAM; a load from the drive, to where this codec took it."""
    begin_anew(daemon, engine, codec)
    before = daemon.snapshot()["tiers"]["nvme"]["blocks"]
    talk(engine, prompt, codec)
    hit = talk(engine, prompt, codec)
    assert engine.reset()
    from_ram = talk(engine, prompt, codec)
    begin_anew(daemon, engine, codec)
    blocks = daemon.snapshot()["tiers"]["nvme"]["blocks"] - before
    loaded = talk(engine, prompt, codec)
    assert (hit.external_tokens, from_ram.external_tokens, loaded.external_tokens) == (0, whole, whole)
    assert daemon.counter("promoted_blocks") == blocks > 0
    assert daemon.snapshot()["tiers"]["nvme"]["corrupt_blocks"] == 0
    return [hit, from_ram, loaded]


def assert_equal(first: Answer, *others: Answer) -> None:
    for other in others:
        assert (other.tokens, other.logprobs) == (first.tokens, first.logprobs)


class Growth:
    """What lies on the drive since it was made: bytes of blocks, and of their places."""

    def __init__(self, daemon: KVTierd) -> None:
        self._daemon, self._before = daemon, daemon.snapshot()["tiers"]["nvme"]

    def __call__(self) -> tuple[int, int]:
        now = self._daemon.snapshot()["tiers"]["nvme"]
        blocks, used = (now[name] - self._before[name] for name in ("block_bytes", "used_bytes"))
        return blocks, used


# --- without loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", LOSSLESS)
def test_text_and_log_probabilities_are_those_of_a_hit_bit_for_bit(tiny, daemon, codec, e2e_report):
    grown = Growth(daemon)
    assert_equal(*hit_and_loads(daemon, tiny, random_prompt(1), codec, TINY_WHOLE))
    blocks, used = grown()
    e2e_report(f"{codec}, random weights, bf16: {blocks} bytes of blocks take {used} on the drive")
    assert used * 1.2 < blocks


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"dtype": "float16"}, id="fp16 KV"),
        pytest.param({"kv_cache_dtype": "fp8"}, marks=NO_FP8, id="fp8 KV"),
        pytest.param({"dtype": "float32"}, id="fp32 KV"),
    ],
)
def test_other_kinds_of_values_come_back_bit_for_bit_too(start_tiny, daemon, options, codec, e2e_report):
    engine, grown = start_tiny(**options), Growth(daemon)
    try:
        assert_equal(*hit_and_loads(daemon, engine, random_prompt(2), codec, TINY_WHOLE))
        blocks, used = grown()
        e2e_report(f"{codec}, random weights, {options}: {blocks} bytes of blocks take {used} on the drive")
        assert 0 < used <= blocks
    finally:
        engine.stop()


def test_an_engine_that_wished_for_int8_finds_no_exact_blocks_and_leaves_none(tiny, start_tiny, daemon):
    hasty, prompt = start_tiny("int8"), random_prompt(3)
    begin_anew(daemon, tiny)
    wait_for(daemon, hasty)
    talk(tiny, prompt, "both")
    hit = talk(tiny, prompt, "both")
    assert talk(hasty, prompt, "both").external_tokens == 0, "what is there is of another namespace"
    her_hit = talk(hasty, prompt, "both")
    assert observer.flush(daemon.socket, 60)
    codecs = daemon.snapshot()["tiers"]["nvme"]["coding"]["codecs"]
    assert codecs["int8"]["blocks"] == TINY_WHOLE // TINY_BLOCK
    begin_anew(daemon, tiny)
    wait_for(daemon, hasty)
    nearly, loaded = talk(hasty, prompt, "both"), talk(tiny, prompt, "both")
    assert (nearly.external_tokens, loaded.external_tokens) == (TINY_WHOLE, TINY_WHOLE)
    assert_equal(hit, loaded)
    assert nearly.logprobs != her_hit.logprobs, "it went through int8"
    hasty.stop()


def test_a_codec_for_values_that_the_engine_has_not_ends_its_start_with_the_cure(start_tiny):
    with pytest.raises(EngineError, match=r"codec = 'int8' needs bf16 or fp16 KV, and this engine's is torch\.float32"):
        start_tiny("int8", dtype="float32")


# --- real weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_texts(smollm2_path) -> list[list[int]]:
    """As tokens; of each more than is ever asked."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_path)
    made = [tokenizer.encode(text)[: WHOLE + 1 + max(AHEAD)] for text in texts().values()]
    assert len(made) >= 3 and all(len(ids) == WHOLE + 1 + max(AHEAD) for ids in made)
    return made


@pytest.fixture(scope="module")
def smollm2(start, smollm2_path) -> Engine:
    return start(smollm2_path)


@pytest.mark.long
@pytest.mark.parametrize("codec", LOSSLESS)
def test_with_trained_weights_blocks_get_smaller_and_nothing_else_changes(smollm2, daemon, real_texts, codec, e2e_report):
    grown = Growth(daemon)
    assert_equal(*hit_and_loads(daemon, smollm2, real_texts[0], codec, WHOLE))
    blocks, used = grown()
    e2e_report(f"{codec}, SmolLM2, bf16: {blocks} bytes of blocks take {used} on the drive")
    assert used * 1.25 < blocks


def distributions(engine: Engine, text: list[int]) -> list[dict[int, float]]:
    """Of the next token, behind so much of the text."""
    engine.generate([text[: WHOLE + 1]], 1)  # first, so that all of them share what it computes or loads
    answers = engine.generate([text[: WHOLE + n] for n in AHEAD], 1, logprobs=TOP)
    return [answer.logprobs[0] for answer in answers]


def divergence(exact: dict[int, float], other: dict[int, float]) -> float:
    """Kullback-Leibler, nats: over what both have among their best, and the rest as one."""
    both = exact.keys() & other.keys()
    pairs = [(math.exp(exact[token]), math.exp(other[token])) for token in both]
    pairs.append(tuple(max(1e-9, 1 - sum(column)) for column in zip(*pairs)))
    return sum(p * math.log(p / q) for p, q in pairs)


def compared(text: list[int], exact: list[dict[int, float]], other: list[dict[int, float]]) -> tuple[float, float, float]:
    """Mean divergence, the share of equal first choices, and how much more the text itself surprises: nats a token."""
    apart = fmean(map(divergence, exact, other))
    same = fmean(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in zip(exact, other))
    follows = [text[WHOLE + n] for n in AHEAD]
    loss = [a[token] - b[token] for token, a, b in zip(follows, exact, other) if token in a and token in b]
    return apart, same, fmean(loss)


def computed_at_once(engine: Engine, text: list[int]) -> list[dict[int, float]]:
    """The same, each prompt computed by itself: products of other shapes, and so the engine's own rounding."""
    return [engine.generate([text[: WHOLE + n]], 1, logprobs=TOP, salt=f"alone {n}")[0].logprobs[0] for n in AHEAD]


Apart = tuple[float, float, float]


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def accuracy(request, start, smollm2_path, daemon, real_texts, e2e_report) -> tuple[list[Apart], list[Apart]]:
    """Of each text, beside the engine's own blocks: loaded by way of int8, and computed at once."""
    hasty = start(smollm2_path, "int8", dtype=request.param)
    begin_anew(daemon, hasty)
    before = [distributions(hasty, text) for text in real_texts]
    at_once = [computed_at_once(hasty, text) for text in real_texts]
    begin_anew(daemon, hasty)
    loaded = daemon.counter("promoted_blocks")
    after = [distributions(hasty, text) for text in real_texts]
    assert daemon.counter("promoted_blocks") - loaded == WHOLE // BLOCK * len(real_texts)
    hasty.stop()
    found = [[compared(*one) for one in zip(real_texts, before, other)] for other in (after, at_once)]
    for way, of_texts in zip(("by int8", "computed at once"), found):
        for name, (apart, same, loss) in zip(texts(), of_texts):
            numbers = f"KL {apart:.2e}, top-1 agreement {same:.3f}, loss difference {loss:+.4f}"
            e2e_report(f"SmolLM2, {request.param}, {way}, {name}: {numbers}")
    return found[0], found[1]


@pytest.mark.long
def test_with_int8_distributions_are_nearly_those_of_exact_blocks(accuracy):
    by_int8, at_once = accuracy
    rounding = fmean(apart for apart, _, _ in at_once)
    assert len(by_int8) >= 3
    assert fmean(apart for apart, _, _ in by_int8) <= 5e-4 + 2 * rounding, "no more than its own, and the engine's rounding"
    assert fmean(same for _, same, _ in by_int8) >= 0.95
    assert abs(fmean(loss for _, _, loss in by_int8)) <= 0.02
