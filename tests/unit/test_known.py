"""What is known of a remote's blocks: what a look finds, what it asks, how long anything is believed."""

import random

import pytest

from kvtier.known import ASKED_MAX, QUESTION_MAX, Known
from kvtier.transfer import SEEK_KEYS_MAX

SIZE = 65536


def keys(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def prompt(n: int, first: int = 0) -> list[bytes]:
    return keys(*range(first, first + n))


@pytest.fixture
def known() -> Known:
    return Known(there_max=1000, missing_max=100, there_s=60.0, missing_s=10.0)


def answer(known: Known, question: list[bytes], there: set[bytes], now: float = 0.0, is_chain: bool = True) -> None:
    known.ask(1, question)
    known.learn(1, question, [SIZE * (key in there) for key in question], is_chain, now)


def test_a_question_is_as_long_as_a_tier_takes():
    assert QUESTION_MAX == SEEK_KEYS_MAX


# --- chains ------------------------------------------------------------------------------------------------------


def test_of_what_nobody_knows_everything_is_asked_and_nothing_found(known):
    look = known.look(prompt(5), True, 0.0)
    assert look.sizes == [] and look.question == prompt(5) and not look.is_awaited


def test_what_was_asked_is_found_and_not_asked_again(known):
    answer(known, prompt(5), set(prompt(5)))
    assert known.look(prompt(5), True, 1.0) == ([SIZE] * 5, [], False)


def test_a_key_that_a_prompt_has_twice_is_asked_for_once(known):
    assert known.look(keys(1, 2, 1), False, 0.0).question == keys(1, 2)
    answer(known, keys(1, 2), set(keys(1)), is_chain=False)
    assert known.look(keys(1, 2, 1), False, 0.0) == ([SIZE, 0, SIZE], [], False)


def test_behind_the_first_that_is_missing_nothing_is_asked_or_remembered(known):
    answer(known, prompt(10), set(prompt(3)) | set(prompt(5, first=4)))
    assert known.snapshot() == {"known_there": 3, "known_missing": 1, "asked": 0}
    assert known.look(prompt(10), True, 1.0) == ([SIZE] * 3, [], False)


def test_a_prompt_that_nobody_has_stored_leaves_one_entry(known):
    answer(known, prompt(500), set())
    assert known.snapshot() == {"known_there": 0, "known_missing": 1, "asked": 0}
    assert known.look(prompt(500), True, 1.0) == ([], [], False)


def test_a_conversation_that_grew_asks_only_for_what_is_new(known):
    answer(known, prompt(5), set(prompt(5)))
    assert known.look(prompt(8), True, 1.0) == ([SIZE] * 5, prompt(3, first=5), False)


def test_when_a_missing_block_is_believed_no_more_the_rest_is_asked_from_there(known):
    answer(known, prompt(6), set(prompt(2)))
    assert known.look(prompt(6), True, 9.9).question == []
    assert known.look(prompt(6), True, 10.0) == ([SIZE] * 2, prompt(4, first=2), False)


def test_a_hole_in_what_is_known_ends_what_is_found_and_is_asked_alone(known):
    for key in keys(0, 2, 3):
        known.there(key, SIZE, 0.0)
    known.missing(keys(4)[0], 0.0)
    assert known.look(prompt(9), True, 1.0) == ([SIZE], keys(1), False)


# --- blocks that are no chain ------------------------------------------------------------------------------------


def test_where_blocks_are_no_chain_each_is_found_by_itself(known):
    answer(known, prompt(4), set(keys(1, 3)), is_chain=False)
    assert known.look(prompt(6), False, 1.0) == ([0, SIZE, 0, SIZE, 0, 0], keys(4, 5), False)


# --- questions under way -----------------------------------------------------------------------------------------


def test_nobody_asks_what_is_being_asked(known):
    known.ask(1, prompt(3))
    assert known.look(prompt(5), True, 0.0) == ([], keys(3, 4), True)
    known.learn(1, prompt(3), [SIZE] * 3, True, 0.5)
    assert known.look(prompt(5), True, 1.0) == ([SIZE] * 3, keys(3, 4), False)


def test_a_question_without_an_answer_is_asked_again(known):
    known.ask(1, prompt(3))
    known.fail(1, prompt(3))
    assert known.look(prompt(3), True, 0.0) == ([], prompt(3), False)


def test_what_was_learnt_by_doing_is_newer_than_an_answer_that_was_on_its_way(known):
    """Written after it was asked for, or deleted: the answer is of the time before."""
    known.ask(1, prompt(2))
    known.there(prompt(2)[0], SIZE, 0.1)
    known.missing(prompt(2)[1], 0.1)
    known.learn(1, prompt(2), [0, SIZE], False, 0.2)
    assert known.look(prompt(2), False, 0.3).sizes == [SIZE, 0]


def test_a_late_answer_to_a_former_question_changes_nothing_of_a_new_one(known):
    known.ask(1, prompt(2))
    known.fail(1, prompt(2))
    known.ask(2, prompt(2))
    known.learn(1, prompt(2), [SIZE] * 2, True, 0.0)
    assert known.look(prompt(2), True, 0.0) == ([], [], True)


def test_a_question_is_bounded_and_goes_on_with_the_next_look(known):
    long = prompt(QUESTION_MAX + 500)
    known = Known()
    look = known.look(long, True, 0.0)
    assert look.question == long[:QUESTION_MAX]
    known.ask(1, look.question)
    known.learn(1, look.question, [SIZE] * QUESTION_MAX, True, 0.0)
    look = known.look(long, True, 0.0)
    assert len(look.sizes) == QUESTION_MAX and look.question == long[QUESTION_MAX:]


def test_so_many_keys_are_asked_at_once_and_no_more(known):
    for number in range(ASKED_MAX // QUESTION_MAX):
        known.ask(number, prompt(QUESTION_MAX, first=number * QUESTION_MAX))
    assert known.look(prompt(3, first=10**9), True, 0.0).question == []


# --- bounds, and time --------------------------------------------------------------------------------------------


def test_what_is_there_is_believed_for_a_while(known):
    answer(known, prompt(2), set(prompt(2)), now=5.0)
    assert known.look(prompt(2), True, 64.9).sizes == [SIZE] * 2
    assert known.look(prompt(2), True, 65.0) == ([], prompt(2), False), "a look does not make it live longer"


def test_what_was_looked_at_longest_ago_goes_first(known):
    for n in range(1000):
        known.there(keys(n)[0], SIZE, 0.0)
    known.look(keys(0), True, 1.0)
    known.there(keys(1000)[0], SIZE, 1.0)
    assert known.is_there(keys(0)[0], 1.0) and not known.is_there(keys(1)[0], 1.0)
    assert known.snapshot()["known_there"] == 1000


def test_many_that_are_missing_push_out_none_that_is_there(known):
    known.there(keys(0)[0], SIZE, 0.0)
    for n in range(1, 5000):
        known.missing(keys(n)[0], 0.0)
    assert known.snapshot() == {"known_there": 1, "known_missing": 100, "asked": 0}


def test_a_block_is_there_or_missing_never_both(known):
    (key,) = keys(0)
    known.there(key, SIZE, 0.0)
    known.missing(key, 1.0)
    assert not known.is_there(key, 2.0)
    known.there(key, SIZE, 3.0)
    assert known.is_there(key, 4.0) and known.snapshot()["known_missing"] == 0


def test_after_the_remote_was_away_nothing_is_known(known):
    answer(known, prompt(5), set(prompt(3)))
    known.forget_all()
    assert known.look(prompt(5), True, 1.0) == ([], prompt(5), False)


@pytest.mark.parametrize("seed", range(5))
def test_within_its_times_it_says_what_the_remote_said_and_asks_each_key_once(seed):
    """Prompts with shared beginnings, a remote that never changes: no look is wrong, no key is asked twice."""
    chance, known, asked = random.Random(seed), Known(there_s=1e9, missing_s=1e9), set()
    roots = [prompt(40, first=1000 * n) for n in range(10)]
    there = {key for root in roots for key in root[: chance.randint(0, 40)]}
    for now in range(300):
        root = chance.choice(roots)
        mine = root[: chance.randint(1, 40)]
        look = known.look(mine, True, float(now))
        assert not asked & set(look.question)
        asked |= set(look.question)
        answer(known, look.question, there, float(now))
        assert known.look(mine, True, float(now)).sizes == [SIZE] * sum(key in there for key in mine)
