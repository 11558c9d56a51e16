"""The simulated remote: a store that nodes share, and each node's tier on it, which keeps the contract of
kvtier/tiers/base.py as loosely as that allows.

    FarStore      what the other side holds, by namespace and key. It forgets the oldest, and whatever it likes; it freezes
                  for a while; it lies: gives other bytes than were written
    RemoteModel   one life of a node's tier: answers in any order, late, or never; refuses; leaves the store alone when that
                  fails three times or is silent for too long, and finds out by itself when it is well again

Nothing happens but in `start` and `poll`, on a clock that is handed in. It is strict with its caller.
"""

import random
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtier.block import SLOT_UNIT, BlockKey, unpack_keys
from kvtier.codec import RAW
from kvtier.tiers.base import TRANSFERS_MAX
from kvtier.transfer import SEEK_KEYS_MAX, Demote, Erase, Finished, Flush, Promote, Remember, Seek, Transfer

from .codecs_model import CodecsModel
from .frames import Frame, content_in, decoded
from .tier_model import Memory

DEADLINE_S = 2.0  # of a call
FAILURES = 3  # in a row: it is left alone
PROBE_S = 0.5
LATE_S = 2.0  # a write that failed comes by then, or never
REFUSES_S = 1.0  # writes, after it was full
MADE_UP = 0.03  # of the sizes that a Seek gives

Name = tuple[bytes, BlockKey]  # namespace, key


@dataclass(frozen=True)
class FarLuck:
    """How likely what goes wrong is, each time it could."""

    fails: float = 0.03
    refuses: float = 0.02
    lies: float = 0.02
    loses: float = 0.02
    late: float = 0.05
    call_s: float = 0.01  # how long a call takes on the mean


class Value(NamedTuple):
    content: list | Frame  # by unit; or as a codec made it
    by: object  # the tier that wrote it
    begun_at: float
    written_at: float


@dataclass
class FarStore:
    chance: random.Random
    blocks_max: int
    luck: FarLuck
    values: dict[Name, Value] = field(default_factory=dict)  # the oldest first
    frozen_until: float = 0.0
    late: list[tuple[float, Name, "Value"]] = field(default_factory=list)  # writes that failed and come all the same, when
    codecs: CodecsModel | None = None

    def put(self, name: Name, value: Value) -> None:
        self.values.pop(name, None)
        self.values[name] = value
        while len(self.values) > self.blocks_max:
            del self.values[next(iter(self.values))]

    def arrive(self, now: float) -> None:
        for at, name, value in [late for late in self.late if late[0] <= now]:
            self.late.remove((at, name, value))
            self.put(name, value)

    def get(self, name: Name) -> list | Frame | None:
        if self.chance.random() < self.luck.loses:
            self.values.pop(name, None)
        value = self.values.get(name)
        return None if value is None else value.content

    def size(self, name: Name) -> int:
        """Of its body. Where there are codecs, some are made up."""
        if name not in self.values:
            return 0
        size = body_bytes(self.values[name].content)
        is_made_up = self.codecs is not None and self.codecs.random.random() < MADE_UP
        return self.codecs.random.choice((1, 100_000, 2 * size, 2**40)) if is_made_up else size


def body_bytes(content: list | Frame) -> int:
    return content.stored if isinstance(content, Frame) else len(content) * SLOT_UNIT


@dataclass
class _Call:
    order: Transfer
    begun_at: float
    due: float
    seen: list[int] = field(default_factory=list)
    fault: str = ""  # it isn't even tried
    early: tuple[int, ...] | None = None  # of a Seek: what was there when it began


class RemoteModel:
    def __init__(
        self,
        far: FarStore,
        memory: Memory,
        clock: Callable[[], float],
        may_leave: Callable[[Demote], None],
        codecs: CodecsModel | None = None,
        without: Container[str] = (),
    ) -> None:
        """`may_leave` raises when this block must not leave its node so. Without `codecs` all is to be written as it is;
        the machine can't run those that are named in `without`."""
        self.codecs, self._without = codecs, without
        self.far, self.under_way = far, dict[int, _Call]()
        self._memory, self._clock, self._may_leave = memory, clock, may_leave
        self._random = far.chance
        self._digests: dict[int, bytes] = {}  # of namespaces
        self._found: dict[Name, set[int]] = {}  # of which sizes it was said to be there, or was written or read
        self._tickets: set[int] = set()
        self._failures = 0
        self._probe_at: float | None = None  # None: all is well
        self._refuses_until = 0.0
        self.written_bytes = 0  # that were ordered

    @property
    def is_away(self) -> bool:
        return self._probe_at is not None

    @property
    def read_only(self) -> bool:
        return self.is_away or self._clock() < self._refuses_until

    def wakes_at(self) -> float | None:
        """When `poll` has more to say."""
        times = [min(call.due, call.begun_at + DEADLINE_S) for call in self.under_way.values()]
        times += [] if self._probe_at is None else [self._probe_at]
        return min(times, default=None)

    # --- orders ------------------------------------------------------------------------------------------------

    def start(self, order: Transfer) -> None:
        assert order.ticket not in self._tickets, "a ticket is used twice"
        assert len(self.under_way) < TRANSFERS_MAX
        self._tickets.add(order.ticket)
        self.far.arrive(self._clock())
        call = _Call(order, self._clock(), self._due(order))
        if isinstance(order, Remember):
            self._digests[order.namespace] = order.digest
        elif isinstance(order, Demote):
            self._begin_demote(order, call)
        elif isinstance(order, Promote):
            self._begin_promote(order)
        elif isinstance(order, Seek):
            self._begin_seek(order, call)
        elif isinstance(order, Erase):
            assert not self._moves(self._name(order.namespace, order.key)), f"{order} while the block is under way"
        else:
            assert isinstance(order, Flush), f"a remote is asked to {order}"
        if not isinstance(order, Remember | Flush):
            is_refused = isinstance(order, Demote | Erase) and self._clock() < self._refuses_until
            call.fault = "unreachable" if self.is_away else "refused" if is_refused else ""
            call.due = self._clock() if call.fault else call.due
        self.under_way[order.ticket] = call

    def _begin_demote(self, order: Demote, call: _Call) -> None:
        assert order.epoch == 0, f"{order} of a namespace that was reset: it means something else to other nodes"
        assert self._name(order.namespace, order.key) not in self._names(Demote), f"{order}: it is being written"
        assert order.codec == RAW or self.codecs is not None, f"{order}, and there is no codec"
        assert order.place_bytes == order.size, f"{order}: nobody knows how large its value becomes"
        self._may_leave(order)
        call.seen = self._memory.begin_read(_slot(order))
        self.written_bytes += order.place_bytes

    def _begin_promote(self, order: Promote) -> None:
        name = self._name(order.namespace, order.key)
        assert not self._moves(name) and not self._is_erased(name), f"{order}: the block is under way already"
        assert order.place_bytes in self._found.get(name, ()), f"{order} of what nobody found, or of another size"
        assert 0 <= order.stored < order.size, f"{order} of a size that somebody made up"
        self._memory.begin_write(_who(order), _slot(order))

    def _begin_seek(self, order: Seek, call: _Call) -> None:
        keys = unpack_keys(order.keys)
        assert 0 < len(keys) <= SEEK_KEYS_MAX and len(set(keys)) == len(keys), "what a Seek asks for"
        names = {self._name(order.namespace, key) for key in keys}
        for other in self.under_way.values():
            if isinstance(other.order, Seek):
                asked = {self._name(other.order.namespace, key) for key in unpack_keys(other.order.keys)}
                assert not names & asked, "a key is asked for twice at a time"
        if self._happens(0.5):
            call.early = self._sizes(order)

    def _moves(self, name: Name) -> bool:
        return name in self._names(Demote) or name in self._names(Promote)

    def _is_erased(self, name: Name) -> bool:
        return name in self._names(Erase)

    def _names(self, kind: type[Demote | Promote | Erase]) -> set[Name]:
        orders = [call.order for call in self.under_way.values()]
        return {self._name(order.namespace, order.key) for order in orders if isinstance(order, kind)}

    def _name(self, namespace: int, key: BlockKey) -> Name:
        return self._digests[namespace], key

    # --- what comes of them ------------------------------------------------------------------------------------

    def poll(self) -> list[Finished]:
        now = self._clock()
        self.far.arrive(now)
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = now + PROBE_S if now < self.far.frozen_until else None
            self._failures = 0
        done = []
        for ticket in sorted(self.under_way, key=lambda ticket: (self.under_way[ticket].due, ticket)):
            call = self.under_way[ticket]
            if self.is_away and not isinstance(call.order, Remember | Flush):
                call.fault, call.due = "unreachable", now
            if call.due <= now:
                done.append(self._finish(call))
            elif call.begun_at + DEADLINE_S <= now:
                call.fault = "unreachable"
                self._leave_alone()
                done.append(self._finish(call))
            if done:
                self.under_way.pop(done[-1].ticket, None)
        return done

    def _finish(self, call: _Call) -> Finished:
        order, fault, sizes, coded = call.order, call.fault, (), {}
        if isinstance(order, Remember | Flush):
            return Finished(order.ticket)
        if not fault and self._happens(self.far.luck.fails):
            fault = "unreachable"
        if not fault and isinstance(order, Demote) and self._happens(self.far.luck.refuses):
            fault = self._random.choice(("full", "refused"))
            self._refuses_until = self._clock() + REFUSES_S
        if isinstance(order, Demote):
            fault, coded = self._end_demote(order, call, fault)
        elif isinstance(order, Promote):
            fault, coded = self._end_promote(order, fault)
        elif isinstance(order, Erase):
            if not fault or (not call.fault and self._happens(0.5)):
                self.far.values.pop(self._name(order.namespace, order.key), None)
        elif isinstance(order, Seek) and not fault:
            sizes = call.early or self._sizes(order)
            for key, size in zip(unpack_keys(order.keys), sizes):
                if size:
                    self._find(self._name(order.namespace, key), size)
        self._failures = self._failures + 1 if fault in ("unreachable", "corrupt") else 0
        if self._failures >= FAILURES:
            self._leave_alone()
        return Finished(order.ticket, fault, 0, self._clock() - call.begun_at, sizes, **coded)

    def _end_demote(self, order: Demote, call: _Call, fault: str) -> tuple[str, dict[str, object]]:
        """With a fault it may have been written all the same, but what was larger."""
        content, coded = self._memory.content(_slot(order)), {}
        self._memory.end_read(_slot(order), call.seen)
        if order.codec != RAW:
            needed = self.codecs.frame_bytes(order.key, order.codec, content)
            coded = {"coded_s": self.codecs.seconds(order.codec, order.size)}
            if 0 < needed < order.size and order.codec.name not in self._without:
                content = Frame(decoded(content, order.codec), order.codec, needed)
            elif not fault and self.codecs.random.random() < 0.5:  # else it is written as it is
                self.written_bytes -= order.place_bytes
                return "larger", coded
        name = self._name(order.namespace, order.key)
        now = self._clock()
        if not fault:
            self.far.put(name, Value(content, self, call.begun_at, now))
        elif not call.fault and self._happens(0.5):
            at = now + self._random.choice((0.0, 0.5, 1.0)) * LATE_S
            self.far.late.append((at, name, Value(content, self, call.begun_at, at)))
        if fault:
            return fault, {}
        self._find(name, body_bytes(content))
        self.written_bytes -= order.place_bytes - body_bytes(content)
        return "", {"stored": body_bytes(content)} | coded

    def _end_promote(self, order: Promote, fault: str) -> tuple[str, dict[str, object]]:
        """Whatever lies there now is read, be it of another size."""
        name = self._name(order.namespace, order.key)
        lying, coded = None if fault else self.far.get(name), {}
        is_unknown = isinstance(lying, Frame) and lying.codec.name in self._without
        if not fault and (lying is None or is_unknown):
            fault = "gone"
        content = content_in(lying)
        if not fault and (self._happens(self.far.luck.lies) or len(content or ()) * SLOT_UNIT != order.size):
            fault = "corrupt"
            self.far.values.pop(name, None)
        if not fault:
            coded = {"stored": body_bytes(lying)}
            self._find(name, body_bytes(lying))
        if not fault and isinstance(lying, Frame):
            coded |= {"coded_s": self.codecs.seconds(lying.codec, order.size), "codec": lying.codec.name}
        self._memory.end_fill(_who(order), order.slot, None if fault else content)
        return fault, coded

    def _find(self, name: Name, size: int) -> None:
        self._found.setdefault(name, set()).add(size)

    def _sizes(self, order: Seek) -> tuple[int, ...]:
        return tuple(self.far.size(self._name(order.namespace, key)) for key in unpack_keys(order.keys))

    def _leave_alone(self) -> None:
        if self._probe_at is None:
            self._probe_at = self._clock() + PROBE_S

    # --- luck --------------------------------------------------------------------------------------------------

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def _due(self, order: Transfer) -> float:
        if isinstance(order, Remember | Flush):
            return self._clock()
        begin = max(self._clock(), self.far.frozen_until)
        return begin + self._random.expovariate(1 / self.far.luck.call_s) * (40 if self._happens(self.far.luck.late) else 1)

    def freeze(self) -> None:
        """The store has frozen, with calls under way."""
        for call in self.under_way.values():
            if not call.fault and not isinstance(call.order, Remember | Flush):
                call.due = max(call.due, self.far.frozen_until)


def _who(order: Promote) -> str:
    return f"the far read {order.ticket}"


def _slot(order: Demote | Promote) -> list[int]:
    return list(range(order.slot, order.slot + order.size // SLOT_UNIT))
