"""What is not here any more, and who took its room: so that a miss can be explained. Pure.

Of the newest keys that went, at least GHOSTS_MAX / 2 are remembered and at most GHOSTS_MAX (some 7 MB): two
generations, of which the older is forgotten whole, for a dict that loses its first entry again and again gets slow.
"""

from kvtier.block import BlockKey

GHOSTS_MAX = 65_536  # keys
CAUSES_MAX = 1024  # texts; an engine's name is part of one


class Ghosts:
    def __init__(self) -> None:
        self._young: dict[BlockKey, int] = {}
        self._old: dict[BlockKey, int] = {}
        self._causes: list[str] = []
        self._number_of: dict[str, int] = {}

    def add(self, key: BlockKey, cause: str) -> None:
        """It went, and this is why."""
        if len(self._young) >= GHOSTS_MAX // 2:
            self._old, self._young = self._young, {}
        self._young[key] = self._number(cause)

    def cause(self, key: BlockKey) -> str | None:
        """Why it went; None when nobody knows of it."""
        number = self._young.get(key, self._old.get(key))
        return None if number is None else self._causes[number]

    def _number(self, cause: str) -> int:
        number = self._number_of.get(cause)
        if number is None:
            if len(self._causes) == CAUSES_MAX:  # engines have come and gone for weeks
                self._causes, self._number_of, self._young, self._old = [], {}, {}, {}
            number = self._number_of[cause] = len(self._causes)
            self._causes.append(cause)
        return number
