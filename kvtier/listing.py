"""Sessions as people and programs see them: rows of JSON values. Pure.

Sorted are those that were used last, LOOKED_AT_MAX of them, so that a look delays no engine: what a session has in which
tier costs a look at each of its blocks. What the remote has is what is known to be there: of sessions with very many blocks
every so many are looked at, and it is the same share of all.
"""

from collections.abc import Callable, Sequence

import numpy as np

from kvtier.away import Away
from kvtier.block import ABSENT, unpack_keys
from kvtier.lower import Lower
from kvtier.pins import Pins
from kvtier.ram import Ram
from kvtier.returns import Returns
from kvtier.session import Session, State

LIMIT_MAX = 1000
LOOKED_AT_MAX = 1000
KNOWN_MAX = 20_000  # blocks of all rows together that are looked for in what is known of the remote; some 10 ms
SORTS = ("idle", "tokens", "bytes", "return", "turns", "name")

Row = dict[str, object]


class Listing:
    def __init__(self, ram: Ram, returns: Returns, pins: Pins) -> None:
        self.lower: Lower | None = None
        self.away: Away | None = None
        self.models: dict[int, str] = {}  # namespace -> 12 digits
        self._ram, self._returns, self._pins = ram, returns, pins

    def rows(self, sessions: Sequence[Session], now: float, sort: str, limit: int) -> list[Row]:
        """At most `limit` of them, and never more than LIMIT_MAX; `sessions`: the newest first. An unknown `sort` is
        "idle"."""
        limit, sessions = min(max(0, limit), LIMIT_MAX), sessions[:LOOKED_AT_MAX]
        if sort == "bytes":
            found = [self.row(session, now, KNOWN_MAX // max(1, len(sessions))) for session in sessions]
            return sorted(found, key=lambda row: -sum(row["bytes"].values()))[:limit]  # type: ignore[attr-defined]
        orders: dict[str, Callable[[Session], object]] = {
            "tokens": lambda s: -s.blocks * s.block_tokens,
            "return": lambda s: self._return_at(s, now),
            "turns": lambda s: -s.turns,
            "name": lambda s: s.shown_name,
        }
        order = orders.get(sort, lambda s: (not s.requests, -s.used_at))
        shown = sorted(sessions, key=order)[:limit]  # type: ignore[arg-type]
        return [self.row(session, now, KNOWN_MAX // len(shown)) for session in shown]

    def row(self, session: Session, now: float, known_max: int) -> Row:
        slots = self._ram.index.find(session.keys)
        places = np.full(len(slots), ABSENT) if self.lower is None else self.lower.extents.find(session.keys)
        is_absent = (slots == ABSENT) & (places == ABSENT)
        blocks = {"cpu": int((slots != ABSENT).sum()), "nvme": int((places != ABSENT).sum())}
        gone = int(is_absent.sum())
        if self.away is not None:
            blocks["remote"], only_there = self._known(self.away, session, is_absent, now, known_max)
            gone -= only_there
        idle_s = 0.0 if session.requests else now - session.used_at
        is_away = session.state not in (State.ACTIVE, State.ENDED)
        return_at = self._return_at(session, now)
        ttl_s = session.hints.ttl_s
        return {
            "session": session.shown_name,
            "tenant": session.shown_tenant,
            "model": self.models.get(session.namespace, ""),
            "state": str(session.state),
            "idle_s": round(idle_s, 3),
            "turns": session.turns,
            "tokens": session.blocks * session.block_tokens,
            "bytes": {tier: n * session.slot_bytes for tier, n in blocks.items()},
            "blocks": blocks | {"gone": gone},
            "expected_return_s": None if return_at == float("inf") else round(return_at - now, 3),
            "return_chance": round(self._returns.chance(session.category, idle_s), 3)
            if is_away
            else float(session.state == State.ACTIVE),
            "pinned": bool(session.pinned),
            "pin_left_s": round(max(0.0, session.pin_until - now), 3) if session.pinned else 0.0,
            "ttl_left_s": round(max(0.0, ttl_s - idle_s), 3) if ttl_s else None,
            "no_disk": session.no_disk,
            "tool": session.hints.tool,
            "category": str(self._returns.names[session.category]),
        }

    @staticmethod
    def _known(away: Away, session: Session, is_absent: np.ndarray, now: float, at_most: int) -> tuple[int, int]:
        """How many of its blocks the remote has, and how many only the remote."""
        keys = unpack_keys(session.keys)
        step = max(1, -(-len(keys) // max(1, at_most)))
        is_there = np.array(away.known.which(keys[::step], now), bool)
        share = len(keys) / max(1, len(is_there))
        return round(is_there.sum() * share), round((is_there & is_absent[::step]).sum() * share)

    def _return_at(self, session: Session, now: float) -> float:
        """When it is expected; infinite where it isn't."""
        if session.expected_at is not None:
            return session.expected_at
        if session.requests or session.state == State.ENDED:
            return float("inf")
        after = self._returns.after(session.category, now - session.used_at)
        return float("inf") if after is None else now + after
