"""Value: what the first of each queue is worth. That the least goes: test_policy.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier import ranking
from kvtier.policy import NONE, QUEUES_MAX, Policy
from kvtier.ranking import ACTIVE, ACTIVE_WORTH, ANNOUNCED_CHANCE, ENDED, EXPECTED, PARKED, Lru, Value
from kvtier.returns import OTHERS, Returns

KEY = bytes(16)
RED, BLUE = 0, 1  # namespaces
WEIGHT, WEIGHT_BELOW = ranking.SECONDS_A_BYTE, ranking.SECONDS_A_BYTE_BELOW


@pytest.fixture
def value() -> Value:
    return Value(Returns(8))


def worth(value: Value, kind: int | str, order: float = 1.0, used_at: float = 0.0, now: float = 0.0, below: bool = False):
    return value.worth(value.queue(kind, RED, below), order, used_at, now)


def order_of(ranking_: Value | Lru, *blocks: tuple[int, int, float]) -> list[int]:
    """Who goes first, of (slot, queue, used at); at 100 s."""
    policy = Policy(16, 16, ranking_)
    for slot, queue, used_at in blocks:
        policy.add(slot, 1, KEY, NONE, queue, used_at)
    gone = []
    while (slot := policy.victim(1, lambda slot: True, 100.0)) is not None:
        policy.remove(slot, KEY)
        gone.append(slot)
    return gone


def test_least_recently_used_looks_at_nothing_else():
    assert order_of(Lru(), (3, 5, 0.0), (1, 2, 9.0), (2, 7, 5.0)) == [3, 1, 2]


def test_ended_is_worth_nothing_and_parked_next_to_nothing_and_active_more_than_who_chats(value):
    worths = [worth(value, kind) for kind in (ENDED, PARKED, OTHERS, ACTIVE)]
    assert worths == sorted(worths)
    assert worths == [0.0, pytest.approx(1e-12 * WEIGHT), pytest.approx(value._returns.index(OTHERS, 0.0) * WEIGHT),
                      ACTIVE_WORTH * WEIGHT]  # fmt: skip


def test_what_is_active_comes_back_soon_but_not_in_this_moment(value):
    """Its engine has what it loaded. Who is announced for now, or waits for a quick tool, has more need of room."""
    tool = value._returns.category("tool search", (0.9, 3.0, 1.2))
    assert worth(value, OTHERS) < worth(value, ACTIVE) < worth(value, tool) < worth(value, EXPECTED, order=-1.0, now=1.0)


def test_what_comes_sooner_is_worth_more(value):
    """Its order is minus the time of its return."""
    soon, later = (worth(value, EXPECTED, order=-at, now=10.0) for at in (12.0, 20.0))
    assert soon == pytest.approx(ANNOUNCED_CHANCE / 2 * WEIGHT)
    assert later == pytest.approx(ANNOUNCED_CHANCE / 10 * WEIGHT)


def test_what_is_late_is_worth_no_more_than_what_comes_at_once(value):
    assert worth(value, EXPECTED, order=-5.0, now=99.0) == pytest.approx(ANNOUNCED_CHANCE / 0.05 * WEIGHT)


def test_of_a_category_the_index_of_its_idle_time_counts(value):
    for idle_s in (0.0, 3.0, 200.0, 1e6):
        assert worth(value, OTHERS, used_at=7.0, now=7.0 + idle_s) == value._returns.index(OTHERS, idle_s) * WEIGHT


def test_what_is_below_too_is_worth_what_reading_it_costs(value):
    assert worth(value, OTHERS, below=True) == pytest.approx(worth(value, OTHERS) * WEIGHT_BELOW / WEIGHT)
    value.weigh(RED, False, 7e-9)
    value.weigh(RED, True, 2e-9)
    assert worth(value, ACTIVE) == ACTIVE_WORTH * 7e-9
    assert worth(value, ACTIVE, below=True) == ACTIVE_WORTH * 2e-9


def test_each_namespace_has_a_weight_of_its_own(value):
    value.weigh(RED, False, 7e-9)
    assert value.worth(value.queue(ACTIVE, BLUE, False), 1.0, 0.0, 0.0) == ACTIVE_WORTH * WEIGHT


def test_blocks_go_ended_first_then_parked_then_those_that_come_latest(value):
    queue = {kind: value.queue(kind, RED, False) for kind in (ENDED, PARKED, EXPECTED, OTHERS, ACTIVE)}
    blocks = [(1, queue[ACTIVE], 0.0), (2, queue[PARKED], 99.0), (3, queue[OTHERS], 90.0), (4, queue[ENDED], 99.0)]
    assert order_of(value, *blocks) == [4, 2, 3, 1]


def test_a_queue_is_known_by_what_it_is_for(value):
    queue = value.queue(ACTIVE, RED, False)
    assert queue == value.queue(ACTIVE, RED, False) > 0
    assert value.kind(queue) == ACTIVE
    assert (
        len({queue, value.queue(ACTIVE, BLUE, False), value.queue(ACTIVE, RED, True), value.queue(OTHERS, RED, True)}) == 4
    )


def test_a_queue_and_that_for_what_is_below_lead_to_each_other(value):
    queue = value.queue(PARKED, RED, False)
    assert value.below(queue, True) == value.queue(PARKED, RED, True)
    assert value.below(value.below(queue, True), False) == queue


def test_what_is_kept_is_not_ended(value):
    assert value.kind(0) != ENDED


def test_when_there_are_too_many_queues_namespaces_share_theirs(value):
    for namespace in range(QUEUES_MAX):
        value.queue(ACTIVE, namespace, False)
    shared = value.queue(ACTIVE, 10**6, False)
    assert 0 < shared < QUEUES_MAX and value.kind(shared) == ACTIVE


def test_when_there_are_too_many_queues_what_was_never_seen_stands_with_no_other_kind(value):
    for namespace in range(QUEUES_MAX):
        value.queue(ACTIVE, namespace, False)
    assert value.kind(value.queue(5, RED, False)) == OTHERS


@given(st.lists(st.tuples(st.sampled_from([ENDED, PARKED, EXPECTED, ACTIVE, 0, 1, 2]), st.integers(0, 90), st.booleans()),
                max_size=600))  # fmt: skip
def test_a_queue_has_a_number_within_bounds_and_always_the_same(names):
    value = Value(Returns(8))
    numbers = [value.queue(*name) for name in names]
    assert all(0 < number < QUEUES_MAX for number in numbers)
    assert [value.queue(*name) for name in names] == numbers


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.sampled_from([OTHERS, 1, ACTIVE, PARKED, EXPECTED]))
def test_a_worth_is_finite_and_never_less_than_that_of_what_ended(used_at, idle_s, kind):
    value = Value(Returns(8))
    value._returns.category("tool", (0.9, 3.0, 1.2))
    now = used_at + idle_s
    assert worth(value, ENDED) == 0.0 <= worth(value, kind, order=-used_at, used_at=used_at, now=now) < 1e-6
