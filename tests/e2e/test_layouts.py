"""Where a block's bytes lie in the engine and in a slot, for the layouts that vLLM really makes: its own code lays out the
cache, views it and describes it to the worker. A GPU's layouts differ from a CPU's in strides only, so no GPU is needed.
"""

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kvtier.connectors.vllm.layout import Layout, Places
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import OffloadingConnectorWorker
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheLayout,
    KVCacheSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    SlidingWindowSpec,
    create_kv_cache_views,
)

from kvtier.block import SLOT_UNIT

BLOCK = 16  # tokens
LAYERS, BLOCKS = 3, 24
SLOT = 4  # units of one slot in these tests
MIB = 1 << 20

LLAMA = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
FP8 = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.uint8)
MLA = MLAAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=144, dtype=torch.bfloat16)
WINDOW = SlidingWindowSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.bfloat16, sliding_window=64)


class Engine:
    """A KV cache of random bytes as vLLM lays it out, and our layout of it."""

    def __init__(
        self, layout: KVCacheLayout, specs: Sequence[KVCacheSpec], chunk: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        """One cache group a spec, each of LAYERS layers, overlaid as vLLM overlays groups."""
        page = specs[0].page_size_bytes
        assert all(spec.page_size_bytes == page for spec in specs)
        packed = layout.is_block_outermost
        size = LAYERS * BLOCKS * page
        strides = (page, LAYERS * page) if packed else (BLOCKS * page, page)
        self.raw = torch.from_numpy(np.random.default_rng(1).integers(-128, 128, size, dtype=np.int8))
        self.page, self.layer_stride, self.block_stride = page, *strides
        groups, tensors, views = [], [], {}
        for number, spec in enumerate(specs):
            names = [f"{number}.{layer}" for layer in range(LAYERS)]
            tensors.append(KVCacheTensor(size=size, layers=names, layer_stride=strides[0], block_stride=strides[1]))
            views.update(zip(names, create_kv_cache_views(self.raw, spec, BLOCKS, layout, tensors[-1]), strict=True))
            groups.append(KVCacheGroupSpec(names, spec))
        self.caches = described(KVCacheConfig(BLOCKS, tensors, groups), views)
        rank_bytes = LAYERS * page * chunk
        self.rank_offset = rank * rank_bytes
        assert rank_bytes * ranks <= SLOT * SLOT_UNIT
        self.layout = Layout.of(self.caches, chunk, rank, rank_bytes)

    def block(self, number: int) -> bytes:
        """All its layers' pages, one after the other."""
        starts = [layer * self.layer_stride + number * self.block_stride for layer in range(LAYERS)]
        return b"".join(self.raw[start : start + self.page].numpy().tobytes() for start in starts)

    def erase(self) -> bytes:
        """All zeros from now on; what it was."""
        before = self.raw.numpy().tobytes()
        self.raw.zero_()
        return before


def described(config: KVCacheConfig, views: dict[str, torch.Tensor]):
    """The CanonicalKVCaches that vLLM's connector makes of an engine's cache."""
    given = []
    parallel = SimpleNamespace(tensor_parallel_size=1, prefill_context_parallel_size=1, world_size=2)  # no mappings
    spec = SimpleNamespace(
        replicated_layout=False,
        config=SimpleNamespace(canonical_layout=False, parallel=SimpleNamespace(rank=0)),
        get_worker=lambda caches: given.append(caches),
    )
    worker = OffloadingConnectorWorker(spec, SimpleNamespace(parallel_config=parallel), config)
    worker.register_kv_caches(views)
    return given[0]


class Arena:
    def __init__(self, slots: int = 8) -> None:
        self.bytes = np.zeros(slots * SLOT * SLOT_UNIT, np.uint8)
        self.places = Places(self.bytes.ctypes.data, len(self.bytes))

    def at(self, slot: int, offset: int, size: int) -> bytes:
        start = slot * SLOT_UNIT + offset
        return self.bytes[start : start + size].tobytes()


def save(engine: Engine, arena: Arena, blocks: list[int], slots: list[int], sizes=None, indices=(0,)) -> int:
    """As the copier would. Returns how many copies that were, adjacent ones merged."""
    pieces = pieces_of(engine, arena, blocks, slots, sizes, indices)
    for source, target, size in zip(pieces.engine, pieces.arena, pieces.size, strict=True):
        ctypes.memmove(int(target), int(source), int(size))
    return merged(pieces.engine, pieces.arena, pieces.size)


def load(engine: Engine, arena: Arena, blocks: list[int], slots: list[int], sizes=None, indices=(0,)) -> None:
    pieces = pieces_of(engine, arena, blocks, slots, sizes, indices)
    for source, target, size in zip(pieces.arena, pieces.engine, pieces.size, strict=True):
        ctypes.memmove(int(target), int(source), int(size))


def pieces_of(engine: Engine, arena: Arena, blocks, slots, sizes, indices):
    starts = arena.places.of(np.array(slots, np.uint32))
    return engine.layout.fragments(np.array(blocks, np.int32), sizes or [len(blocks)], indices, starts)


def merged(source: np.ndarray, target: np.ndarray, size: np.ndarray) -> int:
    follows = (source[:-1] + size[:-1] == source[1:]) & (target[:-1] + size[:-1] == target[1:])
    return len(size) - int(follows.sum())


@pytest.fixture
def arena() -> Arena:
    return Arena()


@pytest.mark.parametrize("spec", [LLAMA, FP8, MLA], ids=["llama", "fp8", "mla"])
@pytest.mark.parametrize("layout", [KVCacheLayout.LBHNC, KVCacheLayout.LBNHC, KVCacheLayout.BLHNC, KVCacheLayout.BLNHC])
def test_a_slot_holds_the_whole_block_layer_after_layer_and_gives_it_back(arena, layout, spec):
    engine = Engine(layout, [spec])
    save(engine, arena, [5, 20, 6], [0, 3 * SLOT, SLOT])
    whole = LAYERS * engine.page
    for block, slot in ((5, 0), (20, 3 * SLOT), (6, SLOT)):
        assert arena.at(slot, 0, whole) == engine.block(block)
        assert not any(arena.at(slot, whole, SLOT * SLOT_UNIT - whole))
    wanted = [engine.block(block) for block in (5, 20, 6)]
    engine.erase()
    load(engine, arena, [9, 0, 23], [0, 3 * SLOT, SLOT])
    assert [engine.block(block) for block in (9, 0, 23)] == wanted
    assert not any(any(engine.block(block)) for block in range(BLOCKS) if block not in (9, 0, 23))


def test_pages_of_layers_are_one_piece_each_and_a_packed_block_is_one(arena):
    blocks, slots = [4, 9], [0, SLOT]
    assert save(Engine(KVCacheLayout.LBHNC, [LLAMA]), arena, blocks, slots) == 2 * LAYERS
    assert save(Engine(KVCacheLayout.BLHNC, [LLAMA]), arena, blocks, slots) == 2


def test_blocks_that_follow_each_other_in_a_chunk_are_one_piece_when_packed(arena):
    engine = Engine(KVCacheLayout.BLHNC, [LLAMA], chunk=4)
    assert save(engine, arena, [4, 5, 6, 7], [0]) == 1
    assert arena.at(0, 0, 4 * LAYERS * engine.page) == b"".join(map(engine.block, (4, 5, 6, 7)))
    assert save(engine, arena, [4, 5, 7, 6], [0]) == 3


@pytest.mark.parametrize("layout", [KVCacheLayout.LBHNC, KVCacheLayout.BLHNC])
def test_a_job_may_begin_and_end_within_a_chunk(arena, layout):
    engine = Engine(layout, [LLAMA], chunk=4)
    save(engine, arena, [1, 2, 3, 4, 5, 6, 7, 8], [0, SLOT])
    wanted = {block: engine.block(block) for block in range(BLOCKS)}
    engine.erase()
    load(engine, arena, [13, 14, 15], [0, SLOT], indices=(2,))  # blocks 2, 3 of the first chunk, 0 of the second
    assert [engine.block(block) for block in (13, 14, 15)] == [wanted[3], wanted[4], wanted[5]]


def test_groups_that_overlay_each_other_have_slots_of_their_own(arena):
    engine = Engine(KVCacheLayout.LBHNC, [LLAMA, WINDOW])
    save(engine, arena, [2, 3, 11], [0, SLOT, 2 * SLOT], sizes=[2, 1], indices=(0, 7))
    assert [arena.at(i * SLOT, 0, LAYERS * engine.page) for i in range(3)] == [engine.block(b) for b in (2, 3, 11)]


def test_each_rank_has_its_part_of_a_slot(arena):
    for rank in (0, 1):
        engine = Engine(KVCacheLayout.LBHNC, [MLA], rank=rank, ranks=2)
        engine.raw += rank
        save(engine, arena, [8], [SLOT])
        assert arena.at(SLOT, engine.rank_offset, LAYERS * engine.page) == engine.block(8)
    assert engine.rank_offset == LAYERS * engine.page


def test_the_smallest_page_is_what_copies_are_measured_with():
    assert Engine(KVCacheLayout.LBHNC, [LLAMA]).layout.page_bytes == LLAMA.page_size_bytes == 4096
    assert Engine(KVCacheLayout.BLHNC, [LLAMA]).layout.page_bytes == LAYERS * LLAMA.page_size_bytes


def test_slots_above_the_arena_are_in_the_gpu_tier():
    places = Places(arena=7 * MIB, arena_bytes=2 * MIB, gpu=100 * MIB, gpu_bytes=4 * MIB)
    slots = np.array([0, 31, 32, 95], np.uint32)
    top = 7 * MIB + 31 * SLOT_UNIT
    assert places.of(slots).tolist() == [7 * MIB, top, 100 * MIB, 100 * MIB + 63 * SLOT_UNIT]
    assert places.of(slots).dtype == np.uint64
    assert (places.reach_gpu(slots), places.reach_gpu(slots[:2]), places.reach_gpu(slots[:0])) == (True, False, False)


def test_the_gpu_tier_may_lie_below_the_arena():
    places = Places(arena=1 << 46, arena_bytes=2 * MIB, gpu=2 * MIB, gpu_bytes=2 * MIB)
    assert places.of(np.array([33, 1], np.uint32)).tolist() == [2 * MIB + SLOT_UNIT, (1 << 46) + SLOT_UNIT]


def test_a_slot_that_lies_nowhere_is_refused_and_nothing_is_saved_into_the_gpu_tier():
    places = Places(arena=MIB, arena_bytes=2 * MIB, gpu=8 * MIB, gpu_bytes=2 * MIB)
    with pytest.raises(ValueError, match="slot 64 lies beyond"):
        places.of(np.array([64], np.uint32))
    with pytest.raises(ValueError, match="slot 32 lies beyond"):
        places.of_arena(np.array([3, 32], np.uint32))
    with pytest.raises(ValueError, match="slot 32 lies beyond"):
        Places(MIB, 2 * MIB).of(np.array([32], np.uint32))
