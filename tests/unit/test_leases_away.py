"""Lookups that a remote has something for: what is waited for, what is given up, what is answered."""

import pytest

from kvtier.block import ABSENT, BELOW
from kvtier.cost import ASK_ALWAYS_S
from kvtier.transfer import Promote

from ..far_store import BLOCK, ENGINE, RED, REMOTE_S, FarStore, Remote, asked, key, numbers


@pytest.fixture
def node() -> FarStore:
    return FarStore()


# --- the remote is slow, or away -----------------------------------------------------------------------------------


def test_local_blocks_are_offered_as_if_there_were_no_remote_when_it_never_answers(node):
    """All that a frozen remote costs is the wait for its answer, once, and only where something is missing."""
    node.below(1, 2)
    node.look_up(1, 1, 2, 3)
    node.start_far()  # and nothing is ever heard of it
    node.tick(ASK_ALWAYS_S)
    assert node.waits() == [1], "for the drives"
    node.finish([order for order in node.start() if isinstance(order, Promote)])
    assert node.answers() == {1: [*node.slots(1, 2), ABSENT]}
    assert node.look_up(2, 1, 2) == node.slots(1, 2)


def test_blocks_of_the_drives_do_not_stand_behind_a_read_of_the_remote(node):
    node.below(*range(1, 5))
    node.knows(5, 6, 7, 8)
    node.look_up(1, 5, 6, 7, 8)
    node.look_up(2, 1, 2, 3, 4)
    far = node.start_far()
    assert far, "which never end"
    while near := node.start():
        node.finish(near)
    assert node.answers() == {2: node.slots(1, 2, 3, 4)}


def test_a_lookup_gives_up_what_a_silent_remote_has_and_waits_for_the_drives(node):
    node.below(1, 2)
    node.knows(3)
    node.look_up(1, 1, 2, 3, request="r")
    far, near = node.start_far(), node.start(writable=False)
    assert numbers(far) == [3] and numbers(near) == [1, 2]
    node.now += 0.2
    node.finish(near[:1])
    node.tick(0.2)
    assert node.waits() == [1] and node.answers() == {}
    node.finish(near[1:])
    assert node.answers() == {1: [*node.slots(1, 2), ABSENT]}
    node.finish_far(far)
    assert node.slot(3) != ABSENT, "the next one finds it"


def test_a_lookup_that_waits_for_the_remote_alone_is_answered_when_its_time_is_over(node):
    node.save(1)
    node.knows(2)
    assert node.look_up(1, 1, 2) is None
    far = node.start_far()
    node.tick(REMOTE_S - 0.1)
    assert node.answers() == {}
    node.tick(0.1)
    assert node.answers() == {1: [node.slot(1), ABSENT]}, "absent, for it is to be saved here"
    node.finish_far(far)


def test_while_it_is_away_nothing_is_asked_read_or_waited_for(node):
    node.knows(1)
    node.goes_away()
    assert node.look_up(1, 1, 2) == [ABSENT, ABSENT]
    assert node.start_far() == []


def test_when_it_goes_away_whoever_waits_for_its_answer_is_answered(node):
    node.look_up(1, 1)
    node.start_far()
    node.goes_away()
    node.tick()
    assert node.answers() == {1: [ABSENT]}


def test_when_it_goes_away_what_was_to_be_read_leaves_the_answer(node):
    node.below(1)
    many = range(2, 14)
    node.knows(*many)
    node.look_up(1, 1, *many, request="r")
    far = node.start_far()
    assert 0 < len(numbers(far)) < len(many), "so much at a time"
    node.goes_away()
    assert node.start_far() == []
    node.finish_far(far, "unreachable")
    assert node.answers() == {}, "the drives are still there"
    node.finish(node.start())
    assert node.answers() == {1: [node.slot(1), *[ABSENT] * len(many)]}
    assert node.store.decisions.explain("last", 1)[0]["reason"] == "remote_away"


def test_that_it_is_away_is_why_something_is_missing(node):
    node.goes_away()
    node.look_up(1, 1, request="r")
    assert node.store.decisions.explain("last", 1)[0]["reason"] == "remote_away"


def test_after_it_was_away_everything_known_is_forgotten(node):
    node.knows(1)
    node.away.known.missing(key(2), 0.0)
    node.goes_away()
    node.comes_back()
    node.look_up(1, 1, 2)
    assert asked(node.start_far()) == [[1, 2]]


# --- what it gives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["gone", "corrupt"])
def test_a_block_that_is_not_there_any_more_shortens_the_answer_and_is_known_as_missing(node, fault):
    node.knows(1, 2, 3)
    node.look_up(1, 1, 2, 3)
    first, second, third = node.start_far()
    node.finish_far([first])
    node.finish_far([second], fault)
    assert node.answers() == {1: [node.slot(1), ABSENT, ABSENT]}, "what stands behind it is of no use"
    node.finish_far([third])
    assert node.slot(3) == ABSENT
    node.look_up(2, 1, 2, 3)
    assert asked(node.start_far()) == [] and node.waits() == []


def test_a_read_that_the_remote_did_not_carry_out_says_nothing_of_the_block(node):
    node.knows(1)
    node.look_up(1, 1)
    node.finish_far(node.start_far(), "unreachable")
    assert node.answers() == {1: [ABSENT]}
    assert node.look_up(2, 1) is None
    assert numbers(node.start_far()) == [1]


def test_a_block_of_another_size_is_nobodys(node):
    node.remote.put(1, size=2 * BLOCK)
    node.look_up(1, 1)
    node.finish_far(node.start_far())
    assert node.answers() == {1: [ABSENT]} and node.start_far() == []


def test_blocks_of_a_chain_may_come_in_any_order(node):
    node.knows(1, 2, 3)
    node.look_up(1, 1, 2, 3)
    for order in reversed(node.start_far()):
        node.finish_far([order])
    assert node.answers() == {1: node.slots(1, 2, 3)}


def test_what_came_before_the_block_that_did_not_come_is_dropped(node):
    node.knows(1, 2, 3)
    node.look_up(1, 1, 2, 3)
    first, second, third = node.start_far()
    node.finish_far([third, second])
    assert node.slot(3) != ABSENT
    node.finish_far([first], "gone")
    assert node.answers() == {1: [ABSENT] * 3}
    node.store.release(ENGINE, 1, 0)
    assert node.slots(1, 2, 3) == [ABSENT] * 3 and not node.store.ram.policy.blocks_in_slab.any()


def test_what_waits_for_its_turn_behind_what_came_is_dropped_with_a_lookup_that_waits_no_more(node):
    """Its own drives give the second block of a chain before the remote's turn to give the first comes."""
    node.below(1, 2)
    node.store.lower.drop([key(1)])
    node.knows(1)
    node.look_up(1, 1, 2)
    near = node.start(writable=False)
    node.finish(near)
    node.store.release(ENGINE, 1, 0)
    assert node.slot(2) == ABSENT


def test_what_came_from_the_remote_is_read_from_ram_the_next_time(node):
    node.knows(1)
    node.look_up(1, 1)
    node.run()
    node.store.release(ENGINE, 1, 1)
    assert node.look_up(2, 1) == [node.slot(1)]


def test_a_record_says_what_came_from_where(node):
    node.below(2)
    node.save(1)
    node.knows(3)
    node.look_up(1, 1, 2, 3, request="r")
    node.run()
    record = node.store.decisions.explain("last", 1)[0]
    assert record["matched"] == record["offered"] == {"cpu": 16, "nvme": 16, "remote": 16}


def test_what_the_decision_leaves_in_the_remote_is_absent_and_what_it_leaves_on_the_drives_is_below(node):
    node.below(2)
    node.save(1)
    node.knows(3)
    node.store.decisions.decide = lambda *question: "cpu"
    assert node.look_up(1, 1, 2, 3, request="r") == [node.slot(1), BELOW, ABSENT]
    node.store.decisions.decide = lambda *question: "nvme"
    assert node.look_up(2, 1, 2, 3, request="s") is None
    assert numbers(node.start()) == [2] and numbers(node.start_far()) == []


def test_a_read_is_shared_by_those_who_want_it_from_elsewhere(node):
    """One lookup wants it from the remote and has to wait for its turn; meanwhile it is read from the drives."""
    many = range(10, 20)
    node.knows(*many)
    node.look_up(1, *many)
    started = numbers(node.start_far())
    late = next(number for number in many if number not in started)
    node.store.lower.extents.add(node.store.lower.extents.take(BLOCK), key(late), 0, 0)
    node.store.leases.stage_s["nvme"] = 1.0
    assert node.look_up(2, late) is None
    near = node.start(writable=False)
    assert numbers(near) == [late]
    while far := node.start_far():
        assert late not in numbers(far)
        node.finish_far(far)
    node.finish(near)
    assert node.slot(late) in node.answers()[2]


# --- namespaces ----------------------------------------------------------------------------------------------------


def test_a_namespace_that_was_reset_does_not_use_the_remote(node):
    node.knows(1)
    node.store.reset(ENGINE, RED)
    assert node.look_up(1, 1, 2) == [ABSENT, ABSENT]
    assert asked(node.start_far()) == []


def test_what_is_read_while_its_namespace_is_reset_is_not_kept(node):
    node.knows(1)
    node.look_up(1, 1)
    far = node.start_far()
    node.store.reset(ENGINE, RED)
    node.finish_far(far)
    assert node.slot(1) == ABSENT and node.answers() == {1: [ABSENT]}


def test_a_remote_alone_needs_no_drives():
    node = FarStore(drives=False)
    node.remote.put(1, 2)
    node.look_up(1, 1, 2)
    node.run()
    assert node.answers() == {1: node.slots(1, 2)}
    assert node.start() == [] and node.store.snapshot(0.0)["tiers"].keys() == {"cpu", "remote"}


def test_another_node_finds_what_this_one_wrote():
    remote = Remote()
    first, second = FarStore(remote=remote), FarStore(drives=False, remote=remote)
    first.save(1, 2)
    first.look_up(1, 1, 2)
    first.run()
    second.look_up(1, 1, 2)
    second.run()
    assert second.answers() == {1: second.slots(1, 2)}
