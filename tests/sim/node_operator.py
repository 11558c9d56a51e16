"""Who operates a node of several: says of sessions what they are to do, flushes, drains, and looks what comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.block import BlockKey, unpack_keys

from .engine_model import BUSY_UNTIL
from .operator_model import EVERY_S

if TYPE_CHECKING:
    from .node import Node

VERBS = ("warm", "warm", "park", "park", "pin", "end", "forget")
FLUSHES, DRAINS = 0.1, 0.4  # of what is said


class NodeOperator:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.forgetting: dict[int, tuple[float, set[BlockKey]]] = {}  # ticket -> when, and keys that nobody else had
        self.flushing: dict[str, set[int]] = {"drives": set(), "remote": set()}
        self.forgotten: list[tuple[float, set[BlockKey]]] = []  # in this life of the daemon
        self._flushes = 0
        self._later()

    @property
    def waits(self) -> bool:
        return bool(self.forgetting) or any(self.flushing.values())

    def daemon_died(self) -> None:
        self.forgetting.clear()
        self.forgotten.clear()
        self.flushing = {"drives": set(), "remote": set()}

    def look(self) -> None:
        """After each event: what is over is true."""
        node = self.node
        for flush, _ in node.store.flushed():
            self.flushing["drives"].remove(flush)
        flushes = self.flushing["remote"]
        flushes -= {flush for flush in flushes if node.store.away.flushed(flush) is not None}
        for ticket, _ in node.store.retention.forgotten():
            at, keys = self.forgetting.pop(ticket)
            left = self._left(at, keys)
            self.forgotten.append((at, keys))
            assert not left, f"{left} were forgotten by wish on {node.name}, and the remote has them"

    def nothing_came_late(self) -> None:
        """Of what was forgotten nothing is there at the end either; but what others wrote, or this node anew."""
        left = [key for at, keys in self.forgotten for key in self._left(at, keys)]
        assert not left, f"{left} came late, were forgotten by wish on {self.node.name}, and the remote has them"

    def _left(self, at: float, keys: set[BlockKey]) -> list[str]:
        node = self.node
        theirs = [(key, value) for (_, key), value in node.world.far.values.items() if key in keys]
        return [key.hex() for key, it in theirs if (it.by is node.remote and it.begun_at < at) or it.written_at < at]

    def forget_owner_soon(self, key: BlockKey) -> None:
        """Somebody wants forgotten just what is being read or written."""
        node = self.node
        owner = node.store.retention._sessions.whose(key)
        if owner is not None:
            life, name = node.life, owner.shown_name

            def forget() -> None:
                if life == node.life:
                    self._forget(name, "")

            node.after(node.delay(0.005), f"{node.name}'s operator forgets {name}", forget)

    # --- how ---------------------------------------------------------------------------------------------------

    def _later(self) -> None:
        self.node.after(self.node.delay(EVERY_S), f"{self.node.name}'s operator", self._say)

    def _say(self) -> None:
        node = self.node
        if node.now > BUSY_UNTIL:
            return
        self._later()
        node.is_called = True
        luck, retention = node.random.random(), node.store.retention
        if luck < FLUSHES:
            return self._flush()
        if luck < FLUSHES + DRAINS:
            return retention.draining.begin(node.now)
        sessions = retention._sessions.newest_first()
        if not sessions:
            return
        session, verb = node.random.choice(sessions), node.random.choice(VERBS)
        name, tenant = session.shown_name, session.shown_tenant
        node.world.log.append(f"{node.now:9.4f}   {verb} {name} of {tenant!r}")
        if verb == "forget":
            self._forget(name, tenant)
        elif verb == "pin":
            retention.pin(name, 1.0, node.now, tenant)
        else:
            getattr(retention, verb)(name, node.now, tenant)

    def _flush(self) -> None:
        node = self.node
        self._flushes += 1
        self.flushing["remote"].add(self._flushes)
        node.store.away.flush(self._flushes)
        if node.tier is not None:
            self.flushing["drives"].add(self._flushes)
            node.store.flush(self._flushes)

    def _forget(self, name: str, tenant: str) -> None:
        """What nobody else has is to be gone from the remote, too; if this node knew that it was this session's."""
        node = self.node
        node.is_called = True
        sessions = node.store.retention._sessions
        alone = {key for session in sessions.named(name, tenant) for key in unpack_keys(sessions.alone(session))}
        self.forgetting[node.store.retention.forget(name, tenant, node.now)] = node.now, alone
