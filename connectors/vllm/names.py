"""What vLLM and kvtierd call the blocks of a request: vLLM by its own hash, kvtierd by a key made from that."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.connectors.vllm.spec import KVTierSpec
from kvtier.connectors.vllm.tracked import TrackedRequest
from vllm.v1.kv_offload.base import OffloadKey, ReqContext, make_offload_key

from kvtier.block import NO_KEY, BlockKey, block_key
from kvtier.protocol import KEYS_MAX

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Names:
    def __init__(self, spec: KVTierSpec) -> None:
        self._tokens_per_hash = spec.tokens_per_hash
        self._groups = [
            (group.group_id, group.tokens_per_block * spec.blocks_per_chunk // spec.tokens_per_hash)
            for group in spec.config.groups
        ]

    def of(self, request: "Request", local_tokens: int) -> tuple[list[OffloadKey], int]:
        """vLLM's names of all whole blocks of the request, group after group; first those that the engine's own cache
        has, and how many these are."""
        hashes = request.block_hashes
        covered: list[OffloadKey] = []
        rest: list[OffloadKey] = []
        for group, hashes_per_chunk in self._groups:
            end_of_covered = local_tokens // self._tokens_per_hash
            for i in range(hashes_per_chunk - 1, len(hashes), hashes_per_chunk):
                (covered if i < end_of_covered else rest).append(make_offload_key(hashes[i], group))
        return (covered + rest)[:KEYS_MAX], min(len(covered), KEYS_MAX)

    @staticmethod
    def keys(mine: TrackedRequest, names: Sequence[OffloadKey], secret: bytes) -> list[BlockKey]:
        """kvtierd's names for vLLM's; made once as long as the secret stays."""
        if mine.secret != secret:
            mine.keys.clear()
            mine.secret = secret
        keys, suffix = mine.keys, mine.suffix
        for name in names:
            if name not in keys:
                keys[name] = block_key(secret, name + suffix)
        return [keys[name] for name in names]

    def parents(
        self, mine: TrackedRequest, names: Sequence[OffloadKey], keys: Sequence[BlockKey], context: ReqContext
    ) -> list[BlockKey]:
        """Of each of these blocks, named both ways, the one before it, NO_KEY of a first one; of a model with one cache
        group. `names` mostly follow each other."""
        ((group, hashes_per_chunk),) = self._groups
        tokens_per_chunk = hashes_per_chunk * self._tokens_per_hash
        parents: list[BlockKey] = []
        follows, before = -1, NO_KEY  # where a block ends that follows the last one, and the last one
        for name, key in zip(names, keys):
            end = context.get_offload_key_position(name) or 0
            if end != follows:
                before = self._ending_before(mine, max(0, end - 1) // tokens_per_chunk * hashes_per_chunk, group)
            parents.append(before)
            follows, before = end + tokens_per_chunk, key
        return parents

    def _ending_before(self, mine: TrackedRequest, hashes: int, group: int) -> BlockKey:
        """The block that ends with so many of the request's hashes."""
        if not hashes or mine.request is None:
            return NO_KEY
        return self.keys(mine, [make_offload_key(mine.request.block_hashes[hashes - 1], group)], mine.secret)[0]

    @staticmethod
    def witness(mine: TrackedRequest, names: Sequence[OffloadKey], secret: bytes) -> bytes:
        """The first block by a name that all namespaces of a node share, so that kvtierd can say when a request misses
        only because of its namespace. Empty where there is no such block, or no daemon yet that says how."""
        return block_key(secret, names[0] + mine.suffix) if names and secret else b""
