"""Residue: what a slot still holds of those who had it before. Pure.

    an engine fills a slot  |<------- its block ------->|<- tail ->|      slots are rounded up to SLOT_UNIT

A slot goes below, to a remote and to other nodes whole. So its tail is zero before it is lent, whatever lay there before.

And where engines of several users don't share blocks, none of them gets a slot with bytes of another: it is overwritten
with zeros first. What is read into a slot from below overwrites all of it, so nothing is zeroed for that; if the read
fails, the slot holds something of both, and is zeroed for whoever is lent it. While all engines are of one user nothing
but tails is ever zeroed, and nobody keeps books.
"""

import numpy as np

from kvtier.block import SLOT_UNIT

ANYONES, MIXED = -1, -2  # zeros; bytes of who knows whom


class Residue:
    def __init__(self, units: int, slab_units: int, cuts: np.ndarray) -> None:
        """`cuts`: by slab, how often it was cut to a size; its owner changes it."""
        self._slab_units, self._cuts = slab_units, cuts
        self._of_unit = np.zeros(units, np.int16)  # whose bytes are there: a number of a user; 0: the first who came
        self._number_of: dict[str, int] = {}  # by name
        self._user_of: dict[int, int] = {}  # by number of a namespace: of whose engines it is
        self._zeroed: dict[int, list[int]] = {}  # by size: slots that were zeroed for another user, and free then
        self._has_strangers = False  # blocks were read of which nobody knows whose they are: none of its engines came yet
        self._dirty_to = np.zeros(units, np.int64)  # by slot: from so many bytes on it is zero; if it is known
        self._cut_at = np.full(units, -1, np.int64)  # by slot: how often its slab had been cut when that was known

    @property
    def is_kept(self) -> bool:
        """Whether there is anybody from whom something is to be hidden."""
        return len(self._number_of) > 1 or self._has_strangers

    # --- users ---------------------------------------------------------------------------------------------------

    def user(self, name: str) -> int:
        """The number of a user; empty: of all who share blocks."""
        return self._number_of.setdefault(name, len(self._number_of))

    def belongs(self, namespace: int, user: int) -> None:
        """Its blocks are of this user."""
        self._user_of[namespace] = user

    def whose(self, namespace: int) -> str | None:
        """The user whose namespace it is; None: nobody knows."""
        number = self._user_of.get(namespace)
        return None if number is None else next(name for name, known in self._number_of.items() if known == number)

    def is_foreign(self, slot: int, size: int, user: int) -> bool:
        """Whether it holds bytes that this user may not see."""
        if not self.is_kept:
            return False
        whose = self._of_unit[slot : slot + size // SLOT_UNIT]
        return bool(((whose != user) & (whose != ANYONES)).any())

    def zeroed(self, slot: int, size: int) -> None:
        """For a user who waits."""
        self.best(size).append(slot)

    def best(self, size: int) -> list[int]:
        """Slots that are to be lent before others, if they are free still; whoever looks takes from it."""
        return self._zeroed.setdefault(size, [])

    def lent(self, slot: int, size: int, user: int) -> None:
        """This user's engine may write there from now on."""
        self._mark(slot, size, user)

    def filling(self, slot: int, size: int, namespace: int) -> None:
        """A block of this namespace is to be read into all of it; `filled` says that it was."""
        self._has_strangers |= namespace not in self._user_of
        self._dirty_to[slot], self._cut_at[slot] = size, self._cuts[slot // self._slab_units]
        self._mark(slot, size, MIXED)

    def filled(self, slot: int, size: int, namespace: int) -> None:
        """It holds a block of this namespace, and nothing else."""
        if self.is_kept:
            self._mark(slot, size, self._user_of.get(namespace, MIXED))

    def wiped(self, slot: int, size: int) -> None:
        """All of it was overwritten with zeros."""
        self._dirty_to[slot], self._cut_at[slot] = 0, self._cuts[slot // self._slab_units]
        self._mark(slot, size, ANYONES)

    def _mark(self, slot: int, size: int, user: int) -> None:
        if self.is_kept:
            self._of_unit[slot : slot + size // SLOT_UNIT] = user

    # --- tails ---------------------------------------------------------------------------------------------------

    def tail(self, slot: int, size: int, block_bytes: int) -> tuple[int, int]:
        """Where the tail of a slot begins that is lent for blocks of so many bytes, and how many bytes of it are to be
        zeroed now: counted from the arena's begin. From now on it is zero."""
        cuts = int(self._cuts[slot // self._slab_units])
        dirty_to = int(self._dirty_to[slot]) if self._cut_at[slot] == cuts else size
        self._dirty_to[slot], self._cut_at[slot] = block_bytes, cuts
        return slot * SLOT_UNIT + block_bytes, max(0, dirty_to - block_bytes)

    # --- after an upgrade ----------------------------------------------------------------------------------------

    def carry(self) -> tuple[list[str], bytes]:
        """What a kvtierd that takes over the arena must know: users, and whose bytes are where; empty: all of one."""
        return list(self._number_of), self._of_unit.tobytes() if self.is_kept else b""

    def restore(self, users: list[str], whose: bytes) -> None:
        """Before the first engine joins. Of tails nothing is known."""
        self._number_of = {name: number for number, name in enumerate(users)}
        self._has_strangers = bool(whose)  # books are kept, and must go on to be: they were for a reason
        if whose:
            self._of_unit = np.frombuffer(whose, np.int16).copy()
