"""What becomes of sessions, as it is learnt. With all that sessions do: test_retention_returns.py."""

import pytest

from kvtier.categories import Categories
from kvtier.expecting import Expecting
from kvtier.following import Following
from kvtier.returns import Returns
from kvtier.session import SESSIONS_MAX, Session


class Seen:
    """A Returns that says what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def __getattr__(self, verb: str):
        return lambda row, *more: self.told.append((verb, row, *more))

    def category(self, name: str, prior=None) -> int:
        return {"trunk": 5}[name]


def session(number: int) -> Session:
    return Session(number + 100, number, 0, 4096, 16, True, category=3)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def following(seen) -> Following:
    returns: Returns = seen
    return Following(returns, Categories(returns), Expecting())


def trunk(number: int) -> int:
    return SESSIONS_MAX + number


def test_who_is_back_has_used_its_trunk_too(seen, following):
    following.came(session(1), 8.0)
    assert seen.told == [("came", 1, 8.0), ("came", trunk(1), 8.0)]


def test_who_went_comes_back_as_its_category_does(seen, following):
    following.went(session(1), 8.0)
    assert seen.told == [("went", 1, 3, 8.0)]


def test_who_parts_uses_the_trunk_of_the_other_and_of_who_parted_before_it(seen, following):
    following.parted(session(1), session(2), session(3), 8.0)
    assert seen.told == [("came", trunk(2), 8.0), ("came", trunk(3), 8.0), ("went", trunk(1), 5, 8.0)]


def test_who_parts_first_has_nobody_before_it(seen, following):
    following.parted(session(1), session(2), None, 8.0)
    assert seen.told == [("came", trunk(2), 8.0), ("went", trunk(1), 5, 8.0)]


def test_what_ended_or_was_lost_is_followed_no_more(seen, following):
    following.ended(session(1))
    following.lost(session(2), 8.0)
    assert seen.told == [("ended", 1), ("ended", trunk(1)), ("lost", 2, 8.0), ("lost", trunk(2), 8.0)]
