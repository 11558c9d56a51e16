"""The caches that bench_gpu.py copies: shapes of real models, and jobs over their blocks as the connector makes them."""

from dataclasses import dataclass

import numpy as np
from kvtier.connectors.vllm.layout import Group, Layout

KIB = 1 << 10

Job = tuple[np.ndarray, np.ndarray, np.ndarray]  # source, target, size: uint64[n] each


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    page: int  # bytes of one layer's part of a block
    packed: bool = False

    @property
    def block_bytes(self) -> int:
        return self.layers * self.page

    @property
    def fragment(self) -> int:
        return self.block_bytes if self.packed else self.page


SHAPES = (
    Shape("llama-3-8b", 32, 64 * KIB),
    Shape("llama-3-8b_packed", 32, 64 * KIB, packed=True),
    Shape("llama-3-70b_tp8", 80, 8 * KIB),
    Shape("llama-3-70b_tp8_packed", 80, 8 * KIB, packed=True),
)


class Blocks:
    """The first `count` blocks of a cache of this shape, and as many slots."""

    def __init__(self, shape: Shape, cache: int, slots: int, count: int) -> None:
        self.shape, self.count, self._slots = shape, count, slots
        pages = 1 if shape.packed else shape.layers
        order = np.arange(pages, dtype=np.uint64)
        group = Group(
            base=np.uint64(cache) + order * np.uint64(count * shape.fragment),
            stride=np.full(pages, shape.fragment, np.uint64),
            size=np.full(pages, shape.fragment, np.uint64),
            offset=order * np.uint64(shape.fragment),
        )
        self._layout = Layout([group], blocks_per_chunk=1, rank=0, rank_bytes=shape.block_bytes)

    @property
    def bytes(self) -> int:
        return self.count * self.shape.block_bytes

    def jobs(self, rng: np.random.Generator, *, saving: bool, number: int, size: int) -> list[Job]:
        """`number` jobs of `size` blocks. None of the blocks and slots is in two of them."""
        blocks, slots = rng.permutation(self.count), rng.permutation(self.count)
        return [self._job(blocks[i : i + size], slots[i : i + size], saving) for i in range(0, number * size, size)]

    def all(self, rng: np.random.Generator, *, saving: bool) -> Job:
        """One job. Two calls with equal generators pair blocks and slots alike."""
        return self._job(rng.permutation(self.count), rng.permutation(self.count), saving)

    def _job(self, blocks: np.ndarray, slots: np.ndarray, saving: bool) -> Job:
        addresses = np.uint64(self._slots) + slots.astype(np.uint64) * np.uint64(self.shape.block_bytes)
        found = self._layout.fragments(blocks, [len(blocks)], [0], addresses)
        return (found.engine, found.arena, found.size) if saving else (found.arena, found.engine, found.size)
