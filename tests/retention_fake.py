"""A Retention that remembers what it was told: for tests of what stands before it."""

from types import SimpleNamespace
from typing import Any


def row(session: str = "chat", **other: Any) -> dict[str, Any]:
    """A session as retention lists it."""
    return {
        "session": session, "tenant": "", "model": "0123456789ab", "state": "idle", "idle_s": 75.0, "turns": 3,
        "tokens": 12_345, "bytes": {"cpu": 3 * 1024**2, "nvme": 1024**2}, "blocks": {"cpu": 3, "nvme": 1, "gone": 2},
        "expected_return_s": 90.0, "return_chance": 0.625, "pinned": False, "pin_left_s": 0.0, "ttl_left_s": None,
        "no_disk": False, "tool": "", "category": "turn 3", **other,
    }  # fmt: skip


class FakeRetention:
    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)
        self.told: list[tuple] = []
        self.pins = SimpleNamespace(share=0.25, usual_s=3600.0)
        self.is_slow = False  # forgetting takes until `finish`
        self._tickets: list[int] = []
        self._through: list[tuple[int, dict[str, Any]]] = []

    def _named(self, name: str, tenant: str) -> list[dict[str, Any]]:
        return [r for r in self.rows if name in ("", r["session"]) and tenant in ("", r["tenant"])]

    def knows(self, name: str, tenant: str) -> bool:
        return bool(self._named(name, tenant))

    def sessions(
        self, now: float, sort: str = "idle", limit: int = 100, name: str = "", tenant: str = ""
    ) -> list[dict[str, Any]]:
        self.told.append(("sessions", sort, limit))
        return self._named(name, tenant)[:limit]

    def snapshot(self, now: float) -> dict[str, Any]:
        return {"sessions": {"idle": len(self.rows)}, "pinned_bytes": 0, "pin_quota_bytes": 0, "categories": []}

    def warm(self, name: str, now: float, tenant: str = "") -> int:
        self.told.append(("warm", name, tenant))
        return 1

    def park(self, name: str, now: float, tenant: str = "") -> int:
        self.told.append(("park", name, tenant))
        return 3

    def pin(self, name: str, seconds: float, now: float, tenant: str = "") -> int:
        self.told.append(("pin", name, seconds))
        return 3

    def end(self, name: str, now: float, tenant: str = "") -> int:
        self.told.append(("end", name, tenant))
        return len(self._named(name, tenant))

    def forget(self, name: str, tenant: str, now: float) -> int:
        found = self._named(name, tenant)
        self.rows = [r for r in self.rows if r not in found]
        blocks = {tier: sum(r["blocks"][tier] for r in found) for tier in ("cpu", "nvme")}
        zeroed = {tier: sum(r["bytes"][tier] for r in found) for tier in ("cpu", "nvme")}
        proof = {"sessions": len(found), "blocks": blocks, "bytes_zeroed": zeroed, "shared_blocks_kept": 0}
        self._tickets.append(len(self._tickets))
        self._through.append((self._tickets[-1], proof))
        return self._tickets[-1]

    def forgotten(self) -> list[tuple[int, dict[str, Any]]]:
        if self.is_slow:
            return []
        through, self._through = self._through, []
        return through
