"""BlockStore, event by event. Who gets slots and what goes for them: test_store_room.py. What any order of
events does is the simulator's business (tests/sim)."""

import numpy as np
import pytest

from kvtier import leases as leases_module
from kvtier.block import ABSENT, BELOW, SLOT_UNIT, pack_keys
from kvtier.errors import OrderError, ProtocolError
from kvtier.store import BlockStore

MIB = 1024**2
CAPACITY = 8 * MIB  # 4 slabs of 2 MiB
BLOCK = MIB // 4  # 8 slots a slab, 32 in all
RED, BLUE = b"red".ljust(32), b"blue".ljust(32)  # namespaces


@pytest.fixture
def store() -> BlockStore:
    """All engines are lent at most 4 small slots; leases pin at most 16."""
    return BlockStore(CAPACITY, lend_share=0.125, lease_share=0.5)


def join(store: BlockStore, engine: str, namespace: bytes = RED, block: int = BLOCK, lend: int = 4) -> list[int]:
    """Returns the slots that the engine is lent."""
    store.join(engine, namespace, block, 16, lend, now=0.0)
    return lent_to(store, engine)


def lent_to(store: BlockStore, engine: str) -> list[int]:
    return dict(store.lends()).get(engine, [])


def column(*slots: int) -> np.ndarray:
    return np.array(slots, dtype=np.uint32)


def keys(*numbers: int) -> bytes:
    return pack_keys(number.to_bytes(16, "big") for number in numbers)


def save(store: BlockStore, engine: str, *numbers: int) -> None:
    """Commits a block for each number, each in a commit of its own: the first is the oldest."""
    for number in numbers:
        mine = sorted(store.lending.engines[engine].lent)
        store.commit(engine, keys(number), column(mine[0]))
        store.lends()


def known(store: BlockStore, *numbers: int) -> list[int]:
    return [number for number in numbers if keys(number) in store.ram.index]


def assert_refused(code: str, call, *args) -> None:
    with pytest.raises(ProtocolError) as caught:
        call(*args)
    assert caught.value.code == code


# --- engines -------------------------------------------------------------------------------------------------


def test_an_engine_that_joins_learns_the_epoch_and_how_many_slots_it_may_hold(store):
    assert store.join("a", RED, BLOCK, 16, 3, now=0.0) == (0, 3)


def test_nobody_is_lent_more_than_the_share(store):
    assert store.join("a", RED, BLOCK, 16, 1000, now=0.0) == (0, 4)


def test_everybody_is_lent_at_least_one_slot(store):
    assert store.join("a", RED, 2 * MIB, 16, 0, now=0.0) == (0, 1)


def test_a_block_that_fits_no_slab_is_too_large(store):
    assert_refused("too_large", store.join, "a", RED, 2 * MIB + 1, 16, 4, 0.0)
    store.join("a", RED, 2 * MIB, 16, 4, now=0.0)


def test_an_engine_joins_once(store):
    join(store, "a")
    with pytest.raises(OrderError, match="joined already"):
        join(store, "a")


def test_what_an_engine_held_comes_back_when_it_leaves(store):
    join(store, "a")
    save(store, "a", 1, 2)
    store.lookup("a", 1, keys(1, 2))
    store.leave("a", 0.0)
    assert store.leases.bytes == 0
    assert store.ram.slots.taken_bytes == 2 * BLOCK, "its blocks stay, for others"
    assert store.stats["engines_gone"] == 1
    join(store, "a")


# --- slots ---------------------------------------------------------------------------------------------------


def test_a_new_engine_is_lent_slots_at_once_and_then_none_until_it_has_used_half(store):
    first = join(store, "a")
    assert len(set(first)) == 4
    assert lent_to(store, "a") == []
    store.give_back("a", column(*first[:2]))
    assert lent_to(store, "a") == []
    store.give_back("a", column(first[2]))
    assert len(lent_to(store, "a")) == 3


def test_a_committed_block_is_found(store):
    first = join(store, "a")
    store.commit("a", keys(1, 2), column(*first[:2]))
    assert store.lookup("a", 1, keys(2, 3, 1)).tolist() == [first[1], ABSENT, first[0]]
    assert store.stats["saved_blocks"] == 2
    assert store.stats["saved_bytes"] == 2 * BLOCK


def test_a_block_saved_twice_stays_where_it_is_and_the_second_slot_is_free(store):
    first, second = join(store, "a"), join(store, "b")
    store.commit("a", keys(1), column(first[0]))
    store.commit("b", keys(1), column(second[0]))
    assert store.lookup("a", 1, keys(1)).tolist() == [first[0]]
    assert store.ram.slots.is_free(second[0])
    assert store.stats["known_blocks"] == 1


def test_a_key_that_stands_twice_in_one_commit_is_one_block(store):
    first = join(store, "a")
    store.commit("a", keys(1, 1), column(*first[:2]))
    assert len(store.ram.index) == 1
    assert store.ram.slots.taken_bytes == 3 * BLOCK


def test_only_a_slot_that_is_lent_to_this_engine_can_be_committed_or_given_back(store):
    mine, others = join(store, "a"), join(store, "b")
    for wrong in ([others[0]], [mine[0], mine[0]], [mine[0], 10**6]):
        assert_refused("bad_slot", store.commit, "a", keys(*wrong), column(*wrong))
        assert_refused("bad_slot", store.give_back, "a", column(*wrong))
    assert len(store.ram.index) == 0
    assert store.ram.slots.taken_bytes == 5 * BLOCK, "a refused frame changes nothing"


def test_a_committed_slot_is_not_the_engines_any_more(store):
    first = join(store, "a")
    store.commit("a", keys(1), column(first[0]))
    assert_refused("bad_slot", store.commit, "a", keys(2), column(first[0]))


# --- leases --------------------------------------------------------------------------------------------------


def test_a_lookup_that_finds_nothing_opens_no_lease(store):
    join(store, "a")
    assert store.lookup("a", 1, keys(1, 2)).tolist() == [ABSENT, ABSENT]
    assert store.snapshot(0.0)["engines"][0]["leases"] == 0
    store.release("a", 1, 0)


def test_a_lease_counts_its_bytes_until_it_is_released(store):
    join(store, "a")
    save(store, "a", 1, 2)
    store.lookup("a", 1, keys(1, 2))
    assert store.leases.bytes == 2 * BLOCK
    store.release("a", 1, 1)
    assert store.leases.bytes == 0
    assert [store.stats[name] for name in ("loaded_blocks", "loaded_tokens", "loaded_bytes")] == [1, 16, BLOCK]


def test_nobody_loads_more_than_the_lease_had(store):
    join(store, "a")
    save(store, "a", 1)
    store.lookup("a", 1, keys(1))
    store.release("a", 1, 999)
    assert store.stats["loaded_blocks"] == 1


def test_a_lease_that_is_open_can_not_be_opened_again(store):
    join(store, "a")
    save(store, "a", 1)
    store.lookup("a", 1, keys(1))
    with pytest.raises(OrderError):
        store.lookup("a", 1, keys(1))
    assert store.leases.bytes == BLOCK


def test_an_engine_has_so_many_leases_and_no_more(store, monkeypatch):
    monkeypatch.setattr(leases_module, "LEASES_MAX", 2)
    join(store, "a")
    save(store, "a", 1)
    store.lookup("a", 1, keys(1))
    store.lookup("a", 2, keys(1))
    assert_refused("too_many", store.lookup, "a", 3, keys(1))
    store.lookup("a", 4, keys(9))  # finds nothing, so it is no lease


def test_leases_pin_no_more_than_their_share_and_the_prefix_comes_first():
    store = BlockStore(CAPACITY, lend_share=0.125, lease_share=3 / 32)
    join(store, "a")
    save(store, "a", 1, 2, 3, 4)
    answer = store.lookup("a", 1, keys(1, 9, 2, 3, 4))
    assert (answer < BELOW).tolist() == [True, False, True, True, False]
    assert (answer[1], answer[4]) == (ABSENT, BELOW), "what is here but not offered needn't be saved again"
    assert store.leases.bytes == 3 * BLOCK
    assert store.stats["refused_leases"] == 1
    assert store.lookup("a", 2, keys(1)).tolist() == [BELOW]
    store.release("a", 2, 0)
    store.release("a", 1, 0)
    assert store.lookup("a", 3, keys(4))[0] < BELOW


# --- reset ---------------------------------------------------------------------------------------------------


def test_after_a_reset_nothing_of_the_namespace_is_found_and_other_namespaces_are_as_they_were(store):
    join(store, "a", RED)
    join(store, "b", BLUE)
    save(store, "a", 1, 2)
    save(store, "b", 3)
    store.reset("a", RED)
    assert known(store, 1, 2, 3) == [3]
    assert store.stats["reset_blocks"] == 2


def test_who_joins_after_a_reset_gets_the_next_epoch(store):
    join(store, "a", RED)
    store.reset("a", RED)
    store.reset("a", RED)
    assert store.join("b", RED, BLOCK, 16, 4, now=0.0)[0] == 2
    assert store.join("c", BLUE, BLOCK, 16, 4, now=0.0)[0] == 0


def test_the_epoch_outlives_its_engines(store):
    join(store, "a", RED)
    store.reset("a", RED)
    store.leave("a", 0.0)
    assert store.join("a", RED, BLOCK, 16, 4, now=0.0)[0] == 1


@pytest.mark.parametrize("end", ["release", "leave"])
def test_a_block_that_is_reset_while_it_is_leased_keeps_its_slot_until_the_lease_ends(store, end):
    join(store, "a", RED)
    join(store, "reader", RED)
    save(store, "a", 1)
    slot = int(store.lookup("reader", 1, keys(1))[0])
    store.reset("a", RED)
    assert known(store, 1) == []
    assert not store.ram.slots.is_free(slot)
    assert store.leases.bytes == BLOCK
    if end == "release":
        store.release("reader", 1, 1)
    else:
        store.leave("reader", 0.0)
    assert store.ram.slots.is_free(slot)
    assert store.leases.bytes == 0


def test_a_key_can_be_saved_again_while_its_former_slot_is_still_leased(store):
    join(store, "a", RED)
    save(store, "a", 1)
    former = store.lookup("a", 1, keys(1)).tolist()
    store.reset("a", RED)
    save(store, "a", 1)
    assert store.lookup("a", 2, keys(1)).tolist() != former
    store.release("a", 1, 1)
    assert known(store, 1) == [1]


# --- what there is -------------------------------------------------------------------------------------------


def test_a_connectors_report_adds_only_what_it_may_report(store):
    store.report({"skipped_no_slot": 3, "saved_blocks": 99, "nonsense": 1, "lookups_late": -5})
    assert store.stats["skipped_no_slot"] == 3
    assert store.stats["saved_blocks"] == store.stats["lookups_late"] == 0


def test_a_snapshot_shows_where_the_bytes_are(store):
    join(store, "a")
    save(store, "a", 1, 2)
    store.lookup("a", 1, keys(1))
    snapshot = store.snapshot(now=2.5)
    lent = len(store.lending.engines["a"].lent) * BLOCK
    assert snapshot["tiers"]["cpu"] == {
        "capacity_bytes": CAPACITY,
        "used_bytes": lent + 2 * BLOCK,
        "lent_bytes": lent,
        "leased_bytes": BLOCK,
        "blocks": 2,
        "hit_tokens": 0,
    }
    engine = snapshot["engines"][0]
    assert (engine["engine"], engine["leases"], engine["leased_blocks"], engine["connected_s"]) == ("a", 1, 1, 2.5)
    assert snapshot["counters"] == store.stats.snapshot()


def test_a_blocks_slot_is_as_large_as_its_last_unit(store):
    store.join("a", RED, SLOT_UNIT + 1, 16, 4, now=0.0)
    assert store.snapshot(0.0)["engines"][0]["slot_bytes"] == 2 * SLOT_UNIT
