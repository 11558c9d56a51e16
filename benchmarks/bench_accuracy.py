"""What does a model say differently when its KV has been through a codec? SmolLM2-135M on four real texts.

    python benchmarks/bench_accuracy.py [--json] [--texts N]

Written by the authors of kvtier. The first 1024 tokens' K and V go through kvtier's own native codec, encoded and decoded
in blocks of 128 tokens as an engine lays them out; the next 512 tokens are scored with them.

    kl             mean over those tokens of the distance from the exact distribution to this one, in nats; the bar for
                   int8 is KL_BAR
    top1           how often the likeliest token is the same
    loss_delta     of the text itself, in nats a token; exact_loss beside it
    rmse_k, rmse_v root of the mean square error, of the root mean square of the values, over all layers
    tokens         K as tokens: a row is one token of one head. channels: K transposed, as attention on CPUs keeps it: a
                   row is 64 tokens of one channel. V is as tokens in both

Exact is the same K and V in bf16, as engines keep them, without a codec; arithmetic is float32 in both, so that what is
measured is the codec's doing alone. exp12 is lossless: all of its figures must be 0, and the exit status is 1 if not.

Where kvtier loses: fp8 without a scale and int4 are coarse, and it shows. What this doesn't show: a large model, long
contexts, generated text; figures of a model of 135M parameters are a direction, not a guarantee. No text is in a
language other than English and Python.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import models
import numpy as np
import real_kv
import torch
from bench_copy import machine
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

from kvtier import _native

CACHED, SCORED = 1024, 512  # tokens
ROW = 64  # of a block's values: the head's size
KL_BAR = 5e-4
LAYOUTS = ("tokens", "channels")
CODECS = ("exp12", "int8", "fp8", "int4")
LOSSLESS = "exp12"
ALIKE = ("exp12", "fp8")  # whatever the layout: there are no rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--texts", type=int, default=len(real_kv.texts()), help="how many of the texts")
    options = parser.parse_args()
    outcome = measure(options.texts)
    if options.json:
        print(json.dumps(outcome))
    else:
        show(outcome)
    return 0 if outcome["lossless_is_exact"] else 1


def measure(texts: int) -> dict[str, Any]:
    model, tokenizer = real_kv.load(models.smollm2(models.cache_root()), "float32")
    found = {}
    for name, text in list(real_kv.texts().items())[:texts]:
        print(f"bench_accuracy: {name}", file=sys.stderr)
        found[name] = of_text(model, tokenizer.encode(text)[: CACHED + SCORED + 1])
    exact = [cell for text in found.values() for way, cell in text["codecs"].items() if way == LOSSLESS]
    return {
        **over_texts([text["codecs"] for text in found.values()]),
        "kl_bar_int8": KL_BAR,
        "lossless_is_exact": all(cell["kl"] == cell["rmse_k"] == cell["rmse_v"] == 0 for cell in exact),
        "texts": found,
        "tokens": {"cached": CACHED, "scored": SCORED},
        "machine": machine() | {"torch": torch.__version__},
    }


def over_texts(texts: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means of each codec's figures, its worst KL, and its loss from the least to the most."""
    found: dict[str, Any] = {}
    for way in texts[0]:
        cells = [text[way] for text in texts]
        mean = {key: statistics.fmean(cell[key] for cell in cells) for key in cells[0]}
        losses = [cell["loss_delta"] for cell in cells]
        mean |= {"kl_worst": max(cell["kl"] for cell in cells), "loss_delta_spread": [min(losses), max(losses)]}
        codec, _, layout = way.partition(".")
        if layout:
            found.setdefault(codec, {})[layout] = mean
        else:
            found[codec] = mean
    return found


def of_text(model: Any, ids: Sequence[int]) -> dict[str, Any]:
    assert len(ids) == CACHED + SCORED + 1, len(ids)
    exact = real_kv.caches_of(model, ids[:CACHED]).to(torch.bfloat16)
    expected = distributions(model, exact, ids)
    following = torch.tensor(ids[CACHED + 1 :])
    codecs = {}
    for codec in CODECS:
        for layout in LAYOUTS[:1] if codec in ALIKE else LAYOUTS:
            kept, ratio = through(codec, layout, exact)
            found = distributions(model, kept, ids)
            codecs[codec if codec in ALIKE else f"{codec}.{layout}"] = {
                "ratio": ratio,
                "kl": float((expected.exp() * (expected - found)).sum(-1).mean()),
                "top1": float((expected.argmax(-1) == found.argmax(-1)).double().mean()),
                "loss_delta": loss(found, following) - loss(expected, following),
                "rmse_k": error(exact[:, 0], kept[:, 0]),
                "rmse_v": error(exact[:, 1], kept[:, 1]),
            }
    return {"exact_loss": loss(expected, following), "codecs": codecs}


def distributions(model: Any, kept: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Logarithms of what may follow each of the tokens that are scored."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(kept.float()):
        cache.update(keys[None].clone(), values[None].clone(), number)
    with torch.inference_mode():
        scores = model(torch.tensor([list(ids[CACHED : CACHED + SCORED])]), past_key_values=cache, use_cache=True).logits
    return torch.log_softmax(scores[0].double(), -1)


def loss(found: torch.Tensor, following: torch.Tensor) -> float:
    return float(-found.gather(-1, following[:, None]).mean())


def error(exact: torch.Tensor, kept: torch.Tensor) -> float:
    exact, kept = exact.double(), kept.double()
    return float(((exact - kept) ** 2).mean().sqrt() / (exact**2).mean().sqrt())


def through(codec: str, layout: str, exact: torch.Tensor) -> tuple[torch.Tensor, float]:
    """[layers, K and V, heads, tokens, head size] in bf16, as blocks through the codec and back; and how much smaller
    they were."""
    layers, both, heads, _, size = exact.shape
    blocks = exact.reshape(layers, both, heads, -1, real_kv.BLOCK, size).permute(3, 0, 1, 2, 4, 5).contiguous()
    made = _native.Codec(codec) if codec == LOSSLESS else _native.Codec(codec, "bf16", ROW)
    stored, coded = 0, torch.empty_like(blocks)
    for block, target in zip(blocks, coded):
        keys, values = block[:, 0], block[:, 1]  # [layers, heads, tokens, channels]
        laid_out = torch.stack([keys.mT.reshape(keys.shape) if layout == "channels" else keys, values], 1).contiguous()
        stored += passed(made, laid_out.reshape(-1).view(torch.uint8).numpy())
        keys, target[:, 1] = laid_out[:, 0], laid_out[:, 1]
        target[:, 0] = keys.reshape(layers, heads, size, real_kv.BLOCK).mT if layout == "channels" else keys
    return coded.permute(1, 2, 3, 0, 4, 5).reshape(exact.shape), exact.nbytes / stored


def passed(codec: _native.Codec, block: np.ndarray) -> int:
    """The block through the codec and back, where it lies. Bytes that it had in between."""
    frame = np.empty_like(block)
    done = codec.encode(block, frame)
    assert done is not None
    verdict, _ = _native.decode_frame(frame[: done[0]], block)
    assert verdict == "good", verdict
    return done[0]


def show(outcome: dict[str, Any]) -> None:
    table = Table("text", "codec", "KL to exact", "top-1", "loss", "RMSE of K", "of V", "ratio", title="after 1024 tokens")
    for name, text in outcome["texts"].items():
        table.add_row(name, "exact", "0", "1", f"{text['exact_loss']:.4f}", "0", "0", "1")
        for way, cell in text["codecs"].items():
            table.add_row("", way, f"{cell['kl']:.1e}", f"{cell['top1']:.3f}", f"{cell['loss_delta']:+.4f}",
                          f"{cell['rmse_k']:.4f}", f"{cell['rmse_v']:.4f}", f"{cell['ratio']:.3f}")  # fmt: skip
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    worst = max(outcome["int8"][layout]["kl_worst"] for layout in LAYOUTS)
    print(f"int8: KL at most {worst:.1e} (bar: {KL_BAR:.0e})")


if __name__ == "__main__":
    sys.exit(main())
