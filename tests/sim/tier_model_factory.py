"""The simulated tier under the suite that holds every tier to the contract (tests/contract)."""

import mmap
import os
import random
from pathlib import Path

from kvtier.block import SLOT_UNIT
from kvtier.transfer import Finished, Transfer

from .tier_model import NO_LUCK, Disks, TierModel

ARENA_BYTES = 64 * 1024**2
EXTENTS, EXTENT_UNITS, DRIVES = 16, 32, 2


class Bytes:
    """An arena of real bytes, as TierModel wants to see one."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, ARENA_BYTES)

    def content(self, units: list[int]) -> list[bytes]:
        return [self.memory[unit * SLOT_UNIT : (unit + 1) * SLOT_UNIT] for unit in units]

    def begin_read(self, units: list[int]) -> list[int]:
        return []

    def end_read(self, units: list[int], writes: list[int]) -> None:
        pass

    def begin_write(self, who: str, units: list[int]) -> None:
        pass

    def end_fill(self, who: str, slot: int, content: list[bytes] | None) -> None:
        if content is not None:
            self.memory[slot * SLOT_UNIT : (slot + len(content)) * SLOT_UNIT] = b"".join(content)


class ModelTier(TierModel):
    """Its clock goes on by one step with each poll; a byte in a pipe says that a poll is worth it."""

    extents, extent_bytes, drives = EXTENTS, EXTENT_UNITS * SLOT_UNIT, DRIVES

    def __init__(self, disks: Disks, arena: Bytes, chance: random.Random) -> None:
        self._now = 0.0
        self._readable, self._writable = os.pipe()
        self._told = self._closed = False
        self._late: list[Finished] = []
        super().__init__(disks, arena, chance, lambda: self._now, NO_LUCK)

    def start(self, transfer: Transfer) -> None:
        if self._closed:
            self._late.append(Finished(transfer.ticket, "closed"))
        else:
            super().start(transfer)
            self._tell()

    def poll(self) -> list[Finished]:
        if self._closed:
            done, self._late = self._late, []
            return done
        self._now = self.wakes_at() or self._now
        done = super().poll()
        self._tell()
        return done

    def fileno(self) -> int:
        return self._readable

    def state(self) -> dict[str, object]:
        return {"read_only": self.read_only}

    def close(self) -> None:
        if not self._closed:
            while self.under_way:
                self._late += self.poll()
            self._commit(len(self._log))
            self._closed = True
            os.close(self._readable)
            os.close(self._writable)

    def _tell(self) -> None:
        if bool(self.under_way) != self._told:
            self._told = not self._told
            os.write(self._writable, b"!") if self._told else os.read(self._readable, 1)


class TierModelFactory:
    survives, flush_fault, finds_by_keys = True, "", False
    only_epoch_0 = False

    def __init__(self) -> None:
        self._arena = Bytes()
        self._random = random.Random(1)

    def make(self, folder: Path) -> ModelTier:
        return self._open(Disks(EXTENTS, EXTENT_UNITS, DRIVES))

    def reopen(self, tier: ModelTier) -> ModelTier:
        tier.close()
        return self._open(tier.disks)

    def crash(self, tier: ModelTier) -> ModelTier:
        return self._open(tier.crash())

    def units(self, tier: ModelTier) -> int:
        return tier.extents * tier.extent_bytes // SLOT_UNIT

    def memory(self, slot: int, size: int) -> memoryview:
        return memoryview(self._arena.memory)[slot * SLOT_UNIT : slot * SLOT_UNIT + size]

    def flip_bit(self, tier: ModelTier, place: int, offset: int) -> None:
        """Once more, and it is as it was."""
        for first, content in tier.disks.content.items():
            if first <= place < first + len(content):
                unit, byte = place - first + offset // SLOT_UNIT, offset % SLOT_UNIT
                content[unit] = content[unit][:byte] + bytes([content[unit][byte] ^ 1]) + content[unit][byte + 1 :]
                return

    def raw(self, tier: ModelTier, place: int, size: int) -> bytes:
        """On the drive; `place` is that of a block."""
        return b"".join(tier.disks.content[place])[:size]

    def _open(self, disks: Disks) -> ModelTier:
        return ModelTier(disks, self._arena, self._random)
