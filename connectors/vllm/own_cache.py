"""What the engine's own prefix cache has of a prompt, known when the request arrives: vLLM itself looks only when it
schedules the request. An estimate, since blocks come and go until then; what it decides is only what is staged."""

from typing import TYPE_CHECKING

from kvtier.connectors.vllm.spec import KVTierSpec
from vllm.v1.kv_cache_interface import FullAttentionSpec

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class OwnCache:
    def __init__(self, pool: "BlockPool", spec: KVTierSpec, kv_cache_config: "KVCacheConfig") -> None:
        """Looks only at the groups of full attention: of a sliding window the blocks before it are gone, though the hit
        goes on."""
        self._cached_block = getattr(pool, "get_cached_block", None)  # another vLLM may have another pool
        self._tokens_per_hash = spec.tokens_per_hash
        kinds = kv_cache_config.kv_cache_groups
        self._groups = [
            (group.group_id, group.tokens_per_block // spec.tokens_per_hash)
            for group in spec.config.groups
            if isinstance(kinds[group.group_id].kv_cache_spec, FullAttentionSpec)
        ]

    @property
    def can_tell(self) -> bool:
        return self._cached_block is not None and bool(self._groups)

    def tokens(self, request: "Request") -> int:
        """Of the prompt's first tokens, never the last one: vLLM computes that in any case."""
        if request.skip_reading_prefix_cache:
            return 0
        whole = (request.num_tokens - 1) // self._tokens_per_hash
        hits = (self._hit(request, group, hashes, whole // hashes) for group, hashes in self._groups)
        return min(hits) * self._tokens_per_hash

    def _hit(self, request: "Request", group: int, hashes_per_block: int, blocks: int) -> int:
        """In hashes. vLLM evicts a prefix from its end, so what is cached is a prefix: the end is searched for in
        halves."""
        assert self._cached_block is not None
        cached, missing = 0, min(blocks, len(request.block_hashes) // hashes_per_block) + 1
        while missing - cached > 1:
            middle = (cached + missing) // 2
            if self._cached_block(request.block_hashes[middle * hashes_per_block - 1], [group]):
                cached = middle
            else:
                missing = middle
        return cached * hashes_per_block
