"""KeyTable grows while it is used: step by step, and no key is lost or found twice on the way."""

import random
import time

import numpy as np
import pytest
from kvtier._native import KeyTable

from kvtier.block import ABSENT, KEY_BYTES, pack_keys, unpack_keys

BUCKETS = 16  # of a table that nobody asked to be larger; 10 keys fit
BUCKET_BYTES = 24


def random_keys(count: int, seed: int = 1) -> list[bytes]:
    return unpack_keys(random.Random(seed).randbytes(count * KEY_BYTES))


def find(table: KeyTable, *keys: bytes) -> list[int]:
    return table.find(pack_keys(keys)).tolist()


def filled(keys: list[bytes], expected: int = 0) -> KeyTable:
    """Each key in the slot of its position."""
    table = KeyTable(expected)
    for slot, each in enumerate(keys):
        table.add(each, slot)
    return table


def assert_same(table: KeyTable, expected: dict[bytes, int], *, asked: list[bytes]) -> None:
    assert len(table) == len(expected)
    assert find(table, *asked) == [expected.get(each, ABSENT) for each in asked]


def test_a_table_grows_and_keeps_every_key():
    keys = random_keys(100_000)
    table = filled(keys)
    assert len(table) == 100_000
    assert np.array_equal(table.find(pack_keys(keys)), np.arange(100_000))
    assert find(table, *random_keys(100, seed=9)) == [ABSENT] * 100


@pytest.mark.parametrize("expected", [0, 1, 10, 11, 1000, 10_240, 10_241])
def test_as_many_keys_as_expected_fit_without_growth(expected):
    table = KeyTable(expected)
    size = table.memory_bytes
    for slot, each in enumerate(random_keys(expected)):
        table.add(each, slot)
    assert table.memory_bytes == size


def test_it_doubles_when_it_is_five_eighths_full():
    table = filled(random_keys(10))
    assert table.memory_bytes == BUCKETS * BUCKET_BYTES
    table.add(bytes(KEY_BYTES), 10)
    assert table.memory_bytes == 2 * BUCKETS * BUCKET_BYTES


def growing(keys: list[bytes]) -> KeyTable:
    """These keys in a table that has just begun to grow: most of them stand where they stood."""
    assert len(keys) == 5 * 2048 + 1, "one more than fit in 2^14 buckets"
    return filled(keys, 5 * 2048)


def test_while_it_grows_it_takes_the_memory_of_both_and_then_of_one():
    keys = random_keys(5 * 2048 + 1)
    table = growing(keys)
    assert table.memory_bytes == 3 * 16384 * BUCKET_BYTES
    more = random_keys(1100, seed=3)
    for slot, each in enumerate(more):
        table.add(each, slot)
    assert table.memory_bytes == 2 * 16384 * BUCKET_BYTES
    assert find(table, *keys, *more) == [*range(len(keys)), *range(len(more))]


@pytest.mark.parametrize("moved", [0, 1, 500, 1023])
def test_what_comes_and_goes_while_it_grows_is_found_or_not(moved):
    keys, more = random_keys(5 * 2048 + 1), random_keys(moved, seed=3)
    table = growing(keys)
    expected = {each: slot for slot, each in enumerate(keys)}
    for slot, each in enumerate(more):
        table.add(each, slot)
        expected[each] = slot
        with pytest.raises(KeyError):
            table.add(keys[slot], 1)
    for each in (*keys[::3], *more[::2]):
        assert table.remove(each) == expected.pop(each)
    assert_same(table, expected, asked=keys + more)
    for each in keys[::3]:
        table.add(each, 7)
        expected[each] = 7
    assert_same(table, expected, asked=keys + more)


def test_many_that_come_while_it_grows_end_the_growth():
    keys, more = random_keys(5 * 2048 + 1), random_keys(30_000, seed=3)
    table = growing(keys)
    assert table.add_many(pack_keys(more), np.arange(len(more), dtype=np.uint32)).all()
    assert table.memory_bytes == KeyTable(len(keys) + len(more)).memory_bytes
    assert find(table, *keys, *more) == [*range(len(keys)), *range(len(more))]


def test_no_add_takes_as_long_as_to_move_all():
    """A million keys move while others come: the worst of these takes less than a tenth of what all of them took."""
    keys = random_keys(5 * 2**17 + 70_000)
    table = KeyTable(5 * 2**17)
    table.add_many(pack_keys(keys[: 5 * 2**17]), np.arange(5 * 2**17, dtype=np.uint32))
    taken = []
    for each in keys[5 * 2**17 :]:
        before = time.thread_time()
        table.add(each, 1)
        taken.append(time.thread_time() - before)
    assert table.memory_bytes == 2**21 * BUCKET_BYTES, "it has grown"
    assert max(taken) < 0.1 * sum(taken)
