"""What makes a namespace: what blocks may go through below RAM, for the layers that vLLM describes. No engine runs here."""

from types import SimpleNamespace

import pytest
import torch

identity = pytest.importorskip("kvtier.connectors.vllm.identity", reason="the connector is not installed")

from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from kvtier.codec import Codec, read_codec  # noqa: E402
from kvtier.errors import ConfigError  # noqa: E402

BF16, FP16 = torch.bfloat16, torch.float16


def attention(head: int, dtype: torch.dtype = BF16, **more: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=head, dtype=dtype, **more)


def window(head: int) -> SlidingWindowSpec:
    return SlidingWindowSpec(block_size=16, num_kv_heads=2, head_size=head, dtype=BF16, sliding_window=64)


def mla(head: int, dtype: torch.dtype = BF16) -> MLAAttentionSpec:
    return MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=head, dtype=dtype)


def state() -> MambaSpec:
    return MambaSpec(block_size=16, shapes=((4, 4),), dtypes=(torch.float32,))


def wish(codec: str, *specs: KVCacheSpec) -> Codec | None:
    """Of an engine with a group for each of these."""
    groups = [KVCacheGroupSpec([f"layer {i}"], spec) for i, spec in enumerate(specs)]
    return identity.wish(codec, SimpleNamespace(kv_cache_groups=groups))


def refusal(codec: str, *specs: KVCacheSpec) -> str:
    with pytest.raises(ConfigError) as caught:
        wish(codec, *specs)
    return str(caught.value)


def test_without_the_setting_nothing_is_wished_whatever_the_layers_are():
    assert wish("", attention(64), state()) is None


@pytest.mark.parametrize(("head", "row"), [(64, 64), (128, 128), (256, 128), (96, 32), (80, 16), (144, 16), (32, 32)])
def test_a_row_is_the_longest_that_heads_are_made_of(head, row):
    assert wish("int8", attention(head)) == Codec("int8", "bf16", row)


@pytest.mark.parametrize(("dtype", "element"), [(BF16, "bf16"), (FP16, "fp16")], ids=["bf16", "fp16"])
@pytest.mark.parametrize("codec", ["int8", "fp8", "int4"])
def test_the_element_is_what_keys_and_values_are_kept_in(codec, dtype, element):
    found = wish(codec, attention(64, dtype))
    assert found == Codec(codec, element, 64)
    assert read_codec(str(found)) == found


def test_a_row_fits_the_heads_of_all_groups_of_a_hybrid_model():
    assert wish("int8", attention(128), window(96)).row == 32
    assert wish("int8", attention(256), window(64)).row == 64


def test_a_row_fits_values_that_are_shorter_than_keys():
    assert wish("int8", attention(192, head_size_v=128)).row == 64


def test_layers_that_vllm_puts_into_one_group_may_have_other_heads():
    layers = {"a": attention(128), "b": attention(64)}
    assert wish("int8", UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs=layers)).row == 64


def test_mla_keeps_a_latent_and_a_position_and_a_row_lies_within_one_of_them():
    assert wish("int8", mla(512 + 64)).row == 64


@pytest.mark.parametrize(
    ("dtype", "named"), [(torch.uint8, "uint8"), (torch.float8_e4m3fn, "float8"), (torch.float32, "float32")],
    ids=["uint8", "fp8", "fp32"],
)  # fmt: skip
def test_other_values_are_refused_with_the_cure(dtype, named):
    said = refusal("int8", attention(64, dtype))
    assert "needs bf16 or fp16 KV" in said and named in said
    assert "--kv-cache-dtype auto and --dtype bfloat16" in said and "take codec away" in said


def test_layers_of_several_kinds_of_values_are_refused():
    assert "torch.bfloat16, torch.float16" in refusal("int8", attention(64), attention(64, FP16))


def test_layers_that_keep_a_state_are_refused():
    assert "MambaSpec" in refusal("int8", attention(64), state())


def test_heads_that_no_row_fits_are_refused():
    assert "heads of a multiple of 16 values" in refusal("int8", attention(72))


@pytest.mark.parametrize("name", ["int9", "exp12", "none", "auto"])
def test_a_name_that_is_no_lossy_codec_is_refused_with_those_that_are(name):
    assert f"codec = '{name}' is none of int8, fp8, int4" in refusal(name, attention(64))
