"""Which namespaces there are here: their numbers, and how often an engine reset them. Pure.

Who names one makes one, and there may be so many. So that nobody takes them all, nobody gets more than there are left then
for others. Those of which nobody knows whose they are, of a former life or brought by visitors, are counted as one user's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvtier.codec import Codec
from kvtier.errors import ProtocolError

NAMESPACES_MAX = 4096


@dataclass
class Namespace:
    number: int
    epoch: int = 0
    # The lossy codec that its engines let its blocks go through below RAM; RAW: none. None: no engine has said Hello here
    # yet. Until then they are written without loss, which a wish never forbids: it allows to lose, and asks for nothing.
    wish: Codec | None = None


class Namespaces(dict[bytes, Namespace]):
    """By their digests."""

    def __init__(self, whose: Callable[[int], str | None] = lambda number: None) -> None:
        """`whose`: the user of a namespace, by its number; None: nobody knows."""
        super().__init__()
        self._whose = whose
        self.epochs: dict[int, int] = {}  # by number, for those who know no digests

    def recover(self, remembered: Mapping[bytes, tuple[int, int]]) -> None:
        """digest -> (number, epoch), before any other."""
        for digest, (number, epoch) in remembered.items():
            self[digest] = Namespace(number, epoch)
            self.epochs[number] = epoch

    def add(self, digest: bytes, user: str | None = None) -> Namespace:
        """One that isn't here yet. ProtocolError: this user has as many as there are left."""
        mine, left = sum(self._whose(one.number) == user for one in self.values()), NAMESPACES_MAX - len(self)
        if mine >= left:
            whose = "of unknown users" if user is None else "of this user"
            raise ProtocolError("too_many", f"{mine} namespaces {whose}, and room for {left} more of all; restart kvtierd")
        number = 1 + max((other.number for other in self.values()), default=-1)
        self[digest], self.epochs[number] = Namespace(number), 0
        return self[digest]

    def reset(self, digest: bytes) -> Namespace:
        """Its keys are others from now on."""
        known = self[digest]
        known.epoch += 1
        self.epochs[known.number] = known.epoch
        return known
