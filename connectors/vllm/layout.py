"""Addresses of a block's bytes, in the engine and in a slot. NumPy over whole jobs; no loop over blocks or layers.

One of our blocks is vLLM's offload chunk: `blocks_per_chunk` consecutive KV-cache blocks of one cache group. The layers
of a group lie apart in the engine's memory, one page a block each; in a slot they lie together:

    engine   layer 0 |..| page of block 7 |..| page of block 9 |..        page(layer, block) =
             layer 1 |..| page of block 7 |..| page of block 9 |..          base[layer] + block * stride[layer]

    slot     | rank 0                                   | rank 1 ...      byte(rank, i, layer) = slot * SLOT_UNIT
             | chunk's block 0      | chunk's block 1   |                   + rank * rank_bytes
             | layer 0 | layer 1 |  | layer 0 | layer 1 |                   + i * sum(size) + sum(size[:layer])

Pages are opaque: CPU attention packs K and V of a block in its own way, so only whole pages mean anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvtier.block import SLOT_UNIT

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches


@dataclass(frozen=True)
class Group:
    """One cache group's layers, uint64[layers] each."""

    base: np.ndarray  # address of block 0's page
    stride: np.ndarray  # bytes from one block's page to the next
    size: np.ndarray  # bytes of a page
    offset: np.ndarray  # of the page within one block's part of a slot


@dataclass(frozen=True)
class Places:
    """Where slots lie in this process: numbers below those that the arena has are in it, the ones above in the GPU tier."""

    arena: int  # address
    arena_bytes: int  # whole slot units
    gpu: int = 0  # address; 0 where this worker doesn't map it
    gpu_bytes: int = 0

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Addresses, uint64[n]. ValueError: a slot that lies nowhere."""
        self._check(slots, self.arena_bytes + self.gpu_bytes)
        offset = slots.astype(np.uint64) * np.uint64(SLOT_UNIT)
        in_arena = offset + np.uint64(self.arena)
        if not self.gpu:
            return in_arena
        return np.where(offset < self.arena_bytes, in_arena, offset - np.uint64(self.arena_bytes) + np.uint64(self.gpu))

    def of_arena(self, slots: np.ndarray) -> np.ndarray:
        """The same for slots to be written to: nothing is ever saved into the GPU tier."""
        self._check(slots, self.arena_bytes)
        return self.of(slots)

    def reach_gpu(self, slots: np.ndarray) -> bool:
        """Whether any of these slots lies in the GPU tier."""
        return bool(len(slots)) and int(slots.max()) >= self.arena_bytes // SLOT_UNIT

    @staticmethod
    def _check(slots: np.ndarray, size: int) -> None:
        if len(slots) and int(slots.max()) >= size // SLOT_UNIT:
            raise ValueError(f"slot {slots.max()} lies beyond {size} bytes")


@dataclass(frozen=True)
class Fragments:
    """Pieces to copy, uint64[n] each."""

    engine: np.ndarray
    arena: np.ndarray
    size: np.ndarray


class Layout:
    def __init__(self, groups: Sequence[Group], blocks_per_chunk: int, rank: int, rank_bytes: int) -> None:
        """`rank_bytes`: what one rank may use of a slot. ValueError when a chunk needs more."""
        self.groups = tuple(groups)
        self._blocks_per_chunk = blocks_per_chunk
        self._rank_offset = rank * rank_bytes
        needed = max(int(group.size.sum()) for group in groups) * blocks_per_chunk
        if needed > rank_bytes:
            raise ValueError(f"a block of this rank has {needed} bytes, its part of a slot {rank_bytes}")

    @classmethod
    def of(cls, caches: "CanonicalKVCaches", blocks_per_chunk: int, rank: int, rank_bytes: int) -> "Layout":
        groups = []
        for refs in caches.group_data_refs:
            tensors = [caches.tensors[ref.tensor_idx].tensor for ref in refs]
            size = np.array([ref.page_size_bytes for ref in refs], dtype=np.uint64)
            groups.append(
                Group(
                    base=np.array([t.data_ptr() for t in tensors], dtype=np.uint64),
                    stride=np.array([t.stride(0) * t.element_size() for t in tensors], dtype=np.uint64),
                    size=size,
                    offset=np.cumsum(size) - size,
                )
            )
        return cls(groups, blocks_per_chunk, rank, rank_bytes)

    @property
    def page_bytes(self) -> int:
        """Of the smallest page."""
        return min(int(group.size.min()) for group in self.groups)

    def fragments(
        self,
        block_ids: np.ndarray,
        group_sizes: Sequence[int],
        block_indices: Sequence[int],
        slots: np.ndarray,
    ) -> Fragments:
        """`block_ids`: the engine's blocks, group after group, `group_sizes[g]` of each, in order from the request's
        block number `block_indices[g]` on. `slots`: addresses of the chunks that these blocks lie in, group after group."""
        engine, arena, sizes = [], [], []
        first_block = first_slot = 0
        for group, count, index in zip(self.groups, group_sizes, block_indices):
            if not count:
                continue
            # The first block may lie in the middle of its chunk.
            place = index % self._blocks_per_chunk + np.arange(count)
            chunk, inside = np.divmod(place, self._blocks_per_chunk)
            blocks = block_ids[first_block : first_block + count].astype(np.uint64)[:, None]
            start = slots[first_slot + chunk] + np.uint64(self._rank_offset) + inside.astype(np.uint64) * group.size.sum()
            engine.append((group.base + blocks * group.stride).ravel())
            arena.append((start[:, None] + group.offset).ravel())
            sizes.append(np.tile(group.size, count))
            first_block += count
            first_slot += int(chunk[-1]) + 1
        assert first_block == len(block_ids) and first_slot == len(slots), (first_block, first_slot, len(slots))
        if not engine:
            none = np.empty(0, np.uint64)
            return Fragments(none, none, none)
        return Fragments(np.concatenate(engine), np.concatenate(arena), np.concatenate(sizes))
