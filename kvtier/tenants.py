"""Tenants: what each has in RAM, what it may have, and who pays for room. Pure.

    salt of the request ----------.
                                   '--> Tenant (16 bytes) --> its tag, as blocks carry it --> its number here
    user of the engine, if it is --'
    not the daemon's own

Its client may choose the salt, and a user can't: whoever must bound clients lets a gateway set salts. Requests without a
salt are one tenant, too. All tenants have the same limits; a table of them may come when somebody needs one.

    limit         over it
    bytes, blocks what it saves makes room among its own blocks, the least worth first; of no other tenant does anything go
    loads         its lookups are misses until some of its leases are over
    write rate    its blocks stay in RAM and are not written below

Below such limits RAM belongs to whoever uses it best (policy.py), but for one rule: who has more than its fair share pays
itself before a tenant does that is active and has no more than its own. The fair share is the same for all who are active.
Where there is one tenant nothing of this ever happens.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

TENANT_BYTES, TENANT_TAG_BYTES = 16, 8
TAG_SHOWN = 6  # bytes of a tenant that its blocks carry
TENANTS_MAX = 65_536  # at one time; more count as one with those that have no salt
SHOWN_MAX = 20  # in a snapshot
ACTIVE_S = 600.0  # who asked or saved within has a fair share
COUNTED_S = 1.0  # between counts of those who are active
WRITE_BURST_S = 10.0
NOBODY = -1  # nobody in particular needs room; a slot without a block is nobody's
NONE = 0  # the number of those without a salt
_SPARE = 64  # numbers more, whenever there are too few


def tenant_of(user: str, said: bytes) -> bytes:
    """The tenant of a request. `user`: whose engine it is; empty: the daemon's own user, or any, where users share. `said`:
    what its connector made from its salt; empty: it has none."""
    if not user:
        return said
    return hashlib.blake2b(said, key=hashlib.sha256(user.encode()).digest(), digest_size=TENANT_BYTES).digest()


def tag_of(tenant: bytes) -> int:
    """As the blocks carry it; 0: none."""
    return int.from_bytes(tenant[:TAG_SHOWN], "little")


def shown_tag(tag: int) -> str:
    return tag.to_bytes(TENANT_TAG_BYTES, "little")[:TAG_SHOWN].hex() if tag else ""


@dataclass
class Limits:
    """Of each tenant; 0: none."""

    bytes: int = 0  # in RAM
    blocks: int = 0  # in RAM
    loads: int = 0  # leases open at once
    write_rate: float = 0.0  # bytes a second


class Tenants:
    def __init__(self, units: int, capacity: int) -> None:
        self.limits = Limits()
        self._capacity = capacity
        self._of = np.full(units, NOBODY, np.int32)  # by slot; NOBODY: it holds no block
        self._number_of: dict[int, int] = {0: NONE}  # by tag
        self._tag_of: dict[int, int] = {NONE: 0}
        self._spare: list[int] = []
        self.bytes = np.zeros(1, np.int64)  # by number, as the next
        self.blocks = np.zeros(1, np.int64)
        self._loads = np.zeros(1, np.int64)
        self._used_at = np.full(1, -np.inf)
        self._written = np.zeros(1)  # bytes that the write rate has not worked off
        self._written_at = np.zeros(1)
        self._active, self._counted_at = 1, -np.inf

    def __len__(self) -> int:
        """How many are known."""
        return len(self._number_of)

    def number(self, tag: int) -> int:
        """Of the tenant with this tag. It is another's when it has nothing here any more."""
        number = self._number_of.get(tag)
        if number is None:
            if not self._spare:
                self._find_spare()
            number = self._spare.pop() if self._spare else NONE
            if number != NONE:
                self._number_of[tag], self._tag_of[number] = number, tag
        return number

    def use(self, number: int, now: float) -> None:
        """It asks, or saves."""
        self._used_at[number] = now

    # --- what each has -------------------------------------------------------------------------------------------

    def of(self, slot: int) -> int:
        """The number of a block's tenant; NOBODY: there is no block."""
        return int(self._of[slot])

    def others(self, slots: np.ndarray, number: int) -> np.ndarray:
        """Those of these whose blocks are not of this tenant."""
        return slots[self._of[slots] != number]

    def slots_of(self, number: int) -> np.ndarray:
        """Where its blocks are. Looks at every slot."""
        return np.flatnonzero(self._of == number)

    def add(self, slot: int, number: int, size: int) -> None:
        """A block is here."""
        self._of[slot] = number
        self.bytes[number] += size
        self.blocks[number] += 1

    def remove(self, slot: int, size: int) -> None:
        number = self._of[slot]
        self.bytes[number] -= size
        self.blocks[number] -= 1
        self._of[slot] = NOBODY

    # --- what each may -------------------------------------------------------------------------------------------

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit of what one may have in RAM."""
        return bool(self.limits.bytes or self.limits.blocks)

    def has_room(self, number: int, size: int, blocks: int = 1) -> bool:
        """Whether it may have so many bytes in so many blocks more."""
        limits = self.limits
        if limits.bytes and self.bytes[number] + size > limits.bytes:
            return False
        return not limits.blocks or bool(self.blocks[number] + blocks <= limits.blocks)

    def over(self) -> np.ndarray:
        """The numbers of those that have more than they may."""
        has_too_much = np.zeros(len(self.bytes), bool)
        if self.limits.bytes:
            has_too_much |= self.bytes > self.limits.bytes
        if self.limits.blocks:
            has_too_much |= self.blocks > self.limits.blocks
        return np.flatnonzero(has_too_much)

    def pays(self, number: int, victim: int, now: float) -> bool:
        """Whether it should lose a block of its own, and not that in slot `victim`, for the room that it needs."""
        whose = int(self._of[victim])
        if number in (NOBODY, whose) or not 0 <= now - self._used_at[whose] < ACTIVE_S:
            return False
        fair = self._fair_bytes(now)
        return bool(self.bytes[number] > fair >= self.bytes[whose])

    def _fair_bytes(self, now: float) -> float:
        if not 0 <= now - self._counted_at < COUNTED_S:
            self._counted_at = now
            is_active = (now - self._used_at < ACTIVE_S) & (self.blocks > 0)
            self._active = max(1, int(is_active.sum()))
        return self._capacity / self._active

    def may_load(self, number: int) -> bool:
        """Whether it may have one lease more."""
        return not self.limits.loads or bool(self._loads[number] < self.limits.loads)

    def load_begins(self, number: int) -> None:
        self._loads[number] += 1

    def load_ends(self, number: int) -> None:
        self._loads[number] -= 1

    def may_write(self, slot: int, size: int, now: float) -> bool:
        """Whether this block may be written below now, as far as its tenant's rate goes: what comes together in
        WRITE_BURST_S may be, and of larger blocks one."""
        if not self.limits.write_rate:
            return True
        left = self._not_worked_off(int(self._of[slot]), now)
        return left == 0 or left + size <= self.limits.write_rate * WRITE_BURST_S

    def written(self, slot: int, size: int, now: float) -> None:
        if self.limits.write_rate:
            number = int(self._of[slot])
            self._written[number] = self._not_worked_off(number, now) + size
            self._written_at[number] = now

    def unwritten(self, slot: int, size: int) -> None:
        """So much of what was `written` was not written after all."""
        number = int(self._of[slot])
        if self.limits.write_rate and number != NOBODY:
            self._written[number] = max(0.0, self._written[number] - size)

    def _not_worked_off(self, number: int, now: float) -> float:
        passed_s = max(0.0, now - self._written_at[number])
        return max(0.0, float(self._written[number]) - passed_s * self.limits.write_rate)

    # --- what there is -------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, object]:
        """As JSON values; those that have the most, but no more than SHOWN_MAX. None without a salt is shown as ""."""
        most = sorted(self._tag_of, key=lambda number: (-self.bytes[number], self._tag_of[number]))[:SHOWN_MAX]
        return {
            "known": len(self),
            "active": self._active,
            "most": [
                {
                    "tenant": shown_tag(self._tag_of[number]),
                    "bytes": int(self.bytes[number]),
                    "blocks": int(self.blocks[number]),
                    "loads": int(self._loads[number]),
                }
                for number in most
                if self.blocks[number] or self._loads[number]
            ],
        }

    # --- how -----------------------------------------------------------------------------------------------------

    def _find_spare(self) -> None:
        """New ones, or those of tenants that have nothing here."""
        known = len(self.bytes)
        if known < TENANTS_MAX:
            more = min(max(_SPARE, known), TENANTS_MAX - known)
            self._spare = list(range(known + more - 1, known - 1, -1))
            none, nothing = np.zeros(more, np.int64), np.zeros(more)
            self.bytes, self.blocks = np.append(self.bytes, none), np.append(self.blocks, none)
            self._loads, self._used_at = np.append(self._loads, none), np.append(self._used_at, nothing - np.inf)
            self._written = np.append(self._written, nothing)
            self._written_at = np.append(self._written_at, nothing)
            return
        idle = np.flatnonzero((self.blocks == 0) & (self._loads == 0))
        oldest = idle[np.argsort(self._used_at[idle], kind="stable")][: TENANTS_MAX // 16].tolist()
        for number in oldest:
            if number != NONE:
                del self._number_of[self._tag_of.pop(number)]
                self._used_at[number], self._written[number] = -np.inf, 0.0
                self._spare.append(number)
