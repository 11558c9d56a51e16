"""Forget, of what lies in a remote: it is deleted, and proven. In the other tiers: test_forgetting.py."""

import pytest
from idle_world import BLOCK, ENGINE, TENANT, World, key, keys, proof, read, written

from kvtier.away import LATE_S
from kvtier.transfer import Demote, Erase, Promote

T = TENANT[:6].hex()


def through(world: World) -> list[dict[str, object]]:
    return [found for _, found in world.store.retention.forgotten()]


def proof_of(cpu: int, remote: int, sessions: int = 1, nvme: int = 0, kept: int = 0) -> dict[str, object]:
    expected = proof(sessions, cpu, nvme, kept)
    return expected | {"blocks": {"cpu": cpu, "nvme": nvme, "remote": remote}}


@pytest.fixture
def wide() -> World:
    """With a remote that has what chat has, which was asked for twice."""
    world = World(remote=True)
    world.turn("abc", session="chat")
    world.turn("abc", session="chat")
    world.run()
    assert world.away("abc") == "abc"
    return world


def test_what_lies_in_the_remote_is_deleted(wide):
    assert wide.forget("chat") == proof_of(3, 3)
    assert wide.away("abc") == ""


def test_also_when_nothing_is_known_of_it(wide):
    wide.store.away.known.forget_all()
    wide.push_out("abc")
    assert wide.forget("chat") == proof_of(0, 3)
    assert wide.away("abc") == ""


def test_a_key_is_deleted_of_which_nothing_was_ever_written(wide):
    wide.turn("xyz", session="once")
    wide.store.retention.forget("once", "", wide.now)
    assert sum(isinstance(order, Erase) for order in wide.start_remote()) == 3


def test_what_others_share_stays_in_the_remote(wide):
    wide.turn("abx", session="other")
    wide.run()
    assert wide.forget("chat") == proof_of(1, 1, kept=2)
    assert wide.away("abc") == "ab"


def test_while_the_remote_is_away_nothing_is_proven_and_then_it_is_done(wide):
    wide.store.set_remote_away(True)
    wide.store.retention.forget("chat", "", wide.now)
    wide.run()
    assert through(wide) == []
    assert wide.away("abc") == "abc"
    wide.store.set_remote_away(False)
    wide.run()
    assert through(wide) == [proof_of(3, 3)]
    assert wide.away("abc") == ""


def test_a_deletion_that_failed_is_tried_again(wide):
    wide.store.retention.forget("chat", "", wide.now)
    wide.finish_remote(wide.start_remote(), "unreachable")
    wide.run()
    assert through(wide) == [proof_of(3, 3)]
    assert wide.away("abc") == ""


def test_what_the_other_side_may_carry_out_late_is_deleted_twice():
    """A write that got no answer in time may stand there in a queue."""
    world = World(remote=True)
    world.turn("a", session="chat")
    world.turn("a", session="chat")
    writes = world.start_remote()
    world.finish_remote(writes, "unreachable")
    world.store.retention.forget("chat", "", world.now)
    world.run()
    world.remote[key("a")] = BLOCK  # there it is
    assert through(world) == []
    world.wait(LATE_S)
    assert world.away("a") == ""
    assert through(world) == [proof_of(1, 1)]


def test_what_is_being_written_there_is_deleted_when_it_has_been():
    world = World(remote=True)
    world.turn("ab", session="chat")
    world.turn("ab", session="chat")
    orders = world.start_remote()
    assert written(orders) == "ab"
    world.store.retention.forget("chat", "", world.now)
    assert world.start_remote() == []
    world.finish_remote(orders)
    assert world.away("ab") == "ab" and through(world) == []
    world.run()
    assert world.away("ab") == ""
    assert through(world) == [proof_of(2, 2)]


@pytest.mark.parametrize("whose", [("chat", ""), ("", T)])
def test_so_is_what_is_written_there_though_its_session_went_on_without_it(whose):
    world = World(remote=True)
    world.turn("abcd", session="chat", tenant=TENANT, ttl_s=10.0)
    world.turn("abcd", session="chat", tenant=TENANT, ttl_s=10.0)
    orders = [order for order in world.start_remote() if isinstance(order, Demote)]
    world.turn("abx", session="chat", tenant=TENANT)
    world.store.ram.drop([world.slot("c")])
    assert written(orders) == "abcd" and world.here("abcdx") == "abx"
    world.store.retention.forget(*whose, world.now)
    world.run()
    assert through(world) == []
    world.finish_remote(orders)
    world.run()
    assert world.away("abcd") == ""
    assert [found["blocks"]["remote"] for found in through(world)] == [5]


def test_what_is_being_read_from_there_is_wiped(wide):
    wide.push_out("abc")
    wide.store.lookup(ENGINE, 99, keys("abc"), 0, wide.now)
    reads = [order for order in wide.start_remote() if isinstance(order, Promote)]
    assert read(reads) == "ab", "as much as is read from there at once"
    wide.store.retention.forget("chat", "", wide.now)
    deletions = wide.start_remote()
    assert [(type(order), order.key) for order in deletions] == [(Erase, key("c"))], "nothing is while it is read"
    wide.finish_remote(deletions + reads)
    assert wide.here("abc") == ""
    assert {slot for slot, _ in wide.store.ram.to_wipe} == {order.slot for order in reads}
    wide.run()
    assert through(wide) == [proof_of(0, 3)]
    assert wide.away("abc") == ""


def test_what_the_drives_kept_of_a_session_that_nobody_knows_is_deleted_there_too():
    world = World(drives=True, remote=True)
    world.turn("abc", session="chat", tenant=TENANT)
    world.turn("abc", session="chat", tenant=TENANT)
    world.run()
    assert world.away("abc") == "abc"
    world.store.retention._sessions.drop(world.session("chat"))
    world.push_out("abc")
    assert world.forget("chat") == proof_of(0, 3, sessions=0, nvme=3)
    assert (world.below("abc"), world.away("abc")) == ("", "")
