"""Lookups that wait for the answer to a question, before anything is decided or leased for them. Pure.

aside --all its questions were answered, or its time is over--> looked up again, and this time with what is known
  '-----released, its engine left-----------------------------> forgotten
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvtier.lookup import Lookup
from kvtier.staging import Asker


@dataclass
class Aside:
    lookup: Lookup
    until: float
    questions: set[int]
    unknown: int  # blocks that these are about

    def again(self, now: float) -> Lookup:
        """What was ahead of its request is partly done by now."""
        ask = self.lookup.ask
        return replace(self.lookup, ask=replace(ask, backlog_s=max(0.0, ask.backlog_s - (now - self.lookup.at))))


class Seeking:
    def __init__(self) -> None:
        self._aside: dict[Asker, Aside] = {}  # the longest first

    def __contains__(self, asker: Asker) -> bool:
        return asker in self._aside

    def __getitem__(self, asker: Asker) -> Aside:
        return self._aside[asker]

    def __bool__(self) -> bool:
        return bool(self._aside)

    def askers(self, engine: str = "") -> list[Asker]:
        return [asker for asker in self._aside if not engine or asker[0] == engine]

    def put(self, aside: Aside) -> None:
        self._aside[aside.lookup.asker] = aside

    def take(self, asker: Asker) -> Aside | None:
        """It waits no more."""
        return self._aside.pop(asker, None)

    def answered(self, questions: Iterable[int]) -> list[Asker]:
        """These are over. Who waits for none any more."""
        over = set(questions)
        for aside in self._aside.values():
            aside.questions -= over
        return [asker for asker, aside in self._aside.items() if not aside.questions]

    def late(self, now: float) -> list[Asker]:
        """Who has waited long enough."""
        return [asker for asker, aside in self._aside.items() if aside.until <= now]
