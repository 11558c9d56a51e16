"""Draining: before maintenance, what is worth keeping is written below, and to the remote for other nodes. Pure.

    begin --> what is in RAM, of sessions the newest first, then what no session has ---> to the drives and to the remote
          --> what only the drives have, of sessions the newest first: read into RAM ---> to the remote
          --> a flush of the drives --> over

It goes piece by piece, so that neither the queues of what is written nor RAM are filled by it: the next piece begins when
all of the former was written or refused. A tier that gets on with nothing for PATIENCE_S is given up, and so is a remote
that is away; what it lacks is counted as left. What its session forbids, and what is over, is not written, as ever.

It is safe when all that was in RAM and may be written is in one of the tiers, and the drives have said that it lasts.
What drives have kept from a former life of the daemon, and no session has asked for since, stays on them alone.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvtier.away import Away
from kvtier.block import ABSENT, KEY_BYTES, BlockKey, pack_keys, unpack_keys
from kvtier.demotion import Demotions
from kvtier.lower import Lower
from kvtier.ram import Ram
from kvtier.session import Session, Sessions

PIECE_BLOCKS = 256
FETCHED_SHARE = 1 / 16  # of the arena, for what a piece reads from the drives
LOOKED_AT_MAX = 1024  # blocks at one step: some 10 ms, for which engines wait
PATIENCE_S = 30.0
FLUSH = -1  # the number of its flush of the drives; others count from 0


class _Part(NamedTuple):
    """Blocks that are looked at together."""

    keys: list[BlockKey]
    session: Session | None
    first: int = 0  # which of the session's
    is_below: bool = False  # those of them are meant that only the drives have


@dataclass
class _Drain:
    parts: Iterator[_Part] | None = None
    unseen: int = 0  # blocks of sessions that were not looked at yet, wherever they are
    unseen_bytes: int = 0
    below: int = 0  # that only the drives have, and were not read yet
    below_bytes: int = 0
    piece: dict[BlockKey, tuple[int, list[str]]] = field(default_factory=dict)  # sizes, and tiers to write them to
    fetching: dict[BlockKey, int] = field(default_factory=dict)  # sizes
    pending: int = 0  # of all these, at the last look
    moved_at: float = 0.0  # when these became fewer
    given_up: set[str] = field(default_factory=set)  # tiers
    blocks: Counter[tuple[str, str]] = field(default_factory=Counter)  # by tier: "written", "left"
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # blocks
    lost: int = 0  # blocks that were in RAM and are in no tier
    is_flushing: bool = False
    is_flushed: bool = False
    is_over: bool = False

    def count(self, what: str, tier: str, size: int) -> None:
        self.blocks[what, tier] += 1
        self.bytes[what, tier] += size


class Draining:
    def __init__(self, ram: Ram, sessions: Sessions) -> None:
        self.lower: Lower | None = None
        self.away: Away | None = None
        self._ram, self._sessions = ram, sessions
        self._drain: _Drain | None = None

    # --- from outside ----------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Or go on with the one that runs."""
        if self._drain is not None and not self._drain.is_over:
            return
        sessions = list(self._sessions)[::-1]
        drain = self._drain = _Drain(self._parts([session.serial for session in sessions]), moved_at=now)
        drain.unseen = sum(session.blocks for session in sessions)
        drain.unseen_bytes = sum(session.blocks * session.slot_bytes for session in sessions)
        self.step(now)

    def end(self) -> None:
        """Nobody waits for it any more. What was begun is written nevertheless."""
        self._drain = None
        for demotions in self._tiers().values():
            demotions.watched.clear()

    def flushed(self, number: int, is_safe: bool) -> bool:
        """A flush of the drives is over. Whether it was the one of this."""
        if number == FLUSH and self._drain is not None and self._drain.is_flushing:
            self._drain.is_flushed, self._drain.is_over = is_safe, True
        return number == FLUSH

    def state(self) -> dict[str, object]:
        """How far it is, as JSON values: counts and bytes by tier. `left`: at most so many; when it is over, what is worth
        it and is not there."""
        drain = self._drain or _Drain(is_over=True, lost=1)  # nobody knows what is safe
        left: dict[str, int] = {}
        left_bytes: dict[str, int] = {}
        for tier, demotions in self._tiers().items():
            waiting = [size for key, (size, _) in drain.piece.items() if key in demotions.watched]
            left[tier] = drain.unseen + len(waiting) + drain.blocks["left", tier]
            left_bytes[tier] = drain.unseen_bytes + sum(waiting) + drain.bytes["left", tier]
        if "remote" in left:
            left["remote"] += drain.below + len(drain.fetching)
            left_bytes["remote"] += drain.below_bytes + sum(drain.fetching.values())
        return {
            "is_over": drain.is_over,
            "is_safe": drain.is_over and not drain.lost and bool(left) and (self.lower is None or drain.is_flushed),
            "left": left,
            "left_bytes": left_bytes,
            "written": {tier: drain.blocks["written", tier] for tier in left},
            "written_bytes": {tier: drain.bytes["written", tier] for tier in left},
            "refused": dict(drain.refused),
        }

    def step(self, now: float) -> None:
        """Go on: time has passed."""
        looked = 0
        while (drain := self._drain) is not None and not drain.is_over and looked < LOOKED_AT_MAX:
            if not self._is_settled(drain, now):
                return
            part = next(drain.parts, None) if drain.parts is not None else None
            if part is None:
                return self._flush(drain, now)
            if part.is_below:
                self._fetch(drain, part, now)
            else:
                self._see(drain, part)
                self._write(drain, part.keys)
            looked += len(part.keys)

    # --- what there is ---------------------------------------------------------------------------------------------

    def _tiers(self) -> dict[str, Demotions]:
        tiers = {"nvme": self.lower, "remote": self.away}
        return {name: tier.demotions for name, tier in tiers.items() if tier is not None}

    def _parts(self, serials: list[int]) -> Iterator[_Part]:
        """Of sessions as they are by then, for they go on meanwhile."""
        yield from self._of_sessions(serials, False)
        slots = self._ram.index.all().tolist()
        for first in range(0, len(slots), PIECE_BLOCKS):
            here = [slot for slot in slots[first : first + PIECE_BLOCKS] if self._ram.index.holds(slot)]
            keys = pack_keys(self._ram.index.key(slot) for slot in here)
            yield _Part(unpack_keys(self._sessions.nobodys(keys)), None)
        if self.lower is not None and self.away is not None:
            yield from self._of_sessions(serials, True)

    def _of_sessions(self, serials: list[int], is_below: bool) -> Iterator[_Part]:
        for serial in serials:
            if (session := self._sessions.by_serial(serial)) is None:
                continue
            fetched = int(self._ram.slots.capacity * FETCHED_SHARE) // session.slot_bytes
            n = max(1, min(PIECE_BLOCKS, fetched)) if is_below else PIECE_BLOCKS
            for first in range(0, session.blocks, n):
                keys = session.keys[first * KEY_BYTES : (first + n) * KEY_BYTES]
                yield _Part(unpack_keys(keys), session, first, is_below)

    def _see(self, drain: _Drain, part: _Part) -> None:
        """Count what of it is to be done later."""
        session = part.session
        if session is None:
            return
        drain.unseen = max(0, drain.unseen - len(part.keys))
        drain.unseen_bytes = max(0, drain.unseen_bytes - len(part.keys) * session.slot_bytes)
        if self.lower is None or self.away is None:
            return
        keys = pack_keys(part.keys)
        is_below = (self._ram.index.find(keys) == ABSENT) & (self.lower.extents.find(keys) != ABSENT)
        lacks = sum(key not in self.away.demotions.room for key, below in zip(part.keys, is_below.tolist()) if below)
        if session.no_remote and lacks:
            drain.refused["max_tier"] += lacks
        elif not session.no_remote:
            drain.below += lacks
            drain.below_bytes += lacks * session.slot_bytes

    # --- piece by piece --------------------------------------------------------------------------------------------

    def _write(self, drain: _Drain, keys: list[BlockKey]) -> None:
        """What of these is in RAM, to each tier that lacks it."""
        tiers = self._tiers()
        slots_for: dict[str, list[int]] = {tier: [] for tier in tiers}
        for key, slot in zip(keys, self._ram.index.find(pack_keys(keys)).tolist()):
            lacking = [tier for tier, demotions in tiers.items() if slot != ABSENT and key not in demotions.room]
            size = self._ram.slots.size_of(slot) if lacking else 0
            bars = {tier: tiers[tier].bar(slot, size) for tier in lacking}
            if reason := next(filter(None, bars.values()), ""):
                drain.refused[reason.removeprefix("refused_")] += 1
            if wanted := [tier for tier in lacking if not bars[tier]]:
                drain.piece[key] = size, wanted
            for tier in set(wanted) - drain.given_up:
                slots_for[tier].append(slot)
                tiers[tier].watched.add(key)
        for tier, slots in slots_for.items():
            tiers[tier].hurry(np.array(slots, np.intp))

    def _fetch(self, drain: _Drain, part: _Part, now: float) -> None:
        """What of it only the drives have."""
        session = part.session
        assert session is not None and self.lower is not None and self.away is not None
        room = self.away.demotions.room
        if session.no_remote or not room.serves(session.namespace):
            return
        end = part.first + len(part.keys)
        keys = session.keys[: end * KEY_BYTES]
        slots = self._ram.index.find(keys)
        found = self.lower.mark(keys, slots)
        holes = np.flatnonzero(slots[part.first :] == ABSENT)
        within = range(part.first, part.first + int(holes[0]) if session.is_chain and len(holes) else end)
        wanted = [one for one in self.lower.wanted(keys, *found, within, session.is_chain) if one.key not in room]
        drain.below = max(0, drain.below - len(wanted))
        drain.below_bytes = max(0, drain.below_bytes - len(wanted) * session.slot_bytes)
        if "remote" in drain.given_up:
            for one in wanted:
                drain.count("left", "remote", one.size)
        else:
            drain.fetching = {one.key: one.size for one in wanted}
            self.lower.staging.begin_ahead(wanted, now, float("inf"))

    def _is_settled(self, drain: _Drain, now: float) -> bool:
        """Whether the piece that was begun is over: written, or left."""
        tiers = self._tiers()
        coming = [key for key in drain.fetching if self._is_coming(key)]
        pending = len(coming) + sum(len(demotions.watched) for demotions in tiers.values())
        if pending != drain.pending:
            drain.pending, drain.moved_at = pending, now
        for tier, demotions in tiers.items():
            is_stuck = now - drain.moved_at > PATIENCE_S and (demotions.watched or coming)
            if is_stuck or (tier == "remote" and self.away is not None and self.away.is_away):
                drain.given_up.add(tier)
                demotions.watched.clear()
        if coming and "remote" not in drain.given_up:
            return False
        if drain.fetching:
            self._fetched(drain)
        if any(demotions.watched for demotions in tiers.values()):
            return False
        for key, (size, whom) in drain.piece.items():
            for tier in whom:
                drain.count("written" if key in tiers[tier].room else "left", tier, size)
            drain.lost += not any(key in demotions.room for demotions in tiers.values())
        drain.piece.clear()
        return True

    def _is_coming(self, key: BlockKey) -> bool:
        assert self.lower is not None
        return key not in self._ram.index and self.lower.staging.is_coming(key)

    def _fetched(self, drain: _Drain) -> None:
        """No more of it comes."""
        fetched, drain.fetching = drain.fetching, {}
        for key, size in fetched.items():
            if key not in self._ram.index:
                drain.count("left", "remote", size)
        self._write(drain, list(fetched))

    def _flush(self, drain: _Drain, now: float) -> None:
        """All is written; the drives are to say that it lasts."""
        drain.unseen = drain.unseen_bytes = drain.below = drain.below_bytes = 0
        if self.lower is None:
            drain.is_over = True
        elif not drain.is_flushing:
            drain.is_flushing = True
            drain.moved_at = now
            self.lower.demotions.await_only(FLUSH, ())
        else:
            drain.is_over = now - drain.moved_at > PATIENCE_S
