"""A lookup: an engine asks which of a request's blocks are where. Pure."""

from dataclasses import dataclass

import numpy as np

from kvtier.block import ABSENT, BELOW, KEY_BYTES, Kind, key_at, leading, unpack_keys
from kvtier.decision import Ask, Matched
from kvtier.staging import Asker, Wanted

Queues = tuple[int, int]
Lying = tuple[np.ndarray, np.ndarray]  # positions of what lies below, and the bytes of each that lie there
NONE = np.empty(0, np.intp)
NOTHING: Lying = NONE, NONE


@dataclass(frozen=True, slots=True)
class Lookup:
    asker: Asker
    keys: bytes  # packed
    kind: Kind
    namespace: int  # its number
    queues: Queues | None  # where its blocks are to stand in RAM, see Ram.use
    skip: int  # so many of the first the engine has
    ask: Ask
    at: float
    tenant: int = 0  # the number of whose request it is

    @property
    def block_tokens(self) -> float:
        """Of each block that it lacks, on the mean. Without a chain each cache group has blocks of its own: of which
        tokens, only the engine knows."""
        if self.kind.is_chain:
            return float(self.kind.block_tokens)
        return (self.ask.prompt_tokens - self.ask.resident_tokens) / max(1, len(self.keys) // KEY_BYTES - self.skip)

    def key(self, at: int) -> bytes:
        return key_at(self.keys, at)

    def parent(self, at: int) -> bytes:
        """The block before it; empty where there is none."""
        return key_at(self.keys, at - 1) if self.kind.is_chain and at else b""

    def keys_at(self, positions: np.ndarray) -> list[bytes]:
        return unpack_keys(np.frombuffer(self.keys, f"V{KEY_BYTES}")[positions].tobytes())

    def wanted(self, away: Lying, end: int) -> list[Wanted]:
        """What of this the remote has before `end`, as staging reads it."""
        size = self.kind.slot_bytes
        return [
            Wanted(at, self.key(at), self.parent(at), 0, size, "remote", self.namespace, stored if stored < size else 0)
            for at, stored in zip(away[0].tolist(), away[1].tolist())
            if at < end
        ]

    def end(self, slots: np.ndarray, away: np.ndarray) -> int:
        """What stands behind a hole in a chain is of no use: so many of the first may be offered. `slots`: what is in RAM
        and, as BELOW, on the drives; `away`: positions of what the remote has of the rest."""
        if not self.kind.is_chain:
            return len(slots)
        is_there = slots[self.skip :] != ABSENT
        is_there[away - self.skip] = True
        return self.skip + leading(is_there)

    def matched(self, slots: np.ndarray, away: Lying, is_remote_away: bool, frames: Lying = NOTHING) -> Matched:
        """What is where, behind what the engine has. `frames`: what is on the drives, where frames are."""
        beyond, is_chain = slots[self.skip :], self.kind.is_chain
        is_there = beyond != ABSENT
        cpu, lower = count(beyond < BELOW, self.kind), count(is_there, self.kind)
        drives = self._drives(beyond, lower) if lower > cpu else 0
        all_, all_drives, there_away = lower, drives, 0
        if len(away[0]):
            is_there[away[0] - self.skip] = True
            all_ = count(is_there, self.kind)
            all_drives = self._drives(beyond, all_)
            there_away = int((away[0] < self.skip + all_).sum()) if is_chain else len(away[0])
        missing = None
        if all_ < len(beyond):
            missing = self.key(self.skip + (all_ if is_chain else int(is_there.argmin())))
        of = self.kind.slot_bytes, self.block_tokens, missing, is_remote_away and missing is not None
        sizes = self._bytes(frames, lower), self._bytes(frames, all_), self._bytes(away, all_)
        return Matched(cpu, lower, all_, drives, all_drives, there_away, *of, *sizes)

    def _drives(self, beyond: np.ndarray, blocks: int) -> int:
        """How many are on the drives, in a chain of the first `blocks`."""
        return int((beyond[: blocks if self.kind.is_chain else None] == BELOW).sum())

    def _bytes(self, lying: Lying, blocks: int) -> int:
        """Of what lies there behind what the engine has, in a chain of the first `blocks`."""
        positions, stored = lying
        if not len(positions):
            return 0
        end = self.skip + blocks if self.kind.is_chain else len(self.keys)
        return int(stored[(positions >= self.skip) & (positions < end)].sum())


def count(good: np.ndarray, kind: Kind) -> int:
    """How many are good; in a chain, from the first on."""
    return leading(good) if kind.is_chain else int(good.sum())
