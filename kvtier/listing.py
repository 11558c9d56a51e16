"""Sessions as people and programs see them: rows of JSON values. Pure.

Sorted are those that were used last, LOOKED_AT_MAX of them, so that a look delays no engine: what a session has in which
tier costs a look at each of its blocks.
"""

from collections.abc import Callable, Sequence

import numpy as np

from kvtier.block import ABSENT
from kvtier.lower import Lower
from kvtier.pins import Pins
from kvtier.ram import Ram
from kvtier.returns import Returns
from kvtier.session import Session, State

LIMIT_MAX = 1000
LOOKED_AT_MAX = 1000
SORTS = ("idle", "tokens", "bytes", "return", "turns", "name")

Row = dict[str, object]


class Listing:
    def __init__(self, ram: Ram, returns: Returns, pins: Pins) -> None:
        self.lower: Lower | None = None
        self.models: dict[int, str] = {}  # namespace -> 12 digits
        self._ram, self._returns, self._pins = ram, returns, pins

    def rows(self, sessions: Sequence[Session], now: float, sort: str, limit: int) -> list[Row]:
        """At most `limit` of them, and never more than LIMIT_MAX; `sessions`: the newest first. An unknown `sort` is
        "idle"."""
        limit, sessions = min(max(0, limit), LIMIT_MAX), sessions[:LOOKED_AT_MAX]
        if sort == "bytes":
            found = [self.row(session, now) for session in sessions]
            return sorted(found, key=lambda row: -sum(row["bytes"].values()))[:limit]  # type: ignore[attr-defined]
        orders: dict[str, Callable[[Session], object]] = {
            "tokens": lambda s: -s.blocks * s.block_tokens,
            "return": lambda s: self._return_at(s, now),
            "turns": lambda s: -s.turns,
            "name": lambda s: s.shown_name,
        }
        order = orders.get(sort, lambda s: (not s.requests, -s.used_at))
        return [self.row(session, now) for session in sorted(sessions, key=order)[:limit]]  # type: ignore[arg-type]

    def row(self, session: Session, now: float) -> Row:
        slots = self._ram.index.find(session.keys)
        places = np.full(len(slots), ABSENT) if self.lower is None else self.lower.extents.find(session.keys)
        in_ram, below = int((slots != ABSENT).sum()), int((places != ABSENT).sum())
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
            "bytes": {"cpu": in_ram * session.slot_bytes, "nvme": below * session.slot_bytes},
            "blocks": {"cpu": in_ram, "nvme": below, "gone": int(((slots == ABSENT) & (places == ABSENT)).sum())},
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

    def _return_at(self, session: Session, now: float) -> float:
        """When it is expected; infinite where it isn't."""
        if session.expected_at is not None:
            return session.expected_at
        if session.requests or session.state == State.ENDED:
            return float("inf")
        after = self._returns.after(session.category, now - session.used_at)
        return float("inf") if after is None else now + after
