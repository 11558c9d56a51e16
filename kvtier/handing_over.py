"""From a store that is at its end to a Handover: all that the next kvtierd needs to go on with the arena.

    handed over   which block lies where, whose it is, in which order it would go; how the arena is cut; namespaces;
                  sessions, what they have, who waits and who is pinned; when sessions come back; what is to be written
                  below; what is to be overwritten; which slots former workers may still read or write
    lost          the GPU tier's copies; what is known of a remote; why blocks went (ghosts); budgets; counters

Engines are over for the store, as after a disconnect. But a worker that has not hung up may still copy: what is lent to its
engine, and what its leases hold, is named with it, and nobody may use that before it is gone (departing.py).

It reads the columns of those who own them, private ones too: none of them need know what a handover is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from kvtier.arena import slab_bytes_for
from kvtier.block import KEY_BYTES, SLOT_UNIT, BlockKey
from kvtier.demotion import Demotions
from kvtier.handover import Handover
from kvtier.policy import KEPT
from kvtier.ranking import Value
from kvtier.session import SESSIONS_MAX, Hints, Session
from kvtier.store import BlockStore

BELOW, STAYS, STAYS_HERE = 1, 2, 4  # bits of a block's flags: it is below; it is to go on no disk; to no other machine
USED_AGAIN, AWAY_AGAIN = 8, 16  # it was used again, as what writes it to the drives, or to the remote, counts it
FIRST, AGAIN, AWAY = 32, 64, 128  # it waits to be written: to the drives, there before others, to the remote
NOT_CARRIED = ("requests", "namesake", "number", "keys", "pinned", "hints", "tenant", "state", "is_guess")
PLAIN = tuple(one.name for one in fields(Session) if one.name not in NOT_CARRIED)  # of a session: JSON values
HINTS = tuple(one.name for one in fields(Hints) if one.name != "tenant")


@dataclass(frozen=True)
class Worker:
    """A process that may still copy."""

    pid: int  # 0: it is of another PID namespace
    started: int  # when, as the kernel counts; 0: unknown
    uid: int


def handover_of(
    store: BlockStore, lingering: Mapping[str, Sequence[Worker]], root: bytes, generation: int, now: float
) -> Handover:
    """The store is of no more use. `lingering`: by engine, its workers that have not hung up; `generation`: the last that
    anybody had."""
    store.ram.now = max(now, store.ram.now)
    leftovers = []
    for engine in list(store.lending.engines):
        if lingering.get(engine):
            leftovers.append(_left(store, engine, lingering[engine], now))
        elif store.lending.engines[engine].is_guest:
            store.lending.leave(engine)
        else:
            store.leave(engine, now)
    ram = store.ram
    held = {slot for left in leftovers for slot in (*left["lent"], *left["leased"])}
    users, residue = ram.residue.carry()
    found = Handover()
    found.facts = {
        **shape_of(ram.slots.capacity),
        "root": root.hex(),
        "generation": generation,
        "namespaces": [
            [digest.hex(), one.number, one.epoch, ram.residue.whose(one.number)] for digest, one in store.namespaces.items()
        ],
        "leftovers": leftovers,
        "wipe": sorted(ram._unwiped - held),
        "secret": sorted(ram._unwiped & held),
        "awaits": [[slot, key.hex()] for slot, key in ram._awaits.items()],
        "users": users,
        **_ranked(store),
    }
    found.columns = {"slab_sizes": ram.slots.size_of_slab, "residue": np.frombuffer(residue, "<i2")}
    found.columns |= _blocks(store) | _sessions(store, found.facts) | _returns(store, found.facts)
    return found


def shape_of(capacity: int) -> dict[str, object]:
    """What must be equal in both: how an arena of so many bytes is cut."""
    return {"slot_unit": SLOT_UNIT, "capacity": capacity, "slab_bytes": slab_bytes_for(capacity)}


# --- engines of which workers may still copy -------------------------------------------------------------------------


def _left(store: BlockStore, name: str, workers: Sequence[Worker], now: float) -> dict[str, Any]:
    """Its requests are over; what it holds is its own."""
    mine = store.lending.engines[name]
    store.leaving(name, now)
    store.retention.hide(name, mine.lent)
    store.retention.left(name, now)
    leased = {slot for slots in store.leases.of(name).values() for slot in slots.tolist()}
    return {
        "engine": name,
        "namespace": mine.namespace,
        "kind": list(mine.kind),
        "user": mine.user,
        "block_bytes": mine.block_bytes,
        "lent": sorted(mine.lent),
        "leased": sorted(leased),  # blocks, or what was dropped meanwhile; others may lease the same
        "workers": [[worker.pid, worker.started, worker.uid] for worker in workers],
    }


# --- blocks ----------------------------------------------------------------------------------------------------------


def _blocks(store: BlockStore) -> dict[str, np.ndarray]:
    """Columns with a row for each block."""
    ram, policy, pins = store.ram, store.ram.policy, store.retention.pins
    slots = ram.index.all()
    queues = policy._queue[slots].copy()
    kept = queues == KEPT  # pins are handed over with their sessions: here, where it stands without
    queues[kept] = pins.stood[slots[kept]]
    flags = ram.is_below[slots] * BELOW + ram.stays[slots] * STAYS + ram.stays_here[slots] * STAYS_HERE
    flags = flags.astype(np.uint8)
    for tier, bits in ((store.lower, (USED_AGAIN, FIRST, AGAIN)), (store.away, (AWAY_AGAIN, 0, AWAY))):
        if tier is not None:
            flags |= _candidates(tier.demotions, slots, ram.slots.units, *bits)
    return {
        "keys": np.frombuffer(ram.index.keys(slots), f"V{KEY_BYTES}"),
        "slots": slots.astype("<u4"),
        "namespaces": ram.index.namespaces(slots).astype("<i4"),
        "parents": policy._parent[slots].astype("<i4"),
        "stamps": policy._stamp[slots].astype("<i8"),
        "orders": policy._order[slots].astype("<f8"),
        "used_at": policy._used_at[slots].astype("<f8"),
        "queues": queues.astype("<i2"),
        "flags": flags,
        "session_tags": ram.origin[slots, 0].astype("<u8"),
        "tenant_tags": ram.origin[slots, 1].astype("<u8"),
    }


def _candidates(demotions: Demotions, slots: np.ndarray, units: int, used: int, first: int, again: int) -> np.ndarray:
    """uint8[n]: which of these bits each block has. What was being written counts as waiting."""
    bits = np.zeros(units, np.uint8)
    bits[demotions._used_again] |= used
    again_now = [key for key, order in demotions._writing.items() if demotions._used_again[order.slot] or not first]
    first_now = [key for key in demotions._writing if key not in set(again_now)]
    refused = [demote.key for demote in demotions.refused]
    for keys, bit in (((*first_now, *demotions._first), first), ((*again_now, *demotions._again, *refused), again)):
        bits[_here(demotions, keys)] |= bit
    return bits[slots]


def _here(demotions: Demotions, keys: Sequence[BlockKey]) -> np.ndarray:
    slots = demotions._ram.index.find(b"".join(keys))
    return slots[slots < demotions._ram.slots.units].astype(np.intp)


def _ranked(store: BlockStore) -> dict[str, Any]:
    """What the queues mean, where they are those of Value."""
    ranking = store.ram.policy.ranking
    if not isinstance(ranking, Value):
        return {"queues": [], "weights": []}
    return {
        "queues": [[one.kind, one.namespace, one.is_below] for one in ranking._queues],
        "weights": [[*name, seconds] for name, seconds in ranking._weights.items()],
    }


# --- sessions --------------------------------------------------------------------------------------------------------


def _sessions(store: BlockStore, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """The least recently used first. What they have, pins included, in one column."""
    returns = store.retention.returns
    sessions = list(store.retention._sessions)
    facts["sessions"] = [
        {
            **{name: getattr(session, name) for name in PLAIN},
            "tenant": session.tenant.hex(),
            "state": str(session.state),
            "hints": [getattr(session.hints, name) for name in HINTS],
            "blocks": session.blocks,
            "away": returns.away(session.number),
            "trunk_away": returns.away(SESSIONS_MAX + session.number),
        }
        for session in sessions
    ]
    facts["tenants"] = sorted(tenant.hex() for tenant in store.retention._categories._tenants)
    facts["tools"] = sorted(store.retention._categories._tools)
    return {"session_keys": np.frombuffer(b"".join(session.keys for session in sessions), f"V{KEY_BYTES}")}


def _returns(store: BlockStore, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """What was learnt of when sessions come back."""
    returns = store.retention.returns
    facts["categories"] = returns.names
    facts["own_hazards"] = list(returns._own)
    own = np.concatenate([np.empty(0), *returns._own.values()])
    facts["learnt_at"] = returns._learnt_at
    return {"returned": returns._returned.ravel(), "gone": returns._lost.ravel(), "own_hazards": own}
