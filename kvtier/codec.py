"""How a block may be stored smaller below RAM: the names of the ways, and what each promises. Pure.

    none     as it is in RAM
    exp12    lossless: 4 bits of exponent in a window, escapes beside it; bf16 and fp16         native/codec_exp12.cpp
    expz     lossless: the exponents through zstandard, the rest as it is                       native/codec_expz.cpp
    int8     lossy: so many values in a row share a scale
    fp8      lossy: e4m3, no scale
    int4     lossy: as int8, and coarser                                                        native/codec_lossy.cpp

Lossless ones find out by themselves what the values are, and leave alone what they can't make smaller. A lossy one is an
engine's explicit wish, which is a fact of its namespace: no other namespace ever sees bytes that went through it.
"""

from typing import NamedTuple

LOSSLESS, LOSSY = ("exp12", "expz"), ("int8", "fp8", "int4")
ELEMENTS = ("bf16", "fp16")
ROWS = (16, 32, 64, 128)  # values that share a scale: of one head and token, or of one channel; what lies in a row


class Codec(NamedTuple):
    """`element` and `row` of a lossy one alone."""

    name: str
    element: str = ""
    row: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.element}:{self.row}" if self.element else self.name

    @property
    def is_lossy(self) -> bool:
        return self.name in LOSSY


RAW = Codec("none")


def read_codec(text: str) -> Codec:
    """As `str` has written it. ValueError names what is known."""
    name, *more = text.split(":")
    if name in ("none", *LOSSLESS) and not more:
        return Codec(name)
    if name in LOSSY and len(more) == 2 and more[0] in ELEMENTS and more[1] in map(str, ROWS):
        return Codec(name, more[0], int(more[1]))
    known = ", ".join(("none", *LOSSLESS, *(f"{name}:bf16:64" for name in LOSSY)))
    raise ValueError(f"unknown codec {text!r}; known are such as {known}")
