"""The facts that make a namespace: everything that changes the bytes of a block and is not in vLLM's block hash.

The hash covers token ids, cache_salt, LoRA name and path, multimodal content and prompt embeddings. It does not cover
the model, its weights, dtypes, rope, layout or ranks. Too many facts cost a miss, one too few serves wrong bytes: in
doubt a fact is in.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm
from vllm.platforms import current_platform

from kvtier.codec import LOSSY, ROWS, Codec
from kvtier.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec

FORMAT = 1  # of the bytes in a slot; see layout.py
HASHES = ("sha256_cbor", "sha256")  # others can be forged or differ between processes
SAMPLE_BYTES = 64 * 1024
SAMPLES = 64  # of each weights file
ELEMENTS = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}  # that a lossy codec takes
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".tensors")


def require_hash(vllm_config: "VllmConfig") -> None:
    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    if algorithm not in HASHES:
        raise ConfigError(
            f"kvtier needs prefix hashes that can't be forged and are equal in every process; this engine uses "
            f"{algorithm!r}. Start it with --prefix-caching-hash-algo sha256_cbor (or sha256)"
        )


def wish(codec: str, kv_cache_config: "KVCacheConfig") -> Codec | None:
    """What blocks may go through below RAM, as the setting of this name has it; None: nothing that loses precision.

    A codec sees rows of values and knows no layers: what shares a scale lies in a row, which must be within one head.
    ConfigError: blocks have other values than such a codec takes.
    """
    if not codec:
        return None
    if codec not in LOSSY:
        raise ConfigError(f"kvtier: codec = {codec!r} is none of {', '.join(LOSSY)}; what loses nothing needs no setting")
    specs = [spec for group in kv_cache_config.kv_cache_groups for spec in _layers(group.kv_cache_spec)]
    if odd := sorted({type(spec).__name__ for spec in specs if not hasattr(spec, "head_size")}):
        raise ConfigError(
            f"kvtier: codec = {codec!r} is for attention layers alone, and this model has {', '.join(odd)}, states that "
            "would carry every error on; take codec away"
        )
    kinds = sorted({str(spec.dtype) for spec in specs})
    if len(kinds) > 1 or kinds[0] not in ELEMENTS:
        raise ConfigError(
            f"kvtier: codec = {codec!r} needs bf16 or fp16 KV, and this engine's is {', '.join(kinds)}; start it with "
            "--kv-cache-dtype auto and --dtype bfloat16 (or float16), or take codec away"
        )
    widths = math.gcd(*(size for spec in specs for size in (spec.head_size, spec.head_size_v) if size))
    rows = [row for row in ROWS if widths % row == 0]
    if not rows:
        raise ConfigError(f"kvtier: codec = {codec!r} needs heads of a multiple of {min(ROWS)} values; take codec away")
    return Codec(codec, ELEMENTS[kinds[0]], max(rows))


def _layers(spec: "KVCacheSpec") -> list[Any]:
    """One for each kind of layer in a group."""
    return list(getattr(spec, "kv_cache_specs", {"": spec}).values())


def facts(
    vllm_config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    blocks_per_chunk: int,
    weights_id: str,
    wished: Codec | None = None,
) -> dict:
    """JSON values. Two engines share blocks exactly when all of them are equal."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    hf = {k: v for k, v in model.hf_config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    spec = vllm_config.speculative_config
    made = {} if wished is None else {"codec": str(wished)}  # or else namespaces of before this was known are others
    return made | {
        "format": FORMAT,
        "vllm": vllm.__version__,
        "weights": weights_id or weights_digest(vllm_config),
        "hf_config": _plain(hf),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "max_model_len": model.max_model_len,  # some ropes scale with it
        "kv_dtype": str(cache.cache_dtype),
        "kv_layout": str(getattr(cache, "kv_cache_layout", None)),
        "hash": [str(cache.prefix_caching_hash_algo), os.environ.get("PYTHONHASHSEED", "")],
        "groups": [
            [_plain(repr(group.kv_cache_spec)), list(group.layer_names)] for group in kv_cache_config.kv_cache_groups
        ],
        "blocks_per_chunk": blocks_per_chunk,
        "ranks": [
            parallel.tensor_parallel_size,
            parallel.pipeline_parallel_size,
            getattr(parallel, "decode_context_parallel_size", 1),
            getattr(parallel, "prefill_context_parallel_size", 1),
        ],
        "lora": vllm_config.lora_config is not None,
        "speculative": str(getattr(spec, "model", None)) if spec is not None else "",
        "platform": [current_platform.device_type, _instruction_set()],
    }


def weights_digest(vllm_config: "VllmConfig") -> str:
    """Names the weights: the commit of a hub snapshot, or size, time and samples of each local file.

    Reading all of a large model would take longer than the engine's start. Samples find another training run; the time
    of change finds an edit in place. A copy elsewhere counts as other weights unless `weights_id` names both.
    """
    model = vllm_config.model_config
    load_format = str(vllm_config.load_config.load_format)
    if load_format == "dummy":
        return f"dummy, seed {model.seed}"
    folder = Path(model.model)
    if not folder.exists():
        commit = _snapshot_commit(model.model, model.revision)
        return f"hub {model.model} {commit or model.revision}"
    files = [folder] if folder.is_file() else sorted(f for f in folder.iterdir() if f.suffix in WEIGHTS)
    return files_digest(files, load_format)


def lora_digest(path: str) -> bytes:
    """16 bytes naming the content of an adapter, which vLLM's block hash knows by name and path only."""
    folder = Path(path)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return bytes.fromhex(files_digest([f for f in files if f.is_file()], path))[:16]


def files_digest(files: list[Path], more: str) -> str:
    digest = hashlib.sha256(more.encode())
    for file in files:
        state = file.stat()
        digest.update(f"{file.name}:{state.st_size}:{state.st_mtime_ns};".encode())
        with file.open("rb") as handle:
            for i in range(SAMPLES):
                handle.seek(max(0, state.st_size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _snapshot_commit(model: str, revision: str | None) -> str:
    """The commit that a hub name stands for in the local cache, "" when it isn't there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else ""


def _instruction_set() -> str:
    """CPU attention packs keys for the instruction set it finds."""
    if current_platform.device_type != "cpu":
        return str(current_platform.get_device_name())
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _plain(value: Any) -> Any:
    """`value` made of JSON values only."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
