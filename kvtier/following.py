"""What becomes of sessions, as returns.py learns it: whether a session comes back, and whether another one uses its trunk.
Pure.

Followed is a session by its number, and its trunk by a number beyond those of all sessions.
"""

from kvtier.categories import TRUNK, Categories
from kvtier.expecting import Expecting
from kvtier.returns import Returns
from kvtier.session import SESSIONS_MAX, Session


class Following:
    def __init__(self, returns: Returns, categories: Categories, expecting: Expecting) -> None:
        self._returns, self._categories, self._expecting = returns, categories, expecting

    def came(self, session: Session, now: float) -> None:
        """It is back."""
        self._returns.came(session.number, now)
        self._returns.came(_trunk_row(session), now)
        self._expecting.came(session, now)

    def went(self, session: Session, at: float) -> None:
        """It may come back from now on, as its category has it."""
        self._returns.went(session.number, session.category, at)

    def used(self, parted: Session, now: float) -> None:
        """Another one uses something of what this one added last."""
        self._returns.came(parted.number, now)

    def parted(self, session: Session, parted: Session, last: Session | None, now: float) -> None:
        """It uses the trunk of `parted`; `last`: who did so before it."""
        self._returns.came(_trunk_row(parted), now)
        if last is not None:
            self._returns.came(_trunk_row(last), now)
        self._returns.went(_trunk_row(session), self._categories.of_part(TRUNK, session), now)

    def ended(self, session: Session) -> None:
        """What becomes of it says nothing of others."""
        self._expecting.drop(session)
        self._returns.ended(session.number)
        self._returns.ended(_trunk_row(session))

    def lost(self, session: Session, now: float) -> None:
        """It was forgotten to make room."""
        self._returns.lost(session.number, now)
        self._returns.lost(_trunk_row(session), now)
        self._expecting.drop(session)


def _trunk_row(session: Session) -> int:
    return SESSIONS_MAX + session.number
