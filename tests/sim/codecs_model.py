"""What codecs make of the blocks of a simulated world. Chance of its own: a world without codecs stays what it is.

How large a frame becomes is a matter of the block and the codec, and stays so. But from some moment on blocks may be such
that the codec makes little of them, or a codec may become slow; what nodes are set to differs, and from life to life.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kvtier.block import SLOT_UNIT, BlockKey
from kvtier.codec import LOSSLESS, RAW, Codec
from kvtier.coding import AUTO

RATIOS = {"exp12": (1.2, 1.5), "expz": (1.3, 1.7), "int8": (1.6, 2.0), "fp8": (1.8, 2.1), "int4": (2.5, 4.0)}
POOR = (0.9, 1.06)
WISHES = (Codec("int8", "bf16", 64), Codec("fp8", "fp16", 32), Codec("int4", "bf16", 128))
WANTED = (AUTO, AUTO, AUTO, "exp12", "expz", RAW.name)
FAST, SLOW = 4e9, 2e4  # bytes of blocks a second
FRAME_BYTES_MIN = 128  # table and trailer


class CodecsModel:
    def __init__(self, seed: int, clock: Callable[[], float]) -> None:
        self.random = Random(f"codecs {seed}")
        self._clock = clock
        choice, between = self.random.choice, self.random.uniform
        self._spread = choice((0.0, 0.03, 0.15, 0.5))  # of the frames of one codec
        self._ratios = {name: between(*RATIOS[name]) for name in RATIOS}
        self._falls_at = {name: choice((1e9, between(1, 6), between(1, 6))) for name in RATIOS}
        self._poor = {name: between(*POOR) for name in RATIOS}
        self._slows_at = {name: choice((1e9, 1e9, 0.0, between(1, 6))) for name in RATIOS}
        self._fails = choice((0.0, 0.0, 0.1, 1.0))  # of the blocks hold what a lossy codec can't say
        self._frames: dict[tuple[BlockKey, Codec], int] = {}

    def wish(self) -> Codec:
        """Of the engines of one namespace."""
        return self.random.choice((RAW, RAW, *WISHES))

    def settings(self) -> dict[str, object]:
        """Of one tier in one life of a daemon, as Coding takes them."""
        return {
            "wanted": self.random.choice(WANTED),
            "threads": self.random.choice((1, 2, 4)),
            "without": self.random.choice(({}, {}, {"expz": "libzstd is not here"})),
        }

    def frame_bytes(self, key: BlockKey, codec: Codec, content: list) -> int:
        """Bytes of the frame, which may be more than the block has. 0: it can't be made."""
        if (key, codec) not in self._frames:
            self._frames[key, codec] = self._make(codec, len(content) * SLOT_UNIT)
        return self._frames[key, codec]

    def seconds(self, codec: Codec, size: int) -> float:
        """That it takes to make a frame of a block now, or a block of a frame."""
        return size / (SLOW if self._clock() >= self._slows_at[codec.name] else FAST) * self.random.uniform(0.8, 1.2)

    def _make(self, codec: Codec, size: int) -> int:
        if codec.is_lossy and self.random.random() < self._fails:
            return 0
        ratio = (self._poor if self._clock() >= self._falls_at[codec.name] else self._ratios)[codec.name]
        ratio *= 1 - self.random.random() * (0.0 if codec.is_lossy else self._spread)
        return max(FRAME_BYTES_MIN, int(size / ratio))


def may_be_written(codec: Codec, wish: Codec) -> bool:
    """By the wish of a namespace's engines, RAW where they have none."""
    return codec == RAW or (codec == wish if wish != RAW else codec.name in LOSSLESS)
