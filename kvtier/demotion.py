"""Blocks on their way from RAM to a tier below: to the drives, or to the remote. Pure.

Write behind: a block is a candidate when it is saved, and again when it is used again. Candidates that were used again
go first. What is written stays pinned in RAM until it is; so much at a time, that evictions never wait for a drive.

    saved ------> first -----.                      refused: no budget, too large; gone: evicted before its turn
    used again -> again ---> candidates --> writing --> below
                                 ^             |
                                 '-- failed ---'

What its session wants on no disk, or what is over, is not written. What is forgotten by wish while it is written is
left behind: its place holds bytes that are to be erased.

To the remote nothing goes that was used only once, for most of it is never asked for again: candidates are what was used
again and what is hurried. Nor does what its session wants to stay on this node.

A conversation that returned: when a request ends, all its blocks are named. If half of them had been used before, the
others, which are new, are taken to be worth as much.

How it is written, and so how large its place is, coding.py says. Budget, rate and place are taken before anybody knows how
large its frame becomes. What was taken too much for it is given back when it is known: nothing wears out or fills up by
bytes that were never written. A block whose frame does not fit its place is written again at once, as it is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np

from kvtier.admission import Budget
from kvtier.block import ABSENT, BlockKey
from kvtier.codec import RAW, Codec
from kvtier.coding import Coding
from kvtier.ram import Ram
from kvtier.stats import Stats
from kvtier.transfer import Demote, Finished

CANDIDATES_MAX = 65_536  # of either kind; more push out the oldest
LOOKED_AT_MAX = 4096  # at one time, for the next write: most may have gone while nothing could be written; some 10 ms
WRITING_SHARE = 1 / 8  # of the arena may be pinned by writes
WRITING_BYTES_MAX = 64 * 1024**2
RETURNED_SHARE = 0.5  # of a request's blocks that were used before


class Room(Protocol):
    """Where blocks are written to: extents.py of the drives, remote_room.py of the remote."""

    def __contains__(self, key: BlockKey) -> bool: ...
    def serves(self, namespace: int) -> bool: ...  # whether blocks of this namespace may be there
    def fits(self, size: int) -> bool: ...
    def place_bytes(self, size: int, stored: int) -> int: ...  # of the place that `take` gives now: `stored` or more
    def take(self, size: int, stored: int = 0) -> int | None: ...  # a place; `add` or `give_up` follows. None: not now
    def add(
        self, place: int, key: BlockKey, namespace: int, checksum: int, origin: bytes = b"", written: int = 0
    ) -> None: ...
    def give_up(self, place: int, origin: bytes = b"") -> None: ...


class Demotions:
    def __init__(
        self,
        ram: Ram,
        room: Room,
        budget: Budget,
        epochs: Mapping[int, int],
        stats: Stats,
        *,
        is_remote: bool = False,
        coding: Coding | None = None,
    ) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it. `is_remote`: the room is the
        remote's. Then what lies there is no reason for blocks behind it to stay in RAM: it may go without a word. Without
        `coding` all is written as it is."""
        self.budget, self.room, self.coding = budget, room, coding or Coding()
        self._ram, self._epochs, self._stats = ram, epochs, stats
        self._is_remote = is_remote
        self._first: deque[BlockKey] = deque()
        self._again: deque[BlockKey] = deque()
        self._used_again = np.zeros(ram.slots.units, dtype=bool)  # by slot
        self._writing: dict[BlockKey, Demote] = {}
        self._bytes = 0
        self._bytes_max = min(WRITING_BYTES_MAX, int(ram.slots.capacity * WRITING_SHARE))
        self._awaited: dict[int, set[BlockKey]] = {}  # flush -> candidates that it waits for
        self.watched: set[BlockKey] = set()  # of what was put in, what was neither written nor refused yet
        self._unwanted: set[BlockKey] = set()  # of what is written, by wish
        self._larger: set[BlockKey] = set()  # of what is to be written as it is: its frame did not fit
        self.refused: list[Demote] = []  # by the remote; whoever owns this says when they are tried again
        self.left_behind: list[Demote] = []  # of blocks that were written though nobody wants them
        self.is_over: Callable[[int], bool] = lambda slot: False  # whoever knows of sessions says so
        self.is_erasing: Callable[[BlockKey], bool] = lambda key: False  # what was there of it; whoever does so says so

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
        for key in keys if not self._is_remote else ():
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
        """They are written first, in this order: their sessions are not to come back soon, or not to this node."""
        for slot in slots[::-1].tolist():
            key = self._ram.index.key(slot)
            if key not in self.room:
                self._used_again[slot] = True
                if key not in self._writing:
                    self._again.appendleft(key)
        while len(self._again) > CANDIDATES_MAX:  # a remote may be away for days
            self._handled(self._again.pop())
            self._count("refused_queue")

    def promoted(self, slot: int) -> None:
        """A block came back from the drives: it was used again."""
        self._used_again[slot] = True

    def arrived(self, slot: int) -> None:
        """A block came from another tier below, because somebody wants it."""
        self._used_again[slot] = False  # of whatever was here before
        self.used_again(np.array([slot]))

    def forgotten(self, keys: list[BlockKey]) -> None:
        """Their extent was reclaimed. What of it is in RAM gets another place when it is used once more; not before, or
        drives that are smaller than RAM would write the same blocks in turn for ever."""
        slots = self._ram.index.find(b"".join(keys)) if keys else np.empty(0, np.uint32)
        self._used_again[slots[slots != ABSENT]] = False

    def _queue(self, candidates: deque[BlockKey], key: BlockKey) -> None:
        if key in self.room or key in self._writing:
            return
        candidates.append(key)
        if len(candidates) > CANDIDATES_MAX:
            self._handled(candidates.popleft())
            self._count("refused_queue")

    # --- writing ---------------------------------------------------------------------------------------------

    def next(self, ticket: int, now: float) -> Demote | None:
        """The next write; None when there is none, when enough is under way or was looked at, or when no place is free
        now."""
        for _ in range(min(self.waiting, LOOKED_AT_MAX)):
            candidates = self._again or self._first
            key = candidates[0]
            slot = int(self._ram.index.find(key)[0])
            if slot == ABSENT or key in self.room or key in self._writing:
                if slot == ABSENT and key not in self.room:
                    self._count("unwritten_blocks")
                candidates.popleft()
                self._handled(key)
                continue
            size = self._ram.slots.size_of(slot)
            if self._bytes and self._bytes + size > self._bytes_max:
                return None
            codec, stored = self._way(key, slot, size)
            refusal = self._refusal(slot, size, stored, now)
            if refusal:
                candidates.popleft()
                self._count(refusal)
                self._handled(key)
                if refusal == "refused_erasing":
                    self._used_again[slot] = False  # to be written when it is used once more
                continue
            if self.budget.is_short(stored, now):
                return None
            place = self.room.take(size, stored)
            if place is None:
                return None
            candidates.popleft()
            self._ram.tenants.written(slot, stored, now)
            return self._begin(ticket, key, slot, place, size, codec, stored)
        return None

    def _way(self, key: BlockKey, slot: int, size: int) -> tuple[Codec, int]:
        """How it is written, and the bytes of its place: as it is, where there is none for a frame."""
        if key in self._larger:
            return RAW, size
        codec, wished = self.coding.choose(self._ram.index.namespace(slot), size)
        stored = self.room.place_bytes(size, wished)
        return (RAW, size) if wished < size <= stored else (codec, stored)

    def _refusal(self, slot: int, size: int, stored: int, now: float) -> str:
        refusal = self.bar(slot, size) or self.budget.refusal(stored, bool(self._used_again[slot]), now)
        return refusal or ("" if self._ram.tenants.may_write(slot, stored, now) else "refused_tenant_rate")

    def bar(self, slot: int, size: int) -> str:
        """Why this block is never written, as the end of a counter's name; empty when it may be."""
        if not self.room.fits(size):
            return "refused_too_large"
        if not self.room.serves(self._ram.index.namespace(slot)):
            return "refused_reset"
        if self.is_erasing(self._ram.index.key(slot)):
            return "refused_erasing"
        if not self._is_remote and self._ram.stays[slot]:
            return "refused_no_disk"
        if self._is_remote and self._ram.stays_here[slot]:
            return "refused_max_tier"
        return "refused_ended" if self.is_over(slot) else ""

    def _begin(self, ticket: int, key: BlockKey, slot: int, place: int, size: int, codec: Codec, stored: int) -> Demote:
        namespace, stored = self._ram.index.namespace(slot), 0 if codec == RAW else stored
        epoch, origin = self._epochs[namespace], self._origin(slot)
        demote = Demote(ticket, key, slot, place, size, namespace, epoch, origin, codec, stored)
        self._ram.pin(np.array([slot]))
        self._writing[key] = demote
        self._bytes += size
        self.budget.spend(demote.place_bytes)
        if key not in self._larger:
            self.coding.begun(namespace, size, codec)
        return demote

    def _origin(self, slot: int) -> bytes:
        origin = self._ram.origin[slot]
        return origin.tobytes() if origin.any() else b""

    def finished(self, demote: Demote, done: Finished) -> None:
        """It is on the drives; or it isn't, and is tried again later, or is wanted no more."""
        del self._writing[demote.key]
        self._bytes -= demote.size
        self.coding.wrote(demote, done)
        written = self._written(demote, done)
        self._ram.unpin(np.array([demote.slot]))
        if demote.key in self._unwanted:
            self._unwanted.discard(demote.key)
            self.room.give_up(demote.place, demote.origin)
            self.left_behind.append(demote)
            self._handled(demote.key)
        elif done.fault == "larger":
            self.room.give_up(demote.place)  # none of its bytes are there
            self._count("larger_frames")
            self._write_as_it_is(demote.key)
        elif done.fault:
            self.room.give_up(demote.place, demote.origin)
            self._count("failed_demotions")
            if done.fault == "refused" and self._is_remote:
                self.refused.append(demote)
            else:
                self.retry(demote)
        elif self._epochs[demote.namespace] != demote.epoch:  # reset meanwhile; it may have been saved anew since
            self.room.give_up(demote.place, demote.origin)
            self.retry(demote)
        else:
            self.room.add(demote.place, demote.key, demote.namespace, done.checksum, demote.origin, written)
            slot = int(self._ram.index.find(demote.key)[0])
            if slot != ABSENT and not self._is_remote:
                self._ram.note_below(slot, True)
            self._count("demoted_blocks")
            self._count("demoted_bytes", written)
            self._count("spared_write_bytes", demote.size - written)
            self._handled(demote.key)

    def _written(self, demote: Demote, done: Finished) -> int:
        """How many bytes were. What else was taken from the budget and from its tenant's rate for them goes back there."""
        if done.fault == "larger":
            written = 0
        elif self._is_remote and not done.fault:
            written = min(done.stored or demote.size, demote.size)
        else:
            return demote.place_bytes  # all of a place; of a write that failed nobody knows how much
        if spared := demote.place_bytes - written:
            self.budget.give_back(spared)
            self._ram.tenants.unwritten(demote.slot, spared)
        return written

    def _write_as_it_is(self, key: BlockKey) -> None:
        """Before all others, if it is here still: no frame is made of it this time."""
        self._larger.add(key)
        self._again.appendleft(key)

    def _count(self, counter: str, n: int = 1) -> None:
        self._stats.add(f"remote_{counter}" if self._is_remote else counter, n)

    def is_writing(self, key: BlockKey) -> bool:
        return key in self._writing

    def forget_key(self, key: BlockKey) -> bool:
        """Nobody wants it written any more. Whether it is being written now."""
        if key in self._writing:
            self._unwanted.add(key)
        return key in self._writing

    def retry(self, demote: Demote) -> None:
        """Later, at another place: behind all others."""
        slot = int(self._ram.index.find(demote.key)[0])
        if slot == ABSENT:
            self._count("unwritten_blocks")
            self._handled(demote.key)
        else:
            again = self._is_remote or self._used_again[slot]
            self._queue(self._again if again else self._first, demote.key)

    # --- flush -----------------------------------------------------------------------------------------------

    def await_all(self, flush: int) -> None:
        """Remember what is waiting or being written now."""
        self.await_only(flush, {*self._first, *self._again, *self._writing})

    def await_only(self, flush: int, keys: Iterable[BlockKey]) -> None:
        """Remember these, which are waiting or being written."""
        self._awaited[flush] = set(keys)

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
            self._larger.discard(key)
            self.watched.discard(key)
            for keys in self._awaited.values():
                keys.discard(key)
