"""Lookups that a remote may have something for: what is asked, and whose answer is waited for."""

import pytest

from kvtier.block import ABSENT
from kvtier.transfer import Promote

from ..far_store import ENGINE, REMOTE_S, FarStore, asked, key, numbers


@pytest.fixture
def node() -> FarStore:
    return FarStore()


def test_what_is_here_is_answered_at_once_and_nothing_is_asked(node):
    node.save(1, 2)
    assert node.look_up(1, 1, 2) == node.slots(1, 2)
    assert asked(node.start_far()) == []


def test_the_remote_is_not_even_thought_of_where_ram_and_drives_have_all(node, monkeypatch):
    node.below(1, 2)
    node.save(3)
    monkeypatch.setattr(node.away, "look", None)
    assert node.look_up(1, 3) == [node.slot(3)]
    assert node.look_up(2, 1, 2) is None
    assert numbers(node.start()) == [1, 2], "as ever"


def test_what_is_nowhere_here_is_asked_in_one_question_and_waited_for_a_little(node):
    node.remote.put(1, 2, 3)
    assert node.look_up(1, 1, 2, 3) is None and node.waits() == [1]
    question = node.start_far()
    assert asked(question) == [[1, 2, 3]]
    node.finish_far(question)
    assert node.answers() == {}, "now it waits for the blocks"
    reads = node.start_far()
    assert numbers(reads) == [1, 2, 3]
    node.finish_far(reads)
    assert node.answers() == {1: node.slots(1, 2, 3)}
    assert node.store.leases.of(ENGINE)[1].tolist() == node.slots(1, 2, 3)


def test_an_answer_of_nothing_ends_the_wait(node):
    node.look_up(1, 1, 2)
    node.finish_far(node.start_far())
    assert node.answers() == {1: [ABSENT, ABSENT]} and node.waits() == []
    assert node.store.leases.of(ENGINE) == {}


def test_a_question_without_an_answer_is_over_after_a_while(node):
    node.save(1)
    assert node.look_up(1, 1, 2) is None
    question = node.start_far()
    node.tick(REMOTE_S / 2)
    assert node.answers() == {1: [node.slot(1), ABSENT]}
    node.finish_far(question)
    assert node.answers() == {}, "it was answered"


def test_what_failed_to_be_asked_ends_the_wait_and_is_asked_again(node):
    node.look_up(1, 1)
    node.finish_far(node.start_far(), "unreachable")
    assert node.answers() == {1: [ABSENT]}
    node.look_up(2, 1)
    assert asked(node.start_far()) == [[1]]


def test_nothing_is_asked_twice_and_whoever_asks_too_waits_for_the_same_answer(node):
    node.remote.put(1)
    node.look_up(1, 1)
    question = node.start_far()
    node.look_up(2, 1)
    assert asked(question) == [[1]] and asked(node.start_far()) == []
    node.finish_far(question)
    node.finish_far(node.start_far())
    assert node.answers() == {1: [node.slot(1)], 2: [node.slot(1)]}


def test_what_is_known_is_not_asked_again(node):
    node.knows(1)
    assert node.look_up(1, 1) is None
    assert [type(order) for order in node.start_far()] == [Promote]


def test_the_first_block_that_is_known_to_be_missing_ends_the_question(node):
    node.knows(1)
    node.away.known.missing(key(2), 0.0)
    node.look_up(1, 1, 2, 3)
    orders = node.start_far()
    assert asked(orders) == [] and numbers(orders) == [1]


def test_blocks_that_are_here_behind_a_hole_count_when_the_remote_fills_it(node):
    node.below(1, 2, 3)
    node.store.lower.drop([key(2)])
    node.knows(2)
    assert node.look_up(1, 1, 2, 3) is None
    far = node.start_far()
    assert numbers(far) == [2]
    node.finish_far(far)
    node.run()
    assert node.answers() == {1: node.slots(1, 2, 3)}


def test_only_what_the_engine_lacks_is_asked(node):
    node.look_up(1, 1, 2, skip=1)
    assert asked(node.start_far()) == [[2]]


def test_without_a_chain_all_that_is_absent_is_asked_and_each_counts():
    node = FarStore(is_chain=False)
    node.remote.put(1, 3)
    node.save(4)
    node.look_up(1, 1, 2, 3, 4, request="r")
    question = node.start_far()
    assert asked(question) == [[1, 2, 3]]
    node.finish_far(question)
    node.run()
    assert node.answers() == {1: [node.slot(1), ABSENT, node.slot(3), node.slot(4)]}


def test_a_released_lookup_hears_nothing_of_its_question(node):
    node.look_up(1, 1)
    question = node.start_far()
    assert node.store.leases.release((ENGINE, 1), 0.0) == 0
    node.finish_far(question)
    assert node.answers() == {} and node.waits() == []


def test_an_engine_that_leaves_hears_nothing(node):
    node.look_up(1, 1)
    question = node.start_far()
    node.store.leave(ENGINE, 0.0)
    node.finish_far(question)
    assert node.answers() == {} and node.waits() == []


def test_a_lease_that_waits_for_an_answer_is_open(node):
    node.look_up(1, 1)
    with pytest.raises(Exception, match="open already"):
        node.look_up(1, 1)


def test_what_is_ahead_of_a_request_is_waited_for_while_it_is_ahead(node):
    node.store.decisions.mode = "decide"
    assert node.look_up(1, 1, request="r", backlog_s=1.0) is None
    node.tick(0.9)
    assert node.answers() == {}
    node.store.due(ENGINE, 1, node.now)
    assert node.answers() == {1: [ABSENT]}, "16 tokens aren't worth the wait"


def test_what_is_not_worth_waiting_for_is_asked_all_the_same(node):
    node.store.decisions.mode = "decide"
    assert node.look_up(1, 1, request="r") == [ABSENT]
    assert asked(node.start_far()) == [[1]]
