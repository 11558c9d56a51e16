"""kvtier size: how many bytes of KV a token takes, and so what fits."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from kvtier.block import SLOT_UNIT
from kvtier.codec import LOSSLESS
from kvtier.config import GIB, TIB, format_size
from kvtier.errors import ConfigError
from kvtier.replay.codecs import RAW_SPEED, block_tokens_of, codecs_of
from kvtier.replay.presets import BYTES_OF, MODELS, Model, model_of
from kvtier.usage import examples

PROMPT_TOKENS = 32_768
FILE_COLUMNS = 160  # where there is no terminal to ask


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "size",
        help="how many bytes of KV cache a token of a model takes",
        description="Bytes of KV cache a token, of models by name or by their Hugging Face config.json.",
        epilog=examples(
            "kvtier size",
            "kvtier size ./my-model/config.json --tp 4",
            "kvtier size llama-3-8b --codec exp12",
            exits="0 good; 2 no such model, or wrong usage",
        ),
    )
    parser.add_argument("model", nargs="*", metavar="MODEL", help="a name, a config.json or its folder (all known names)")
    parser.add_argument("--kv-dtype", choices=("auto", *BYTES_OF), default="auto", help="of the cache (the model's own)")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="ranks that share its heads (%(default)d)")
    parser.add_argument(
        "--codec", choices=("none", *LOSSLESS), default="none", help="of blocks on drives and in a remote (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(given: argparse.Namespace) -> None:
    """Prints to stdout. ConfigError when a model is not known or can't be split so."""
    if given.tp < 1:
        raise ConfigError(f"--tp {given.tp}: there is at least one rank")
    models = [model_of(name) for name in given.model or MODELS]
    if not given.model:  # all of them: what can't be split so is left out
        models = [model for model in models if not model.heads % given.tp]
    rows = [counts(model, given.kv_dtype, given.tp) | drive_counts(model, given.kv_dtype, given.codec) for model in models]
    if given.json:
        print(json.dumps({"models": rows}))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns = (
        "model",
        "attention",
        "KV",
        "a token",
        f"a rank of {given.tp}",
        "16 tokens",
        "32k tokens",
        "in 64 GiB",
        "in 1 TiB NVMe",
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 3 else "right", no_wrap=True)
    for row in rows:
        size = row["bytes_per_token"]
        table.add_row(
            row["model"],
            row["attention"],
            row["kv_dtype"],
            format_size(size),
            format_size(row["bytes_per_token_of_rank"]),
            format_size(16 * size),
            format_size(PROMPT_TOKENS * size),
            f"{64 * GIB // size:,} tokens",
            f"{row['tokens_in_1_tib_nvme']:,} tokens",
        )
    console = Console()
    Console(width=console.width if console.is_terminal else FILE_COLUMNS).print(table)
    for row in rows:
        for note in row["notes"]:
            print(f"{row['model']}: {note}")


def counts(model: Model, kv_dtype: str, ranks: int) -> dict[str, Any]:
    """As JSON values."""
    notes = list(model.notes)
    if model.is_latent and ranks > 1:
        notes.append("the latent is the same on every rank: it is needed once, not once a rank")
    elif ranks > model.kv_heads:
        notes.append(f"{model.kv_heads} KV heads on {ranks} ranks: {ranks // model.kv_heads} ranks hold the same head")
    return {
        "model": model.name,
        "attention": _attention(model),
        "layers": model.attention_layers or model.layers,
        "kv_dtype": model.kv if kv_dtype == "auto" else kv_dtype,
        "bytes_per_token": model.kv_bytes(kv_dtype),
        "ranks": ranks,
        "bytes_per_token_of_rank": model.kv_bytes_of_rank(ranks, kv_dtype),
        "notes": notes,
    }


def drive_counts(model: Model, kv_dtype: str, codec: str) -> dict[str, Any]:
    """Of one block on drives, where it gets a place."""
    known, of_token = codecs_of(model.kv if kv_dtype == "auto" else kv_dtype), model.kv_bytes(kv_dtype)
    speed = known.get(codec, RAW_SPEED)
    tokens = block_tokens_of(of_token)
    in_ram = -(-of_token * tokens // SLOT_UNIT) * SLOT_UNIT
    place = round(in_ram / speed.in_places(in_ram).ratio)
    return {
        "codec": speed.name,
        "tokens_per_block": tokens,
        "nvme_bytes_per_block": place,
        "tokens_in_1_tib_nvme": TIB // place * tokens,
    }


def _attention(model: Model) -> str:
    layers = model.attention_layers or model.layers
    if model.is_latent:
        return f"MLA, {layers} x ({model.latent} + {model.rope})"
    kind = "MQA" if model.kv_heads == 1 else "MHA" if model.kv_heads == model.heads else "GQA"
    return f"{kind}, {layers} x 2 x {model.kv_heads} x {model.head_dim}"
