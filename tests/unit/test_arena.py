"""Slots: how the arena is cut, and that no two takers ever get the same place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvtier.arena import SLAB_ALIGN, SLAB_BYTES_MAX, SLABS_MIN, Slots, slab_bytes_for
from kvtier.block import SLOT_UNIT

MIB = 1024**2
SMALL, LARGE = 4 * SLOT_UNIT, 5 * SLOT_UNIT  # of 32 units a slab: 8 fit exactly; 6 fit and 2 units are waste


@pytest.fixture
def slots() -> Slots:
    """Two slabs of 2 MiB."""
    return Slots(2 * SLAB_ALIGN)


def take_all(slots: Slots, size: int) -> list[int]:
    taken = []
    while (slot := slots.take(size)) is not None:
        taken.append(slot)
    return taken


def test_a_large_arena_has_slabs_of_128_mib():
    assert slab_bytes_for(64 * 1024 * MIB) == SLAB_BYTES_MAX == 128 * MIB


def test_a_small_arena_still_has_16_slabs():
    assert slab_bytes_for(256 * MIB) == 16 * MIB
    assert slab_bytes_for(32 * MIB) == SLAB_ALIGN


@given(st.integers(SLABS_MIN, 4096).map(lambda n: n * SLAB_ALIGN))
def test_slabs_are_aligned_fit_the_arena_and_leave_less_than_one_of_it(capacity):
    slots = Slots(capacity)
    assert slots.slab_bytes % SLAB_ALIGN == 0
    assert slots.slabs >= SLABS_MIN
    assert 0 <= capacity - slots.slabs * slots.slab_bytes < slots.slab_bytes


def test_slots_of_one_size_fill_the_arena_without_a_gap(slots):
    assert sorted(take_all(slots, SMALL)) == list(range(0, 64, 4))
    assert slots.taken_bytes == slots.capacity


def test_a_slab_wastes_less_than_one_slot(slots):
    assert sorted(take_all(slots, LARGE)) == [*range(0, 30, 5), *range(32, 62, 5)]
    assert slots.capacity - slots.taken_bytes == 4 * SLOT_UNIT


def test_a_slot_may_be_as_large_as_a_slab(slots):
    assert sorted(take_all(slots, slots.slab_bytes)) == [0, 32]


def test_a_slot_larger_than_a_slab_is_a_programmer_error(slots):
    with pytest.raises(AssertionError):
        slots.take(slots.slab_bytes + SLOT_UNIT)


def test_two_sizes_share_the_arena_slab_by_slab(slots):
    small, large = slots.take(SMALL), slots.take(LARGE)
    assert slots.slab_of(small) != slots.slab_of(large)
    assert (slots.size_of(small), slots.size_of(large)) == (SMALL, LARGE)
    assert slots.taken_bytes == SMALL + LARGE


def test_a_slab_keeps_its_size_while_one_slot_of_it_is_taken(slots):
    small = take_all(slots, SMALL)
    for slot in small[1:]:
        slots.give(slot)
    assert len(take_all(slots, LARGE)) == 6, "only the slab that is empty"
    assert slots.size_of(small[0]) == SMALL


def test_an_empty_slab_belongs_to_nobody_and_any_size_can_have_it(slots):
    for slot in take_all(slots, SMALL):
        slots.give(slot)
    assert [slots.size_of(slot) for slot in (0, 32)] == [0, 0]
    assert slots.taken_bytes == 0
    assert len(take_all(slots, LARGE)) == 12


def test_a_slot_is_free_until_it_is_taken_and_after_it_came_back(slots):
    first, second = slots.take(SMALL), slots.take(SMALL)
    assert not slots.is_free(first)
    slots.give(first)
    assert slots.is_free(first)
    slots.give(second)
    assert not slots.is_free(first), "its slab is not cut any more"


def test_giving_a_slot_back_twice_is_a_programmer_error(slots):
    kept, slot = slots.take(SMALL), slots.take(SMALL)
    slots.give(slot)
    with pytest.raises(AssertionError, match="twice"):
        slots.give(slot)
    slots.give(kept)
    with pytest.raises(AssertionError, match="twice"):
        slots.give(kept)


def test_a_closing_slab_hands_out_nothing_and_belongs_to_nobody_when_its_last_slot_is_back(slots):
    first, second = slots.take(SMALL), slots.take(SMALL)
    slots.close(slots.slab_of(first))
    assert slots.is_closing(first)
    slots.give(first)
    assert not slots.is_free(first)
    assert len(take_all(slots, SMALL)) == 8, "those of the other slab"
    assert take_all(slots, LARGE) == []
    slots.give(second)
    assert slots.closing is None
    assert len(take_all(slots, LARGE)) == 6


def test_giving_a_slot_back_twice_to_a_closing_slab_is_a_programmer_error(slots):
    slots.take(SMALL)
    slot = slots.take(SMALL)
    slots.close(slots.slab_of(slot))
    slots.give(slot)
    with pytest.raises(AssertionError, match="twice"):
        slots.give(slot)


def test_only_one_slab_closes_at_a_time_and_never_an_empty_one(slots):
    small, large = slots.take(SMALL), slots.take(LARGE)
    slots.close(slots.slab_of(small))
    with pytest.raises(AssertionError):
        slots.close(slots.slab_of(large))
    slots.give(small)
    with pytest.raises(AssertionError):
        slots.close(slots.slab_of(small))


class SlotsMachine(RuleBasedStateMachine):
    """Any order of taking and giving, of three sizes, against a list of who has what."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3 * SLAB_ALIGN)
        self.taken: dict[int, int] = {}  # slot -> size

    @rule(size=st.sampled_from([SMALL, LARGE, 16 * SLOT_UNIT]))
    def take(self, size):
        slot = self.slots.take(size)
        if slot is None:
            slabs = {self.slots.slab_of(taken) for taken in self.taken}
            assert len(slabs) == self.slots.slabs, "an unassigned slab can always be cut"
        else:
            assert not self.slots.is_closing(slot)
            units = {unit for taken, its in self.taken.items() for unit in range(taken, taken + its // SLOT_UNIT)}
            assert units.isdisjoint(range(slot, slot + size // SLOT_UNIT)), "it lies over another"
            assert self.slots.slab_of(slot) == self.slots.slab_of(slot + size // SLOT_UNIT - 1), "it lies over the edge"
            self.taken[slot] = size

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data):
        slot = data.draw(st.sampled_from(sorted(self.taken)))
        self.slots.give(slot)
        del self.taken[slot]

    @precondition(lambda self: self.taken and self.slots.closing is None)
    @rule(data=st.data())
    def close(self, data):
        self.slots.close(self.slots.slab_of(data.draw(st.sampled_from(sorted(self.taken)))))

    @invariant()
    def taken_bytes_are_those_of_the_taken(self):
        assert self.slots.taken_bytes == sum(self.taken.values())
        assert all(self.slots.size_of(slot) == size for slot, size in self.taken.items())


TestSlotsInAnyOrder = SlotsMachine.TestCase
TestSlotsInAnyOrder.settings = settings(max_examples=50, stateful_step_count=60, deadline=None)


def test_slots_that_are_named_are_taken_before_others_if_they_are_free():
    slots = Slots(8 * MIB)
    taken = [slots.take(SMALL) for _ in range(4)]
    slots.give(taken[1])
    slots.give(taken[2])
    first = [taken[1], taken[0], taken[2], taken[3]]
    assert slots.take(SMALL, first) == taken[2]
    assert first == [taken[1], taken[0]], "who isn't free is forgotten"
    assert slots.take(SMALL, first) == taken[1]
    assert slots.take(SMALL, first) not in taken
    assert first == []


def test_how_often_a_slab_was_cut_is_counted():
    slots = Slots(8 * MIB)
    slot = slots.take(SMALL)
    slab = slots.slab_of(slot)
    slots.give(slot)
    slots.take(LARGE)
    assert slots.cuts[slab] == 2
    assert slots.cuts.sum() == 2
