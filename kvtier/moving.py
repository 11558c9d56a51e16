"""Conversations that move to another node: what goes along with their blocks. Pure.

A session there is what it was here: its name, its tenant, its keys, how often it was asked, what its client said last. Not
its category and what was learnt of it: the other node learns for itself.

What its client wants on no disk, or on no other machine, goes nowhere. A request with no_store left nothing that could.
"""

from typing import NamedTuple

from kvtier.session import Hints, Session, Sessions


class Carried(NamedTuple):
    """What goes along of one session."""

    name: str  # empty: nobody named it
    tenant: bytes
    namespace: int  # a number of whoever carries it
    keys: bytes  # packed, in prefix order; not of all of them there need be a block
    prompt_blocks: int  # of them, those of the last prompt
    turns: int
    tool: str  # that it waits for
    expect_return_s: float  # from now; 0: nobody said
    ttl_s: float  # that are left of it; 0: it has no end
    pin_s: float  # that it stays pinned; 0: it isn't

    @property
    def hints(self) -> Hints:
        """As if its client said them now."""
        ttl_s = self.pin_s or self.ttl_s  # with a pin: so long it lasts
        return Hints(self.name, self.tenant, self.tool, False, self.expect_return_s, ttl_s, pin=self.pin_s > 0)


class Moving:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def called(self, name: str, tenant: str) -> list[Session]:
        """Those that clients take for one, the newest last; `tenant` as it is shown, or empty for any."""
        return [session for session in self._sessions.named(name, tenant) if session.keys]

    def carried(self, session: Session, namespace: int, now: float) -> Carried:
        hints = session.hints
        idle_s = 0.0 if session.requests else max(0.0, now - session.used_at)
        return Carried(
            session.name,
            session.tenant,
            namespace,
            session.keys,
            session.prompt_blocks,
            session.turns,
            hints.tool,
            0.0 if session.expected_at is None else max(0.0, session.expected_at - now),
            max(1.0, hints.ttl_s - idle_s) if hints.ttl_s and not hints.pin else 0.0,
            max(0.0, session.pin_until - now) if session.pinned else 0.0,
        )

    def has(self, carried: Carried, namespace: int) -> Session | None:
        """The session that is here already and is as far, or has gone on since. `namespace`: its number here."""
        for session in self._sessions.named(carried.name) if carried.name else self._owners(carried):
            is_its = (session.namespace, session.tenant, session.name) == (namespace, carried.tenant, carried.name)
            if is_its and session.keys.startswith(carried.keys):
                return session
        return None

    def _owners(self, carried: Carried) -> list[Session]:
        last, known = self._sessions.lineage.known(carried.keys)
        owner = self._sessions.whose(last) if known else None
        return [] if owner is None else [owner]

    def begun(self, request: tuple[str, str], turns: int) -> str:
        """A session has arrived, by way of this request; `turns` it had before. How it is called here."""
        session = self._sessions.of_request(*request)
        assert session is not None
        session.turns = max(session.turns, turns)
        return session.shown_name
