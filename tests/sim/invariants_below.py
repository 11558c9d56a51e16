"""What must hold of the tier below, as the store sees it, at any moment. It reads private columns."""

from collections import Counter

from kvtier.block import SLOT_UNIT
from kvtier.columns import DEAD
from kvtier.extents import Extents
from kvtier.store import BlockStore
from kvtier.transfer import Demote, Promote

from . import invariants_coding
from .drives import Drives
from .expected import Expected
from .expected_below import ExpectedBelow


def check(store: BlockStore, expected: Expected, drives: Drives) -> None:
    """AssertionError names what is broken."""
    assert expected.below is not None
    what_lies_there_is_as_expected(drives.extents, expected.below)
    extents_and_columns_agree(drives.extents)
    each_extent_is_in_one_state(drives.extents)
    extents_in_use_are_busy(drives.extents, expected.below)
    transfers_are_accounted(store, expected.below, drives)
    lookups_wait_for_what_they_should(store, expected.below)
    it_knows_what_was_used_again(store, expected)
    if drives.coding is not None:
        invariants_coding.check(store, expected.below, drives)


def what_lies_there_is_as_expected(extents: Extents, below: ExpectedBelow) -> None:
    assert dict(extents._table) == {key: lying.place for key, lying in below.blocks.items()}, "which blocks lie below"
    for lying in below.blocks.values():
        assert extents.holds(lying.place)
        assert extents.checksum(lying.place) == lying.checksum, "a checksum is of another block"
        assert extents.namespace(lying.place) == below.numbers[lying.namespace], "a block is in another namespace"
        assert (extents.size(lying.place), extents.stored(lying.place)) == (lying.size, lying.place_bytes), "its sizes"
    assert extents.used_bytes == sum(lying.place_bytes for lying in below.blocks.values()), "used_bytes"
    assert extents.block_bytes == sum(lying.size for lying in below.blocks.values()), "block_bytes"
    assert extents.used_bytes <= extents.capacity


def extents_and_columns_agree(extents: Extents) -> None:
    rows = Counter(first + i for n, first in extents._columns.rows.spare for i in range(n))
    keys = {}
    for number, extent in enumerate(extents._extents):
        its_rows = extents._rows_of(extent)
        rows.update(range(extent.rows, extent.rows + extent.rows_kept))
        assert extent.rows_kept >= its_rows.stop - its_rows.start, f"extent {number} has too few rows"
        alive = [row for row in range(its_rows.start, its_rows.stop) if extents._columns.namespace[row] != DEAD]
        assert extent.blocks == len(alive), f"extent {number} counts its blocks wrongly"
        for row in alive:
            place = number * extents._units + (row - extent.rows) * extent.stored // SLOT_UNIT
            keys[extents._columns.keys[row].tobytes()] = place
    assert keys == dict(extents._table), "keys by row and places by key"
    assert max(rows.values(), default=1) == 1, "two extents share rows"
    assert set(rows) == set(range(extents._columns.rows.end)), "rows are lost"


def each_extent_is_in_one_state(extents: Extents) -> None:
    free = Counter(number for numbers in extents._free for number in numbers)
    open_ = Counter(number for numbers in extents._open.values() for number in numbers)
    for drive, numbers in enumerate(extents._free):
        assert all(number % extents._drives == drive for number in numbers), "a free extent is of another drive"
    for sizes, numbers in extents._open.items():
        theirs = [(extents._extents[number].size, extents._extents[number].stored) for number in numbers]
        assert all(one == sizes for one in theirs), "an extent of other sizes is open"
    for number, extent in enumerate(extents._extents):
        assert free[number] == (not extent.size), f"extent {number} is free or it isn't"
        is_open = bool(extent.size) and not extent.leaving and extent.taken < extents.extent_bytes // extent.stored
        assert open_[number] == is_open, f"extent {number} is open or it isn't"
        assert not (extent.leaving and (extent.blocks or extent.busy)), f"extent {number} leaves and is in use"
    assert extents._leaving == sum(extent.leaving for extent in extents._extents)


def extents_in_use_are_busy(extents: Extents, below: ExpectedBelow) -> None:
    busy = Counter(
        order.place // extents._units for order in below.under_way.values() if isinstance(order, Demote | Promote)
    )
    busy.update(place // extents._units for place in below.erasing)
    wrong = [n for n, extent in enumerate(extents._extents) if extent.busy != busy[n]]
    assert not wrong, f"extents {wrong} are in use, or they aren't"


def transfers_are_accounted(store: BlockStore, below: ExpectedBelow, drives: Drives) -> None:
    lower = store.lower
    assert lower is not None
    assert lower._erasing == below.erasing, "which places are to be erased"
    assert set(lower._under_way) == set(below.under_way) == set(drives.tier.under_way), "what is under way"
    assert set(lower.demotions._writing) == {order.key for order in below.writes()}
    assert lower.demotions.writing_bytes == sum(order.size for order in below.writes()), "writing_bytes"
    assert lower.staging.reading_bytes("nvme") == sum(read.order.size for read in below.reads.values()), "reading_bytes"
    link = below.link
    assert link.queued_bytes == below.queued_bytes, "the link doesn't know what is queued"
    assert not link.queued_bytes or below.reads or below.waiting, "nothing is under way, and the link is busy"
    assert link.came_bytes == below.came_bytes, "the link learns from what did not come"
    assert abs(lower.demotions.budget.left - below.left) < 2 + below.bytes_per_day / 1000, "what is left of the budget"


def lookups_wait_for_what_they_should(store: BlockStore, below: ExpectedBelow) -> None:
    assert store.lower is not None
    waiting = store.lower.staging.waiting
    assert list(waiting) == list(below.waiting), "which lookups wait"
    for asker, mine in waiting.items():
        theirs = below.waiting[asker]
        part = mine.parts["nvme"]
        assert [one.key for one in part.to_read] == [one.key for one in theirs.to_read], "what is still to be read"
        assert mine.positions == theirs.positions and mine.until == theirs.until, "what a lookup waits for"
        assert part.moved_at == theirs.moved_at, "when something moved for it"
        assert mine.answer.tolist() == theirs.answer, "how a lookup would be answered"
        assert mine.positions, "a lookup waits for nothing"
        being_read = {read.order.key for read in below.reads.values()}
        assert set(mine.positions) <= being_read | {one.key for one in part.to_read}, "nobody reads for a lookup"
    assert not store.lower.staging.arrived, "somebody was not told"


def it_knows_what_was_used_again(store: BlockStore, expected: Expected) -> None:
    assert store.lower is not None and expected.below is not None
    for slot, (key, _) in expected.blocks.items():
        assert store.lower.demotions._used_again[slot] == (key in expected.below.used_again), f"slot {slot} was used again"


def all_is_quiet(store: BlockStore, expected: Expected, drives: Drives) -> None:
    """Nothing goes on, and everything that was worth it and has not gone lies below."""
    assert store.lower is not None and expected.below is not None
    assert store.lower.is_idle and not expected.below.under_way, "something is never finished"
    assert not expected.below.flushes and not store.lower.demotions._awaited, "a flush is never over"
    assert not expected.below.waiting, "a lookup waits for ever"
    missing = {key for key, _ in expected.blocks.values()} - expected.below.written
    assert len(missing) <= drives.refusals(), "blocks in RAM were never written"
