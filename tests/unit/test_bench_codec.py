"""What bench_codec.py measures: each codec there is, on texts that are there."""

import bench_codec
import numpy as np
import pytest
import real_kv

ROUNDS = 2


@pytest.fixture(scope="module")
def memory() -> bench_codec.Memory:
    return bench_codec.Memory(bench_codec.random_blocks(np.empty((4, 1 << 20), np.uint8)))


@pytest.mark.parametrize("name, ratio", [("exp12", 1.33), ("int8", 1.936), ("fp8", 1.996), ("int4", 3.55)])
def test_a_codec_has_its_ratio_and_its_shares_with_every_set_of_instructions(memory, name, ratio):
    found = bench_codec.of_codec(memory, name, ROUNDS)
    assert found["ratio"] == pytest.approx(ratio, abs=0.02)
    assert 0.98 * found["ratio"] < found["place_ratio"] <= found["ratio"] * 1.001
    assert {"encode_share", "decode_share", "encode_share_spread", "fp16_ratio"} <= set(found)
    assert list(found["by_isa"]) == bench_codec._native.codec_isas()
    assert found["encode_share"] == next(iter(found["by_isa"].values()))["encode_share"]


def test_where_the_values_are_noise_fp16_becomes_hardly_smaller_and_bf16_does(memory):
    found = bench_codec.of_codec(memory, "exp12", ROUNDS)
    assert 1.0 < found["fp16_ratio"] < 1.1 < found["ratio"]


def test_a_codec_that_this_machine_lacks_says_so(memory, monkeypatch):
    def lacking(*_):
        raise RuntimeError("no libzstd: not here")

    monkeypatch.setattr(bench_codec, "codec_of", lacking)
    assert bench_codec.of_codec(memory, "expz", ROUNDS) == {"absent": "no libzstd: not here"}


def test_there_are_four_texts_of_more_than_1536_tokens():
    found = real_kv.texts()
    assert len(found) == 4
    assert min(len(text.split()) for text in found.values()) > 1100
    assert all(len(text) > 8000 for text in found.values())
