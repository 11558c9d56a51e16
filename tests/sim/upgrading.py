"""What a simulated daemon hands over to the next one: its arena, in which copies still run, and its index as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier import adopting, handing_over
from kvtier.handing_over import Worker
from kvtier.handover import pack, unpack
from kvtier.transfer import Demote, Promote

from . import far_model, tier_model
from .engine_model import ROOT

if TYPE_CHECKING:
    from .node import Node

GENERATION = 7


class Former:
    def __init__(self, node: Node) -> None:
        """Its tiers have ended what they did. Workers that copy go on with it."""
        for tier, model in ((node.tier, tier_model), (node.remote, far_model)):
            for mine in () if tier is None else tier.under_way.values():
                if isinstance(mine.order, Promote):
                    node.arena.end_fill(model._who(mine.order), mine.order.slot, None)
                elif isinstance(mine.order, Demote) and not getattr(mine, "refused", False):
                    node.arena.end_read(model._slot(mine.order), mine.seen)
        here = node.store.lending.engines
        lingering = {engine.name: [Worker(1, 1, 0)] for engine in node.engines if engine.copies and engine.name in here}
        self.arena = node.arena
        self._resets, self._stay, self._others = node.resets, node._of_those_who_stay, node._of_others
        handover = handing_over.handover_of(node.store, lingering, ROOT, GENERATION, node.now)
        node.world.spoil(handover)
        self.packed = b"".join(pack(handover))

    def go_on(self, node: Node) -> None:
        handover = unpack(self.packed)
        adopting.check(node.store, handover)
        adopted = adopting.adopt(node.store, handover, node.now)
        node.leftovers = set(adopted.leftovers)
        node.resets, node._of_those_who_stay, node._of_others = self._resets, self._stay, self._others
        node.counts["adopted_blocks"] += adopted.blocks
        node.counts["adopted_sessions"] += adopted.sessions
        node.counts["leftovers"] += len(adopted.leftovers)
