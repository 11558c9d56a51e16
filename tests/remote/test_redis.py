"""What only Redis and Valkey do: full memory, replicas, slots that move, and peers that are no Redis at all."""

import asyncio
import contextlib
import socket
import threading

import pytest
from remote.kinds import Kind, Value, name_of
from remote.servers import Absent, Cluster, Redis, valkey_program

from kvtier.errors import ConfigError
from kvtier.tiers.remote import open_remote, redis_cluster
from kvtier.tiers.remote.base import Corrupt, Full, Refused, Unreachable
from kvtier.tiers.remote.redis_cluster import slot_of, slots_of
from kvtier.tiers.remote.resp import REPLY_BYTES_MAX
from kvtier.tiers.remote.wire import Address

MIB = 1 << 20


@pytest.fixture
def valkey():
    try:
        return valkey_program()
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.fixture
def cluster(valkey, tmp_path):
    with Cluster(tmp_path, valkey) as nodes:
        yield nodes


@pytest.fixture
def kind(cluster):
    return Kind(cluster.url)


def number_of(node, cluster):
    return cluster.nodes.index(node)


def node_with(cluster, name):
    return cluster.nodes[slot_of(name) * len(cluster.nodes) // 16384]


def test_a_server_without_room_refuses_writes_and_serves_reads(valkey, tmp_path):
    value, more = Value.random(MIB), Value.random(32 * MIB)

    async def fill(remote):
        await value.put(remote, name_of(1))
        with pytest.raises(Full):
            for number in range(2, 6):
                await more.put(remote, name_of(number))
        return await value.get(remote, name_of(1)), await remote.lengths([name_of(1)])

    with Redis(tmp_path, valkey, settings=("--maxmemory", "64mb", "--maxmemory-policy", "noeviction")) as server:
        assert Kind(server.url).run(fill) == (True, [MIB + 128])
    assert value.came_back


def test_a_replica_takes_no_writes_and_serves_reads(valkey, tmp_path):
    value = Value.random(1000)

    async def become_replica(remote):
        await value.put(remote, name_of(1))
        server.say("REPLICAOF", "127.0.0.1", "1")
        for refused in await asyncio.gather(
            value.put(remote, name_of(2)), remote.delete([name_of(1)]), return_exceptions=True
        ):
            assert isinstance(refused, Refused)
        return await value.get(remote, name_of(1))

    with Redis(tmp_path, valkey) as server:
        assert Kind(server.url).run(become_replica)
    assert value.came_back


def test_a_name_that_is_somebody_elses_list_is_not_taken_for_a_value(valkey, tmp_path):
    async def look(remote):
        await Value.random(10).put(remote, name_of(2))
        server.say("RPUSH", f"kvtier/{name_of(1)}", "x")
        return await asyncio.gather(
            remote.lengths([name_of(1), name_of(2)]), Value.random(10).get(remote, name_of(1)), return_exceptions=True
        )

    with Redis(tmp_path, valkey) as server:
        lengths, error = Kind(server.url).run(look)
    assert lengths == [None, 138] and isinstance(error, Corrupt)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$99999999999999999999999\r\n", b"*5\r\n*5\r\n*5\r\n", b"x" * 200_000, b""],
)
def test_a_peer_that_is_no_redis_is_unreachable(said):
    def answer(listening):
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            with peer:
                peer.recv(4096)
                peer.sendall(said)

    async def ask(remote):
        value = Value.random(10)
        calls = [remote.lengths([name_of(1)]), value.get(remote, name_of(1)), value.put(remote, name_of(1))]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, Unreachable | OSError) or type(error).__name__ == "Corrupt"

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        Kind(f"redis://127.0.0.1:{listening.getsockname()[1]}").run(ask)
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_reply_without_an_end_ends(tmp_path):
    """All that is there already is read without waiting: no deadline would ever have its turn."""
    sent = 0

    def answer(listening):
        nonlocal sent
        peer, _ = listening.accept()
        with peer, contextlib.suppress(OSError):
            peer.sendall(b"*65536\r\n")
            while sent < 16 * REPLY_BYTES_MAX:
                peer.sendall(b"*10000\r\n" + b":0\r\n" * 10_000)
                sent += 40_000

    async def ask(remote):
        with pytest.raises(Unreachable):
            await remote.lengths([name_of(1)])

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        Kind(f"redis://127.0.0.1:{listening.getsockname()[1]}").run(ask)
    thread.join()
    assert sent < 8 * REPLY_BYTES_MAX


# --- clusters ----------------------------------------------------------------------------------------------------


def test_a_single_server_that_is_part_of_a_cluster_says_which_url_to_write(cluster):
    names = [name_of(number) for number in range(12)]
    with pytest.raises(Refused, match=r"redis\+cluster://"):
        Kind(cluster.nodes[0].url).run(lambda remote: remote.lengths(names))


def test_a_cluster_is_found_by_any_of_its_nodes(cluster):
    names = [name_of(number) for number in range(30)]
    assert {number_of(node_with(cluster, name), cluster) for name in names} == {0, 1, 2}
    for node in cluster.nodes:
        assert Kind(f"redis+cluster://127.0.0.1:{node.port}").run(lambda remote: remote.lengths(names)) == [None] * 30
    closed = Kind(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[0].port}")
    assert closed.run(lambda remote: remote.lengths(names)) == [None] * 30


def test_a_slot_that_moves_is_followed_while_it_moves_and_after(cluster, kind):
    name, beside = name_of(1), name_of(2)
    value, slot = Value.random(300_000), str(slot_of(name))
    source = node_with(cluster, name)
    target = next(node for node in cluster.nodes if node is not source)

    async def follow(remote):
        await remote.lengths([name, beside])  # it knows the slots
        target.say("CLUSTER", "SETSLOT", slot, "IMPORTING", source.say("CLUSTER", "MYID"))
        source.say("CLUSTER", "SETSLOT", slot, "MIGRATING", target.say("CLUSTER", "MYID"))
        assert await remote.lengths([name, beside]) == [None, None]
        assert not await value.get(remote, name)
        await value.put(remote, name)  # the source hasn't got it: ASK
        assert await value.get(remote, name)
        assert await remote.lengths([beside, name]) == [None, 300_128]
        for node in (target, source):
            node.say("CLUSTER", "SETSLOT", slot, "NODE", target.say("CLUSTER", "MYID"))
        assert await remote.lengths([name]) == [300_128]  # MOVED
        assert await value.get(remote, name)
        await remote.delete([name, beside])
        return await remote.lengths([name])

    assert kind.run(follow) == [None]
    assert value.came_back


def test_a_node_that_is_gone_is_an_error_for_its_slots_only(cluster, kind):
    for node in cluster.nodes:
        node.say("CONFIG", "SET", "cluster-require-full-coverage", "no")
    gone = cluster.nodes[1]
    names = {node_with(cluster, name): name for name in map(name_of, range(30))}
    value = Value.random(1000)

    async def outlive(remote):
        await asyncio.gather(*(value.put(remote, name) for name in names.values()))
        gone.kill()
        for _ in range(3):
            for node, name in names.items():
                if node is gone:
                    with pytest.raises(Unreachable):
                        await value.get(remote, name)
                    with pytest.raises(Unreachable):
                        await remote.lengths(list(names.values()))
                else:
                    assert await value.get(remote, name)
            await asyncio.sleep(0.6)  # it asks again for the slots

    kind.run(outlive)


def test_a_frozen_node_holds_up_nobody_elses_calls(cluster, kind):
    names = {node_with(cluster, name): name for name in map(name_of, range(30))}
    frozen = cluster.nodes[0]
    value = Value.random(1000)

    async def outlive(remote):
        await asyncio.gather(*(value.put(remote, name) for name in names.values()))
        frozen.freeze()
        for _ in range(2):
            for node, name in names.items():
                try:
                    async with asyncio.timeout(0.5):
                        assert await value.get(remote, name)
                        assert node is not frozen
                except TimeoutError:
                    assert node is frozen

    try:
        kind.run(outlive)
    finally:
        frozen.thaw()


def test_a_name_that_can_not_be_one_is_unreachable_and_is_asked_again(monkeypatch):
    monkeypatch.setattr(redis_cluster, "REFRESH_S", 0.0)

    async def ask_twice(remote):
        for _ in range(2):
            with pytest.raises(Unreachable, match="label"):
                await remote.lengths([name_of(1)])

    Kind(f"redis+cluster://{'a' * 70}:1").run(ask_twice)


def test_a_map_that_breaks_ends_no_later_one(monkeypatch):
    monkeypatch.setattr(redis_cluster, "REFRESH_S", 0.0)
    maps = []

    def broken(reply, asked):
        maps.append(asked)
        raise RuntimeError("nobody thought of this")

    async def ask_twice(remote):
        remote._node(Address("127.0.0.1", 1)).ask = lambda commands: answer()
        for _ in range(2):
            with pytest.raises(Unreachable):
                await remote.lengths([name_of(1)])

    async def answer():
        return [[]]

    monkeypatch.setattr(redis_cluster, "slots_of", broken)
    Kind("redis+cluster://127.0.0.1:1").run(ask_twice)
    assert len(maps) == 2


def test_no_slot_is_named_twice():
    rows = [[0, 16383, [b"a", 1]], [0, 16383, [b"b", 1]]]
    assert set(slots_of(rows[:1], Address("x", 1))) == {Address("a", 1)}
    with pytest.raises(Unreachable, match="twice"):
        slots_of(rows, Address("x", 1))


def test_a_cluster_names_so_many_nodes_and_no_more(monkeypatch):
    monkeypatch.setattr(redis_cluster, "NODES_MAX", 2)

    async def know(remote):
        for port in (1, 2, 1):
            remote._node(Address("127.0.0.1", port))
        with pytest.raises(Unreachable, match="more than 2 nodes"):
            remote._node(Address("127.0.0.1", 3))

    Kind("redis+cluster://127.0.0.1:1").run(know)


# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "rediss:///a/socket",
        "redis://host/name",
        "redis://host:port",
        "redis://host:70000",
        "redis://host?database=1",
        "redis://user@host",
        "redis+cluster://",
        "redis+cluster://host/1",
        "redis+cluster://a:1,,b:2",
    ],
)
def test_a_url_that_means_nothing_is_a_config_error(url):
    with pytest.raises(ConfigError):
        open_remote(url, {})


@pytest.mark.parametrize(
    "url", ["redis://:SECRET/x@host", "redis://:x#SECRET@host", "redis://:SECRET?x@host", "redis+cluster://:SECRET/x@host"]
)
def test_no_password_stands_in_an_error(url):
    with pytest.raises(ConfigError) as error:
        open_remote(url, {})
    assert "SECRET" not in str(error.value)


@pytest.mark.parametrize("settings", [{"pasword": "x"}, {"ca_file": "/nowhere"}, {"password_file": "/nowhere"}])
@pytest.mark.parametrize("url", ["redis://host", "rediss://host", "redis+cluster://host"])
def test_a_setting_that_means_nothing_is_a_config_error(url, settings):
    with pytest.raises(ConfigError):
        open_remote(url, settings)
