"""Lending: who may hold how many slots, and when they come back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.block import Kind
from kvtier.errors import ProtocolError
from kvtier.lending import Engine, Lending
from kvtier.ram import Ram
from kvtier.ranking import Lru
from kvtier.stats import Stats

MIB = 1024**2
BLOCK = MIB // 4
CAPACITY = 8 * MIB  # 32 slots of a small block


def made(share: float = 0.25) -> tuple[Lending, Ram]:
    """All together may be lent 8 small slots."""
    ram = Ram(CAPACITY, Stats(), Lru())
    return Lending(ram, int(CAPACITY * share)), ram


def join(lending: Lending, name: str, wish: int = 4, size: int = BLOCK) -> Engine:
    engine = Engine(0, Kind(size, 16, True), wish, wish, 0.0)
    lending.join(name, engine)
    return engine


def held(lending: Lending) -> dict[str, int]:
    return {name: len(engine.lent) for name, engine in lending.engines.items()}


def test_nobody_is_lent_anything_who_has_not_joined():
    lending, _ = made()
    assert lending.lends() == []


def test_an_engine_is_lent_what_it_wishes():
    lending, ram = made()
    engine = join(lending, "a")
    ((name, slots),) = lending.lends()
    assert (name, set(slots), len(slots)) == ("a", engine.lent, 4)
    assert lending.lent_bytes == 4 * BLOCK == ram.slots.taken_bytes


def test_and_not_twice():
    lending, _ = made()
    join(lending, "a")
    lending.lends()
    lending.can_help = True
    assert lending.lends() == []


def test_all_together_are_lent_at_most_so_much_each_an_equal_part():
    lending, _ = made()
    engines = [join(lending, name, wish=100) for name in "ab"]
    lending.lends()
    assert held(lending) == {"a": 4, "b": 4}
    assert [lending.target(engine) for engine in engines] == [4, 4]


def test_each_may_hold_one_however_little_there_is():
    lending, _ = made(share=0.0)
    for name in "abc":
        join(lending, name)
    lending.lends()
    assert held(lending) == {"a": 1, "b": 1, "c": 1}


def test_who_comes_later_has_one_until_the_others_have_used_theirs():
    lending, _ = made()
    join(lending, "a", wish=100)
    lending.lends()
    join(lending, "b", wish=100)
    lending.lends()
    assert held(lending) == {"a": 8, "b": 1}
    lending.take_back("a", sorted(lending.engines["a"].lent)[:5])
    lending.mark_hungry("a")
    lending.mark_hungry("b")
    lending.lends()
    assert held(lending) == {"a": 3, "b": 4}


def test_nothing_is_lent_before_less_than_half_is_left():
    lending, _ = made()
    engine = join(lending, "a")
    lending.lends()
    lending.take_back("a", sorted(engine.lent)[:2])
    lending.mark_hungry("a")
    assert lending.lends() == []
    lending.take_back("a", sorted(engine.lent)[:1])
    lending.mark_hungry("a")
    assert [(name, len(slots)) for name, slots in lending.lends()] == [("a", 3)]


def test_who_wants_fewer_is_lent_fewer_and_never_more_than_he_joined_with():
    lending, _ = made()
    engine = join(lending, "a")
    lending.want("a", 1)
    lending.lends()
    assert held(lending) == {"a": 1}
    lending.want("a", 1000)
    lending.lends()
    assert (held(lending), engine.wish) == ({"a": 4}, 4)


def test_who_wants_fewer_than_he_has_keeps_them_until_he_gives_them_back():
    lending, _ = made()
    join(lending, "a")
    lending.lends()
    lending.want("a", 1)
    lending.lends()
    assert held(lending) == {"a": 4}


@pytest.mark.parametrize("wrong", [[99], [0, 0]])
def test_a_slot_that_is_not_lent_is_not_taken_back_nor_any_other_of_them(wrong):
    lending, _ = made()
    engine = join(lending, "a")
    lending.lends()
    before = set(engine.lent)
    with pytest.raises(ProtocolError) as caught:
        lending.take_back("a", [min(before), *wrong] if wrong == [99] else [min(before)] * 2)
    assert caught.value.code == "bad_slot"
    assert (engine.lent, lending.lent_bytes) == (before, 4 * BLOCK)


def test_nobody_gives_back_what_is_lent_to_another():
    lending, _ = made()
    join(lending, "a", wish=2)
    other = join(lending, "b", wish=2)
    lending.lends()
    with pytest.raises(ProtocolError):
        lending.take_back("a", sorted(other.lent))


def test_what_was_lent_to_one_who_is_gone_is_free_and_the_others_may_hold_more():
    lending, ram = made()
    join(lending, "a", wish=100)
    join(lending, "b", wish=100)
    lending.lends()
    lending.leave("a")
    assert (lending.lent_bytes, ram.slots.taken_bytes) == (4 * BLOCK, 4 * BLOCK)
    lending.take_back("b", sorted(lending.engines["b"].lent)[:1])
    lending.mark_hungry("b")
    lending.lends()
    assert held(lending) == {"b": 8}


def test_when_there_is_no_room_one_stays_hungry_until_there_is():
    lending, ram = made(share=1.0)
    taken = list(ram.takes(BLOCK, "by a test"))
    join(lending, "a")
    assert lending.lends() == []
    ram.give(taken[0])
    assert lending.lends() == [], "nobody said that it may help now"
    lending.can_help = True
    assert [(name, len(slots)) for name, slots in lending.lends()] == [("a", 1)]


SIZES = st.sampled_from([BLOCK, BLOCK * 3])
EVENTS = st.lists(
    st.tuples(st.just("join"), st.sampled_from("abcd"), st.integers(1, 20), SIZES)
    | st.tuples(st.just("want"), st.sampled_from("abcd"), st.integers(0, 30), st.none())
    | st.tuples(st.sampled_from(["back", "leave"]), st.sampled_from("abcd"), st.integers(1, 9), st.none()),
    max_size=30,
)


@given(EVENTS)
@settings(deadline=None)
def test_whatever_comes_nobody_holds_what_another_holds_and_all_is_counted(events):
    lending, ram = made()
    for what, name, n, size in events:
        if what == "join" and name not in lending.engines:
            join(lending, name, n, size)
        elif what == "want" and name in lending.engines:
            lending.want(name, n)
        elif what == "leave" and name in lending.engines:
            lending.leave(name)
        elif what == "back" and name in lending.engines:
            slots = sorted(lending.engines[name].lent)[:n]
            lending.take_back(name, slots)
            for slot in slots:
                ram.give(slot)
            lending.mark_hungry(name)
        before = held(lending)
        for lent_to, slots in lending.lends():
            assert len(lending.engines[lent_to].lent) == before[lent_to] + len(slots)
            assert len(lending.engines[lent_to].lent) <= lending.target(lending.engines[lent_to])
        everything = [slot for engine in lending.engines.values() for slot in engine.lent]
        assert len(set(everything)) == len(everything)
        in_bytes = sum(len(engine.lent) * engine.kind.slot_bytes for engine in lending.engines.values())
        assert lending.lent_bytes == in_bytes == ram.slots.taken_bytes
        largest = max((engine.kind.slot_bytes for engine in lending.engines.values()), default=0)
        assert in_bytes <= CAPACITY // 4 + len(lending.engines) * largest
