"""What vLLM and kvtierd call the blocks of a request: vLLM by its own hash, kvtierd by a key made from that."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.connectors.vllm.spec import KVTierSpec
from kvtier.connectors.vllm.tracked import TrackedRequest
from vllm.v1.kv_offload.base import OffloadKey, make_offload_key

from kvtier.block import BlockKey, block_key
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

    @staticmethod
    def witness(mine: TrackedRequest, names: Sequence[OffloadKey], secret: bytes) -> bytes:
        """The first block by a name that all namespaces of a node share, so that kvtierd can say when a request misses
        only because of its namespace. Empty where there is no such block, or no daemon yet that says how."""
        return block_key(secret, names[0] + mine.suffix) if names and secret else b""
