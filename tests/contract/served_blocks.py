"""The contract over a server that keeps blocks and no other values: another kvtierd. It goes by what a value's header says,
keeps what it has under a key, and believes its RAM; so it is emptied after each test, and nothing is damaged there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from contract.factories import PlacedTier
from contract.served import PATIENCE_S, UNHURRIED, Served, ServedFactory

from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.base import NAMES_MAX, Remote
from kvtier.tiers.remote.breaker import Breaker


class Noting:
    """Knows what was written."""

    def __init__(self, remote: Remote, written: set[str]) -> None:
        self._remote, self._written = remote, written
        self.lengths, self.get, self.delete, self.close = remote.lengths, remote.get, remote.delete, remote.close

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        self._written.add(name)
        await self._remote.put(name, header, body)


class ServedBlocks(ServedFactory):
    only_epoch_0 = True  # what a key means after a reset no other node knows
    keeps_frames = False  # there a block is as in this one's RAM

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._behind = served.remote  # type: ignore[assignment]
        self._written: set[str] = set()

    def make(self, folder: Path) -> PlacedTier:
        remote = Noting(open_remote(self._served.kind.url, self._served.kind.settings), self._written)
        tier = PlacedTier(remote, np.frombuffer(self._arena, np.uint8), deadlines=UNHURRIED, breaker=Breaker(3, PATIENCE_S))
        tier.names = {}
        return tier

    def tidy(self) -> None:
        names: Sequence[str] = sorted(self._written)
        for at in range(0, len(names), NAMES_MAX):
            self._served.run(self._served.remote.delete(names[at : at + NAMES_MAX]))

    def flip_bit(self, tier: PlacedTier, place: int, offset: int) -> None:
        pytest.skip("a kvtierd believes its RAM")
