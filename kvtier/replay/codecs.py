"""What a codec makes of a tier below RAM, and from how many tokens on fetching from there is faster than computing.

A tier with a codec has room for `ratio` times as many blocks. It moves blocks so many times as fast, until the threads
that make frames and open them are the limit, for both go on at once. They are believed to have a core each: where engines
have the cores, a codec is slower by the clock, and only kvtierd, which goes by that, finds out.

    reads     min(ratio * B, decode * threads)
    writes    min(ratio * B, encode * threads)

One request alone, which finds n tokens of s bytes in a tier that reads B bytes a second after a latency:

    loading   L(n) = latency + n * s / B
    computing P(n) = token_s * n + pair_s * n^2
    n*        [(s/B - token_s) + sqrt((s/B - token_s)^2 + 4 * pair_s * latency)] / (2 * pair_s), where they are equal
    B_min(n)  s / (token_s + pair_s * n - latency / n), at which they are equal for n tokens

Under a queue it is more: what kvtierd decides counts that too (cost.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvtier.block import PLACE_GRAIN, SLOT_UNIT
from kvtier.coding import STEPS
from kvtier.estimators import Prefill

ENGINE_STEP_S = 0.02  # an engine looks once a step what has arrived
# What a codec is given, as the vLLM connector makes it: so many of the engine's blocks that it has a MiB, but few tokens
ENGINE_BLOCK_TOKENS, BLOCK_BYTES_WANTED, BLOCK_TOKENS_MAX = 16, 1024**2, 128


@dataclass(frozen=True)
class CodecSpeed:
    """One thread's by the clock, with a core of its own, in bytes of blocks, not of frames. 0: no time, nothing is done."""

    name: str
    ratio: float
    encode_bytes_per_s: float = 0.0
    decode_bytes_per_s: float = 0.0

    def reads(self, bytes_per_s: float, threads: int) -> float:
        """Bytes of blocks a second from a tier that reads so many bytes of anything."""
        return min(self.ratio * bytes_per_s, self.decode_bytes_per_s * threads or math.inf)

    def writes(self, bytes_per_s: float, threads: int) -> float:
        return min(self.ratio * bytes_per_s, self.encode_bytes_per_s * threads or math.inf)

    def in_places(self, block_bytes: int) -> "CodecSpeed":
        """On drives, where a place has a few sizes and not any (coding.py): a block of so many bytes gets a bit more."""
        step = -(-block_bytes // (STEPS * PLACE_GRAIN)) * PLACE_GRAIN
        place = max(SLOT_UNIT, math.ceil(block_bytes / self.ratio / step) * step)
        return replace(self, ratio=max(1.0, block_bytes / place))


# Of KV of a trained model, on one core of a Zen 3 with AVX2: benchmarks/bench_codec.py measures another machine's.
CODECS = {
    codec.name: codec
    for codec in (
        CodecSpeed("none", 1.0),
        CodecSpeed("exp12", 1.33, 6.3e9, 10.5e9),
        CodecSpeed("expz", 1.464, 1.2e9, 2.2e9),
        CodecSpeed("int8", 1.937, 5.2e9, 6.8e9),
    )
}
RAW_SPEED = CODECS["none"]
_RATIOS_OF_FP16 = {"none": 1.0, "exp12": 1.064, "expz": 1.153, "int8": 1.937}  # its exponents have 5 bits, not 8


def codecs_of(kv: str) -> Mapping[str, CodecSpeed]:
    """Those that make a cache of such values smaller, by name, with "none" first."""
    if kv == "bf16":
        return CODECS
    return {name: replace(CODECS[name], ratio=_RATIOS_OF_FP16[name]) for name in (CODECS if kv == "fp16" else ("none",))}


def block_tokens_of(token_bytes: int) -> int:
    """Tokens of a block, for so many bytes of KV a token."""
    tokens = ENGINE_BLOCK_TOKENS
    while token_bytes * tokens < BLOCK_BYTES_WANTED and tokens * 2 <= BLOCK_TOKENS_MAX:
        tokens *= 2
    return tokens


@dataclass(frozen=True)
class Way:
    """How a tier is read and written: bytes a second, and seconds until the first byte."""

    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class BreakEven:
    """Of one tier with one codec, for one engine."""

    tier: str
    codec: CodecSpeed
    read_bytes_per_s: float  # of blocks
    write_bytes_per_s: float
    latency_s: float  # until the first byte is in the engine
    tokens: int | None  # from which on fetching is faster; None: it never is

    def load_s(self, tokens: int, token_bytes: int) -> float:
        return self.latency_s + tokens * token_bytes / self.read_bytes_per_s


def break_even(tier: str, way: Way, codec: CodecSpeed, threads: int, prefill: Prefill, token_bytes: int) -> BreakEven:
    reads, writes = codec.reads(way.read_bytes_per_s, threads), codec.writes(way.write_bytes_per_s, threads)
    latency_s = way.latency_s + ENGINE_STEP_S
    tokens = tokens_from_which_loading_pays(prefill, token_bytes, reads, latency_s)
    return BreakEven(tier, codec, reads, writes, latency_s, tokens)


def tokens_from_which_loading_pays(prefill: Prefill, token_bytes: int, bytes_per_s: float, latency_s: float) -> int | None:
    """n*, whole tokens; None: computing is always faster. A step of the engine is counted in the latency."""
    dearer_s = token_bytes / bytes_per_s - prefill.token_s  # a token loaded, beside one computed that sees no others
    if prefill.pair_s <= 0:
        return None if dearer_s >= 0 else math.ceil(latency_s / -dearer_s)
    root = math.sqrt(dearer_s**2 + 4 * prefill.pair_s * latency_s)
    return math.ceil((dearer_s + root) / (2 * prefill.pair_s))


def bytes_per_s_from_which_loading_pays(prefill: Prefill, token_bytes: int, tokens: int, latency_s: float) -> float:
    """B_min for so many tokens; infinity: their latency alone takes longer than computing them."""
    spared_s = prefill.token_s + prefill.pair_s * tokens - latency_s / tokens
    return token_bytes / spared_s if spared_s > 0 else math.inf
