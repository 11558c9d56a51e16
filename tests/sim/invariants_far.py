"""What must hold of a node's store at any moment, with a remote beside it. It reads private columns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvtier.admission import RATE_BURST_S
from kvtier.block import SLOT_UNIT
from kvtier.transfer import Demote, Erase, Promote, Seek

from . import invariants_coding

if TYPE_CHECKING:
    from .node import Node


def check(node: Node) -> None:
    """AssertionError names what is broken."""
    each_slot_is_in_one_place(node)
    pins_are_those_of_leases_and_writes(node)
    transfers_are_accounted(node)
    links_know_what_is_queued(node)
    what_is_here_is_right(node)
    no_more_is_written_than_the_rate_allows(node)
    invariants_coding.check_node(node)


def each_slot_is_in_one_place(node: Node) -> None:
    store = node.store
    index, slots = store.ram.index, store.ram.slots
    lent = [slot for engine in store.lending.engines.values() for slot in engine.lent]
    dropped = [slot for slot in map(int, index._pins.nonzero()[0]) if not index.holds(slot)]
    free = [slot for numbers in slots._free.values() for slot in numbers]
    staged = [read.promote.slot for read in store.staging._reads.values()]
    unwiped = [slot for slot, _ in store.ram.to_wipe] + list(node.wiping)
    places = Counter([*lent, *index._slot_of.values(), *dropped, *free, *slots._shut, *staged, *unwiped])
    twice = [slot for slot, n in places.items() if n > 1]
    assert not twice, f"slots {twice} are in more than one place"
    every = {slot for slab in range(slots.slabs) if slots.size_of_slab[slab] for slot in slots.slots_of(slab)}
    assert set(places) == every, f"slots {sorted(every ^ set(places))} are lost, or are not of their slab"


def pins_are_those_of_leases_and_writes(node: Node) -> None:
    store = node.store
    pins = Counter(
        slot for name in store.lending.engines for lease in store.leases.of(name).values() for slot in lease.tolist()
    )
    pins.update(demote.slot for demote in store.away.demotions._writing.values())
    if store.lower is not None:
        pins.update(demote.slot for demote in store.lower.demotions._writing.values())
    held = {slot: int(store.ram.index._pins[slot]) for slot in store.ram.index._pins.nonzero()[0].tolist()}
    assert held == dict(pins), "pins are not those of leases and writes"


def transfers_are_accounted(node: Node) -> None:
    away, staging = node.store.away, node.store.staging
    assert set(away._under_way) == set(node.remote.under_way), "what is under way"
    orders = list(away._under_way.values())
    writes = [order for order in orders if isinstance(order, Demote)]
    reads = [order for order in orders if isinstance(order, Promote)]
    assert set(away.demotions._writing) == {order.key for order in writes}, "what is being written"
    assert away.demotions.writing_bytes == sum(order.size for order in writes), "writing_bytes"
    assert staging.reading_bytes("remote") == sum(order.size for order in reads), "reading_bytes"
    theirs = {key for key, read in staging._reads.items() if read.source.tier == "remote"}
    assert theirs == {order.key for order in reads}, "what is being read"
    assert set(away._questions) == {order.ticket for order in orders if isinstance(order, Seek)}, "which questions are open"
    erasing = {order.key for order in orders if isinstance(order, Erase)} | {*away._to_erase, *away._once_more}
    assert away._erasing == erasing, "what is being erased"


def links_know_what_is_queued(node: Node) -> None:
    """What somebody waits for or what is being read, each read once; of each way."""
    staging = node.store.staging
    for tier, source in staging._sources.items():
        waiting = sum(
            one.place_bytes for mine in staging.waiting.values() if tier in mine.parts for one in mine.parts[tier].to_read
        )
        reading = sum(read.promote.place_bytes for read in staging._reads.values() if read.source.tier == tier)
        assert source.link.queued_bytes == waiting + reading, f"what is queued at {tier}"
    for asker, mine in staging.waiting.items():
        left = Counter(mine.tiers.values())
        assert mine.positions and set(mine.positions) == set(mine.tiers), f"{asker} waits for nothing"
        assert all(part.left == left[tier] for tier, part in mine.parts.items()), f"how much {asker} waits for"
    assert not staging.arrived, "somebody was not told"


def what_is_here_is_right(node: Node) -> None:
    ram, staging = node.store.ram, node.store.staging
    for key, slot in ram.index._slot_of.items():
        node.must_hold(slot, key)
        assert bool(ram.is_below[slot]) == ram.has_below(key), f"slot {slot} is on the drives too, or it isn't"
    for slot, parent in ram._awaits.items():
        comes = parent in staging._reads or any(parent in mine.tiers for mine in staging.waiting.values())
        assert comes or ram.has_below(parent), f"what comes before slot {slot} is nowhere, and never comes"


def no_more_is_written_than_the_rate_allows(node: Node) -> None:
    most = node.world.bytes_per_s * (node.now - node.begun_at + RATE_BURST_S) + SLOT_UNIT
    assert node.remote.written_bytes <= most, f"{node.remote.written_bytes} bytes were written, of {most}"


# --- at the end ------------------------------------------------------------------------------------------------


def all_is_quiet(node: Node) -> None:
    store = node.store
    assert not store.leases.bytes and not store.leases.waiting(), "a lease outlived its request"
    assert not node.waiting and not node.wiping and not node.operator.waits, "something is never over"
    node.world.far.arrive(float("inf"))
    node.operator.nothing_came_late()
    assert not store.away._under_way and not node.remote.under_way, "something is never finished"
    assert not store.away._to_ask and not store.away._erasing, "something was never ordered"
    assert not store.away.known._asked, "a question is open for ever"
    assert all(not source.link.queued_bytes for source in store.staging._sources.values())
    assert not any(store.staging._bytes.values()) and not store.staging._reads


def nothing_is_left(node: Node) -> None:
    slots = node.store.ram.slots
    assert slots.taken_bytes == 0 == node.store.lending.lent_bytes, "slots are lost"
    assert not any(slots._free.values()) and slots.closing is None, "slots are lost"
    assert len(slots._unassigned) == slots.slabs, "slabs are lost"
