"""What must hold of frames below RAM at any moment: what lies where, what it counts for. It reads private columns."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from kvtier.block import position_of
from kvtier.codec import Codec

from .frames import Frame
from .tier_model import Disks

if TYPE_CHECKING:
    from kvtier.extents import Extents
    from kvtier.store import BlockStore

    from .drives import Drives
    from .expected_below import ExpectedBelow
    from .node import Node

COUNTED = ("demoted_bytes", "spared_write_bytes", "larger_frames", "promoted_bytes", "spared_read_bytes")


def check(store: BlockStore, below: ExpectedBelow, drives: Drives) -> None:
    """AssertionError names what is broken."""
    places_do_not_overlap(drives.extents)
    frames_fit_their_places(drives.extents, drives.disks)
    nothing_is_lossy_without_a_wish(drives.extents, drives.disks, drives.wishes())
    what_was_written_is_what_counts(store, below)
    drives.coding.check()


def check_node(node: Node) -> None:
    """Likewise, of one of several nodes."""
    for coding in node.codings():
        coding.check()
    spent = node.store.away.demotions.budget.spent
    assert spent == node.remote.written_bytes, f"{node.remote.written_bytes} bytes went to the remote, not {spent}"
    if node.tier is not None and node.world.codecs is not None:
        extents, numbers = node.store.lower.extents, node.store.namespaces
        places_do_not_overlap(extents)
        frames_fit_their_places(extents, node.tier.disks)
        wishes = {numbers[one.digest].number: one.wish for one in node.world.namespaces if one.digest in numbers}
        nothing_is_lossy_without_a_wish(extents, node.tier.disks, wishes)


def places_do_not_overlap(extents: Extents) -> None:
    """Those of blocks, by their real sizes."""
    ranges = []
    for place in extents._table.values():
        (extent, within), stored = divmod(place, extents._units), extents.stored(place)
        end = (position_of(within, stored) + 1) * stored
        assert end <= extents.extent_bytes, f"place {place} is in two extents"
        ranges.append((extent, end - stored, end))
    for (extent, _, end), (other, begin, _) in pairwise(sorted(ranges)):
        assert extent != other or end <= begin, f"places of extent {extent} overlap at byte {begin}"


def frames_fit_their_places(extents: Extents, disks: Disks) -> None:
    for place in extents._table.values():
        stored, lying = extents.stored(place), disks.content.get(place)
        assert disks.place_bytes[place] == stored, f"place {place} has {disks.place_bytes[place]} bytes, not {stored}"
        if isinstance(lying, Frame):
            assert 0 < lying.stored <= stored < extents.size(place), f"a frame of {lying.stored} bytes is in place {place}"


def nothing_is_lossy_without_a_wish(extents: Extents, disks: Disks, wishes: dict[int, Codec]) -> None:
    for place in extents._table.values():
        lying, namespace = disks.content.get(place), extents.namespace(place)
        if isinstance(lying, Frame):
            is_right = not lying.codec.is_lossy or lying.codec == wishes[namespace]
            assert is_right, f"place {place} went through {lying.codec}"


def what_was_written_is_what_counts(store: BlockStore, below: ExpectedBelow) -> None:
    assert store.lower is not None
    assert store.lower.demotions.budget.spent == below.spent, "what wears the drives out"
    counted = {name: store.stats[name] for name in COUNTED}
    assert counted == {name: below.counts[name] for name in COUNTED}, "how much was moved, and how much spared"
