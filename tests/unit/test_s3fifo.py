"""S3-FIFO: who goes, by hand; who is remembered; and that it hits as the paper's own loop does."""

from collections import deque
from collections.abc import Iterable

import numpy as np
import pytest
from ranking_loop import LOOPS, Loop, changing, hits_of, seconds_a_victim, skewed

from kvtier.s3fifo import MAIN, SMALL, USES_MAX, S3Fifo


@pytest.fixture(params=LOOPS)
def loop(request) -> Loop:
    """Of ten blocks: one is the small queue's part."""
    return request.param(S3Fifo(10), 10)


def ghosts(loop: Loop) -> list[str]:
    return [key.decode().strip() for key in loop.ranking._ghosts]


def test_what_is_used_once_goes_first_in_first_out(loop):
    assert loop.ask(*range(13)) == [0, 1, 2]
    assert loop.in_queue(MAIN) == []


def test_what_was_used_twice_while_it_was_small_moves_to_main(loop):
    loop.ask(*range(10))
    loop.ask(0, 0, 1)
    assert loop.ask("new") == [1], "once is not enough"
    assert loop.in_queue(MAIN) == [0]
    assert loop.ask(*range(20, 28)) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert loop.in_queue(MAIN) == [0]


def test_the_end_of_the_request_that_saved_a_block_counts_nothing(loop):
    loop.ask(*range(10))  # each was used then
    loop.ask(0)
    assert loop.ask("new") == [0]


def test_a_key_that_is_remembered_comes_to_main_at_once(loop):
    loop.ask(*range(12))
    assert ghosts(loop) == ["0", "1"]
    loop.ask(0)
    assert loop.in_queue(MAIN) == [0]
    assert ghosts(loop) == ["1", "2"], "2 went for it"


def full_of_used() -> list[int]:
    """Names for ten blocks of which each was used twice after it was saved."""
    return [*range(10)] * 3


def test_where_all_moved_to_main_the_first_that_was_not_used_there_goes(loop):
    loop.ask(*full_of_used())
    assert loop.ask("a") == [0], "all pass to main; 0 stands first there"
    assert sorted(loop.in_queue(MAIN)) == [*range(1, 10)] and loop.in_queue(SMALL) == ["a"]
    loop.ask(1, 1)
    assert loop.ask("b") == ["a"], "the small queue has its tenth"
    loop.drop("b")
    loop.ask("c")
    loop.ask("c", "c")
    assert loop.ask("d") == [2], "c passes to main, 1 has a second round"


def test_each_use_in_main_is_one_more_round_but_no_more_than_three(loop):
    loop.ask(*full_of_used(), "a", *[5] * 10)
    slot = loop.slot_of[5]
    assert [loop.ranking.again(slot, MAIN) for _ in range(USES_MAX + 1)] == [MAIN] * USES_MAX + [0]


def test_as_many_keys_are_remembered_as_main_may_hold(loop):
    loop.ask(*range(100))
    assert ghosts(loop) == [str(number) for number in range(81, 90)]


def test_an_empty_cache_remembers_nobody(loop):
    loop.ask(*range(30))
    for number in range(20, 30):
        loop.drop(number)
    assert len(ghosts(loop)) <= 1
    assert loop.ranking._blocks == {SMALL: 0, MAIN: 0}


def test_a_slot_that_went_unheard_is_not_counted_twice():
    """Blocks that are kept go without a word to the ranking."""
    ranking = S3Fifo(4)
    for key in (b"a", b"b", b"c"):
        assert ranking.added(0, key, 1) == SMALL
    assert ranking._blocks == {SMALL: 1, MAIN: 0}
    ranking.gone(3, b"never heard of", 1)
    assert ranking._blocks == {SMALL: 1, MAIN: 0}


def test_a_slot_named_twice_in_one_use_was_used_once():
    ranking = S3Fifo(4)
    ranking.added(0, b"a", 1)
    ranking.used(np.array([0]), 1)
    ranking.used(np.array([0, 0, 0]), 1)
    assert ranking._uses[0] == 1


# --- beside the paper ----------------------------------------------------------------------------------------


def textbook(names: Iterable[object], capacity: int) -> int:
    """Algorithm 1 of the paper."""
    small, main, ghost = deque(), deque(), deque()
    uses: dict[object, int] = {}
    small_max, hits = capacity // 10, 0

    def evict_main() -> None:
        while main:
            name = main.popleft()
            if not uses[name]:
                del uses[name]
                return
            uses[name] -= 1
            main.append(name)

    def evict_small() -> None:
        while small:
            name = small.popleft()
            if uses[name] <= 1:
                ghost.append(name)
                del uses[name]
                return
            uses[name] = 0
            main.append(name)
            if len(main) > capacity - small_max:
                return evict_main()
        evict_main()

    for name in names:
        if name in uses:
            hits += 1
            uses[name] = min(uses[name] + 1, USES_MAX)
            continue
        while len(uses) >= capacity:
            evict_small() if len(small) >= small_max else evict_main()
        if name in ghost:
            ghost.remove(name)
            main.append(name)
        else:
            small.append(name)
        uses[name] = 0
        while len(ghost) > capacity - small_max:
            ghost.popleft()
    return hits


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("names_of", [skewed, changing])
@pytest.mark.parametrize("seed", range(2))
def test_it_hits_as_the_papers_algorithm_does(kind, names_of, seed):
    names = names_of(seed, 6000)
    assert hits_of(kind(S3Fifo(100), 100), names) == pytest.approx(textbook(names, 100), rel=0.002)


def test_a_victim_among_100_000_takes_microseconds():
    assert seconds_a_victim(S3Fifo(100_000), 100_000, 2000) < 200e-6
