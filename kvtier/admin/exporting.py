"""Exporting: a conversation as the pieces of a parcel, block after block as they are read.

It is not stopped meanwhile: what it goes on to save is not in the file. A block that goes while others are read ends its
chain; the file says at its end what it has.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

from kvtier.admin import KEYS_AT_ONCE, PIECE_BYTES, admin_pb2
from kvtier.block import BlockKey, Kind
from kvtier.parcel import End, Head, Namespace, ParcelError, crc_of, pack_end, pack_head, witness_of
from kvtier.session import Session, names_of
from kvtier.store import BlockStore
from kvtier.tiers.remote import envelope
from kvtier.visitor import Visitor


class _Stretch(NamedTuple):
    """Blocks of one session that no other in the file has, up to the first that isn't here."""

    namespace: Namespace
    keys: list[BlockKey]


class Sum(NamedTuple):
    """Of blocks."""

    blocks: int = 0
    bytes: int = 0

    def and_one(self, size: int) -> "Sum":
        return Sum(self.blocks + 1, self.bytes + size)


class Exporting:
    """One export; `sessions` are those that clients take for one, `now` is a monotonic clock's."""

    def __init__(self, store: BlockStore, visitor: Visitor, root: bytes, sessions: list[Session], now: float) -> None:
        """ParcelError: they can't leave this node."""
        self._visitor, self._witness = visitor, witness_of(root)
        _check(sessions)
        digests = {known.number: (digest, known.epoch) for digest, known in store.namespaces.items()}
        numbers = list(dict.fromkeys(session.namespace for session in sessions))
        if any(digests[number][1] for number in numbers):
            raise ParcelError(
                "its engine's weights were changed while it ran: what it saved since is of use beside that engine only"
            )
        kinds = {s.namespace: Kind(s.slot_bytes, s.block_tokens, s.is_chain) for s in sessions}
        self._namespaces = tuple(Namespace(digests[number][0], kinds[number]) for number in numbers)
        # As they are now: they may go on
        self._sessions = tuple(store.retention.moving.carried(s, numbers.index(s.namespace), now) for s in sessions)
        self._stretches: list[_Stretch] = []
        self._there = Sum()
        self._missing = 0  # blocks

    async def answers(self) -> AsyncGenerator[admin_pb2.ExportResponse, None]:
        """What is to come, the pieces of the file, and with the last what came. ParcelError: nothing can."""
        await self._plan()
        there, came = self._there, Sum()
        begin, text = pack_head(Head(self._witness, self._namespaces, self._sessions, there.blocks, there.bytes))
        crc, written = crc_of(text), len(begin) + len(text)
        yield admin_pb2.ExportResponse(parcel=self._parcel(there))
        for piece in _pieces(begin, text):
            yield admin_pb2.ExportResponse(piece=piece)
        for namespace, keys in self._stretches:
            for key in keys:
                async with self._visitor.read(namespace.digest, key) as found:
                    if found is None and namespace.kind.is_chain:
                        break
                    if found is None:
                        continue
                    header, body = envelope.pack(found[0]), found[1]
                    for piece in _pieces(header, body):
                        yield admin_pb2.ExportResponse(piece=piece)
                    crc, written = crc_of(header, crc), written + len(header) + len(body)
                    came = came.and_one(len(body))
        if not came.blocks:
            raise ParcelError("all its blocks have gone while it was exported: RAM is too small for what is asked of it")
        end = pack_end(End(came.blocks, written, crc))
        yield admin_pb2.ExportResponse(piece=end, parcel=self._parcel(came))

    async def _plan(self) -> None:
        """What is to go along."""
        seen: set[tuple[bytes, BlockKey]] = set()
        for carried in self._sessions:
            namespace = self._namespaces[carried.namespace]
            digest, kind = namespace
            keys, here = list(names_of(carried.keys)), list[BlockKey]()
            for at in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[at : at + KEYS_AT_ONCE]
                is_here = [size == kind.slot_bytes for size in self._visitor.sizes(digest, b"".join(some))]
                if kind.is_chain and not all(is_here):
                    here += some[: is_here.index(False)]
                    break
                here += itertools.compress(some, is_here)
                await asyncio.sleep(0)  # engines have their turn
            fresh = [key for key in here if (digest, key) not in seen]
            seen.update((digest, key) for key in fresh)
            self._missing += len(keys) - len(here)
            self._there = Sum(self._there.blocks + len(fresh), self._there.bytes + len(fresh) * kind.slot_bytes)
            self._stretches.append(_Stretch(namespace, fresh))
        if not self._there.blocks:
            raise ParcelError("nothing of it is in RAM or on a drive any more; its next request computes it anew")

    def _parcel(self, has: Sum) -> admin_pb2.Parcel:
        missing = self._missing + self._there.blocks - has.blocks
        return admin_pb2.Parcel(sessions=len(self._sessions), blocks=has.blocks, bytes=has.bytes, blocks_missing=missing)


def _check(sessions: list[Session]) -> None:
    tenants = sorted({session.shown_tenant for session in sessions})
    if len(tenants) > 1:
        shown = ", ".join(tenant or "none" for tenant in tenants)
        raise ParcelError(f"several tenants have a session of this name ({shown}): name one with --tenant")
    if not sessions:
        raise ParcelError("its blocks are of a kvtierd before this one; it can be exported after its next request")
    if any(session.no_disk or session.no_remote for session in sessions):
        where = "disk" if any(session.no_disk for session in sessions) else "other machine"
        raise ParcelError(f"its client wants it on no {where} (max_tier): it stays here")


def _pieces(header: bytes, body: bytes | memoryview) -> Iterator[bytes]:
    first = PIECE_BYTES - len(header)
    yield header + body[:first]
    for at in range(first, len(body), PIECE_BYTES):
        yield bytes(body[at : at + PIECE_BYTES])
