"""What a simulated engine has under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtier.block import BlockKey
from kvtier.decision import Ask
from kvtier.session import NOTHING, Hints

from .arena_model import ArenaModel, Meaning


@dataclass(eq=False)
class Request:
    keys: list[BlockKey]
    meanings: list[Meaning]
    asked: int  # the first so many are its prompt; the others are generated
    conversation: int
    hints: Hints = NOTHING
    ask: Ask = field(default_factory=Ask)
    lease: int = 0
    jobs: int = 0
    barred: bool = False  # its KV is from before a reset
    over: bool = False


@dataclass(eq=False)
class Job:
    """A copy of some blocks of a request, by every rank."""

    request: Request
    name: str
    arena: ArenaModel  # it copies in this one, even when the daemon has died and another has its own
    gpu: tuple[int, ArenaModel] | None  # and in this one, from this slot number on
    loads: bool
    slots: list[int]
    keys: list[BlockKey]
    meanings: list[Meaning]
    befores: list[BlockKey]  # of each the block before it
    ranks: int  # that are not done
    failed: bool = False
    settled: bool = False

    def memory(self, slot: int) -> tuple[ArenaModel, int]:
        """Where this slot is, and its number there."""
        if self.gpu is not None and slot >= self.gpu[0]:
            assert self.loads, "an engine saves to the device"
            return self.gpu[1], slot - self.gpu[0]
        return self.arena, slot
