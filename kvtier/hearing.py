"""What clients said of requests that are under way, and so whose these are. Pure."""

from dataclasses import replace

from kvtier.session import NOTHING, Hints, Sessions
from kvtier.tenants import TAG_SHOWN, Tenants, tag_of, tenant_of

SAID_MAX = 8192  # requests under way of which hints came


class Hearing:
    def __init__(self, sessions: Sessions, tenants: Tenants) -> None:
        self._sessions, self._tenants = sessions, tenants
        self._said: dict[tuple[str, str], Hints] = {}
        self._unsaid: dict[str, Hints] = {}  # engine -> what is so of requests of which nothing was said
        self._users: dict[str, str] = {}  # engine -> whose it is

    def joined(self, engine: str, user: str) -> None:
        """An engine of this user, as tenants.tenant_of has it."""
        self._users[engine] = user
        self._unsaid[engine] = Hints(tenant=tenant_of(user, b"")) if user else NOTHING

    def left(self, engine: str) -> None:
        self._users.pop(engine, None)
        self._unsaid.pop(engine, None)
        for name in [name for name in self._said if name[0] == engine]:
            del self._said[name]

    def hear(self, engine: str, request: str, hints: Hints) -> None:
        if len(self._said) >= SAID_MAX:
            del self._said[next(iter(self._said))]
        if user := self._users.get(engine, ""):
            hints = replace(hints, tenant=tenant_of(user, hints.tenant))
        self._said[engine, request] = hints

    def of(self, engine: str, request: str) -> Hints:
        return self._said.get((engine, request)) or self._unsaid.get(engine, NOTHING)

    def under_way(self, session: str, tenant: str) -> list[tuple[str, str]]:
        """Requests that were said to be of this session, or of any; of this tenant (as it is shown), or of any. Also those
        whose session is not known any more."""
        return [
            name
            for name, hints in self._said.items()
            if (not session or hints.session == session) and (not tenant or hints.tenant[:TAG_SHOWN].hex() == tenant)
        ]

    def forget(self, engine: str, request: str) -> None:
        """It is over."""
        self._said.pop((engine, request), None)

    def tenant(self, engine: str, request: str, now: float) -> int:
        """The number of the tenant whose request it is, who uses what is here now."""
        session = self._sessions.of_request(engine, request) if request else None
        number = self._tenants.number(tag_of((session or self.of(engine, request)).tenant))
        self._tenants.use(number, now)
        return number
