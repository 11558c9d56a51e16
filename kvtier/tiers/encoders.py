"""The native codec of each Codec, made once. It is shared by all threads, and holds nothing of the blocks it makes."""

from functools import cache

from kvtier import _native
from kvtier.codec import RAW, Codec


def encoder_of(codec: Codec) -> _native.Codec | None:
    """None: of blocks as they are; and where this machine lacks what it needs."""
    return _made(codec)[0]


def why_not(codec: Codec) -> str:
    """What this machine lacks; empty: nothing."""
    return _made(codec)[1]


@cache
def _made(codec: Codec) -> tuple[_native.Codec | None, str]:
    if codec == RAW:
        return None, ""
    try:
        return _native.Codec(codec.name, codec.element, codec.row), ""
    except RuntimeError as error:
        return None, str(error)
