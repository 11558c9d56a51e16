"""The store with several tenants and users: quotas, who pays for room, what is zeroed before it is lent."""

import numpy as np
import pytest
from idle_world import BLOCK, ENGINE, MIB, OTHER_TENANT, RED, TENANT, World, keys

from kvtier.block import BELOW, KEY_BYTES, SLOT_UNIT
from kvtier.decision import Ask
from kvtier.store import BlockStore
from kvtier.tenants import tag_of

BLUE = b"blue".ljust(32)


def bytes_of(world: World, tenant: bytes) -> int:
    tenants = world.store.ram.tenants
    return int(tenants.bytes[tenants.number(tag_of(tenant))])


def test_what_a_request_saves_is_its_tenants():
    world = World()
    world.turn("abc", tenant=TENANT)
    world.turn("xy")
    assert (bytes_of(world, TENANT), bytes_of(world, b"")) == (3 * BLOCK, 2 * BLOCK)


def test_also_what_comes_back_from_below():
    world = World(drives=True)
    world.turn("abc", tenant=TENANT)
    world.run()
    world.evict(2)
    assert bytes_of(world, TENANT) == BLOCK
    world.turn("abc", tenant=TENANT)
    assert bytes_of(world, TENANT) == 3 * BLOCK


def test_a_block_that_two_tenants_have_is_the_first_ones():
    """It can't be: their keys differ. But who lies about its tenant gets nothing by it."""
    world = World()
    world.turn("abc", tenant=TENANT)
    world.turn("abc", tenant=OTHER_TENANT)
    assert (bytes_of(world, TENANT), bytes_of(world, OTHER_TENANT)) == (3 * BLOCK, 0)


def test_over_its_quota_a_tenant_has_what_it_used_last():
    world = World()
    world.store.ram.tenants.limits.blocks = 3
    world.turn("abc", tenant=TENANT)
    world.turn("xy", tenant=OTHER_TENANT)
    world.turn("def", tenant=TENANT)
    assert (world.here("abcdef"), world.here("xy")) == ("def", "xy")


def test_a_conversation_longer_than_its_quota_keeps_its_begin():
    world = World()
    world.store.ram.tenants.limits.blocks = 3
    world.turn("abcde", tenant=TENANT)
    assert world.here("abcde") == "abc"
    assert world.store.stats["refused_quota"] == 1
    assert world.store.stats["refused_orphans"] == 1


def test_what_is_read_from_below_and_finds_no_room_within_the_quota_is_not_kept():
    world = World(drives=True)
    world.turn("abc", tenant=TENANT)
    world.run()
    world.evict(3)
    world.store.ram.tenants.limits.blocks = 2
    assert world.ask("again", "abc", tenant=TENANT) == "ab"
    assert world.store.stats["unkept_promotions"] == 1


def test_what_was_above_the_quota_because_it_was_read_goes_when_it_is_not_any_more():
    world = World()
    world.turn("ab", tenant=TENANT)
    slots = np.array([world.slot("b")])
    world.store.ram.pin(slots)
    world.store.ram.tenants.limits.blocks = 1
    world.tick()
    assert world.here("ab") == "ab"
    world.store.ram.unpin(slots)
    world.wait(2.0)
    assert world.here("ab") == "a"


def test_who_has_as_many_leases_as_he_may_computes():
    world = World()
    world.turn("abc", tenant=TENANT)
    world.turn("xyz", tenant=OTHER_TENANT)
    world.store.ram.tenants.limits.loads = 1
    first = lookup(world, 101, "abc", TENANT)
    assert (first < BELOW).all()
    assert lookup(world, 102, "abc", TENANT).tolist() == [BELOW] * 3, "and saves nothing again"
    assert (lookup(world, 103, "xyz", OTHER_TENANT) < BELOW).all()
    assert world.store.stats["missed_tenant_loads"] == 1
    assert world.store.decisions.explain("request 102", 1)[0]["reason"] == "tenant_loads"
    world.store.release(ENGINE, 101, 3, world.now)
    assert (lookup(world, 104, "abc", TENANT) < BELOW).all()


def test_also_a_lookup_without_a_request_is_answered_so():
    world = World()
    world.turn("abc")
    world.store.ram.tenants.limits.loads = 1
    world.store.lookup(ENGINE, 101, keys("abc"), 0, world.now)
    assert world.store.lookup(ENGINE, 102, keys("abx"), 0, world.now).tolist()[:2] == [BELOW] * 2


def test_a_miss_needs_no_lease_and_is_never_refused():
    world = World()
    world.turn("abc")
    world.store.ram.tenants.limits.loads = 1
    lookup(world, 101, "abc", b"")
    lookup(world, 102, "xyz", b"")
    assert world.store.decisions.explain("request 102", 1)[0]["reason"] == "never_stored"


def test_leases_are_counted_down_when_an_engine_is_gone():
    world = World()
    world.turn("abc", tenant=TENANT)
    lookup(world, 101, "abc", TENANT)
    world.store.leave(ENGINE, world.now)
    assert world.store.ram.tenants.snapshot()["most"][0]["loads"] == 0


def lookup(world: World, lease: int, prompt: str, tenant: bytes) -> np.ndarray:
    world.begin(f"request {lease}", tenant=tenant)
    ask = Ask(request=f"request {lease}", prompt_tokens=16 * len(prompt) + 1)
    answer = world.store.lookup(ENGINE, lease, keys(prompt), 0, world.now, ask)
    assert answer is not None
    return answer


def test_who_writes_more_than_the_rate_says_is_not_written_below():
    world = World(drives=True)
    world.store.ram.tenants.limits.write_rate = BLOCK / 10  # one block in the time in which they may come together
    world.turn("abc", tenant=TENANT)
    world.turn("xy", tenant=OTHER_TENANT)
    world.run()
    assert (len(world.below("abc")), len(world.below("xy"))) == (1, 1)
    assert world.store.stats["refused_tenant_rate"] == 3


# --- who pays for room -----------------------------------------------------------------------------------------------


def filled(tenants: tuple[bytes, bytes]) -> World:
    """A small RAM, almost full: the first has four conversations, then the second has one; all are over."""
    world = World(slabs=2)
    for chain in ("ab", "cd", "ef", "gh"):
        world.turn(chain, tenant=tenants[0])
    world.turn("xy", tenant=tenants[1])
    return world


def test_who_has_more_than_his_fair_share_makes_room_among_his_own():
    world = filled((TENANT, OTHER_TENANT))
    world.wait(5.0)
    for chain in ("kl", "mn", "op", "qr", "st"):
        world.turn(chain, tenant=TENANT)
    assert world.here("xy") == "xy", "though it was used longer ago than what came since"
    assert world.store.stats["evicted_own_blocks"] > 0


def test_one_tenant_alone_never_pays_otherwise_than_the_policy_says():
    world, other = filled((TENANT, TENANT)), filled((b"", b""))
    for one in (world, other):
        for chain in ("kl", "mn", "op", "qr", "st"):
            one.turn(chain, tenant=TENANT if one is world else b"")
        assert one.store.stats["evicted_own_blocks"] == 0
    assert world.here("abcdefghklmnopqrst") == other.here("abcdefghklmnopqrst")


# --- users -----------------------------------------------------------------------------------------------------------


class Shared:
    """A store with an engine of each of two users, whose zeroed bytes are noted."""

    def __init__(self) -> None:
        self.store = BlockStore(4 * MIB, lend_share=0.5, lease_share=0.5)
        self.zeroed: list[tuple[int, int]] = []
        self.store.ram.zero = lambda at, n: self.zeroed.append((at, n))

    def join(self, engine: str, namespace: bytes, user: str, block_bytes: int = BLOCK, lend: int = 4) -> list[int]:
        self.store.join(engine, namespace, block_bytes, 16, lend, 0.0, user=user)
        return self.lent(engine)

    def lent(self, engine: str) -> list[int]:
        return dict(self.store.lends()).get(engine, [])

    def wipe(self) -> list[int]:
        wiped = [slot for slot, _ in self.store.wipes()]
        for slot in wiped:
            self.store.wiped(slot)
        return wiped


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_engines_of_one_user_get_slots_at_once(shared):
    assert len(shared.join("one", RED, "")) == len(shared.join("two", BLUE, "")) == 4
    assert not shared.wipe()


def test_an_engine_of_another_user_gets_slots_when_they_are_zeroed(shared):
    shared.join("one", RED, "")
    assert shared.join("two", BLUE, "bob") == []
    wiped = shared.wipe()
    assert len(wiped) == 4, "as many as it wants"
    assert sorted(shared.lent("two")) == sorted(wiped)


def test_what_came_back_from_it_is_zeroed_for_the_first(shared):
    mine = shared.join("one", RED, "", lend=8)
    shared.store.want("one", 1)
    shared.store.give_back("one", np.array(mine, np.uint32))
    shared.join("two", BLUE, "bob")
    shared.wipe()
    theirs = set(shared.lent("two"))
    assert len(theirs) == 4
    shared.store.leave("two", 1.0)
    shared.store.want("one", 8)
    clean: set[int] = set()
    for _ in range(16):
        assert not theirs & set(shared.lent("one")) - clean
        clean.update(shared.wipe())
    assert len(shared.store.lending.engines["one"].lent) == 8


def test_no_more_goes_to_be_zeroed_than_is_wanted(shared):
    shared.join("one", RED, "", lend=8)
    save(shared, "one", 8)
    for _ in range(3):
        shared.lent("one")
        save(shared, "one", len(shared.store.lending.engines["one"].lent))
    shared.store.want("one", 0)
    before = len(shared.store.ram.index)
    assert shared.join("two", BLUE, "bob", lend=2) == []
    assert shared.lent("two") == []
    assert before - len(shared.store.ram.index) <= 2
    shared.wipe()
    assert 0 < len(shared.lent("two")) <= 2


def save(shared: Shared, engine: str, n: int) -> None:
    for slot in sorted(shared.store.lending.engines[engine].lent)[:n]:
        name = f"{slot} {shared.store.stats['saved_blocks']}".encode().ljust(KEY_BYTES)
        shared.store.commit(engine, name, np.array([slot], np.uint32))


def test_the_tail_of_what_is_lent_is_zeroed_once(shared):
    short = BLOCK - 100
    slots = shared.join("one", RED, "", block_bytes=short)
    assert sorted(shared.zeroed) == [(slot * SLOT_UNIT + short, 100) for slot in sorted(slots)]
    shared.zeroed.clear()
    shared.store.give_back("one", np.array(slots, np.uint32))
    shared.lent("one")
    assert len(shared.zeroed) <= len(set(shared.store.lending.engines["one"].lent) - set(slots))


def test_who_has_larger_blocks_before_leaves_no_tail(shared):
    shared.join("one", RED, "")
    assert shared.zeroed == []
    shared.store.leave("one", 1.0)
    lent = shared.join("two", BLUE, "", block_bytes=BLOCK - 7)
    assert {(slot * SLOT_UNIT + BLOCK - 7, 7) for slot in lent} == set(shared.zeroed)


def test_tenants_are_shown():
    world = World()
    world.turn("abc", tenant=TENANT)
    shown = world.store.snapshot(world.now)["tenants"]
    assert shown["most"] == [{"tenant": TENANT[:6].hex(), "bytes": 3 * BLOCK, "blocks": 3, "loads": 0}]
