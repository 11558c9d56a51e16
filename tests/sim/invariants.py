"""What must hold of a BlockStore at any moment, whatever happened before. It reads the store's private columns."""

from collections import Counter

import numpy as np

from kvtier.block import SLOT_UNIT
from kvtier.policy import KEPT, QUEUES_MAX, _code
from kvtier.store import BlockStore

from . import invariants_tenants
from .expected import Expected


def check(store: BlockStore, expected: Expected, wiping: set[int]) -> None:
    """AssertionError names what is broken. `wiping`: slots that are overwritten now."""
    each_slot_is_in_one_place(store, expected, wiping)
    a_closing_slab_lets_nothing_in(store, expected)
    lent_slots_stay_within_their_share(store)
    no_two_slots_overlap(store)
    bytes_are_accounted(store, expected)
    index_and_columns_agree(store)
    pins_are_those_of_leases_and_writes(store)
    invariants_tenants.check(store)
    blocks_go_in_the_right_order(store, expected)
    engines_hold_what_they_should(store, expected)


def each_slot_is_in_one_place(store: BlockStore, expected: Expected, wiping: set[int]) -> None:
    lent = [slot for engine in store.lending.engines.values() for slot in engine.lent]
    blocks = list(store.ram.index._slot_of.values())
    pinned = [int(slot) for slot in store.ram.index._pins.nonzero()[0]]
    dropped = [slot for slot in pinned if not store.ram.index.holds(slot)]
    free = [slot for slots in store.ram.slots._free.values() for slot in slots]
    shut = list(store.ram.slots._shut)
    staged = [read.promote.slot for read in store.staging._reads.values()]
    unwiped = [slot for slot, _ in store.ram.to_wipe] + list(wiping)
    places = Counter(lent + blocks + dropped + free + shut + staged + unwiped)
    twice = [slot for slot, n in places.items() if n > 1]
    assert not twice, f"slots {twice} are in more than one place"
    assigned = [slab for slab in range(store.ram.slots.slabs) if store.ram.slots.size_of_slab[slab]]
    every = {slot for slab in assigned for slot in store.ram.slots.slots_of(slab)}
    assert set(places) == every, f"slots {sorted(every ^ set(places))} are lost, or are not of their slab"
    assert sorted([*assigned, *store.ram.slots._unassigned]) == list(range(store.ram.slots.slabs))
    assert set(lent) == set(expected.lent), "lent slots"
    assert set(staged) == expected.staged, "slots that are read into"
    assert set(unwiped) == expected.unwiped, f"slots {sorted(unwiped)} are to be wiped, not {sorted(expected.unwiped)}"
    late = expected.unwiped | expected.secret
    assert store.ram._unwiped == late, f"slots {store.ram._unwiped} are to be wiped now or later, not {late}"
    assert set(dropped) == expected.dropped, "slots that were dropped while leased or written"
    assert store.ram.slots.size_of_slab.tolist() == expected.slab_sizes, "how the slabs are cut"
    assert {store.ram.slots.slab_of(slot) for slot in shut} <= {store.ram.slots.closing}, "slots are shut in an open slab"


def a_closing_slab_lets_nothing_in(store: BlockStore, expected: Expected) -> None:
    slots = store.ram.slots
    assert slots.closing == expected.closing, "which slab is closing"
    if slots.closing is None:
        return
    every = slots.slots_of(slots.closing)
    assert not [slot for slot in every if slots.is_free(slot) or store.ram.index.holds(slot)], "it has free slots or blocks"
    assert slots.taken_in_slab[slots.closing], "it is whole and still closing"
    assert store.ram.closing_for == expected.closing_for != slots.size_of_slab[slots.closing], "for whom it is closing"


def no_two_slots_overlap(store: BlockStore) -> None:
    for size, free in store.ram.slots._free.items():
        wrong = [slot for slot in free if store.ram.slots.size_of(slot) != size]
        assert not wrong, f"slots {wrong} are free under a size that is not theirs"


def bytes_are_accounted(store: BlockStore, expected: Expected) -> None:
    slots = store.ram.slots
    free = sum(size * len(numbers) for size, numbers in slots._free.items())
    free += sum(slots.size_of(slot) for slot in slots._shut)
    cut = sum(slots.slab_bytes // size * size for size in slots.size_of_slab.tolist() if size)
    assert slots.taken_bytes == cut - free, "taken_bytes"
    assert 0 <= slots.taken_bytes <= slots.capacity
    for slab, size in enumerate(slots.size_of_slab):
        its_slots = slots.slots_of(slab) if size else ()
        taken = [slot for slot in its_slots if not slots.is_free(slot) and slot not in slots._shut]
        assert slots.taken_in_slab[slab] == len(taken), f"slab {slab} counts its taken slots wrongly"
    leased = sum(
        len(lease) * engine.kind.slot_bytes
        for name, engine in store.lending.engines.items()
        for lease in store.leases.of(name).values()
    )
    assert store.leases.bytes == leased, "leased_bytes"
    assert leased <= store.leases._bytes_max, "leases pin more than their share"
    refused = sum(store.stats[f"refused_{name}"] for name in ("orphans", "forgotten", "quota"))
    gone = store.stats["evicted_blocks"] + store.stats["reset_blocks"] + refused + expected.lost
    came = store.stats["saved_blocks"] + store.stats["promoted_blocks"]
    assert came - gone == len(store.ram.index), "blocks come and go uncounted"


def lent_slots_stay_within_their_share(store: BlockStore) -> None:
    engines = store.lending.engines.values()
    lent = sum(len(engine.lent) * engine.kind.slot_bytes for engine in engines)
    assert store.lending.lent_bytes == lent, "lent_bytes"
    one_each = sum(engine.kind.slot_bytes for engine in engines)
    assert lent <= store.lending._bytes_max + one_each, "more is lent than the share, and a slot for each engine"


def index_and_columns_agree(store: BlockStore) -> None:
    index = store.ram.index
    by_slot = {slot: key for slot, key in enumerate(index._key_of) if key is not None}
    assert {key: slot for slot, key in by_slot.items()} == index._slot_of, "keys by slot and slots by key"
    assert set((index._namespace >= 0).nonzero()[0].tolist()) == set(by_slot), "each block has a namespace"


def pins_are_those_of_leases_and_writes(store: BlockStore) -> None:
    leases = [lease for name in store.lending.engines for lease in store.leases.of(name).values()]
    pins = Counter(slot for lease in leases for slot in lease.tolist())
    if store.lower is not None:
        pins.update(demote.slot for demote in store.lower.demotions._writing.values())
    if store.mirror is not None:
        pins.update(demote.slot for demote in store.mirror._copying.values())
    held = {slot: int(store.ram.index._pins[slot]) for slot in store.ram.index._pins.nonzero()[0].tolist()}
    assert held == dict(pins), "pins are not those of leases and writes"
    by_slab = Counter(slot // store.ram.slots.slab_units for slot in pins.elements())
    assert store.ram._pins_in_slab.tolist() == [by_slab[slab] for slab in range(store.ram.slots.slabs)], "pins by slab"


def blocks_go_in_the_right_order(store: BlockStore, expected: Expected) -> None:
    assert store.ram.index._slot_of == {key: slot for slot, (key, _) in expected.blocks.items()}, "which blocks are here"
    stamps = store.ram.policy._stamp
    alive = stamps.nonzero()[0].tolist()
    assert set(alive) == set(expected.blocks), "what the policy takes for alive"
    assert sorted(alive, key=lambda slot: stamps[slot]) == expected.order, "in which order blocks were used"
    sums = [0] * store.ram.slots.slabs
    for slot in alive:
        sums[store.ram.slots.slab_of(slot)] += int(stamps[slot])
    assert store.ram.policy._stamps_in_slab.tolist() == sums, "stamps by slab"
    blocks = Counter(map(store.ram.slots.slab_of, alive))
    by_slab = [blocks[slab] for slab in range(store.ram.slots.slabs)]
    assert store.ram.policy.blocks_in_slab.tolist() == by_slab, "blocks by slab"
    every_leaf_is_queued(store, alive)


def every_leaf_is_queued(store: BlockStore, alive: list[int]) -> None:
    """In a heap of its size, under no later order than its own; or put aside, while it is pinned."""
    policy = store.ram.policy
    queued = {
        (_code(size, queue), slot): order
        for size, queues in policy._sizes.items()
        for queue, heap in queues.heaps.items()
        for order, slot in sorted(heap, reverse=True)
    }
    for slot in alive:
        if policy._queue[slot] == KEPT or not policy.is_leaf(slot):
            continue
        code = int(policy._queued[slot])
        if code < 0:
            assert store.ram.index.is_pinned(slot), f"slot {slot} is put aside for ever"
            continue
        assert code // QUEUES_MAX == store.ram.slots.size_of(slot) // SLOT_UNIT, f"slot {slot} is queued under another size"
        order = queued.get((code, slot), np.inf)
        if code == _code(int(policy._size[slot]), int(policy._queue[slot])):
            assert order <= policy._order[slot], f"slot {slot} is not queued"
        else:
            assert order < np.inf, f"slot {slot} is queued nowhere"


def engines_hold_what_they_should(store: BlockStore, expected: Expected) -> None:
    assert set(store.lending.engines) == set(expected.engines)
    for name, engine in store.lending.engines.items():
        assert engine.lent == {slot for slot, holder in expected.lent.items() if holder == name}, f"lent to {name}"
        assert store.lending.target(engine) == expected.target_of(name), f"{name}'s target"
        assert all(slot * SLOT_UNIT + engine.kind.slot_bytes <= store.ram.slots.capacity for slot in engine.lent)
        leases = {(name, lease): slots.tolist() for lease, slots in store.leases.of(name).items()}
        assert leases == {lease: slots for lease, slots in expected.leases.items() if lease[0] == name}, "open leases"
