"""What the store must do with the tier below it; beside Expected, and as plain.

Exact: which lookups wait for what, which reads are ordered for them and when, what they are answered, which block lies
below. Judged, but not foretold: in which order blocks are written, which extent is forgotten, when a Flush is over.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvtier.admission import DAY_S, FIRST_USE_SHARE
from kvtier.block import ABSENT, BELOW, BlockKey, unpack_keys
from kvtier.demotion import RETURNED_SHARE, WRITING_BYTES_MAX, WRITING_SHARE
from kvtier.staging import READING_BYTES_MAX, READING_SHARE
from kvtier.tiers.base import Recovered
from kvtier.transfer import Demote, Erase, Finished, Forget, Promote, Remember, Shred, Transfer

from .drives_link import HeardLink
from .expected import Expected
from .expected_decisions import NEVER
from .expected_flushes import Flushes
from .expected_frames import Frames
from .expected_oblivion import Oblivions

Asker = tuple[str, int]  # engine, lease


@dataclass(frozen=True)
class Lying:
    place: int
    size: int
    namespace: bytes
    checksum: int
    origin: bytes = b""
    place_bytes: int = 0


class Wanted(NamedTuple):
    key: BlockKey
    place: int
    size: int
    before: BlockKey
    place_bytes: int


@dataclass
class Lookup:
    answer: list[int]
    positions: dict[BlockKey, list[int]]
    until: float
    moved_at: float  # when something came for it, or it was its turn
    to_read: list[Wanted]
    uses: bool  # a request is behind it


@dataclass
class Read:
    order: Promote
    namespace: bytes
    resets: int
    askers: list[Asker]
    before: BlockKey
    origin: bytes
    is_unwanted: bool = False


@dataclass
class ExpectedBelow(Oblivions, Flushes, Frames):
    ram: Expected
    capacity: int  # of the arena
    bytes_per_day: float
    stage_s: float
    filled_at: float
    link: HeardLink  # the store's own, to the drives
    numbers: dict[bytes, int] = field(default_factory=dict)  # of namespaces
    blocks: dict[BlockKey, Lying] = field(default_factory=dict)
    used_again: set[BlockKey] = field(default_factory=set)
    under_way: dict[int, Transfer] = field(default_factory=dict)
    reads: dict[int, Read] = field(default_factory=dict)
    waiting: dict[Asker, Lookup] = field(default_factory=dict)
    answers: list[tuple[str, int, list[int]]] = field(default_factory=list)
    told: dict[bytes, int] = field(default_factory=dict)  # namespace -> epoch that the tier heard last
    written: set[BlockKey] = field(default_factory=set)  # ever
    came_bytes: int = 0  # ever
    ahead: list[tuple[float, Wanted, float]] = field(default_factory=list)  # to be read unasked: by when, what it is worth

    def __post_init__(self) -> None:
        self.left = self.bytes_per_day

    def recover(self, recovered: Recovered) -> None:
        digests = {}
        for digest, (number, epoch) in recovered.remembered.items():
            self.numbers[digest], self.told[digest], self.ram.resets[digest] = number, epoch, epoch
            digests[number] = digest
        columns = (recovered.places, recovered.sizes, recovered.namespaces, recovered.checksums, recovered.stored)
        for key, place, size, number, checksum, stored, origin in zip(
            unpack_keys(recovered.keys), *(column.tolist() for column in columns), recovered.origins, strict=True
        ):
            whose = origin.tobytes() if origin.any() else b""
            self.blocks[key] = Lying(place, size, digests[number], checksum, whose, stored)
        self.written |= set(self.blocks)

    def knows(self, namespace: bytes) -> None:
        self.numbers.setdefault(namespace, 1 + max(self.numbers.values(), default=-1))

    # --- lookups ---------------------------------------------------------------------------------------------

    def mark(
        self, found: list[int], keys: list[BlockKey], skip: int, is_chain: bool
    ) -> list[tuple[int, BlockKey, BlockKey]]:
        """Marks in `found` what is here only. Returns what of it is to be read."""
        wanted, hole = [], False
        for position, key in enumerate(keys):
            if found[position] == ABSENT and key in self.blocks:
                found[position] = BELOW
                if position >= skip and not (hole and is_chain):
                    wanted.append((position, key, keys[position - 1] if is_chain and position else b""))
            elif found[position] == ABSENT and position >= skip:
                hole = True
        return wanted

    def wait(
        self, asker: Asker, answer: list[int], wanted: list[tuple[int, BlockKey, BlockKey]], uses: bool, now: float
    ) -> None:
        mine = self.waiting[asker] = Lookup(answer, {}, now + self.stage_s, now, [], uses)
        for position, key, before in wanted:
            if key not in mine.positions:
                lying = self.blocks[key]
                mine.to_read.append(Wanted(key, lying.place, lying.size, before, lying.place_bytes))
            mine.positions.setdefault(key, []).append(position)

    def forget(self, asker: Asker) -> None:
        self.waiting.pop(asker, None)

    def leaving(self, engine: str) -> None:
        self.waiting = {asker: mine for asker, mine in self.waiting.items() if asker[0] != engine}

    def outlook(self, now: float) -> dict[Asker, float]:
        """For how many seconds more each would wait, by what the link says."""
        outlook, ahead = {}, 0
        limit = self.link.stall_limit_s()
        for asker, mine in self.waiting.items():
            reads = {read.order.key: read.order.place_bytes for read in self.reads.values()}
            reads |= {one.key: one.place_bytes for one in mine.to_read}
            own = sum(reads[key] for key in mine.positions)
            is_being_read = any(asker in read.askers and read.order.key in mine.positions for read in self.reads.values())
            stands_still = self.link.silent_s(now) > limit or (is_being_read and now - mine.moved_at > limit)
            outlook[asker] = NEVER if stands_still else self.link.seconds(own, ahead, now)
            ahead += own
        return outlook

    def replan(self, outlook: dict[Asker, float], now: float) -> None:
        """`outlook` from before the store did it."""
        for asker, mine in list(self.waiting.items()):
            arrived = [slot < BELOW for slot in mine.answer]
            if mine.until <= now:
                self._answer(asker, now, "timed_out")
            elif not self.ram.decisions.keeps_waiting(asker, arrived, outlook[asker], now):
                self._answer(asker, now, "timed_out" if outlook[asker] == NEVER else "too_dear")

    def request_ended(self, here: list[BlockKey]) -> None:
        if here and sum(key in self.used_again for key in here) >= RETURNED_SHARE * len(here):
            self.used_again.update(here)

    def reset(self, namespace: bytes) -> None:
        self.blocks = {key: lying for key, lying in self.blocks.items() if lying.namespace != namespace}

    # --- orders ----------------------------------------------------------------------------------------------

    def transfers(self, orders: list[Transfer], now: float, writable: bool, refusals: int) -> None:
        """Judges what the store ordered."""
        reads = [order for order in orders if isinstance(order, Promote)]
        arrived: list[tuple[Asker, BlockKey]] = []
        for order in reads:
            self._judge_read(order, arrived, now)
        assert not self._next_read(None, arrived, now), "a read could be ordered and was not"
        self.forget_larger(refusals)
        rest = [order for order in orders if not isinstance(order, Promote)]
        assert writable or not rest, "writes, though the tier takes none"
        for order in rest:
            self.under_way[order.ticket] = order
            if isinstance(order, Demote):
                self._judge_write(order, now)
            elif isinstance(order, Forget):
                gone = {key for key, lying in self.blocks.items() if order.first <= lying.place < order.end}
                self.used_again -= gone
                for key in gone:
                    del self.blocks[key]
                self.ram.lost_below(gone)
                here = {key for key, _ in self.ram.blocks.values()}
                self.ram.decisions.ghosts.update(dict.fromkeys(gone - here, "its room on the drives was needed"))
            elif isinstance(order, Erase):
                self._judge_erase(order)
            elif isinstance(order, Remember):
                assert self.numbers[order.digest] == order.namespace, "the number of a namespace"
                self.told[order.digest] = order.epoch
            elif isinstance(order, Shred):
                self._judge_shred(order)
            else:
                self._judge_flush(refusals)
        self._drop_settled()
        if writable:
            late = [digest for digest in self.numbers if self.told.get(digest) != self.ram.resets[digest]]
            assert not late, "the tier doesn't know the present epoch of a namespace"
        self._note_arrivals(arrived, now)

    def _judge_read(self, order: Promote, arrived: list[tuple[Asker, BlockKey]], now: float) -> None:
        due = self._next_read(order.slot, arrived, now)
        assert due, f"{order} is ordered, and nobody waits for it"
        askers, (key, place, size, before, place_bytes) = due
        lying = self.blocks[key]
        assert (order.key, order.place, order.size) == (key, place, size) == (key, lying.place, lying.size), "what is read"
        assert order.place_bytes == place_bytes == lying.place_bytes, "how much is read"
        assert order.checksum == lying.checksum, "the checksum of something else"
        self.under_way[order.ticket] = order
        self.reads[order.ticket] = Read(
            order, lying.namespace, self.ram.resets[lying.namespace], askers, before, lying.origin
        )

    def _next_read(self, slot: int | None, arrived: list, now: float) -> tuple[list[Asker], Wanted] | None:
        for asker, mine in self.waiting.items():
            while mine.to_read:
                one = mine.to_read[0]
                read = next((read for read in self.reads.values() if read.order.key == one.key), None)
                lying = self.blocks.get(one.key)
                if read is not None:
                    read.askers.append(asker)
                elif self.ram.slot_of(one.key) is not None or lying is None or lying.place != one.place:
                    arrived.append((asker, one.key))
                elif not self._may_read(one.size) or not self.ram.stage(one.size, slot):
                    return None
                else:
                    mine.moved_at = now
                    return [asker], mine.to_read.pop(0)
                mine.moved_at = now
                mine.to_read.pop(0)
        return self._next_ahead(slot)

    def _next_ahead(self, slot: int | None) -> tuple[list[Asker], Wanted] | None:
        """Nobody waits, but it is thought that somebody will."""
        while self.ahead:
            _, one, worth = self.ahead[0]
            lying, is_read = self.blocks.get(one.key), any(read.order.key == one.key for read in self.reads.values())
            if lying is not None and lying.place == one.place and not is_read and self.ram.slot_of(one.key) is None:
                if not self._may_read(one.size):
                    return None
                if self.ram.stage_ahead(one.size, worth, slot):
                    return [], self.ahead.pop(0)[1]
            self.ahead.pop(0)
        return None

    def _may_read(self, size: int) -> bool:
        """Not too much is read at a time."""
        limit = min(READING_BYTES_MAX, int(self.capacity * READING_SHARE))
        return not self.reads or sum(read.order.size for read in self.reads.values()) + size <= limit

    def _judge_write(self, order: Demote, now: float) -> None:
        key, namespace = self.ram.blocks[order.slot]
        assert key == order.key and key not in self.blocks, f"{order} of another block, or of one that lies there"
        others = [other for other in self.writes() if other is not order]
        assert key not in [other.key for other in others], f"{order}, though it is being written"
        assert order.namespace == self.numbers[namespace] and order.epoch == self.ram.resets[namespace], "namespace"
        assert order.size == self.ram.slab_sizes[self.ram.slab_of(order.slot)], "size"
        limit = min(WRITING_BYTES_MAX, int(self.capacity * WRITING_SHARE))
        assert not others or sum(other.size for other in others) + order.size <= limit, "too much is written at a time"
        self.left = min(self.bytes_per_day, self.left + (now - self.filled_at) * self.bytes_per_day / DAY_S)
        self.filled_at = now
        self._spend(order)
        assert self.left > -1, "the budget is overdrawn"
        assert key not in self.ram.sessions.no_disk, f"{order} of what is to touch no disk"
        first_use = key not in self.used_again
        assert not first_use or self.left + 1 >= self.bytes_per_day * FIRST_USE_SHARE, "first use takes too much"
        self.ram.pins_by_writes[order.slot] += 1

    # --- what came of them -----------------------------------------------------------------------------------

    def finished(self, done: Finished, now: float) -> None:
        order = self.under_way.pop(done.ticket)
        arrived: list[tuple[Asker, BlockKey]] = []
        if isinstance(order, Demote):
            namespace = next(digest for digest, number in self.numbers.items() if number == order.namespace)
            self.ram.pins_by_writes[order.slot] -= 1
            self.ram.free_what_nobody_holds()
            if done.fault == "larger":
                self._note_larger(order)
            if order.key in self.unwanted:
                self._left_behind(order)
                self._settle({order.key})
            elif not done.fault:
                self._settle({order.key})
                if self.ram.resets[namespace] == order.epoch:
                    self.blocks[order.key] = Lying(
                        order.place, order.size, namespace, done.checksum, order.origin, order.place_bytes
                    )
                    self.written.add(order.key)
                    self._note_moved(order)
        elif isinstance(order, Promote):
            read = self.reads.pop(done.ticket)
            arrived = [(asker, order.key) for asker in read.askers]
            self.came_bytes += 0 if done.fault else order.place_bytes
            for asker in read.askers:
                if asker in self.waiting:
                    self.waiting[asker].moved_at = now
            self.ram.staged.remove(order.slot)
            self.ram.let_go([order.slot])
            self._end_read(read, done.fault)
        elif isinstance(order, Erase):
            self._end_erase(order, done.fault)
        elif isinstance(order, Shred):
            self._end_shred(order, done.fault)
        elif isinstance(order, Remember) and done.fault and self.told.get(order.digest) == order.epoch:
            del self.told[order.digest]
        self._note_arrivals(arrived, now)

    def _end_read(self, read: Read, fault: str) -> None:
        order, ram = read.order, self.ram
        lying = self.blocks.get(order.key)
        is_sound = read.resets == ram.resets[read.namespace] and not read.is_unwanted
        if fault == "corrupt" and lying is not None and lying.place == order.place:
            self.erase([order.key])
        is_orphan = bool(read.before) and not ram.has(read.before)
        is_wanted = is_sound and not fault and not is_orphan
        if is_wanted and ram.slot_of(order.key) is None and ram.slab_of(order.slot) != ram.closing:
            ram.keep(order.slot, order.key, read.namespace, read.before)
            ram.sessions.came(order.key, order.slot, read.origin)
            self.used_again.add(order.key)
            self._note_moved(order)
        ram.free_what_nobody_holds()

    def _note_arrivals(self, arrived: list[tuple[Asker, BlockKey]], now: float) -> None:
        for asker, key in arrived:
            mine = self.waiting.get(asker)
            if mine is None or key not in mine.positions:
                continue
            positions, slot = mine.positions.pop(key), self.ram.slot_of(key)
            more = self.ram.engines[asker[0]].size * len(positions)
            if slot is not None and self.ram.leased_bytes + more <= self.ram.lease_max:
                self.ram.leases[asker] += [slot] * len(positions)
                for position in positions:
                    mine.answer[position] = slot
            elif slot is None and key not in self.blocks:
                for position in positions:
                    mine.answer[position] = ABSENT
            if not mine.positions:
                self._answer(asker, now)

    def _answer(self, asker: Asker, now: float, cut: str = "") -> None:
        mine = self.waiting.pop(asker)
        answer = [slot if slot >= BELOW or slot in self.ram.blocks else ABSENT for slot in mine.answer]
        if mine.uses:
            self.ram.use([slot for slot in answer if slot < BELOW])
        self.ram.decisions.answered(asker, answer, now, cut)
        self.answers.append((*asker, answer))

    # --- what there is ---------------------------------------------------------------------------------------

    def writes(self) -> list[Demote]:
        return [order for order in self.under_way.values() if isinstance(order, Demote)]

    @property
    def queued_bytes(self) -> int:
        """What somebody waits for or what is being read, each read once."""
        waiting = sum(one.place_bytes for mine in self.waiting.values() for one in mine.to_read)
        return waiting + sum(read.order.place_bytes for read in self.reads.values())

    def places(self) -> np.ndarray:
        return np.array(sorted(lying.place for lying in self.blocks.values()), np.uint32)
