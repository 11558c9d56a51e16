"""Lineage: which sessions share which blocks; also when a liar says so."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from idle_world import key, keys, letters

from kvtier.lineage import Lineage


def drawn() -> Lineage:
    """As the docstring has it."""
    lineage = Lineage()
    for session, chain in ((1, "abcde"), (2, "abcx"), (3, "aby")):
        lineage.join(keys(chain), session)
    return lineage


def members(lineage: Lineage, chain: str) -> list[int]:
    return lineage.members(keys(chain)).tolist()


def left(lineage: Lineage, chain: str) -> str:
    """Leaves them. Returns those that nobody has any more."""
    alone = lineage.leave(keys(chain))
    return "".join(letter for letter, is_alone in zip(chain, alone.tolist()) if is_alone)


def known(lineage: Lineage, chain: str, is_chain: bool = True) -> tuple[str, int]:
    last, n = lineage.known(keys(chain), is_chain)
    return letters(last), n


def test_of_no_keys_nothing_is_known():
    lineage = Lineage()
    assert (known(lineage, ""), known(lineage, "a"), len(lineage)) == (("", 0), ("", 0), 0)
    assert members(lineage, "") == [] and left(lineage, "") == "" and lineage.owner(key("a")) is None


def test_each_block_is_counted_once_a_session():
    assert members(drawn(), "abcdexyz") == [3, 3, 2, 1, 1, 1, 1, 0]
    assert len(drawn()) == 7


def test_the_first_to_have_a_block_is_remembered():
    lineage = drawn()
    assert [lineage.owner(key(letter)) for letter in "abcdexyz"] == [1, 1, 1, 1, 1, 2, 3, None]


def test_of_a_chain_that_is_known_which_goes_on_from_the_first():
    assert known(drawn(), "abcxq") == ("x", 4)
    assert known(drawn(), "abqc") == ("b", 2)
    assert known(drawn(), "qabc") == ("", 0)


def test_where_blocks_are_no_chain_all_that_are_known_count():
    assert known(drawn(), "qabqcq", is_chain=False) == ("c", 3)


def test_who_leaves_takes_what_he_alone_has():
    lineage = drawn()
    assert left(lineage, "abcde") == "de"
    assert members(lineage, "abcde") == [2, 2, 1, 0, 0]
    assert left(lineage, "abcx") == "cx"
    assert left(lineage, "aby") == "aby"
    assert len(lineage) == 0


def test_what_nobody_has_any_more_belongs_to_whoever_comes_next():
    lineage = drawn()
    left(lineage, "abcde")
    lineage.join(keys("de"), 7)
    assert (lineage.owner(key("d")), members(lineage, "d")) == (7, [1])


def test_leaving_what_one_never_had_does_nothing():
    lineage = drawn()
    assert left(lineage, "qr") == ""
    assert len(lineage) == 7


def test_there_is_room_for_many_keys_again_and_again():
    lineage = Lineage()
    chains = [b"".join(n.to_bytes(16, "big") for n in range(first, first + 3000)) for first in (1, 10_000, 2000)]
    for _ in range(3):
        for session, chain in enumerate(chains):
            lineage.join(chain, session)
        assert len(lineage) == 3000 + 3000 + 1999
        for chain in chains:
            lineage.leave(chain)
        assert len(lineage) == 0


# --- liars -------------------------------------------------------------------------------------------------------


def test_a_block_that_is_named_twice_by_one_who_leaves_is_still_that_of_others():
    """He had it twice in his chain, and leaves first the one, then the other."""
    lineage = Lineage()
    lineage.join(keys("aba"), 1)
    lineage.join(keys("ab"), 2)
    left(lineage, "a")
    left(lineage, "ab")
    assert [count > 0 for count in members(lineage, "ab")] == [True, True]


def test_new_blocks_that_are_named_twice_have_one_row():
    lineage = Lineage()
    lineage.join(keys("aabab"), 1)
    assert len(lineage) == 2
    assert left(lineage, "aabab").startswith("a") and len(lineage) == 0


CHAINS = st.lists(st.sampled_from("abcdef"), max_size=8).map("".join)


@given(st.lists(st.tuples(st.integers(0, 4), CHAINS), max_size=40))
@settings(deadline=None)
def test_after_any_sessions_came_and_left_counts_are_those_of_a_dict(events):
    """Each session has one chain at a time, and leaves it before it has another; some name blocks twice."""
    lineage, chains, first = Lineage(), {}, {}
    for session, chain in events:
        former = chains.pop(session, "")
        gone = left(lineage, former)
        others = {letter for other in chains.values() for letter in other}
        assert set(gone) == set(former) - others
        for letter in set(former) - others:
            del first[letter]
        lineage.join(keys(chain), session)
        chains[session] = chain
        for letter in chain:
            first.setdefault(letter, session)
        counts = Counter(letter for other in chains.values() for letter in set(other))
        assert [n > 0 for n in members(lineage, "abcdef")] == [letter in counts for letter in "abcdef"]
        if not any(len(set(other)) < len(other) for other in chains.values()):
            assert members(lineage, "abcdef") == [counts[letter] for letter in "abcdef"]
        assert len(lineage) == len(counts)
        assert all(lineage.owner(key(letter)) == owner for letter, owner in first.items())


@given(st.lists(st.tuples(st.booleans(), CHAINS), max_size=40))
@settings(deadline=None)
def test_whoever_joins_and_leaves_whatever_nothing_raises_and_nobody_is_counted_below_none(events):
    lineage = Lineage()
    for joins, chain in events:
        if joins:
            lineage.join(keys(chain), 1)
        else:
            lineage.leave(keys(chain))
        assert all(n >= 0 for n in members(lineage, "abcdef"))
        assert len(lineage) == sum(n > 0 for n in members(lineage, "abcdef"))
        rows = lineage._table.find(keys("abcdef"))
        spare = lineage._free[: lineage._spare]
        assert len(np.unique(spare)) == len(spare) == len(lineage._owner) - len(lineage)
        assert not set(spare.tolist()) & set(rows.tolist())
