"""Worker process: copies whole pages between the engine's KV cache and the daemon's arena.

Runs on vLLM's model-runner thread, which owns everything here; the copier's threads only move bytes.

Nothing is copied before it is computed, and nothing is computed over what is still copied:

* vLLM submits a save at the start of the step after the one that computed its blocks, on the thread that launches the
  engine's work. A GPU's job waits for what that thread's stream holds by then: all of that step, and nothing later.
* Before a block that a save still reads is used again, vLLM calls `wait`, which ends when the bytes are in the arena. Its
  second model runner first launches the zeroing of new blocks and the copies between blocks that a step begins with,
  and only then waits; such a step is announced (`overwrites`), and what it waited for counts as failed.
* A load is submitted after what this step zeroes was launched. Its blocks are used when it was reported as over.

(The store DMA of another connector wasn't ordered like this, and 150 of 150 runs were corrupt.)

A save that can't be carried out is reported as settled but failed, and its slots are never committed. A load that fails
is reported as failed to receive, and vLLM computes it.
"""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from kvtier.connectors.vllm.copies import CantCopy, Copies, copies_for
from kvtier.connectors.vllm.edge import edge
from kvtier.connectors.vllm.layout import Layout
from kvtier.connectors.vllm.memory import MappedMemory
from kvtier.connectors.vllm.spec import ArenaSpec, KVTierSpec
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)

from kvtier.config import Config, format_size
from kvtier.worker_client import WorkerClient

log = logging.getLogger("kvtier")

START_POLL_S = 0.002  # between looks at the socket while the engine starts


@dataclass
class _Job:
    job_id: int
    spec: ArenaSpec
    copier: Any
    ticket: int
    reads_gpu: bool = False  # of the GPU tier
    spoiled: bool = False  # what it reads was overwritten meanwhile
    moved: int = 0
    seconds: float = 0.0


class KVTierWorker(OffloadingWorker):
    def __init__(self, spec: KVTierSpec, kv_caches: CanonicalKVCaches) -> None:
        self._spec = spec
        self._caches = kv_caches
        self._client: WorkerClient | None = None  # None: this worker never copies
        self._memory: MappedMemory | None = None
        self._leaving: threading.Thread | None = None  # lets go of the memory before
        self._generation = 0  # of the memory that may be copied from and to; 0: none
        self._is_arriving = False  # the memory is mapped, but not ready
        self._copying: dict[int, _Job] = {}  # by vLLM's job id
        self._unproven: list[_Job] = []  # over, if the GPU tier they read was still there
        self._over: list[TransferResult] = []
        self._settled: dict[int, tuple[int, int]] = {}
        self._failed_loads: set[str] = set()
        self._told: set[str] = set()
        self._save_limit = 0  # bytes a second; 0: none

    @edge(lambda: None)
    def open(self, client: WorkerClient, settings: Config) -> None:
        """Begin to look for the daemon; wait for it no longer than the settings say."""
        parallel = self._spec.config.parallel
        self._layout = Layout.of(self._caches, self._spec.blocks_per_chunk, parallel.rank, self._spec.rank_bytes)
        try:
            self._copies: Copies = copies_for(self._caches, self._layout.page_bytes, settings)
        except CantCopy as error:
            log.error("kvtier can't copy this engine's KV cache (%s); the engine serves without it", error)
            return
        self._decode_budget = settings.count("copy.decode_budget")
        self._client = client
        deadline = time.monotonic() + settings.number("start_wait_ms") / 1e3
        while client.path.exists() and not self._generation and time.monotonic() < deadline:
            self._poll()
            time.sleep(START_POLL_S)

    @edge(lambda: None)
    def step_begins(self, decodes: bool) -> None:
        """The engine launches a step. While it decodes, saves leave it most of its memory's and its link's speed."""
        if self._client is not None:
            self._limit_saves(self._decode_budget if decodes else 0)

    @edge(lambda: None)
    def spoil(self, job_ids: set[int]) -> None:
        """Of these, those that are not known to be over have perhaps read what was written too early."""
        for job_id in job_ids & self._copying.keys():
            self._copying[job_id].spoiled = True

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
            self._prove()
        over, self._over = self._over, []
        return over

    def wait(self, job_ids: set[int]) -> None:
        waiting = [self._copying[job_id] for job_id in job_ids if job_id in self._copying]
        if waiting:
            self._limit_saves(0)  # the engine stands still: nothing is slowed down but this
        for job in waiting:
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
        self._copies.close()
        self._unmap()
        if self._leaving is not None:
            self._leaving.join()
        self._client.close()
        self._client = None

    def fault(self) -> None:
        """Nothing more is copied; jobs under way end and are reported as they end."""
        self._generation = 0
        self._is_arriving = False

    @edge(lambda: False)
    def _submit(self, job_id: int, engine: GPULoadStoreSpec, spec: ArenaSpec, *, saving: bool) -> bool:
        if self._memory is None or not self._generation or spec.generation != self._generation:
            return False
        places, copies = self._memory.places, self._copies
        if not saving and places.reach_gpu(spec.slots) and not self._memory.maps_gpu:
            return False  # it came back, without the GPU tier, after the lookup was answered
        slots = places.of_arena(spec.slots) if saving else places.of(spec.slots)
        pieces = self._layout.fragments(engine.block_ids, engine.group_sizes, engine.block_indices, slots)
        if saving:
            job = _Job(job_id, spec, copies.saver, copies.save(pieces))
        else:
            job = _Job(job_id, spec, copies.loader, copies.load(pieces), places.reach_gpu(spec.slots))
        self._copying[job_id] = job
        return True

    def _collect(self) -> None:
        if not self._copying:
            return
        for copier in (self._copies.loader, self._copies.saver):
            over = {ticket: (moved, seconds, error) for ticket, moved, seconds, error in copier.poll()}
            for job in [j for j in self._copying.values() if j.copier is copier and j.ticket in over]:
                del self._copying[job.job_id]
                job.moved, job.seconds, error = over[job.ticket]
                if error and error not in self._told:
                    self._told.add(error)
                    log.error("kvtier's copies fail: %s", error)
                if job.reads_gpu and not error:
                    self._unproven.append(job)
                else:
                    self._conclude(job, failed=bool(error) or job.spoiled)

    def _prove(self) -> None:
        """The GPU tier's bytes are worth nothing once its owner is gone. The socket was looked at since they were read."""
        while self._unproven:
            job = self._unproven.pop()
            self._conclude(job, failed=job.spec.generation != self._generation)

    def _conclude(self, job: _Job, *, failed: bool) -> None:
        if failed:
            if job.spec.req_id:
                self._failed_loads.add(job.spec.req_id)
            self._settle(job.job_id, job.spec, failed=True)
        else:
            self._settle(job.job_id, job.spec, failed=False, moved=job.moved, seconds=job.seconds)

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
            self.fault()  # no new copies
            if not self._copying:
                self._unmap()
                client.hang_up(now)
        elif self._leaving is not None and self._leaving.is_alive():
            pass  # both memories together may be more than can be locked
        elif (memory := client.take_arena()) is not None:
            self._unmap()
            try:
                self._memory = MappedMemory(memory, self._copies)
            except (OSError, ValueError, RuntimeError) as error:
                log.error("kvtier can't map the daemon's arena (%s); the engine serves without it", error)
                return
            self._is_arriving = True
        if self._is_arriving:
            self._arrive(now)

    def _arrive(self, now: float) -> None:
        """As soon as the memory is ready, the daemon hears that this worker copies."""
        memory, client = self._memory, self._client
        assert memory is not None and client is not None
        if not memory.ready:
            return
        self._is_arriving = False
        for note in memory.notes:
            if note not in self._told:
                self._told.add(note)
                log.warning("%s", note)
        self._copies.registered(memory.is_whole)
        pinned = memory.pinned_bytes
        if pinned:
            log.info("the GPU copies by %s; %s of the arena are registered", self._copies.name, format_size(pinned))
        self._generation = memory.generation
        client.mapped(now, pinned, memory.maps_gpu, self._copies.name)

    def _unmap(self) -> None:
        self.fault()
        if self._memory is not None:
            memory, self._memory = self._memory, None
            self._leaving = memory.let_go()

    def _limit_saves(self, bytes_per_s: int) -> None:
        if bytes_per_s != self._save_limit:
            self._save_limit = bytes_per_s
            self._copies.pace(bytes_per_s)
