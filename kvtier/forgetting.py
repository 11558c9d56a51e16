"""Sessions and tenants that are to be forgotten: removed from every tier, overwritten, and proven. Pure.

    forget --> its blocks are dropped from RAM; their slots are wiped when nobody reads or writes them any more
           --> their copies on the GPU are erased, likewise
           --> dropped from below; their places are erased when no transfer of them is under way
           --> what its requests under way save is wiped as it comes
           --> deleted from the remote, under every key of it, whether it is known to be there or not; tried until it is
               done, also when the remote is away for hours
           --> of a tenant: its data keys are shredded below, so that no copy of the drives is of use either
    through: nothing of this is left to do

What other sessions share with it is theirs too, and stays. Blocks carry the tags of who saved them first, in RAM, below and
on their way, so that they are found also when this daemon has never met their session. A remote can't be asked whose its
blocks are: of it goes what this node knows the keys of, and what other nodes stored of a session stays until they forget it
too. Nor is anything zeroed there: what it does with the bytes of what is deleted is its own business.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvtier.away import Away
from kvtier.block import ABSENT, BlockKey
from kvtier.lower import Lower
from kvtier.mirror import Mirror
from kvtier.ram import Ram
from kvtier.session import Session, Sessions, is_tenant, names_of
from kvtier.tenants import TAG_SHOWN, TENANT_TAG_BYTES

LOOKED_AT_MAX = 16_384  # keys of a ticket at once, whether they are away still: some 10 ms


def session_tag(name: str) -> bytes:
    """Empty for one without a name."""
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=TENANT_TAG_BYTES).digest() if name else b""


def origin_of(session: Session) -> bytes:
    """What its blocks carry: zeros where nobody named it, and where it is nobody's."""
    return session_tag(session.name).ljust(TENANT_TAG_BYTES, b"\0") + session.tenant[:TAG_SHOWN].ljust(
        TENANT_TAG_BYTES, b"\0"
    )


@dataclass
class _Ticket:
    sessions: int = 0
    kept: int = 0  # blocks that others share
    cpu: int = 0
    nvme: int = 0
    gpu: int = 0
    remote: int = 0
    cpu_bytes: int = 0
    nvme_bytes: int = 0
    gpu_bytes: int = 0
    slots: set[int] = field(default_factory=set)  # not wiped yet
    copies: set[int] = field(default_factory=set)  # places on the GPU, not erased yet
    places: set[int] = field(default_factory=set)  # not erased yet
    keys: set[bytes] = field(default_factory=set)  # of blocks that are being written below
    away: dict[bytes, None] = field(default_factory=dict)  # keys that may be in the remote still
    requests: set[tuple[str, str]] = field(default_factory=set)  # under way
    shred: int = 0  # the number of what shreds its data keys; 0: nothing does
    keys_shredded: int = 0


class Forgetting:
    def __init__(self, ram: Ram, sessions: Sessions) -> None:
        self.lower: Lower | None = None
        self.away: Away | None = None
        self.mirror: Mirror | None = None
        self._ram, self._sessions = ram, sessions
        self._numbers = itertools.count(1)
        self._open: dict[int, _Ticket] = {}
        self._barred: dict[tuple[str, str], _Ticket] = {}  # requests of forgotten sessions
        self.under_way: Callable[[str, str], list[tuple[str, str]]] = lambda session, tenant: []  # as hearing.py has it

    def is_barred(self, engine: str, request: str) -> bool:
        """It is of a session that was forgotten: nothing of it is taken."""
        return (engine, request) in self._barred

    def forget(self, name: str, tenant: str) -> int:
        """A session, or all of a tenant; `tenant` as it is shown. Returns a ticket."""
        number, ticket = next(self._numbers), _Ticket()
        self._open[number] = ticket
        sessions = self._sessions.named(name, tenant, ended=True)
        ticket.sessions = len(sessions)
        for session in sessions:  # first all of them, for what only they share is not kept
            for request in session.requests:
                self._bar(request, ticket)
            self._sessions.drop(session)
        for request in self.under_way(name, tenant) if _tags(name, tenant) else ():
            self._bar(request, ticket)
        for session in sessions:
            self._remove(ticket, session)
        if tags := _tags(name, tenant):  # what it had once and went on without, or what a daemon before this one met
            found = self._ram.of_origin(*tags)
            slots = [slot for slot in found if not self._has(self._ram.index.key(slot))]
            self._remove_from_ram(ticket, slots, self._moving(tags))
            self._remove_below(ticket, self._below(tags))
            self._stop_writing_away(ticket, tags)
            if self.lower is not None and not name and any(tags[1]):
                ticket.shred = self.lower.shred(tags[1])
        return number

    def _bar(self, request: tuple[str, str], ticket: _Ticket) -> None:
        self._barred.setdefault(request, ticket)  # what it saves counts once
        ticket.requests.add(request)

    def finds_below(self, name: str, tenant: str) -> bool:
        """Whether the tier below has something of it, though this daemon never met it."""
        tags = _tags(name, tenant)
        return tags is not None and bool(self._below(tags) or self._ram.of_origin(*tags))

    def hide(self, engine: str, slots: Iterable[int]) -> None:
        """They come back from it without a word: if one of its requests is barred, they may hold some of it."""
        tickets = [ticket for (name, _), ticket in self._barred.items() if name == engine]
        for slot in slots if tickets else ():
            self._ram.wipe_later(slot)
            for ticket in tickets:
                ticket.slots.add(slot)

    def saved(self, engine: str, request: str, slots: list[int]) -> None:
        """A barred request has filled these slots; they are wiped as they come back."""
        ticket = self._barred[engine, request]
        for slot in slots:
            self._ram.wipe_later(slot)
            ticket.slots.add(slot)
            ticket.cpu += 1
            ticket.cpu_bytes += self._ram.slots.size_of(slot)

    def over(self, engine: str, request: str) -> bool:
        """Whether it was barred."""
        is_barred = self._barred.pop((engine, request), None) is not None
        for ticket in self._open.values() if is_barred else ():
            ticket.requests.discard((engine, request))
        return is_barred

    def left(self, engine: str) -> None:
        for name, request in list(self._barred):
            if name == engine:
                self.over(name, request)

    def through(self) -> list[tuple[int, dict[str, object]]]:
        """Tickets of which nothing is left to do, since the last call, and the proof."""
        self._note_written()
        return [(number, self._proof(self._open.pop(number))) for number in list(self._open) if self._is_through(number)]

    # --- how -----------------------------------------------------------------------------------------------------

    def _remove(self, ticket: _Ticket, session: Session) -> None:
        """A session that was dropped, and what its requests under way have saved."""
        saved = b"".join(keys for parts in session.requests.values() for keys in parts)
        had = names_of(session.keys + saved)
        alone = [key for key in had if not self._has(key)]
        ticket.kept += len(had) - len(alone)
        packed = b"".join(alone)
        slots = self._ram.index.find(packed)
        for key in alone:
            self._remove_away(ticket, key, session.namespace)
        self._remove_from_ram(ticket, slots[slots != ABSENT].tolist(), alone)
        if self.lower is not None:
            places = self.lower.extents.find(packed)
            self._remove_below(ticket, places[places != ABSENT].tolist())

    def _has(self, key: BlockKey) -> bool:
        """Whether some session that stays has it."""
        return self._sessions.lineage.owner(key) is not None

    def _remove_from_ram(self, ticket: _Ticket, slots: list[int], keys: Iterable[BlockKey] = ()) -> None:
        """These slots and what stands behind them; of that, and of these keys, what is being written and read."""
        gone = dict.fromkeys(keys)
        for slot in slots:
            for one in self._ram.policy.subtree(slot) if self._ram.index.holds(slot) else ():
                key = self._ram.index.key(one)
                gone[key] = None
                self._remove_away(ticket, key, self._ram.index.namespace(one))
                ticket.slots.add(one)
                ticket.cpu += 1
                ticket.cpu_bytes += self._ram.slots.size_of(one)
                self._doom_copy(ticket, one)
            self._ram.drop([slot], "its session was forgotten by wish", is_secret=True)
        if self.lower is not None:
            writing, reading = self.lower.forget_keys(gone)
            ticket.keys.update(writing)
            ticket.slots.update(reading)
        elif self.away is not None:
            reads = (self.away.staging.forget_key(key) for key in gone)
            ticket.slots.update(slot for slot in reads if slot is not None)

    def _doom_copy(self, ticket: _Ticket, slot: int) -> None:
        """It is erased when its slot is given free."""
        copy = None if self.mirror is None else self.mirror.doom(slot)
        if copy is not None:
            place, size = copy
            ticket.copies.add(place)
            ticket.gpu += 1
            ticket.gpu_bytes += size

    def _below(self, tags: tuple[bytes, bytes]) -> list[int]:
        """Places with these tags, but of blocks that a session has which stays."""
        if self.lower is None:
            return []
        extents = self.lower.extents
        return [at for at in self.lower.of_origin(*tags) if not extents.holds(at) or not self._has(extents.key(at))]

    def _moving(self, tags: tuple[bytes, bytes]) -> list[BlockKey]:
        """What is being written or read with these tags, but of blocks that a session has which stays: RAM and the tier
        below may have dropped it meanwhile."""
        return [] if self.lower is None else [key for key in self.lower.moving_of_origin(*tags) if not self._has(key)]

    def _remove_below(self, ticket: _Ticket, places: list[int]) -> None:
        for place in places:
            if place not in ticket.places and self.lower is not None:
                ticket.places.add(place)
                ticket.nvme += 1
                ticket.nvme_bytes += self.lower.extents.stored(place)
                if self.lower.extents.holds(place):
                    self._remove_away(ticket, self.lower.extents.key(place), self.lower.extents.namespace(place))
                self.lower.erase(place)

    def _remove_away(self, ticket: _Ticket, key: BlockKey, namespace: int) -> None:
        if self.away is not None and key not in ticket.away:
            ticket.away[key] = None
            ticket.remote += 1
            self.away.erase(key, namespace)

    def _stop_writing_away(self, ticket: _Ticket, tags: tuple[bytes, bytes]) -> None:
        """What is written there with these tags, though its session went on without it: it is deleted when it is over."""
        if self.away is None:
            return
        for key in self.away.moving_of_origin(*tags):
            if not self._has(key) and key not in ticket.away and self.away.demotions.forget_key(key):
                ticket.away[key] = None
                ticket.remote += 1

    def _note_written(self) -> None:
        """What was being written is being erased, or was already. Several tickets may wait for one block."""
        waited_for = {key for ticket in self._open.values() for key in ticket.keys}
        if self.lower is None or not waited_for:
            return
        written = {key for key in waited_for if not self.lower.demotions.is_writing(key)}
        given_up = self.lower.given_up(written)
        for ticket in self._open.values():
            for place, size in (given_up[key] for key in ticket.keys & given_up.keys()):
                ticket.places.add(place)
                ticket.nvme += 1
                ticket.nvme_bytes += size
            ticket.keys -= written

    def _is_through(self, number: int) -> bool:
        ticket = self._open[number]
        ticket.slots = {slot for slot in ticket.slots if self._ram.is_unwiped(slot)}
        if self.lower is not None:
            ticket.places = {place for place in ticket.places if self.lower.is_erasing(place)}
        if self.mirror is not None:
            ticket.copies = {place for place in ticket.copies if self.mirror.is_unerased(place)}
        if ticket.shred and self.lower is not None and (shredded := self.lower.shredded(ticket.shred)) is not None:
            ticket.shred, ticket.keys_shredded = 0, shredded
        for _ in range(min(len(ticket.away), LOOKED_AT_MAX)):
            key, _ = ticket.away.popitem()  # from the end: the first of a dict is the slower found the more went before it
            if self._may_be_away(key):
                ticket.away[key] = None
                break
        left = ticket.slots or ticket.copies or ticket.places or ticket.keys or ticket.away or ticket.requests
        return not (left or ticket.shred)

    def _may_be_away(self, key: BlockKey) -> bool:
        """Whether something of it may be in the remote."""
        assert self.away is not None
        return self.away.is_erasing(key) or self.away.demotions.is_writing(key)

    def _proof(self, ticket: _Ticket) -> dict[str, object]:
        """Of the remote, how many blocks are not there: nobody knows how many of them were."""
        has_gpu, has_remote = self.mirror is not None, self.away is not None
        return {
            "sessions": ticket.sessions,
            "blocks": {"cpu": ticket.cpu, "nvme": ticket.nvme}
            | ({"remote": ticket.remote} if has_remote else {})
            | ({"gpu": ticket.gpu} if has_gpu else {}),
            "bytes_zeroed": {"cpu": ticket.cpu_bytes, "nvme": ticket.nvme_bytes}
            | ({"gpu": ticket.gpu_bytes} if has_gpu else {}),
            "shared_blocks_kept": ticket.kept,
        } | ({"keys_shredded": ticket.keys_shredded} if ticket.keys_shredded else {})


def _tags(name: str, tenant: str) -> tuple[bytes, bytes] | None:
    """Of a session, or of all of a tenant; None where that names nobody."""
    if not (name or tenant) or (tenant and not is_tenant(tenant)):
        return None
    return session_tag(name), bytes.fromhex(tenant).ljust(TENANT_TAG_BYTES, b"\0") if tenant else b""
