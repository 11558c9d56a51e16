"""What the test knows and the killed daemon can't know: which blocks were saved, which must be there, which must not.

    saved --a flush that was asked later says "durable"--> safe: must be found after every restart
      '----its namespace is reset----> reset: must never be found once that survives a crash

The bytes of a block are made from its key, so whatever a daemon offers can be compared without keeping it.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from arena_bytes import content_of


@dataclass
class Model:
    """One namespace of the test: what its engines say in Hello, and what became of its keys."""

    name: str
    size: int  # bytes of a block
    made_of: Callable[[bytes, int], bytes] = content_of  # its blocks; values_of: such that a codec makes them smaller
    secret: bytes = b""  # what keys are made with now
    made: int = 0  # keys, ever
    saved: set[bytes] = field(default_factory=set)  # in this life of the daemon, or safe; not reset
    safe: set[bytes] = field(default_factory=set)  # of these
    doubtful: set[bytes] = field(default_factory=set)  # saved in a former life and never safe
    reset: set[bytes] = field(default_factory=set)  # for good: the reset survives a crash
    resetting: set[bytes] = field(default_factory=set)  # reset, but a crash may undo it
    is_secret_safe: bool = False  # a flush has made it survive

    def content(self, key: bytes) -> bytes:
        return cached_content(self.made_of, key, self.size)

    def reset_all(self) -> None:
        self.resetting |= self.saved | self.doubtful
        self.saved, self.safe, self.doubtful, self.is_secret_safe = set(), set(), set(), False

    def restarted(self) -> None:
        self.doubtful |= self.saved - self.safe
        self.saved = set(self.safe)
        self.resetting = set()


@functools.lru_cache(maxsize=2048)
def cached_content(made_of: Callable[[bytes, int], bytes], key: bytes, size: int) -> bytes:
    return made_of(key, size)


@dataclass
class Promise:
    """What a flush makes durable when it says so."""

    saved: dict[str, set[bytes]]
    resetting: dict[str, set[bytes]]
    secrets: dict[str, bytes]


class Oracle:
    """`keeps_all`: the daemon has room for whatever is saved, so nothing safe may be missing. `bytes_max`: so much is
    kept at a time."""

    def __init__(self, models: Iterable[Model], keeps_all: bool, bytes_max: int) -> None:
        self.models = {model.name: model for model in models}
        self.keeps_all, self.bytes_max = keeps_all, bytes_max
        self.served = self.acknowledged = 0
        self.wrong: list[str] = []  # blocks with other bytes than their key says, or of before a reset
        self.lost: list[str] = []

    @property
    def is_full(self) -> bool:
        return sum(len(model.saved | model.doubtful) * model.size for model in self.models.values()) >= self.bytes_max

    def promise(self, here: dict[str, set[bytes]]) -> Promise:
        """`here`: what the daemon has of each model; what is saved to a slab that is being closed, it hasn't."""
        models = self.models.items()
        return Promise(
            here,
            {name: set(model.resetting) for name, model in models},
            {name: model.secret for name, model in models},
        )

    def acknowledge(self, promise: Promise, blocks: bool) -> None:
        """The flush said that it is durable. `blocks`: none was refused or had left RAM too soon."""
        for name, model in self.models.items():
            model.reset |= promise.resetting[name]
            model.resetting -= promise.resetting[name]
            if model.secret == promise.secrets[name]:
                model.is_secret_safe = True
                if blocks:
                    before = len(model.safe)
                    model.safe |= promise.saved[name] & model.saved
                    self.acknowledged += len(model.safe) - before

    def restarted(self) -> None:
        """Another daemon on the same folder."""
        for model in self.models.values():
            model.restarted()

    def judge(self, model: Model, key: bytes, content: bytes) -> None:
        """The daemon offers these bytes as this block's."""
        self.served += 1
        if key in model.reset or key in model.resetting:
            self.wrong.append(f"{key.hex()} of {model.name} is served after a reset")
        elif content != model.content(key):
            self.wrong.append(f"{key.hex()} of {model.name} has other bytes")

    def missed(self, model: Model, key: bytes) -> None:
        """The daemon was asked after a restart and doesn't have it."""
        if key in model.safe and self.keeps_all:
            self.lost.append(f"{key.hex()} of {model.name}")
            model.safe.discard(key)
