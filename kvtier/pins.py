"""Sessions that are kept in RAM because somebody wishes it. Pure.

Their blocks stand in no queue (policy.KEPT), within a quota of all pins together; what is beyond it is not pinned, from a
session's end on. A block that several pinned sessions have is kept for as long as one of them is.
"""

import numpy as np

from kvtier.block import ABSENT, leading
from kvtier.policy import KEPT
from kvtier.ram import Ram
from kvtier.session import Session


class Pins:
    def __init__(self, ram: Ram) -> None:
        self.share = 0.25  # of the arena; until the daemon says
        self.usual_s = 3600.0  # how long one lasts of which nothing else is said
        self._ram = ram
        self._of = np.zeros(ram.slots.units, dtype=np.int16)  # by slot that is kept: pins of it
        self.stood = np.ones(ram.slots.units, dtype=np.int16)  # by slot that is kept: the queue where it stood
        self._sessions: dict[int, Session] = {}

    @property
    def bytes(self) -> int:
        return int((self._ram.policy.kept_in_slab * self._ram.slots.size_of_slab).sum())

    @property
    def bytes_max(self) -> int:
        return int(self.share * self._ram.slots.capacity)

    def pin(self, session: Session, until: float) -> tuple[int, np.ndarray]:
        """Keep what of it is in RAM. How many blocks are kept for it now, and slots that are kept no more: of blocks
        that it had once."""
        before = self._let_go(session)
        slots = self._ram.index.find(session.keys)
        slots = slots[: leading(slots != ABSENT)] if session.is_chain else slots[slots != ABSENT]
        slots = slots.astype(np.intp)
        is_new = self._ram.policy.queues(slots) != KEPT
        room = max(0, (self.bytes_max - self.bytes) // session.slot_bytes)
        end = len(slots) if is_new.sum() <= room else int(np.flatnonzero(is_new)[room])
        slots, is_new = slots[:end], is_new[:end]
        self._of[slots[is_new]] = 0
        self.stood[slots[is_new]] = self._ram.policy.queues(slots[is_new])
        self._ram.policy.move(slots[is_new], KEPT)
        self._of[slots] += 1
        session.pinned = b"".join(self._ram.index.key(slot) for slot in slots.tolist())
        session.pin_until = until
        if len(slots):
            self._sessions[session.serial] = session
        return len(slots), before[self._of[before] == 0]

    def unpin(self, session: Session) -> np.ndarray:
        """Slots that are kept no more."""
        before = self._let_go(session)
        session.pin_until = 0.0
        return before[self._of[before] == 0]

    def expired(self, now: float) -> list[Session]:
        return [session for session in self._sessions.values() if session.pin_until <= now and not session.requests]

    def _let_go(self, session: Session) -> np.ndarray:
        """Its pins don't count any more; slots that they held."""
        self._sessions.pop(session.serial, None)
        slots = self._ram.index.find(session.pinned)
        session.pinned = b""
        held = slots[slots != ABSENT].astype(np.intp)
        held = held[self._ram.policy.queues(held) == KEPT]
        self._of[held] -= 1
        return held
