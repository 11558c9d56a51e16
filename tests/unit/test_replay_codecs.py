"""What a codec makes of a tier, and where fetching begins to pay: against figures worked out by hand."""

import math

import pytest

from kvtier.estimators import Prefill
from kvtier.replay.codecs import (
    CODECS,
    ENGINE_STEP_S,
    CodecSpeed,
    Way,
    block_tokens_of,
    break_even,
    bytes_per_s_from_which_loading_pays,
    codecs_of,
    tokens_from_which_loading_pays,
)
from kvtier.replay.node import Tiers

GB = 1e9
KIB, MIB = 1024, 1024**2
TOKEN_BYTES = 128 * KIB  # of an 8B model with 8 KV heads
H100 = Prefill(0.0, 25.7e-6, 0.589e-9, 8192)
A100 = Prefill(0.0, 74.6e-6, 1.680e-9, 2048)
EXP12 = CodecSpeed("exp12", 1.327, 9.7 * GB, 15 * GB)
EXPZ = CodecSpeed("expz", 1.448, 0.75 * GB, 2.5 * GB)


@pytest.mark.parametrize(
    ("codec", "threads", "tier", "reads", "writes"),
    [
        (CODECS["none"], 1, 7.0, 7.0, 7.0),
        (EXP12, 1, 7.0, 9.289, 9.289),
        (EXP12, 1, 14.0, 15.0, 9.7),  # what one thread can
        (EXP12, 2, 14.0, 18.578, 18.578),
        (EXPZ, 1, 1.25, 1.81, 0.75),
        (EXPZ, 2, 7.0, 5.0, 1.5),  # slower than without
    ],
)
def test_a_codec_moves_its_ratio_more_until_its_threads_are_the_limit(codec, threads, tier, reads, writes):
    assert codec.reads(tier * GB, threads) == pytest.approx(reads * GB)
    assert codec.writes(tier * GB, threads) == pytest.approx(writes * GB)


def test_a_place_on_a_drive_is_a_bit_larger_than_its_frame():
    """2 MiB / 1.327 are 192.9 steps of 8 KiB, a 256th of the block: 193. Nothing gets less than 64 KiB."""
    assert EXP12.in_places(2 * MIB).ratio == 256 / 193
    assert EXP12.in_places(MIB).ratio == 256 / 193
    assert EXP12.in_places(128 * KIB).ratio == 32 / 25  # of 4 KiB
    assert EXP12.in_places(64 * KIB).ratio == 1.0
    assert EXPZ.in_places(80 * KIB).ratio == 80 / 64
    assert CODECS["none"].in_places(2 * MIB).ratio == 1.0


def test_fp16_becomes_hardly_smaller_and_fp8_not_at_all():
    assert {name: codec.ratio for name, codec in codecs_of("fp16").items()}["exp12"] == 1.064
    assert list(codecs_of("bf16")) == list(codecs_of("fp16")) == ["none", "exp12", "expz", "int8"]
    assert list(codecs_of("fp8")) == ["none"]


def test_blocks_are_as_the_connector_makes_them():
    tokens = {kib: block_tokens_of(kib * KIB) for kib in (320, 128, 56, 22.5, 8, 1)}
    assert tokens == {320: 16, 128: 16, 56: 32, 22.5: 64, 8: 128, 1: 128}


@pytest.mark.parametrize(
    ("prefill", "tier", "latency_s", "tokens"),
    [
        (H100, 7.0, 0.0221, 2_600),  # (18.72 - 25.7 + sqrt(6.98^2 + 52.1)) / 1.178e-3: 2,604
        (H100, 2.7, 0.023, 39_800),  # 22.84 + sqrt(22.84^2 + 54.2) us, over 1.178 ns
        (H100, 1.0, 0.05, 179_400),
        (A100, 1.25, 0.021, 18_700),  # 10 GbE: 30.26 + sqrt(30.26^2 + 141.1)
    ],
)
def test_fetching_pays_from_so_many_tokens_on(prefill, tier, latency_s, tokens):
    found = tokens_from_which_loading_pays(prefill, TOKEN_BYTES, tier * GB, latency_s)
    assert found == pytest.approx(tokens, rel=0.005)
    load_s = [latency_s + n * TOKEN_BYTES / (tier * GB) for n in (found - 1, found)]
    assert load_s[0] > prefill.seconds(0, found - 1) and load_s[1] <= prefill.seconds(0, found)


def test_where_attention_costs_nothing_a_slow_tier_never_pays():
    linear = Prefill(0.0, 100e-6, 0.0, 8192)
    assert tokens_from_which_loading_pays(linear, 100_000, 2 * GB, 0.02) == 400  # 50 us a token less, for 20 ms
    assert tokens_from_which_loading_pays(linear, 100_000, 1 * GB, 0.02) is None
    assert tokens_from_which_loading_pays(linear, 100_000, 0.5 * GB, 0.02) is None


def test_a_tier_must_read_so_many_bytes_a_second():
    assert bytes_per_s_from_which_loading_pays(H100, TOKEN_BYTES, 32_768, 0.0) == pytest.approx(2.91 * GB, rel=0.002)
    assert bytes_per_s_from_which_loading_pays(H100, TOKEN_BYTES, 131_072, 0.0) == pytest.approx(1.273 * GB, rel=0.002)
    assert bytes_per_s_from_which_loading_pays(H100, TOKEN_BYTES, 100, 0.02) == math.inf


def test_at_that_rate_so_many_tokens_are_the_break_even():
    least = bytes_per_s_from_which_loading_pays(A100, TOKEN_BYTES, 4_000, 0.021)
    assert tokens_from_which_loading_pays(A100, TOKEN_BYTES, least, 0.021) == pytest.approx(4_000, abs=1)


def test_on_10_gbe_a_codec_moves_the_break_even_from_19_thousand_tokens_to_5_and_to_3():
    way = Way(1.25 * GB, 1.25 * GB, 0.001)
    tokens = [break_even("remote", way, codec, 2, A100, TOKEN_BYTES).tokens for codec in (CODECS["none"], EXP12, EXPZ)]
    assert tokens == [18_680, 5_088, 2_945]


def test_on_drives_of_7_gb_s_exp12_pays_and_expz_is_slower_than_none():
    way = Way(7 * GB, 5 * GB, 0.001)
    raw, exp12, expz = (break_even("nvme", way, codec, 2, H100, TOKEN_BYTES) for codec in (CODECS["none"], EXP12, EXPZ))
    assert (raw.tokens, exp12.tokens, expz.tokens) == (2_488, 1_671, 6_424)
    assert expz.load_s(10_000, TOKEN_BYTES) == pytest.approx(0.001 + ENGINE_STEP_S + 10_000 * TOKEN_BYTES / (5 * GB))


def test_drives_with_a_codec_are_drives_without_one_that_have_more_room_and_are_faster():
    drives = Tiers(GB, 1000 * MIB, 6 * GB, 4 * GB, 0.0005, 1.0, CodecSpeed("x", 1.25, 3 * GB, 5 * GB), 1)
    same = drives.uncoded()
    assert (same.nvme_bytes, same.cpu_bytes) == (1250 * MIB, GB)
    assert (same.nvme_read_bytes_per_s, same.nvme_write_bytes_per_s) == (5 * GB, 3 * GB)
    assert same.uncoded() == same
