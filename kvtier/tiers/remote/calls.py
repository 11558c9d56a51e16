"""Calls: what an order asks of a remote, and what came of it. RemoteTier says when, and for how long.

A body is as long as a Seek found it, or as the caller thinks. Nodes of one store may code differently, and write over what
others wrote: where the length is another by now, it is asked for again, once, before anything is taken for damaged. What is
as long as a sealed one is another kvtier's, whose key we don't have; what went meanwhile is gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvtier.block import SLOT_UNIT
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.base import Corrupt, OtherVersion, Remote, Unreachable
from kvtier.tiers.remote.values import Clear, Sealed
from kvtier.transfer import Demote, Erase, Finished, Promote, Seek


@dataclass(eq=False, slots=True)
class Job:
    """One call: of an order, or of a few Erases."""

    orders: list[Demote | Promote | Erase | Seek]
    names: list[str]
    digest: bytes = b""
    begun_at: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of a value that go over the wire, at most."""
        order = self.orders[0]
        return order.place_bytes if isinstance(order, Demote | Promote) else 0

    @property
    def is_write(self) -> bool:
        return isinstance(self.orders[0], Demote | Erase)


class Calls:
    def __init__(self, remote: Remote, arena: np.ndarray, values: Clear | Sealed, now: Callable[[], float]) -> None:
        """`arena`: the bytes that slots name; `values`: how they lie there; `now`: the loop's clock."""
        self._remote, self._arena, self._values, self._now = remote, arena, values, now
        self.counts = dict.fromkeys(("read_bytes", "written_bytes", "sought_keys", "gone", "corrupt_blocks", "failed"), 0)

    async def make(self, job: Job) -> tuple[Finished, ...]:
        order = job.orders[0]
        if isinstance(order, Seek):
            done = await self._seek(job, order)
        elif isinstance(order, Promote):
            done = await self._read(job, order)
        elif isinstance(order, Demote):
            done = await self._write(job, order)
        else:
            await self._remote.delete(job.names)
            return tuple(Finished(erase.ticket, "", 0, self._since(job)) for erase in job.orders)
        return (done,)

    async def _seek(self, job: Job, seek: Seek) -> Finished:
        sizes = tuple(map(self._body_of, await self._lengths(job)))
        self.counts["sought_keys"] += len(sizes)
        return Finished(seek.ticket, "", 0, self._since(job), sizes)

    async def _read(self, job: Job, promote: Promote) -> Finished:
        block, stored = self._slot(promote), promote.place_bytes
        try:
            header = await self._get(job, block, stored)
        except Corrupt:
            (length,) = await self._lengths(job)
            found = self._body_of(length)
            if length == promote.size + Sealed.header_bytes > promote.size + self._values.header_bytes:
                raise OtherVersion("as long as a sealed one") from None
            if length is not None and (found in (0, stored) or found > promote.size):
                raise
            header, stored = (None if length is None else await self._get(job, block, found)), found
        if header is None:
            self.counts["gone"] += 1
            return Finished(promote.ticket, "gone", 0, self._since(job))
        came = await self._values.read(header, promote.key, job.digest, block, stored)
        self.counts["read_bytes"] += stored
        return Finished(
            promote.ticket, "", came.header.checksum, self._since(job), origin=came.header.origin, stored=stored,
            coded_s=came.coded_s, codec=came.codec,
        )  # fmt: skip

    async def _write(self, job: Job, demote: Demote) -> Finished:
        async with self._values.made(demote, job.digest, self._slot(demote)) as value:
            if value is None:
                return Finished(demote.ticket, "larger", 0, self._since(job))
            await self._remote.put(job.names[0], value.header, value.body)
        stored = value.body.nbytes
        self.counts["written_bytes"] += stored
        return Finished(demote.ticket, "", value.checksum, self._since(job), stored=stored, coded_s=value.coded_s)

    async def _get(self, job: Job, block: np.ndarray, stored: int) -> bytes | None:
        """Its header; the body lies at the beginning of the block's place. None: it isn't there. Corrupt: it is of another
        length."""
        if stored > len(block):
            raise Corrupt(f"{stored} bytes for a block of {len(block)}")
        header = bytearray(self._values.header_bytes)
        is_there = await self._remote.get(job.names[0], memoryview(header), block[:stored].data)
        return bytes(header) if is_there else None

    async def _lengths(self, job: Job) -> Sequence[int | None]:
        lengths = await self._remote.lengths(job.names)
        if len(lengths) != len(job.names):
            raise Unreachable(f"{len(lengths)} answers to {len(job.names)} questions")
        return lengths

    def _body_of(self, length: int | None) -> int:
        return envelope.body_bytes(length, self._values.header_bytes)

    def _slot(self, order: Demote | Promote) -> np.ndarray:
        begin = order.slot * SLOT_UNIT
        return self._arena[begin : begin + order.size]

    def _since(self, job: Job) -> float:
        return self._now() - job.begun_at
