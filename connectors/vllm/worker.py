"""Worker process: copies whole pages between the engine's KV cache and the daemon's arena.

Runs on vLLM's model-runner thread, which owns everything here; the copier's threads only move bytes. vLLM orders the
jobs: a save is submitted at the start of the step after the one that computed its blocks, and `wait` is called before a
block that a save still reads is used again (the store DMA of another connector wasn't, and 150 of 150 runs were
corrupt).

A save that can't be carried out is reported as settled but failed, and its slots are never committed. A load can't fail
while the arena stands; should it be gone, the request is reported as failed to receive and vLLM computes it.
"""

import logging
import os
import time
from dataclasses import dataclass

from kvtier.connectors.vllm.edge import edge
from kvtier.connectors.vllm.layout import Layout
from kvtier.connectors.vllm.spec import ArenaSpec, KVTierSpec
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from kvtier import _native
from kvtier.client import WorkerClient

log = logging.getLogger("kvtier")

START_POLL_S = 0.002  # between looks at the socket while the engine starts


@dataclass
class _Job:
    job_id: int
    spec: ArenaSpec
    copier: _native.Copier
    ticket: int


class KVTierWorker(OffloadingWorker):
    def __init__(self, spec: KVTierSpec, kv_caches: CanonicalKVCaches) -> None:
        self._spec = spec
        self._caches = kv_caches
        self._client: WorkerClient | None = None  # None: this worker never copies
        self._arena: _native.Arena | None = None
        self._generation = 0
        self._copying: dict[int, _Job] = {}  # by vLLM's job id
        self._over: list[TransferResult] = []
        self._settled: dict[int, tuple[int, int]] = {}
        self._failed_loads: set[str] = set()

    @edge(lambda: None)
    def open(self, client: WorkerClient, copy_threads: int, start_wait_s: float) -> None:
        """Begin to look for the daemon; wait no longer than `start_wait_s` for it."""
        device = {t.tensor.device.type for t in self._caches.tensors}
        if device != {"cpu"}:
            log.error("kvtier can't copy from %s memory yet; the engine serves without it", ", ".join(sorted(device)))
            return
        parallel = self._spec.config.parallel
        self._layout = Layout.of(self._caches, self._spec.blocks_per_chunk, parallel.rank, self._spec.rank_bytes)
        # Two, because a copier works first in, first out: a request that waits for a load must not queue behind saves.
        self._saver, self._loader = _native.Copier(copy_threads), _native.Copier(copy_threads)
        self._client = client
        deadline = time.monotonic() + start_wait_s
        while client.path.exists() and not self._arena and time.monotonic() < deadline:
            self._poll()
            time.sleep(START_POLL_S)

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, ArenaSpec)
        if not self._submit(job_id, src_spec, dst_spec, saving=True):
            self._settle(job_id, dst_spec, failed=True)
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, **_: object) -> bool:
        assert isinstance(src_spec, ArenaSpec)
        if not self._submit(job_id, dst_spec, src_spec, saving=False):
            self._failed_loads.add(src_spec.req_id)
            self._settle(job_id, src_spec, failed=True)
        return True

    @edge(list)
    def get_finished(self) -> list[TransferResult]:
        if self._client is not None:
            self._collect()
            self._poll()
        over, self._over = self._over, []
        return over

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids:
            job = self._copying.get(job_id)
            if job is not None:
                job.copier.wait(job.ticket)

    def take_settled(self) -> dict[int, tuple[int, int]]:
        settled, self._settled = self._settled, {}
        return settled

    def take_failed_loads(self) -> set[str]:
        failed, self._failed_loads = self._failed_loads, set()
        return failed

    def shutdown(self) -> None:
        if self._client is None:
            return
        self._saver.close()
        self._loader.close()
        self._unmap()
        self._client.close()
        self._client = None

    def fault(self) -> None:
        """Nothing more is copied; jobs under way end and are reported as they end."""
        self._generation = 0

    @edge(lambda: False)
    def _submit(self, job_id: int, engine: GPULoadStoreSpec, spec: ArenaSpec, *, saving: bool) -> bool:
        if self._arena is None or spec.generation != self._generation:
            return False
        pieces = self._layout.fragments(
            engine.block_ids, engine.group_sizes, engine.block_indices, spec.slots, self._arena.address
        )
        if saving:
            copier, ticket = self._saver, self._saver.submit(pieces.engine, pieces.arena, pieces.size)
        else:
            copier, ticket = self._loader, self._loader.submit(pieces.arena, pieces.engine, pieces.size)
        self._copying[job_id] = _Job(job_id, spec, copier, ticket)
        return True

    def _collect(self) -> None:
        for copier in (self._loader, self._saver):
            over = {ticket: (moved, seconds) for ticket, moved, seconds in copier.poll()}
            for job in [j for j in self._copying.values() if j.copier is copier and j.ticket in over]:
                del self._copying[job.job_id]
                moved, seconds = over[job.ticket]
                self._settle(job.job_id, job.spec, failed=False, moved=moved, seconds=seconds)

    def _settle(
        self, job_id: int, spec: ArenaSpec, *, failed: bool, moved: int | None = None, seconds: float | None = None
    ) -> None:
        # To vLLM every job succeeds: it asserts so. What failed, the manager and get_transfer_results say.
        self._over.append(TransferResult(job_id, True, moved, seconds))
        self._settled[spec.token] = (1, int(failed))

    def _poll(self) -> None:
        client = self._client
        assert client is not None
        now = time.monotonic()
        client.poll(now)
        if client.draining:
            self._generation = 0  # no new copies
            if not self._copying:
                self._unmap()
                client.hang_up(now)
        elif (arena := client.take_arena()) is not None:
            generation, fd, size = arena
            self._unmap()
            try:
                self._arena = _native.Arena.attach(fd, size)
            except (OSError, ValueError) as error:
                log.error("kvtier can't map the daemon's arena (%s); the engine serves without it", error)
                return
            finally:
                os.close(fd)
            self._generation = generation
            client.mapped(now)

    def _unmap(self) -> None:
        self._generation = 0
        if self._arena is not None:
            self._arena.close()
            self._arena = None
