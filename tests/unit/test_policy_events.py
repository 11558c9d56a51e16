"""Policy after any events: exactly what a scan of a plain list would say (policy_model.py)."""

from hypothesis import given, settings
from hypothesis import strategies as st
from policy_model import NOW, Hilly, Model, check_columns, drop, made, play, victim

from kvtier.policy import KEPT
from kvtier.ranking import Lru

SLOTS = st.integers(0, 11)
QUEUES = st.integers(0, 5)  # 0: kept
ORDERS = st.none() | st.integers(-5, 60).map(float)
EVENTS = st.lists(
    st.tuples(st.just("add"), SLOTS, st.lists(SLOTS, max_size=1), QUEUES, ORDERS)
    | st.tuples(st.just("use"), st.lists(SLOTS, max_size=6), QUEUES)
    | st.tuples(st.just("move"), st.lists(SLOTS, max_size=4, unique=True), QUEUES, ORDERS)
    | st.tuples(st.just("swap"), SLOTS, st.integers(1, 5))
    | st.tuples(st.sampled_from(["remove", "attach"]), SLOTS, SLOTS)
    | st.tuples(st.just("evict"), st.sets(SLOTS)),
    max_size=50,
)


@given(EVENTS)
@settings(max_examples=400, deadline=None)
def test_after_any_events_the_leaf_worth_least_goes(events):
    policy, model, refused = made(Hilly()), Model(), set()
    for event in events:
        play(policy, model, event, refused)
        check_columns(policy, model)
    while (slot := victim(policy)) is not None:
        assert slot in model.leaves() and slot in model.least(set(), lambda q, o: policy.ranking.worth(q, o, NOW, NOW))
        drop(policy, model, slot)
    assert all(block["queue"] == KEPT for slot, block in model.blocks.items() if slot in model.leaves())


@given(EVENTS, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_nothing_changes_when_heaps_are_swept_at_any_time(events, every):
    policy, model, refused = made(Hilly()), Model(), set()
    for number, event in enumerate(events):
        play(policy, model, event, refused)
        if number % (every + 1) == 0:
            for size, queues in policy._sizes.items():
                policy._sweep(queues, size)
    check_columns(policy, model)


@given(EVENTS)
@settings(max_examples=100, deadline=None)
def test_least_recently_used_is_exactly_that_of_leaves(events):
    policy, model, refused = made(Lru()), Model(), set()
    for event in events:
        if event[0] in ("add", "use", "remove", "attach", "evict"):  # all in the one queue
            event = (*event[:3], 1, None) if event[0] == "add" else (*event[:2], 1) if event[0] == "use" else event
            play(policy, model, event, refused)
    while (slot := victim(policy)) is not None:
        assert slot == min(model.leaves(), key=lambda slot: model.blocks[slot]["stamp"])
        drop(policy, model, slot)
    assert not model.blocks
