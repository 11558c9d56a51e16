"""Every kind of remote keeps the promises of tiers/remote/base.py, with a real server behind it."""

import asyncio
import itertools
import stat
import time

import pytest
from remote.kinds import name_of

from kvtier.errors import ConfigError
from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.base import CALLS_MAX, NAMES_MAX, Corrupt, Refused, RemoteError

MIB = 1 << 20
SIZES = [0, 1, 4096, 65_407, 65_536, 3 * MIB + 17]  # bytes
PROMPT_S = 1.0  # how late a deadline may end a call here, where others keep the cores busy
LOST = (RemoteError, OSError)
numbers = itertools.count()


@pytest.fixture
def name():
    """A new one."""
    return name_of(next(numbers))


async def eventually_serves(remote, value, name, within=20.0):
    """As the breaker does it: a new attempt after a while."""
    deadline = time.monotonic() + within
    while True:
        try:
            async with asyncio.timeout(2):
                await value.put(remote, name)
                return await value.get(remote, name)
        except (*LOST, TimeoutError):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_come_back(kind, name, size):
    value = kind.value(size)

    async def there_and_back(remote):
        await value.put(remote, name)
        return await value.get(remote, name)

    assert kind.run(there_and_back)
    assert value.came_back


def test_a_value_may_be_any_part_of_a_larger_memory(kind, name):
    value = kind.value(70_000)
    size, memory = len(value.body), memoryview(bytearray(range(256)) * 8192)
    head = value.head(name)
    memory[MIB : MIB + size] = value.body
    header = bytearray(len(head))

    async def there_and_back(remote):
        await remote.put(name, head, memory[MIB : MIB + size])
        return await remote.get(name, memoryview(header), memory[100 : 100 + size])

    assert kind.run(there_and_back)
    assert header == head
    assert memory[100 : 100 + size] == value.body
    assert memory[:100] == bytes(range(100)), "not a byte before it"
    assert memory[100 + size : 200 + size] == bytes(i % 256 for i in range(100 + size, 200 + size)), "and none behind"


def test_what_is_not_there_is_no_error(kind, name):
    value = kind.value(1000)

    async def look(remote):
        assert await remote.lengths([name]) == [None]
        assert await remote.lengths([]) == []
        await remote.delete([name])
        await remote.delete([])
        return await value.get(remote, name)

    assert kind.run(look) is False


def test_lengths_are_told_in_the_order_of_the_names(kind):
    names = [name_of(next(numbers)) for _ in range(60)]

    async def write_every_third(remote):
        for number, each in enumerate(names[::3]):
            await kind.value(number).put(remote, each)
        return await remote.lengths(names)

    found = kind.run(write_every_third)
    assert found == [kind.length(number // 3) if number % 3 == 0 else None for number in range(60)]


def test_as_many_names_as_one_call_may_have(kind):
    names = [name_of(next(numbers)) for _ in range(NAMES_MAX)]
    last = kind.value(5)

    async def look(remote):
        await last.put(remote, names[-1])
        found = await remote.lengths(names)
        await remote.delete(names)
        return found, await remote.lengths(names[-2:])

    assert kind.run(look) == ([None] * (NAMES_MAX - 1) + [kind.length(5)], [None, None])


def test_the_last_that_was_put_counts(kind, name):
    first, second = kind.value(5000), kind.value(9000)

    async def overwrite(remote):
        await first.put(remote, name)
        await second.put(remote, name)
        return await (second if kind.overwrites else first).get(remote, name)

    assert kind.run(overwrite)
    assert (second if kind.overwrites else first).came_back


def test_what_was_deleted_is_gone_and_nothing_else(kind):
    gone, stays = name_of(next(numbers)), name_of(next(numbers))
    value = kind.value(100)

    async def delete(remote):
        await value.put(remote, gone)
        await value.put(remote, stays)
        await remote.delete([gone, name_of(next(numbers))])
        return await remote.lengths([gone, stays]), await value.get(remote, gone), await value.get(remote, stays)

    assert kind.run(delete) == ([None, kind.length(100)], False, True)


@pytest.mark.parametrize("written", [0, 3, 1000, 1999, 2001, MIB])
def test_a_value_of_another_length_is_corrupt_and_the_next_is_read_well(kind, name, written):
    wrong, right, other = kind.value(written), kind.value(2000), name_of(next(numbers))

    async def look(remote):
        await right.put(remote, other)
        await wrong.put(remote, name)
        with pytest.raises(Corrupt):
            await right.get(remote, name)
        return await right.get(remote, other)

    assert kind.run(look)
    assert right.came_back


def test_many_at_once(kind):
    values = {name_of(next(numbers)): kind.value(1000 * number) for number in range(CALLS_MAX)}

    async def all_at_once(remote):
        await asyncio.gather(*(value.put(remote, each) for each, value in values.items()))
        return await asyncio.gather(*(value.get(remote, each) for each, value in values.items()))

    assert all(kind.run(all_at_once))
    assert all(value.came_back for value in values.values())


# --- deadlines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [0, 2])
def test_a_deadline_at_any_moment_leaves_the_memory_alone_and_the_remote_usable(kind, name, beside):
    value = kind.value(2 * MIB)

    async def read_for_ever(remote):
        other = kind.value(2 * MIB)
        while True:
            await other.get(remote, name)

    async def interrupt(remote):
        await value.put(remote, name)
        others = [asyncio.create_task(read_for_ever(remote)) for _ in range(beside)]
        await asyncio.sleep(0.01)
        interrupted = 0
        for step in range(30):
            value.into_body[:] = bytes(len(value.into_body))
            try:
                async with asyncio.timeout(step * 0.0003):
                    await value.get(remote, name)
            except TimeoutError:
                interrupted += 1
                value.into_body[:] = marked = b"\x5a" * len(value.into_body)
                await asyncio.sleep(0.003)
                assert value.into_body == marked
        assert interrupted or not beside
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert await value.get(remote, name)

    kind.run(interrupt)
    assert value.came_back


def test_a_put_that_is_cut_off_leaves_the_former_value_or_the_new_one(kind, name):
    former, new = kind.value(2 * MIB), kind.value(2 * MIB)

    async def interrupt(remote):
        for step in range(12):
            await former.put(remote, name)
            try:
                async with asyncio.timeout(step * 0.0005):
                    await new.put(remote, name)
            except TimeoutError:
                await asyncio.sleep(0.02)
            assert await new.get(remote, name)
            is_former = (new.into_header, new.into_body) == (former.header, former.body)
            assert is_former or new.came_back

    kind.run(interrupt)


# --- servers that are not well -----------------------------------------------------------------------------------


def test_a_wrong_password_is_refused(kind, name):
    if kind.wrong is None:
        pytest.skip("it has no passwords")
    value = kind.value(100)
    secrets = {*kind.wrong.values(), *(kind.settings[setting] for setting in kind.wrong)}

    async def try_all(remote):
        calls = [remote.lengths([name]), value.get(remote, name), value.put(remote, name), remote.delete([name])]
        for refused in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(refused, Refused)
            assert not any(secret in str(refused) for secret in secrets)

    kind.run(try_all, **kind.wrong)


def test_a_server_that_was_killed_is_an_error_until_it_is_back(kind, server, name):
    value = kind.value(100_000)

    async def outlive(remote):
        await value.put(remote, name)
        await asyncio.gather(*(value.get(remote, name) for _ in range(4)))  # more than one connection
        server.kill()
        for call in (value.get(remote, name), value.put(remote, name), remote.lengths([name])):
            begun = time.monotonic()
            with pytest.raises(LOST):
                await call
            assert time.monotonic() < begun + 2.5, "without a deadline"
        server.start()
        if kind.keeps:
            assert await value.get(remote, name)
        else:
            assert await remote.lengths([name]) == [None], "no error of a connection that is long gone"
            await value.put(remote, name)
            assert await value.get(remote, name)

    try:
        kind.run(outlive)
    finally:
        server.kill()
        server.start()
    assert value.came_back


def test_a_deadline_holds_when_the_server_is_frozen_and_it_serves_again_when_it_thaws(kind, server, name):
    value = kind.value(2 * MIB)

    async def outlive(remote):
        await value.put(remote, name)
        server.freeze()
        for _ in range(2):  # on the connections that there were, and on new ones
            for call in (value.get, value.put):
                begun = time.monotonic()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await call(remote, name)
                assert time.monotonic() < begun + 0.3 + PROMPT_S
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await remote.lengths([name])
        server.thaw()
        assert await eventually_serves(remote, value, name)

    kind.run(outlive)
    assert value.came_back


def test_deadlines_hold_for_many_at_once_when_the_server_is_frozen(kind, server, name):
    values = [kind.value(2 * MIB) for _ in range(8)]

    async def outlive(remote):
        await values[0].put(remote, name)
        begun = time.monotonic()
        calls = []
        async with asyncio.timeout(5):
            for number, value in enumerate(values * 2):
                call = value.get(remote, name) if number % 2 else value.put(remote, name_of(next(numbers)))
                calls.append(asyncio.wait_for(call, 0.3))
            late = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0.002)  # some have begun
            server.freeze()
            outcomes = await late
        assert time.monotonic() < begun + 0.3 + PROMPT_S
        assert any(isinstance(outcome, TimeoutError) for outcome in outcomes)
        for value in values:
            value.into_body[:] = bytes(len(value.into_body))
        server.thaw()
        assert await eventually_serves(remote, values[0], name)
        assert not any(any(value.into_body) for value in values[1:]), "an answer that comes late is nobody's"

    kind.run(outlive)
    assert values[0].came_back


def test_closing_does_not_wait_for_a_frozen_server(kind, server, name):
    async def ask(remote):
        await remote.lengths([name])
        server.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await remote.lengths([name])
        return time.monotonic()

    assert time.monotonic() < kind.run(ask) + 2


def test_a_folder_is_made_for_its_owner_alone(tmp_path):
    pytest.importorskip("obstore")
    open_remote(f"file://{tmp_path}/shared/objects", {})
    assert stat.S_IMODE((tmp_path / "shared" / "objects").stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="File exists"):
        (tmp_path / "file").touch()
        open_remote(f"file://{tmp_path}/file", {})


def test_copies_of_values_of_any_length_use_one_piece_of_memory_again():
    pytest.importorskip("obstore")
    from kvtier.tiers.remote import s3

    async def put_many(remote):
        for size in (3 * MIB, 1000, 3 * MIB - 5000, 70_001, 3 * MIB + 77, 9 * MIB, 1):
            await remote.put(name_of(next(numbers)), bytes(112), memoryview(bytes(size)))
        return [len(memory) for memory in remote._spare]

    kept = asyncio.run(put_many(open_remote("memory://", {})))
    assert kept == [3 * MIB + s3.STEP_BYTES], "and none that is too large"
