"""What must hold of sessions and of their blocks in RAM at any moment. It reads private columns."""

from collections import Counter

from kvtier.block import pack_keys, unpack_keys
from kvtier.policy import KEPT, NONE
from kvtier.ranking import ENDED, EXPECTED, Queue, Value
from kvtier.store import BlockStore

from .expected import Expected


def check(store: BlockStore, expected: Expected, pin_share: float) -> None:
    """AssertionError names what is broken."""
    no_block_is_here_without_the_one_before_it(store, expected)
    pins_are_kept_within_their_quota(store, expected, pin_share)
    what_is_below_is_known(store, expected)


def check_sessions(store: BlockStore, expected: Expected) -> None:
    """This takes longer: now and then is enough."""
    sessions_have_what_they_should(store, expected)
    members_are_counted(store, expected)
    blocks_stand_where_their_sessions_want(store, expected)


def sessions_have_what_they_should(store: BlockStore, expected: Expected) -> None:
    sessions, known = store.retention._sessions, expected.sessions.known
    assert set(sessions) == set(known), "which sessions there are"
    for session, mine in known.items():
        assert session.keys == mine.packed, f"what {session.shown_name} has"
        if not (session.requests or mine.requests):
            continue
        saved = {request: unpack_keys(b"".join(parts)) for request, parts in session.requests.items()}
        assert saved == mine.requests, f"what requests of {session.shown_name} saved"
    barred = {request: list(oblivion.requests) for request, oblivion in expected.sessions.barred.items()}
    assert set(store.retention._forgetting._barred) == set(barred), "requests of which nothing is taken"


def members_are_counted(store: BlockStore, expected: Expected) -> None:
    lineage, members = store.retention._sessions.lineage, expected.sessions.members()
    assert len(lineage) == len(members), "keys that nobody has, or that are not known"
    keys = list(members)
    counted = dict(zip(keys, lineage.members(pack_keys(keys)).tolist(), strict=True))
    assert counted == dict(members), "how many sessions have a key"


def no_block_is_here_without_the_one_before_it(store: BlockStore, expected: Expected) -> None:
    ram, policy = store.ram, store.ram.policy
    slot_of = {key: slot for slot, (key, _) in expected.blocks.items()}
    children: dict[int, set[int]] = {}
    for slot, before in expected.befores.items():
        parent = slot_of.get(before, NONE) if before else NONE
        children.setdefault(parent, set()).add(slot)
        assert policy._parent[slot] == parent, f"slot {slot} is behind another"
        waits = ram._awaits.get(slot)
        if before and parent == NONE:
            assert waits == before, f"slot {slot} waits for nobody"
            assert expected.below is not None and before in expected.below.blocks, f"slot {slot} is an orphan"
        else:
            assert waits is None, f"slot {slot} waits for what is here"
    for slot in expected.blocks:
        its = policy.children(slot)
        assert set(its) == children.get(slot, set()) and len(its) == len(set(its)), "what is behind a block"
    assert {slot: key for key, slots in ram._awaited.items() for slot in slots} == ram._awaits


def pins_are_kept_within_their_quota(store: BlockStore, expected: Expected, share: float) -> None:
    ram, pins = store.ram, store.retention.pins
    kept = {slot for slot, (key, _) in expected.blocks.items() if key in expected.sessions.kept}
    stand = {slot for slot in expected.blocks if ram.policy._queue[slot] == KEPT}
    assert stand == kept, f"slots {stand ^ kept} are kept and not pinned, or pinned and not kept"
    size = sum(ram.slots.size_of(slot) for slot in kept)
    assert size == pins.bytes <= share * ram.slots.capacity, "the quota of pins"
    held = Counter(slot for session in expected.sessions.pinned() for slot in expected.here(unpack_keys(session.pinned)))
    assert {slot: int(pins._of[slot]) for slot in kept} == dict(held), "pins are counted"
    by_slab = Counter(map(ram.slots.slab_of, kept))
    assert ram.policy.kept_in_slab.tolist() == [by_slab[slab] for slab in range(ram.slots.slabs)], "kept by slab"


def what_is_below_is_known(store: BlockStore, expected: Expected) -> None:
    below = expected.below.blocks if expected.below is not None else {}
    for slot, (key, _) in expected.blocks.items():
        assert store.ram.is_below[slot] == (key in below), f"whether slot {slot} is below too"
        assert store.ram.stays[slot] == (key in expected.sessions.no_disk), f"whether slot {slot} may be written below"


def blocks_stand_where_their_sessions_want(store: BlockStore, expected: Expected) -> None:
    policy = store.ram.policy
    if not isinstance(policy.ranking, Value):
        return
    members = expected.sessions.members()
    for slot, (key, _) in expected.blocks.items():
        queue: Queue = policy.ranking._queues[policy._queue[slot]]
        if policy._queue[slot] == KEPT:
            continue
        assert queue.kind != ENDED or not members[key], f"slot {slot} is taken for dead, and sessions have it"
        assert queue.kind == ENDED or key not in expected.sessions.dead, f"slot {slot} is taken for alive"
        assert queue.is_below == store.ram.is_below[slot] or queue.kind == ENDED, f"slot {slot} stands in the wrong one"
        assert queue.kind == EXPECTED or policy._order[slot] == policy._stamp[slot], f"slot {slot} is out of its order"
