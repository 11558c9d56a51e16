"""The remote, as the store sees it: what is asked of it, read from it, written to it and erased there. Pure.

Remember  -->  all else          again after a fault, and whether the remote is there or not: it is only told to the tier
Seek      (known.py)             what a lookup doesn't know; its answer is waited for by whom it is worth it (leases.py)
Promote   (staging.py)           what it brings is known to be there, what it doesn't find is known to be missing
Demote    (demotion.py)
Erase                            when no read and no write of the key is under way, and none begins before it is done;
                                 tried until it is. Once more where a write of the key had failed: the other side may
                                 carry it out late

It stands beside the tier below (lower.py) and never before it: nothing here is waited for by anything there. Nothing is
kept of what lies in it but what is known; it makes room by itself.

A namespace that an engine reset is not served: its epoch counts this node's resets, and says nothing to another node.

While it is away nothing is asked, read or written. When it is back nothing is known: it may have lost everything.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kvtier.admission import Budget
from kvtier.block import BlockKey, pack_keys
from kvtier.coding import Coding
from kvtier.demotion import Demotions
from kvtier.estimators import Link
from kvtier.known import Known, Look
from kvtier.ram import Ram
from kvtier.remote_room import RemoteRoom
from kvtier.staging import Staging, Wanted
from kvtier.stats import Stats
from kvtier.transfer import Demote, Erase, Finished, Promote, Remember, Seek, Transfer, UnderWay, is_of_origin

ASK_S = 0.005  # what a question is believed to take until one was answered
HIT_SHARE, HIT_SHARE_MIN = 0.5, 0.05  # of what is asked is there: at first; and nobody stops asking
LEARNT = 0.1  # weight of one more question
OUTLIER, OUTLIER_S = 4.0, 0.01  # one that took more than so many times as long as usual, and so much, counts for no more
LATE_S = 3.0  # so long after the other side is well again it may carry out what it had taken before it hung; and so long
# after it refused an erasure it is not asked for that one again
DOUBTFUL_MAX = 65_536  # keys
REFUSED_S = 30.0  # so long a write that was refused waits; perhaps it is its namespace that may not
READING_SHARE = 0.5  # of what all reads may take


class _Question(NamedTuple):
    seek: Seek
    keys: Sequence[BlockKey]
    is_chain: bool
    asked_at: float


class RemoteSource:
    """The remote, as staging reads from it."""

    tier, called, counters, share, keeps = "remote", "remote", "remote_", READING_SHARE, False

    def __init__(self, away: "Away") -> None:
        self.link = away.link
        self._away = away

    def has(self, one: Wanted, now: float) -> bool:
        return self._away.has(one.key, one.namespace, now)

    def begin(self, one: Wanted) -> tuple[int, int]:
        return one.namespace, 0

    def ended(self, order: Promote) -> None:
        """Nothing was held."""

    def origin(self, order: Promote, done: Finished) -> bytes:
        return done.origin


class Away:
    def __init__(
        self,
        ram: Ram,
        staging: Staging,
        known: Known,
        epochs: Mapping[int, int],
        budget: Budget,
        stats: Stats,
        link: Link,
        coding: Coding | None = None,
    ) -> None:
        """`epochs`: the present epoch of each namespace, by its number; its owner changes it."""
        self.known, self.link, self.staging = known, link, staging
        self.is_away = False
        self.ask_s, self.hit_share = ASK_S, HIT_SHARE
        self.answered: list[int] = []  # questions that are over, since somebody looked
        self.on_arrival: Callable[[int], None] = lambda slot: None  # whoever else writes what comes into this slot
        self.is_off_disk: Callable[[BlockKey], bool] = lambda key: False  # its session wants it so; whoever knows says so
        self._room = RemoteRoom(known, self.shares)
        self.demotions = Demotions(ram, self._room, budget, epochs, stats, is_remote=True, coding=coding)
        self.coding = self.demotions.coding
        self.demotions.is_erasing = self.is_erasing
        staging.attach(RemoteSource(self))
        self._ram, self._epochs, self._stats = ram, epochs, stats
        self._under_way = UnderWay()
        self._remember: dict[int, bytes] = {}  # number -> digest; not yet ordered
        self._to_ask: list[tuple[Seek, Sequence[BlockKey], bool]] = []
        self._questions: dict[int, _Question] = {}  # by ticket
        self._to_erase: OrderedDict[BlockKey, int] = OrderedDict()  # -> namespace; not yet ordered
        self._erasing: set[BlockKey] = set()  # these, and those that are ordered, or will be once more
        self._doubtful: dict[BlockKey, None] = {}  # a write of it failed: nobody knows whether it ever comes
        self._once_more: OrderedDict[BlockKey, tuple[int, float]] = OrderedDict()  # to be erased again: namespace, when
        self._refused: deque[tuple[float, Demote]] = deque()  # when they are tried again
        self._flushes: dict[int, bool | None] = {}  # None: it goes on

    def remember(self, digest: bytes, number: int) -> None:
        """Keys of this namespace may be asked for, from now on."""
        self._remember[number] = digest

    def shares(self, namespace: int) -> bool:
        """Whether its keys mean the same to other nodes."""
        return self._epochs[namespace] == 0

    def serves(self, namespace: int) -> bool:
        """Whether blocks of it are found there now."""
        return not self.is_away and self.shares(namespace)

    def set_away(self, is_away: bool) -> None:
        """Whether the tier leaves it alone, as it says."""
        if self.is_away and not is_away:
            self.known.forget_all()
        self.is_away = is_away

    # --- what is there -----------------------------------------------------------------------------------------

    def look(self, keys: Sequence[BlockKey], namespace: int, is_chain: bool, now: float) -> Look:
        """As Known.look has it. What is being erased isn't there."""
        if not self.serves(namespace):
            return Look([], [], False)
        if self._erasing:
            if is_chain:
                keys = list(itertools.takewhile(lambda key: key not in self._erasing, keys))
            else:
                for key in self._erasing.intersection(keys):
                    self.known.missing(key, now)
        return self.known.look(keys, is_chain, now)

    def has(self, key: BlockKey, namespace: int, now: float) -> bool:
        """As far as is known, and may be read now."""
        return self.serves(namespace) and key not in self._erasing and self.known.is_there(key, now)

    def ask(self, namespace: int, keys: Sequence[BlockKey], is_chain: bool) -> None:
        """A question that `look` gave."""
        seek = Seek(self._under_way.ticket(), namespace, pack_keys(keys))
        self.known.ask(seek.ticket, keys)
        self._to_ask.append((seek, keys, is_chain))
        self._stats.add("remote_asked_keys", len(keys))

    def awaited(self, keys: Iterable[BlockKey]) -> set[int]:
        """The questions in which these stand; each will be in `answered`."""
        return self.known.questions_of(keys)

    # --- orders ------------------------------------------------------------------------------------------------

    def transfers(self, now: float, writable: bool) -> list[Transfer]:
        """What is to be started now. What many blocks depend on comes first."""
        self._room.now = now
        orders: list[Transfer] = [self._under_way.begin(self._telling(number)) for number in list(self._remember)]
        orders += self._seeks(now)
        orders += self._under_way.begin_all(lambda ticket: self.staging.next("remote", ticket, now))
        if writable and not self.is_away:
            while self._refused and self._refused[0][0] <= now:
                self.demotions.retry(self._refused.popleft()[1])
            orders += self._erasures(now)
            orders += self._under_way.begin_all(lambda ticket: self.demotions.next(ticket, now))
        return orders

    def _telling(self, number: int) -> Remember:
        return Remember(self._under_way.ticket(), self._remember.pop(number), number, 0)

    def _seeks(self, now: float) -> Iterator[Seek]:
        if self.is_away:
            for seek, keys, _ in self._to_ask:
                self.known.fail(seek.ticket, keys)
                self.answered.append(seek.ticket)
            self._to_ask.clear()
        while self._to_ask and self._under_way.room:
            question = _Question(*self._to_ask.pop(0), now)
            self._questions[question.seek.ticket] = question
            self._under_way.begin(question.seek)
            yield question.seek

    def _erasures(self, now: float) -> Iterator[Erase]:
        while self._once_more and next(iter(self._once_more.values()))[1] <= now:
            key, (namespace, _) = self._once_more.popitem(last=False)
            self._to_erase[key] = namespace
        for _ in range(min(len(self._to_erase), self._under_way.room)):  # of millions, perhaps
            key, namespace = self._to_erase.popitem(last=False)
            if self.staging.is_reading_key(key) or self.demotions.is_writing(key):
                self._to_erase[key] = namespace
            else:
                self.known.missing(key, now)
                order = Erase(self._under_way.ticket(), 0, 0, key, namespace)
                self._under_way.begin(order)
                yield order

    # --- what came of them -------------------------------------------------------------------------------------

    def finished(self, done: Finished, now: float) -> None:
        self._room.now = now
        order = self._under_way.pop(done.ticket)
        if isinstance(order, Seek):
            self._learn(self._questions.pop(done.ticket), done, now)
        elif isinstance(order, Promote):
            self._promoted(order, done, now)
        elif isinstance(order, Demote):
            if done.fault not in ("", "larger"):
                self._doubt(order.key)
            self.demotions.finished(order, done)
            for left in self.demotions.left_behind:
                self.erase(left.key, left.namespace)
            self.demotions.left_behind.clear()
            self._refused += [(now + REFUSED_S, refused) for refused in self.demotions.refused]
            self.demotions.refused.clear()
        elif isinstance(order, Erase):
            self._erased(order, done, now)
        elif isinstance(order, Remember) and done.fault:
            self._remember.setdefault(order.namespace, order.digest)

    def _learn(self, question: _Question, done: Finished, now: float) -> None:
        seek, keys, is_chain, asked_at = question
        if done.fault:
            self.known.fail(seek.ticket, keys)
        else:
            took_s = min(now - asked_at, OUTLIER * self.ask_s + OUTLIER_S)
            self.ask_s += LEARNT * (took_s - self.ask_s)
            found = sum(1 for size in done.sizes if size) / len(keys)
            self.hit_share += LEARNT * (max(HIT_SHARE_MIN, found) - self.hit_share)
            self.known.learn(seek.ticket, keys, done.sizes, is_chain, now)
        self.answered.append(seek.ticket)

    def _promoted(self, order: Promote, done: Finished, now: float) -> None:
        self.coding.read(order, done)
        if not done.fault:
            self.known.there(order.key, done.stored or order.place_bytes, now)
        elif done.fault in ("gone", "corrupt"):
            self.known.missing(order.key, now)
        slot = self.staging.finished(order, done, now)
        if slot is not None:
            self._ram.stays[slot] = self.is_off_disk(order.key)
            self.demotions.promoted(slot)
            self.on_arrival(slot)

    def saved(self, keys: list[BlockKey], slots: np.ndarray) -> None:
        """New blocks in RAM."""
        self.demotions.saved(keys, slots)

    # --- what is forgotten by wish -----------------------------------------------------------------------------

    def erase(self, key: BlockKey, namespace: int) -> None:
        """Nothing of it is to be there, whether something is now or not. What is read or written of it now is wanted no
        more, and ends first."""
        self.demotions.forget_key(key)
        self.staging.forget_key(key)
        if key not in self._erasing:
            self._erasing.add(key)
            self._to_erase[key] = namespace

    def _erased(self, order: Erase, done: Finished, now: float) -> None:
        if done.fault == "refused":
            self._once_more[order.key] = order.namespace, now + LATE_S
            return
        if done.fault:
            self._to_erase[order.key] = order.namespace
            return
        self.known.missing(order.key, now)  # an answer of before may have come meanwhile
        if order.key in self._doubtful:
            del self._doubtful[order.key]
            self._once_more[order.key] = order.namespace, now + LATE_S
        else:
            self._erasing.discard(order.key)
            self._stats.add("remote_erased_blocks")

    def _doubt(self, key: BlockKey) -> None:
        self._doubtful[key] = None
        if len(self._doubtful) > DOUBTFUL_MAX:
            del self._doubtful[next(iter(self._doubtful))]

    def is_erasing(self, key: BlockKey) -> bool:
        return key in self._erasing

    def moving_of_origin(self, session_tag: bytes, tenant_tag: bytes) -> list[BlockKey]:
        """Of blocks that such a session, or such a tenant, was the first to save: those that are being written now."""
        writes = (order for order in self._under_way.values() if isinstance(order, Demote))
        return [order.key for order in writes if is_of_origin(order.origin, session_tag, tenant_tag)]

    # --- flushes -----------------------------------------------------------------------------------------------

    def flush(self, flush: int) -> None:
        """What is a candidate now is to be there. `flushed` says when it is, or that it won't be soon."""
        self._flushes[flush] = None
        self.demotions.await_all(flush)

    def flushed(self, flush: int) -> bool | None:
        """Whether it is so; None: not yet. Of one that is over it is said once."""
        self._flushes.update(dict.fromkeys(self._flushes.keys() & self.demotions.awaited(), True))
        if self._flushes.get(flush) is None and not self.is_away:
            return None
        return bool(self._flushes.pop(flush, None))

    # --- what there is -----------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> dict[str, object]:
        """As JSON values: bytes, counts, milliseconds, shares."""
        return {
            **self.known.snapshot(),
            "writing_bytes": self.demotions.writing_bytes,
            "reading_bytes": self.staging.reading_bytes("remote"),
            "candidates": self.demotions.waiting,
            "waiting_lookups": self.staging.waiting_for("remote"),
            "ask_ms": round(self.ask_s * 1e3, 3),
            "hit_share": round(self.hit_share, 3),
            "is_away": self.is_away,
            "coding": self.coding.snapshot(),
            **self.demotions.budget.snapshot(now),
        }

    @property
    def is_idle(self) -> bool:
        """Nothing is under way and nothing waits."""
        waits = (
            self.demotions.waiting or self._remember or self._to_ask or self._to_erase or self._once_more or self._refused
        )
        return not (self._under_way or waits)
