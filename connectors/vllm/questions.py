"""Which of a request's blocks are here: one question to kvtierd for all of them, a lease, an answer.

    ask_ahead   when the request arrives, so that blocks below RAM are staged while it waits for its turn
    resolve     when vLLM could run it: the answer, if it is there or comes within what this step may still wait; from
                now on kvtierd knows that the request is due, and its silence counts
    learn       when only what is not to be saved again is of interest
    release     the lease is over, unless `hand_over` gave it to a load

Whoever waited too long once makes nobody wait any more, until kvtierd is heard again.
"""

from collections.abc import Callable

import numpy as np
from kvtier.connectors.vllm.announcing import Announcer
from kvtier.connectors.vllm.names import Names
from kvtier.connectors.vllm.tracked import TrackedRequest

from kvtier.block import BELOW, pack_keys
from kvtier.client import SchedulerClient
from kvtier.config import Config
from kvtier.protocol import TEXT_MAX

LEASE_UNUSED_S = 10.0  # a request that vLLM can't admit for so long asks again later, rather than pin blocks
AHEAD_MAX = 1024  # leases of requests that wait for their turn; kvtierd refuses an engine that has too many


class Questions:
    def __init__(
        self,
        client: SchedulerClient,
        settings: Config,
        names: Names,
        announcer: Announcer,
        count: Callable[[str, int], None],
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._names = names
        self._announcer = announcer
        self._count = count
        self._clock = clock
        self._deadline_s = settings.number("lookup_deadline_ms") / 1e3
        self._inline_s = self._inline_left_s = settings.number("lookup_inline_us") / 1e6
        self._waiting: dict[str, TrackedRequest] = {}  # requests with an unused lease, longest first
        self._late_after: int | None = None  # answers heard when one was late: wait for none until another comes

    def step(self, now: float) -> None:
        """A scheduling step is over: the next one may wait anew. Leases that nobody uses end."""
        self._inline_left_s = self._inline_s
        while self._waiting:
            longest = next(iter(self._waiting.values()))
            if now - longest.asked_at < LEASE_UNUSED_S:
                break
            self.release(longest)

    def ask_ahead(self, mine: TrackedRequest, now: float, backlog_s: float) -> None:
        """For a request that has just come, with `backlog_s` of work ahead of it."""
        if len(self._waiting) < AHEAD_MAX:
            self._ask(mine, now, backlog_s)

    def resolve(self, mine: TrackedRequest) -> bool:
        """Whether the answer for this request is known: `mine.slots`, perhaps of nothing."""
        client = self._client
        if mine.slots is not None and mine.generation == client.generation:
            return True
        now = self._clock()
        client.poll(now)
        if mine.lease is not None and (mine.generation != client.generation or mine.local_tokens < mine.asked_beyond):
            self.release(mine)  # the daemon that was asked is gone, or the engine's cache has less now than it had then
        if mine.lease is None:
            self._ask(mine, now)
        elif client.answer(mine.lease) is None:
            self._say_due(mine, now)
        if mine.lease is None:
            return not self._client.joins(now, self._deadline_s) and self._answer_nothing(mine)
        if self._heard(mine, now):
            return True
        self._say_due(mine, now)
        if self._is_stalled or client.silent_s(mine.lease, now) > self._deadline_s:
            self._late_after = client.answers
            self._count("lookups_late", 1)
            self.release(mine)
            return self._answer_nothing(mine)
        return False

    def learn(self, mine: TrackedRequest) -> None:
        """Which blocks the daemon has already. It is not waited for beyond this step."""
        now = self._clock()
        self._client.poll(now)
        if mine.generation != self._client.generation:
            self.release(mine)
        if mine.lease is None:
            self._ask_to_know(mine, now)
        if mine.lease is not None:
            self._heard(mine, now)
        self.release(mine)

    def not_loaded(self, mine: TrackedRequest) -> None:
        """vLLM has given the request its blocks, and no load goes with it. What has come of an answer is noted; if
        nothing has, it is asked for now, so that it is there when the request's first blocks are to be saved."""
        now = self._clock()
        self._client.poll(now)
        if mine.lease is not None and (answer := self._client.answer(mine.lease)) is not None:
            self._take(mine, answer)
        self.release(mine)
        if mine.known is None and not mine.barred and not mine.hints.no_store:
            self._ask_to_know(mine, now)

    def release(self, mine: TrackedRequest) -> None:
        """End a lease that no load has taken; the next lookup asks again."""
        if mine.lease is not None:
            self._client.release(mine.lease, 0, self._clock())
        self._forget(mine)

    def hand_over(self, mine: TrackedRequest) -> int:
        """The lease is its load's from now on."""
        assert mine.lease is not None
        lease = mine.lease
        self._forget(mine)
        return lease

    def forget_all(self) -> None:
        """The connection was given up: what was asked is over."""
        for mine in list(self._waiting.values()):
            self._forget(mine)

    @property
    def _is_stalled(self) -> bool:
        """The daemon is slow or frozen: what is asked now is a miss at once."""
        return self._late_after == self._client.answers

    def _ask(self, mine: TrackedRequest, now: float, backlog_s: float = 0.0) -> None:
        """Nothing when kvtierd isn't there."""
        request = mine.request
        if request is None or not self._client.ready:
            return
        self._announcer.name(mine, now)
        mine.asked, covered = self._names.of(request, mine.local_tokens)
        keys = self._names.keys(mine, mine.asked, self._client.secret)
        witness = self._names.witness(mine, mine.asked, self._client.witness_secret)
        lease = self._client.lookup(
            pack_keys(keys),
            covered,
            now,
            request=mine.req_id[:TEXT_MAX],
            prompt_tokens=request.num_tokens,
            resident_tokens=mine.local_tokens,
            backlog_us=round(backlog_s * 1e6),
            witness=b"" if mine.hints.no_store else witness,  # kvtierd keeps it
        )
        self._note_lease(mine, now, lease)

    def _ask_to_know(self, mine: TrackedRequest, now: float) -> None:
        """As `_ask`, of blocks that need not be loaded: nothing is to be staged."""
        if mine.request is None or not self._client.ready:
            return
        self._announcer.announce(mine, now)
        mine.asked, _ = self._names.of(mine.request, mine.local_tokens)
        keys = self._names.keys(mine, mine.asked, self._client.secret)
        self._note_lease(mine, now, self._client.lookup(pack_keys(keys), len(keys), now))

    def _say_due(self, mine: TrackedRequest, now: float) -> None:
        if not mine.is_due and mine.lease is not None:
            mine.is_due = True
            self._client.due(mine.lease, now)

    def _heard(self, mine: TrackedRequest, now: float) -> bool:
        """Whether the answer is here, waiting for it as long as this step may still wait."""
        client = self._client
        assert mine.lease is not None
        answer = client.answer(mine.lease)
        until = now + self._inline_left_s
        while answer is None and not self._is_stalled and client.wait(until):
            client.poll(self._clock())
            answer = client.answer(mine.lease)
            if answer is not None:
                self._count("lookups_inline", 1)
        self._inline_left_s = max(0.0, self._inline_left_s - (self._clock() - now))
        if answer is not None:
            self._take(mine, answer)
        return answer is not None

    def _take(self, mine: TrackedRequest, answer: np.ndarray) -> None:
        here = np.flatnonzero(answer < BELOW).tolist()
        slots = answer.tolist()
        mine.slots = {mine.asked[i]: slots[i] for i in here}
        below = (mine.asked[i] for i in np.flatnonzero(answer == BELOW).tolist())
        mine.known = set(mine.slots).union(below, mine.known or ())

    def _answer_nothing(self, mine: TrackedRequest) -> bool:
        mine.slots, mine.generation = {}, self._client.generation
        return True

    def _note_lease(self, mine: TrackedRequest, now: float, lease: int) -> None:
        mine.lease, mine.slots, mine.is_due = lease, None, False
        mine.generation, mine.asked_at, mine.asked_beyond = self._client.generation, now, mine.local_tokens
        self._waiting[mine.req_id] = mine

    def _forget(self, mine: TrackedRequest) -> None:
        self._waiting.pop(mine.req_id, None)
        mine.lease, mine.slots, mine.asked = None, None, ()
