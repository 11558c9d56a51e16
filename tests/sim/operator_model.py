"""A simulated operator: says of sessions what they are to do, whatever is under way, and looks what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.block import BlockKey
from kvtier.transfer import Demote, Promote

from .engine_model import BUSY_UNTIL

if TYPE_CHECKING:
    from .simulation import Simulation

EVERY_S = 0.2
VERBS = ("warm", "park", "pin", "unpin", "end", "forget", "forget", "forget a tenant")


class OperatorModel:
    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.forgotten = 0  # tickets that were through
        self.open: dict[int, str] = {}
        self.is_here = sim.chance(0.7)
        if self.is_here:
            self._later()

    def daemon_died(self) -> None:
        self.open.clear()

    def look(self) -> None:
        """After each event."""
        sim = self.sim
        for ticket, proof in sim.store.retention.forgotten():
            del self.open[ticket]
            self.forgotten += 1
            sim.nothing_is_left_of(ticket, proof)

    def heard_of(self, order: Demote | Promote) -> None:
        """Now and then somebody wants forgotten just what is being read or written."""
        if self.is_here and self.sim.chance(0.15 if isinstance(order, Promote) else 0.02):
            self.sim.after(self.sim.delay(0.01), "the operator says something", lambda: self._forget_owner(order.key))

    def _forget_owner(self, key: BlockKey) -> None:
        owners = [session for session, mine in self.sim.expected.sessions.known.items() if key in mine.keys]
        for session in owners:
            self.sim.log.append(f"{self.sim.now:9.4f}   forget {session.shown_name}")
            self._forget(session.shown_name, "")

    def _later(self) -> None:
        self.sim.after(self.sim.delay(EVERY_S), "the operator says something", self._say)

    def _say(self) -> None:
        sim = self.sim
        if sim.now > BUSY_UNTIL:
            return
        self._later()
        rows = sim.store.retention.sessions(sim.now)
        if not rows:
            return
        row = sim.random.choice(rows)
        name, tenant = str(row["session"]), sim.random.choice(("", str(row["tenant"])))
        verb = sim.random.choice(VERBS)
        sim.log.append(f"{sim.now:9.4f}   {verb} {name} of tenant {tenant!r}")
        if verb == "forget a tenant" and row["tenant"]:
            self._forget("", str(row["tenant"]))
        elif verb == "forget":
            self._forget(name, tenant)
        else:
            sim.wish(verb, name, tenant)

    def _forget(self, name: str, tenant: str) -> None:
        self.open[self.sim.forget(name, tenant)] = name
