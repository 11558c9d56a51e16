"""From a Handover into a store that is new: it goes on where the former kvtierd's left off. As handing_over.py has it.

The tiers below are attached already, and they know best what lies there: a block is below if the drives' catalogue says
so, whatever the handover says. Namespaces are the same by their digests; numbers may differ.

No block is taken over without the one before it, unless that is on the drives; nor one of a namespace that was reset since.
Everything is looked at before the store is touched: what doesn't fit together is no handover, and the store begins with
nothing.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvtier.block import ABSENT, KEY_BYTES, SLOT_UNIT, Kind
from kvtier.demotion import Demotions
from kvtier.errors import HandoverError, ProtocolError
from kvtier.handing_over import (
    AGAIN,
    AWAY,
    AWAY_AGAIN,
    BELOW,
    FIRST,
    HINTS,
    PLAIN,
    STAYS,
    STAYS_HERE,
    USED_AGAIN,
    Worker,
    shape_of,
)
from kvtier.handover import Handover, required
from kvtier.leases import _Lease
from kvtier.lending import Engine
from kvtier.policy import NONE, QUEUES_MAX, Policy, _Queues
from kvtier.ranking import ENDED, Lru, Value
from kvtier.returns import OTHERS
from kvtier.session import SESSIONS_MAX, Hints, Session, State
from kvtier.store import BlockStore

BLOCK_COLUMNS = ("slots", "namespaces", "parents", "stamps", "orders", "used_at", "queues", "flags", "session_tags",
                 "tenant_tags")  # fmt: skip
LEASE = 0  # the number of a leftover engine's one lease: a client counts from 1
Column = np.ndarray


@dataclass
class Adopted:
    blocks: int = 0
    dropped: int = 0  # blocks that were of no use here
    sessions: int = 0
    leftovers: dict[str, list[Worker]] = field(default_factory=dict)  # engines of which these may still copy


def check(store: BlockStore, found: Handover) -> None:
    """HandoverError: it can't be gone on with in such a store. Nothing is changed, and no tier need be there."""
    facts, columns = found.facts, found.columns
    required(facts, shape_of(store.ram.slots.capacity))
    try:
        _look_at(store, facts, columns)
        _behind(np.zeros(len(columns["keys"]), bool), columns)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise HandoverError(f"something in it is odd: {type(error).__name__} {error}") from None


def adopt(store: BlockStore, found: Handover, now: float, is_same_root: bool = True) -> Adopted:
    """It was checked; the store has all its tiers, no engine and no block yet. Unless `is_same_root` no key in it means
    anything here: then nothing but what former workers may still read or write is taken over."""
    facts, columns = found.facts, found.columns
    store.ram.now = max(now, store.ram.now)
    store.ram.residue.restore(facts["users"], columns["residue"].astype(np.int16).tobytes())
    all_numbers = _namespaces(store, facts["namespaces"], is_same_root)
    numbers = {number: here for number, (here, is_known) in all_numbers.items() if is_known}
    lost = ~np.isin(columns["namespaces"], list(numbers)) | _orphans(store, facts, columns)
    rows = ~_behind(lost, columns)
    blocks = {name: columns[name][rows] for name in ("keys", *BLOCK_COLUMNS)}
    blocks["namespaces"] = np.array([numbers[number] for number in blocks["namespaces"].tolist()], np.int32)
    leftovers = facts["leftovers"]
    _slots(store, facts, columns, blocks)
    _blocks(store, facts, blocks, numbers)
    _candidates(store, blocks)
    adopted = Adopted(int(rows.sum()), int((~rows).sum()), _sessions(store, facts, columns, numbers, now))
    for left in leftovers:
        adopted.leftovers[left["engine"]] = _leftover(store, left, all_numbers[left["namespace"]][0], now)
    return adopted


# --- whether it fits together ----------------------------------------------------------------------------------------


def _look_at(store: BlockStore, facts: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
    """HandoverError, or whatever an odd value raises."""
    slots, units = store.ram.slots, store.ram.slots.units
    sizes, rows = columns["slab_sizes"], len(columns["keys"])
    if len(sizes) != slots.slabs or ((sizes < 0) | (sizes % SLOT_UNIT != 0) | (sizes > slots.slab_bytes)).any():
        raise HandoverError("its slabs are odd")
    if any(len(columns[name]) != rows for name in BLOCK_COLUMNS):
        raise HandoverError("its columns differ in length")
    owned = _owned(facts, columns["slots"])
    taken = _taken(facts, columns["slots"])
    if len(taken) and (taken.min() < 0 or taken.max() >= units or len(np.unique(owned)) != len(owned)):
        raise HandoverError("its slots are odd")
    if np.isin(_owned(facts, columns["slots"][:0]), _leased(facts)).any():
        raise HandoverError("its leases are odd")
    slab_units = slots.slab_units
    steps = (sizes // SLOT_UNIT)[taken // slab_units]
    inside = taken % slab_units
    if (steps == 0).any() or (inside % steps != 0).any() or (inside + steps > slab_units).any():
        raise HandoverError("its slots don't fit its slabs")
    held = np.zeros(units + 1, bool)
    held[columns["slots"]] = True
    parents = columns["parents"]
    if ((parents < NONE) | (parents >= units)).any() or not held[parents[parents != NONE]].all():
        raise HandoverError("its blocks stand behind what is not there")
    if rows and (columns["stamps"].min() < 1 or len(np.unique(columns["stamps"])) != rows):
        raise HandoverError("the order of its blocks is odd")
    if rows and not (0 < columns["queues"].min() <= columns["queues"].max() < QUEUES_MAX):
        raise HandoverError("its queues are odd")
    if not all(held[slot] and len(bytes.fromhex(key)) == KEY_BYTES for slot, key in facts["awaits"]):
        raise HandoverError("what its blocks wait for is odd")
    if len(facts["sessions"]) > SESSIONS_MAX or sum(s["blocks"] for s in facts["sessions"]) != len(columns["session_keys"]):
        raise HandoverError("its sessions are odd")
    known = {number for _, number, *_ in facts["namespaces"]}
    if len(columns["residue"]) not in (0, units) or not {left["namespace"] for left in facts["leftovers"]} <= known:
        raise HandoverError("its namespaces are odd")


def _owned(facts: Mapping[str, Any], blocks: Column) -> Column:
    """Slots that hold a block, are lent, or are to be wiped: each is one of these."""
    lent = [slot for left in facts["leftovers"] for slot in left["lent"]]
    return np.concatenate([blocks.astype(np.int64), np.array([*lent, *facts["wipe"]], np.int64)])


def _leased(facts: Mapping[str, Any]) -> Column:
    """Slots that former workers may still read, some of them more than once."""
    return np.array([slot for left in facts["leftovers"] for slot in left["leased"]], np.int64)


def _taken(facts: Mapping[str, Any], blocks: Column) -> Column:
    """Slots that are not free. What is leased and no block any more is pinned until nobody reads it."""
    return np.union1d(_owned(facts, blocks), _leased(facts))


def _orphans(store: BlockStore, facts: Mapping[str, Any], columns: Mapping[str, Column]) -> Column:
    """bool[n]: blocks of which the one before is neither here nor on the drives."""
    lost = np.zeros(len(columns["keys"]), bool)
    row_of = _rows_of(columns, store.ram.slots.units)
    for slot, key in facts["awaits"]:
        lost[row_of[slot]] = not store.ram.has_below(bytes.fromhex(key))
    return lost


def _rows_of(columns: Mapping[str, Column], units: int) -> Column:
    """By slot."""
    row_of = np.full(units, NONE, np.int64)
    row_of[columns["slots"]] = np.arange(len(columns["slots"]))
    return row_of


def _behind(lost: Column, columns: Mapping[str, Column]) -> Column:
    """bool[n]: these, and all blocks behind them. HandoverError: they stand in a ring."""
    if not len(lost):
        return lost
    parents = columns["parents"]
    row_of = _rows_of(columns, int(max(columns["slots"].max(), parents.max())) + 1)
    before = np.where(parents == NONE, NONE, row_of[parents])
    lost = lost.copy()
    for _ in range(len(lost).bit_length() + 1):  # each time twice as far
        far = before != NONE
        if not far.any():
            return lost
        lost[far] |= lost[before[far]]
        before[far] = before[before[far]]
    raise HandoverError("its blocks stand in a ring")


# --- how: namespaces, slots, blocks ----------------------------------------------------------------------------------


def _namespaces(
    store: BlockStore, said: list[tuple[str, int, int, str | None]], is_same_root: bool
) -> dict[int, tuple[int, bool]]:
    """By the number that each had: its number here, and whether its keys still mean something: it was not reset since."""
    numbers: dict[int, tuple[int, bool]] = {}
    for digest_hex, number, epoch, user in said:
        digest = bytes.fromhex(digest_hex)
        try:
            known = store.namespace(digest, user)
        except ProtocolError:  # the drives know of so many that there is no room for it
            numbers[number] = 0, False
            continue
        numbers[number] = known.number, is_same_root and known.epoch <= epoch
        if is_same_root and known.epoch < epoch:  # its reset did not reach the drives
            known.epoch = store.namespaces.epochs[known.number] = epoch
            if store.lower is not None:
                store.lower.remember(digest, known.number, epoch)
                store.lower.extents.drop_namespace(known.number)
        store.retention.names(known.number, digest_hex[:12])
        if user is not None:
            store.ram.residue.belongs(known.number, store.ram.residue.user(user))
    return numbers


def _slots(
    store: BlockStore,
    facts: Mapping[str, Any],
    columns: Mapping[str, Column],
    blocks: Mapping[str, Column],
) -> None:
    ram = store.ram
    ram.slots.restore(columns["slab_sizes"], _taken(facts, blocks["slots"]))
    for slot in facts["wipe"]:
        ram._unwiped.add(slot)
        ram.to_wipe.append((slot, ram.slots.size_of(slot)))
    for slot in facts["secret"]:  # lent, or leased
        ram.wipe_later(slot)


def _blocks(store: BlockStore, facts: Mapping[str, Any], blocks: Mapping[str, Column], numbers: Mapping[int, int]) -> None:
    ram, slots, flags = store.ram, blocks["slots"].astype(np.intp), blocks["flags"]
    keys = blocks["keys"].tobytes()
    ram.index.restore(keys, slots, blocks["namespaces"])
    if store.lower is not None:
        ram.is_below[slots] = store.lower.extents.find(keys) != ABSENT
    ram.stays[slots], ram.stays_here[slots] = flags & STAYS > 0, flags & STAYS_HERE > 0
    store.retention._standing._keeps_some = bool(ram.stays[slots].any() or ram.stays_here[slots].any())
    ram.origin[slots, 0], ram.origin[slots, 1] = blocks["session_tags"], blocks["tenant_tags"]
    sizes = ram.slots.size_of_slab[slots // ram.slots.slab_units]
    tags, of = np.unique(blocks["tenant_tags"], return_inverse=True)
    owners = np.array([ram.tenants.number(tag) for tag in tags.tolist()], np.int32)[of]
    ram.tenants._of[slots] = owners
    np.add.at(ram.tenants.bytes, owners, sizes)
    np.add.at(ram.tenants.blocks, owners, 1)
    queues = _queues(store, facts, blocks, numbers)
    _stand(ram.policy, slots, sizes // SLOT_UNIT, blocks, queues)
    for slot, key in facts["awaits"]:
        if ram.index.holds(slot):
            ram._awaits[slot] = bytes.fromhex(key)
            ram._awaited.setdefault(bytes.fromhex(key), []).append(slot)


def _queues(
    store: BlockStore, facts: Mapping[str, Any], blocks: Mapping[str, Column], numbers: Mapping[int, int]
) -> Column:
    """int16[n]: where each stands here. A ranking of another name begins to learn from the order alone."""
    ram, ranking, said = store.ram, store.ram.policy.ranking, facts["queues"]
    queues = np.ones(len(blocks["slots"]), np.int16)
    if not isinstance(ranking, Value | Lru):
        for row in np.argsort(blocks["stamps"]).tolist():
            slot = int(blocks["slots"][row])
            queues[row] = ranking.added(slot, ram.index.key(slot), 1)
    if not isinstance(ranking, Value):
        return queues
    table = np.empty((max(len(said), QUEUES_MAX), 2), np.int16)
    table[:] = ranking.queue(OTHERS, 0, False), ranking.queue(OTHERS, 0, True)
    for row in np.unique(blocks["queues"]).tolist():
        kind, number, _ = said[row] if row < len(said) else (OTHERS, 0, False)
        here = -1 if kind == ENDED else numbers.get(number)
        if here is not None:
            table[row] = ranking.queue(kind, here, False), ranking.queue(kind, here, True)
    for number, is_below, seconds in facts["weights"]:
        if number in numbers:
            ranking.weigh(numbers[number], bool(is_below), seconds)
    return table[blocks["queues"], ram.is_below[blocks["slots"]].astype(np.intp)]


def _stand(policy: Policy, slots: Column, sizes: Column, blocks: Mapping[str, Column], queues: Column) -> None:
    """Blocks as they stood, into an empty policy; `sizes` in its units."""
    stamps, parents = blocks["stamps"], blocks["parents"]
    policy._uses = int(stamps.max(initial=0))
    policy._stamp[slots], policy._order[slots], policy._used_at[slots] = stamps, blocks["orders"], blocks["used_at"]
    policy._size[slots], policy._queue[slots], policy._parent[slots] = sizes, queues, parents
    np.add.at(policy.blocks_in_slab, slots // policy._slab_units, 1)
    np.add.at(policy._stamps_in_slab, slots // policy._slab_units, stamps)
    behind = slots[parents != NONE]
    behind = behind[np.argsort(policy._parent[behind], kind="stable")]  # those of one parent side by side
    of = policy._parent[behind]
    is_first = np.append(True, of[1:] != of[:-1])[: len(of)]
    policy._first_child[of[is_first]] = behind[is_first]
    later = np.flatnonzero(~is_first)
    policy._before[behind[later]], policy._next[behind[later - 1]] = behind[later - 1], behind[later]
    for size in np.unique(sizes).tolist():
        policy._sizes[size] = _Queues()
        policy._sweep(policy._sizes[size], size)


def _candidates(store: BlockStore, blocks: Mapping[str, Column]) -> None:
    """What waited to be written below waits again, in the order of its use; and what the drives have lost."""
    order = np.argsort(blocks["stamps"])
    slots, flags = blocks["slots"][order].astype(np.intp), blocks["flags"][order]
    if store.lower is not None:
        lost = (flags & BELOW > 0) & ~store.ram.is_below[slots]
        _put(store.lower.demotions, slots, flags & USED_AGAIN > 0, (flags & FIRST > 0) | lost, flags & AGAIN > 0)
    if store.away is not None:
        _put(store.away.demotions, slots, flags & AWAY_AGAIN > 0, np.zeros(len(slots), bool), flags & AWAY > 0)


def _put(demotions: Demotions, slots: Column, used_again: Column, first: Column, again: Column) -> None:
    demotions._used_again[slots] = used_again
    for waiting, which in ((demotions._first, first), (demotions._again, again)):
        for slot in slots[which].tolist():
            demotions._queue(waiting, demotions._ram.index.key(slot))


# --- how: sessions ---------------------------------------------------------------------------------------------------


def _sessions(
    store: BlockStore, facts: Mapping[str, Any], columns: Mapping[str, Column], numbers: Mapping[int, int], now: float
) -> int:
    """How many."""
    retention, sessions = store.retention, store.retention._sessions
    _learnt(store, facts, columns, now)
    keys, at = columns["session_keys"], 0
    for said in facts["sessions"]:
        own, at = keys[at : at + said["blocks"]].tobytes(), at + said["blocks"]
        if said["namespace"] in numbers:
            session = _session(said, len(sessions), own)
            session.namespace = numbers[session.namespace]
            sessions._all[session.serial] = session
            sessions._keys += session.blocks
            for row, away in ((session.number, said["away"]), (SESSIONS_MAX + session.number, said["trunk_away"])):
                if away is not None:
                    retention.returns.went(row, *away)
    by_age = sorted(sessions, key=lambda session: session.serial)
    for session in by_age:
        if session.keys:
            sessions.lineage.join(session.keys, session.serial)
        if session.name:
            sessions._name(session)
        _expect(store, session, now)
    retention._standing._keeps_some |= any(session.no_disk or session.no_remote for session in by_age)
    sessions._serials = itertools.count(1 + max((session.serial for session in by_age), default=0))
    retention._states = sessions.states()
    retention.returns.learn(now)
    return len(by_age)


def _session(said: Mapping[str, Any], number: int, keys: bytes) -> Session:
    tenant = bytes.fromhex(said["tenant"])
    hints = Hints(tenant=tenant, **dict(zip(HINTS, said["hints"], strict=True)))
    plain = {name: said[name] for name in PLAIN}
    return Session(**plain, number=number, tenant=tenant, state=State(said["state"]), hints=hints, keys=keys)


def _expect(store: BlockStore, session: Session, now: float) -> None:
    """What was due at some time is due then, or at once; its pins are pinned anew."""
    retention, hints, expected_at = store.retention, session.hints, session.expected_at
    if expected_at is not None and hints.expect_return_s:
        retention._expecting.expect(session, session.used_at, retention._lead_s(session))
        session.expected_at = expected_at
    elif expected_at is not None:
        retention._expecting.soon(session, now, max(0.0, expected_at - now))
    if hints.ttl_s and not hints.pin:
        retention._expecting.age(session, session.used_at + hints.ttl_s)
    if session.pin_until:
        retention._pin(session, session.pin_until)


def _learnt(store: BlockStore, facts: Mapping[str, Any], columns: Mapping[str, Column], now: float) -> None:
    """When sessions come back, and by which names that is learnt."""
    returns, categories = store.retention.returns, store.retention._categories
    returns.names = list(facts["categories"])
    returns._number_of = {name: number for number, name in enumerate(returns.names) if number != OTHERS}
    shape = returns._returned.shape
    returns._returned[:], returns._lost[:] = columns["returned"].reshape(shape), columns["gone"].reshape(shape)
    returns._own = dict(zip(facts["own_hazards"], columns["own_hazards"].reshape(-1, shape[1]).copy()))
    returns._learnt_at = facts["learnt_at"]
    categories._tenants = {bytes.fromhex(tenant) for tenant in facts["tenants"]}
    categories._tools = set(facts["tools"])


# --- how: engines of which workers may still copy --------------------------------------------------------------------


def _leftover(store: BlockStore, left: Mapping[str, Any], namespace: int, now: float) -> list[Worker]:
    """As an engine of which the scheduler is gone: what it holds comes back when its last worker is."""
    name, kind = left["engine"], Kind(*left["kind"])
    mine = Engine(namespace, kind, 0, 0, now, set(left["lent"]), user=left["user"], block_bytes=left["block_bytes"])
    store.lending.join(name, mine)
    store.lending._count(mine, len(mine.lent))
    store.decisions.join(name, "", now)
    if left["leased"]:
        lease = _Lease(np.array(left["leased"], np.intp), kind, namespace)
        store.leases._of.setdefault(name, {})[LEASE] = lease
        store.leases._pin(lease.slots, kind.slot_bytes)
        store.ram.tenants.load_begins(lease.tenant)
    return [Worker(*worker) for worker in left["workers"]]
