"""Runs of rows in columns, for whoever needs some of them for a while. Pure."""

from bisect import bisect_left, insort


class Rows:
    def __init__(self) -> None:
        self.end = 0  # of all that were ever handed out
        self.spare: list[tuple[int, int]] = []  # length and first row of each run that nobody has, the shortest first

    def take(self, n: int) -> tuple[int, int]:
        """The first row and the length of a run: the shortest that is long enough, else a new one."""
        at = bisect_left(self.spare, (n, 0))
        if at < len(self.spare):
            length, first = self.spare.pop(at)
            return first, length
        first, self.end = self.end, self.end + n
        return first, n

    def give_back(self, first: int, length: int) -> None:
        insort(self.spare, (length, first))
