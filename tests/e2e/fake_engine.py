"""A KVTierManager between a vLLM and a kvtierd that are both fakes: the test says what they say."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from kvtier.connectors.vllm import manager
from kvtier.connectors.vllm.own_cache import OwnCache
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key

from kvtier.block import unpack_keys
from kvtier.config import CONNECTOR, Config

BLOCK = 16  # tokens
LEND = 8
ATTENTION = SimpleNamespace(  # a model all of whose layers attend to everything
    kv_cache_groups=[SimpleNamespace(kv_cache_spec=FullAttentionSpec.__new__(FullAttentionSpec))]
)
HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY


class FakeClient:
    """A kvtierd that says what the test puts into `answers_to` by lease."""

    def __init__(self) -> None:
        self.hello = SimpleNamespace(lend=LEND, is_chain=1)
        self.generation, self.ready, self.answers = 1, True, 0
        self.secret, self.witness_secret = b"s" * 32, b"w" * 32
        self.lent = list(range(LEND))
        self.asked: list[dict[str, Any]] = []
        self.answers_to: dict[int, list[int]] = {}
        self.said: list[tuple[Any, ...]] = []
        self.silent = 0.0
        self.joining_s = 0.0

    def joins(self, now: float, within_s: float) -> bool:
        return not self.ready and self.joining_s < within_s

    def lookup(self, keys: bytes, skip: int, now: float, **of_request: Any) -> int:
        self.asked.append({"keys": len(list(unpack_keys(keys))), "skip": skip, **of_request})
        return len(self.asked)

    def answer(self, lease: int) -> np.ndarray | None:
        found = self.answers_to.get(lease)
        return None if found is None else np.array(found, np.uint32)

    def silent_s(self, lease: int, now: float) -> float:
        return self.silent

    def wait(self, until: float) -> bool:
        return False

    @property
    def slots_at_hand(self) -> int:
        return len(self.lent)

    def borrow(self, n: int) -> list[int]:
        taken, self.lent = self.lent[:n], self.lent[n:]
        return taken

    def poll(self, now: float) -> None: ...

    def __getattr__(self, name: str) -> Any:
        """due, release, commit, touch, ...: what was said, the time included."""
        return lambda *arguments, **more: self.said.append((name, *arguments, *more.values()))

    def words(self, name: str) -> list[tuple[Any, ...]]:
        return [word[1:] for word in self.said if word[0] == name]


class FakeEngine:
    """One request of `blocks` whole blocks, of which the engine's own cache has `cached`."""

    def __init__(self, blocks: int = 4, cached: int = 0, watched: bool = True) -> None:
        self.now = 1000.0
        self.client = FakeClient()
        group = SimpleNamespace(group_id=0, tokens_per_block=BLOCK)
        config = SimpleNamespace(groups=[group], parallel=SimpleNamespace(world_size=1))
        self.spec = SimpleNamespace(config=config, blocks_per_chunk=1, tokens_per_hash=BLOCK)
        self.manager = manager.KVTierManager(self.spec, lambda: self.now)
        self.manager.open(self.client, Config(CONNECTOR, {}), 4 * BLOCK)
        self.hashes = [bytes([i]) * 32 for i in range(blocks)]
        self.request = SimpleNamespace(
            request_id="request", block_hashes=self.hashes, num_tokens=blocks * BLOCK + 5, lora_request=None,
            num_prompt_tokens=blocks * BLOCK + 5, num_computed_tokens=0, skip_reading_prefix_cache=False,
            is_finished=lambda: False, cache_salt=None, kv_transfer_params=None,
        )  # fmt: skip
        self.context = ReqContext(req_id="request")
        self.keys = [make_offload_key(h, 0) for h in self.hashes]
        for i, key in enumerate(self.keys):
            self.context.set_offload_key_position(key, (i + 1) * BLOCK)
        if watched:
            self.manager.watch(self.pool(cached), ATTENTION)

    def pool(self, cached: int) -> SimpleNamespace:
        """vLLM's, with so many blocks of the request."""
        has = {make_block_hash_with_group_id(h, 0) for h in self.hashes[:cached]}
        return SimpleNamespace(get_cached_block=lambda h, groups: make_block_hash_with_group_id(h, groups[0]) in has)

    def own_cache(self, cached: int) -> OwnCache:
        return OwnCache(self.pool(cached), self.spec, ATTENTION)

    def arrive(self) -> None:
        self.manager.on_new_request(self.context)
        self.manager.attend(self.request, b"")

    def look(self, cached: int = 0) -> list[LookupResult]:
        """vLLM schedules it and asks for what its own cache has not."""
        self.manager.local_hit("request", cached * BLOCK)
        return [self.manager.lookup(key, self.context) for key in self.keys[cached:]]

    def next_step(self, seconds: float = 0.01) -> None:
        self.manager.on_schedule_end(None)
        self.now += seconds
