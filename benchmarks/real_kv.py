"""K and V of SmolLM2-135M on real text, as an engine lays blocks out. Runs inside the engine's environment.

The texts are on every machine that this runs on: prose and code out of the interpreter's own library, and kvtier's
license. They differ a little from one Python to the next, and so do the figures in the last digit.
"""

import ast
import inspect
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from models import fastest_dtype

if TYPE_CHECKING:
    import torch

BLOCK = 128  # tokens
LICENSE = Path(__file__).parents[1] / "LICENSE"


def texts() -> dict[str, str]:
    """Each of more than 1536 tokens; a name for people, and the text."""
    prose = pydoc_data.topics.topics
    return {
        "prose (the language's reference)": "\n".join(prose[name] for name in ("import", "exceptions", "with", "objects")),
        "law (Apache License 2.0)": " ".join(LICENSE.read_text().split()),
        "code (inspect.py)": inspect.getsource(inspect),
        "docstrings (ast.py and its own)": "\n\n".join(filter(None, map(inspect.getdoc, _documented()))),
    }


def _documented() -> Sequence[Any]:
    found = [thing for module in (ast, inspect) for thing in vars(module).values() if inspect.isfunction(thing)]
    return sorted(set(found), key=lambda thing: (thing.__module__, thing.__name__))


def load(folder: Path, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def caches_of(model: Any, ids: Sequence[int]) -> "torch.Tensor":
    """What attention keeps of these tokens: [layers, K and V, heads, tokens, head size]."""
    import torch

    with torch.inference_mode():
        cache = model.model(torch.tensor([list(ids)]), use_cache=True).past_key_values
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


def blocks(folder: Path, count: int) -> np.ndarray:
    """uint8[count, bytes of a block]: bf16, a page a layer, in it K and then V, each [tokens, heads, head size]. From all
    texts, as many of each."""
    import torch

    model, tokenizer = load(folder, fastest_dtype())
    made = texts().values()
    each = -(-count // len(made))
    found = []
    for text in made:
        kept = caches_of(model, tokenizer.encode(text)[: each * BLOCK]).to(torch.bfloat16)
        layers, both, heads, tokens, size = kept.shape
        paged = kept.reshape(layers, both, heads, tokens // BLOCK, BLOCK, size).permute(3, 0, 1, 4, 2, 5)
        found.append(paged.contiguous().view(torch.uint8).reshape(tokens // BLOCK, -1).numpy())
    return np.concatenate(found)[:count]
