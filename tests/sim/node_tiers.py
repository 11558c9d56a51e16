"""The tiers of a node of several: its drives and the remote that all share, and what may be written there, and how."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kvtier.admission import Budget
from kvtier.block import PLACE_GRAIN, SLOT_UNIT, BlockKey
from kvtier.codec import RAW
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.store import DRIVE_BYTES_PER_S, DRIVE_LATENCY_S, BlockStore
from kvtier.transfer import Demote

from .arena_model import ArenaModel
from .codecs_model import may_be_written
from .drives import EXTENT_UNITS
from .far_model import RemoteModel
from .frames import Saved
from .heard_coding import HeardCoding
from .tier_model import Disks, Luck, TierModel

if TYPE_CHECKING:
    from .far_world import FarWorld
    from .simulation import Namespace


class NodeTiers:
    world: FarWorld
    name: str
    now: float
    random: Random
    store: BlockStore
    arena: ArenaModel
    stage_s: float
    tier: TierModel | None
    remote: RemoteModel
    contents: dict[BlockKey, Saved]
    _drive_luck: Luck
    _of_those_who_stay: set[BlockKey]
    _of_others: set[BlockKey]
    _told: set[int]  # numbers of namespaces of which an engine has joined

    def _attach_drives(self, disks: Disks) -> None:
        codecs = self.world.codecs
        self.tier = TierModel(disks, self.arena, self.random, lambda: self.now, self._drive_luck, codecs)
        found, extents = self.tier.recovered, Extents(disks.extents, EXTENT_UNITS * SLOT_UNIT, disks.drives)
        columns = (found.places, found.sizes, found.namespaces, found.checksums, found.origins, found.stored)
        extents.recover(found.keys, *columns)
        link, coding = Link(DRIVE_LATENCY_S, DRIVE_BYTES_PER_S), None
        if codecs is not None:
            coding = HeardCoding(unit=PLACE_GRAIN, link=link, extent_bytes=EXTENT_UNITS * SLOT_UNIT, **codecs.settings())
        self.store.attach(extents, Budget(2**40, self.now), self.stage_s, found.remembered, link, coding)

    def _attach_remote(self) -> None:
        rate, codecs = self.world.bytes_per_s, None if self.world.is_peer else self.world.codecs
        link, coding, settings = Link(0.002, 2e8), None, {"without": {}}
        if codecs is not None:
            settings = codecs.settings()
            coding = HeardCoding(unit=1, link=link, write_rate=rate, **settings)
        self.remote = RemoteModel(self.world.far, self.arena, lambda: self.now, self.may_leave, codecs, settings["without"])
        self.store.attach_remote(Budget.of_rate(rate, self.now), link, self.stage_s, coding)

    def codings(self) -> list[HeardCoding]:
        tiers = (tier for tier in (self.store.lower, self.store.away) if tier is not None)
        return [tier.coding for tier in tiers if isinstance(tier.coding, HeardCoding)]

    def tell_wish(self, namespace: Namespace) -> None:
        """An engine of it has joined."""
        self._told.add(self.store.namespaces[namespace.digest].number)
        for coding in self.codings() if namespace.wish != RAW else ():
            coding.wish(self.store.namespaces[namespace.digest].number, namespace.wish)

    def may_leave(self, demote: Demote) -> None:
        stays = demote.key in self._of_those_who_stay and demote.key not in self._of_others
        assert not stays, f"{demote}: its session was to stay on {self.name}"
        self.may_be_written(demote)

    def may_be_written(self, demote: Demote) -> None:
        """What was handed over is written without a loss until one of its engines says what it wishes."""
        wish = RAW if demote.namespace not in self._told else self.contents[demote.key].wish
        assert may_be_written(demote.codec, wish), f"{demote}: its engines wish {wish}"
