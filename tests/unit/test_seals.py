"""The seals of blocks on drives: what was added for a place is found there until it is forgotten."""

import random

import numpy as np

from kvtier.tiers.seals import SEAL_BYTES, Seals, pack, unpack

UNITS = 32


def seal(serial: int, n: int) -> bytes:
    return pack(serial, n.to_bytes(12, "big"), n.to_bytes(16, "little"))


def test_what_is_packed_comes_back():
    assert len(seal(7, 9)) == SEAL_BYTES == 32
    assert unpack(seal(7, 9)) == (7, (9).to_bytes(12, "big"), (9).to_bytes(16, "little"))


def test_a_seal_is_found_at_its_place_and_nowhere_else():
    seals = Seals(UNITS)
    seals.add(40, seal(1, 5))
    assert seals.get(40) == seal(1, 5)
    assert seals.get(41) is None and seals.get(8) is None and len(seals) == 1


def test_the_last_one_of_a_place_counts():
    seals = Seals(UNITS)
    seals.add(3, seal(1, 5))
    seals.add(3, seal(2, 6))
    assert seals.get(3) == seal(2, 6)


def test_whoever_forgets_hears_whose_keys_these_were_and_a_key_without_blocks_is_not_counted():
    seals = Seals(UNITS)
    for place, serial in ((0, 1), (1, 2), (33, 1)):
        seals.add(place, seal(serial, place))
    assert sorted(seals.forget(0, UNITS)) == [1, 2] and seals.blocks == {1: 1}
    assert seals.forget(0, UNITS) == [] and seals.get(0) is None and seals.get(33) == seal(1, 33)
    assert seals.forget(33, 34) == [1] and not seals.blocks and not len(seals)


def test_what_was_recovered_is_found_in_whatever_order_it_came():
    places = np.array([70, 3, 40, 2, 95], np.uint32)
    rows = np.array([np.frombuffer(seal(n, n), np.uint8) for n in range(5)])
    seals = Seals(UNITS)
    seals.load(places, rows)
    assert [seals.get(place) for place in places.tolist()] == [seal(n, n) for n in range(5)]
    assert seals.blocks == dict.fromkeys(range(5), 1)
    seals.add(4, seal(9, 9))
    assert seals.get(4) == seal(9, 9) and seals.get(3) == seal(1, 1)


def test_nothing_recovered_is_nothing():
    seals = Seals(UNITS)
    seals.load(np.empty(0, np.uint32), np.empty((0, SEAL_BYTES), np.uint8))
    assert not len(seals) and seals.get(0) is None


def test_it_has_what_a_dict_would_have_after_whatever_happens():
    chance, seals, model = random.Random(4), Seals(UNITS), {}
    for n in range(3000):
        if chance.random() < 0.8:
            place = chance.randrange(8 * UNITS)
            model[place] = seal(chance.randrange(5), n)
            seals.forget(place, place + 1)
            seals.add(place, model[place])
        else:
            first = chance.randrange(8 * UNITS)
            end = chance.choice((first + 1, first // UNITS * UNITS + UNITS, first + 3 * UNITS))
            seals.forget(first, end)
            model = {place: one for place, one in model.items() if not first <= place < end}
    assert {place: seals.get(place) for place in range(9 * UNITS) if seals.get(place)} == model
    counted = {serial: [unpack(one)[0] for one in model.values()].count(serial) for serial in range(5)}
    assert dict(seals.blocks) == {serial: count for serial, count in counted.items() if count}
