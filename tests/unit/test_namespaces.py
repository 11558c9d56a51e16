"""Namespaces: numbers that are never given twice, epochs that only grow."""

import pytest

from kvtier import namespaces as module
from kvtier.errors import ProtocolError
from kvtier.namespaces import Namespaces

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


class Owned:
    """Namespaces, and whose each of them is."""

    def __init__(self) -> None:
        self.whose: dict[int, str] = {}
        self.names = Namespaces(self.whose.get)

    def take(self, user: str | None, wanted: int) -> int:
        """How many of so many this user gets."""
        for n in range(wanted):
            try:
                known = self.names.add(f"{user} {len(self.names)}".encode().ljust(32), user)
            except ProtocolError as refused:
                assert refused.code == "too_many" and "restart kvtierd" in str(refused)
                return n
            if user is not None:
                self.whose[known.number] = user
        return wanted


@pytest.fixture
def owned(monkeypatch):
    monkeypatch.setattr(module, "NAMESPACES_MAX", 64)
    return Owned()


def test_nobody_takes_more_than_are_left_for_others(owned):
    assert [owned.take(user, 64) for user in ("one", "another", "", "one")] == [32, 16, 8, 0]
    assert len(owned.names) == 56


def test_who_has_few_gets_more_while_there_are_any(owned):
    owned.take("greedy", 64)
    assert [owned.take(f"user {n}", 3) for n in range(13)] == [3] * 10 + [1, 1, 0]
    assert len(owned.names) == 64


def test_those_of_whom_nobody_knows_whose_they_are_count_as_one_users(owned):
    owned.names.recover({bytes([n]) * 32: (n, 0) for n in range(30)})
    assert (owned.take(None, 64), owned.take("one", 64), owned.take(None, 64)) == (2, 16, 0)


def test_of_a_former_life_all_are_there_and_there_is_a_most(owned):
    owned.names.recover({bytes([n]) * 32: (n, 0) for n in range(64)})
    assert owned.take("one", 1) == 0
