"""Blocks on their way from RAM to the drives. Pure.

Write behind: a block is a candidate when it is saved, and again when it is used again. Candidates that were used again
go first. What is written stays pinned in RAM until it is; so much at a time, that evictions never wait for a drive.

    saved ------> first -----.                      refused: no budget, too large; gone: evicted before its turn
    used again -> again ---> candidates --> writing --> on the drives
                                 ^             |
                                 '-- failed ---'

What its session wants on no disk, or what is over, is not written. What is forgotten by wish while it is written is
left behind: its place holds bytes that are to be erased.

A conversation that returned: when a request ends, all its blocks are named. If half of them had been used before, the
others, which are new, are taken to be worth as much.
"""

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from kvtier.admission import Budget
from kvtier.block import ABSENT, BlockKey
from kvtier.extents import Extents
from kvtier.ram import Ram
from kvtier.stats import Stats
from kvtier.transfer import Demote, Finished

CANDIDATES_MAX = 65_536  # of either kind; more push out the oldest
WRITING_SHARE = 1 / 8  # of the arena may be pinned by writes
WRITING_BYTES_MAX = 64 * 1024**2
RETURNED_SHARE = 0.5  # of a request's blocks that were used before


class Demotions:
    def __init__(self, ram: Ram, extents: Extents, budget: Budget, epochs: Mapping[int, int], stats: Stats) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it."""
        self.budget = budget
        self._ram, self._extents, self._epochs, self._stats = ram, extents, epochs, stats
        self._first: deque[BlockKey] = deque()
        self._again: deque[BlockKey] = deque()
        self._used_again = np.zeros(ram.slots.units, dtype=bool)  # by slot
        self._writing: dict[BlockKey, Demote] = {}
        self._bytes = 0
        self._bytes_max = min(WRITING_BYTES_MAX, int(ram.slots.capacity * WRITING_SHARE))
        self._awaited: dict[int, set[BlockKey]] = {}  # flush -> candidates that it waits for
        self._unwanted: set[BlockKey] = set()  # of what is written, by wish
        self.left_behind: list[tuple[BlockKey, int]] = []  # blocks that were written though nobody wants them; places
        self.is_over: Callable[[int], bool] = lambda slot: False  # whoever knows of sessions says so

    @property
    def waiting(self) -> int:
        """Candidates, some of which may have gone."""
        return len(self._first) + len(self._again)

    @property
    def writing_bytes(self) -> int:
        return self._bytes

    # --- what becomes a candidate ------------------------------------------------------------------------------

    def saved(self, keys: list[BlockKey], slots: np.ndarray) -> None:
        """New blocks in RAM."""
        self._used_again[slots] = False
        for key in keys:
            self._queue(self._first, key)

    def used_again(self, slots: np.ndarray) -> None:
        """Blocks in RAM that another request found."""
        for slot in slots[~self._used_again[slots]].tolist():
            self._used_again[slot] = True
            self._queue(self._again, self._ram.index.key(slot))

    def request_ended(self, slots: np.ndarray) -> None:
        """All its blocks that are in RAM."""
        if len(slots) and np.count_nonzero(self._used_again[slots]) >= RETURNED_SHARE * len(slots):
            self.used_again(slots)

    def hurry(self, slots: np.ndarray) -> None:
        """Their sessions are not to come back soon: they are written first."""
        for slot in slots.tolist():
            key = self._ram.index.key(slot)
            self._used_again[slot] = True
            if key not in self._extents and key not in self._writing:
                self._again.appendleft(key)

    def promoted(self, slot: int) -> None:
        """A block came back from the drives: it was used again."""
        self._used_again[slot] = True

    def forgotten(self, keys: list[BlockKey]) -> None:
        """Their extent was reclaimed. What of it is in RAM gets another place when it is used once more; not before, or
        drives that are smaller than RAM would write the same blocks in turn for ever."""
        slots = self._ram.index.find(b"".join(keys)) if keys else np.empty(0, np.uint32)
        self._used_again[slots[slots != ABSENT]] = False

    def _queue(self, candidates: deque[BlockKey], key: BlockKey) -> None:
        if key in self._extents or key in self._writing:
            return
        candidates.append(key)
        if len(candidates) > CANDIDATES_MAX:
            self._handled(candidates.popleft())
            self._stats.add("refused_queue")

    # --- writing ---------------------------------------------------------------------------------------------

    def next(self, ticket: int, now: float) -> Demote | None:
        """The next write; None when there is none, when enough is under way, or when no place is free now."""
        while self._first or self._again:
            candidates = self._again or self._first
            key = candidates[0]
            slot = int(self._ram.index.find(key)[0])
            if slot == ABSENT or key in self._extents or key in self._writing:
                if slot == ABSENT and key not in self._extents:
                    self._stats.add("unwritten_blocks")
                candidates.popleft()
                self._handled(key)
                continue
            size = self._ram.slots.size_of(slot)
            if self._bytes and self._bytes + size > self._bytes_max:
                return None
            refusal = self.budget.refusal(size, bool(self._used_again[slot]), now)
            if self._ram.stays[slot]:
                refusal = "refused_no_disk"
            elif self.is_over(slot):
                refusal = "refused_ended"
            if size > self._extents.extent_bytes:
                refusal = "refused_too_large"
            if refusal:
                candidates.popleft()
                self._stats.add(refusal)
                self._handled(key)
                continue
            place = self._extents.take(size)
            if place is None:
                return None
            candidates.popleft()
            return self._begin(ticket, key, slot, place, size)
        return None

    def _begin(self, ticket: int, key: BlockKey, slot: int, place: int, size: int) -> Demote:
        namespace = self._ram.index.namespace(slot)
        demote = Demote(ticket, key, slot, place, size, namespace, self._epochs[namespace], self._origin(slot))
        self._ram.pin(np.array([slot]))
        self._writing[key] = demote
        self._bytes += size
        self.budget.spend(size)
        return demote

    def _origin(self, slot: int) -> bytes:
        origin = self._ram.origin[slot]
        return origin.tobytes() if origin.any() else b""

    def finished(self, demote: Demote, done: Finished) -> None:
        """It is on the drives; or it isn't, and is tried again later, or is wanted no more."""
        del self._writing[demote.key]
        self._bytes -= demote.size
        self._ram.unpin(np.array([demote.slot]))
        if demote.key in self._unwanted:
            self._unwanted.discard(demote.key)
            self._extents.give_up(demote.place, demote.origin)
            self.left_behind.append((demote.key, demote.place))
            self._handled(demote.key)
        elif done.fault:
            self._extents.give_up(demote.place, demote.origin)
            self._stats.add("failed_demotions")
            self._retry(demote)
        elif self._epochs[demote.namespace] != demote.epoch:  # reset meanwhile; it may have been saved anew since
            self._extents.give_up(demote.place, demote.origin)
            self._retry(demote)
        else:
            self._extents.add(demote.place, demote.key, demote.namespace, done.checksum, demote.origin)
            slot = int(self._ram.index.find(demote.key)[0])
            if slot != ABSENT:
                self._ram.note_below(slot, True)
            self._stats.add("demoted_blocks")
            self._stats.add("demoted_bytes", demote.size)
            self._handled(demote.key)

    def is_writing(self, key: BlockKey) -> bool:
        return key in self._writing

    def forget_key(self, key: BlockKey) -> bool:
        """Nobody wants it written any more. Whether it is being written now."""
        if key in self._writing:
            self._unwanted.add(key)
        return key in self._writing

    def _retry(self, demote: Demote) -> None:
        """Later, at another place: behind all others."""
        slot = int(self._ram.index.find(demote.key)[0])
        if slot == ABSENT:
            self._stats.add("unwritten_blocks")
            self._handled(demote.key)
        else:
            self._queue(self._again if self._used_again[slot] else self._first, demote.key)

    # --- flush -----------------------------------------------------------------------------------------------

    def await_all(self, flush: int) -> None:
        """Remember what is waiting or being written now."""
        self._awaited[flush] = {*self._first, *self._again, *self._writing}

    @property
    def is_awaited(self) -> bool:
        """Whether there is a flush."""
        return bool(self._awaited)

    def awaited(self) -> list[int]:
        """Flushes of which all candidates were written or refused; each is named once."""
        done = [flush for flush, keys in self._awaited.items() if not keys]
        for flush in done:
            del self._awaited[flush]
        return done

    def _handled(self, key: BlockKey) -> None:
        """It was written, refused or has gone. If it stood among both kinds, the write that is under way decides."""
        if key not in self._writing:
            for keys in self._awaited.values():
                keys.discard(key)
