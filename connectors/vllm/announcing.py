"""What the client of a request says of it besides its tokens: read once when it arrives, said to kvtierd before anything
is asked for it, and again when another kvtierd is there.

What is wrong is counted, and named in the log once; the request is served as if it had not been said.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtier.connectors.vllm.tracked import TrackedRequest

from kvtier import hints
from kvtier.block import block_key
from kvtier.client import SchedulerClient
from kvtier.protocol import TEXT_MAX

if TYPE_CHECKING:
    from vllm.v1.request import Request

log = logging.getLogger("kvtier")

NAMED_MAX = 64  # different problems that the log names; whoever sends random hints doesn't fill it


class Announcer:
    def __init__(self, client: SchedulerClient, count: Callable[[str, int], None]) -> None:
        self._client = client
        self._count = count
        self._named: set[str] = set()

    def read(self, mine: TrackedRequest, request: "Request") -> None:
        """The request's hints, and whose it is."""
        mine.salt = request.cache_salt or ""
        params = request.kv_transfer_params
        raw = params.get("kvtier") if isinstance(params, dict) else None
        # Another vLLM may know neither envelopes nor sessions.
        envelope, session_id = getattr(request, "kv_hints", None), getattr(request, "session_id", None)
        if raw is None and envelope is None and not session_id:
            return
        mine.hints, problems = hints.parse(raw, envelope, session_id)
        if problems:
            self._count("hints_ignored", len(problems))
        for problem in problems:
            if problem not in self._named and len(self._named) < NAMED_MAX:
                self._named.add(problem)
                log.warning("a request's hint is ignored: %s", problem)

    def announce(self, mine: TrackedRequest, now: float) -> None:
        """Begin, if this kvtierd hasn't heard it yet and there is something to say. Of a request that is not to be kept
        nothing else is said: not even whose it is."""
        client = self._client
        if mine.told == client.generation or not client.ready:
            return
        said, counts = mine.hints, mine.hints.counts()
        if said.no_store and said.no_load:
            return  # kvtierd has nothing to do with it
        if said.no_store:
            mine.told = client.generation
            client.begin(mine.req_id[:TEXT_MAX], now, session="", tenant=b"", tool="", counts={"no_store": 1})
            return
        if not (mine.salt or said.session or said.tool or counts):
            return
        mine.told = client.generation
        client.begin(
            mine.req_id[:TEXT_MAX], now, session=said.session, tenant=self._tenant(mine), tool=said.tool, counts=counts
        )

    def name(self, mine: TrackedRequest, now: float) -> None:
        """Before a message that names the request: whoever has heard of it must hear when it is over, too."""
        self.announce(mine, now)
        mine.told = self._client.generation

    def _tenant(self, mine: TrackedRequest) -> bytes:
        """Requests of one cache_salt have one, in every namespace; it doesn't tell the salt."""
        secret = self._client.witness_secret
        return block_key(secret, b"tenant" + mine.salt.encode(errors="surrogatepass")) if mine.salt and secret else b""
