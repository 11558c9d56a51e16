"""A store with drives and a remote below it, both of which finish orders when a test says so. For tests of the store."""

from dataclasses import dataclass, field

import numpy as np

from kvtier.admission import Budget
from kvtier.away import Away
from kvtier.block import NO_KEY, pack_keys, unpack_keys
from kvtier.codec import RAW
from kvtier.coding import Coding
from kvtier.decision import Ask
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Erase, Finished, Promote, Remember, Seek, Transfer

MIB = 1024**2
BLOCK = MIB // 4
FRAME = BLOCK * 5 // 8
TOKENS = 16
RED = b"red".ljust(32)
STAGE_S, REMOTE_S = 30.0, 10.0
ENGINE = "a"


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def keys(*numbers: int) -> bytes:
    return pack_keys(map(key, numbers))


def numbers(orders: list[Transfer], kind: type = Promote) -> list[int]:
    return [int.from_bytes(order.key, "big") for order in orders if isinstance(order, kind)]


def asked(orders: list[Transfer]) -> list[list[int]]:
    return [[int.from_bytes(k, "big") for k in unpack_keys(o.keys)] for o in orders if isinstance(o, Seek)]


@dataclass
class Remote:
    """What lies there: a key's namespace and bytes. Nodes may share it. Frames are FRAME bytes."""

    blocks: dict[tuple[int, bytes], int] = field(default_factory=dict)
    namespaces: dict[int, bytes] = field(default_factory=dict)
    origins: dict[tuple[int, bytes], bytes] = field(default_factory=dict)

    def put(self, *these: int, size: int = BLOCK, namespace: int = 0) -> None:
        for number in these:
            self.blocks[namespace, key(number)] = size

    def lose(self, *these: int, namespace: int = 0) -> None:
        for number in these:
            del self.blocks[namespace, key(number)]

    def carry_out(self, order: Transfer) -> Finished:
        if isinstance(order, Remember):
            self.namespaces[order.namespace] = order.digest
            return Finished(order.ticket)
        assert order.namespace in self.namespaces, "a namespace that it was never told of"
        if isinstance(order, Seek):
            found = tuple(self.blocks.get((order.namespace, one), 0) for one in unpack_keys(order.keys))
            return Finished(order.ticket, sizes=found)
        name = order.namespace, order.key
        if isinstance(order, Promote):
            fault, origin = "" if name in self.blocks else "gone", self.origins.get(name, b"")
            return Finished(order.ticket, fault, origin=origin, stored=self.blocks.get(name, 0))
        if isinstance(order, Demote):
            stored = order.size if order.codec == RAW else FRAME
            self.blocks[name], self.origins[name] = stored, order.origin
            return Finished(order.ticket, stored=stored)
        else:
            assert isinstance(order, Erase), order
            self.blocks.pop(name, None)
        return Finished(order.ticket)


class FarStore:
    def __init__(
        self,
        drives: bool = True,
        remote: Remote | None = None,
        slabs: int = 8,
        is_chain: bool = True,
        coding: Coding | None = None,
        far_coding: Coding | None = None,
    ) -> None:
        """`coding`: what blocks are written with to the drives, and to the remote; without, as they are."""
        self.now = 0.0
        self.remote = remote or Remote()
        self.store = BlockStore(slabs * 2 * MIB, lend_share=0.5, lease_share=0.5)
        if drives:
            self.store.attach(Extents(16, 2 * MIB), Budget(2**50, 0.0), STAGE_S, {}, None, coding)
        self.store.attach_remote(Budget.of_rate(2**30, 0.0), Link(0.001, 1e9), REMOTE_S, far_coding)
        self.is_chain = is_chain
        self.store.join(ENGINE, RED, BLOCK, TOKENS, 16, 0.0, is_chain=is_chain)
        self.store.lends()
        self.run()

    @property
    def away(self) -> Away:
        assert self.store.away is not None
        return self.store.away

    # --- the engine --------------------------------------------------------------------------------------------

    def save(self, *these: int) -> None:
        slots = sorted(self.store.lending.engines[ENGINE].lent)[: len(these)]
        parents = pack_keys([NO_KEY, *map(key, these[:-1])]) if self.is_chain else b""
        self.store.commit(ENGINE, keys(*these), np.array(slots, np.uint32), parents, "", self.now)
        self.store.lends()

    def evict(self, *these: int) -> None:
        for number in reversed(these):
            self.store.ram.drop([self.slot(number)], "others came")

    def below(self, *these: int) -> None:
        """These lie on the drives only."""
        self.save(*these)
        self.run(writes=False)
        self.evict(*these)

    def look_up(self, lease: int, *these: int, skip: int = 0, request: str = "", **ask: float) -> list[int] | None:
        said = Ask(request, len(these) * TOKENS, skip * TOKENS, **ask) if request else Ask()
        answer = self.store.lookup(ENGINE, lease, keys(*these), skip, self.now, said)
        return None if answer is None else answer.tolist()

    def answers(self) -> dict[int, list[int]]:
        return {lease: slots.tolist() for _, lease, slots in self.store.leases.answers()}

    def waits(self) -> list[int]:
        return [lease for _, lease in self.store.leases.waiting()]

    def slot(self, number: int) -> int:
        return int(self.store.ram.index.find(key(number))[0])

    def slots(self, *these: int) -> list[int]:
        return [self.slot(number) for number in these]

    def knows(self, *these: int) -> None:
        """These lie in the remote, and that is known."""
        self.remote.put(*these)
        for number in these:
            self.away.known.there(key(number), self.remote.blocks[0, key(number)], self.now)

    # --- its tiers ---------------------------------------------------------------------------------------------

    def start(self, writable: bool = True) -> list[Transfer]:
        """What the drives are to do now."""
        return self.store.transfers(self.now, writable)

    def finish(self, orders: list[Transfer], fault: str = "") -> None:
        for order in orders:
            stored = order.place_bytes if isinstance(order, Demote | Promote) and not fault else 0
            self.store.finished(Finished(order.ticket, fault, checksum=order.ticket, stored=stored), self.now)

    def start_far(self, writable: bool = True) -> list[Transfer]:
        """What the remote is to do now."""
        return self.store.remote_transfers(self.now, writable)

    def finish_far(self, orders: list[Transfer], fault: str = "") -> None:
        for order in orders:
            done = Finished(order.ticket, fault) if fault else self.remote.carry_out(order)
            self.store.remote_finished(done, self.now)

    def run(self, writes: bool = True) -> list[Transfer]:
        """Until nothing is to be done any more. `writes`: to the remote, too."""
        done: list[Transfer] = []
        while (near := self.start()) or (far := self.start_far(writes)):
            self.finish(near)
            done += near
            if not near:
                self.finish_far(far)
                done += far
        return done

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.store.tick(self.now)

    def goes_away(self) -> None:
        self.store.set_remote_away(True)

    def comes_back(self) -> None:
        self.store.set_remote_away(False)
