"""Forget: nothing of a session or a tenant is left in any tier, and it is proven. Under any order of events: tests/sim."""

import numpy as np
import pytest
from idle_world import BLOCK, ENGINE, OTHER_TENANT, TENANT, World, erased, keys, proof, read, written

from kvtier import session as session_module
from kvtier.transfer import Demote, Erase, Promote, Transfer

T, U = TENANT[:6].hex(), OTHER_TENANT[:6].hex()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def deep() -> World:
    return World(drives=True)


def through(world: World) -> list[dict[str, object]]:
    return [found for _, found in world.store.retention.forgotten()]


# --- RAM ---------------------------------------------------------------------------------------------------------


def test_of_nobody_nothing_is_forgotten(world):
    world.turn("abc", session="chat")
    assert world.forget("who") == proof(0, 0)
    assert world.forget("", U) == proof(0, 0)
    assert world.here("abc") == "abc"


@pytest.mark.parametrize("tenant", ["", T[:5], "x" * 12, T + "00", T.upper()])
def test_without_a_name_and_a_whole_tenant_nothing_is_forgotten(world, tenant):
    world.turn("abc", session="chat", tenant=bytes.fromhex("54ab54ab54ab") + bytes(10))
    assert world.forget("", tenant) == proof(0, 0)
    assert world.here("abc") == "abc"


def test_what_a_forgotten_request_had_made_active_stands_again_where_another_session_wants_it(world):
    world.turn("abc", session="stays")
    stood = world.kinds("abc")
    world.ask("asked", "abcd", session="goes")
    assert world.kinds("abc") == ["active"] * 3
    world.store.retention.forget("goes", "", world.now)
    assert world.here("abc") == "abc"
    assert world.kinds("abc") == stood


def test_a_session_is_removed_and_its_slots_are_wiped_before_anybody_gets_them(world):
    world.turn("abc", session="chat")
    slots = {world.slot(letter) for letter in "abc"}
    world.store.retention.forget("chat", "", world.now)
    assert world.here("abc") == ""
    assert through(world) == [], "nothing is proven before it is done"
    wipes = world.store.wipes()
    assert {slot for slot, _ in wipes} == slots
    assert [size for _, size in wipes] == [BLOCK] * 3
    assert world.store.wipes() == []
    for slot in slots:
        world.store.wiped(slot)
    assert through(world) == [proof(1, 3)]
    assert through(world) == [], "each ticket is told once"
    assert world.names() == []


def test_a_slot_that_is_not_wiped_yet_is_lent_to_nobody(world):
    world.turn("abc", session="chat")
    slots = {world.slot(letter) for letter in "abc"}
    world.store.retention.forget("chat", "", world.now)
    for number in range(40):
        world.turn(chr(0x100 + number))
    assert not slots & world.store.lending.engines[ENGINE].lent


def test_what_others_share_stays_theirs(world):
    world.turn("abc", session="chat")
    world.turn("abx", session="other")
    assert world.forget("chat") == proof(1, 1, kept=2)
    assert world.here("abcx") == "abx"


def test_a_pinned_session_is_forgotten_and_its_pin_is_over(world):
    world.turn("abc", session="chat", pin=True)
    assert world.forget("chat") == proof(1, 3)
    assert world.store.retention.pins.bytes == 0


def test_all_of_a_tenant_is_forgotten_and_nothing_of_another(world):
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("pq", session="work", tenant=TENANT)
    world.turn("xyz", session="chat", tenant=OTHER_TENANT)
    assert world.forget("", T) == proof(2, 5)
    assert world.here("abcpqxyz") == "xyz"


def test_what_only_sessions_share_that_are_forgotten_together_is_not_kept(world):
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("abx", session="work", tenant=TENANT)
    assert world.forget("", T) == proof(2, 4)
    assert world.here("abcx") == ""


def test_one_name_of_two_tenants_is_forgotten_of_one(world):
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("xyz", session="chat", tenant=OTHER_TENANT)
    assert world.forget("chat", U) == proof(1, 3)
    assert world.here("abcxyz") == "abc"


def test_a_session_that_nobody_named_is_forgotten_as_it_is_shown(world):
    world.turn("abc")
    assert world.forget("~0") == proof(1, 3)
    assert world.here("abc") == ""


def test_what_a_session_went_on_without_is_forgotten_too(world):
    world.turn("abcd", session="chat")
    world.turn("abz", session="other")
    world.turn("abx", session="chat")
    assert world.forget("chat") == proof(1, 3, kept=2)
    assert world.here("abcdxz") == "abz"


def test_a_session_that_ended_can_be_forgotten(world):
    world.turn("abc", session="chat", end=True)
    assert world.store.retention.knows("chat")
    assert world.forget("chat") == proof(1, 3)
    assert world.here("abc") == ""
    assert world.names() == [] and not world.store.retention.knows("chat")


def test_so_can_one_that_had_to_make_room_for_other_sessions(world, monkeypatch):
    monkeypatch.setattr(session_module, "SESSIONS_MAX", 1)
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("xyz", session="other")
    assert world.names() == ["other"]
    assert world.store.retention.knows("chat")
    assert world.forget("chat")["blocks"] == {"cpu": 3, "nvme": 0}
    assert world.here("abcxyz") == "xyz"


def test_a_leased_block_is_wiped_when_its_lease_ends(world):
    world.turn("abc", session="chat")
    world.store.lookup(ENGINE, 99, keys("abc"), 0, world.now)
    world.store.retention.forget("chat", "", world.now)
    assert world.here("abc") == "", "nobody finds it any more"
    assert world.store.wipes() == [] and through(world) == []
    world.store.release(ENGINE, 99, 3, world.now)
    world.run()
    assert through(world) == [proof(1, 3)]


# --- requests under way --------------------------------------------------------------------------------------------


def test_what_a_running_request_of_it_saves_is_wiped_as_it_comes(world):
    world.ask("r", "ab", session="chat")
    world.save("r", "ab")
    world.store.retention.forget("chat", "", world.now)
    world.run()
    assert through(world) == [], "the request may save more"
    world.save("r", "c")
    assert world.here("abc") == ""
    world.run()
    world.over("r", "abc")
    world.run()
    assert through(world) == [proof(1, 3)]
    assert world.store.stats["refused_forgotten"] == 1


def test_a_running_request_that_was_forgotten_founds_no_session(world):
    world.ask("r", "ab", session="chat")
    world.store.retention.forget("chat", "", world.now)
    world.ask("r", "ab", session="chat")
    world.over("r", "ab")
    assert world.names() == []


def test_a_running_request_that_never_asked_is_forgotten_with_its_session(world):
    world.begin("r", session="chat", tenant=TENANT)
    world.save("r", "ab")
    assert world.store.retention.knows("chat")
    world.store.retention.forget("chat", "", world.now)
    world.save("r", "abc")
    world.over("r", "abc")
    world.run()
    assert world.here("abc") == "" and world.names() == []
    assert through(world) == [proof(1, 5)], "what it had saved, and what it saved then"


def test_after_it_is_through_the_same_session_may_begin_again(world):
    world.turn("ab", session="chat")
    world.forget("chat")
    world.turn("ab", session="chat")
    assert (world.here("ab"), world.names()) == ("ab", ["chat"])


def test_what_a_running_request_saved_of_blocks_that_others_have_is_kept(world):
    world.ask("one", "ab", session="chat")
    world.ask("two", "ab", session="other")
    world.save("one", "abc")
    world.store.retention.forget("chat", "", world.now)
    world.over("one", "abc")
    world.run()
    assert world.here("abc") == "ab"
    assert through(world) == [proof(1, 1, kept=2)]


def test_slots_into_which_a_copy_may_have_run_are_wiped_when_the_engine_is_gone(world):
    world.ask("r", "ab", session="chat")
    lent = set(world.store.lending.engines[ENGINE].lent)
    world.store.retention.forget("chat", "", world.now)
    world.store.leave(ENGINE, world.now)
    assert {slot for slot, _ in world.store.wipes()} == lent


def test_slots_that_are_given_back_meanwhile_are_wiped(world):
    """A save that failed may have written something."""
    world.ask("r", "ab", session="chat")
    slot = min(world.store.lending.engines[ENGINE].lent)
    world.store.retention.forget("chat", "", world.now)
    world.store.give_back(ENGINE, np.array([slot], np.uint32))
    assert world.store.wipes() == [(slot, BLOCK)]


# --- the tier below ------------------------------------------------------------------------------------------------


def test_what_lies_below_is_erased_too_and_is_counted(deep):
    deep.turn("abc", session="chat")
    deep.run()
    deep.push_out("c")
    deep.store.retention.forget("chat", "", deep.now)
    assert (deep.here("abc"), deep.below("abc")) == ("", "")
    orders = deep.run()
    assert erased(orders) == 3
    assert through(deep) == [proof(1, 2, 3)]


def test_an_erasure_that_failed_is_tried_again_and_nothing_is_proven_until_then(deep):
    deep.turn("a", session="chat")
    deep.run()
    deep.store.retention.forget("chat", "", deep.now)
    deep.finish(deep.start(), "io")
    for slot, _ in deep.store.wipes():
        deep.store.wiped(slot)
    assert through(deep) == []
    assert erased(deep.run()) == 1
    assert through(deep) == [proof(1, 1, 1)]


def test_a_block_that_is_being_written_is_erased_when_it_has_been(deep):
    deep.turn("ab", session="chat")
    orders = [order for order in deep.start() if isinstance(order, Demote)]
    assert written(orders) == "ab"
    deep.store.retention.forget("chat", "", deep.now)
    for slot, _ in deep.store.wipes():
        deep.store.wiped(slot)
    assert through(deep) == []
    deep.finish(orders)
    assert deep.below("ab") == ""
    assert erased(deep.run()) == 2
    assert through(deep) == [proof(1, 2, 2)]


def test_so_is_one_that_the_session_went_on_without_while_it_was_written(deep):
    deep.turn("abcd", session="chat")
    deep.turn("abz", session="other")
    deep.run()
    deep.turn("abef", session="chat")
    orders = [order for order in deep.start() if isinstance(order, Demote)]
    assert "ef" in written(orders)
    deep.turn("abx", session="chat")
    deep.store.retention.forget("chat", "", deep.now)
    deep.finish(orders)
    deep.run()
    assert deep.below("abcdefxz") == deep.here("abcdefxz") == "abz"
    assert len(through(deep)) == 1


def test_a_block_that_is_being_read_is_wiped_and_erased(deep):
    deep.turn("ab", session="chat")
    deep.run()
    deep.push_out("ab")
    deep.store.retention.warm("chat", deep.now)
    orders = [order for order in deep.start() if isinstance(order, Promote)]
    assert read(orders) == "ab"
    deep.store.retention.forget("chat", "", deep.now)
    assert not any(isinstance(order, Erase) for order in deep.start()), "not while it is read"
    deep.finish(orders)
    wipes = deep.store.wipes()
    assert {slot for slot, _ in wipes} == {order.slot for order in orders}
    for slot, _ in wipes:
        deep.store.wiped(slot)
    assert erased(deep.run()) == 2
    assert deep.here("ab") == deep.below("ab") == ""
    assert len(through(deep)) == 1


def written_and_out_of_ram(deep: World) -> list[Transfer]:
    """Writes of a session that went on without c and d, and then had its time: they left RAM with what is before them."""
    deep.turn("abcd", session="chat", tenant=TENANT, ttl_s=10.0)
    orders = [order for order in deep.start() if isinstance(order, Demote)]
    assert written(orders) == "abcd"
    deep.turn("abx", session="chat", tenant=TENANT, ttl_s=10.0)
    deep.wait(12.0)
    assert deep.here("abcdx") == deep.below("abcdx") == ""
    return orders


@pytest.mark.parametrize("whose", [("chat", ""), ("", T), ("chat", T)])
def test_what_is_being_written_is_found_though_it_has_left_ram(deep, whose):
    orders = written_and_out_of_ram(deep)
    deep.store.retention.forget(*whose, deep.now)
    assert through(deep) == []
    deep.finish(orders)
    assert deep.below("abcd") == ""
    assert through(deep) == []
    assert erased(deep.run()) == 4
    assert through(deep) == [proof(1, 0, 4)]


def test_whoever_wishes_it_twice_hears_of_it_twice_when_it_is_done(deep):
    orders = written_and_out_of_ram(deep)
    deep.store.retention.forget("chat", "", deep.now)
    deep.store.retention.forget("", T, deep.now)
    deep.finish(orders)
    assert through(deep) == []
    deep.run()
    assert through(deep) == [proof(1, 0, 4), proof(0, 0, 4)]


@pytest.mark.parametrize("whose", [("other", ""), ("", U), ("chat", U)])
def test_what_is_being_written_of_others_is_written_to_the_end(deep, whose):
    orders = written_and_out_of_ram(deep)
    assert deep.forget(*whose) == proof(0, 0)
    deep.finish(orders)
    assert deep.below("abcd") == "abcd"


def test_so_is_what_somebody_else_has_by_now(deep):
    orders = written_and_out_of_ram(deep)
    deep.turn("abcd", session="other")
    assert deep.forget("", T) == proof(1, 0, kept=2)
    deep.finish(orders)
    assert deep.below("abcd") == "abcd"


@pytest.mark.parametrize("whose", [("chat", ""), ("", T)])
def test_what_is_being_read_is_wiped_though_its_session_went_on_without_it(deep, whose):
    deep.turn("abcd", session="chat", tenant=TENANT)
    deep.turn("abz", session="other")
    deep.run()
    deep.turn("abx", session="chat", tenant=TENANT)
    deep.run()
    deep.push_out("cd")
    assert deep.store.lookup(ENGINE, 99, keys("abcd"), 0, deep.now) is None
    orders = [order for order in deep.start() if isinstance(order, Promote)]
    assert read(orders) == "cd"
    deep.store.retention.forget(*whose, deep.now)
    deep.finish(orders)
    assert deep.here("abcdxz") == "abz"
    assert {order.slot for order in orders} < {slot for slot, _ in deep.store.ram.to_wipe}
    assert erased(deep.run()) == 3
    assert through(deep) == [proof(1, 1, 3, kept=2)]


def test_what_others_share_stays_below_too(deep):
    deep.turn("abc", session="chat")
    deep.turn("abx", session="other")
    deep.run()
    assert deep.forget("chat") == proof(1, 1, 1, kept=2)
    assert deep.below("abcx") == "abx"


def test_what_was_dropped_below_is_erased_without_a_wish(deep):
    """Its time to live was over; forgetting finds nothing of it any more."""
    deep.turn("ab", session="chat", tenant=TENANT, ttl_s=10.0)
    deep.run()
    deep.wait(12.0)
    assert deep.below("ab") == ""
    assert not deep.store.retention.knows("", T)
