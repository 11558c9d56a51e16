"""What is known of the blocks that lie where asking takes a round trip: which are there, which aren't. Pure.

Nothing is ever asked while an engine's scheduler waits. A lookup looks here, and takes what is known; what isn't known
becomes a question, a Seek, whose answer is there for the next look: the same request's, if it waits for other things
anyway or the answer is worth waiting for, else the next one's with this beginning.

    look --all is known--------------> how many there are, no question
      '---something isn't-> question --> asked --learn--> known: there, or not there
                                          |---fail------> not known; asked again by whoever looks next
                                          '---somebody else looks meanwhile: the same question, nobody asks it twice

In a chain a block is of use only together with all before it. So a look ends at the first that isn't there: nothing
behind it is asked, and of an answer nothing behind it is remembered. A prompt that nobody has stored leaves one entry.

Both memories are bounded, and what was looked at last stays. That blocks are there is believed for THERE_S, for whoever
has the remote may delete what it likes: a wrong yes costs one read that finds nothing. That one is not there is believed
for MISSING_S, for another node may be saving it now: a wrong no costs computing it once more. What this node wrote or
read is there; what a read didn't find isn't.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvtier.block import BlockKey

THERE_MAX, MISSING_MAX = 262_144, 65_536  # keys; some 75 MB and 20 MB
ASKED_MAX = 16_384  # keys in questions under way; while there are more, nothing more is asked
THERE_S, MISSING_S = 600.0, 15.0
QUESTION_MAX = 1024  # keys; transfer.SEEK_KEYS_MAX


class Look(NamedTuple):
    """Bytes that lie there of blocks, 0 where one isn't there or isn't known to be; in a chain, of the leading ones that
    are there. What is to be asked, and whether an answer that is on its way may change the sizes."""

    sizes: list[int]
    question: list[BlockKey]
    is_awaited: bool


class Known:
    def __init__(
        self,
        there_max: int = THERE_MAX,
        missing_max: int = MISSING_MAX,
        there_s: float = THERE_S,
        missing_s: float = MISSING_S,
    ) -> None:
        """Numbers of keys, and how long in seconds one is believed to be there, or not."""
        # The first of a plain dict is found slower the more were taken from there before: 0.1 ms a key in a full one.
        self._there: OrderedDict[BlockKey, tuple[int, float]] = OrderedDict()  # bytes, until when; seen longest ago: first
        self._missing: OrderedDict[BlockKey, float] = OrderedDict()  # until when; the oldest first
        self._asked: dict[BlockKey, int] = {}  # by the question it stands in
        self._there_max, self._missing_max = there_max, missing_max
        self._there_s, self._missing_s = there_s, missing_s

    def look(self, keys: Sequence[BlockKey], is_chain: bool, now: float) -> Look:
        """`keys` in prefix order. The question is asked by `ask`, or dropped; then the next look has it again."""
        sizes: list[int] = []
        question: dict[BlockKey, None] = {}
        is_awaited = False
        room = min(QUESTION_MAX, ASKED_MAX - len(self._asked))
        for at, key in enumerate(keys):
            size = self._size(key, now)
            if size is None:
                is_asked = key in self._asked
                is_awaited |= is_asked
                if not is_asked and len(question) < room:
                    question[key] = None
                elif is_chain and not is_asked:
                    break  # the question is full; what comes behind waits for its answer
            elif is_chain and not size:
                break
            if not is_chain:
                sizes.append(size or 0)
            elif size and len(sizes) == at:
                sizes.append(size)
        return Look(sizes, list(question), is_awaited)

    def _size(self, key: BlockKey, now: float) -> int | None:
        """0: it isn't there. None: nobody knows."""
        found = self._there.get(key)
        if found is not None and now < found[1]:
            self._there.move_to_end(key)
            return found[0]
        until = self._missing.get(key)
        if until is None or now >= until:
            return None
        return 0

    # --- questions -------------------------------------------------------------------------------------------------

    def ask(self, number: int, question: Iterable[BlockKey]) -> None:
        """It is on its way under this number. Nobody else asks for these."""
        self._asked.update(dict.fromkeys(question, number))

    def questions_of(self, keys: Iterable[BlockKey]) -> set[int]:
        """The numbers of those that are on their way with one of these."""
        return {self._asked[key] for key in keys if key in self._asked}

    def learn(self, number: int, keys: Sequence[BlockKey], sizes: Sequence[int], is_chain: bool, now: float) -> None:
        """What came of a question: its bytes a key, 0 for what isn't there. What was learnt since it was asked is newer."""
        for key, size in zip(keys, sizes, strict=True):
            if self._asked.get(key) != number:
                continue
            if size:
                self.there(key, size, now)
            else:
                self.missing(key, now)
                if is_chain:
                    break
        self.fail(number, keys)

    def fail(self, number: int, keys: Iterable[BlockKey]) -> None:
        """There is no answer."""
        for key in keys:
            if self._asked.get(key) == number:
                del self._asked[key]

    # --- what is learnt by doing -----------------------------------------------------------------------------------

    def there(self, key: BlockKey, size: int, now: float) -> None:
        """It was written, or read, or found."""
        self._unlearn(key)
        self._there[key] = size, now + self._there_s
        if len(self._there) > self._there_max:
            self._there.popitem(last=False)

    def missing(self, key: BlockKey, now: float) -> None:
        """It was deleted, or not found."""
        self._unlearn(key)
        self._missing[key] = now + self._missing_s
        if len(self._missing) > self._missing_max:
            self._missing.popitem(last=False)

    def _unlearn(self, key: BlockKey) -> None:
        for memory in (self._there, self._missing, self._asked):
            memory.pop(key, None)

    def is_there(self, key: BlockKey, now: float) -> bool:
        """As far as is known: so that what is there is not written again."""
        return bool(self._size(key, now))

    def which(self, keys: Iterable[BlockKey], now: float) -> list[bool]:
        """Which of these are there, as far as is known. A look of people: it keeps nothing in memory for longer."""
        there = self._there
        return [(found := there.get(key)) is not None and now < found[1] for key in keys]

    def forget_all(self) -> None:
        """The remote was away, and may have lost everything."""
        self._there.clear()
        self._missing.clear()
        self._asked.clear()

    def snapshot(self) -> dict[str, object]:
        """Counts, as JSON values."""
        return {"known_there": len(self._there), "known_missing": len(self._missing), "asked": len(self._asked)}
