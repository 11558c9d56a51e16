"""What follows from sessions for blocks; beside Expected, and as plain.

Which session a request belongs to is overheard: the choice has tests of its own. Taken for given are also which of its
blocks a pin reached. Worked out a second time: what each session has, what its end, its time to live and its oblivion
mean for what is in RAM and below.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtier.block import BlockKey, pack_keys, unpack_keys
from kvtier.forgetting import session_tag
from kvtier.session import ENDED_SHOWN, NOTHING, Begun, Hints, Session
from kvtier.store import BlockStore
from kvtier.tenants import TAG_SHOWN, TENANT_TAG_BYTES
from kvtier.transfer import ORIGIN_BYTES

if TYPE_CHECKING:
    from .expected import Expected

Request = tuple[str, str]  # engine, name
TAG = ORIGIN_BYTES // 2
TENANT = 12  # hex digits by which a tenant is named


@dataclass(eq=False)
class Known:
    session: Session  # the store's own, by which it is recognised
    namespace: bytes
    is_chain: bool
    keys: list[BlockKey]
    packed: bytes = b""
    hints: Hints = NOTHING
    no_disk: bool = False
    is_guess: bool = False  # it never asked: it has what its request saved first
    dies_at: float | None = None
    requests: dict[Request, list[BlockKey]] = field(default_factory=dict)  # under way -> what they saved

    def has(self, keys: list[BlockKey]) -> None:
        self.keys = list(keys) if self.is_chain else list(dict.fromkeys(keys))
        self.packed = pack_keys(self.keys)


@dataclass
class Oblivion:
    """What is to be forgotten, by one ticket."""

    keys: set[BlockKey]  # that nobody else has, and nobody saved since
    slots: set[int] = field(default_factory=set)  # that held it and are not wiped yet
    places: set[int] = field(default_factory=set)
    requests: set[Request] = field(default_factory=set)  # that are under way
    tenant: bytes = b""  # all of whom it is


@dataclass
class ExpectedSessions:
    ram: Expected
    store: BlockStore
    known: dict[Session, Known] = field(default_factory=dict)
    heard: dict[Request, Session] = field(default_factory=dict)  # since the last event
    said: dict[Request, Hints] = field(default_factory=dict)
    of_request: dict[Request, Known] = field(default_factory=dict)
    barred: dict[Request, Oblivion] = field(default_factory=dict)
    oblivions: dict[int, Oblivion] = field(default_factory=dict)  # by ticket
    no_disk: set[BlockKey] = field(default_factory=set)  # in RAM, saved by sessions that want them on no disk
    origins: dict[int, bytes] = field(default_factory=dict)  # by slot: the tags of who was the first to save
    dead: set[BlockKey] = field(default_factory=set)  # that were in RAM when the last session left them
    ended: list[Known] = field(default_factory=list)
    kept: set[BlockKey] = field(default_factory=set)  # that some session has pinned

    def __post_init__(self) -> None:
        """Listens which session a request is found to be of."""
        sessions = self.store.retention._sessions
        sound = sessions.begin

        def begin(request: Request, *question: object) -> Begun:
            begun = sound(request, *question)
            self.heard[request] = begun.session
            return begun

        sessions.begin = begin

    # --- requests ----------------------------------------------------------------------------------------------------

    def is_not_to_be_known(self, engine: str, name: str) -> bool:
        return self.said.get((engine, name), NOTHING).no_store

    def asked(self, engine: str, name: str, keys: list[BlockKey], is_chain: bool, now: float) -> None:
        """The store has heard it already."""
        request = engine, name
        hints = self.said.get(request, NOTHING)
        self.dead -= set(keys)
        if hints.no_store or request in self.of_request or request in self.barred:
            return
        session = self.heard.pop(request)
        mine = self.known.get(session)
        if mine is None:
            mine = self.known[session] = Known(session, self.ram.engines[engine].namespace, is_chain, [])
        self._goes_on(mine, keys)
        mine.hints, mine.dies_at = hints, None
        mine.no_disk |= hints.no_disk
        if hints.no_disk:
            self.no_disk.update(self.ram.blocks[slot][0] for slot in self.ram.here(self.alone([mine])))
        mine.requests[request] = []
        self.of_request[request] = mine

    def saves(self, engine: str, name: str, keys: list[BlockKey], now: float) -> None:
        """Also a request that never asked is of a session; what it saves is not looked at yet."""
        if name and (engine, name) not in self.of_request:
            self.asked(engine, name, keys, self.ram.engines[engine].is_chain, now)
            if (engine, name) in self.of_request:
                self.of_request[engine, name].is_guess = True

    def saved(self, engine: str, name: str, keys: list[BlockKey]) -> None:
        """They are in RAM now."""
        self.dead -= set(keys)
        for oblivion in self.oblivions.values():
            oblivion.keys -= set(keys)
        mine = self.of_request.get((engine, name))
        self.no_disk -= set(keys)
        if (mine or self.said.get((engine, name), NOTHING)).no_disk:
            self.no_disk.update(keys)
        for slot in self.ram.here(keys):
            self.origins[slot] = b""
        if mine is not None:
            mine.requests[engine, name] += keys
            self._mark(mine, keys)

    def came(self, key: BlockKey, slot: int, origin: bytes) -> None:
        """From below."""
        self.origins[slot] = origin
        self.dead.discard(key)
        self.no_disk.discard(key)

    def is_barred(self, engine: str, name: str, slots: list[int]) -> bool:
        """Then its slots are wiped as they come back."""
        oblivion = self.barred.get((engine, name))
        if oblivion is not None:
            self._hide(oblivion, slots)
        return oblivion is not None

    def gave_back(self, engine: str, slots: list[int]) -> None:
        """Of a barred request's failed save something may be in them."""
        for oblivion in {id(o): o for (name, _), o in self.barred.items() if name == engine}.values():
            self._hide(oblivion, slots)

    def over(self, engine: str, name: str, keys: list[BlockKey], now: float) -> None:
        request, ram = (engine, name), self.ram
        if self.barred.pop(request, None) is not None:
            for oblivion in self.oblivions.values():
                oblivion.requests.discard(request)
            self.said.pop(request, None)
            return
        if name and keys and request not in self.of_request:  # it never asked
            self.asked(engine, name, keys, ram.engines[engine].is_chain, now)
        self.said.pop(request, None)
        mine = self.of_request.pop(request, None)
        if mine is None:
            ram.use(ram.here(keys))
        else:
            del mine.requests[request]
            if keys and (mine.is_guess or not mine.is_chain or keys[: len(mine.keys)] == mine.keys):
                self._goes_on(mine, keys)
                mine.is_guess = False
            self._mark(mine, keys)
            ram.use(ram.here(keys if mine.requests else mine.keys))
            if mine.hints.end and not mine.requests:
                for namesake in [other for other in self.known.values() if self._is_namesake(mine, other)]:
                    if namesake.requests:
                        namesake.hints = Hints(end=True)
                    else:
                        self._end(namesake)
            elif not mine.requests and mine.hints.ttl_s and not mine.hints.pin:
                mine.dies_at = now + mine.hints.ttl_s
        if ram.below is not None:
            ram.below.request_ended([ram.blocks[slot][0] for slot in ram.here(keys)])
        ram.lags |= bool(self.kept)  # it may have been pinned

    @staticmethod
    def _is_namesake(mine: Known, other: Known) -> bool:
        """Its client calls both the same."""
        name = mine.namespace, mine.session.tenant, mine.session.name
        is_same = name == (other.namespace, other.session.tenant, other.session.name)
        return other is mine or bool(mine.session.name and is_same)

    def left(self, engine: str, now: float) -> None:
        self.gave_back(engine, [slot for slot, name in self.ram.lent.items() if name == engine])
        self.said = {request: hints for request, hints in self.said.items() if request[0] != engine}
        for request in [request for request in self.barred if request[0] == engine]:
            for oblivion in self.oblivions.values():
                oblivion.requests.discard(request)
            del self.barred[request]
        for (name, request), mine in list(self.of_request.items()):
            if name == engine:
                fresh = dict.fromkeys(mine.requests[name, request])
                keys = mine.keys + [key for key in fresh if key not in mine.keys]
                self.over(name, request, keys, now)

    def reset(self, namespace: bytes) -> None:
        for mine in [mine for mine in self.known.values() if mine.namespace == namespace]:
            self._drop(mine)

    def tick(self, now: float) -> None:
        """The store has had it. Whose time to live is over loses what it alone has, everywhere."""
        alive = set(self.store.retention._sessions)
        for mine in [mine for session, mine in self.known.items() if session not in alive]:
            assert mine.dies_at is not None and mine.dies_at <= now and not mine.requests, "it had time to live"
            alone = self.alone([mine])
            self._end(mine)
            if self.ram.below is not None:
                self.ram.below.erase([key for key in alone if key in self.ram.below.blocks])
            self.ram.lose(self.ram.here(alone), "its session's time to live was over")
        late_pins = [session for session in self.pinned() if not session.requests and session.pin_until <= now]
        assert not late_pins, "a pin lasts too long"
        late = [mine for mine in self.known.values() if mine.dies_at is not None and mine.dies_at <= now]
        assert all(mine.requests for mine in late), "it lives longer than it was to"

    # --- what is wished ----------------------------------------------------------------------------------------------

    def named(self, name: str, tenant: str, ended: bool = False) -> list[Known]:
        return [
            mine
            for mine in (*self.known.values(), *(self.ended if ended else ()))
            if name in ("", mine.session.shown_name) and tenant in ("", mine.session.tenant.hex()[:TENANT])
        ]

    def park(self, name: str, tenant: str) -> None:
        """Before the store does it."""
        for mine in self.named(name, tenant):
            if mine.requests or mine.session.pinned or self.ram.below is None:
                continue
            keys = {self.ram.blocks[slot][0] for slot in self.ram.here(self.alone([mine]))}
            self.ram.below.used_again |= keys - self.kept - set(self.ram.below.blocks)

    def end(self, name: str, tenant: str) -> None:
        for mine in self.named(name, tenant):
            if mine.requests:
                mine.hints = Hints(end=True)
            else:
                self._end(mine)

    def forget(self, name: str, tenant: str, ticket: int) -> None:
        """The store has done so."""
        matched, ram, below = self.named(name, tenant, ended=True), self.ram, self.ram.below
        fresh = [key for mine in matched for saved in mine.requests.values() for key in saved]
        oblivion = self.oblivions[ticket] = Oblivion(set())
        for mine in matched:
            for request in mine.requests:
                self._bar(request, oblivion)
        for request, hints in self.said.items():
            if (name or tenant) and self._is_said(hints, name, tenant):
                self._bar(request, oblivion)
        alone = self.alone(matched, fresh)
        for mine in matched:
            self._drop(mine)
        oblivion.keys = set(alone)
        self.ended = [mine for mine in self.ended if mine not in matched]
        tags, had = (session_tag(name), bytes.fromhex(tenant)), self.members()
        once = [slot for slot in ram.blocks if self._is_of(self.origins[slot], tags) and ram.blocks[slot][0] not in had]
        oblivion.keys |= {ram.blocks[slot][0] for slot in once}
        behind = {ram.blocks[one][0] for slot in ram.here(alone) + once for one in ram.tree(slot)}
        gone = ram.lose(ram.here(alone) + once, "its session was forgotten by wish", is_secret=True)
        oblivion.slots.update(gone)
        if below is not None:
            written = [(order.key, order.origin) for order in below.writes()]
            read = [(read.order.key, read.origin) for read in below.reads.values()]
            theirs = [*written, *read, *((key, lying.origin) for key, lying in below.blocks.items())]
            oblivion.keys |= {key for key, origin in theirs if self._is_of(origin, tags) and key not in had}
            below.forget_keys(oblivion, behind)
            if tenant and not name:
                oblivion.tenant = bytes.fromhex(tenant).ljust(TENANT_TAG_BYTES, b"\0")
                below.shreds.append(oblivion.tenant)

    def _bar(self, request: Request, oblivion: Oblivion) -> None:
        oblivion.requests.add(request)
        self.barred.setdefault(request, oblivion)

    @staticmethod
    def _is_said(hints: Hints, name: str, tenant: str) -> bool:
        return name in ("", hints.session) and tenant in ("", hints.tenant[:TAG_SHOWN].hex())

    def wiped(self, slot: int) -> None:
        for oblivion in self.oblivions.values():
            oblivion.slots.discard(slot)

    def through(self, ticket: int) -> Oblivion:
        oblivion = self.oblivions.pop(ticket)
        assert not oblivion.requests, "a request of it is under way"
        assert not oblivion.slots, f"slots {oblivion.slots} of it are not wiped yet"
        here = {key for key, _ in self.ram.blocks.values()}
        assert not oblivion.keys & here, "something of it is in RAM"
        if self.ram.below is not None:
            self.ram.below.nothing_is_left(oblivion)
        return oblivion

    # --- how ---------------------------------------------------------------------------------------------------------

    def _goes_on(self, mine: Known, keys: list[BlockKey]) -> None:
        before = set(mine.keys)
        mine.has(keys)
        self._bury(before)
        self.dead -= set(keys)

    def _bury(self, keys: set[BlockKey]) -> None:
        """Those of these that nobody has any more go first, but those that are pinned."""
        here = {self.ram.blocks[slot][0] for slot in self.ram.here(keys)}
        self.dead |= here - self.kept - set(self.members())

    def members(self) -> Counter[BlockKey]:
        return Counter(key for mine in self.known.values() for key in mine.keys)

    def alone(self, these: list[Known], fresh: list[BlockKey] | None = None) -> list[BlockKey]:
        """What nobody else has."""
        others = {key for mine in self.known.values() if mine not in these for key in mine.keys}
        keys = dict.fromkeys([key for mine in these for key in mine.keys] + (fresh or []))
        return [key for key in keys if key not in others]

    def pinned(self) -> list[Session]:
        return [session for session in self.known if session.pinned]

    def note_pins(self) -> None:
        """Which blocks a pin reached."""
        self.kept = {key for session in self.pinned() for key in unpack_keys(session.pinned)}

    def _hide(self, oblivion: Oblivion, slots: list[int]) -> None:
        self.ram.secret.update(slots)
        oblivion.slots.update(slots)

    def _mark(self, mine: Known, keys: list[BlockKey]) -> None:
        """It was the first to save what of these is nobody's yet."""
        session = mine.session
        if session.name or session.tenant:
            tag = session_tag(session.name).ljust(TAG, b"\0") + session.tenant[: TENANT // 2].ljust(TAG, b"\0")
            for slot in self.ram.here(keys):
                self.origins[slot] = self.origins[slot] or tag

    @staticmethod
    def _is_of(origin: bytes, tags: tuple[bytes, bytes]) -> bool:
        is_theirs = origin[:TAG].startswith(tags[0]) and origin[TAG:].startswith(tags[1])
        return bool(origin) and any(tags) and is_theirs

    def _end(self, mine: Known) -> None:
        self._drop(mine)
        self.ended = [*self.ended, mine][-ENDED_SHOWN:]

    def _drop(self, mine: Known) -> None:
        if mine.session not in self.known:
            return
        del self.known[mine.session]
        for request in mine.requests:
            del self.of_request[request]
        self._bury(set(mine.keys))
