"""Sessions: conversations, what they have, and what is expected of them. Pure.

    active --its last request is over--> idle ------> active      it came back
                                     |-> waiting                  for a tool, or for the time that was announced
                                     |-> parked                   it was said that it may wait below
                                     '-> ended                    it was said that it is over, or its time is up
    superseded: of its blocks, those that it went on without

A client may name its session; a prompt under that name that has less than half of the former in common with it is another
session of the same name, such as a call for its title. Without a name lineage tells: whoever goes on from where a session's
last prompt ended is that session. Whoever parts from it earlier is another, that shares its trunk.

    session  a b c d | e f       a to d: the prompt; e and f: what was generated
    goes on  a b c d   e f g
    goes on  a b c d   x         its client tells the answer with other words
    parts    a b y               another session, with the trunk a b

What is remembered of a session outlives its blocks: when it comes back and they are gone, it still is what it was.
"""

import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from kvtier.block import KEY_BYTES, BlockKey, Kind, leading
from kvtier.index import Table
from kvtier.lineage import Lineage
from kvtier.returns import OTHERS
from kvtier.tenants import TAG_SHOWN

TENANT_DIGITS = 2 * TAG_SHOWN
SESSIONS_MAX = 65_536  # the least recently used are forgotten first; those with requests under way or pins never
ENDED_SHOWN = 256  # that ended last
KEYS_MAX = 4_000_000  # of all sessions together: some 200 MB
_KEY = np.dtype(f"V{KEY_BYTES}")
SLACK = 16  # a sixteenth of a prompt may be told with other words, and it is still the same session


class State(StrEnum):
    ACTIVE = "active"
    IDLE = "idle"
    WAITING = "waiting"
    PARKED = "parked"
    SUPERSEDED = "superseded"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Hints:
    """What a client says with a request. Nothing of it need be true."""

    session: str = ""
    tenant: bytes = b""
    tool: str = ""
    end: bool = False  # it won't come back after this request
    expect_return_s: float = 0.0  # after this request's end; 0: nothing said
    ttl_s: float = 0.0  # after its last use it is to be dropped; with a pin: so long it lasts; 0: nothing said
    pin: bool = False
    no_disk: bool = False  # its blocks never go below RAM
    no_remote: bool = False  # nor do they leave this node; also where only `no_disk` is said
    no_store: bool = False  # nothing of this request is kept, not even that it was there


NOTHING = Hints()


@dataclass(slots=True, eq=False)
class Session:
    serial: int  # never used again
    number: int  # below SESSIONS_MAX; used again when it is dropped
    namespace: int
    slot_bytes: int
    block_tokens: int
    is_chain: bool
    tenant: bytes = b""
    name: str = ""  # as its client said
    namesake: "Session | None" = None  # an older one that its client calls the same
    keys: bytes = b""  # packed, in prefix order: of its last request, and of the one under way as far as it is known
    prompt_blocks: int = 0  # of them, those of the last prompt
    tail_at: int = 0  # where the blocks begin that its last request added
    is_guess: bool = False  # its request saves and never asked: its keys are what was saved first, until it is over
    is_branch: bool = False  # it parted from another, with which it shares its first `tail_at` blocks, and has not gone on
    last_branch: int = 0  # serial of the session that parted from it last
    turns: int = 0
    used_at: float = 0.0
    state: State = State.ACTIVE
    category: int = OTHERS
    gap_s: float = 0.0  # how long it was idle before its last request
    hints: Hints = NOTHING  # of its last request
    expected_at: float | None = None  # as it was announced, corrected by experience
    pin_until: float = 0.0
    pinned: bytes = b""  # keys
    no_disk: bool = False
    no_remote: bool = False
    requests: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)  # under way -> what they saved

    @property
    def shown_name(self) -> str:
        return self.name or f"~{self.number:x}"

    @property
    def shown_tenant(self) -> str:
        return self.tenant[:TAG_SHOWN].hex()

    @property
    def blocks(self) -> int:
        return len(self.keys) // KEY_BYTES


@dataclass(slots=True)
class Begun:
    """What a request turned out to be."""

    session: Session
    is_new: bool  # a session that was not known
    came_back: bool  # a session that was idle until now
    parted_from: Session | None  # whose trunk it shares
    superseded: bytes  # keys that nobody has any more, because the session went on without them


class Sessions:
    def __init__(self, table: Table | None = None) -> None:
        self.lineage = Lineage(table)
        self._all: OrderedDict[int, Session] = OrderedDict()  # by serial, the least recently used first
        self._serials = itertools.count(1)
        self._keys = 0  # of all sessions; what several have counts for each
        self._named: dict[Hashable, Session] = {}  # by namespace, tenant and name: the newest, which knows the others
        self._of_request: dict[tuple[str, str], Session] = {}
        self._numbers: list[int] = []  # to be used again
        self._forgotten: list[tuple[Session, bytes]] = []
        self._ended: deque[Session] = deque(maxlen=ENDED_SHOWN)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Session]:
        """The least recently used first."""
        return iter(list(self._all.values()))

    def of_request(self, engine: str, request: str) -> Session | None:
        return self._of_request.get((engine, request))

    def of_engine(self, engine: str) -> list[tuple[str, Session]]:
        """Requests of it that are under way, and their sessions."""
        return [(request, session) for (name, request), session in self._of_request.items() if name == engine]

    def states(self) -> dict[str, int]:
        """How many are in each."""
        found = Counter(str(session.state) for session in self._all.values())
        return {str(state): found[str(state)] for state in State}

    def remembers(self, session: Session) -> bool:
        return session.serial in self._all

    def by_serial(self, serial: int) -> Session | None:
        return self._all.get(serial)

    def whose(self, key: BlockKey) -> Session | None:
        """Who was the first to have this key, if it is known."""
        owner = self.lineage.owner(key)
        return None if owner is None else self._all.get(owner)

    def alone(self, session: Session) -> bytes:
        """Its keys that no other session has."""
        members = self.lineage.members(session.keys)
        return np.frombuffer(session.keys, _KEY)[members <= 1].tobytes()

    def nobodys(self, keys: bytes) -> bytes:
        """Those of these that no session has."""
        return np.frombuffer(keys, _KEY)[self.lineage.members(keys) == 0].tobytes() if keys else b""

    def newest_first(self) -> list[Session]:
        """Those that ended lately last."""
        return [*reversed(self._all.values()), *reversed(self._ended)]

    def namesakes(self, session: Session) -> list[Session]:
        """All of its name, itself included: its client takes them for one."""
        found, one = [], self._named.get(_full_name(session)) if session.name else session
        while one is not None:
            found.append(one)
            one = one.namesake
        return found

    def named(self, name: str, tenant: str = "", ended: bool = False) -> list[Session]:
        """As clients named them, or as they are shown; of this tenant (as it is shown), or of any. Without a name, all of a
        tenant. `ended`: those too that ended lately."""
        if not (name or tenant):
            return []
        return [
            session
            for session in (*self._all.values(), *(self._ended if ended else ()))
            if (not name or session.shown_name == name) and (not tenant or session.shown_tenant == tenant)
        ]

    # --- a request ---------------------------------------------------------------------------------------------

    def begin(
        self,
        request: tuple[str, str],
        keys: bytes,
        namespace: int,
        kind: Kind,
        hints: Hints,
        now: float,
    ) -> Begun:
        """A request with these keys has come; `request`: its engine and its name."""
        session, parted, known = self._whose(keys, namespace, kind.is_chain, hints)
        is_new = session is None
        if session is None:
            session = self._found(namespace, kind, hints, now)
            session.is_branch = parted is not None
        came_back = not session.requests and session.turns > 0
        if came_back:
            session.gap_s = now - session.used_at
        shared, superseded = self._go_on(session, keys)
        session.tail_at = known if is_new else shared
        if not is_new:
            session.is_branch = False
        session.prompt_blocks = session.blocks
        session.turns += 1
        session.hints = hints
        session.no_disk |= hints.no_disk
        session.no_remote |= hints.no_remote or hints.no_disk
        session.state, session.expected_at = State.ACTIVE, None
        session.requests[request] = []
        self._of_request[request] = session
        self._use(session, now)
        return Begun(session, is_new, came_back, parted, superseded)

    def saved(self, request: tuple[str, str], keys: bytes) -> None:
        """It has saved these."""
        session = self._of_request.get(request)
        if session is not None:
            session.requests[request].append(keys)

    def over(self, request: tuple[str, str], keys: bytes, now: float) -> tuple[Session, bytes] | None:
        """A request is over, and these are all its blocks; or nobody knows which, then they are none. Its session, and
        keys that nobody has any more. None: a request that never began."""
        session = self._of_request.pop(request, None)
        if session is None:
            return None
        del session.requests[request]
        superseded = b""
        if keys and (session.is_guess or not session.is_chain or keys.startswith(session.keys)):  # else it has holes
            session.is_guess = False
            _, superseded = self._go_on(session, keys)
            session.prompt_blocks = min(session.prompt_blocks, session.blocks)
        if not session.requests:
            session.state = State.IDLE
        self._use(session, now)
        return session, superseded

    def _whose(
        self, keys: bytes, namespace: int, is_chain: bool, hints: Hints
    ) -> tuple[Session | None, Session | None, int]:
        """The session that goes on with these keys; or the one that it parts from; how many keys are known."""
        last, known = self.lineage.known(keys, is_chain)
        owner = self.whose(last) if known else None
        if owner is not None and (owner.namespace != namespace or not _has(owner, last, known)):
            owner = None  # who had it is forgotten
        if owner is not None and owner.state != State.ENDED:
            goes_on = known >= owner.prompt_blocks - owner.prompt_blocks // SLACK
            is_same = (owner.name, owner.tenant) == (hints.session, hints.tenant)
            if goes_on and is_same and (hints.session or not owner.requests):
                return owner, None, known
            if goes_on and hints.session and not owner.name and not owner.requests:  # named from now on
                owner.name, owner.tenant = hints.session, hints.tenant
                self._name(owner)
                return owner, None, known
        named = self._named.get((namespace, hints.tenant, hints.session)) if hints.session else None
        if named is not None and 2 * self._shared(named, keys) >= named.prompt_blocks:
            return named, None, known
        return None, owner, known

    @staticmethod
    def _shared(session: Session, keys: bytes) -> int:
        """How many of the session's blocks these keys are."""
        if session.is_chain:
            return common_keys(session.keys, keys)
        has = names_of(session.keys)
        return sum(key in has for key in names_of(keys))

    def _go_on(self, session: Session, keys: bytes) -> tuple[int, bytes]:
        """These are its keys from now on. Returns how many it had before, and those of the others that nobody has."""
        if session.is_chain:
            shared = common_keys(session.keys, keys)
            left, added = session.keys[shared * KEY_BYTES :], keys[shared * KEY_BYTES :]
        else:  # in whatever order
            before, after = names_of(session.keys), names_of(keys)
            keys = b"".join(after)
            left = b"".join(key for key in before if key not in after)
            added = b"".join(key for key in after if key not in before)
            shared = len(after) - len(added) // KEY_BYTES
        if added:
            self.lineage.join(added, session.serial)
        self._keys += (len(keys) - len(session.keys)) // KEY_BYTES
        session.keys = keys
        return shared, self._leave(left)

    def _leave(self, keys: bytes) -> bytes:
        if not keys:
            return b""
        alone = self.lineage.leave(keys)
        return b"".join(keys[i * KEY_BYTES : (i + 1) * KEY_BYTES] for i in alone.nonzero()[0].tolist())

    # --- they come and go --------------------------------------------------------------------------------------

    def _found(self, namespace: int, kind: Kind, hints: Hints, now: float) -> Session:
        if len(self._all) >= SESSIONS_MAX or self._keys > KEYS_MAX:
            self._forget_oldest()
        number = self._numbers.pop() if self._numbers else len(self._all)
        serial = next(self._serials)
        session = Session(serial, number, namespace, *kind, tenant=hints.tenant, name=hints.session, used_at=now)
        self._all[serial] = session
        if session.name:
            self._name(session)
        return session

    def _forget_oldest(self) -> None:
        """Also more than one, where a few have very many keys."""
        while len(self._all) >= SESSIONS_MAX or (self._keys > KEYS_MAX and self._all):
            oldest = next(iter(self._all.values()))
            idle = (session for session in self._all.values() if not session.requests and not session.pinned)
            session = next(idle, oldest)
            self._forgotten.append((session, self.drop(session)))

    def take_forgotten(self) -> list[tuple[Session, bytes]]:
        """Sessions that were dropped to make room, since the last call; and their keys that nobody has any more."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def drop(self, session: Session) -> bytes:
        """It is remembered no more. Returns its keys that nobody has any more."""
        if not self.remembers(session):  # it ended
            self._ended.remove(session)
            return b""
        del self._all[session.serial]
        self._numbers.append(session.number)
        self._keys -= session.blocks
        if session.name:
            self._unname(session)
        for request in session.requests:
            self._of_request.pop(request, None)
        return self._leave(session.keys)

    def remember_ended(self, session: Session) -> None:
        """It was dropped because it is over; it is shown for a while."""
        self._ended.append(session)

    def _name(self, session: Session) -> None:
        session.namesake = self._named.get(_full_name(session))
        self._named[_full_name(session)] = session

    def _unname(self, session: Session) -> None:
        newest = self._named[_full_name(session)]
        if newest is not session:
            while newest.namesake is not session:
                assert newest.namesake is not None
                newest = newest.namesake
            newest.namesake = session.namesake
        elif session.namesake is not None:
            self._named[_full_name(session)] = session.namesake
        else:
            del self._named[_full_name(session)]
        session.namesake = None

    def _use(self, session: Session, now: float) -> None:
        session.used_at = now
        self._all.move_to_end(session.serial)


def is_tenant(shown: str) -> bool:
    """Whether a tenant could be shown so."""
    return len(shown) == TENANT_DIGITS and set(shown) <= set("0123456789abcdef")


def common_keys(one: bytes, other: bytes) -> int:
    """How many keys both begin with."""
    n = min(len(one), len(other)) // KEY_BYTES
    return leading(np.frombuffer(one, _KEY, n) == np.frombuffer(other, _KEY, n)) if n else 0


def _full_name(session: Session) -> Hashable:
    return session.namespace, session.tenant, session.name


def _has(session: Session, key: bytes, position: int) -> bool:
    """Whether this is its key at that position, counted from 1; of no chain, anywhere."""
    if session.is_chain:
        return session.keys[(position - 1) * KEY_BYTES : position * KEY_BYTES] == key
    return key in names_of(session.keys)


def names_of(keys: bytes) -> dict[bytes, None]:
    """Each once, in their order."""
    return dict.fromkeys(keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES))
