"""What the manager remembers of each request and of each job."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import OffloadKey

from kvtier.block import BlockKey
from kvtier.hints import NOTHING, Asked

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass
class TrackedRequest:
    req_id: str
    request: "Request | None" = None
    suffix: bytes = b""  # what tells its blocks apart beyond vLLM's hash: the content of a LoRA adapter
    hints: Asked = NOTHING  # what its client says of it
    salt: str = ""  # of whose it is: its cache_salt
    told: int = 0  # generation of the daemon that has heard of it by its name
    barred: bool = False  # neither loads nor saves: a load failed, or its KV is from before a reset
    lease: int | None = None
    generation: int = 0  # of the lease
    asked: Sequence[OffloadKey] = ()
    asked_at: float = 0.0
    asked_beyond: int = 0  # tokens that the engine's own cache had when it was asked
    is_due: bool = False  # kvtierd knows that nothing is ahead of it
    slots: dict[OffloadKey, int] | None = None  # the answer: what is here, leased
    known: set[OffloadKey] | None = None  # the daemon has them; None while it has not said
    saved: set[OffloadKey] = field(default_factory=set)  # by this request
    local_tokens: int = 0  # what the engine's own cache had of it
    retried: int = -1  # the step in which there was no answer yet
    keys: dict[OffloadKey, BlockKey] = field(default_factory=dict)
    loading: int = 0  # tokens of the load that was ordered last
    secret: bytes = b""  # what these keys were made with
    saving: int = 0  # jobs not settled
    short_since: float | None = None  # there were too few slots to save into, and there still are
    finished: bool = False


@dataclass
class TrackedJob:
    req_id: str
    ranks: int  # that have not settled it
    ordered_at: float
    lease: int | None = None  # of a load
    keys: bytes = b""  # of a save, packed
    parents: bytes = b""  # of these keys; empty where blocks are no chain
    slots: list[int] = field(default_factory=list)
    generation: int = 0
    failed: bool = False
