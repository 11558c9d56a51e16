"""What must come of it below RAM when something is to be forgotten by wish; a part of ExpectedBelow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtier.block import BlockKey
from kvtier.transfer import Demote, Erase, Shred, Transfer

if TYPE_CHECKING:
    from .expected import Expected
    from .expected_below import Lying, Read
    from .expected_sessions import Oblivion


@dataclass(kw_only=True)
class Oblivions:
    erasing: set[int] = field(default_factory=set)  # places that are to be overwritten, until they are
    unwanted: dict[BlockKey, list[Oblivion]] = field(default_factory=dict)  # of what is being written
    shreds: list[bytes] = field(default_factory=list)  # tenants whose data keys are to go, until they are gone

    if TYPE_CHECKING:
        ram: Expected
        blocks: dict[BlockKey, Lying]
        reads: dict[int, Read]
        under_way: dict[int, Transfer]

    def forget_keys(self, oblivion: Oblivion, behind: set[BlockKey]) -> None:
        """Wherever they are below, and whatever is done with them. `behind`: what stood behind them in RAM."""
        gone = oblivion.keys | behind
        for read in self.reads.values():
            if read.order.key in gone:
                read.is_unwanted = True
                self.ram.secret.add(read.order.slot)
                oblivion.slots.add(read.order.slot)
        for order in self.under_way.values():
            if isinstance(order, Demote) and order.key in gone:
                self.unwanted.setdefault(order.key, []).append(oblivion)
        self.erase(oblivion.keys & set(self.blocks), oblivion)

    def erase(self, keys: Iterable[BlockKey], oblivion: Oblivion | None = None) -> None:
        """Of blocks that lie below."""
        for key in keys:
            place = self.blocks.pop(key).place
            self.erasing.add(place)
            if oblivion is not None:
                oblivion.places.add(place)
            self.ram.lost_below([key])

    def note_erasing(self, places: set[int], oblivion: Oblivion) -> None:
        """What the store erases beside that: bytes that nobody can ask for."""
        lying = {lying.place for lying in self.blocks.values()}
        assert not places & lying, "what stays is to be erased"
        self.erasing |= places
        oblivion.places |= places

    def nothing_is_left(self, oblivion: Oblivion) -> None:
        assert not oblivion.keys & set(self.blocks), "something of it lies below"
        assert not oblivion.places & self.erasing, "a place of it isn't erased yet"
        others = [other.tenant for other in self.ram.sessions.oblivions.values()]
        assert self.shreds.count(oblivion.tenant) <= others.count(oblivion.tenant), "its data keys are there still"
        busy = {order.key for order in self.under_way.values() if isinstance(order, Demote)}
        assert not {key for key in oblivion.keys & busy if oblivion in self.unwanted.get(key, [])}, "it is being written"

    def _judge_erase(self, order: Erase) -> None:
        assert order.place in self.erasing, f"{order} of what is wanted"
        others = [other.place for other in self.under_way.values() if isinstance(other, Erase) and other is not order]
        assert order.place not in others, f"{order} twice"

    def _end_erase(self, order: Erase, fault: str) -> None:
        if not fault:
            self.erasing.remove(order.place)

    def _judge_shred(self, order: Shred) -> None:
        ordered = sum(isinstance(other, Shred) and other.tenant == order.tenant for other in self.under_way.values())
        assert ordered <= self.shreds.count(order.tenant), f"{order}, and nobody wants it"

    def _end_shred(self, order: Shred, fault: str) -> None:
        if not fault:
            self.shreds.remove(order.tenant)

    def _left_behind(self, order: Demote) -> None:
        """It was written, though nobody wants it."""
        self.erasing.add(order.place)
        for oblivion in self.unwanted.pop(order.key):
            oblivion.places.add(order.place)
