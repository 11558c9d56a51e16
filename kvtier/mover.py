"""Hands the store's orders to a tier, and its news back; counts how long they took. On the daemon's event loop; it owns
nothing else."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from kvtier.stats import Stats
from kvtier.tiers.base import Tier
from kvtier.transfer import Demote, Finished, Promote, Transfer

NEWS_MAX = 64  # that the store hears in one step of the event loop: some 5 ms
Orders = Callable[[float, bool], list[Transfer]]  # now, whether the tier takes writes
DURATIONS: dict[str, dict[type, str]] = {  # tier -> what takes how long there
    "gpu": {Demote: "mirror"},
    "nvme": {Demote: "nvme_demote", Promote: "nvme_promote"},
    "remote": {Demote: "remote_demote", Promote: "remote_promote"},
}


class Mover:
    def __init__(
        self,
        tier: Tier,
        orders: Orders,
        finished: Callable[[Finished, float], None],
        after_news: Callable[[], None],
        name: str,
        stats: Stats,
    ) -> None:
        """`orders` and `finished`: the store's, of this tier. `after_news` runs after the tier has finished something. How
        long things take of the tier of this name goes into `stats`."""
        self._tier, self._orders, self._finished, self._after_news = tier, orders, finished, after_news
        self._stats, self._durations = stats, DURATIONS[name]
        self._begun: dict[int, tuple[str, float]] = {}  # ticket -> what takes how long, and since when
        self._news: deque[Finished] = deque()  # that the store has not heard
        self._rest: asyncio.Handle | None = None  # when it will

    def listen(self) -> None:
        """From now on, on the running loop, hear what the tier has finished."""
        asyncio.get_running_loop().add_reader(self._tier.fileno(), self._on_news)

    def pump(self) -> None:
        """Start what the store has decided. After any event."""
        now = time.monotonic()
        for order in self._orders(now, not self._tier.read_only):
            if (name := self._durations.get(type(order))) is not None:
                self._begun[order.ticket] = name, now
            self._tier.start(order)

    def _on_news(self) -> None:
        self._news.extend(self._tier.poll())
        for _ in range(min(len(self._news), NEWS_MAX)):
            done, now = self._news.popleft(), time.monotonic()
            if (begun := self._begun.pop(done.ticket, None)) is not None and not done.fault:
                self._stats.observe(begun[0], now - begun[1])
            self._finished(done, now)
        self._after_news()
        if self._news:  # after the others who wait for the loop
            self._rest = asyncio.get_running_loop().call_soon(self._on_news)

    def close(self) -> None:
        """The tier finishes what is under way; nothing is heard any more."""
        asyncio.get_running_loop().remove_reader(self._tier.fileno())
        if self._rest is not None:
            self._rest.cancel()
        self._tier.close()
