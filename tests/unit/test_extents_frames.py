"""Extents of places that are smaller than their blocks."""

from itertools import count

import numpy as np
import pytest

from kvtier.block import PLACE_GRAIN, SLOT_UNIT, pack_keys, place_at, position_of
from kvtier.extents import Extents

from .test_extents import BLOCK, EXTENT, UNITS, fill, key, recover, write

PLACE = 5 * SLOT_UNIT  # 6 of them in an extent of 32 units, and 2 units are left over


def write_frame(extents: Extents, number: int, size: int = BLOCK, stored: int = PLACE) -> int:
    place = extents.take(size, stored)
    assert place is not None
    extents.add(place, key(number), 0, checksum=number)
    return place


def test_places_are_as_large_as_they_were_asked_for_and_stand_in_a_row():
    extents = Extents(4, EXTENT)
    assert [write_frame(extents, number) for number in range(7)] == [0, 5, 10, 15, 20, 25, UNITS]
    assert (extents.size(5), extents.stored(5)) == (BLOCK, PLACE)
    sizes, stored = extents.sizes_at(np.array([0, UNITS], np.uint32))
    assert (sizes.tolist(), stored.tolist()) == ([BLOCK, BLOCK], [PLACE, PLACE])
    assert [extents.key(place) for place in (0, 5, 25, UNITS)] == [key(0), key(1), key(5), key(6)]


def test_what_a_frame_takes_counts_and_what_its_block_is_beside_it():
    extents = Extents(4, EXTENT)
    assert not extents.has_frames
    place = write_frame(extents, 1)
    write(extents, 2)
    assert (extents.used_bytes, extents.block_bytes, extents.has_frames) == (PLACE + BLOCK, 2 * BLOCK, True)
    extents.drop(place)
    assert (extents.used_bytes, extents.block_bytes, extents.has_frames) == (BLOCK, BLOCK, False)
    assert extents.drop_namespace(0) == 1
    assert (extents.used_bytes, extents.block_bytes) == (0, 0)


def test_frames_and_blocks_of_one_size_share_no_extent_and_nor_do_frames_in_places_of_two_sizes():
    extents = Extents(4, EXTENT)
    places = [write(extents, 1), write_frame(extents, 2), write_frame(extents, 3, stored=PLACE + SLOT_UNIT)]
    assert len({place // UNITS for place in places}) == 3


def test_blocks_of_two_sizes_whose_places_are_of_one_share_no_extent():
    extents = Extents(4, EXTENT)
    assert write_frame(extents, 1, size=BLOCK) // UNITS != write_frame(extents, 2, size=2 * BLOCK) // UNITS


def test_a_place_says_of_which_namespace_and_size_its_block_is_not_how_large_it_lies_there():
    extents = Extents(4, EXTENT)
    places = np.array([write_frame(extents, 1), write_frame(extents, 2), write(extents, 3)], np.uint32)
    assert extents.are_of(places, 0, BLOCK).tolist() == [True, True, True]
    assert extents.are_of(places, 0, PLACE).tolist() == [False, False, False]


def test_an_extent_of_frames_that_nobody_fills_goes_as_if_it_were_full():
    """What fits changes; else each size of place that was once right would keep what it began."""
    extents, numbers = Extents(4, EXTENT), count(1)
    old = write_frame(extents, next(numbers)) // UNITS
    fill(extents, *(next(numbers) for _ in range(10)))
    first, end, gone = extents.reclaim()
    assert (first, end, gone) == (old * UNITS, (old + 1) * UNITS, [key(1)])
    extents.freed(first)
    assert write_frame(extents, next(numbers)) == first


def test_one_of_blocks_as_they_are_is_kept_until_it_is_full():
    extents, numbers = Extents(4, EXTENT), count(1)
    begun = write(extents, next(numbers), size=2 * BLOCK) // UNITS
    fill(extents, *(next(numbers) for _ in range(10)))
    assert extents.reclaim()[0] != begun * UNITS


def test_a_larger_frame_that_was_not_written_leaves_its_place_to_nobody_until_the_extent_goes():
    extents = Extents(2, EXTENT)
    place = extents.take(BLOCK, PLACE)
    extents.give_up(place)
    assert write_frame(extents, 1) == place + PLACE // SLOT_UNIT
    assert not extents.holds(place) and extents.used_bytes == PLACE


@pytest.mark.parametrize("pages", [16, 17, 29, 31, 194, 511])
def test_places_of_any_number_of_pages_have_numbers_of_their_own_and_their_bytes_are_apart(pages):
    stored = pages * PLACE_GRAIN
    positions = np.arange(4096, dtype=np.int64)
    places = place_at(positions, stored)
    assert (np.diff(places) >= stored // SLOT_UNIT).all()
    assert (position_of(places, np.full(4096, stored)) == positions).all()
    assert position_of(place_at(7, stored), stored) == 7


def test_frames_of_odd_numbers_of_pages_fill_an_extent_and_are_found_again():
    extents = Extents(4, EXTENT)
    odd = 29 * PLACE_GRAIN  # 17 of them in 2 MiB
    places = [write_frame(extents, number, stored=odd) for number in range(18)]
    assert places[:4] == [0, 1, 3, 5] and places[16:] == [29, UNITS]
    assert [extents.key(place) for place in places] == [key(number) for number in range(18)]
    assert extents.of_origin(b"", b"").tolist() == places
    again = Extents(4, EXTENT)
    rows = [(number, place, BLOCK) for number, place in enumerate(places)]
    assert recover(again, *rows, stored=(odd,) * 18) == 0
    assert recover(Extents(4, EXTENT), (0, 0, BLOCK), (1, 2, BLOCK), stored=(odd, odd)) == 1


def test_what_is_recovered_lies_where_and_as_large_as_it_did():
    extents = Extents(4, EXTENT)
    frames = [(n, 5 * n, BLOCK) for n in range(6)]
    assert recover(extents, *frames, (9, UNITS, BLOCK), stored=(*[PLACE] * 6, 0)) == 0
    assert (extents.used_bytes, extents.block_bytes) == (6 * PLACE + BLOCK, 7 * BLOCK)
    assert [extents.checksum(place) for place in (0, 10, 25, UNITS)] == [0, 2, 5, 9]
    assert write(extents, 10) == UNITS + BLOCK // SLOT_UNIT, "the one of whole blocks goes on being filled"


def test_of_what_is_recovered_nothing_is_taken_that_does_not_fit_its_extent():
    extents = Extents(4, EXTENT)
    rows = [(0, 0, BLOCK), (1, 5, BLOCK), (2, 11, BLOCK), (3, 15, BLOCK), (4, 30, BLOCK)]
    stored = (PLACE, PLACE, PLACE, PLACE + SLOT_UNIT, PLACE)
    assert recover(extents, *rows, stored=stored) == 3
    assert extents.find(pack_keys([key(0), key(1)])).tolist() == [0, 5]
