"""Residue: what is zeroed before a slot is lent, and what isn't."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvtier.block import SLOT_UNIT
from kvtier.residue import Residue

SIZE = 2 * SLOT_UNIT
NAMESPACE, OTHERS, UNKNOWN = 0, 1, 2


def made(*users: str) -> Residue:
    residue = Residue(64, 32, np.ones(2, np.int64))
    for namespace, user in enumerate(users):
        residue.belongs(namespace, residue.user(user))
    return residue


def test_while_there_is_one_user_nothing_is_foreign():
    residue = made("")
    residue.lent(0, SIZE, 0)
    residue.filling(4, SIZE, NAMESPACE)
    assert not residue.is_foreign(0, SIZE, 0)
    assert not residue.is_foreign(4, SIZE, 0)


def test_what_the_first_user_had_is_foreign_to_the_second():
    residue = made("")
    residue.lent(0, SIZE, 0)
    bob = residue.user("bob")
    assert residue.is_foreign(0, SIZE, bob)
    assert residue.is_foreign(32, SIZE, bob), "nobody kept books while he was alone"
    assert not residue.is_foreign(0, SIZE, 0)


def test_what_was_wiped_is_anyones():
    residue = made("", "bob")
    residue.wiped(0, SIZE)
    assert not residue.is_foreign(0, SIZE, 0)
    assert not residue.is_foreign(0, SIZE, 1)


def test_what_was_lent_is_its_users():
    residue = made("", "bob")
    residue.wiped(0, SIZE)
    residue.lent(0, SIZE, 1)
    assert residue.is_foreign(0, SIZE, 0)
    assert not residue.is_foreign(0, SIZE, 1)


def test_a_slot_with_one_unit_of_another_is_foreign():
    residue = made("", "bob")
    residue.lent(0, SIZE, 1)
    assert residue.is_foreign(1, SIZE, 0)
    assert not residue.is_foreign(2, SIZE, 0)


def test_what_is_being_read_from_below_is_foreign_to_all_until_it_came():
    residue = made("", "bob")
    residue.filling(0, SIZE, OTHERS)
    assert residue.is_foreign(0, SIZE, 0)
    assert residue.is_foreign(0, SIZE, 1)
    residue.filled(0, SIZE, OTHERS)
    assert residue.is_foreign(0, SIZE, 0)
    assert not residue.is_foreign(0, SIZE, 1)


def test_what_is_read_of_a_namespace_whose_engines_never_came_is_foreign_to_all():
    residue = made("")
    residue.filling(0, SIZE, UNKNOWN)
    residue.filled(0, SIZE, UNKNOWN)
    assert residue.is_foreign(0, SIZE, 0)
    assert not residue.is_foreign(4, SIZE, 0)


def test_a_tail_is_zeroed_once():
    residue = made("")
    assert residue.tail(2, SIZE, SIZE - 100) == (2 * SLOT_UNIT + SIZE - 100, 100)
    assert residue.tail(2, SIZE, SIZE - 100)[1] == 0


def test_a_longer_tail_is_zeroed_as_far_as_it_was_not():
    residue = made("")
    residue.tail(2, SIZE, SIZE - 100)
    assert residue.tail(2, SIZE, SIZE - 300) == (2 * SLOT_UNIT + SIZE - 300, 200)
    assert residue.tail(2, SIZE, SIZE - 10)[1] == 0
    assert residue.tail(2, SIZE, SIZE - 300)[1] == 290


def test_a_block_that_fills_its_slot_has_no_tail():
    assert made("").tail(2, SIZE, SIZE)[1] == 0


def test_the_tail_of_what_came_from_below_is_zeroed():
    residue = made("")
    residue.tail(2, SIZE, SIZE - 100)
    residue.filling(2, SIZE, NAMESPACE)
    assert residue.tail(2, SIZE, SIZE - 100)[1] == 100


def test_when_a_slab_is_cut_anew_nothing_is_known_of_its_tails():
    cuts = np.ones(2, np.int64)
    residue = Residue(64, 32, cuts)
    residue.tail(2, SIZE, SIZE - 100)
    residue.tail(34, SIZE, SIZE - 100)
    cuts[0] += 1
    assert residue.tail(2, SIZE, SIZE - 100)[1] == 100
    assert residue.tail(34, SIZE, SIZE - 100)[1] == 0


@given(st.lists(st.tuples(st.sampled_from(("lend", "fill", "wipe")), st.integers(1, SIZE)), max_size=20))
def test_no_byte_of_a_tail_is_ever_anything_but_zero(steps):
    residue, dirty_to = made(""), SIZE  # what really may be there: from here on zeros
    for what, block_bytes in steps:
        if what == "wipe":
            residue.wiped(0, SIZE)
            dirty_to = 0
        elif what == "fill":
            residue.filling(0, SIZE, NAMESPACE)
            dirty_to = SIZE
        else:
            at, n = residue.tail(0, SIZE, block_bytes)
            assert at == block_bytes
            assert at + n >= dirty_to or dirty_to <= block_bytes
            dirty_to = block_bytes


def test_what_is_known_goes_on_after_an_upgrade():
    residue = made("", "bob")
    residue.wiped(0, SIZE)
    residue.lent(0, SIZE, 1)
    after = Residue(64, 32, np.ones(2, np.int64))
    after.restore(*residue.carry())
    assert after.user("bob") == 1
    assert after.is_foreign(0, SIZE, 0)
    assert not after.is_foreign(0, SIZE, 1)
    assert residue.whose(OTHERS) == "bob"
    assert residue.whose(UNKNOWN) is None


def test_of_one_user_nothing_need_be_carried():
    assert made("").carry() == ([""], b"")
