"""What lets vLLM's own tiers run on a CPU: their copy engine, which only knows GPUs, is replaced by memory copies.

Loaded by vLLM itself, inside the engine's process (spec_module_path); nothing of kvtier is in it. All else is vLLM's:
what is stored and when, the CPU tier and its eviction, the files below it.

A job is copied at once, before the step goes on, by a thread a core: pages of one layer and block, which follow each
other in the CPU tier. On the runner's thread alone it takes twice as long; beside the runner, each page waits for the
interpreter's lock while that thread computes.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

Copy = tuple[int, int, int]  # target, source, bytes


class StandInSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1 and self.config.parallel.world_size == 1, "all that the comparison needs"
        region = SharedOffloadRegion(
            engine_id=self.config.engine_id,
            num_chunks=self.num_chunks,
            rank=0,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        return MemoryCopies(kv_caches, region)


class MemoryCopies(OffloadingWorker):
    def __init__(self, kv_caches: CanonicalKVCaches, region: SharedOffloadRegion) -> None:
        self._groups = kv_caches.group_data_refs
        self._engine = [(held.tensor.data_ptr(), held.page_size_bytes) for held in kv_caches.tensors]
        self._tier = []
        for _, page_bytes in self._engine:
            view = region.create_next_worker_view(page_bytes)
            self._tier.append((view.data_ptr(), view.stride(0)))
        self._caches, self._region = kv_caches, region  # their memory is in use
        self._over: list[TransferResult] = []
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, "stand-in")

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        self._move(job_id, [(tier, engine, size) for engine, tier, size in self._pages(src_spec, dst_spec)])
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        self._move(job_id, list(self._pages(dst_spec, src_spec)))
        return True

    def get_finished(self) -> list[TransferResult]:
        over, self._over = self._over, []
        return over

    def wait(self, job_ids: set[int]) -> None:
        """They are over."""

    def shutdown(self) -> None:
        self._pool.shutdown()
        self._region.cleanup()

    def _pages(self, engine: GPULoadStoreSpec, tier: LoadStoreSpec) -> Iterator[Copy]:
        """(address in the engine's cache, address in the tier, bytes)."""
        assert isinstance(tier, BlockIDsLoadStoreSpec)
        pairs = zip(engine.block_ids.tolist(), tier.block_ids.tolist(), strict=True)
        for size, layers in zip(engine.group_sizes, self._groups, strict=True):
            for _ in range(size):
                block, chunk = next(pairs)
                for layer in layers:
                    (cache, page_bytes), (row, row_bytes) = self._engine[layer.tensor_idx], self._tier[layer.tensor_idx]
                    yield cache + block * page_bytes, row + chunk * row_bytes, layer.page_size_bytes

    def _move(self, job_id: int, copies: list[Copy]) -> None:
        begun = time.perf_counter()
        list(self._pool.map(_copy, [copies[i :: self._threads] for i in range(self._threads)]))
        moved = sum(size for _, _, size in copies)
        self._over.append(TransferResult(job_id, True, moved, time.perf_counter() - begun))


def _copy(copies: list[Copy]) -> None:
    move = ctypes.memmove  # without the interpreter's lock
    for target, source, size in copies:
        move(target, source, size)
