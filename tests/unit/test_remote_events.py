"""The remote after any events: what is to stay on this node never leaves it, what was forgotten is nowhere, and nothing is
under way for ever."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from idle_world import ENGINE, World, key, keys, letters

from kvtier.away import LATE_S, REFUSED_S
from kvtier.decision import Ask
from kvtier.transfer import Demote, Seek, Transfer

# What each conversation may say; two begin alike. `kept` says that it is to stay here, each time.
TALKS = {"chat": "abcdef", "fork": "abxyz", "work": "ghijk", "kept": "pqrstu"}
FAULTS = ["", "", "", "", "unreachable", "refused", "corrupt"]
KINDS = {
    "turn": 40, "start": 20, "finish": 12, "finish_remote": 20, "run": 3, "wipe": 4, "wait": 4, "evict": 5, "away": 4,
    "forget": 5, "park": 4, "end": 2, "warm": 2, "drain": 2, "loses": 1,
}  # fmt: skip
EVENTS = 400


def events(seed: int) -> Iterator[tuple[str, Any, Any]]:
    rng = random.Random(seed)
    for what in rng.choices([*KINDS], [*KINDS.values()], k=EVENTS):
        name = rng.choice([*TALKS])
        match what:
            case "turn":
                yield what, name, rng.randint(2, 6)
            case "finish" | "finish_remote":
                yield what, rng.choice(FAULTS), rng.randint(1, 8)
            case "away":
                yield what, rng.random() < 0.3, None
            case "wait":
                yield what, rng.uniform(0.01, 40.0), None
            case "evict":
                yield what, rng.randint(1, 8), None
            case _:
                yield what, name, None


class Life:
    def __init__(self, drives: bool) -> None:
        self.world = World(drives=drives, remote=True)
        self.pending: list[Transfer] = []
        self.pending_remote: list[Transfer] = []
        self.tickets: dict[int, set[str]] = {}  # what was to be forgotten, but what others had
        self.leases = 0

    def step(self, what: str, first, second) -> None:
        world, retention = self.world, self.world.store.retention
        if what == "turn":
            self.turn(first, TALKS[first][:second])
        elif what == "forget":
            mine = {letter for letter in TALKS[first] if retention._sessions.lineage.owner(key(letter)) is not None}
            ticket = retention.forget(first, "", world.now)
            self.tickets[ticket] = {letter for letter in mine if not retention._sessions.lineage.owner(key(letter))}
        elif what in ("park", "end", "warm"):
            getattr(retention, what)(first, world.now)
        elif what == "finish":
            done, self.pending = self.pending[:second], self.pending[second:]
            world.finish(done, first and "io")
        elif what == "finish_remote":
            done = self.pending_remote[:second] if second % 2 else self.pending_remote[-second:]  # in any order
            self.pending_remote = [order for order in self.pending_remote if order not in done]
            world.finish_remote(done, first)
        elif what == "away":
            world.store.set_remote_away(first)
        elif what == "wait":
            world.now += first
            world.store.tick(world.now)
        elif what == "start":
            self.pending += world.start()
            self.pending_remote += world.start_remote()
        elif what == "run":
            world.run()
        elif what == "drain":
            retention.draining.begin(world.now)
        elif what == "loses":
            world.remote.clear()
        elif what == "wipe":
            for slot, _ in world.store.wipes():
                world.store.wiped(slot)
        else:
            world.evict(first)

    def turn(self, name: str, prompt: str) -> None:
        """Nobody waits for anything but the remote's answer, what is there."""
        world, request = self.world, f"r{self.leases}"
        self.leases += 1
        world.now += 0.01
        world.begin(request, session=name, no_remote=name == "kept")
        world.store.lookup(ENGINE, self.leases, keys(prompt), 0, world.now, Ask(request=request, prompt_tokens=200))
        orders = world.start_remote()
        world.finish_remote([order for order in orders if isinstance(order, Seek)])
        self.pending_remote += [order for order in orders if not isinstance(order, Seek)]
        world.store.release(ENGINE, self.leases, 0, world.now)
        world.save(request, prompt)
        world.over(request, prompt)
        for words in self.tickets.values():
            words.difference_update(prompt)  # it is said anew

    def check(self) -> None:
        assert not set(TALKS["kept"]) & {letters(name) for name in self.world.remote}
        for order in self.pending_remote:
            assert not (isinstance(order, Demote) and letters(order.key) in TALKS["kept"])
        for ticket, _ in self.world.store.retention.forgotten():
            words = self.tickets.pop(ticket)
            left = {word for word in words if key(word) in self.world.remote}
            assert not left, f"forgotten, and there still: {left}"

    def quiet(self) -> None:
        self.world.store.set_remote_away(False)
        self.world.finish(self.pending)
        self.world.finish_remote(self.pending_remote)
        self.pending, self.pending_remote = [], []
        self.world.run()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_comes_nothing_leaves_the_node_that_must_not_and_what_was_forgotten_is_nowhere(seed):
    life = Life(drives=seed % 2 == 0)
    for event in events(seed):
        life.step(*event)
        life.check()
    life.quiet()
    for seconds in (LATE_S, LATE_S, REFUSED_S):  # what was refused, and then what may come late
        life.world.wait(seconds + 1.0)
    life.check()
    assert not life.tickets, "every ticket is through when nothing is under way"
    store = life.world.store
    assert store.stats["remote_demoted_blocks"] and store.stats["remote_erased_blocks"], "a life in which nothing happens"
    assert store.away.is_idle and not store.away.demotions.writing_bytes
    life.world.evict(64)
    assert store.ram.slots.taken_bytes == store.lending.lent_bytes, "nothing is pinned for ever"
