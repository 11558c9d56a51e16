"""How often kvtierd looks at the clock: often while something happens or waits, seldom while all stands still.

Twenty looks a second cost more than all else that an idle daemon does, and nothing is due in them. A seldom look comes
in time for what is known to be due; whatever happens makes looks frequent again.
"""

import asyncio
import time
from collections.abc import Callable

OFTEN_S = 0.05
SELDOM_S = 1.0
RESTLESS_S = 1.0  # after whatever happened, looks are frequent for so long


class Beat:
    def __init__(self, look: Callable[[float], None], waits: Callable[[], bool], due_at: Callable[[], float]) -> None:
        """`look` is told the time. `waits`: whether somebody waits for what only time brings. `due_at`: when something is
        to be done of which nobody else will remind us; infinity for never."""
        self._look, self._waits, self._due_at = look, waits, due_at
        self._stirred_at = time.monotonic()
        self._next: asyncio.TimerHandle | None = None
        self._is_seldom = False
        self.late_s = 0.0  # the look that is being taken, or was last: whatever came had to wait so long

    def begin(self) -> None:
        """On the running loop, for as long as that runs."""
        self._loop = asyncio.get_running_loop()
        self._beat()

    def stir(self) -> None:
        """Something happened."""
        self._stirred_at = time.monotonic()
        if self._is_seldom and self._next is not None:
            self._next.cancel()
            self._after(OFTEN_S)

    def _beat(self) -> None:
        now = time.monotonic()
        self.late_s = 0.0 if self._next is None else max(0.0, now - self._next.when())
        self._next = None
        self._look(now)
        is_restless = now - self._stirred_at < RESTLESS_S or self._waits()
        self._after(OFTEN_S if is_restless else max(OFTEN_S, min(SELDOM_S, self._due_at() - now)))

    def _after(self, seconds: float) -> None:
        self._is_seldom = seconds > OFTEN_S
        self._next = self._loop.call_later(seconds, self._beat)
