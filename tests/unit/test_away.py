"""The remote, as the store sees it: orders, and what is learnt from their ends. Lookups: test_leases_away.py."""

import json
import time

import pytest

from kvtier.away import LATE_S, REFUSED_S
from kvtier.block import ABSENT
from kvtier.session import Hints
from kvtier.transfer import MOVES_MAX, Demote, Erase, Promote, Remember, Seek

from ..far_store import BLOCK, ENGINE, RED, FarStore, key, numbers

BLUE = b"blue".ljust(32)
CHAT, ACME = b"chat 1..", b"acme...."  # tags of a session and of a tenant


@pytest.fixture
def node() -> FarStore:
    return FarStore()


def wrote(node: FarStore, *these: int) -> None:
    """These are here, and in the remote."""
    node.save(*these)
    node.store.touch(ENGINE, b"".join(map(key, these)))
    node.away.demotions.used_again(node.store.ram.index.find(b"".join(map(key, these))))
    node.run()


# --- orders --------------------------------------------------------------------------------------------------------


def test_a_namespace_is_told_whether_the_remote_takes_writes_or_not_and_before_all_else(node):
    node.store.join("b", BLUE, BLOCK, 16, 4, 0.0)
    node.look_up(1, 1)
    orders = node.start_far(writable=False)
    assert [type(order) for order in orders] == [Remember, Seek] and orders[0].digest == BLUE


def test_a_namespace_that_it_was_not_told_of_is_told_again(node):
    node.store.join("b", BLUE, BLOCK, 16, 4, 0.0)
    orders = node.start_far()
    node.finish_far(orders, "closed")
    assert [(order.digest, order.namespace) for order in node.start_far()] == [(BLUE, orders[0].namespace)]


def test_namespaces_of_before_are_told_when_it_is_attached():
    node = FarStore(drives=False)
    assert node.remote.namespaces == {0: RED}


def test_nothing_is_written_where_it_takes_no_writes(node):
    node.save(1)
    node.look_up(1, 1)
    assert node.start_far(writable=False) == []
    assert numbers(node.start_far(), Demote) == [1]


def test_it_has_no_more_under_way_than_a_tier_takes(node):
    for lease in range(1, MOVES_MAX + 100):
        node.look_up(lease, lease)
    first = node.start_far()
    assert len(first) == MOVES_MAX
    node.finish_far(first)
    assert len(node.start_far()) == 99


# --- what is learnt ------------------------------------------------------------------------------------------------


def test_what_was_written_is_known_to_be_there(node):
    wrote(node, 1)
    assert node.away.has(key(1), 0, 0.0) and node.remote.blocks == {(0, key(1)): BLOCK}


def test_how_long_an_answer_takes_is_learnt_from_the_order_to_its_end(node):
    believed = node.away.ask_s
    for lease in range(1, 40):
        node.look_up(lease, lease)
        question = node.start_far()
        node.now += 0.5
        node.finish_far(question)
    assert believed < 0.4 < node.away.ask_s < 0.5


def test_an_answer_that_never_comes_says_nothing_of_how_long_one_takes(node):
    believed = node.away.ask_s
    node.look_up(1, 1)
    question = node.start_far()
    node.now += 60.0
    node.finish_far(question, "unreachable")
    assert node.away.ask_s == believed


def test_how_often_an_answer_is_yes_is_learnt_but_nobody_stops_asking(node):
    for lease in range(1, 60):
        node.look_up(lease, lease)
        node.finish_far(node.start_far())
    assert node.away.hit_share == pytest.approx(0.05, abs=0.01)
    for lease in range(60, 120):
        node.remote.put(lease)
        node.look_up(lease, lease)
        node.finish_far(node.start_far())
    assert node.away.hit_share > 0.9


def test_an_answer_of_before_it_was_away_is_nobodys(node):
    node.remote.put(1)
    node.look_up(1, 1)
    question = node.start_far()
    node.goes_away()
    node.comes_back()
    node.finish_far(question)
    assert not node.away.has(key(1), 0, 0.0)
    assert node.answers() == {1: [ABSENT]}


def test_a_question_that_was_not_ordered_before_it_went_away_is_over(node):
    node.look_up(1, 1)
    node.goes_away()
    assert node.start_far() == []
    assert node.answers() == {1: [ABSENT]} and node.away.known.snapshot()["asked"] == 0


# --- what comes from there, and from the drives --------------------------------------------------------------------


def test_what_comes_from_the_remote_is_a_candidate_for_the_drives(node):
    node.knows(1)
    node.look_up(1, 1)
    node.finish_far(node.start_far())
    assert numbers(node.start(), Demote) == [1]
    assert numbers(node.start_far(), Demote) == [], "it is there"


def test_what_comes_from_the_remote_is_its_tenants_here_too_and_on_the_drives(node):
    node.knows(1)
    node.remote.origins[0, key(1)] = CHAT + ACME
    node.look_up(1, 1)
    node.finish_far(node.start_far())
    assert len(node.store.ram.of_origin(CHAT, ACME)) == 1
    assert [order.origin for order in node.start() if isinstance(order, Demote)] == [CHAT + ACME]


def test_what_comes_from_the_remote_goes_to_no_disk_where_its_session_wants_that(node):
    node.knows(1)
    node.store.begin(ENGINE, "r", Hints(no_disk=True))
    assert node.look_up(1, 1, request="r") is None
    node.finish_far(node.start_far())
    assert node.answers() == {1: [node.slot(1)]}
    assert node.start() == [] and node.store.stats["refused_no_disk"] == 1


def test_what_comes_from_the_drives_is_a_candidate_for_the_remote(node):
    node.below(1)
    node.look_up(1, 1)
    node.finish(node.start())
    assert numbers(node.start_far(), Demote) == [1]


# --- what is forgotten by wish -------------------------------------------------------------------------------------


def test_what_is_to_be_erased_is_not_there_any_more_at_once(node):
    wrote(node, 1)
    node.away.erase(key(1), 0)
    assert not node.away.has(key(1), 0, 0.0) and node.away.is_erasing(key(1))
    assert node.away.look([key(1)], 0, True, 0.0).sizes == []
    node.run()
    assert node.remote.blocks == {} and not node.away.is_erasing(key(1))
    assert not node.away.has(key(1), 0, 0.0)


def test_what_nobody_knows_to_be_there_is_erased_too(node):
    node.remote.put(1)
    node.away.erase(key(1), 0)
    node.run()
    assert node.remote.blocks == {}


def test_an_erasure_that_failed_is_tried_until_it_is_done(node):
    node.away.erase(key(1), 0)
    node.away.erase(key(1), 0)
    node.finish_far(node.start_far(), "unreachable")
    assert node.away.is_erasing(key(1))
    again = node.start_far()
    assert numbers(again, Erase) == [1]
    node.finish_far(again)
    assert node.start_far() == [] and not node.away.is_erasing(key(1))


def test_an_erasure_waits_while_the_remote_is_away(node):
    node.away.erase(key(1), 0)
    node.goes_away()
    assert node.start_far() == []
    node.comes_back()
    assert numbers(node.start_far(), Erase) == [1]


def test_an_erasure_waits_for_the_read_and_what_was_read_is_wiped(node):
    node.knows(1)
    node.look_up(1, 1)
    far = node.start_far()
    node.away.erase(key(1), 0)
    assert node.start_far() == []
    node.finish_far(far)
    assert node.slot(1) == ABSENT and [slot for slot, _ in node.store.wipes()] == [far[0].slot]
    assert numbers(node.start_far(), Erase) == [1]


def test_what_was_being_written_is_erased_after_it(node):
    node.save(1)
    node.look_up(1, 1)
    far = node.start_far()
    assert numbers(far, Demote) == [1]
    node.away.erase(key(1), 0)
    assert node.start_far() == []
    node.finish_far(far)
    orders = node.start_far()
    assert numbers(orders, Erase) == [1]
    node.finish_far(orders)
    assert node.remote.blocks == {}


def test_nothing_is_written_while_it_is_erased_or_the_write_would_outlive_the_next_wish(node):
    wrote(node, 1)
    node.away.erase(key(1), 0)
    erasures = node.start_far()
    node.away.demotions.forgotten([key(1)])
    node.away.demotions.used_again(node.store.ram.index.find(key(1)))
    assert node.start_far() == [] and node.store.stats["remote_refused_erasing"] == 1
    node.finish_far(erasures)
    assert not node.away.is_erasing(key(1)) and node.remote.blocks == {}
    node.away.demotions.used_again(node.store.ram.index.find(key(1)))
    assert numbers(node.start_far(), Demote) == [1], "used once more"


def test_an_erasure_that_is_refused_is_not_tried_again_at_once(node):
    node.away.erase(key(1), 0)
    node.finish_far(node.start_far(), "refused")
    assert node.start_far() == [] and node.away.is_erasing(key(1)) and not node.away.is_idle
    node.now += LATE_S
    assert numbers(node.start_far(), Erase) == [1]


def test_a_write_that_is_refused_is_not_tried_again_at_once(node):
    node.save(1)
    node.away.demotions.used_again(node.store.ram.index.find(key(1)))
    node.finish_far(node.start_far(), "refused")
    assert node.start_far() == [] and not node.away.is_idle
    node.now += REFUSED_S
    assert numbers(node.start_far(), Demote) == [1]


def test_of_very_many_erasures_no_look_takes_longer_than_of_few(node):
    for number in range(100_000):
        node.away.erase(key(number), 0)
    assert len(node.start_far()) == MOVES_MAX
    begun = time.perf_counter()
    for _ in range(100):
        assert node.start_far() == []
    assert time.perf_counter() - begun < 0.1, "each costs 5 ms if all are looked at"


def test_an_answer_that_comes_while_it_is_erased_does_not_bring_it_back(node):
    node.remote.put(1)
    node.look_up(1, 1)
    question = node.start_far()
    node.away.erase(key(1), 0)
    node.finish_far(question)
    assert node.answers() == {1: [ABSENT]} and numbers(node.start_far()) == []


# --- flushes -------------------------------------------------------------------------------------------------------


def test_a_flush_is_over_when_all_that_waited_is_there(node):
    node.save(1)
    node.look_up(1, 1)
    node.away.flush(7)
    assert node.away.flushed(7) is None
    node.finish_far(node.start_far())
    node.start_far()
    assert node.away.flushed(7) is True


def test_a_flush_does_not_wait_for_a_remote_that_is_away(node):
    node.save(1)
    node.look_up(1, 1)
    node.away.flush(7)
    node.goes_away()
    assert node.away.flushed(7) is False


def test_what_there_is_is_said_as_json_values(node):
    node.look_up(1, 1)
    said = node.store.snapshot(0.0)["tiers"]["remote"]
    assert said["asked"] == 1 and said["is_away"] is False and said["reading_bytes"] == 0
    assert json.loads(json.dumps(said)) == said


def test_it_is_idle_when_nothing_is_left_to_do(node):
    assert node.away.is_idle
    node.look_up(1, 1)
    assert not node.away.is_idle
    node.finish_far(node.start_far())
    assert node.away.is_idle


def test_reads_are_counted_apart_from_those_of_the_drives(node):
    node.knows(1, 2, 3)
    for lease, fault in ((1, ""), (2, "gone"), (3, "corrupt")):
        node.look_up(lease, lease)
        node.finish_far([order for order in node.start_far() if isinstance(order, Promote)], fault)
    counts = node.store.stats
    assert (counts["remote_promoted_blocks"], counts["remote_promoted_bytes"]) == (1, BLOCK)
    assert (counts["remote_gone_blocks"], counts["remote_corrupt_blocks"]) == (1, 1)
    assert counts["promoted_blocks"] == counts["corrupt_blocks"] == 0
