"""The remote as the room that blocks are written to."""

import pytest

from kvtier.known import Known
from kvtier.remote_room import RemoteRoom

KEY, OTHER = b"k" * 16, b"o" * 16
MIB = 1024**2


@pytest.fixture
def known() -> Known:
    return Known(there_s=10.0)


@pytest.fixture
def room(known) -> RemoteRoom:
    return RemoteRoom(known, lambda namespace: namespace == 7)


def test_it_has_what_is_known_to_be_there(known, room):
    known.there(KEY, MIB, 0.0)
    assert KEY in room and OTHER not in room


def test_and_no_longer_than_that_is_believed(known, room):
    known.there(KEY, MIB, 0.0)
    room.now = 10.0
    assert KEY not in room


def test_what_was_written_is_known_to_be_there_with_its_size(known, room):
    room.now = 5.0
    place = room.take(3 * MIB)
    assert KEY not in room
    room.add(place, KEY, 7, 1234)
    assert known.look([KEY], True, 14.0).sizes == [3 * MIB]
    assert known.look([KEY], True, 15.0).sizes == []


def test_of_what_was_given_up_nothing_is_known(known, room):
    room.give_up(room.take(MIB))
    assert KEY not in room
    assert known.snapshot() == {"known_there": 0, "known_missing": 0, "asked": 0}


def test_everything_fits(room):
    assert room.fits(2**40)


def test_namespaces_are_served_as_its_owner_says(room):
    assert room.serves(7) and not room.serves(8)
