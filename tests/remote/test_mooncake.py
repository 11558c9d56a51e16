"""Mooncake's client, a process of its own: it can be ended at any moment, and lends memory if told to. Its URL."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from remote.kinds import Value, name_of
from remote.mooncake_servers import Mooncake
from remote.servers import Absent, eventually

from kvtier.errors import ConfigError
from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.base import Unreachable

mooncake = pytest.importorskip("kvtier.tiers.remote.mooncake", reason="no mooncake")
NAME = name_of(1)
SOON_S = 0.1


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[Mooncake]:
    try:
        servers = Mooncake(tmp_path_factory.mktemp("m"))
    except Absent as reason:
        pytest.skip(str(reason))
    with servers:
        yield servers


def run(url, test):
    """With a remote of its own."""

    async def with_remote():
        remote = open_remote(url, {})
        try:
            return await test(remote)
        finally:
            await remote.close()

    return asyncio.run(with_remote())


def process_of(remote) -> int:
    return remote._client._process.pid


async def give_up(call) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON_S):
            await call


def test_when_its_process_is_killed_the_call_fails_and_the_next_one_starts_another(servers):
    value = Value.random(1000)

    async def outlive(remote):
        await value.put(remote, NAME)
        servers.freeze()
        call = asyncio.create_task(value.get(remote, NAME))
        await asyncio.sleep(SOON_S)
        os.kill(former := process_of(remote), signal.SIGKILL)
        with pytest.raises(Unreachable):
            await call
        servers.thaw()
        assert await value.get(remote, NAME)
        assert process_of(remote) != former

    run(servers.url, outlive)
    assert value.came_back


def test_a_client_whose_calls_hang_is_ended(servers):
    value = Value.random(1000)

    async def outlive(remote):
        await value.put(remote, NAME)
        former = process_of(remote)
        servers.freeze()
        await asyncio.gather(*(give_up(value.get(remote, NAME)) for _ in range(mooncake.HUNG_MAX)))
        assert process_of(remote) == former
        await give_up(value.get(remote, NAME))
        assert process_of(remote) != former
        servers.thaw()

    run(servers.url, outlive)


def test_what_is_still_being_written_for_nobody_is_not_deleted_before_it_has_ended(servers):
    value, name = Value.random(1000), name_of(2)

    async def outlive(remote):
        await remote.lengths([name])
        servers.freeze()
        await give_up(value.put(remote, name))
        with pytest.raises(Unreachable, match="a write of it"):
            await remote.delete([name_of(3), name])
        servers.thaw()
        async with asyncio.timeout(20):
            while remote._client.is_writing([name]):
                await asyncio.sleep(0.01)
        await remote.delete([name])
        assert await remote.lengths([name]) == [None]

    run(servers.url, outlive)


def test_memory_is_lent_while_it_is_open(servers):
    before = servers.master.segments()

    async def lend(remote):
        await remote.lengths([NAME])
        assert len(servers.master.segments()) == len(before) + 1
        return process_of(remote)

    process = run(f"{servers.url}?segment=64MiB&hostname=127.0.0.1", lend)
    assert not os.path.exists(f"/proc/{process}")
    eventually(lambda: servers.master.segments() == before, "it is given back")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mooncake://", "needs a master"),
        ("mooncake://user@far", "needs a master"),
        ("mooncake://far/folder", "needs a master"),
        ("mooncake://far:port", "URL is wrong"),
        ("mooncake://far?segment=much", "URL is wrong"),
        ("mooncake://far?segments=1GiB", "no 'segments' in its URL; it has segment, protocol, devices, hostname"),
        ("mooncake://far?protocol=http", "by tcp or rdma"),
    ],
)
def test_a_url_that_means_nothing_is_refused(url, said):
    with pytest.raises(ConfigError, match=said):
        open_remote(url, {})


def test_it_has_no_passwords():
    with pytest.raises(ConfigError, match="no setting 'password'"):
        open_remote("mooncake://far", {"password": "x"})
