"""The extents that are being filled, and which of them the next block goes into. Pure.

Blocks as they are fill one extent a drive, in turn. Frames could do with a place of any size, and if each size had extents
of its own, they would all be begun and none filled: so many are thrown away for the next. So frames share:

    1. places that have a little more room than was asked for, SPARE_SHARE
    2. else places of a size of their own, as long as there are few such sizes: KIND_EXTENTS extents a drive for each
    3. else places that have more room, the smallest of them
    4. else, where there is no such size, they get it: what comes after them has more room there; up to TOP_FACTOR as many
    5. else they can't be frames

For a size of places an extent is begun on one drive, and on another one only when those before are used, and while one
extent in KIND_EXTENTS at most is one that is being filled with frames.
"""

from collections import deque

SPARE_SHARE = 0.02  # of a place
KIND_EXTENTS = 8  # a drive: for each size of places that frames lie in
TOP_FACTOR = 2  # times as many sizes

Kind = tuple[int, int]  # bytes of a block, and of a place


class OpenExtents(dict[Kind, deque[int]]):
    """Numbers of extents, the next to be taken from first. What is full is not here."""

    def __init__(self, extents: int, drives: int) -> None:
        super().__init__()
        self._kinds_max = max(1, extents // (drives * KIND_EXTENTS))
        self._frames_max = extents // KIND_EXTENTS
        self._drives = drives

    def place_bytes(self, size: int, stored: int) -> int:
        """Of the place that a frame of at most `stored` bytes goes to, of a block of `size` bytes."""
        if not 0 < stored < size:
            return size
        roomy = [place for of, place in self if of == size and place >= stored]
        best = min(roomy, default=size)
        if best < size and best <= stored * (1 + SPARE_SHARE):
            return best
        kinds = sum(place < of for of, place in self)
        return stored if kinds < self._kinds_max * (1 if best < size else TOP_FACTOR) else best

    def needs_another(self, kind: Kind, whole: int, taken: list[int]) -> bool:
        """Whether one more is to be begun. `whole`: places of an extent; `taken`: of each that is open."""
        size, stored = kind
        if len(taken) >= self._drives:
            return False
        if stored == size or not taken:
            return True
        frames = sum(len(numbers) for (of, place), numbers in self.items() if place < of)
        return frames < self._frames_max and all(places * self._drives >= whole for places in taken)

    def put(self, kind: Kind, number: int, is_next: bool = False) -> None:
        numbers = self.setdefault(kind, deque())
        if is_next:
            numbers.appendleft(number)
        else:
            numbers.append(number)

    def next(self, kind: Kind) -> int | None:
        """It is taken out."""
        if kind not in self:
            return None
        number = self[kind][0]
        self.remove(kind, number)
        return number

    def remove(self, kind: Kind, number: int) -> None:
        numbers = self.get(kind, ())
        if isinstance(numbers, deque) and number in numbers:
            numbers.remove(number)
            if not numbers:
                del self[kind]
