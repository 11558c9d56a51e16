"""Who paid for room instead of another tenant, as the store chose: overheard, and judged by looking at every block."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from kvtier.policy import KEPT
from kvtier.store import BlockStore
from kvtier.tenants import ACTIVE_S, NOBODY


@dataclass(frozen=True)
class Charge:
    victim: int  # the slot that the policy had chosen
    paid: int | None  # the slot that went instead


class Charges:
    """Listens at a store. `exact`: its lists of victims are of this moment."""

    def __init__(self, store: BlockStore, exact: bool) -> None:
        self.made: deque[Charge] = deque()
        self._store = store
        charging = store.ram.charging
        if exact:
            charging.lasts_s = 0.0
        is_paid, evict = charging.is_paid, charging._evict
        gone: list[int] = []

        def heard_evict(slot: int, cause: str) -> None:
            gone.append(slot)
            evict(slot, cause)

        def heard(number: int, victim: int, size: int, cause: str, now: float) -> bool:
            gone.clear()
            ought, could = self._ought(number, victim, now), self._could(number, size)
            firsts = self._firsts(could)
            worths = {slot: store.ram.policy.worth_at(slot, now) for slot in firsts}
            is_so = is_paid(number, victim, size, cause, now)
            assert is_so == bool(gone) == (ought and bool(could)), f"tenant {number} for slot {victim}: {gone} of {could}"
            if gone:
                assert gone[0] in could, f"slot {gone[0]} went, and only {could} could"
                is_least = gone[0] in firsts and worths[gone[0]] == min(worths.values())
                assert is_least or not exact, f"slot {gone[0]} went, before {worths}"
            self.made.append(Charge(victim, gone[0] if gone else None))
            return is_so

        charging.is_paid, charging._evict = heard, heard_evict

    def _ought(self, number: int, victim: int, now: float) -> bool:
        """Whether this tenant has more than its fair share, and whose block that is has not, and is active."""
        tenants, held = self._store.ram.tenants, bytes_of(self._store)
        whose = tenants.of(victim)
        if number in (NOBODY, whose) or now - tenants._used_at[whose] >= ACTIVE_S:
            return False
        tenants._fair_bytes(now)  # counts anew who is active, if that is due
        fair = self._store.ram.slots.capacity / tenants._active
        return held[number] > fair >= held[whose]

    def _could(self, number: int, size: int) -> set[int]:
        """Leaves of it that no request under way uses and nothing pins."""
        ram = self._store.ram
        parents = set(ram.policy._parent[list(ram.index._slot_of.values())].tolist())
        return {
            slot
            for slot in ram.index._slot_of.values()
            if ram.tenants.of(slot) == number
            and ram.slots.size_of(slot) == size
            and slot not in parents
            and not ram.index.is_pinned(slot)
            and ram.policy._queue[slot] != KEPT
            and not ram.policy.is_active(slot)
        }

    def _firsts(self, slots: set[int]) -> set[int]:
        """Of each queue the one that is to go first."""
        policy, firsts = self._store.ram.policy, {}
        for slot in sorted(slots, key=lambda slot: (policy._order[slot], slot)):
            firsts.setdefault(int(policy._queue[slot]), slot)
        return set(firsts.values())


def bytes_of(store: BlockStore) -> Counter[int]:
    """Of each tenant, by number, counted block by block."""
    held: Counter[int] = Counter()
    for slot in store.ram.index._slot_of.values():
        held[store.ram.tenants.of(slot)] += store.ram.slots.size_of(slot)
    return held
