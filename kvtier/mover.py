"""Hands the store's orders to a tier, and its news back. On the daemon's event loop; it owns nothing else."""

import asyncio
import time
from collections.abc import Callable

from kvtier.tiers.base import Tier
from kvtier.transfer import Finished, Transfer

Orders = Callable[[float, bool], list[Transfer]]  # now, whether the tier takes writes


class Mover:
    def __init__(
        self, tier: Tier, orders: Orders, finished: Callable[[Finished, float], None], after_news: Callable[[], None]
    ) -> None:
        """`orders` and `finished`: the store's, of this tier. `after_news` runs after the tier has finished something."""
        self._tier, self._orders, self._finished, self._after_news = tier, orders, finished, after_news

    def listen(self) -> None:
        """From now on, on the running loop, hear what the tier has finished."""
        asyncio.get_running_loop().add_reader(self._tier.fileno(), self._on_news)

    def pump(self) -> None:
        """Start what the store has decided. After any event."""
        for order in self._orders(time.monotonic(), not self._tier.read_only):
            self._tier.start(order)

    def _on_news(self) -> None:
        for done in self._tier.poll():
            self._finished(done, time.monotonic())
        self._after_news()

    def close(self) -> None:
        """The tier finishes what is under way; nothing is heard any more."""
        asyncio.get_running_loop().remove_reader(self._tier.fileno())
        self._tier.close()
