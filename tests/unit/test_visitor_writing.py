"""Visitors write blocks into RAM, within bounds, and drop them."""

import os

import pytest
from visiting import BLOCK, BLUE, KIND, MIB, RED, World, done, key

from kvtier import namespaces
from kvtier import visitor as module
from kvtier.block import ABSENT, SLOT_UNIT, Kind, pack_keys
from kvtier.errors import ProtocolError
from kvtier.visitor import KNOWN, NO_ROOM, ORPHAN


@pytest.fixture
def world() -> World:
    return World()


def write(world: World, number: int, content: bytes, parent: bytes = b"", **header) -> bool | str:
    room = world.visitor.room(world.header(number, content, **header), parent)
    if isinstance(room, str):
        return room
    room.body[:] = content
    return done(lambda: world.visitor.commit(room))


def test_what_is_written_is_a_block_that_engines_find(world):
    content, origin = os.urandom(BLOCK), b"a session, a ten"
    assert world.visitor.join(RED, KIND) == 0
    assert write(world, 1, content, origin=origin) is True
    (slot,) = world.store.lookup("a", 1, key(1)).tolist()
    assert world.bytes_of(slot).tobytes() == content
    assert world.store.ram.origin[slot].tobytes() == origin


def test_bytes_that_are_not_those_of_the_header_are_no_block(world):
    world.visitor.join(RED, KIND)
    room = world.visitor.room(world.header(1, os.urandom(BLOCK)))
    room.body[:] = os.urandom(BLOCK)
    assert done(lambda: world.visitor.commit(room)) is False
    assert 1 not in world.store.ram.index and world.visitor.sizes(RED, key(1)) == [0]


def test_what_is_here_need_not_be_written(world):
    contents = world.save(1, 2)
    world.evict(2)
    world.visitor.join(RED, KIND)
    assert [write(world, number, content) for number, content in zip((1, 2), contents)] == [KNOWN, KNOWN]


def test_two_that_write_the_same_block_are_both_right(world):
    content = os.urandom(BLOCK)
    world.visitor.join(RED, KIND)
    rooms = [world.visitor.room(world.header(1, content)) for _ in range(2)]
    for room in rooms:
        room.body[:] = content
    assert [done(lambda room=room: world.visitor.commit(room)) for room in rooms] == [True, True]
    assert len(world.store.ram.index) == 1


def test_a_block_behind_one_that_is_nowhere_is_an_orphan(world):
    world.visitor.join(RED, KIND)
    content = os.urandom(BLOCK)
    assert write(world, 2, content, parent=key(1)) == ORPHAN
    assert write(world, 1, content) is True
    assert write(world, 2, content, parent=key(1)) is True
    assert not world.store.ram.policy.is_leaf(world.slot(1))


def test_a_namespace_that_is_new_here_is_met_by_an_engine_that_comes_later(world):
    content = os.urandom(BLOCK)
    assert world.visitor.join(BLUE, KIND) == 0
    assert write(world, 7, content, digest=BLUE) is True
    assert world.store.join("b", BLUE, BLOCK, 16, 4, 0.0)[0] == 0
    (slot,) = world.store.lookup("b", 1, key(7)).tolist()
    assert world.bytes_of(slot).tobytes() == content


def test_so_much_is_lent_and_no_more(world, monkeypatch):
    monkeypatch.setattr(world.visitor, "_lent_max", 2 * BLOCK)
    world.visitor.join(RED, KIND)
    rooms = [world.visitor.room(world.header(number, bytes(BLOCK))) for number in range(3)]
    assert rooms[2] == NO_ROOM
    world.visitor.give_up(rooms[0])
    assert world.visitor.room(world.header(3, bytes(BLOCK))) != NO_ROOM


def test_what_is_lent_to_a_visitor_is_no_part_of_what_engines_are_lent(world):
    lending = world.store.lending
    target = lending.target(lending.engines["a"])
    world.visitor.join(RED, KIND)
    before = lending.lent_bytes
    world.visitor.room(world.header(1, bytes(BLOCK)))
    assert (lending.target(lending.engines["a"]), lending.lent_bytes) == (target, before)
    assert [row["engine"] for row in lending.snapshot(0.0)] == ["a"]
    assert lending.lends() == []


def test_a_slot_that_is_given_up_is_free_again(world):
    world.visitor.join(RED, KIND)
    before = world.store.ram.slots.taken_bytes
    room = world.visitor.room(world.header(1, bytes(BLOCK)))
    assert world.store.ram.slots.taken_bytes == before + BLOCK
    world.visitor.give_up(room)
    assert world.store.ram.slots.taken_bytes == before


def test_a_reset_while_it_was_written_leaves_no_block(world):
    world.visitor.join(RED, KIND)
    room = world.visitor.room(world.header(1, bytes(BLOCK)))
    world.store.reset("a", RED)
    assert world.visitor.keep(room) is False and 1 not in world.store.ram.index


@pytest.mark.parametrize("size", [0, 1, SLOT_UNIT + 1, 4 * MIB])
def test_a_block_of_a_size_that_none_has_is_refused(world, size):
    with pytest.raises(ProtocolError):
        world.visitor.join(RED, Kind(size, 16, True))


def test_only_so_many_namespaces_are_brought_by_visitors(world, monkeypatch):
    monkeypatch.setattr(namespaces, "NAMESPACES_MAX", 4)
    assert world.visitor.join(BLUE, KIND) == world.visitor.join(b"green".ljust(32), KIND) == 0
    with pytest.raises(ProtocolError, match="2 namespaces of unknown users, and room for 1"):
        world.visitor.join(b"yellow".ljust(32), KIND)
    assert world.visitor.join(RED, KIND) == 0


def test_a_kind_that_did_not_join_or_that_others_made_way_for_has_no_room(world, monkeypatch):
    monkeypatch.setattr(module, "GUESTS_MAX", 2)
    assert world.visitor.room(world.header(1, bytes(BLOCK))) == NO_ROOM
    for units in (1, 2, 3):
        world.visitor.join(BLUE, Kind(units * SLOT_UNIT, 16, True))
    assert world.visitor.room(world.header(1, bytes(SLOT_UNIT), BLUE)) == NO_ROOM
    assert world.visitor.room(world.header(1, bytes(3 * SLOT_UNIT), BLUE)) != NO_ROOM


def test_blocks_of_another_size_than_the_engines_of_their_namespace_have_are_refused(world):
    with pytest.raises(ProtocolError, match="another size"):
        world.visitor.join(RED, Kind(SLOT_UNIT, 16, True))


# --- what liars write --------------------------------------------------------------------------------------------


def write_small(world: World, number: int) -> None:
    """Before an engine of its namespace says how large blocks are."""
    world.visitor.join(BLUE, Kind(SLOT_UNIT, 16, True))
    assert write(world, number, os.urandom(SLOT_UNIT), digest=BLUE) is True
    world.store.join("b", BLUE, BLOCK, 16, 4, 0.0)


def test_no_engine_is_offered_a_slot_of_another_size_than_its_blocks_have(world):
    write_small(world, 1)
    assert key(1) in world.store.ram.index
    assert world.store.lookup("b", 1, key(1)).tolist() == [ABSENT]


def test_nor_is_one_read_from_the_drives_for_it(world):
    write_small(world, 1)
    world.run()
    world.evict(1)
    assert world.store.lower.extents.find(key(1)).tolist() != [ABSENT]
    assert world.store.lookup("b", 1, key(1)).tolist() == [ABSENT]
    assert world.store.transfers(0.0) == []


def test_a_block_that_came_in_another_namespace_is_none_of_this_one(world):
    world.visitor.join(BLUE, KIND)
    assert write(world, 1, os.urandom(BLOCK), digest=BLUE) is True
    assert world.store.lookup("a", 1, key(1)).tolist() == [ABSENT]


# --- the end -----------------------------------------------------------------------------------------------------


def test_what_is_dropped_leaves_ram_and_the_drives(world):
    world.save(1, 2, 3)
    world.evict(2)
    for number in (1, 2):
        world.visitor.drop(RED, key(number))
    world.run()
    assert world.visitor.sizes(RED, pack_keys(map(key, (1, 2, 3)))) == [0, 0, BLOCK]
    assert len(world.store.wipes()) == 1, "what was in RAM is overwritten"
    assert world.store.stats["erased_blocks"] == 2


def test_another_namespace_s_blocks_are_not_dropped(world):
    world.save(1, 2)
    world.evict(2)
    world.store.join("b", BLUE, BLOCK, 16, 4, 0.0)
    for number in (1, 2):
        world.visitor.drop(BLUE, key(number))
    assert world.visitor.sizes(RED, pack_keys(map(key, (1, 2)))) == [BLOCK, BLOCK]


def test_the_end_leaves_nothing_of_it(world):
    world.visitor.join(RED, KIND)
    world.visitor.join(BLUE, KIND)
    world.visitor.close()
    assert list(world.store.lending.engines) == ["a"]
