"""Models and GPUs: how many bytes a token's KV takes, and how long a prompt takes to compute.

A token's KV, in values, all layers:    2 * kv_heads * head_dim * layers         MHA, GQA, MQA
                                        (kv_lora_rank + rope dims) * layers      MLA: one latent, the same on every rank

A prompt's computation, from what the GPUs do at their best and the share of it that is reached in practice (priors; a
running kvtierd learns its own): 2 operations a parameter and token, attention with every pair of tokens.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvtier.errors import ConfigError
from kvtier.estimators import CALIBRATED_STEPS, Prefill

BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # Hugging Face's names

TP_EFFICIENCY = 0.91  # what several GPUs lose by talking to each other
FP8_EFFICIENCY = 0.7  # of what bf16 reaches of its peak
MOE_EFFICIENCY = 0.25  # share of the peak: small matrices
MEMORY_SHARE = 0.9  # of a GPU, for the engine
WORKSPACE_BYTES = 4 * 1024**3  # a GPU: activations, graphs
WEIGHTS_SHARE_MAX = 0.8  # of the memory; with more an engine has more GPUs


@dataclass(frozen=True)
class Gpu:
    name: str
    bf16_tflops: float
    fp8_tflops: float  # 0: it has none
    memory_gb: float
    host_gbs: float  # to and from RAM
    linear: float  # share of the peak reached by matrices with weights
    attention: float  # and by attention


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 989, 1979, 80, 55, 0.55, 0.45),
        Gpu("h100-pcie", 756, 1513, 80, 55, 0.50, 0.40),
        Gpu("h200", 989, 1979, 141, 55, 0.55, 0.45),
        Gpu("gh200", 989, 1979, 96, 350, 0.50, 0.40),
        Gpu("b200", 2250, 4500, 180, 55, 0.40, 0.35),
        Gpu("a100", 312, 0, 80, 25, 0.60, 0.50),
        Gpu("l40s", 362, 733, 48, 25, 0.50, 0.50),
        Gpu("rtx4090", 165, 330, 24, 25, 0.60, 0.50),
    )
}


@dataclass(frozen=True)
class Model:
    """As its config.json describes it."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of a dense layer
    vocabulary: int
    latent: int = 0  # MLA: kv_lora_rank. The dims of a head below belong to it
    rope: int = 0
    nope: int = 0
    value_dim: int = 0
    query_latent: int = 0  # q_lora_rank
    experts: int = 0  # of a layer; 0: dense
    experts_used: int = 0  # by a token, the shared ones too
    expert_intermediate: int = 0
    dense_layers: int = 0  # of a model with experts
    attention_layers: int = 0  # that keep KV; 0: all
    weights: str = "bf16"
    kv: str = "bf16"
    linear: float = 0.0  # share of the peak, where it is known to be another
    notes: tuple[str, ...] = field(default=())

    @property
    def is_latent(self) -> bool:
        return self.latent > 0

    def kv_bytes(self, dtype: str = "auto") -> int:
        """Of one token: all layers, and all heads once."""
        values = self.latent + self.rope if self.is_latent else 2 * self.kv_heads * self.head_dim
        return values * (self.attention_layers or self.layers) * BYTES_OF[self.kv if dtype == "auto" else dtype]

    def kv_bytes_of_rank(self, ranks: int, dtype: str = "auto") -> int:
        """What one of so many tensor-parallel ranks holds of a token: the whole latent, or its part of the heads, but
        never less than one head."""
        if self.heads % ranks:
            raise ConfigError(f"{self.name} has {self.heads} heads, which can't be split over {ranks} ranks")
        return self.kv_bytes(dtype) if self.is_latent else self.kv_bytes(dtype) // min(self.kv_heads, ranks)

    def parameters(self, *, used: bool) -> int:
        """All; or those that a prompt's token is multiplied with, which leaves the embeddings out."""
        dense = 3 * self.hidden * self.intermediate
        expert = 3 * self.hidden * self.expert_intermediate
        with_experts = (self.layers - self.dense_layers) if self.experts else 0
        layers = self.layers * self._attention_parameters() + (self.layers - with_experts) * dense
        layers += with_experts * expert * (self.experts_used if used else self.experts)
        return layers if used else layers + 2 * self.vocabulary * self.hidden

    def _attention_parameters(self) -> int:
        if not self.is_latent:
            return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        query_dim = self.heads * (self.nope + self.rope)
        query = self.query_latent * (self.hidden + query_dim) if self.query_latent else self.hidden * query_dim
        keys_values = self.hidden * (self.latent + self.rope) + self.latent * self.heads * (self.nope + self.value_dim)
        return query + keys_values + self.heads * self.value_dim * self.hidden

    @property
    def pair_operations(self) -> int:
        """Of attention, for each token and each before it: twice query times key, twice weight times value, halved
        because only what comes before is looked at. Whoever counts pairs as end^2 - start^2 counts each twice."""
        dims = self.nope + self.rope + self.value_dim if self.is_latent else 2 * self.head_dim
        return (self.attention_layers or self.layers) * self.heads * dims


@dataclass(frozen=True)
class EngineSpeed:
    """One engine: a model on so many GPUs."""

    prefill: Prefill
    gpus: int
    host_bytes_per_s: float  # to and from RAM: what all its GPUs' links carry together
    cache_bytes: int  # its own KV cache


def speed_of(model: Model, gpu: Gpu, gpus: int = 0, kv: str = "auto", efficiency: float = 0.0) -> EngineSpeed:
    """`gpus` 0: as few as the weights fit. `efficiency` 0: the GPU's; else the share of the peak that is reached."""
    memory = gpu.memory_gb * 1e9
    weights = model.parameters(used=False) * BYTES_OF[model.weights]
    if not gpus:
        gpus = 1
        while weights > gpus * memory * WEIGHTS_SHARE_MAX and model.heads % (gpus * 2) == 0:
            gpus *= 2
    cache = gpus * (memory * MEMORY_SHARE - WORKSPACE_BYTES) - weights
    if cache <= 0:
        raise ConfigError(
            f"{model.name}, {weights / 1e9:.0f} GB of weights, doesn't fit {gpus} x {gpu.name} of {gpu.memory_gb:g} GB; "
            "raise --tp or take another --gpu"
        )
    is_fp8 = model.weights == "fp8" and gpu.fp8_tflops > 0
    peak = (gpu.fp8_tflops if is_fp8 else gpu.bf16_tflops) * 1e12 * gpus
    together = TP_EFFICIENCY if gpus > 1 else 1.0
    usual = MOE_EFFICIENCY if model.experts else gpu.linear * together * (FP8_EFFICIENCY if is_fp8 else 1.0)
    linear = efficiency or model.linear or usual
    of_rank = model.kv_bytes_of_rank(gpus, kv)
    prefill = Prefill(
        step_s=0.0,
        token_s=2 * model.parameters(used=True) / (peak * linear),
        pair_s=model.pair_operations / (gpu.bf16_tflops * 1e12 * gpus * (efficiency or gpu.attention * together)),
        chunk_tokens=16384 if gpu.memory_gb >= 160 else 8192 if gpu.memory_gb >= 80 and gpu.fp8_tflops else 2048,
        steps=CALIBRATED_STEPS,
    )
    ranks = model.kv_bytes(kv) / of_rank  # that share a token's KV; each of the others holds it once more
    return EngineSpeed(prefill, gpus, gpu.host_gbs * 1e9 * ranks, int(cache / gpus * ranks))


# --- which ---------------------------------------------------------------------------------------------------

MODELS = {
    model.name: model
    for model in (
        Model("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256),
        Model("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256),
        Model("llama-3-405b", 126, 16384, 128, 8, 128, 53248, 128256, weights="fp8"),
        Model("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000),
        Model("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768),
        Model("falcon-7b", 32, 4544, 71, 1, 64, 12117, 65024),  # MQA; its two matrices counted as three smaller ones
        Model("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064),
        Model("qwen2.5-72b", 80, 8192, 64, 8, 128, 29568, 152064),
        Model("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936),
        Model("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936),
        Model(
            "qwen3-30b-a3b", 48, 2048, 32, 4, 128, 6144, 151936, experts=128, experts_used=8, expert_intermediate=768
        ),
        Model(
            "deepseek-v3", 61, 7168, 128, 128, 192, 18432, 129280, latent=512, rope=64, nope=128, value_dim=128,
            query_latent=1536, experts=257, experts_used=9, expert_intermediate=2048, dense_layers=3, weights="fp8",
            linear=0.10,
        ),
    )
}  # fmt: skip


def gpu_of(name: str) -> Gpu:
    if name.lower() not in GPUS:
        raise ConfigError(f"no GPU {name!r} is known; there is {', '.join(GPUS)}")
    return GPUS[name.lower()]


def model_of(name: str) -> Model:
    """A preset's name; or the path of a Hugging Face config.json or of the folder that holds it."""
    if name.lower() in MODELS:
        return MODELS[name.lower()]
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise ConfigError(
            f"no model {name!r} is known, and {path} is no file; name a config.json, its folder, or one of "
            f"{', '.join(MODELS)}"
        )
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; it must be the config.json of a Hugging Face model") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{path} is no JSON object; it must be the config.json of a Hugging Face model")
    try:
        return _from_config(path.parent.resolve().name, said)
    except KeyError as error:
        raise ConfigError(f"{path} lacks {error}; it must be the config.json of a decoder-only model") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; it must be the config.json of a decoder-only model") from None


def _from_config(name: str, said: dict[str, Any]) -> Model:
    text = said.get("text_config") or said  # a model that sees too describes its language half apart
    hidden, heads, layers = int(text["hidden_size"]), int(text["num_attention_heads"]), int(text["num_hidden_layers"])
    dense = int(text.get("intermediate_size") or 4 * hidden)
    model = Model(
        name,
        layers,
        hidden,
        heads,
        kv_heads=int(text.get("num_key_value_heads") or (1 if text.get("multi_query") else heads)),
        head_dim=int(text.get("head_dim") or hidden // max(1, heads)),
        intermediate=dense,
        vocabulary=int(text.get("vocab_size") or 0),
    )
    weights, kv = _dtypes(said, text)
    model = replace(model, weights=weights, kv=kv)
    if min(model.layers, model.hidden, model.heads, model.kv_heads, model.head_dim) < 1:
        raise ValueError("a size below 1")
    return _with_layers(_with_experts(_with_latent(model, text), text), text)


def _dtypes(said: dict[str, Any], text: dict[str, Any]) -> tuple[str, str]:
    """Of the weights and of the KV."""
    quantised = said.get("quantization_config") or {}
    dtype = _DTYPES.get(str(text.get("torch_dtype") or text.get("dtype") or said.get("torch_dtype")), "bf16")
    kv_bits = (quantised.get("kv_cache_scheme") or {}).get("num_bits")
    is_fp8 = "fp8" in str(quantised.get("quant_method", "")) or "fp8" in str(quantised.get("fmt", ""))
    return "fp8" if is_fp8 else dtype, "fp8" if kv_bits == 8 else dtype


def _with_latent(model: Model, text: dict[str, Any]) -> Model:
    if not text.get("kv_lora_rank"):
        return model
    return replace(
        model,
        latent=int(text["kv_lora_rank"]),
        rope=int(text["qk_rope_head_dim"]),
        nope=int(text.get("qk_nope_head_dim") or model.head_dim),
        value_dim=int(text.get("v_head_dim") or model.head_dim),
        query_latent=int(text.get("q_lora_rank") or 0),
    )


def _with_experts(model: Model, text: dict[str, Any]) -> Model:
    experts = int(text.get("n_routed_experts") or text.get("num_local_experts") or text.get("num_experts") or 0)
    if not experts:
        return model
    shared = int(text.get("n_shared_experts") or 0)
    return replace(
        model,
        experts=experts + shared,
        experts_used=int(text.get("num_experts_per_tok") or 1) + shared,
        expert_intermediate=int(text.get("moe_intermediate_size") or model.intermediate),
        dense_layers=int(text.get("first_k_dense_replace") or 0),
    )


def _with_layers(model: Model, text: dict[str, Any]) -> Model:
    """Layers that keep a state in place of KV count for nothing; those with a window are counted as if they had none."""
    kinds = text.get("layer_types") or []
    keeping = sum("linear" not in str(kind) and "mamba" not in str(kind) for kind in kinds)
    notes = []
    if kinds and keeping < model.layers:
        notes.append(f"{model.layers - keeping} of {model.layers} layers keep a state of fixed size, not counted here")
    if any("sliding" in str(kind) for kind in kinds):
        notes.append("some layers look back over a window only: prompts longer than that take less than this")
    return replace(model, attention_layers=keeping if kinds else 0, notes=tuple(notes))
