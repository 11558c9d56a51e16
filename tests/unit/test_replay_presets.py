"""Bytes of KV a token, and the priors of how fast it is computed."""

import json

import pytest

from kvtier.errors import ConfigError
from kvtier.replay.presets import gpu_of, model_of, speed_of

KIB = 1024
LLAMA = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK = {
    "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128,
    "intermediate_size": 18432, "vocab_size": 129280, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 1536, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3"},
}  # fmt: skip


def model_with(folder, **facts):
    (folder / "config.json").write_text(json.dumps({**LLAMA, **facts}))
    return model_of(str(folder))


@pytest.mark.parametrize(
    ("name", "kib"),
    [("llama-3-8b", 128), ("llama-3-70b", 320), ("llama-3-405b", 504), ("llama-2-7b", 512), ("Falcon-7B", 8)],
)
def test_a_token_takes_what_its_layers_and_heads_say(name, kib):
    assert model_of(name).kv_bytes() == kib * KIB


def test_a_latent_is_there_once_and_the_same_on_every_rank():
    model = model_of("deepseek-v3")
    assert model.kv_bytes() == 61 * (512 + 64) * 2 == round(68.625 * KIB)
    assert model.kv_bytes_of_rank(8) == model.kv_bytes()


def test_heads_are_shared_by_ranks_until_there_is_one_each():
    model = model_of("llama-3-8b")
    assert [model.kv_bytes_of_rank(ranks) // KIB for ranks in (1, 2, 8, 16)] == [128, 64, 16, 16]
    with pytest.raises(ConfigError, match="32 heads, which can't be split over 3"):
        model.kv_bytes_of_rank(3)


def test_a_quantised_cache_takes_half():
    assert model_of("llama-3-8b").kv_bytes("fp8") == 64 * KIB
    assert model_of("llama-3-8b").kv_bytes("fp32") == 256 * KIB


@pytest.mark.parametrize(
    ("facts", "kib"),
    [
        ({}, 128),
        ({"num_key_value_heads": None}, 512),  # MHA
        ({"num_key_value_heads": None, "multi_query": True}, 16),
        ({"head_dim": 64}, 64),
        ({"torch_dtype": "float32"}, 256),
        ({"quantization_config": {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}}, 64),
        ({"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}, 32),
        ({"text_config": LLAMA, "hidden_size": None}, 128),
    ],
)
def test_a_config_says_it_too(tmp_path, facts, kib):
    assert model_with(tmp_path, **facts).kv_bytes() == kib * KIB


def test_a_config_of_the_preset_is_the_preset(tmp_path):
    for name, facts in (("llama-3-8b", LLAMA), ("deepseek-v3", {**LLAMA, **DEEPSEEK})):
        ours, preset = model_with(tmp_path, **facts), model_of(name)
        assert ours.parameters(used=False) == preset.parameters(used=False)
        assert ours.parameters(used=True) == preset.parameters(used=True)
        assert ours.kv_bytes() == preset.kv_bytes() and ours.pair_operations == preset.pair_operations


def test_layers_with_a_window_are_counted_whole_and_it_is_said(tmp_path):
    model = model_with(tmp_path, layer_types=["sliding_attention", "full_attention"] * 16)
    assert model.kv_bytes() == 128 * KIB and "window" in model.notes[0]


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("no json", "must be the config.json"),
        ("[1]", "is no JSON object"),
        ("{}", "lacks 'hidden_size'"),
        (json.dumps({**LLAMA, "num_attention_heads": "many"}), "must be the config.json of a decoder-only"),
        (json.dumps({**LLAMA, "num_attention_heads": 0}), "must be the config.json of a decoder-only"),
        (json.dumps({**LLAMA, "num_hidden_layers": -1}), "a size below 1"),
    ],
)
def test_a_config_that_is_none_is_told(tmp_path, text, cure):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=cure):
        model_of(str(tmp_path))


def test_what_is_not_known_is_told_with_what_is():
    with pytest.raises(ConfigError, match="its folder, or one of llama-3-8b"):
        model_of("llama-9")
    with pytest.raises(ConfigError, match="there is h100"):
        gpu_of("tpu")


@pytest.mark.parametrize(
    ("model", "gpu", "gpus", "us_a_token", "ns_a_pair"),
    [
        ("llama-3-8b", "h100", 1, 25.7, 0.589),
        ("llama-3-8b", "rtx4090", 1, 141.0, 3.178),
        ("llama-3-70b", "h100", 4, 69.2, 0.828),
        ("llama-3-405b", "h100", 8, 145.0, 1.305),
        ("qwen3-30b-a3b", "h100", 1, 22.1, 0.884),
        ("deepseek-v3", "h200", 8, 45.5, 1.053),
    ],
)
def test_priors_of_how_fast_a_prompt_is_computed(model, gpu, gpus, us_a_token, ns_a_pair):
    speed = speed_of(model_of(model), gpu_of(gpu))
    assert speed.gpus == gpus
    assert speed.prefill.is_calibrated
    assert speed.prefill.token_s * 1e6 == pytest.approx(us_a_token, rel=0.1)
    assert speed.prefill.pair_s * 1e9 == pytest.approx(ns_a_pair, rel=0.3)


def test_an_engines_own_cache_is_what_its_gpus_have_left():
    speed = speed_of(model_of("llama-3-8b"), gpu_of("h100"))
    assert 40e9 < speed.cache_bytes < 60e9 and speed.host_bytes_per_s == 55e9
    # Four GPUs carry four parts at once; of a latent each carries all.
    assert speed_of(model_of("llama-3-70b"), gpu_of("h100")).host_bytes_per_s == 220e9
    assert speed_of(model_of("deepseek-v3"), gpu_of("h200")).host_bytes_per_s == 55e9


def test_a_model_that_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="raise --tp or take another --gpu"):
        speed_of(model_of("llama-3-70b"), gpu_of("h100"), gpus=1)
