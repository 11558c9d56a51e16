"""Scheduler process: which of a request's blocks are here, which are to be saved. On the engine's critical path.

vLLM's OffloadingConnectorScheduler asks this manager; it decides nothing about tiers, it asks kvtierd, and everything
that it can't be sure of is a miss. One request's way through it:

    on_new_request, attend   remembered; one question for all its keys goes out, under a lease (questions.py)
    lookup (once a key)      the answer, waited for inline for at most lookup_inline_us a step; none yet: RETRY; too
                             late: MISS
    prepare_load             the lease goes with the job; it is released when every rank has settled the job
    step_begins, step_ends   which tokens a step computes, and how long it took (pace.py)
    prepare_store            what the daemon doesn't have yet, into slots lent in advance: no round trip. Committed when
                             every rank has settled the job
    on_request_finished      its keys are touched, tail first to go, when the last save is settled

What its client says of the request (announcing.py) comes with attend: kvtierd hears it before the question. A request
that is not to be kept saves nothing, one that is not to load asks only what needn't be saved.

Jobs are settled by our own tokens, not by vLLM's complete_store and complete_load: those can't say that a copy failed,
and aren't called for jobs that a cache reset has overtaken.
"""

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from kvtier.connectors.vllm.announcing import Announcer
from kvtier.connectors.vllm.edge import edge
from kvtier.connectors.vllm.names import Names
from kvtier.connectors.vllm.own_cache import OwnCache
from kvtier.connectors.vllm.pace import Pace
from kvtier.connectors.vllm.questions import Questions
from kvtier.connectors.vllm.spec import ArenaSpec, KVTierSpec
from kvtier.connectors.vllm.tally import Tally
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
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.block import pack_keys
from kvtier.client import SchedulerClient
from kvtier.config import Config
from kvtier.protocol import TEXT_MAX

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

REPORT_S = 1.0  # between reports of what was counted here
PACE_S = 0.5  # between words on how fast this engine is
SLOTS_WAIT_S = 0.25  # so long a request's new blocks wait for slots that are still being copied into
NONE = ArenaSpec(token=0, generation=0, slots=np.empty(0, np.uint32))  # belongs to no job; no worker copies it


class KVTierManager(OffloadingManager):
    def __init__(self, spec: KVTierSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec = spec
        self._ranks = spec.config.parallel.world_size
        groups = [group.tokens_per_block for group in spec.config.groups]
        self._block_tokens = min(groups) * spec.blocks_per_chunk / len(groups)  # a block of each group has the same tokens
        self._names = Names(spec)
        self._clock = clock
        self._requests: dict[str, TrackedRequest] = {}
        self._jobs: dict[int, TrackedJob] = {}
        self._last_token = 0
        self._counts: dict[str, int] = {}
        self._reported_at = self._paced_at = 0.0
        self._step = 0  # counts scheduling steps
        self._tally = Tally()
        self._own_cache: OwnCache | None = None  # None: what it has is known only when vLLM has looked

    def open(self, client: SchedulerClient, settings: Config, chunk_tokens: int) -> None:
        """Before any hook is called. `chunk_tokens`: the most that one step computes."""
        self._client = client
        self._save_steps = settings.count("save_steps")
        self._announcer = Announcer(client, self._count)
        self._questions = Questions(client, settings, self._names, self._announcer, self._count, self._clock)
        self._pace = Pace(chunk_tokens)

    @edge(lambda: None)
    def watch(self, pool: "BlockPool", kv_cache_config: "KVCacheConfig") -> None:
        """The engine's own cache."""
        own_cache = OwnCache(pool, self._spec, kv_cache_config)
        self._own_cache = own_cache if own_cache.can_tell else None

    @edge(lambda: None)
    def await_daemon(self, seconds: float) -> None:
        """While the engine starts: wait for a daemon that is there, no longer than this."""
        client = self._client
        until = self._clock() + seconds
        client.poll(self._clock())
        while not client.ready and client.wait(until):
            client.poll(self._clock())

    # --- hooks, in the order of a request's life ---------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._requests[req_context.req_id] = TrackedRequest(req_context.req_id)
        return RequestOffloadingContext()

    @edge(lambda: None)
    def attend(self, request: "Request", suffix: bytes) -> None:
        """The connector's word after on_new_request, which sees no Request. Whatever of it lies below RAM begins to be
        read now, while the request waits for its turn."""
        mine = self._requests[request.request_id]
        mine.request, mine.suffix = request, suffix
        self._announcer.read(mine, request)
        now = self._clock()
        self._client.poll(now)
        self._announcer.announce(mine, now)
        self._client.want(self._client.hello.lend, now)
        if self._own_cache is not None:
            mine.local_tokens = self._own_cache.tokens(request)
        backlog_s = self._pace.arrive(mine.req_id, request, mine.local_tokens, now)
        self._tell_pace(now)
        # Without an idea of what the engine has, the question would have blocks read that nobody needs. Where vLLM
        # ignores every cache, it won't ask either.
        if self._own_cache is not None and not request.skip_reading_prefix_cache and not mine.hints.no_load:
            self._questions.ask_ahead(mine, now, backlog_s)

    @edge(lambda: None)
    def local_hit(self, req_id: str, tokens: int) -> None:
        """The engine's own cache has so many tokens of the request."""
        self._requests[req_id].local_tokens = tokens
        self._pace.resident(req_id, tokens)

    @edge(lambda: LookupResult.MISS)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        mine = self._requests.get(req_context.req_id)
        if mine is None or mine.barred or mine.hints.no_load:
            return LookupResult.MISS
        # vLLM goes on to ask for every key of a request that was told RETRY; once a step is enough to look.
        if mine.retried == self._step or not self._questions.resolve(mine):
            mine.retried = self._step
            return LookupResult.RETRY
        assert mine.slots is not None
        return LookupResult.HIT if key in mine.slots else LookupResult.MISS

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        return CacheHitSource.HOST

    @edge(lambda: NONE)
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        mine = self._requests[req_context.req_id]
        assert mine.slots is not None
        slots = [mine.slots[key] for key in keys]
        lease = self._questions.hand_over(mine)
        job = TrackedJob(mine.req_id, self._ranks, self._clock(), lease, slots=slots, generation=mine.generation)
        return ArenaSpec(self._new_job(job), job.generation, np.array(slots, dtype=np.uint32), job.req_id)

    @edge(lambda: None)
    def admitted(self, req_id: str, external_tokens: int) -> None:
        """vLLM has given the request its blocks; so many of its tokens come from a load. When the engine's own cache had
        it all, perhaps nothing was asked: prepare_store at the end of this step must know what is not to be saved."""
        mine = self._requests.get(req_id)
        if mine is None:
            return
        mine.loading = external_tokens
        if external_tokens:
            self._pace.load_ordered(req_id, external_tokens, self._clock())
        else:
            self._questions.not_loaded(mine)

    @edge(lambda: PrepareStoreOutput([], NONE, []))
    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """None: not yet; vLLM asks again in the next step, with what has been computed by then."""
        nothing = PrepareStoreOutput([], NONE, [])
        mine = self._requests.get(req_context.req_id)
        client = self._client
        if mine is None or mine.barred:
            return nothing
        if mine.hints.no_store:
            self._count("skipped_no_store", len(keys))
            return nothing
        if not client.ready:
            self._count("skipped_away", len(keys))
            return nothing
        if mine.known is None:
            self._questions.learn(mine)
        fresh = [key for key in keys if self._is_new(key, mine, req_context)]
        if self._waits_for_slots(mine, len(fresh)):
            return None
        slots = client.borrow(len(fresh))
        if len(slots) < len(fresh):
            self._count("skipped_no_slot", len(fresh) - len(slots))
            fresh = fresh[: len(slots)]  # a prefix: blocks behind a hole would be of no use
        if not fresh:
            return nothing
        now = self._clock()
        self._announcer.name(mine, now)
        job = TrackedJob(mine.req_id, self._ranks, now, slots=slots, generation=client.generation)
        keys = self._names.keys(mine, fresh, client.secret)
        job.keys = pack_keys(keys)
        if client.hello.is_chain:
            job.parents = pack_keys(self._names.parents(mine, fresh, keys, req_context))
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
        self._pace.leave(mine.req_id)
        self._questions.release(mine)
        mine.finished = True
        self._end_if_done(mine)

    @edge(lambda: None)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Once a step: hear the daemon, say what was counted."""
        self._step += 1
        client, now = self._client, self._clock()
        client.poll(now)
        self._questions.step(now)
        if not self._requests:  # the engine is idle; one step's worth of slots is enough to begin again
            client.want(max(1, client.hello.lend // self._save_steps), now)
        if self._counts and now - self._reported_at > REPORT_S and client.ready:
            client.report(self._counts, now)
            self._counts, self._reported_at = {}, now

    @edge(lambda: None)
    def step_begins(self, output: "SchedulerOutput") -> None:
        """vLLM has scheduled a step."""
        now = self._clock()
        self._pace.begin(output, now)
        self._tell_pace(now)

    @edge(lambda: None)
    def step_ends(self) -> None:
        """A step's output is there."""
        now = self._clock()
        for req_id, counts in self._pace.end(now):
            if self._client.ready:
                self._client.outcome(req_id[:TEXT_MAX], counts, now)

    @edge(lambda: None)
    def get_stats(self) -> "OffloadingConnectorStats | None":
        """Once a step, for vLLM's metrics."""
        return self._tally.take(self._client.ready)

    @edge(lambda: None)
    def reset_cache(self) -> None:
        """Nothing saved so far is served again. Requests under way hold KV of the old meaning: they are barred."""
        self._client.reset(self._clock())
        for mine in self._requests.values():
            self._questions.release(mine)
            mine.barred = True
        for job in self._jobs.values():
            job.failed = True

    def shutdown(self) -> None:
        self._client.close()

    def fault(self) -> None:
        """Hang up: the daemon takes everything back when the workers have drained, and we come back from nothing."""
        self._count("connector_faults", 1)
        self._client.abandon(self._clock())
        self._jobs.clear()
        self._questions.forget_all()
        self._pace.clear()
        self._requests = {req_id: mine for req_id, mine in self._requests.items() if not mine.finished}
        for mine in self._requests.values():
            mine.barred, mine.lease, mine.slots, mine.saving = True, None, None, 0

    # --- how -----------------------------------------------------------------------------------------------------

    def _waits_for_slots(self, mine: TrackedRequest, n: int) -> bool:
        """Whether this request's `n` blocks had better wait: a busy machine settles copies late, and their slots come
        back soon. What vLLM asks for once and doesn't get it never asks for again; what has ended can't wait."""
        client, now = self._client, self._clock()
        if n <= client.slots_at_hand:
            mine.short_since = None
            return False
        if mine.request is None or mine.request.is_finished() or n > client.hello.lend:
            return False
        if mine.short_since is None:
            mine.short_since = now
        return now - mine.short_since < SLOTS_WAIT_S

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

    def _new_job(self, job: TrackedJob) -> int:
        self._last_token += 1
        self._jobs[self._last_token] = job
        return self._last_token

    def _settled(self, job: TrackedJob, now: float) -> None:
        mine = self._requests.get(job.req_id)
        if job.lease is not None:
            took_s = now - job.ordered_at
            self._client.release(job.lease, 0 if job.failed else len(job.slots), now, round(took_s * 1e6))
            self._pace.loaded(job.req_id, took_s)
            if mine is not None and not job.failed:
                self._tally.loaded(mine.loading, took_s)
            if job.failed:
                self._count("failed_loads", 1)
                if mine is not None:
                    mine.barred = True
            return
        if job.failed:
            self._count("failed_saves", len(job.slots))
            self._client.give_back(job.slots, job.generation, now)
        else:
            self._tally.saved(round(len(job.slots) * self._block_tokens))
            request = job.req_id[:TEXT_MAX]
            self._client.commit(job.keys, job.slots, job.generation, now, parents=job.parents, request=request)
        if mine is not None:
            mine.saving -= 1
            self._end_if_done(mine)

    def _end_if_done(self, mine: TrackedRequest) -> None:
        if not mine.finished or mine.saving:
            return
        del self._requests[mine.req_id]
        client, now = self._client, self._clock()
        if not client.ready or mine.hints.no_store:
            return
        here = mine.saved.union(mine.known or ())
        if mine.barred or mine.secret != client.secret:
            here.clear()
        if here or mine.told == client.generation:
            self._announcer.announce(mine, now)
            # Made in prefix order: by the lookup, then block after block by the saves.
            keys = (key for name, key in mine.keys.items() if name in here) if here else ()
            client.touch(pack_keys(keys), now, mine.req_id[:TEXT_MAX])

    def _tell_pace(self, now: float) -> None:
        if now - self._paced_at >= PACE_S and self._client.ready:
            self._paced_at = now
            self._client.pace(self._pace.counts(now), now)

    def _count(self, name: str, n: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + n
        self._tally.count(name, n)
