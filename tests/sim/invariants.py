"""What must hold of a BlockStore at any moment, whatever happened before. It reads the store's private columns."""

from collections import Counter

import numpy as np

from kvtier.block import SLOT_UNIT
from kvtier.store import BlockStore

from .expected import Expected


def check(store: BlockStore, expected: Expected) -> None:
    """AssertionError names what is broken."""
    each_slot_is_in_one_place(store, expected)
    a_closing_slab_lets_nothing_in(store, expected)
    lent_slots_stay_within_their_share(store)
    no_two_slots_overlap(store)
    bytes_are_accounted(store)
    index_and_columns_agree(store)
    pins_are_those_of_the_leases(store)
    blocks_go_in_the_right_order(store, expected)
    engines_hold_what_they_should(store, expected)


def each_slot_is_in_one_place(store: BlockStore, expected: Expected) -> None:
    lent = [slot for engine in store._engines.values() for slot in engine.lent]
    blocks = list(store.index._slot_of.values())
    pinned = [int(slot) for slot in store.index._pins.nonzero()[0]]
    dropped = [slot for slot in pinned if not store.index.holds(slot)]
    free = [slot for slots in store.slots._free.values() for slot in slots]
    shut = list(store.slots._shut)
    places = Counter(lent + blocks + dropped + free + shut)
    twice = [slot for slot, n in places.items() if n > 1]
    assert not twice, f"slots {twice} are in more than one place"
    assigned = [slab for slab in range(store.slots.slabs) if store.slots.size_of_slab[slab]]
    every = {slot for slab in assigned for slot in store.slots.slots_of(slab)}
    assert set(places) == every, f"slots {sorted(every ^ set(places))} are lost, or are not of their slab"
    assert sorted([*assigned, *store.slots._unassigned]) == list(range(store.slots.slabs))
    assert set(lent) == set(expected.lent), "lent slots"
    assert set(dropped) == expected.dropped, "slots that were dropped while leased"
    assert store.slots.size_of_slab.tolist() == expected.slab_sizes, "how the slabs are cut"
    assert {store.slots.slab_of(slot) for slot in shut} <= {store.slots.closing}, "slots are shut in an open slab"


def a_closing_slab_lets_nothing_in(store: BlockStore, expected: Expected) -> None:
    slots = store.slots
    assert slots.closing == expected.closing, "which slab is closing"
    if slots.closing is None:
        return
    every = slots.slots_of(slots.closing)
    assert not [slot for slot in every if slots.is_free(slot) or store.index.holds(slot)], "it has free slots or blocks"
    assert slots.taken_in_slab[slots.closing], "it is whole and still closing"
    assert store._closing_for == expected.closing_for != slots.size_of_slab[slots.closing], "for whom it is closing"


def no_two_slots_overlap(store: BlockStore) -> None:
    for size, free in store.slots._free.items():
        wrong = [slot for slot in free if store.slots.size_of(slot) != size]
        assert not wrong, f"slots {wrong} are free under a size that is not theirs"


def bytes_are_accounted(store: BlockStore) -> None:
    slots = store.slots
    free = sum(size * len(numbers) for size, numbers in slots._free.items())
    free += sum(slots.size_of(slot) for slot in slots._shut)
    cut = sum(slots.slab_bytes // size * size for size in slots.size_of_slab.tolist() if size)
    assert slots.taken_bytes == cut - free, "taken_bytes"
    assert 0 <= slots.taken_bytes <= slots.capacity
    for slab, size in enumerate(slots.size_of_slab):
        its_slots = slots.slots_of(slab) if size else ()
        taken = [slot for slot in its_slots if not slots.is_free(slot) and slot not in slots._shut]
        assert slots.taken_in_slab[slab] == len(taken), f"slab {slab} counts its taken slots wrongly"
    engines = store._engines.values()
    leased = sum(len(lease) * engine.slot_bytes for engine in engines for lease in engine.leases.values())
    assert store.leased_bytes == leased, "leased_bytes"
    assert leased <= store._leased_bytes_max, "leases pin more than their share"
    gone = store.stats["evicted_blocks"] + store.stats["reset_blocks"]
    assert store.stats["saved_blocks"] - gone == len(store.index), "blocks come and go uncounted"


def lent_slots_stay_within_their_share(store: BlockStore) -> None:
    engines = store._engines.values()
    lent = sum(len(engine.lent) * engine.slot_bytes for engine in engines)
    assert store.lent_bytes == lent, "lent_bytes"
    one_each = sum(engine.slot_bytes for engine in engines)
    assert lent <= store._lend_bytes_max + one_each, "more is lent than the share, and a slot for each engine"


def index_and_columns_agree(store: BlockStore) -> None:
    index = store.index
    by_slot = {slot: key for slot, key in enumerate(index._key_of) if key is not None}
    assert {key: slot for slot, key in by_slot.items()} == index._slot_of, "keys by slot and slots by key"
    assert set((index._namespace >= 0).nonzero()[0].tolist()) == set(by_slot), "each block has a namespace"


def pins_are_those_of_the_leases(store: BlockStore) -> None:
    leases = [lease for engine in store._engines.values() for lease in engine.leases.values()]
    pins = Counter(slot for lease in leases for slot in lease.tolist())
    held = {slot: int(store.index._pins[slot]) for slot in store.index._pins.nonzero()[0].tolist()}
    assert held == dict(pins), "pins are not those of the leases"
    by_slab = Counter(slot // store.slots.slab_units for slot in pins.elements())
    assert store._pins_in_slab.tolist() == [by_slab[slab] for slab in range(store.slots.slabs)], "pins by slab"


def blocks_go_in_the_right_order(store: BlockStore, expected: Expected) -> None:
    assert store.index._slot_of == {key: slot for slot, (key, _) in expected.blocks.items()}, "which blocks are here"
    stamps = store.lru._stamp
    alive = stamps.nonzero()[0].tolist()
    assert set(alive) == set(expected.blocks), "what the LRU takes for alive"
    assert sorted(alive, key=lambda slot: stamps[slot]) == expected.order, "which block goes first"
    sums = [0] * store.slots.slabs
    for slot in alive:
        sums[store.slots.slab_of(slot)] += int(stamps[slot])
    assert store.lru._stamps_in_slab.tolist() == sums, "stamps by slab"
    blocks = Counter(map(store.slots.slab_of, alive))
    assert store.lru.blocks_in_slab.tolist() == [blocks[slab] for slab in range(store.slots.slabs)], "blocks by slab"
    every_block_is_queued(store, alive)


def every_block_is_queued(store: BlockStore, alive: list[int]) -> None:
    """In the heap of its size, under no later stamp than its own; or put aside, while it is pinned."""
    lru = store.lru
    queued = {(size, slot): stamp for size, heap in lru._heaps.items() for stamp, slot in sorted(heap, reverse=True)}
    for slot in alive:
        size = store.slots.size_of(slot) // SLOT_UNIT
        if lru._queued[slot] == -size:
            assert store.index.is_pinned(slot), f"slot {slot} is put aside for ever"
        else:
            assert lru._queued[slot] == size, f"slot {slot} is queued under another size"
            assert queued.get((size, slot), np.inf) <= lru._stamp[slot], f"slot {slot} is not queued"
    for size, heap in lru._heaps.items():
        assert len(heap) <= 2 * (store.slots.units // size) + 1, "a heap grows and grows"


def engines_hold_what_they_should(store: BlockStore, expected: Expected) -> None:
    assert set(store._engines) == set(expected.engines)
    for name, engine in store._engines.items():
        assert engine.lent == {slot for slot, holder in expected.lent.items() if holder == name}, f"lent to {name}"
        assert store._target(engine) == expected.target_of(name), f"{name}'s target"
        assert all(slot * SLOT_UNIT + engine.slot_bytes <= store.slots.capacity for slot in engine.lent)
        leases = {(name, lease): slots.tolist() for lease, slots in engine.leases.items()}
        assert leases == {lease: slots for lease, slots in expected.leases.items() if lease[0] == name}, "open leases"
