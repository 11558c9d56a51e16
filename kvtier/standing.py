"""Where the blocks of sessions stand: which queue of policy.py, by what their sessions do and are expected to do. Pure.

    its session               its blocks stand in the queue
    has a request under way   active
    is idle                   of its category (categories.py); its trunk, and what is common to many, in those of theirs
    announced its return      expected, what it alone has
    is parked                 parked, what it alone has
    was parted from           of what is left, what comes behind the parting
    ended, or went on         ended, what nobody has any more
    without them
    is pinned                 none (pins.py)

Common are the first blocks that so many sessions have, that they say nothing of any: a system prompt. They have a queue of
their own, as of a session that returns every few seconds, within a quota.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from kvtier.block import ABSENT, KEY_BYTES, BlockKey, leading
from kvtier.categories import COMMON, LEFT, TRUNK, Categories
from kvtier.pins import Pins
from kvtier.policy import KEPT
from kvtier.ram import Ram
from kvtier.ranking import ACTIVE, ENDED, EXPECTED, Value
from kvtier.returns import OTHERS
from kvtier.session import Hints, Session, Sessions

COMMON_MIN, COMMON_PART = 8, 1 / 64  # a block that so many sessions have, and so many of all, is common
COMMON_SHARE = 0.25  # of the arena: the quota of common blocks

Pair = tuple[int, int]  # queues: for blocks that are not below, and for those that are


class Standing:
    def __init__(self, ram: Ram, sessions: Sessions, categories: Categories, pins: Pins, value: Value | None) -> None:
        """`value`: the ranking, if it is the one that looks at sessions; the others have queues of their own."""
        self._ram, self._sessions, self._categories, self._pins = ram, sessions, categories, pins
        self._value = value
        self._keeps_some = False  # whether any session ever said so: else no block is looked at

    def here(self, keys: bytes) -> np.ndarray:
        """Slots of those of these that are in RAM."""
        slots = self._ram.index.find(keys)
        return slots[slots != ABSENT].astype(np.intp)

    def pair(self, kind: int | str, namespace: int) -> Pair:
        """Of a category, or of one of the words in ranking.py."""
        if self._value is None:
            return 1, 1
        return self._value.queue(kind, namespace, False), self._value.queue(kind, namespace, True)

    def move(self, keys: bytes, kind: int | str, namespace: int, order: float | None = None) -> np.ndarray:
        """Those of these that are in RAM and not kept stand there now; their slots."""
        slots = self.here(keys)
        slots = slots[self._ram.policy.queues(slots) != KEPT]
        if len(slots) and self._value is not None:
            self._ram.policy.move(slots, self._queues(self.pair(kind, namespace), slots), order)
        return slots

    def expect(self, session: Session) -> None:
        """What it alone has."""
        assert session.expected_at is not None
        self.move(self._sessions.alone(session), EXPECTED, session.namespace, -session.expected_at)

    def leave(self, session: Session, blocks: int) -> None:
        """Another has parted from it, behind so many of its blocks. Mostly that was a prompt from a template, or one that
        was told anew, and what comes behind is not asked for again."""
        session.category = self._categories.of_part(LEFT, session)
        alone = self._sessions.alone(session)
        self.move(alone[max(0, len(alone) - (session.blocks - blocks) * KEY_BYTES) :], session.category, session.namespace)

    def retire(self, keys: bytes) -> None:
        """No session has these any more: they go first."""
        if keys:
            self.move(keys, ENDED, -1)

    def line_up(self, session: Session, now: float, used: bool) -> None:
        """All its blocks, by what it is expected to do. `used`: they were used just now."""
        session.category = self._categories.of(session)
        pairs = [self.pair(session.category, session.namespace)] * 2
        if session.is_branch:
            pairs[0] = self.pair(self._categories.of_part(TRUNK, session), session.namespace)
        slots = self._ram.index.find(session.keys)
        here = np.flatnonzero(slots != ABSENT)
        slots = slots[here].astype(np.intp)
        of_head, of_tail = (self._queues(pair, slots) for pair in pairs)
        wanted = np.where(here < session.tail_at, of_head, of_tail)
        quota = int(COMMON_SHARE * self._ram.slots.capacity) // session.slot_bytes
        common = here < min(quota, self.common_blocks(session.keys))
        if common.any():
            pair = self.pair(self._categories.of_part(COMMON, session), session.namespace)
            wanted = np.where(common, self._queues(pair, slots), wanted)
        if used:
            self._ram.policy.use(slots, wanted, now)
        elif self._value is not None:
            loose = self._ram.policy.queues(slots) != KEPT
            self._ram.policy.move(slots[loose], wanted[loose])

    def loosen(self, slots: np.ndarray, session: Session) -> None:
        """They are pinned no more."""
        if len(slots) and self._value is None:
            self._ram.policy.move(slots, self._pins.stood[slots])
        elif len(slots):
            self._ram.policy.move(slots, self._queues(self.pair(session.category, session.namespace), slots))

    def of_arrival(self, key: BlockKey, namespace: int) -> tuple[int, float | None]:
        """Queue and order of a block that comes from below."""
        session = self._sessions.whose(key)
        kind, order = (OTHERS, None) if session is None else self._of(session)
        return self.pair(kind, namespace)[1], order

    def settle(self, keys: Iterable[BlockKey]) -> None:
        """A request under way that had these was forgotten: they stand where those want them who have them, too."""
        for key in keys:
            if (session := self._sessions.whose(key)) is not None:
                kind, order = self._of(session)
                self.move(key, kind, session.namespace, order)

    def common_blocks(self, keys: bytes) -> int:
        """How many of the first are common."""
        least = max(COMMON_MIN, COMMON_PART * len(self._sessions))
        return leading(self._sessions.lineage.members(keys) >= least) if keys else 0

    def is_over(self, slot: int) -> bool:
        """Whether no session has this block any more."""
        queue = int(self._ram.policy.queues(np.array([slot]))[0])
        return self._value is not None and self._value.kind(queue) == ENDED

    def keep_back(self, slots: np.ndarray, whose: Session | Hints) -> None:
        """They go no deeper than it wants."""
        if whose.no_disk:
            self._ram.stays[slots] = True
        if whose.no_disk or whose.no_remote:
            self._ram.stays_here[slots] = True
            self._keeps_some = True

    def is_to_stay(self, key: BlockKey) -> bool:
        """On this node, when it comes from below."""
        session = self._sessions.whose(key) if self._keeps_some else None
        return session is not None and session.no_remote

    def is_off_disk(self, key: BlockKey) -> bool:
        """Nor on the drives, though another node saved it without a word."""
        session = self._sessions.whose(key) if self._keeps_some else None
        return session is not None and session.no_disk

    def worth_when_expected(self, session: Session, now: float) -> float:
        """Of its blocks that would be read from below; 0 where nobody looks at sessions."""
        if self._value is None or session.expected_at is None:
            return 0.0
        queue = self.pair(EXPECTED, session.namespace)[1]
        return self._value.worth(queue, -session.expected_at, session.used_at, now)

    def weigh(self, namespace: int, seconds_a_byte: Mapping[bool, float]) -> None:
        """What reading a byte saves, where the tier below has it too and where it hasn't."""
        if self._value is not None:
            for is_below, seconds in seconds_a_byte.items():
                self._value.weigh(namespace, is_below, seconds)

    def _of(self, session: Session) -> tuple[int | str, float | None]:
        """Where a block of it stands of which no more is known."""
        if session.requests:
            return ACTIVE, None
        if session.expected_at is not None and self._value is not None:
            return EXPECTED, -session.expected_at
        return session.category, None

    def _queues(self, pair: Pair, slots: np.ndarray) -> np.ndarray:
        return np.where(self._ram.is_below[slots], pair[1], pair[0])
