"""Index: what is found where, and who keeps a slot that was dropped."""

import numpy as np
import pytest

from kvtier.block import ABSENT, pack_keys
from kvtier.index import Index

RED, BLUE = 0, 1  # namespaces


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def column(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.uint32)


@pytest.fixture
def index() -> Index:
    """Keys 1, 2, 3 in the slots 10, 20, 30; the last in another namespace."""
    made = Index(units=64)
    for number, namespace in ((1, RED), (2, RED), (3, BLUE)):
        made.add(key(number), number * 10, namespace)
    return made


def test_an_empty_index_has_nothing():
    index = Index(units=8)
    assert len(index) == 0
    assert key(1) not in index
    assert index.find(pack_keys([key(1)])).tolist() == [ABSENT]


def test_what_was_added_is_found_in_the_order_asked(index):
    assert len(index) == 3
    assert index.find(pack_keys([key(3), key(9), key(1)])).tolist() == [30, ABSENT, 10]
    assert index.find(pack_keys([])).tolist() == []


def test_an_answer_is_made_as_it_travels(index):
    assert index.find(pack_keys([key(1)])).dtype == np.dtype("<u4")


def test_what_was_dropped_is_not_found_and_its_slot_is_free_at_once(index):
    assert index.drop(20) is True
    assert key(2) not in index
    assert not index.holds(20)
    assert index.find(pack_keys([key(1), key(2)])).tolist() == [10, ABSENT]


def test_a_slot_can_hold_another_block_after_a_drop(index):
    index.drop(20)
    index.add(key(7), 20, BLUE)
    assert index.find(pack_keys([key(7)])).tolist() == [20]


def test_a_block_that_is_dropped_while_pinned_is_not_found_and_its_slot_comes_back_with_the_last_pin(index):
    index.pin(column(20))
    index.pin(column(20))
    assert index.drop(20) is False
    assert key(2) not in index
    assert index.unpin(column(20)) == []
    assert index.is_pinned(20)
    assert index.unpin(column(20)) == [20]
    assert not index.is_pinned(20)


def test_the_end_of_a_pin_leaves_a_block_that_was_not_dropped_where_it_is(index):
    index.pin(column(10, 20))
    assert index.unpin(column(10, 20)) == []
    assert index.find(pack_keys([key(1), key(2)])).tolist() == [10, 20]


def test_a_slot_that_is_named_twice_has_two_pins_and_comes_back_once(index):
    index.pin(column(10, 10))
    index.drop(10)
    assert index.unpin(column(10, 10)) == [10]


def test_more_unpins_than_pins_are_a_programmer_error(index):
    with pytest.raises(AssertionError):
        index.unpin(column(10))


def test_one_key_in_two_slots_and_two_keys_in_one_slot_are_programmer_errors(index):
    with pytest.raises(AssertionError):
        index.add(key(1), 40, RED)
    with pytest.raises(AssertionError):
        index.add(key(4), 10, RED)


def test_a_slot_that_is_still_pinned_takes_no_other_block(index):
    index.pin(column(10))
    index.drop(10)
    with pytest.raises(AssertionError):
        index.add(key(4), 10, RED)


def test_dropping_what_is_not_there_is_a_programmer_error(index):
    with pytest.raises(AssertionError, match="no placement"):
        index.drop(11)


def test_a_namespace_knows_its_blocks(index):
    assert index.of_namespace(RED).tolist() == [10, 20]
    index.drop(10)
    assert index.of_namespace(RED).tolist() == [20]
    assert index.of_namespace(BLUE).tolist() == [30]
    assert index.of_namespace(7).tolist() == []
