"""When a Flush may be ordered; a part of ExpectedBelow. When it is over is judged, and not foretold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtier.block import BlockKey

if TYPE_CHECKING:
    from kvtier.transfer import Demote

    from .expected import Expected
    from .expected_below import Lying


@dataclass
class Flushing:
    keys: set[BlockKey]  # that are not settled
    refusals: int  # that were counted when it was asked for


@dataclass(kw_only=True)
class Flushes:
    flushes: dict[int, Flushing] = field(default_factory=dict)

    if TYPE_CHECKING:
        ram: Expected
        blocks: dict[BlockKey, Lying]

        def writes(self) -> list[Demote]: ...

    def flush(self, flush: int, candidates: Iterable[BlockKey], refusals: int) -> None:
        self.flushes[flush] = Flushing({*candidates, *(order.key for order in self.writes())}, refusals)
        self._drop_settled()

    def _drop_settled(self) -> None:
        being_written = {order.key for order in self.writes()}
        here = {key for key, _ in self.ram.blocks.values()}
        for flushing in self.flushes.values():
            gone = {key for key in flushing.keys if key not in here and key not in being_written}
            flushing.keys -= gone | set(self.blocks)

    def _settle(self, keys: set[BlockKey]) -> None:
        for flushing in self.flushes.values():
            flushing.keys -= keys

    def _judge_flush(self, refusals: int) -> None:
        """One of those that were asked for: no more of its blocks are open than were refused."""
        self._drop_settled()
        ready = [flush for flush, mine in self.flushes.items() if len(mine.keys) <= refusals - mine.refusals]
        assert ready, "a Flush before the last write"
        for flush in ready:
            self.flushes[flush].keys.clear()
