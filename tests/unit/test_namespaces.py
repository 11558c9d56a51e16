"""Namespaces: numbers that are never given twice, epochs that only grow."""

import pytest

from kvtier.errors import ProtocolError
from kvtier.namespaces import NAMESPACES_MAX, Namespaces

RED, BLUE = b"red".ljust(32), b"blue".ljust(32)


def test_numbers_go_on_behind_those_that_survived():
    names = Namespaces()
    names.recover({RED: (7, 3)})
    assert (names.add(BLUE).number, names[RED].epoch) == (8, 3)
    assert names.epochs == {7: 3, 8: 0}


def test_a_reset_is_seen_by_those_who_know_only_numbers():
    names = Namespaces()
    names.add(RED)
    assert names.reset(RED).epoch == 1 and names.epochs == {0: 1}


def test_there_is_a_most():
    names = Namespaces()
    for n in range(NAMESPACES_MAX):
        names.add(n.to_bytes(32, "big"))
    with pytest.raises(ProtocolError, match="restart kvtierd"):
        names.add(RED)
