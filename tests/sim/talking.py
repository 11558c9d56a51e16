"""What simulated clients talk about: conversations that go on, fork, share system prompts, and what is said of them.

A block of text is a number, and stands for itself and all before it; so a conversation is a path in a tree:

    0 1 | 7 8 9        0 1: a system prompt
        | 7 8 12       goes on with other words
        | 20           another conversation
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from random import Random

from kvtier.session import NOTHING, Hints

BLOCKS_MAX = 6
CONVERSATIONS_MAX = 4  # that somebody talks to
TENANTS = (b"", b"", b"tenant-a........", b"tenant-b........")
TOOLS = ("", "", "search", "run")


@dataclass(eq=False)
class Conversation:
    texts: list[int]
    name: str = ""
    tenant: bytes = b""
    no_disk: bool = False
    no_remote: bool = False


@dataclass
class Turn:
    texts: list[int]
    asked: int  # the first so many are the prompt; the others are generated
    hints: Hints


@dataclass
class Talk:
    """Of all engines of one namespace."""

    chance: Random
    conversations: list[Conversation] = field(default_factory=list)
    _texts: itertools.count = field(default_factory=itertools.count)
    _names: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self._systems = [self._new(1), self._new(2)]

    def turn(self) -> Turn:
        luck, known = self.chance.random(), self.conversations
        if luck < 0.15 or not known:
            mine = self._begin(self.chance.choice((*self._systems, [])))
        elif luck < 0.25:
            other = self.chance.choice(known)
            mine = self._begin(other.texts[: self.chance.randint(1, len(other.texts))])
        else:
            mine = self._recent()
        if luck < 0.9 and len(mine.texts) > 1 and self.chance.random() < 0.2:
            mine.texts = mine.texts[:-1]  # its client tells the answer with other words
        mine.texts = mine.texts + self._new(self.chance.choice((0, 0, 1, 1, 2)))
        if len(mine.texts) < 2:
            mine.texts += self._new(1)
        if len(mine.texts) > BLOCKS_MAX:
            known.remove(mine)
        asked = len(mine.texts)
        mine.texts = mine.texts + self._new(self.chance.choice((0, 0, 1)))
        return Turn(list(mine.texts), asked, self._hints(mine))

    def _begin(self, texts: list[int]) -> Conversation:
        name = f"talk {next(self._names)}" if self.chance.random() < 0.5 else ""
        tenant, luck = self.chance.choice(TENANTS), self.chance.random()
        mine = Conversation(texts, name, tenant, luck < 0.1, 0.1 <= luck < 0.2)
        self.conversations.append(mine)
        del self.conversations[:-CONVERSATIONS_MAX]
        return mine

    def _recent(self) -> Conversation:
        """Some are talked to more."""
        return self.conversations[max(self.chance.randrange(len(self.conversations)) for _ in range(2))]

    def _new(self, texts: int) -> list[int]:
        return [next(self._texts) for _ in range(texts)]

    def _hints(self, mine: Conversation) -> Hints:
        """Nothing of it need be true."""
        happens = self.chance.random
        if happens() < 0.3:
            return NOTHING
        name = f"talk {self.chance.randrange(4)}" if happens() < 0.03 else mine.name
        tool = self.chance.choice(TOOLS)
        return Hints(
            session=name,
            tenant=mine.tenant,
            tool=tool,
            end=happens() < 0.07,
            expect_return_s=self.chance.choice((0.1, 0.5, 1.0, 5.0, 60.0)) if happens() < (0.7 if tool else 0.15) else 0.0,
            ttl_s=self.chance.choice((0.3, 1.0, 3.0)) if happens() < 0.06 else 0.0,
            pin=happens() < 0.08,
            no_disk=mine.no_disk,
            no_remote=mine.no_remote,
            no_store=happens() < 0.03,
        )
