"""KVTierConnector: what vLLM loads for `{"kv_connector": "KVTierConnector", "kv_role": "kv_both"}`.

A thin subclass of vLLM's own OffloadingConnector, which carries cache groups, sliding windows, preemption, chunked
prefill and tensor parallelism. What is added: what the spec doesn't see (the request), the settling of jobs, and the
two clients. vLLM makes one in the scheduler's process and one in each worker's; the frontend only calls class methods.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtier.connectors.vllm import identity
from kvtier.connectors.vllm.copies import PATHS
from kvtier.connectors.vllm.manager import KVTierManager
from kvtier.connectors.vllm.spec import KVTierMetadata, KVTierSpec, KVTierWorkerMetadata
from kvtier.connectors.vllm.worker import KVTierWorker
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvtier import __version__, protocol
from kvtier.block import namespace_digest
from kvtier.client import SchedulerClient, usual_socket
from kvtier.config import CONNECTOR, MIB, Config
from kvtier.errors import ConfigError
from kvtier.worker_client import WorkerClient

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

log = logging.getLogger("kvtier")

BLOCK_BYTES_WANTED = MIB  # smaller blocks are joined to one of ours, up to
BLOCK_TOKENS_MAX = 128  # tokens: a longer one would lose more at the end of a prompt
LEND_MIN = 16  # slots: a save holds its slots for some steps, which with small steps are short


class KVTierConnector(OffloadingConnector):
    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig") -> None:
        """ConfigError when a setting is wrong: the only time that kvtier stops an engine, at its start."""
        _log_like_vllm()
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        extra = transfer.kv_connector_extra_config
        self._settings = Config(CONNECTOR, extra.get("kvtier", {}), "kv_connector_extra_config.kvtier: ")
        if self._settings.text("copy.path") not in PATHS:
            raise ConfigError(f"kvtier: copy.path = {self._settings['copy.path']!r} is none of {', '.join(PATHS)}")
        self._wish = identity.wish(self._settings.text("codec"), kv_cache_config)
        identity.require_hash(vllm_config)
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ConfigError("kvtier doesn't know pipeline parallel engines yet; use tensor parallel ranks")
        _name_spec(extra)
        extra.setdefault("offload_prompt_only", False)  # a chat's next turn begins with the answer to this one
        _choose_chunk(extra, vllm_config, kv_cache_config)
        # A load that can't be carried out must become a computation, never a failed request.
        transfer.kv_load_failure_policy = "recompute"
        super().__init__(vllm_config, role, kv_cache_config)

        self._socket = Path(self._settings.text("socket") or usual_socket())
        self._lora_digests: dict[int, bytes] = {}
        self._overwrites_first = bool(vllm_config.use_v2_model_runner)
        engine = str(transfer.engine_id)
        if self.connector_scheduler is not None:
            self._manager = self.connector_scheduler.manager
            assert isinstance(self._manager, KVTierManager)
            hello = self._scheduler_hello(engine, vllm_config, kv_cache_config)
            client = SchedulerClient(self._socket, hello, vllm_config.parallel_config.world_size)
            self._manager.open(client, self._settings, vllm_config.scheduler_config.max_num_batched_tokens)
            self._manager.await_daemon(self._settings.number("start_wait_ms") / 1e3)
        else:
            self._hello = protocol.Hello(protocol.VERSION, protocol.WORKER, engine, b"", 0, 0, 0)

    def _scheduler_hello(self, engine: str, vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> protocol.Hello:
        spec = KVTierSpec(build_offloading_config(vllm_config, kv_cache_config))
        weights, wish = self._settings.text("weights_id"), self._wish
        facts = identity.facts(vllm_config, kv_cache_config, spec.blocks_per_chunk, weights, wish)
        tokens = min(spec.tokens_per_block) * spec.blocks_per_chunk
        chunks = -(-vllm_config.scheduler_config.max_num_batched_tokens // tokens) * len(spec.tokens_per_block)
        block_bytes = spec.rank_bytes * spec.config.parallel.world_size
        log.info("kvtier %s: blocks of %d tokens, %d bytes; daemon at %s", __version__, tokens, block_bytes, self._socket)
        return protocol.Hello(
            protocol.VERSION,
            protocol.SCHEDULER,
            engine,
            namespace_digest(facts),
            block_bytes,
            tokens,
            max(LEND_MIN, chunks * self._settings.count("save_steps")),
            int(_is_chain(kv_cache_config)),
            str(wish or ""),
        )

    @classmethod
    def build_prom_metrics(cls, vllm_config: "VllmConfig", *rest: Any, **named: Any) -> "KVConnectorPromMetrics":
        """In the frontend, whose settings nobody has completed."""
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        _name_spec(transfer.kv_connector_extra_config)
        return super().build_prom_metrics(vllm_config, *rest, **named)

    # --- scheduler -----------------------------------------------------------------------------------------------

    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        super().bind_gpu_block_pool(gpu_block_pool)
        self._manager.watch(gpu_block_pool, self._kv_cache_config)

    def on_new_request(self, request: "Request") -> None:
        super().on_new_request(request)
        lora = request.lora_request
        self._manager.attend(request, b"" if lora is None else self._lora_digest(lora))

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        self._manager.local_hit(request.request_id, num_computed_tokens)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        self._manager.admitted(request.request_id, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> "KVConnectorMetadata":
        meta = super().build_connector_meta(scheduler_output)
        assert isinstance(meta, OffloadingConnectorMetadata)
        self._manager.step_begins(scheduler_output)
        output = scheduler_output
        return KVTierMetadata(
            meta.load_jobs,
            meta.store_jobs,
            meta.jobs_to_flush,
            decodes=any(output.scheduled_cached_reqs.num_output_tokens),
            overwrites=self._overwrites_first and bool(output.new_block_ids_to_zero or output.kv_cache_block_copies),
        )

    def take_events(self) -> "Iterable[KVCacheEvent]":
        """vLLM asks once for each step, when it has the step's output."""
        self._manager.step_ends()
        return super().take_events()

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        news = connector_output.kv_connector_worker_meta
        super().update_connector_output(connector_output)
        if isinstance(news, KVTierWorkerMetadata):
            self._manager.settle(news.settled)

    def _lora_digest(self, lora: Any) -> bytes:
        """Of the adapter's files when the engine first saw it, which is when it loads them."""
        digest = self._lora_digests.get(lora.lora_int_id)
        if digest is None or lora.load_inplace:
            digest = self._lora_digests[lora.lora_int_id] = identity.lora_digest(lora.lora_path)
        return digest

    # --- worker --------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        super().register_kv_caches(kv_caches)
        self._worker.open(WorkerClient(self._socket, self._hello), self._settings)

    def handle_preemptions(self, kv_connector_metadata: "KVConnectorMetadata") -> None:
        """vLLM calls it first in each step, on the thread that launches the step's work."""
        assert isinstance(kv_connector_metadata, KVTierMetadata)
        self._worker.step_begins(kv_connector_metadata.decodes)
        super().handle_preemptions(kv_connector_metadata)
        if kv_connector_metadata.overwrites:
            self._worker.spoil(kv_connector_metadata.jobs_to_flush or set())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        results = super().get_transfer_results(finished_req_ids)
        results.failed_recving |= self._worker.take_failed_loads() & results.finished_recving
        return results

    def build_connector_worker_meta(self) -> KVTierWorkerMetadata | None:
        settled = self._worker.take_settled()
        meta = super().build_connector_worker_meta()
        if meta is None:
            return KVTierWorkerMetadata(settled=settled) if settled else None
        return KVTierWorkerMetadata(meta.completed_jobs, meta.transfer_stats, settled)

    @property
    def _worker(self) -> KVTierWorker:
        assert self.connector_worker is not None
        worker = self.connector_worker.worker
        assert isinstance(worker, KVTierWorker)
        return worker


def _name_spec(extra: dict[str, Any]) -> None:
    """Which spec OffloadingConnector makes, and whose metrics it shows."""
    extra.setdefault("spec_name", KVTierSpec.__name__)
    extra.setdefault("spec_module_path", KVTierSpec.__module__)


def _choose_chunk(extra: dict[str, Any], vllm_config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
    """How many of the engine's blocks make one of ours, unless the user says."""
    if "blocks_per_chunk" in extra or "block_size" in extra:
        return
    config = build_offloading_config(vllm_config, kv_cache_config)
    tokens = max(group.tokens_per_block for group in config.groups)
    size = config.worker_kv_bytes_per_block * config.parallel.world_size
    chunk = 1
    while len(config.groups) == 1 and size * chunk < BLOCK_BYTES_WANTED and tokens * chunk * 2 <= BLOCK_TOKENS_MAX:
        chunk *= 2
    extra["blocks_per_chunk"] = chunk


def _is_chain(kv_cache_config: "KVCacheConfig") -> bool:
    """Whether a block is of use only together with all before it: not so with sliding windows and state layers."""
    groups = kv_cache_config.kv_cache_groups
    return len(groups) == 1 and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)


def _is_no_retry(record: logging.LogRecord) -> bool:
    """vLLM warns whenever blocks wait for slots to be saved into, at each step: to wait is usual here, and what was not
    saved in the end is counted."""
    return record.msg != "Request %s: cannot store chunks"


def _log_like_vllm() -> None:
    """kvtier's lines go where vLLM's go."""
    logging.getLogger(OffloadingConnectorScheduler.__module__).addFilter(_is_no_retry)  # once, however often it is added
    if not log.handlers:
        log.handlers = list(logging.getLogger("vllm").handlers)
        log.setLevel(logging.INFO)
        log.propagate = not log.handlers
