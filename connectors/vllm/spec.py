"""What vLLM's OffloadingConnector asks for, and the messages between our two halves. They travel pickled inside vLLM's
own metadata, between processes that vLLM starts."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata,
    OffloadingWorkerMetadata,
)
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
)

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches


@dataclass
class ArenaSpec(LoadStoreSpec):
    """Scheduler to workers: where in the arena one job's blocks lie."""

    token: int  # the job's name between manager and workers
    generation: int  # of the arena that the slots are of
    slots: np.ndarray  # uint32[n]
    req_id: str = ""  # of a load


@dataclass
class KVTierMetadata(OffloadingConnectorMetadata):
    """Scheduler to workers, once a step: vLLM's own orders, and what is to be known of the step."""

    decodes: bool = False  # it has requests whose prompts are computed
    overwrites: bool = False  # blocks that saves may still read are written to before `jobs_to_flush` are waited for


@dataclass
class KVTierWorkerMetadata(OffloadingWorkerMetadata):
    """Workers to scheduler: vLLM's own news, and which of our jobs are over. A job is over when every rank says so."""

    settled: dict[int, tuple[int, int]] = field(default_factory=dict)  # token -> (ranks, ranks that failed)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "KVTierWorkerMetadata":
        assert isinstance(other, KVTierWorkerMetadata)
        merged = super().aggregate(other)
        settled = dict(self.settled)
        for token, (ranks, failed) in other.settled.items():
            before = settled.get(token, (0, 0))
            settled[token] = (before[0] + ranks, before[1] + failed)
        return KVTierWorkerMetadata(merged.completed_jobs, merged.transfer_stats, settled)


class KVTierSpec(OffloadingSpec):
    """Made by OffloadingConnector in each process. KVTierConnector gives the two halves what they need beyond it."""

    @property
    def rank_bytes(self) -> int:
        """What one rank's part of a chunk takes."""
        return self.config.worker_kv_bytes_per_block * self.blocks_per_chunk

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        from kvtier.connectors.vllm.tally import METRICS

        return METRICS

    def get_manager(self) -> OffloadingManager:
        from kvtier.connectors.vllm.manager import KVTierManager

        return KVTierManager(self)

    def get_worker(self, kv_caches: "CanonicalKVCaches") -> OffloadingWorker:
        from kvtier.connectors.vllm.worker import KVTierWorker

        return KVTierWorker(self, kv_caches)
