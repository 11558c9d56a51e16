"""KeyTable: it answers as a dict would, whatever the keys, and in the order asked."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kvtier._native import KeyTable

from kvtier import _native, block
from kvtier.block import ABSENT, KEY_BYTES, pack_keys, unpack_keys

BUCKETS = 16  # of a table that nobody asked to be larger; 10 keys fit
LAST = BUCKETS - 1
BUCKET_BYTES = 24


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def key_in(bucket: int, number: int = 0) -> bytes:
    """A key whose home is this bucket in a table of up to 2**64: its last eight bytes name it."""
    return number.to_bytes(8, "big") + bucket.to_bytes(8, "big")


def random_keys(count: int, seed: int = 1) -> list[bytes]:
    return unpack_keys(random.Random(seed).randbytes(count * KEY_BYTES))


def find(table: KeyTable, *keys: bytes) -> list[int]:
    return table.find(pack_keys(keys)).tolist()


def filled(keys: list[bytes]) -> KeyTable:
    """Each key in the slot of its position."""
    table = KeyTable()
    for slot, each in enumerate(keys):
        table.add(each, slot)
    return table


def assert_same(table: KeyTable, expected: dict[bytes, int], *, asked: list[bytes]) -> None:
    assert len(table) == len(expected)
    assert find(table, *asked) == [expected.get(each, ABSENT) for each in asked]
    assert [each in table for each in asked] == [each in expected for each in asked]


# --- what it does --------------------------------------------------------------------------------------------


def test_the_table_and_the_package_mean_the_same_by_a_key_and_by_absent():
    assert (KeyTable.KEY_BYTES, KeyTable.ABSENT) == (block.KEY_BYTES, block.ABSENT)


def test_an_empty_table_has_nothing():
    table = KeyTable()
    assert len(table) == 0
    assert key(1) not in table
    assert find(table, key(1), bytes(KEY_BYTES)) == [ABSENT, ABSENT]


def test_what_was_added_is_found():
    table = KeyTable()
    table.add(key(1), 10)
    assert len(table) == 1
    assert key(1) in table
    assert find(table, key(1)) == [10]


def test_answers_come_in_the_order_asked_and_as_often():
    table = filled([key(0), key(1), key(2)])
    assert find(table, key(2), key(9), key(0), key(2)) == [2, ABSENT, 0, 2]


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 31, 32, 33, 1000])
def test_any_number_of_keys_can_be_asked(count):
    keys = random_keys(count)
    order = random.Random(2).sample(range(count), count)
    assert find(filled(keys), *(keys[i] for i in order)) == order


def test_an_answer_is_made_as_it_travels_and_is_the_callers_own():
    table = filled([key(0), key(1)])
    answer = table.find(key(0) + key(1))
    assert answer.dtype == block.SLOT_TYPE and answer.shape == (2,) and answer.flags.c_contiguous
    assert answer.tobytes() == block.pack_slots([0, 1])
    answer[:] = 7
    assert find(table, key(0), key(1)) == [0, 1]


def test_an_answer_outlives_the_table():
    table = filled(random_keys(5000))
    answer = table.find(pack_keys(random_keys(5000)))
    del table
    assert answer.tolist() == list(range(5000))


def test_what_was_removed_is_gone_and_may_come_back_elsewhere():
    table = filled([key(0), key(1)])
    assert table.remove(key(1)) == 1
    assert len(table) == 1
    assert find(table, key(0), key(1)) == [0, ABSENT]
    table.add(key(1), 5)
    assert find(table, key(0), key(1)) == [0, 5]


def add_many(table: KeyTable, keys: list[bytes], slots: list[int]) -> list[bool]:
    return table.add_many(pack_keys(keys), np.array(slots, np.uint32)).tolist()


def test_many_are_added_at_once_and_those_there_already_keep_their_slot():
    table = filled([key(0), key(1)])
    added = table.add_many(pack_keys([key(5), key(1), key(6), key(5)]), np.array([7, 8, 9, 10], np.uint32))
    assert added.dtype == np.bool_ and added.tolist() == [True, False, True, False]
    assert len(table) == 4
    assert find(table, key(0), key(1), key(5), key(6)) == [0, 1, 7, 9]


def test_many_are_removed_at_once_and_those_missing_are_absent():
    table = filled([key(0), key(1), key(2)])
    removed = table.remove_many(pack_keys([key(2), key(9), key(0), key(2)]))
    assert removed.dtype == block.SLOT_TYPE and removed.tolist() == [2, ABSENT, 0, ABSENT]
    assert len(table) == 1 and find(table, key(1)) == [1]


@pytest.mark.parametrize("count", [0, 1, 17, 100_000])
def test_a_table_grows_for_many_at_once(count):
    keys, table = random_keys(count), KeyTable()
    assert add_many(table, keys, list(range(count))) == [True] * count
    assert find(table, *keys) == list(range(count))
    assert add_many(table, keys, [0] * count) == [False] * count
    assert table.memory_bytes == KeyTable(count).memory_bytes
    assert table.remove_many(pack_keys(keys)).tolist() == list(range(count)) and len(table) == 0


def test_the_first_and_the_last_slot_are_slots_like_others():
    table = KeyTable()
    table.add(key(1), 0)
    table.add(key(2), ABSENT - 1)
    assert find(table, key(1), key(2)) == [0, ABSENT - 1]
    assert table.remove(key(2)) == ABSENT - 1


def test_a_key_of_zeros_is_a_key_like_others():
    table = KeyTable()
    table.add(bytes(KEY_BYTES), 3)
    assert find(table, bytes(KEY_BYTES)) == [3]
    assert table.remove(bytes(KEY_BYTES)) == 3
    assert bytes(KEY_BYTES) not in table


def test_every_byte_of_a_key_counts():
    keys = [bytes(KEY_BYTES)] + [key(1 << bit) for bit in range(8 * KEY_BYTES)]
    assert find(filled(keys), *keys) == list(range(len(keys)))


def test_a_slot_may_be_a_numpy_number():
    table = KeyTable()
    table.add(key(1), np.uint32(7))
    assert find(table, key(1)) == [7]


# --- collisions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [0, 5, LAST], ids=["at the start", "in the middle", "around the end"])
@pytest.mark.parametrize("removed", range(6))
def test_any_of_the_keys_that_share_a_bucket_can_go(bucket, removed):
    keys = [key_in(bucket, number) for number in range(6)]
    table = filled(keys)
    assert table.remove(keys[removed]) == removed
    assert find(table, *keys) == [ABSENT if slot == removed else slot for slot in range(6)]


def test_a_key_that_stands_at_home_stays_when_one_before_it_goes():
    at_home = key_in(6)
    table = filled([key_in(5), at_home])
    table.remove(key_in(5))
    assert find(table, at_home, key_in(5)) == [1, ABSENT]


def test_a_key_that_was_pushed_over_one_at_home_is_still_found_when_the_first_goes():
    keys = [key_in(5), key_in(6), key_in(5, number=1)]  # the last one stands in bucket 7
    table = filled(keys)
    table.remove(keys[0])
    assert find(table, *keys) == [ABSENT, 1, 2]


def test_a_cluster_around_the_end_closes_up_again():
    keys = [key_in(LAST - 1), key_in(LAST), key_in(LAST - 1, number=1), key_in(LAST, number=1), key_in(0)]
    for removed in range(len(keys)):
        table = filled(keys)
        table.remove(keys[removed])
        assert find(table, *keys) == [ABSENT if slot == removed else slot for slot in range(len(keys))]


def test_keys_that_share_every_bucket_survive_growth():
    keys = [key_in(0, number) for number in range(500)]
    table = filled(keys)
    for each in keys[::2]:
        table.remove(each)
    assert find(table, *keys) == [ABSENT if slot % 2 == 0 else slot for slot in range(500)]


colliding_keys = st.builds(
    key_in,
    st.sampled_from([0, 1, 2, LAST - 2, LAST - 1, LAST, 2 * BUCKETS - 1, 4 * BUCKETS - 1]),
    st.integers(0, 5),
)


@given(kept=st.sets(colliding_keys), passing=st.sets(colliding_keys), seed=st.randoms(use_true_random=False))
def test_what_came_and_went_leaves_no_trace(kept, passing, seed):
    order = sorted(kept | passing)
    seed.shuffle(order)
    table = filled(order)
    leaving = sorted(passing)
    seed.shuffle(leaving)
    for each in leaving:
        assert table.remove(each) == order.index(each)
    expected = {each: slot for slot, each in enumerate(order) if each not in passing}
    assert_same(table, expected, asked=order)


class TableAndDict(RuleBasedStateMachine):
    """Few buckets and keys that crowd around the end of the array: every shift there is, growth in between."""

    def __init__(self) -> None:
        super().__init__()
        self.table = KeyTable()
        self.model: dict[bytes, int] = {}
        self.seen: set[bytes] = set()

    @rule(key=colliding_keys, slot=st.integers(0, ABSENT - 1))
    def add(self, key, slot):
        self.seen.add(key)
        if key in self.model:
            with pytest.raises(KeyError):
                self.table.add(key, slot)
        else:
            self.table.add(key, slot)
            self.model[key] = slot

    @rule(keys=st.lists(colliding_keys, min_size=8))
    def add_many(self, keys):
        self.seen.update(keys)
        slots = list(range(len(keys)))
        new = [each not in self.model and each not in keys[:i] for i, each in enumerate(keys)]
        assert add_many(self.table, keys, slots) == new
        self.model = dict(zip(reversed(keys), reversed(slots))) | self.model

    @rule(keys=st.lists(colliding_keys))
    def remove_many(self, keys):
        removed = self.table.remove_many(pack_keys(keys)).tolist()
        assert removed == [self.model.pop(each, ABSENT) for each in keys]

    @precondition(lambda self: self.model)
    @rule(choice=st.randoms(use_true_random=False))
    def remove(self, choice):
        key = choice.choice(sorted(self.model))
        assert self.table.remove(key) == self.model.pop(key)

    @rule(key=colliding_keys)
    def remove_perhaps(self, key):
        if key in self.model:
            assert self.table.remove(key) == self.model.pop(key)
        else:
            with pytest.raises(KeyError):
                self.table.remove(key)

    @invariant()
    def the_same_is_found(self):
        assert_same(self.table, self.model, asked=sorted(self.seen))


TestTableAndDict = TableAndDict.TestCase
TestTableAndDict.settings = settings(max_examples=40, deadline=None)
TestTableAndDictAtLength = pytest.mark.long(type("AtLength", (TableAndDict,), {}).TestCase)
TestTableAndDictAtLength.settings = settings(max_examples=400, deadline=None)


def test_months_of_coming_and_going_change_nothing():
    """Many more keys than ever fit pass through; the table keeps its size and all its answers."""
    keys = random_keys(60_000)
    table, expected = KeyTable(1000), {}
    size = table.memory_bytes
    for slot, each in enumerate(keys):
        table.add(each, slot)
        expected[each] = slot
        if slot >= 1000:
            assert table.remove(keys[slot - 1000]) == expected.pop(keys[slot - 1000])
    assert table.memory_bytes == size
    assert_same(table, expected, asked=keys)


# --- errors --------------------------------------------------------------------------------------------------


def test_a_key_is_added_once():
    table = filled([key(0)])
    with pytest.raises(KeyError) as raised:
        table.add(key(0), 5)
    assert raised.value.args == (key(0),)
    assert find(table, key(0)) == [0] and len(table) == 1


def test_a_missing_key_cannot_be_removed():
    table = filled([key(0)])
    with pytest.raises(KeyError) as raised:
        table.remove(key(1))
    assert raised.value.args == (key(1),)
    assert len(table) == 1


@pytest.mark.parametrize("wrong", [b"", bytes(KEY_BYTES - 1), bytes(KEY_BYTES + 1), bytes(2 * KEY_BYTES)])
def test_a_key_has_16_bytes(wrong):
    table = KeyTable()
    with pytest.raises(ValueError, match="16 bytes"):
        table.add(wrong, 1)
    with pytest.raises(ValueError, match="16 bytes"):
        table.remove(wrong)
    with pytest.raises(ValueError, match="16 bytes"):
        wrong in table  # noqa: B015


@pytest.mark.parametrize("size", [1, 15, 17, 4095])
def test_packed_keys_are_whole_keys(size):
    table, slots = KeyTable(), np.zeros(1, np.uint32)
    for call in (table.find, table.remove_many, lambda keys: table.add_many(keys, slots)):
        with pytest.raises(ValueError, match="multiple of 16"):
            call(bytes(size))


@pytest.mark.parametrize("slots", [[], [1, 2, 3], [1, ABSENT]])
def test_slots_for_many_are_as_many_and_none_is_absent(slots):
    table = KeyTable()
    with pytest.raises(ValueError, match="slot"):
        add_many(table, [key(0), key(1)], slots)
    with pytest.raises(TypeError):
        table.add_many(key(0), np.ones(1, np.int64))
    assert len(table) == 0


@pytest.mark.parametrize("slot", [-1, ABSENT, ABSENT + 1, 1 << 40])
def test_a_slot_fits_and_is_not_absent(slot):
    table = KeyTable()
    with pytest.raises(ValueError, match="slot"):
        table.add(key(1), slot)
    assert len(table) == 0


@pytest.mark.parametrize("wrong", [None, 5, "x" * KEY_BYTES, bytearray(KEY_BYTES), memoryview(bytes(KEY_BYTES))])
def test_only_bytes_are_keys(wrong):
    table = KeyTable()
    for call in (table.find, table.remove, table.remove_many, table.__contains__, lambda each: table.add(each, 1)):
        with pytest.raises(TypeError):
            call(wrong)


def test_a_size_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="negative"):
        KeyTable(-1)
    with pytest.raises(MemoryError):
        KeyTable(1 << 60)


def test_it_is_not_made_from_anything_but_a_number():
    with pytest.raises(TypeError):
        _native.KeyTable("1000")
