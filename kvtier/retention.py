"""What sessions mean for their blocks: which queue they stand in, which are kept, written below, fetched ahead, forgotten.
Pure.

    a request comes     its session is found (session.py); its blocks are active
    it saves            so are those
    it is over          if it was the session's last: its blocks go to the queue of what the session is expected to do,
                        those that it went on without to the queue of what is ended
    time passes         an announced return comes near: fetch ahead (expecting.py). It is overdue: it was wrong
    it is back          the gap is learnt from (returns.py)
"""

from collections.abc import Iterable

import numpy as np

from kvtier.away import Away
from kvtier.block import BlockKey, Kind
from kvtier.categories import Categories
from kvtier.demotion import Demotions
from kvtier.draining import Draining
from kvtier.expecting import Expecting
from kvtier.following import Following
from kvtier.forgetting import Forgetting, origin_of
from kvtier.hearing import Hearing
from kvtier.index import Table
from kvtier.listing import Listing, Row
from kvtier.lower import Lower
from kvtier.mirror import Mirror
from kvtier.moving import Moving
from kvtier.pins import Pins
from kvtier.ram import Ram
from kvtier.ranking import ACTIVE, PARKED, Value
from kvtier.returns import OTHERS, Returns
from kvtier.session import Hints, Session, Sessions, State, names_of
from kvtier.standing import Pair, Standing

LEARN_S = 5.0  # between looks at what was seen
COUNTED_MAX = 2000  # sessions; the states of more are not counted anew each time that somebody looks
WARM_S = 60.0  # so long what was warmed waits for its session
LEAD_FACTOR, LEAD_S = 2.0, 0.1  # how long before an announced return it is fetched: times what it takes, and more


class Retention:
    def __init__(self, ram: Ram, returns: Returns, value: Value | None, table: Table | None = None) -> None:
        """`value`: the ranking, if it is the one that looks at sessions. `table`: of keys of sessions."""
        self.returns = returns
        self.pins = Pins(ram)
        self._sessions = Sessions(table)
        self._lower: Lower | None = None
        self._away: Away | None = None
        self._demotions: list[Demotions] = []  # to each tier below
        self._expecting = Expecting()
        self._forgetting = Forgetting(ram, self._sessions)
        self._listing = Listing(ram, returns, self.pins)
        self.draining = Draining(ram, self._sessions)
        self.moving = Moving(self._sessions)
        self._ram = ram
        self.hearing = Hearing(self._sessions, ram.tenants)
        self._forgetting.under_way = self.hearing.under_way
        self._categories = Categories(returns)
        self._following = Following(returns, self._categories, self._expecting)
        self._standing = Standing(ram, self._sessions, self._categories, self.pins, value)
        self.of_arrival = self._standing.of_arrival
        self.weigh, self.keeps_here = self._standing.weigh, self._standing.is_to_stay
        ram.is_to_stay = self.keeps_here
        self._learnt_at = float("-inf")
        self._states = self._sessions.states()

    def attach(self, lower: Lower) -> None:
        """A tier below."""
        self._lower = self._forgetting.lower = self._listing.lower = self.draining.lower = lower
        lower.demotions.is_over = self._standing.is_over
        self._demotions.append(lower.demotions)

    def attach_remote(self, away: Away) -> None:
        """A remote below that."""
        self._away = self._forgetting.away = self._listing.away = self.draining.away = away
        away.demotions.is_over, away.is_off_disk = self._standing.is_over, self._standing.is_off_disk
        self._demotions.append(away.demotions)

    def attach_gpu(self, mirror: Mirror) -> None:
        """Copies of what lies in RAM."""
        self._forgetting.mirror = mirror

    def names(self, namespace: int, model: str) -> None:
        """What a namespace is shown as."""
        self._listing.models[namespace] = model

    # --- events --------------------------------------------------------------------------------------------------

    def asked(self, engine: str, request: str, keys: bytes, namespace: int, kind: Kind, now: float) -> Pair | None:
        """A request asks for these. The queues where its blocks stand until it is over; None: of one that is not to be
        known."""
        hints = self.hearing.of(engine, request)
        if hints.no_store:
            return None  # they stay where they stand
        if self._sessions.of_request(engine, request) is None and not self._forgetting.is_barred(engine, request):
            begun = self._sessions.begin((engine, request), keys, namespace, kind, hints, now)
            session, parted = begun.session, begun.parted_from
            if hints.no_disk or hints.no_remote:  # also what it saved before and is not written yet
                self._standing.keep_back(self._standing.here(self._sessions.alone(session)), hints)
            if begun.came_back:
                self._following.came(session, now)
            if parted is not None and session.tail_at <= self._standing.common_blocks(keys):
                session.is_branch = False  # they have no more in common than all have
            elif parted is not None:
                if session.tail_at > parted.tail_at:  # it uses something of what that one added last
                    self._following.used(parted, now)
                    if (parted.name, parted.tenant) == (session.name, session.tenant):  # else clients know: they are two
                        self._leave(parted, session.tail_at)
                    parted.tail_at = session.tail_at  # who parts from it at the same place uses nothing of what is left
                self._following.parted(session, parted, self._sessions.by_serial(parted.last_branch), now)
                parted.last_branch = session.serial
            self._standing.retire(begun.superseded)
            self._room_was_made(now)
        return self._standing.pair(ACTIVE, namespace)

    def is_barred(self, engine: str, request: str, slots: list[int]) -> bool:
        """It has filled these slots. Whether it was forgotten: then they are wiped as they come back."""
        if not self._forgetting.is_barred(engine, request):
            return False
        self._forgetting.saved(engine, request, slots)
        return True

    def saved(self, engine: str, request: str, keys: list[BlockKey], slots: np.ndarray) -> None:
        """These are blocks now."""
        session = self._sessions.of_request(engine, request)
        if session is not None:
            self._sessions.saved((engine, request), b"".join(keys))
            self._mark(session, slots)
        self._standing.keep_back(slots, session or self.hearing.of(engine, request))

    def _mark(self, session: Session, slots: np.ndarray) -> None:
        """It was the first to save what of these has no mark yet."""
        new = slots[~self._ram.origin[slots].any(axis=1)]
        self._ram.own(new, origin_of(session))

    def saving(self, engine: str, request: str, keys: bytes, namespace: int, kind: Kind, now: float) -> Pair:
        """The queues where its blocks stand while it is under way. One that saves has a session, also if it never asked."""
        if not request:
            return self.others(namespace)
        is_new = self._sessions.of_request(engine, request) is None
        queues = self.asked(engine, request, keys, namespace, kind, now) or self.others(namespace)
        session = self._sessions.of_request(engine, request)
        if is_new and session is not None:
            session.is_guess = True
        return queues

    def others(self, namespace: int) -> Pair:
        """The queues of blocks that no session is known to have."""
        return self._standing.pair(OTHERS, namespace)

    def hide(self, engine: str, slots: Iterable[int]) -> None:
        """They come back from it, and nobody says what they hold: perhaps something that is to be forgotten."""
        self._forgetting.hide(engine, slots)

    def over(self, engine: str, request: str, keys: bytes, namespace: int, kind: Kind, now: float) -> np.ndarray:
        """A request is over; `keys` of all its blocks. The slots of those that are here."""
        if self._forgetting.over(engine, request):
            self.hearing.forget(engine, request)
            return self._standing.here(keys)
        session = self._sessions.of_request(engine, request)
        saved = b"" if session is None else b"".join(session.requests[engine, request])
        if request and keys and session is None:  # it never asked
            self.asked(engine, request, keys, namespace, kind, now)
        self.hearing.forget(engine, request)
        found = self._sessions.over((engine, request), keys, now)
        here = self._standing.here(keys)
        if found is None:
            self._ram.use(here, None)
        else:
            session, superseded = found
            self._mark(session, here)
            here = self._standing.here(keys)  # its tenant may have lost some by that
            self._standing.retire(superseded)
            if session.requests:
                self._ram.use(here, self._standing.pair(ACTIVE, session.namespace))
            else:
                self._settle(session, now)
            self._standing.retire(self._sessions.nobodys(keys + saved))
        for demotions in self._demotions:
            demotions.request_ended(here)
        return here

    def left(self, engine: str, now: float) -> None:
        """It is gone: its requests are over, and nobody says what they had."""
        self.hearing.left(engine)
        self._forgetting.left(engine)
        for request, session in self._sessions.of_engine(engine):
            saved = b"".join(session.requests[engine, request])
            has = names_of(session.keys)
            fresh = b"".join(key for key in names_of(saved) if key not in has)
            kind = Kind(session.slot_bytes, session.block_tokens, session.is_chain)
            self.over(engine, request, session.keys + fresh, session.namespace, kind, now)

    def reset(self, namespace: int) -> None:
        """Its keys mean nothing any more, and so do its sessions."""
        for session in self._sessions:
            if session.namespace == namespace:
                self._unpin(session)
                self._following.ended(session)
                self._sessions.drop(session)

    @property
    def due_at(self) -> float:
        """When a tick is to come at the latest, for sessions that were announced."""
        return self._expecting.due_at

    def tick(self, now: float) -> None:
        """Time has passed."""
        if not 0 <= now - self._learnt_at < LEARN_S:
            self.returns.learn(now)
            self._learnt_at = now
            self._expecting.sweep(self._sessions.remembers, len(self._sessions))
            self._states = self._sessions.states()
        for session in self.pins.expired(now):
            self._unpin(session)
        for what, session in self._expecting.due(now, self._sessions.remembers):
            if what == "near":
                self._fetch_ahead(session, now)
            elif what == "overdue":
                session.state, session.expected_at = State.IDLE, None
                self._standing.line_up(session, now, used=False)
            else:
                self._expire(session)
        self.draining.step(now)
        if self._ram.tenants.is_limited:
            self._ram.shed()

    # --- what is wished ------------------------------------------------------------------------------------------

    def knows(self, name: str, tenant: str = "") -> bool:
        return bool(self._sessions.named(name, tenant)) or self._forgetting.finds_below(name, tenant)

    def warm(self, name: str, now: float, tenant: str = "") -> int:
        """Fetch its blocks into RAM. How many are on their way."""
        fetched = 0
        for session in self._sessions.named(name, tenant):
            if not session.requests:
                session.state = State.WAITING
                if session.expected_at is None:
                    self._expecting.soon(session, now, WARM_S)
                self._standing.expect(session)
                fetched += self._fetch(session, float("inf"))
        return fetched

    def park(self, name: str, now: float, tenant: str = "") -> int:
        """Its blocks may leave RAM; they are written below first, where there is a below. How many."""
        parked = 0
        for session in self._sessions.named(name, tenant):
            if session.requests or session.pinned:
                continue
            session.state, session.expected_at = State.PARKED, None
            slots = self._standing.move(self._sessions.alone(session), PARKED, session.namespace)
            for demotions in self._demotions:
                demotions.hurry(slots)
            parked += len(slots)
        return parked

    def pin(self, name: str, seconds: float, now: float, tenant: str = "") -> int:
        """Keep its blocks in RAM for so long, within the quota of all pins; 0: no more. How many blocks that is."""
        blocks = 0
        for session in self._sessions.named(name, tenant):
            if seconds:
                blocks += self._pin(session, now + seconds)
            else:
                blocks += self._unpin(session)
        return blocks

    def end(self, name: str, now: float, tenant: str = "") -> int:
        """It won't come back. How many sessions ended."""
        ended = self._sessions.named(name, tenant)
        for session in ended:
            self._end(session)
        return len(ended)

    def forget(self, name: str, tenant: str, now: float) -> int:
        """Remove it, or all of a tenant, from every tier. A ticket: `forgotten` says when nothing is left."""
        active: list[BlockKey] = []
        for session in self._sessions.named(name, tenant):
            self._unpin(session)
            self._following.ended(session)
            active += names_of(session.keys) if session.requests else ()
        ticket = self._forgetting.forget(name, tenant)
        self._standing.settle(active)
        return ticket

    def forgotten(self) -> list[tuple[int, dict[str, object]]]:
        """Tickets that are through since the last call, and the proof."""
        return self._forgetting.through()

    def sessions(self, now: float, sort: str = "idle", limit: int = 100, name: str = "", tenant: str = "") -> list[Row]:
        """As JSON values; also those that ended lately."""
        chosen = self._sessions.named(name, tenant, ended=True) if name or tenant else self._sessions.newest_first()
        return self._listing.rows(chosen, now, sort, limit)

    def snapshot(self, now: float) -> dict[str, object]:
        """As JSON values, for observers. Of very many sessions, states are those of the last LEARN_S."""
        return {
            "sessions": self._states if len(self._sessions) > COUNTED_MAX else self._sessions.states(),
            "pinned_bytes": self.pins.bytes,
            "pin_quota_bytes": self.pins.bytes_max,
            "categories": self.returns.snapshot(),
        }

    # --- how: a session is idle ----------------------------------------------------------------------------------

    def _settle(self, session: Session, now: float) -> None:
        """Its last request is over."""
        hints = session.hints
        self._standing.line_up(session, now, used=True)
        if session.blocks > self._standing.common_blocks(session.keys):  # else it has nothing of its own to come back to
            self._following.went(session, now)
        if hints.end:
            for namesake in self._sessions.namesakes(session):
                self._end(namesake)
            return
        if hints.pin or session.pin_until > now:
            lasts_s = hints.ttl_s if hints.pin and hints.ttl_s else self.pins.usual_s
            self._pin(session, max(session.pin_until, now + lasts_s if hints.pin else 0.0))
        if hints.ttl_s and not hints.pin:
            self._expecting.age(session, now + hints.ttl_s)
        if hints.tool or hints.expect_return_s:
            session.state = State.WAITING
            if self._away is not None:  # as good as used again
                self._away.demotions.used_again(self._standing.here(session.keys))
        if hints.expect_return_s:
            self._expecting.expect(session, now, self._lead_s(session))
            self._standing.expect(session)

    def _leave(self, session: Session, blocks: int) -> None:
        """Another session parted from it within what it added last."""
        if session.state in (State.IDLE, State.SUPERSEDED):
            session.state = State.SUPERSEDED
            self._standing.leave(session, blocks)
            self._following.went(session, session.used_at)

    # --- how: it is over -----------------------------------------------------------------------------------------

    def _end(self, session: Session) -> None:
        """It won't come back, and what it alone has goes first."""
        if session.requests:
            session.hints = Hints(end=True)  # when they are over
            return
        self._unpin(session)
        self._following.ended(session)
        session.state = State.ENDED
        self._standing.retire(self._sessions.drop(session))
        self._sessions.remember_ended(session)

    def _expire(self, session: Session) -> None:
        """Its time is up: what it alone has is dropped everywhere, but from the remote, where others may have it too."""
        alone = names_of(self._sessions.alone(session))
        self._end(session)
        if self._lower is not None:
            self._lower.drop(list(alone))
        self._ram.drop(self._standing.here(b"".join(alone)).tolist(), "its session's time to live was over")

    def _room_was_made(self, now: float) -> None:
        """Sessions were forgotten because there are too many; their blocks stay where they stand."""
        for session, _ in self._sessions.take_forgotten():
            self._following.lost(session, now)
            self._unpin(session)

    def _pin(self, session: Session, until: float) -> int:
        pinned, loose = self.pins.pin(session, until)
        self._standing.loosen(loose, session)
        return pinned

    def _unpin(self, session: Session) -> int:
        slots = self.pins.unpin(session)
        self._standing.loosen(slots, session)
        return len(slots)

    def _fetch_ahead(self, session: Session, now: float) -> None:
        """Its return is near: read what of it is only below, if that is worth more than what goes for it."""
        worth = self._standing.worth_when_expected(session, now)
        if not worth or self._lower is None:
            return
        self._fetch(session, worth)
        self._expecting.look_again(session, now)

    def _fetch(self, session: Session, worth: float) -> int:
        assert session.expected_at is not None
        return 0 if self._lower is None else self._lower.fetch(session.keys, session.is_chain, session.expected_at, worth)

    def _lead_s(self, session: Session) -> float:
        if self._lower is None:
            return 0.0
        return LEAD_S + LEAD_FACTOR * self._lower.link.seconds(session.blocks * session.slot_bytes)
