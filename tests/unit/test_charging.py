"""Charging: which block a tenant loses when it makes room among its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import charging as module
from kvtier.block import SLOT_UNIT
from kvtier.charging import LASTS_S, OVER_QUOTA
from kvtier.ram import Ram
from kvtier.ranking import Lru
from kvtier.stats import Stats
from kvtier.tenants import NONE

MIB = 1024**2
SIZE = 4 * SLOT_UNIT
ONE, TWO = 1, 2  # tags


class World:
    """Blocks of tenants in RAM, by letters; a is the first in a chain, b stands behind a where one says so."""

    def __init__(self, limit: int = 0) -> None:
        self.ram = Ram(8 * MIB, Stats(), Lru())
        self.ram.tenants.limits.blocks = limit
        self.slots: dict[str, int] = {}

    def save(self, letter: str, tag: int = ONE, before: str = "") -> bool:
        """Whether it is here now."""
        slot = self.ram.slots.take(SIZE)
        assert slot is not None
        parent = key(before) if before else b"\0" * 16
        saved = self.ram.save([slot], [key(letter)], [parent], 0, 1, False, self.ram.tenants.number(tag))
        self.slots[letter] = slot
        return bool(saved)

    @property
    def here(self) -> str:
        return "".join(sorted(letter for letter in self.slots if key(letter) in self.ram.index))


def key(letter: str) -> bytes:
    return letter.encode() * 16


def test_over_its_quota_a_tenant_loses_what_it_used_least_recently():
    world = World(limit=2)
    assert all(world.save(letter) for letter in "abcd")
    assert world.here == "cd"


def test_and_no_other_tenant_loses_anything():
    world = World(limit=2)
    world.save("x", TWO)
    for letter in "abcd":
        world.save(letter)
    assert world.here == "cdx"


def test_those_without_a_salt_are_a_tenant_too():
    world = World(limit=1)
    world.save("a", tag=0)
    world.save("b", tag=0)
    assert world.here == "b"
    assert world.ram.tenants.blocks[NONE] == 1


def test_of_a_chain_the_tail_goes_and_then_what_stood_before_it():
    world = World(limit=3)
    for letter, before in (("a", ""), ("b", "a"), ("c", "b"), ("x", ""), ("y", "")):
        world.save(letter, before=before)
    assert world.here == "axy"


def test_nothing_goes_for_a_block_that_stands_behind_it():
    world = World(limit=2)
    world.save("a")
    world.save("b", before="a")
    assert not world.save("c", before="b")
    assert world.here == "ab"
    assert world.ram._stats["refused_quota"] == 1


def test_what_is_pinned_stays_and_the_save_is_refused():
    world = World(limit=1)
    world.save("a")
    world.ram.pin(np.array([world.slots["a"]]))
    assert not world.save("b")
    world.ram.unpin(np.array([world.slots["a"]]))
    world.ram.now += LASTS_S
    assert world.save("b")
    assert world.here == "b"


def test_what_is_used_again_meanwhile_goes_later():
    world = World(limit=3)
    for letter in "abcd":  # a goes for d, and the others were looked up for that
        world.save(letter)
    world.ram.use(np.array([world.slots["b"]]), None)
    world.save("e")
    assert world.here == "bde"


def test_a_slab_of_another_size_is_its_tenants_too():
    world = World(limit=1)
    world.save("a")
    slot = world.ram.slots.take(2 * SIZE)
    world.ram.save([slot], [key("b")], [b"\0" * 16], 0, 1, False, world.ram.tenants.number(ONE))
    assert world.ram.index.holds(slot)
    assert world.here == ""


def test_what_goes_is_counted_and_remembered():
    world = World(limit=1)
    world.save("a")
    world.save("b")
    assert world.ram._stats["evicted_own_blocks"] == world.ram._stats["evicted_blocks"] == 1
    assert world.ram.ghosts.cause(key("a")) == OVER_QUOTA


def test_of_many_a_batch_is_looked_up_and_the_order_is_kept(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    world = World(limit=4)
    looks = []
    sound = world.ram.charging._look_up
    world.ram.charging._look_up = lambda *of: looks.append(1) or sound(*of)
    gone = []
    for letter in "abcdefghijkl":
        before = world.here
        world.save(letter)
        gone += sorted(set(before) - set(world.here))
    assert gone == list("abcdefgh")
    assert len(looks) == 4


def test_a_tenant_that_can_lose_nothing_is_not_looked_through_for_each_block():
    world = World(limit=1)
    world.save("a")
    world.ram.pin(np.array([world.slots["a"]]))
    looks = []
    sound = world.ram.charging._look_up
    world.ram.charging._look_up = lambda *of: looks.append(1) or sound(*of)
    for letter in "bcdefgh":
        assert not world.save(letter)
    assert len(looks) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 2), st.booleans()), max_size=40))
def test_nobody_ever_has_more_than_his_quota_nor_loses_for_another(limit, steps):
    world = World(limit)
    for number, (letter, tag, is_behind) in enumerate(steps):
        name, before = f"{letter}{number}", dict(enumerate(world.ram.tenants.blocks.tolist()))
        slot = world.ram.slots.take(SIZE)
        assert slot is not None
        parents = list(world.ram.index._slot_of) if is_behind else []
        mine = world.ram.tenants.number(tag)
        world.ram.save([slot], [name.encode().ljust(16)], [(parents or [b"\0" * 16])[-1]], 0, 1, False, mine)
        blocks = world.ram.tenants.blocks.tolist()
        assert max(blocks) <= limit
        assert all(blocks[other] >= n for other, n in before.items() if other != mine)
        assert sum(blocks) == len(world.ram.index)


@pytest.mark.parametrize("is_idle", [True, False])
def test_whoever_pays_pays_with_what_no_request_under_way_uses(is_idle, monkeypatch):
    world = World()
    world.save("a")
    world.save("x", TWO)
    monkeypatch.setattr(world.ram.tenants, "pays", lambda *of: True)
    monkeypatch.setattr(world.ram.policy.ranking, "is_active", lambda queue: not is_idle, raising=False)
    paid = world.ram.charging.is_paid(world.ram.tenants.number(ONE), world.slots["x"], SIZE, "a cause", 0.0)
    assert paid is is_idle
    assert world.here == ("x" if is_idle else "ax")
