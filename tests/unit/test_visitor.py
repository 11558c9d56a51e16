"""Visitors read what lies in RAM and on the drives, within bounds, and never what must stay."""

import asyncio

import numpy as np
import pytest
from visiting import BLOCK, BLUE, KIND, RED, World, done, key

from kvtier import visitor as module
from kvtier.block import pack_keys
from kvtier.decision import Ask
from kvtier.transfer import Finished
from kvtier.visitor import NO_ROOM


@pytest.fixture
def world() -> World:
    return World()


def test_sizes_are_of_what_lies_in_ram_or_on_the_drives(world):
    world.save(1, 2, 3)
    world.evict(2)
    assert world.visitor.sizes(RED, pack_keys(map(key, (3, 9, 2, 1)))) == [BLOCK, 0, BLOCK, BLOCK]
    assert world.visitor.sizes(RED, b"") == []


def test_a_namespace_has_only_its_own_blocks(world):
    world.save(1, 2)
    world.evict(2)
    world.store.join("b", BLUE, BLOCK, 16, 4, 0.0)
    assert world.visitor.sizes(BLUE, pack_keys(map(key, (1, 2)))) == [0, 0]
    assert world.visitor.sizes(b"nobody".ljust(32), key(1)) == [0]
    assert done(lambda: world.read(1, BLUE)) is None

    async def from_drives():
        reading = asyncio.create_task(world.read(2, BLUE))
        await world.soon()
        return await reading

    assert done(from_drives) is None and 2 not in world.store.ram.index


def test_a_namespace_is_found_by_the_first_of_its_digest(world):
    assert world.visitor.digest(RED[:8]) == RED
    assert world.visitor.digest(BLUE[:8]) is None
    world.store.join("b", BLUE, BLOCK, 16, 4, 0.0)
    assert world.visitor.digest(BLUE[:8]) == BLUE


def test_a_block_in_ram_is_read_with_a_header_that_proves_it(world):
    (content,) = world.save(1)
    header, body = done(lambda: world.read(1))
    assert body == content and header == world.header(1, content)


def test_a_block_stays_while_it_is_held_and_may_go_then(world):
    world.save(1)
    slot = world.slot(1)

    async def look():
        async with world.visitor.read(RED, key(1)):
            held = world.store.ram.index.is_pinned(slot)
        await asyncio.sleep(0)
        return held, world.store.ram.index.is_pinned(slot)

    assert done(look) == (True, False)


def test_a_block_on_the_drives_is_read_and_leaves_ram_again(world):
    contents = world.save(1, 2)
    world.evict(1, 2)

    async def look():
        reading = asyncio.gather(world.read(1), world.read(2))
        await world.soon()
        found = await reading
        await asyncio.sleep(0)
        return found

    assert [body for _, body in done(look)] == contents
    assert len(world.store.ram.index) == 0
    assert world.visitor.sizes(RED, pack_keys([key(1), key(2)])) == [BLOCK, BLOCK], "on the drives"


def test_what_an_engine_used_meanwhile_stays_in_ram(world):
    world.save(1)
    world.evict(1)

    async def look():
        answer = world.visitor.hold(RED, key(1))
        await world.soon()
        held = await answer
        found = world.store.lookup("a", 1, key(1), ask=Ask("a request", prompt_tokens=17))
        world.store.release("a", 1, 1)
        world.visitor.let_go(held)
        return found.tolist() == [held.slot]

    assert done(look) and key(1) in world.store.ram.index


def test_a_read_that_fails_is_a_miss(world):
    world.save(1)
    world.evict(1)
    world.fault = "io"

    async def look():
        reading = asyncio.create_task(world.read(1))
        await world.soon()
        return await reading

    assert done(look) is None


def test_without_drives_what_is_not_in_ram_is_nowhere():
    world = World(has_drives=False)
    (content,) = world.save(1)
    assert done(lambda: world.read(1))[1] == content
    assert done(lambda: world.read(2)) is None


@pytest.mark.parametrize("mark", ["stays", "stays_here"])
def test_what_must_not_leave_this_node_is_not_there(world, mark):
    world.save(1)
    getattr(world.store.ram, mark)[world.slot(1)] = True
    assert world.visitor.sizes(RED, key(1)) == [0]
    assert done(lambda: world.read(1)) is None


def test_what_must_not_leave_this_node_is_not_there_on_the_drives_either(world):
    world.save(1)
    world.evict(1)
    world.store.ram.is_to_stay = lambda wanted: wanted == key(1)
    assert world.visitor.sizes(RED, key(1)) == [0]
    assert done(lambda: world.read(1)) is None


def test_after_a_reset_nothing_of_the_namespace_is_for_others(world):
    world.store.reset("a", RED)
    (content,) = world.save(1)
    assert world.visitor.sizes(RED, key(1)) == [0]
    assert done(lambda: world.read(1)) is None
    assert world.visitor.join(RED, KIND) == 1
    assert world.visitor.room(world.header(2, content)) == NO_ROOM


def test_who_finds_too_much_held_waits_for_it(world, monkeypatch):
    monkeypatch.setattr(world.visitor, "_held_max", 2 * BLOCK)
    world.save(1, 2, 3)

    async def look():
        first = [await world.visitor.hold(RED, key(number)) for number in (1, 2)]
        third = world.visitor.hold(RED, key(3))
        await world.soon()
        waited = not third.done()
        world.visitor.let_go(first[0])
        return waited, (await third).key

    assert done(look) == (True, key(3))


def test_so_many_wait_and_no_more(world, monkeypatch):
    monkeypatch.setattr(module, "WAITING_MAX", 1)
    world.save(1, 2)

    async def look():
        first, second = (world.visitor.hold(RED, key(number)) for number in (1, 2))
        return (await first).key, await second

    assert done(look) == (key(1), None)


def test_so_many_are_read_from_the_drives_at_once(world, monkeypatch):
    monkeypatch.setattr(module, "READS_MAX", 2)
    contents = world.save(*range(6))
    world.evict(*range(6))

    async def look():
        reading = asyncio.gather(*map(world.read, range(6)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        begun = world.store.transfers(0.0)
        for order in begun:
            world.bytes_of(order.slot)[:] = np.frombuffer(world.drives[order.place], np.uint8)
            world.store.finished(Finished(order.ticket), 0.0)
        for _ in range(6):
            await world.soon()
        return len(begun), await reading

    begun, found = done(look)
    assert begun == 2 and [body for _, body in found] == contents


def test_who_goes_away_while_it_waits_leaves_nothing_behind(world):
    world.save(1)
    world.evict(1)

    async def look():
        reading = asyncio.create_task(world.read(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
        await world.soon()
        return reading.cancelled()

    assert done(look)
    assert not world.store.ram.index.is_pinned(world.slot(1))


def test_who_goes_away_as_the_answer_comes_leaves_nothing_behind(world):
    world.save(1)

    async def look():
        answer = world.visitor.hold(RED, key(1))
        await world.soon()
        assert answer.done()
        world.visitor.unhold(answer)
        await asyncio.sleep(0)

    done(look)
    assert not world.store.ram.index.is_pinned(world.slot(1))
