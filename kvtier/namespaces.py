"""Which namespaces there are here: their numbers, and how often an engine reset them. Pure."""

from collections.abc import Mapping
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

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[int, int] = {}  # by number, for those who know no digests

    def recover(self, remembered: Mapping[bytes, tuple[int, int]]) -> None:
        """digest -> (number, epoch), before any other."""
        for digest, (number, epoch) in remembered.items():
            self[digest] = Namespace(number, epoch)
            self.epochs[number] = epoch

    def add(self, digest: bytes) -> Namespace:
        """One that isn't here yet."""
        if len(self) >= NAMESPACES_MAX:
            raise ProtocolError("too_many", f"more than {NAMESPACES_MAX} namespaces; restart kvtierd")
        number = 1 + max((other.number for other in self.values()), default=-1)
        self[digest], self.epochs[number] = Namespace(number), 0
        return self[digest]

    def reset(self, digest: bytes) -> Namespace:
        """Its keys are others from now on."""
        known = self[digest]
        known.epoch += 1
        self.epochs[known.number] = known.epoch
        return known
