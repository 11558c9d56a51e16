"""What must hold of tenants at any moment, in every simulated world. It reads private columns."""

from collections import Counter

from kvtier.policy import KEPT
from kvtier.store import BlockStore

from .charges import bytes_of


def check(store: BlockStore) -> None:
    """AssertionError names what is broken."""
    each_has_what_is_counted(store)
    nobody_has_more_leases_than_he_may(store)


def each_has_what_is_counted(store: BlockStore) -> None:
    tenants, slots = store.ram.tenants, list(store.ram.index._slot_of.values())
    blocks, held = Counter(map(tenants.of, slots)), bytes_of(store)
    for number in range(len(tenants.blocks)):
        assert tenants.blocks[number] == blocks[number], f"blocks of tenant {number}"
        assert tenants.bytes[number] == held[number], f"bytes of tenant {number}"
    for slot in slots:
        tag = int(store.ram.origin[slot, 1])
        assert not tag or tenants._tag_of[tenants.of(slot)] == tag, f"the block in slot {slot} is another tenant's"


def nobody_has_more_than_he_may(store: BlockStore) -> None:
    """Right after a tick; but what can't go: it is read, written, pinned, or other blocks stand behind it."""
    ram, limits, held = store.ram, store.ram.tenants.limits, bytes_of(store)
    parents = set(ram.policy._parent[list(ram.index._slot_of.values())].tolist())
    for number, size in held.items():
        is_over = (limits.bytes and size > limits.bytes) or (limits.blocks and ram.tenants.blocks[number] > limits.blocks)
        for slot in ram.index._slot_of.values() if is_over else ():
            is_loose = not ram.index.is_pinned(slot) and slot not in parents and ram.policy._queue[slot] != KEPT
            assert ram.tenants.of(slot) != number or not is_loose, f"tenant {number} has more than it may, and slot {slot}"


def nobody_has_more_leases_than_he_may(store: BlockStore) -> None:
    tenants = store.ram.tenants
    open_ = Counter(lease.tenant for leases in store.leases._of.values() for lease in leases.values())
    for number in range(len(tenants._loads)):
        assert tenants._loads[number] == open_[number], f"leases of tenant {number}"
        assert not tenants.limits.loads or open_[number] <= tenants.limits.loads, f"tenant {number} has too many leases"
