"""Which extent the next frame goes into, and so how large its place is."""

import pytest

from kvtier.block import PLACE_GRAIN, SLOT_UNIT
from kvtier.extents import Extents
from kvtier.open_extents import OpenExtents

SIZE = 100 * PLACE_GRAIN


def opened(*pages: int, extents: int = 16, drives: int = 1) -> OpenExtents:
    made = OpenExtents(extents, drives)
    for number, n in enumerate(pages):
        made.put((SIZE, n * PLACE_GRAIN), number)
    return made


@pytest.mark.parametrize(
    ("open_", "wanted", "pages"),
    [
        pytest.param((), 70, 70, id="the first gets what it asks for"),
        pytest.param((70,), 69, 70, id="a little more room does"),
        pytest.param((70,), 71, 71, id="less does not"),
        pytest.param((80,), 70, 70, id="much more room is wasted while there are few sizes"),
        pytest.param((72, 71), 70, 71, id="the smallest that does"),
        pytest.param((80, 90), 70, 80, id="where there are enough sizes, what has room"),
        pytest.param((60, 65), 70, 70, id="one that is larger than all may be a third"),
        pytest.param((60, 62, 64, 66), 70, 100, id="but no fifth: it is no frame"),
        pytest.param((60, 65, 100), 70, 70, id="places for blocks as they are count for none"),
        pytest.param((70,), 0, 100, id="who asks for none gets a whole one"),
    ],
)
def test_of_sixteen_extents_two_sizes_of_places_are_filled_and_four_at_most(open_, wanted, pages):
    assert opened(*open_).place_bytes(SIZE, wanted * PLACE_GRAIN) == pages * PLACE_GRAIN


def test_blocks_of_another_size_have_places_of_their_own():
    assert opened(70).place_bytes(2 * SIZE, 70 * PLACE_GRAIN) == 70 * PLACE_GRAIN
    assert opened(70, 80).place_bytes(2 * SIZE, 79 * PLACE_GRAIN) == 79 * PLACE_GRAIN


def test_what_is_full_is_not_open():
    made = opened(70)
    assert made.next((SIZE, 70 * PLACE_GRAIN)) == 0
    assert not made and made.next((SIZE, 70 * PLACE_GRAIN)) is None


def extents_of(stored: int, blocks: int, extents: Extents, size: int = 8 * SLOT_UNIT) -> set[int]:
    """So many frames are written; the extents they went to."""
    numbers = set()
    for _ in range(blocks):
        place = extents.take(size, stored)
        extents.give_up(place)
        numbers.add(place // extents._units)
    return numbers


def test_a_rare_size_takes_one_extent_and_one_that_is_used_takes_one_of_each_drive():
    extents = Extents(64, 32 * 8 * SLOT_UNIT, drives=4)
    stored = 6 * SLOT_UNIT
    assert len(extents_of(stored, 1, extents)) == 1
    used = extents_of(stored, 200, extents)
    assert {number % 4 for number in used} == {0, 1, 2, 3}


def test_of_all_extents_one_in_eight_is_being_filled_with_frames():
    extents = Extents(64, 32 * 8 * SLOT_UNIT, drives=4)
    for pages in range(40, 120, 8):
        extents_of(pages * PLACE_GRAIN, 40, extents)
    assert sum(len(numbers) for (size, stored), numbers in extents._open.items() if stored < size) <= 8
