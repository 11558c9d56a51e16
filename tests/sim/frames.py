"""Blocks as a codec makes them, in a simulated world: what a frame holds, and what is right for an engine to read."""

from __future__ import annotations

from typing import NamedTuple

from kvtier.codec import RAW, Codec


class Frame(NamedTuple):
    content: list  # by unit, as decoding it gives it
    codec: Codec
    stored: int  # bytes of it that count


class Saved(list):
    """What each unit of a block holds: as it was saved; or, all of it, as the codec that its engines wish made it."""

    wish: Codec = RAW

    def __eq__(self, held: object) -> bool:
        return list.__eq__(self, held) or (self.wish.is_lossy and list.__eq__(decoded(self, self.wish), held))

    def __ne__(self, held: object) -> bool:
        return not self == held

    __hash__ = None  # type: ignore[assignment]


def saved(content: list, wish: Codec) -> Saved:
    block = Saved(content)
    block.wish = wish
    return block


def decoded(content: list, codec: Codec) -> list:
    """What is left of a content when it went through this codec. Through the same one again nothing more is lost."""
    if not codec.is_lossy:
        return list(content)
    return [unit if unit is None or len(unit) > 2 else (*unit, str(codec)) for unit in content]


def content_in(lying: object) -> object:
    """What would be read of what lies somewhere: a frame, a block as it was, or something that is neither."""
    return lying.content if isinstance(lying, Frame) else lying
