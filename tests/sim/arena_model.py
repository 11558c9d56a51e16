"""The simulated arena: whose bytes lie where, and who reads or writes them just now.

It counts in units of 64 KiB (`SLOT_UNIT`), not in slots, because the same unit belongs to slots of several sizes in the
course of a run. What a whole block looks like in it:

    slot 40, 4 units, saved by 2 ranks     unit     40       41       42       43
                                           holds  (M, 0)   (M, 1)   (M, 2)   (M, 3)     M: what the key means
                                           rank      0        1        0        1
"""

from collections.abc import Hashable

from kvtier.codec import Codec

from .frames import Saved, saved

Meaning = Hashable  # what bytes stand for: namespace, version of the weights, which block of which conversation


class ArenaModel:
    def __init__(self, units: int) -> None:
        self._holds: list[tuple | None] = [None] * units  # None: nothing, or half written
        self._writer: list[str] = [""] * units
        self._readers = [0] * units
        self._writes = [0] * units  # that ever began, so that a reader notices one
        self.changes = 0

    def begin_write(self, who: str, units: list[int]) -> None:
        self.changes += 1
        for unit in units:
            assert not self._writer[unit], f"{who} and {self._writer[unit]} write unit {unit} at once"
            assert not self._readers[unit], f"{who} writes unit {unit} while it is read"
            self._writer[unit] = who
            self._writes[unit] += 1
            self._holds[unit] = None

    def end_write(self, who: str, units: list[int], slot: int, meaning: Meaning, whole: bool) -> None:
        """`whole` is False for a copy that failed: what it leaves is nobody's content."""
        self.changes += 1
        for unit in units:
            assert self._writer[unit] == who
            self._writer[unit] = ""
            if whole:
                self._holds[unit] = (meaning, unit - slot)

    def end_fill(self, who: str, slot: int, content: list | None) -> None:
        """A write of whole units is over; None: it failed and left nobody's content."""
        self.changes += 1
        for unit in [unit for unit, writer in enumerate(self._writer) if writer == who]:
            self._writer[unit] = ""
            self._holds[unit] = content[unit - slot] if content else None

    def wipe(self, units: list[int]) -> None:
        """Zeros from now on, by the daemon itself."""
        self.changes += 1
        for unit in units:
            assert not self._writer[unit] and not self._readers[unit], f"unit {unit} is wiped while it is used"
            self._writes[unit] += 1
            self._holds[unit] = None

    def content(self, units: list[int]) -> list:
        return [self._holds[unit] for unit in units]

    def begin_read(self, units: list[int]) -> list[int]:
        """Returns what `end_read` wants to see again."""
        for unit in units:
            self._readers[unit] += 1
        return [self._writes[unit] for unit in units]

    def end_read(self, units: list[int], writes: list[int]) -> None:
        for unit, before in zip(units, writes, strict=True):
            self._readers[unit] -= 1
            assert self._writes[unit] == before, f"unit {unit} was written while it was read"

    def is_right(self, units: list[int], slot: int, meaning: Meaning) -> bool:
        """Whether these units of this slot hold their part of the block, completely written, perhaps by a lossy codec."""
        return all((self._holds[unit] or ())[:2] == (meaning, unit - slot) for unit in units)

    def holds_whole(self, slot: int, content: list[tuple[Meaning, int]]) -> bool:
        """Whether the whole block lies in this slot; `content` is what `content_of` says."""
        return self._holds[slot : slot + len(content)] == content


def content_of(meaning: Meaning, units: int, wish: Codec) -> Saved:
    """What each unit of a block holds. `wish`: of the engines that save it."""
    return saved([(meaning, position) for position in range(units)], wish)


def part_of(slot: int, units: int, rank: int, ranks: int) -> list[int]:
    """The units of a slot that one rank reads and writes."""
    return list(range(slot + rank, slot + units, ranks))
