"""Scheduler process: which of a request's blocks are here, which are to be saved. On the engine's critical path.

vLLM's OffloadingConnectorScheduler asks this manager; it decides nothing about tiers, it asks kvtierd, and everything
that it can't be sure of is a miss. One request's way through it:

    on_new_request, attend   remembered
    lookup (once a key)      first key: one question for all keys of the request, a lease, waited for inline for at most
                             lookup_inline_us a step; no answer yet: RETRY; too late: MISS
    prepare_load             the lease goes with the job; it is released when every rank has settled the job
    prepare_store            what the daemon doesn't have yet, into slots lent in advance: no round trip. Committed when
                             every rank has settled the job
    on_request_finished      its keys are touched, tail first to go, when the last save is settled

Jobs are settled by our own tokens, not by vLLM's complete_store and complete_load: those can't say that a copy failed,
and aren't called for jobs that a cache reset has overtaken.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from kvtier.connectors.vllm.edge import edge
from kvtier.connectors.vllm.spec import ArenaSpec, KVTierSpec
from kvtier.connectors.vllm.tracked import TrackedJob, TrackedRequest
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    LookupResult,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.block import BELOW, BlockKey, block_key, pack_keys
from kvtier.client import SchedulerClient
from kvtier.config import Config
from kvtier.protocol import KEYS_MAX

if TYPE_CHECKING:
    from vllm.v1.request import Request

LEASE_UNUSED_S = 10.0  # a request that vLLM can't admit for so long asks again later, rather than pin blocks
REPORT_S = 1.0  # between reports of what was counted here
NONE = ArenaSpec(token=0, generation=0, slots=np.empty(0, np.uint32))  # belongs to no job; no worker copies it


class KVTierManager(OffloadingManager):
    def __init__(self, spec: KVTierSpec, clock: Callable[[], float] = time.monotonic) -> None:
        config = spec.config
        self._ranks = config.parallel.world_size
        self._tokens_per_hash = spec.tokens_per_hash
        self._groups = [
            (group.group_id, group.tokens_per_block * spec.blocks_per_chunk // spec.tokens_per_hash)
            for group in config.groups
        ]
        self._clock = clock
        self._requests: dict[str, TrackedRequest] = {}
        self._jobs: dict[int, TrackedJob] = {}
        self._last_token = 0
        self._waiting_leases: dict[str, None] = {}  # requests with an unused lease, longest first
        self._counts: dict[str, int] = {}
        self._reported_at = 0.0
        self._step = 0  # counts scheduling steps
        self._late_after: int | None = None  # answers heard when one was late: wait for none until another comes
        self._client: SchedulerClient | None = None

    def open(self, client: SchedulerClient, settings: Config) -> None:
        self._client = client
        self._save_steps = settings.count("save_steps")
        self._deadline_s = settings.number("lookup_deadline_ms") / 1e3
        self._inline_s = self._inline_left_s = settings.number("lookup_inline_us") / 1e6

    @edge(lambda: None)
    def await_daemon(self, seconds: float) -> None:
        """While the engine starts: wait for a daemon that is there, no longer than this."""
        client = self._client
        assert client is not None
        until = self._clock() + seconds
        client.poll(self._clock())
        while not client.ready and client.wait(until):
            client.poll(self._clock())

    # --- hooks, in the order of a request's life ---------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._requests[req_context.req_id] = TrackedRequest()
        return RequestOffloadingContext()

    @edge(lambda: None)
    def attend(self, request: "Request", suffix: bytes) -> None:
        """The connector's word after on_new_request, which sees no Request."""
        mine = self._requests[request.request_id]
        mine.request, mine.suffix = request, suffix
        if self._client is not None:
            self._client.want(self._client.hello.lend, self._clock())

    @edge(lambda: None)
    def local_hit(self, req_id: str, tokens: int) -> None:
        """The engine's own cache has so many tokens of the request."""
        self._requests[req_id].local_tokens = tokens

    @edge(lambda: LookupResult.MISS)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        mine = self._requests.get(req_context.req_id)
        if mine is None or mine.barred:
            return LookupResult.MISS
        if mine.slots is None or mine.generation != self._generation:
            # vLLM goes on to ask for every key of a request that was told RETRY; once a step is enough to look.
            if mine.retried == self._step or not self._resolve(req_context.req_id, mine):
                mine.retried = self._step
                return LookupResult.RETRY
            assert mine.slots is not None
        return LookupResult.HIT if key in mine.slots else LookupResult.MISS

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        return CacheHitSource.HOST

    @edge(lambda: NONE)
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        mine = self._requests[req_context.req_id]
        assert mine.slots is not None and mine.lease is not None
        slots = [mine.slots[key] for key in keys]
        job = TrackedJob(req_context.req_id, self._ranks, lease=mine.lease, slots=slots, generation=mine.generation)
        self._forget_answer(req_context.req_id, mine)
        return ArenaSpec(self._new_job(job), job.generation, np.array(slots, dtype=np.uint32), job.req_id)

    @edge(lambda: None)
    def admitted(self, req_id: str) -> None:
        """vLLM has given the request its blocks, and no load goes with it. When the engine's own cache had it all, nothing
        was asked yet: ask now, so that prepare_store at the end of this step knows what is not to be saved again."""
        mine = self._requests.get(req_id)
        if mine is None:
            return
        self._release_unused(req_id, mine)
        if mine.known is None and not mine.barred and self._client is not None and self._client.ready:
            self._ask(req_id, mine, self._clock(), whole=True)

    @edge(lambda: PrepareStoreOutput([], NONE, []))
    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        nothing = PrepareStoreOutput([], NONE, [])
        mine = self._requests.get(req_context.req_id)
        client = self._client
        if mine is None or mine.barred or client is None:
            return nothing
        if not client.ready:
            self._count("skipped_away", len(keys))
            return nothing
        if mine.known is None:
            self._learn(req_context.req_id, mine)
        fresh = [key for key in keys if self._is_new(key, mine, req_context)]
        slots = client.borrow(len(fresh))
        if len(slots) < len(fresh):
            self._count("skipped_no_slot", len(fresh) - len(slots))
            fresh = fresh[: len(slots)]  # a prefix: blocks behind a hole would be of no use
        if not fresh:
            return nothing
        packed = pack_keys(self._keys(mine, fresh))
        job = TrackedJob(req_context.req_id, self._ranks, keys=packed, slots=slots, generation=client.generation)
        token = self._new_job(job)
        mine.saved.update(fresh)
        mine.saving += 1
        return PrepareStoreOutput(fresh, ArenaSpec(token, client.generation, np.array(slots, dtype=np.uint32)), [])

    @edge(lambda: None)
    def settle(self, settled: dict[int, tuple[int, int]]) -> None:
        """Workers' word on jobs: token -> (ranks, ranks that failed)."""
        now = self._clock()
        for token, (ranks, failed) in settled.items():
            job = self._jobs.get(token)
            if job is None:  # of a time before a fault
                continue
            job.ranks -= ranks
            job.failed |= failed > 0
            if job.ranks == 0:
                del self._jobs[token]
                self._settled(job, now)

    @edge(lambda: None)
    def on_request_finished(self, req_context: ReqContext) -> None:
        mine = self._requests.get(req_context.req_id)
        if mine is None:
            return
        self._release_unused(req_context.req_id, mine)
        mine.finished = True
        self._end_if_done(req_context.req_id, mine)

    @edge(lambda: None)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Once a step: hear the daemon, say what was counted."""
        self._step += 1
        self._inline_left_s = self._inline_s
        client = self._client
        if client is None:
            return
        now = self._clock()
        client.poll(now)
        for req_id in list(self._waiting_leases):
            mine = self._requests[req_id]
            if now - mine.asked_at < LEASE_UNUSED_S:
                break
            self._release_unused(req_id, mine)
        if not self._requests:  # the engine is idle; one step's worth of slots is enough to begin again
            client.want(max(1, client.hello.lend // self._save_steps), now)
        if self._counts and now - self._reported_at > REPORT_S and client.ready:
            client.report(self._counts, now)
            self._counts, self._reported_at = {}, now

    @edge(lambda: None)
    def reset_cache(self) -> None:
        """Nothing saved so far is served again. Requests under way hold KV of the old meaning: they are barred."""
        if self._client is not None:
            self._client.reset(self._clock())
        for req_id, mine in self._requests.items():
            self._release_unused(req_id, mine)
            mine.barred = True
        for job in self._jobs.values():
            job.failed = True

    def shutdown(self) -> None:
        if self._client is not None:
            self._client.close()

    def fault(self) -> None:
        """Hang up: the daemon takes everything back when the workers have drained, and we come back from nothing."""
        self._count("connector_faults", 1)
        if self._client is not None:
            self._client.abandon(self._clock())
        self._jobs.clear()
        self._waiting_leases.clear()
        self._requests = {req_id: mine for req_id, mine in self._requests.items() if not mine.finished}
        for mine in self._requests.values():
            mine.barred, mine.lease, mine.slots, mine.saving = True, None, None, 0

    # --- questions -----------------------------------------------------------------------------------------------

    @property
    def _stalled(self) -> bool:
        """The daemon is slow or frozen: what is asked now is a miss at once."""
        return self._client is not None and self._late_after == self._client.answers

    @property
    def _generation(self) -> int:
        return self._client.generation if self._client is not None else 0

    def _resolve(self, req_id: str, mine: TrackedRequest) -> bool:
        """Whether the answer for this request is known: `mine.slots`, perhaps of nothing."""
        client, now = self._client, self._clock()
        if client is None or mine.request is None:
            return self._answer_nothing(mine)
        client.poll(now)
        if mine.lease is not None and mine.generation != client.generation:
            self._release_unused(req_id, mine)  # the daemon that was asked is gone
        if mine.lease is None:
            if not client.ready:
                return self._answer_nothing(mine)
            self._ask(req_id, mine, now)
        answer = self._await(mine, now)
        if answer is not None:
            self._take_answer(mine, answer)
            return True
        assert mine.lease is not None
        if self._stalled or client.silent_s(mine.lease, now) > self._deadline_s:
            self._late_after = client.answers
            self._count("lookups_late", 1)
            self._release_unused(req_id, mine)
            return self._answer_nothing(mine)
        return False

    def _ask(self, req_id: str, mine: TrackedRequest, now: float, whole: bool = False) -> None:
        """`whole`: the engine's own cache has it all, so nothing is to be staged."""
        assert self._client is not None and mine.request is not None
        mine.asked, covered = self._names(mine.request, mine.local_tokens)
        mine.generation = self._client.generation
        mine.asked_at = now
        mine.slots = None
        skip = len(mine.asked) if whole else covered
        mine.lease = self._client.lookup(pack_keys(self._keys(mine, mine.asked)), skip, now)
        self._waiting_leases[req_id] = None

    def _await(self, mine: TrackedRequest, now: float) -> np.ndarray | None:
        """The answer, waiting for it as long as this step may still wait."""
        client = self._client
        assert client is not None and mine.lease is not None
        answer = client.answer(mine.lease)
        until = now + self._inline_left_s
        while answer is None and not self._stalled and client.wait(until):
            client.poll(self._clock())
            answer = client.answer(mine.lease)
            if answer is not None:
                self._count("lookups_inline", 1)
        self._inline_left_s = max(0.0, self._inline_left_s - (self._clock() - now))
        return answer

    def _take_answer(self, mine: TrackedRequest, answer: np.ndarray) -> None:
        here = np.flatnonzero(answer < BELOW).tolist()
        slots = answer.tolist()
        mine.slots = {mine.asked[i]: slots[i] for i in here}
        below = (mine.asked[i] for i in np.flatnonzero(answer == BELOW).tolist())
        mine.known = set(mine.slots).union(below, mine.known or ())

    def _answer_nothing(self, mine: TrackedRequest) -> bool:
        mine.slots, mine.generation = {}, self._generation
        return True

    def _learn(self, req_id: str, mine: TrackedRequest) -> None:
        """Which blocks the daemon has already. It is not waited for beyond this step."""
        self._resolve(req_id, mine)
        self._release_unused(req_id, mine)

    @staticmethod
    def _is_new(key: OffloadKey, mine: TrackedRequest, req_context: ReqContext) -> bool:
        """Whether to save it. While the daemon's answer is not here, what the engine's own cache had counts as saved:
        it was, when it was computed."""
        if key in mine.saved:
            return False
        if mine.known is not None:
            return key not in mine.known
        end = req_context.get_offload_key_position(key)
        return end is None or end > mine.local_tokens

    # --- how -----------------------------------------------------------------------------------------------------

    def _names(self, request: "Request", local_tokens: int) -> tuple[list[OffloadKey], int]:
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

    def _keys(self, mine: TrackedRequest, names: Sequence[OffloadKey]) -> list[BlockKey]:
        assert self._client is not None
        secret, suffix, keys = self._client.secret, mine.suffix, mine.keys
        if mine.secret != secret:
            keys.clear()
            mine.secret = secret
        for name in names:
            if name not in keys:
                keys[name] = block_key(secret, name + suffix)
        return [keys[name] for name in names]

    def _new_job(self, job: TrackedJob) -> int:
        self._last_token += 1
        self._jobs[self._last_token] = job
        return self._last_token

    def _settled(self, job: TrackedJob, now: float) -> None:
        assert self._client is not None
        mine = self._requests.get(job.req_id)
        if job.lease is not None:
            self._client.release(job.lease, 0 if job.failed else len(job.slots), now)
            if job.failed:
                self._count("failed_loads", 1)
                if mine is not None:
                    mine.barred = True
            return
        if job.failed:
            self._count("failed_saves", len(job.slots))
            self._client.give_back(job.slots, job.generation, now)
        else:
            self._client.commit(job.keys, job.slots, job.generation, now)
        if mine is not None:
            mine.saving -= 1
            self._end_if_done(job.req_id, mine)

    def _end_if_done(self, req_id: str, mine: TrackedRequest) -> None:
        if not mine.finished or mine.saving:
            return
        del self._requests[req_id]
        client = self._client
        here = mine.saved.union(mine.known or ())
        if here and client is not None and client.ready and mine.secret == client.secret and not mine.barred:
            # Made in prefix order: by the lookup, then block after block by the saves.
            client.touch(pack_keys(key for name, key in mine.keys.items() if name in here), self._clock())

    def _release_unused(self, req_id: str, mine: TrackedRequest) -> None:
        """End a lease that no load has taken; the next lookup asks again."""
        if mine.lease is not None and self._client is not None:
            self._client.release(mine.lease, 0, self._clock())
        self._forget_answer(req_id, mine)

    def _forget_answer(self, req_id: str, mine: TrackedRequest) -> None:
        self._waiting_leases.pop(req_id, None)
        mine.lease, mine.slots, mine.asked = None, None, ()

    def _count(self, name: str, n: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + n
