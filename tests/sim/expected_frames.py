"""What must come of frames below RAM; a part of ExpectedBelow. Which codec a block gets is judged, and not foretold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtier.block import BlockKey
from kvtier.codec import RAW
from kvtier.transfer import Demote, Promote

if TYPE_CHECKING:
    from .expected import Expected
    from .expected_sessions import Oblivion


@dataclass(kw_only=True)
class Frames:
    larger: set[BlockKey] = field(default_factory=set)  # whose frame did not fit, and that were not written since
    counts: Counter[str] = field(default_factory=Counter)  # by the store's own counters
    spent: int = 0  # bytes that were or are being written
    left: float = 0.0  # of the budget
    refused: int = 0  # when `larger` was looked at last

    if TYPE_CHECKING:
        ram: Expected
        bytes_per_day: float
        unwanted: dict[BlockKey, list[Oblivion]]

    def forget_larger(self, refusals: int) -> None:
        """Of what went or was refused since it did not fit; if it comes again, so may its frame."""
        here = {key for key, _ in self.ram.blocks.values()}
        self.larger &= here if refusals == self.refused else set()
        self.refused = refusals

    def _spend(self, order: Demote) -> None:
        assert order.codec == RAW or order.key not in self.larger, f"{order}, and its frame did not fit the last time"
        self.larger.discard(order.key)
        self.left -= order.place_bytes
        self.spent += order.place_bytes

    def _note_larger(self, order: Demote) -> None:
        """Nothing was written: it wears nothing out. It is tried again as it is, if somebody wants it."""
        assert order.codec != RAW, f"{order} is no frame and did not fit"
        if order.key not in self.unwanted:
            self.larger.add(order.key)
            self.counts["larger_frames"] += 1
        self.left = min(self.bytes_per_day, self.left + order.place_bytes)
        self.spent -= order.place_bytes

    def _note_moved(self, order: Demote | Promote) -> None:
        way, moved = ("write", "demoted_bytes") if isinstance(order, Demote) else ("read", "promoted_bytes")
        self.counts[moved] += order.place_bytes
        self.counts[f"spared_{way}_bytes"] += order.size - order.place_bytes
