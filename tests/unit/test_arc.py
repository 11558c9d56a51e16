"""ARC: who goes, by hand; how its target moves; and that it hits about as often as the paper's own loop."""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import pytest
from ranking_loop import LOOPS, Loop, changing, hits_of, seconds_a_victim, skewed

from kvtier.arc import T1, T2, Arc


@pytest.fixture(params=LOOPS)
def loop(request) -> Loop:
    return request.param(Arc(4), 4)


def ghosts(loop: Loop, queue: int) -> list[str]:
    return [key.decode().strip() for key in loop.ranking._ghosts[queue]]


def test_what_is_used_once_goes_least_recently_used_first(loop):
    assert loop.ask(*"abcdef") == ["a", "b"]
    assert loop.in_queue(T1) == ["c", "d", "e", "f"]


def test_the_end_of_the_request_that_saved_a_block_is_no_second_use(loop):
    loop.ask("a")
    assert loop.in_queue(T1) == ["a"]
    loop.ask("a")
    assert loop.in_queue(T2) == ["a"]


def test_what_was_used_twice_stays_while_others_pass(loop):
    loop.ask(*"aabb")
    assert loop.ask(*"cdefgh") == ["c", "d", "e", "f"]
    assert loop.in_queue(T2) == ["a", "b"]


def test_of_those_used_twice_the_least_recently_used_goes(loop):
    loop.ask(*"aabbccdd", "a")
    assert loop.ask("e") == ["b"]
    assert ghosts(loop, T2) == ["b"]


def test_keys_that_come_back_move_the_target(loop):
    """By hand: c = 4. Of t1 = {c, d} beside t2 = {a, b}, c and d go for e and f; then c comes back."""
    loop.ask(*"aabb", *"cd", *"ef")
    assert (ghosts(loop, T1), ghosts(loop, T2), loop.ranking.target) == (["c", "d"], [], 0)
    loop.ask("c")  # e goes; b1 = c, d, e: by one
    assert (loop.ranking.target, ghosts(loop, T1)) == (1, ["d", "e"])
    assert sorted(loop.in_queue(T2)) == ["a", "b", "c"]
    loop.ask("d")  # t1 = {f} is not over its target any more: a goes, of t2
    assert (ghosts(loop, T1), ghosts(loop, T2), loop.ranking.target) == (["e"], ["a"], 2)
    assert sorted(loop.in_queue(T2)) == ["b", "c", "d"]
    loop.ask("a")  # again of t2: b; then b2 = a, b and b1 = e
    assert (ghosts(loop, T1), ghosts(loop, T2), loop.ranking.target) == (["e"], ["b"], 1)


def test_a_cache_full_of_what_was_used_once_remembers_none_of_it(loop):
    """As in the paper: t1 and b1 together are never more than the cache."""
    loop.ask(*range(20))
    assert ghosts(loop, T1) == []


def test_all_that_is_remembered_is_bounded_by_the_cache(loop):
    for number in range(300):
        loop.ask(number, number if number % 3 else 0, number - 7)
        b1, b2 = ghosts(loop, T1), ghosts(loop, T2)
        assert len(loop.in_queue(T1)) + len(b1) <= 4
        assert len(loop.slot_of) + len(b1) + len(b2) <= 8
        assert loop.ranking._blocks == {T1: len(loop.in_queue(T1)), T2: len(loop.in_queue(T2))}


def test_an_empty_cache_remembers_hardly_anybody(loop):
    loop.ask(*"aabbccddefgh")
    for name in list(loop.slot_of):
        loop.drop(name)
    assert len(ghosts(loop, T1)) + len(ghosts(loop, T2)) <= 2


def test_slots_that_went_or_came_unheard_are_counted_once():
    """Blocks that are kept go without a word to the ranking, and may be let loose."""
    ranking = Arc(4)
    for key in (b"a", b"b"):
        assert ranking.added(0, key, 1) == T1
    assert ranking.used(np.array([0, 2, 2]), 1).tolist() == [T1, T2, T2]
    assert ranking._blocks == {T1: 1, T2: 1}
    ranking.gone(3, b"never heard of", 1)
    assert ranking._blocks == {T1: 1, T2: 1}


# --- beside the paper ----------------------------------------------------------------------------------------


def textbook(names: Iterable[object], capacity: int) -> int:
    """ARC(c) of the paper, figure 4."""
    t1, t2, b1, b2 = (OrderedDict() for _ in range(4))
    target, hits = 0.0, 0

    def replace(is_in_b2: bool) -> None:
        if t1 and (len(t1) > target or (is_in_b2 and len(t1) == target)):
            b1[t1.popitem(last=False)[0]] = None
        else:
            b2[t2.popitem(last=False)[0]] = None

    for name in names:
        if name in t1 or name in t2:
            hits += 1
            t1.pop(name, None)
            t2.pop(name, None)
            t2[name] = None
        elif name in b1 or name in b2:
            is_in_b2 = name in b2
            mine, other = (b2, b1) if is_in_b2 else (b1, b2)
            step = max(1.0, len(other) / len(mine))
            target = max(0.0, target - step) if is_in_b2 else min(capacity, target + step)
            replace(is_in_b2)
            del mine[name]
            t2[name] = None
        else:
            if len(t1) + len(b1) == capacity:
                if len(t1) < capacity:
                    b1.popitem(last=False)
                    replace(False)
                else:
                    t1.popitem(last=False)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= capacity:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * capacity:
                    b2.popitem(last=False)
                replace(False)
            t1[name] = None
    return hits


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("names_of", [skewed, changing])
@pytest.mark.parametrize("seed", range(2))
def test_it_hits_about_as_often_as_the_papers_algorithm(kind, names_of, seed):
    names = names_of(seed, 6000)
    assert hits_of(kind(Arc(100), 100), names) == pytest.approx(textbook(names, 100), rel=0.002)


def test_a_victim_among_100_000_takes_microseconds():
    assert seconds_a_victim(Arc(100_000), 100_000, 2000) < 200e-6
