"""A store that is handed over as bytes, and one that goes on with them."""

import numpy as np
import pytest
from idle_world import BLOCK, ENGINE, OTHER_TENANT, RED, TENANT, World, key, keys, letters

from kvtier.adopting import adopt, check
from kvtier.block import ABSENT
from kvtier.errors import HandoverError
from kvtier.handing_over import Worker, handover_of
from kvtier.handover import FORMAT, Handover, pack, unpack
from kvtier.session import Session
from kvtier.tenants import tag_of

ROOT = b"a root secret".ljust(32)
WORKER = Worker(pid=7, started=1, uid=0)


def packed(world: World, lingering: dict[str, list[Worker]] | None = None) -> bytes:
    return b"".join(pack(handover_of(world.store, lingering or {}, ROOT, 41, world.now)))


def gone_on(
    former: World, lingering: dict[str, list[Worker]] | None = None, is_same_root: bool = True, **how: object
) -> World:
    """Another store, that goes on where this one ends; what is on the drives is lost unless `how` has them."""
    handover = unpack(packed(former, lingering))
    world = World(**how)
    world.store.leave(ENGINE, 0.0)
    world.now = former.now
    check(world.store, handover)
    adopt(world.store, handover, world.now, is_same_root)
    return world


def talked(world: World, prompt: str = "abc", **hints: object) -> World:
    """A conversation of three blocks, that is idle now."""
    world.ask("request", prompt, **hints)
    world.save("request", prompt)
    world.over("request", prompt)
    return world


def the_session(world: World) -> Session:
    (session,) = world.store.retention._sessions
    return session


# --- as bytes --------------------------------------------------------------------------------------------------------


def test_facts_and_columns_are_what_they_were():
    columns = {"some": np.arange(5, dtype="<u4"), "none": np.empty(0, "<f8"), "keys": np.frombuffer(keys("ab"), "V16")}
    found = unpack(b"".join(pack(Handover({"a": 1, "b": ["c", None]}, columns))))
    assert found.facts == {"a": 1, "b": ["c", None]}
    assert list(found.columns) == list(columns)
    assert all((found.columns[name] == column).all() for name, column in columns.items())


@pytest.mark.parametrize("at", [0, 8, 12, 16, 40, 80, -40, -1])
def test_a_byte_that_is_another_is_noticed(at):
    good = bytearray(b"".join(pack(Handover({"a": 1}, {"some": np.arange(9, dtype="<u4")}))))
    good[at] ^= 1
    with pytest.raises(HandoverError):
        unpack(bytes(good))


@pytest.mark.parametrize("size", [0, 1, 55, 56, 100])
def test_one_that_is_cut_off_is_noticed(size):
    good = b"".join(pack(Handover({"a": 1}, {"some": np.arange(9, dtype="<u4")})))
    with pytest.raises(HandoverError, match=r"cut off|bytes, not"):
        unpack(good[:size])


def test_another_format_is_named():
    good = bytearray(b"".join(pack(Handover())))
    good[8] += 1
    with pytest.raises(HandoverError, match=f"it has format {FORMAT + 1}, not {FORMAT}"):
        unpack(bytes(good))


# --- blocks ----------------------------------------------------------------------------------------------------------


def two_talks(policy: str) -> World:
    world = talked(World(policy=policy))
    world.now += 1
    talked(world, "wxyz")
    world.now += 1
    world.ask("again", "abcd")
    world.over("again", "abcd")
    return world


@pytest.mark.parametrize("policy", ["value", "lru"])
def test_blocks_go_in_the_order_in_which_they_would_have_gone(policy):
    one, other = two_talks(policy), gone_on(two_talks(policy), policy=policy)
    other.join()
    assert other.evict(7) == one.evict(7) != ""


@pytest.mark.parametrize("policy", ["s3fifo", "arc"])
def test_a_ranking_with_queues_of_its_own_begins_anew_with_all_blocks(policy):
    world = gone_on(two_talks(policy), policy=policy)
    world.join()
    assert world.here("abcwxyz") == "abcwxyz"
    assert len(world.evict(7)) == 7


def test_a_ranking_of_another_name_takes_the_blocks_over():
    world = gone_on(talked(World(policy="value")), policy="lru")
    assert world.here("abc") == "abc"
    world = gone_on(talked(World(policy="lru")), policy="value")
    assert world.here("abc") == "abc"


def test_what_the_drives_have_is_below_and_the_rest_is_not():
    former = talked(World(drives=True))
    former.run()
    slots = former.store.ram.index.find(keys("abc"))
    assert former.store.ram.is_below[slots].all()
    world = gone_on(former, drives=True)  # whose drives are empty
    slots = world.store.ram.index.find(keys("abc"))
    assert not world.store.ram.is_below[slots].any()
    world.run()
    assert world.store.ram.is_below[slots].all()  # it was written anew


def test_a_block_goes_when_the_one_before_it_is_nowhere():
    former = talked(World(drives=True))
    former.run()
    handover = unpack(packed(former))
    row = handover.columns["slots"].tolist().index(int(former.store.ram.index.find(key("b"))[0]))
    parents = handover.columns["parents"].copy()
    parents[row] = -1
    handover.columns["parents"] = parents
    handover.facts["awaits"] = [[int(handover.columns["slots"][row]), key("z").hex()]]
    world = World(drives=True)
    world.store.leave(ENGINE, 0.0)
    check(world.store, handover)
    adopted = adopt(world.store, handover, world.now)
    assert world.here("abc") == "a"
    assert (adopted.blocks, adopted.dropped) == (1, 2)


def test_nothing_is_taken_over_that_was_made_with_another_root():
    handover = unpack(packed(talked(World())))
    world = World()
    world.store.leave(ENGINE, 0.0)
    assert adopt(world.store, handover, world.now, is_same_root=False).blocks == 0
    assert world.here("abc") == "" and world.store.ram.slots.taken_bytes == 0


def test_a_namespace_that_was_reset_stays_reset():
    former = talked(World())
    former.store.reset(ENGINE, RED)
    world = gone_on(former)
    assert world.store.namespaces[RED].epoch == 1
    assert world.here("abc") == ""


def test_each_tenant_has_what_it_had():
    former = talked(World(), tenant=TENANT)
    former.now += 1
    talked(former, "wxyz", tenant=OTHER_TENANT)
    world = gone_on(former)
    tenants = world.store.ram.tenants
    one, other = (tenants.number(tag_of(tenant)) for tenant in (TENANT, OTHER_TENANT))
    assert (tenants.bytes[one], tenants.bytes[other]) == (3 * BLOCK, 4 * BLOCK)
    assert (tenants.blocks[one], tenants.blocks[other]) == (3, 4)
    assert sorted(tenants.slots_of(one).tolist()) == sorted(world.slot(letter) for letter in "abc")


def test_books_of_whose_bytes_are_where_go_on_to_be_kept():
    former = World()
    slot = min(former.store.lending.engines[ENGINE].lent)
    former.store.ram.residue.filling(slot, BLOCK, 77)  # of a namespace of which no engine ever came
    assert former.store.ram.residue.is_kept
    residue = gone_on(former).store.ram.residue
    assert residue.is_kept and residue.is_foreign(slot, BLOCK, residue.user(""))


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_is_what_it_was():
    former = talked(World(), session="a talk", expect_return_s=30.0)
    before = the_session(former)
    world = gone_on(former)
    after = the_session(world)
    assert (after.name, after.state, after.turns, after.keys) == (before.name, before.state, before.turns, before.keys)
    assert (after.expected_at, after.used_at, after.hints) == (before.expected_at, before.used_at, before.hints)
    world.join()
    world.now += 1
    assert world.ask("again", "abcd", session="a talk") == "abc"
    assert the_session(world).turns == before.turns + 1


def test_what_may_not_go_to_others_may_not_after_either_though_it_is_on_the_drives_alone():
    former = talked(World(drives=True), session="a talk", no_remote=True)
    former.run()
    former.push_out("abc")
    assert former.below("abc") == "abc" and former.store.ram.is_to_stay(key("a"))
    assert gone_on(former, drives=True).store.ram.is_to_stay(key("a"))


def test_a_pin_holds():
    former = talked(World(), pin=True, ttl_s=60.0)
    assert former.store.retention.pins.bytes == 3 * BLOCK
    world = gone_on(former)
    assert world.store.retention.pins.bytes == 3 * BLOCK
    world.join()
    world.wait(100.0)
    assert world.store.retention.pins.bytes == 0


def test_what_was_learnt_of_returns_is_known():
    former = talked(World())
    former.now += 10
    former.ask("again", "abcd")
    former.over("again", "abcd")
    world = gone_on(former)
    assert world.store.retention.returns.names == former.store.retention.returns.names
    assert (world.store.retention.returns._returned == former.store.retention.returns._returned).all()


# --- workers that may still copy -------------------------------------------------------------------------------------


def test_what_is_lent_stays_lent_to_an_engine_of_which_a_worker_may_copy():
    former = talked(World())
    lent = set(former.store.lending.engines[ENGINE].lent)
    world = gone_on(former, {ENGINE: [WORKER]})
    assert world.store.lending.engines[ENGINE].lent == lent and lent
    taken = world.store.ram.slots.taken_bytes
    world.store.leave(ENGINE, world.now)
    assert world.store.ram.slots.taken_bytes == taken - len(lent) * BLOCK


def test_what_it_leased_stays_where_it_is():
    former = talked(World())
    slots = former.store.lookup(ENGINE, 99, keys("abc"), 0, former.now)
    world = gone_on(former, {ENGINE: [WORKER]})
    assert [world.store.ram.index.is_pinned(slot) for slot in slots.tolist()] == [True] * 3
    assert world.store.leases.bytes == 3 * BLOCK
    world.store.leave(ENGINE, world.now)
    assert world.store.leases.bytes == 0


def both_lease() -> World:
    """Two engines that lease the same three blocks."""
    world = talked(World())
    world.join("b")
    for engine in (ENGINE, "b"):
        assert (world.store.lookup(engine, 99, keys("abc"), 0, world.now) < ABSENT).all()
    return world


def comes_back_with_the_last(world: World, slots: set[int]) -> None:
    """These slots are nobody's before both engines are gone, and free then."""
    ram = world.store.ram
    for engine in (ENGINE, "b"):
        lent = {slot for one in world.store.lending.engines.values() for slot in one.lent}
        assert not slots & lent and all(ram.index.is_pinned(slot) for slot in slots)
        assert ram.slots.taken_bytes == (len(lent) + len(slots)) * BLOCK
        assert not world.store.wipes()
        world.store.leave(engine, world.now)


@pytest.mark.parametrize("why", ["reset", "another root"])
def test_a_slot_of_no_block_that_two_engines_lease_comes_back_when_both_are_gone(why):
    former = both_lease()
    slots = {former.slot(letter) for letter in "abc"}
    if why == "reset":
        former.store.reset(ENGINE, RED)
    world = gone_on(former, {ENGINE: [WORKER], "b": [WORKER]}, is_same_root=why == "reset")
    assert world.here("abc") == "" and world.store.leases.bytes == 6 * BLOCK
    comes_back_with_the_last(world, slots)
    assert world.store.ram.slots.taken_bytes == world.store.leases.bytes == 0


def test_what_is_to_be_wiped_is_wiped_when_nobody_leases_it_any_more():
    former = both_lease()
    slots = {former.slot(letter) for letter in "abc"}
    former.store.ram.drop([former.slot("a")], is_secret=True)
    assert not former.store.wipes()
    world = gone_on(former, {ENGINE: [WORKER], "b": [WORKER]})
    comes_back_with_the_last(world, slots)
    assert {slot for slot, _ in world.store.wipes()} == slots


def test_a_store_that_was_handed_over_lends_no_more():
    former = talked(World())
    former.store.join("b", RED, BLOCK, 16, 4, former.now)  # it was lent nothing yet
    packed(former, {ENGINE: [WORKER], "b": [WORKER]})
    assert former.store.lends() == []


def test_what_is_to_be_wiped_is_wiped_by_the_next():
    former = talked(World(), session="a talk")
    former.store.retention.forget("a talk", "", former.now)
    wipes = former.store.wipes()
    assert len(wipes) == 3
    world = gone_on(former)
    assert sorted(world.store.wipes()) == sorted(wipes)


# --- what doesn't fit together ---------------------------------------------------------------------------------------


def _ring(handover: Handover) -> None:
    handover.columns["parents"] = np.roll(handover.columns["slots"].astype("<i4"), 1)


def _two_blocks_in_one_slot(handover: Handover) -> None:
    handover.columns["slots"] = np.full(3, handover.columns["slots"][0], "<u4")


def _between_two_slots(handover: Handover) -> None:
    handover.columns["slots"] = handover.columns["slots"] + 1


def _no_queues(handover: Handover) -> None:
    handover.columns["queues"] = np.zeros(3, "<i2")


def _a_column_is_missing(handover: Handover) -> None:
    del handover.columns["flags"]


def _a_fact_is_missing(handover: Handover) -> None:
    del handover.facts["leftovers"]


def _a_number_is_too_large(handover: Handover) -> None:
    handover.facts["wipe"] = [2**70]


def _another_arena(handover: Handover) -> None:
    handover.facts["capacity"] = 1


ODD = [
    _ring,
    _two_blocks_in_one_slot,
    _between_two_slots,
    _no_queues,
    _a_column_is_missing,
    _a_fact_is_missing,
    _a_number_is_too_large,
    _another_arena,
]


@pytest.mark.parametrize("spoil", ODD, ids=lambda spoil: spoil.__name__)
def test_what_does_not_fit_together_is_refused_before_anything_is_changed(spoil):
    handover = unpack(packed(talked(World())))
    world = World()
    world.store.leave(ENGINE, 0.0)
    check(world.store, handover)
    spoil(handover)
    with pytest.raises(HandoverError):
        check(world.store, handover)
    assert world.store.ram.slots.taken_bytes == 0


def test_names_of_blocks_are_read_as_they_were_written():
    assert letters(unpack(packed(talked(World()))).columns["session_keys"].tobytes()) == "abc"
