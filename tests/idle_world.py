"""A store for tests of sessions: one engine, blocks named by letters, a clock, and drives and a remote whose transfers
finish at once when a test lets them run. In the prompt "abc" the block b stands behind a."""

from collections.abc import Iterable, Sequence

import numpy as np

from kvtier.admission import Budget
from kvtier.block import ABSENT, KEY_BYTES, NO_KEY, pack_keys, unpack_keys
from kvtier.decision import Ask
from kvtier.extents import Extents
from kvtier.ranking import Value
from kvtier.session import Hints, Session
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Erase, Finished, Promote, Seek, Transfer

MIB = 1024**2
BLOCK = MIB // 4  # 8 slots a slab of 2 MiB
RED = b"red".ljust(32)
ENGINE = "a"
TENANT, OTHER_TENANT = b"T" * KEY_BYTES, b"U" * KEY_BYTES


def key(letter: str) -> bytes:
    return letter.encode().ljust(KEY_BYTES)


def keys(letters: Iterable[str]) -> bytes:
    return pack_keys(map(key, letters))


def letters(packed: bytes) -> str:
    return packed.decode().replace(" ", "")


class World:
    def __init__(
        self, slabs: int = 4, drives: bool = False, policy: str = "value", budget: float = 2**40, remote: bool = False
    ) -> None:
        """RAM of eight blocks a slab, four of them lent; leases pin at most half."""
        self.store = BlockStore(slabs * 2 * MIB, lend_share=0.125, lease_share=0.5, policy=policy)
        if drives:
            self.store.attach(Extents(64, 2 * MIB), Budget(budget, 0.0), 1.0, {})
        self.remote: dict[bytes, int] = {}  # what lies there, and its size
        if remote:
            self.store.attach_remote(Budget.of_rate(2**30, 0.0), None, 1.0)
        self.now = 0.0
        self._requests = 0
        self.join()

    def join(self, engine: str = ENGINE) -> None:
        self.store.join(engine, RED, BLOCK, 16, 4, self.now)
        self.store.lends()
        self.run()

    # --- requests --------------------------------------------------------------------------------------------------

    def ask(self, request: str, prompt: str, engine: str = ENGINE, **hints: object) -> str:
        """A request comes. Returns what of it is offered, at once or when what is below has been read."""
        if hints:
            self.begin(request, engine, **hints)
        self._requests += 1
        lease, ask = self._requests, Ask(request=request, prompt_tokens=16 * len(prompt) + 1)
        answer = self.store.lookup(engine, lease, keys(prompt), 0, self.now, ask)
        if answer is None:
            self.run()
            answer = next(slots for _, number, slots in self.store.leases.answers() if number == lease)
        self.store.release(engine, lease, 0, self.now)
        return "".join(letter for letter, slot in zip(prompt, answer.tolist()) if slot < ABSENT - 1)

    def begin(self, request: str, engine: str = ENGINE, **hints: object) -> None:
        self.store.begin(engine, request, Hints(**hints), self.now)  # type: ignore[arg-type]

    def look_up(self, request: str, prompt: Sequence[str], lease: int) -> None:
        """Whatever is answered; a lease that is over at once."""
        ask = Ask(request=request, prompt_tokens=16 * len(prompt) + 1)
        self.store.lookup(ENGINE, lease, keys(prompt), 0, self.now, ask)
        self.store.release(ENGINE, lease, 0, self.now)

    def save(self, request: str, chain: Sequence[str], engine: str = ENGINE) -> None:
        """What of this chain isn't here, as far as slots are lent."""
        for before, letter in zip([NO_KEY, *map(key, chain)], chain):
            if not self.is_here(letter) and (lent := self.store.lending.engines[engine].lent):
                slot = min(lent)
                self.store.commit(engine, key(letter), np.array([slot], np.uint32), before, request, self.now)
                self.store.lends()

    def over(self, request: str, chain: Sequence[str], engine: str = ENGINE) -> None:
        self.store.touch(engine, keys(chain), request, self.now)

    def turn(self, prompt: str, answer: str = "", **hints: object) -> str:
        """A whole request; a second later."""
        self.now += 1.0
        request = f"request {self._requests}"
        offered = self.ask(request, prompt, **hints)
        self.save(request, prompt + answer)
        self.over(request, prompt + answer)
        return offered

    # --- time, and the drives ----------------------------------------------------------------------------------------

    def wait(self, seconds: float, step: float = 1.0) -> None:
        """Ticks come, and the drives work."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step)
            self.tick()

    def tick(self) -> list[Transfer]:
        self.store.tick(self.now)
        return self.run()

    def start(self) -> list[Transfer]:
        return self.store.transfers(self.now)

    def finish(self, orders: list[Transfer], fault: str = "") -> None:
        for order in orders:
            self.store.finished(Finished(order.ticket, fault, checksum=order.ticket), self.now)

    def start_remote(self) -> list[Transfer]:
        return self.store.remote_transfers(self.now)

    def finish_remote(self, orders: list[Transfer], fault: str = "") -> None:
        for order in orders:
            self.store.remote_finished(self._done_by_remote(order, fault), self.now)

    def _done_by_remote(self, order: Transfer, fault: str) -> Finished:
        if fault:
            return Finished(order.ticket, fault)
        if isinstance(order, Seek):
            return Finished(order.ticket, sizes=tuple(self.remote.get(key, 0) for key in unpack_keys(order.keys)))
        if isinstance(order, Demote):
            self.remote[order.key] = order.size
        elif isinstance(order, Erase):
            self.remote.pop(order.key, None)
        elif isinstance(order, Promote) and order.key not in self.remote:
            return Finished(order.ticket, "gone")
        return Finished(order.ticket)

    def run(self) -> list[Transfer]:
        """Until nothing is to be done any more: slots are wiped, too. What the drives did."""
        done: list[Transfer] = []
        while (orders := self.start()) + (away := self.start_remote()) or self.store.ram.to_wipe:
            for slot, _ in self.store.wipes():
                self.store.wiped(slot)
            self.finish(orders)
            self.finish_remote(away)
            done += orders
        return done

    # --- what there is -----------------------------------------------------------------------------------------------

    def slot(self, letter: str) -> int:
        return int(self.store.ram.index.find(key(letter))[0])

    def here(self, chain: str) -> str:
        """Of these, those that are in RAM."""
        return "".join(filter(self.is_here, chain))

    def is_here(self, letter: str) -> bool:
        return key(letter) in self.store.ram.index

    def is_below(self, letter: str) -> bool:
        return self.store.lower is not None and key(letter) in self.store.lower.extents

    def away(self, chain: str) -> str:
        """Of these, those that lie in the remote."""
        return "".join(letter for letter in chain if key(letter) in self.remote)

    def below(self, chain: str) -> str:
        """Of these, those that the drives have."""
        return "".join(
            letter for letter in chain if self.store.lower is not None and key(letter) in self.store.lower.extents
        )

    def kinds(self, chain: Iterable[str]) -> list[object]:
        """What the queues are for in which these stand: a category's name, or a word of ranking.py; kept: None."""
        ranking = self.store.ram.policy.ranking
        assert isinstance(ranking, Value)
        queues = self.store.ram.policy.queues(np.array([self.slot(letter) for letter in chain], dtype=np.intp)).tolist()
        kinds = [ranking.kind(queue) if queue else None for queue in queues]
        return [self.store.retention.returns.names[kind] if isinstance(kind, int) else kind for kind in kinds]

    def evict(self, n: int = 1) -> str:
        """So many of the blocks that are worth least go. Their letters, in the order in which they went."""
        ram = self.store.ram
        gone = []
        for _ in range(n):
            slot = ram.policy.victim(4, lambda slot: not ram.index.is_pinned(slot), self.now)
            if slot is None:
                break
            gone.append(letters(ram.index.key(slot)))
            ram._evict(slot, "a test made room")
        return "".join(gone)

    def push_out(self, chain: str) -> None:
        """These leave RAM, whatever they are worth; nothing stands behind them."""
        for letter in reversed(chain):
            self.store.ram._evict(self.slot(letter), "a test made room")

    def session(self, name: str) -> Session:
        (session,) = self.store.retention._sessions.named(name)
        return session

    def row(self, name: str) -> dict[str, object]:
        (row,) = self.store.retention.sessions(self.now, name=name)
        return row

    def row_of_living(self, name: str) -> dict[str, object]:
        (row,) = [row for row in self.store.retention.sessions(self.now, name=name) if row["state"] != "ended"]
        return row

    def names(self, **how: object) -> list[object]:
        return [row["session"] for row in self.store.retention.sessions(self.now, **how)]  # type: ignore[arg-type]

    def forget(self, name: str = "", tenant: str = "") -> dict[str, object]:
        """The proof, when it is through."""
        ticket = self.store.retention.forget(name, tenant, self.now)
        self.run()
        return dict(self.store.retention.forgotten())[ticket]


def written(orders: list[Transfer]) -> str:
    return "".join(letters(order.key) for order in orders if isinstance(order, Demote))


def read(orders: list[Transfer]) -> str:
    return "".join(letters(order.key) for order in orders if isinstance(order, Promote))


def erased(orders: list[Transfer]) -> int:
    return sum(isinstance(order, Erase) for order in orders)


def proof(sessions: int, cpu: int, nvme: int = 0, kept: int = 0) -> dict[str, object]:
    """What is to be said of something forgotten, counted in blocks."""
    return {
        "sessions": sessions,
        "blocks": {"cpu": cpu, "nvme": nvme},
        "bytes_zeroed": {"cpu": cpu * BLOCK, "nvme": nvme * BLOCK},
        "shared_blocks_kept": kept,
    }
