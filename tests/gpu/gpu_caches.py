"""KV caches in device memory as vLLM registers them with an offloading connector, filled with random bytes."""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from kvtier.connectors.vllm.layout import Fragments, Layout

from kvtier.block import SLOT_UNIT

KIB = 1 << 10
BLOCKS = 24


@dataclass(frozen=True)
class Kind:
    """One way in which a model's pages lie."""

    name: str
    layers: int
    tokens_shape: tuple[int, ...]  # of a layer's page
    dtype: str
    padding: int = 0  # bytes after each page
    packed: bool = False  # all layers of a block together


KINDS = (
    Kind("per_layer", 32, (2, 16, 8, 128), "bfloat16"),
    Kind("one_head_of_70b", 80, (2, 16, 1, 128), "bfloat16"),
    Kind("packed", 32, (2, 16, 8, 128), "bfloat16", packed=True),
    Kind("mla", 61, (16, 576), "bfloat16"),
    Kind("mla_fp8", 61, (64, 656), "uint8"),
    Kind("fp8", 32, (2, 16, 8, 128), "float8_e4m3fn"),
    Kind("padded", 8, (2, 16, 8, 120), "bfloat16", padding=4096),
    Kind("odd_bytes", 5, (333,), "uint8"),
)


class Cache:
    """`whole` is all its memory, `layout` what the connector makes of it."""

    def __init__(self, torch: Any, kind: Kind, device: str = "cuda:0") -> None:
        page = int(np.prod(kind.tokens_shape)) * getattr(torch, kind.dtype).itemsize
        stride = kind.layers * page if kind.packed else page + kind.padding
        buffers = 1 if kind.packed else kind.layers
        self.whole = torch.randint(0, 256, (buffers, BLOCKS * stride), dtype=torch.uint8, device=device)
        self._place = (BLOCKS, stride if kind.packed else page), (stride, 1)
        self.pages = self.pages_of(self.whole)
        size = self._place[0][1]
        self.block_bytes = buffers * size
        self.slot_bytes = -(-self.block_bytes // SLOT_UNIT) * SLOT_UNIT
        tensors = [SimpleNamespace(tensor=pages, page_size_bytes=size) for pages in self.pages]
        refs = [SimpleNamespace(tensor_idx=i, page_size_bytes=size) for i in range(buffers)]
        self.layout = Layout.of(SimpleNamespace(tensors=tensors, group_data_refs=[refs]), 1, 0, self.block_bytes)

    def pages_of(self, whole: Any) -> list[Any]:
        """Views [block, byte] of a tensor like `whole`, one a buffer."""
        return [buffer.as_strided(*self._place) for buffer in whole]

    def fragments(self, blocks: list[int], slots: list[int], memory: int) -> Fragments:
        """Where these blocks and slots lie, the first slot at `memory`."""
        addresses = np.uint64(memory) + np.array(slots, np.uint64) * np.uint64(self.slot_bytes)
        return self.layout.fragments(np.array(blocks), [len(blocks)], [0], addresses)


def pick(seed: int, count: int) -> tuple[list[int], list[int]]:
    """Random blocks and slots, in random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(BLOCKS)[:count].tolist(), rng.permutation(BLOCKS)[:count].tolist()


def finished(copier: Any, ticket: int) -> tuple[int, float]:
    """Waits; returns bytes and seconds of that job, the only one."""
    assert copier.wait(ticket, 30.0), "the copy is not over after 30 s"
    [(reported, size, seconds, error)] = copier.poll()
    assert (reported, error) == (ticket, "")
    return size, seconds


def assert_ready(pin: Any) -> None:
    deadline = time.monotonic() + 60
    while not pin.ready:
        assert time.monotonic() < deadline, "registering takes too long"
        time.sleep(0.001)


def stream_of(torch: Any) -> int:
    """The handle of torch's current stream, as the connector passes it to submit()."""
    return torch.cuda.current_stream().cuda_stream
