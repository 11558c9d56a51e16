"""Forget after a restart, by the tags of who saved a block first; and which tags blocks carry."""

import numpy as np
import pytest
from idle_world import BLOCK, ENGINE, OTHER_TENANT, RED, TENANT, World, key, keys, letters, proof

from kvtier.admission import Budget
from kvtier.decision import Ask
from kvtier.extents import Extents
from kvtier.forgetting import origin_of, session_tag
from kvtier.session import Session
from kvtier.store import BlockStore
from kvtier.transfer import Demote

T = TENANT[:6].hex()


@pytest.fixture
def deep() -> World:
    return World(drives=True)


def saved_before_a_restart(*turns: dict) -> World:
    """Another daemon, with what the drives had after these turns."""
    before, orders = World(drives=True), []
    for turn in turns:
        before.turn(**turn)
        orders += [order for order in before.run() if isinstance(order, Demote)]
    after = World(drives=True)
    extents = Extents(64, 2 * 1024**2)
    extents.recover(
        b"".join(order.key for order in orders),
        np.array([order.place for order in orders]),
        np.array([order.size for order in orders]),
        np.array([order.namespace for order in orders], np.int32),
        np.array([order.ticket for order in orders], np.uint32),
        np.array([list(order.origin or bytes(16)) for order in orders], np.uint8),
    )
    after.store = BlockStore(8 * 1024**2, lend_share=0.125, lease_share=0.5)
    after.store.attach(extents, Budget(2**40, 0.0), 1.0, {RED: (0, 0)})
    after.join()
    return after


def test_after_a_restart_a_session_is_found_by_the_tags_of_who_saved_its_blocks():
    after = saved_before_a_restart({"prompt": "ab", "session": "chat"}, {"prompt": "xy", "session": "other"})
    assert after.below("abxy") == "abxy"
    assert [after.store.retention.knows(name) for name in ("chat", "other", "who")] == [True, True, False]
    assert after.forget("chat") == proof(0, 0, 2)
    assert after.below("abxy") == "xy"


def test_and_so_is_a_tenant():
    after = saved_before_a_restart(
        {"prompt": "ab", "session": "chat", "tenant": TENANT},
        {"prompt": "pq", "tenant": TENANT},
        {"prompt": "xy", "session": "chat", "tenant": OTHER_TENANT},
        {"prompt": "kl"},
    )
    assert after.forget("", T) == proof(0, 0, 4)
    assert after.below("abpqxykl") == "xykl"


def test_what_sessions_of_this_daemon_have_stays_though_another_saved_it_once():
    after = saved_before_a_restart({"prompt": "abc", "session": "chat"})
    after.turn("abx", session="other")
    assert after.forget("chat")["blocks"] == {"cpu": 0, "nvme": 1}
    assert after.below("abc") == "ab"


def test_what_came_back_into_ram_after_a_restart_is_found_there_too():
    after = saved_before_a_restart({"prompt": "ab", "session": "chat"})
    after.turn("ab", session="passer-by")
    after.store.retention.end("passer-by", after.now)
    assert after.here("ab") == "ab"
    after.forget("chat")
    assert after.here("ab") == after.below("ab") == ""


def test_blocks_carry_who_saved_them_first(deep):
    deep.turn("ab", session="chat", tenant=TENANT)
    (order, *_) = [order for order in deep.start() if isinstance(order, Demote)]
    assert order.origin == session_tag("chat") + TENANT[:6] + bytes(2)


def test_they_do_also_when_their_session_is_over_and_its_number_is_anothers(deep):
    deep.turn("ab", session="chat", tenant=TENANT)
    deep.turn("abx", session="work", tenant=TENANT)
    deep.store.retention.end("chat", deep.now)
    deep.turn("pqr", session="stranger", tenant=OTHER_TENANT)
    origins = {letters(order.key): order.origin for order in deep.start() if isinstance(order, Demote)}
    assert origins["a"][8:14] == TENANT[:6]


def test_nobodys_blocks_carry_nothing():
    assert not any(origin_of(Session(1, 0, 1, BLOCK, 16, True)))
    assert key("a") and session_tag("") == b""


def test_a_lookup_of_a_forgotten_session_finds_nothing(deep):
    deep.turn("ab", session="chat")
    deep.forget("chat")
    assert deep.store.lookup(ENGINE, 99, keys("ab"), 0, deep.now, Ask("new", 33)).tolist() == [0xFFFFFFFF] * 2
