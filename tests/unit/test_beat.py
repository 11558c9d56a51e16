"""How often the daemon looks at the clock, by a loop whose time the test moves."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from kvtier import beat
from kvtier.beat import OFTEN_S, RESTLESS_S, SELDOM_S, Beat


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at, self.call, self.is_cancelled = at, call, False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """A loop, a clock, and a daemon that looks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []
        self.looks: list[float] = []
        self.waits, self.due_at = False, float("inf")
        self.on_look: Callable[[], None] = lambda: None
        self.beat: Beat

    def monotonic(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def look(self, now: float) -> None:
        self.looks.append(now)
        self.on_look()

    def run(self, seconds: float) -> list[float]:
        """Looks meanwhile."""
        end, before = self.now + seconds, len(self.looks)
        while due := [t for t in self.timers if not t.is_cancelled and t.at <= end]:
            first = min(due, key=lambda timer: timer.at)
            self.timers.remove(first)
            self.now = first.at
            first.call()
        self.now = end
        return self.looks[before:]


@pytest.fixture
def world(monkeypatch) -> World:
    """Its daemon has just begun."""
    world = World()
    monkeypatch.setattr(beat, "time", world)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: world)
    world.beat = Beat(world.look, lambda: world.waits, lambda: world.due_at)
    world.beat.begin()
    return world


def gaps(looks: list[float]) -> list[float]:
    return [round(b - a, 6) for a, b in pairwise(looks)]


def test_the_first_look_is_at_once(world):
    assert world.looks == [100.0]


def test_at_the_start_looks_are_frequent(world):
    world.run(RESTLESS_S / 2)
    assert set(gaps(world.looks)) == {OFTEN_S}


def test_where_nothing_happens_looks_are_seldom(world):
    world.run(RESTLESS_S + OFTEN_S)
    assert set(gaps(world.run(60 * SELDOM_S))) == {SELDOM_S}


def test_there_is_never_more_than_one_next_look(world):
    world.run(10.0)
    for _ in range(5):
        world.beat.stir()
    assert sum(not timer.is_cancelled for timer in world.timers) == 1


def test_what_happens_makes_them_frequent_at_once(world):
    world.run(10.0)
    world.beat.stir()
    assert set(gaps([world.now, *world.run(RESTLESS_S)])) == {OFTEN_S}


def test_and_seldom_again_when_it_is_quiet(world):
    world.run(10.0)
    world.beat.stir()
    world.run(RESTLESS_S + OFTEN_S)
    assert set(gaps(world.run(10 * SELDOM_S))) == {SELDOM_S}


def test_while_somebody_waits_they_are_frequent(world):
    world.waits = True
    world.run(10.0)
    assert set(gaps(world.run(5.0))) == {OFTEN_S}


def test_a_seldom_look_comes_when_something_is_due(world):
    world.run(10.0)
    world.run(SELDOM_S * 3)
    last = world.looks[-1]
    world.run(last + SELDOM_S - world.now)  # up to a look, which sees what is due
    world.due_at = world.looks[-1] + 1.3 * SELDOM_S
    assert round(world.due_at, 6) in [round(at, 6) for at in world.run(2 * SELDOM_S)]


def test_what_is_overdue_and_stays_so_does_not_make_a_busy_loop(world):
    world.run(10.0)
    world.due_at = 0.0
    assert min(gaps(world.run(5.0))) == OFTEN_S


def test_what_a_look_brings_about_makes_the_next_ones_frequent(world):
    world.run(10.0)
    world.on_look = world.beat.stir
    looks = world.run(2 * SELDOM_S)
    assert gaps(looks)[:5] == [OFTEN_S] * 5
    assert sum(not timer.is_cancelled for timer in world.timers) == 1


def test_it_knows_how_late_a_look_is(world):
    world.run(10.0)
    timer = next(timer for timer in world.timers if not timer.is_cancelled)
    world.timers.clear()
    world.now = timer.at + 0.3
    timer.call()
    assert round(world.beat.late_s, 6) == 0.3
