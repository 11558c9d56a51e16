"""Peers: another node reads what this one's engines saved, from RAM and drives, and its engines find what others wrote. As
far as its certificate goes."""

import asyncio
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from arena_bytes import content_of
from chat import BLOCK, Chat, nvme_settings
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from kvtierd import KVTierd, eventually, root_file, some_keys
from remote.certificates import ALL, Authority, Signed
from remote.servers import LOOPBACK, Absent, free_ports

from kvtier import observer
from kvtier.block import KEY_BYTES, unpack_keys
from kvtier.peer import peer_pb2, peer_pb2_grpc
from kvtier.peer.rights import right_to
from kvtier.tiers.remote import envelope, open_remote
from kvtier.tiers.remote.base import Refused, Unreachable
from kvtier.tiers.remote.envelope import HEADER_BYTES, Header, name_of

MODEL, OTHER = b"model".ljust(32, b"."), b"other".ljust(32, b".")  # digests, as kvtierd.scheduler_hello has them
KEYS = some_keys(8, "peer")
FIRST = KEYS[:KEY_BYTES]


class Node(KVTierd):
    """A daemon with a door for others."""

    def __init__(self, folder: Path, authority: Authority | None = None, **settings: object) -> None:
        (self.port,) = free_ports(1)
        mine: dict[str, object] = {"remote.secret_file": root_file(folder), "peer.listen": f"{LOOPBACK}:{self.port}"}
        self.authority = authority
        if authority is not None:
            server = authority.sign("server")
            mine |= {
                "peer.client_ca": authority.certificate,
                "peer.certificate": server.certificate,
                "peer.key": server.key,
            }
        super().__init__(folder, {**mine, **settings})

    def start(self) -> None:
        """Returns when others can connect, too."""
        super().start()

        def is_open() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((LOOPBACK, self.port)) == 0

        eventually(lambda: is_open() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()

    def ask(self, test, client: Signed | None = None):
        """As kvtier's own client does it."""

        async def with_remote():
            url, settings = f"grpc://{LOOPBACK}:{self.port}", {}
            if self.authority is not None:
                client_ = client or self.authority.sign("client", ALL)
                settings = {"ca_file": str(self.authority.certificate), "cert_file": str(client_.certificate),
                            "key_file": str(client_.key)}  # fmt: skip
                url = f"grpcs://localhost:{self.port}"
            remote = open_remote(url, settings)
            try:
                async with asyncio.timeout(30):
                    return await test(remote)
            finally:
                await remote.close()

        return asyncio.run(with_remote())

    def lengths(self, keys: bytes, digest: bytes = MODEL, client: Signed | None = None) -> list[int | None]:
        return self.ask(lambda remote: remote.lengths([name_of(digest, key) for key in unpack_keys(keys)]), client)

    def get(self, key: bytes, digest: bytes = MODEL, client: Signed | None = None, size: int = BLOCK) -> bytes | None:
        """Verified."""

        async def get(remote):
            header, body = bytearray(HEADER_BYTES), np.zeros(size, np.uint8)
            if not await remote.get(name_of(digest, key), memoryview(header), body.data):
                return None
            envelope.read(bytes(header), key, digest, body)
            return body.tobytes()

        return self.ask(get, client)

    def put(self, key: bytes, digest: bytes = MODEL, client: Signed | None = None, epoch: int = 0) -> None:
        content = content_of(key, BLOCK)
        checksum = envelope.checksum_of(key, np.frombuffer(content, np.uint8))
        header = envelope.pack(Header(key, BLOCK, checksum, digest, epoch))
        self.ask(lambda remote: remote.put(name_of(digest, key), header, memoryview(content)), client)


@pytest.fixture
def node(tmp_path) -> Iterator[Node]:
    with Node(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    try:
        return Authority(tmp_path_factory.mktemp("certificates"))
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def tls_node(tmp_path_factory, authority) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("node"), authority) as daemon, Chat(daemon) as chat:
        chat.save(FIRST)
        eventually(lambda: daemon.lengths(FIRST) == [HEADER_BYTES + BLOCK])
        yield daemon


# --- what a node has ---------------------------------------------------------------------------------------------


def test_another_node_reads_what_an_engine_saved(node):
    with Chat(node) as chat:
        chat.save(KEYS)
        assert chat.load(KEYS) == 8
        assert node.lengths(KEYS) == [HEADER_BYTES + BLOCK] * 8
        assert all(node.get(key) == content_of(key, BLOCK) for key in unpack_keys(KEYS))
    assert node.counter("peer_read_blocks") == 8 and node.counter("peer_read_bytes") == 8 * BLOCK


def test_an_engine_loads_what_another_node_wrote(node):
    for key in unpack_keys(KEYS):
        node.put(key)
    with Chat(node) as chat:
        assert chat.load(KEYS) == 8
    assert node.counter("peer_saved_blocks") == 8


def test_what_lies_on_the_drives_is_read_and_ram_stays_as_it_was(tmp_path):
    with Node(tmp_path, **nvme_settings(tmp_path)) as node:
        with Chat(node) as chat:
            chat.save(KEYS)
            assert observer.flush(node.socket, 30)
        node.restart()
        assert node.lengths(KEYS) == [HEADER_BYTES + BLOCK] * 8
        assert all(node.get(key) == content_of(key, BLOCK) for key in unpack_keys(KEYS))
        eventually(lambda: node.cpu()["blocks"] == 0)
        assert node.counter("promoted_blocks") == 8


def test_models_never_meet(node):
    with Chat(node) as chat, Chat(node, model="other"):
        chat.save(FIRST)
        assert node.lengths(FIRST) == [HEADER_BYTES + BLOCK]
        assert node.lengths(FIRST, OTHER) == [None]
        assert node.get(FIRST, OTHER) is None


def test_a_node_answers_with_what_it_has_and_asks_nobody(tmp_path):
    """Two that are each other's remote."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    a, b = (Node(folder) for folder in folders)
    a._settings["remote.url"], b._settings["remote.url"] = f"grpc://{LOOPBACK}:{b.port}", f"grpc://{LOOPBACK}:{a.port}"
    with a, b:
        a.put(FIRST)
        assert b.lengths(FIRST) == [None] and b.get(FIRST) is None
        assert b.counter("remote_asked_keys") == 0
        assert a.get(FIRST) == content_of(FIRST, BLOCK)


def test_what_is_deleted_is_gone_for_engines_too(tmp_path):
    with Node(tmp_path, **nvme_settings(tmp_path)) as node, Chat(node) as chat:
        chat.save(KEYS)
        assert observer.flush(node.socket, 30)
        node.ask(lambda remote: remote.delete([name_of(MODEL, FIRST)]))
        assert node.lengths(KEYS[: 2 * KEY_BYTES]) == [None, HEADER_BYTES + BLOCK]
        assert chat.load(KEYS) == 0 and chat.load(KEYS[KEY_BYTES:]) == 7
        eventually(lambda: node.counter("erased_blocks") == 1)


def test_of_a_namespace_that_was_reset_nothing_is_served_or_taken(node):
    from kvtier import protocol

    with Chat(node) as chat:
        chat.engine.say(protocol.Reset())
        chat.save(FIRST)
        assert chat.load(FIRST) == 1
        assert node.lengths(FIRST) == [None] and node.get(FIRST) is None
        with pytest.raises(Refused, match="nobody else knows to what"):
            node.put(KEYS[KEY_BYTES : 2 * KEY_BYTES], epoch=1)


def test_two_nodes_that_are_each_other_s_remote_find_what_the_other_has(tmp_path, authority):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    a, b = (Node(folder, authority) for folder in folders)
    client = authority.sign("client", ALL)
    for mine, other in ((a, b), (b, a)):
        mine._settings |= {"remote.url": f"grpcs://localhost:{other.port}", "remote.ca_file": authority.certificate,
                           "remote.cert_file": client.certificate, "remote.key_file": client.key}  # fmt: skip
    with a, b, Chat(a) as here, Chat(b) as there:
        here.save(KEYS)
        eventually(lambda: there.load(KEYS) == 8)
        assert a.counter("peer_read_blocks") == b.counter("remote_promoted_blocks") == 8
        new = some_keys(4, "new")
        there.save(new)
        there.load(new)
        eventually(lambda: a.counter("peer_saved_blocks") == 4)
        assert here.load(new) == 4
        assert a.counter("remote_promoted_blocks") == 0, "they were here"


# --- who may -----------------------------------------------------------------------------------------------------


def test_a_client_without_a_certificate_of_ours_gets_nowhere(tls_node, authority, tmp_path):
    stranger = Authority(tmp_path, "strangers").sign("client", ALL)
    with pytest.raises(Unreachable):
        tls_node.lengths(FIRST, client=stranger)
    root = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    target, request = f"localhost:{tls_node.port}", peer_pb2.LengthsRequest(namespace=MODEL[:8], keys=FIRST)
    for channel in (grpc.secure_channel(target, root), grpc.insecure_channel(target)):
        with channel, pytest.raises(grpc.RpcError) as error:
            peer_pb2_grpc.PeerStub(channel).Lengths(request, timeout=10)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "andshake" not in tls_node.said(), "who scans ports writes no log"


def test_a_server_without_a_certificate_of_ours_is_not_believed(tls_node, tmp_path):
    others = Authority(tmp_path, "others")
    mine = others.sign("client", ALL)
    url, settings = f"grpcs://localhost:{tls_node.port}", {"ca_file": str(others.certificate)}
    settings |= {"cert_file": str(mine.certificate), "key_file": str(mine.key)}

    async def ask():
        remote = open_remote(url, settings)
        try:
            await remote.lengths([name_of(MODEL, FIRST)])
        finally:
            await remote.close()

    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(ask())


def test_a_certificate_that_names_no_namespace_is_refused_with_what_it_lacks(tls_node, authority):
    client = authority.sign("nothing", "spiffe://example.org/node")
    for call in (tls_node.lengths, tls_node.get, tls_node.put):
        with pytest.raises(Refused, match=f"has no URI {right_to(MODEL)}"):
            call(FIRST, client=client)


def test_a_certificate_is_good_for_the_namespaces_that_it_names(tls_node, authority):
    client = authority.sign("model", right_to(MODEL))
    assert tls_node.lengths(FIRST, client=client) == [HEADER_BYTES + BLOCK]
    assert tls_node.get(FIRST, client=client) == content_of(FIRST, BLOCK)


def test_and_for_no_other(tls_node, authority):
    client = authority.sign("other", right_to(OTHER))
    assert tls_node.lengths(FIRST, client=client) == [None], "as good as not there"
    assert tls_node.get(FIRST, client=client) is None
    before = tls_node.counter("peer_saved_blocks")
    for call in (tls_node.put, lambda key, client: tls_node.ask(lambda r: r.delete([name_of(MODEL, key)]), client)):
        with pytest.raises(Refused, match=f"has no URI {right_to(MODEL)}"):
            call(FIRST, client=client)
    assert tls_node.lengths(FIRST) == [HEADER_BYTES + BLOCK]
    assert tls_node.counter("peer_saved_blocks") == before


def test_a_value_goes_where_its_header_says_and_needs_that_right(tls_node, authority):
    """The name of a Put is its header's; a client of ours can't say another."""
    client = authority.sign("other", right_to(OTHER))
    key = some_keys(1, "mine")
    tls_node.put(key, OTHER, client)
    assert tls_node.get(key, OTHER, client) == content_of(key, BLOCK)
    assert tls_node.lengths(key, MODEL) == [None]


def test_certificates_are_renewed_while_it_runs(tmp_path):
    former = Authority(tmp_path / "certificates")
    with Node(tmp_path, former) as node:
        client = former.sign("client", ALL)
        assert node.lengths(FIRST, client=client) == [None]
        renewed = Authority(tmp_path / "renewed")
        server, its_client = renewed.sign("server"), renewed.sign("client", ALL)
        for new, name in ((server.certificate, "server.crt"), (server.key, "server.key")):
            shutil.copyfile(new, former.certificate.with_name(name))
        shutil.copyfile(renewed.certificate, former.certificate)
        assert node.lengths(FIRST, client=its_client) == [None]
        with pytest.raises(Unreachable):
            node.lengths(FIRST, client=client)


# --- what else ---------------------------------------------------------------------------------------------------


def test_health_and_reflection_say_what_there_is(node):
    with grpc.insecure_channel(f"{LOOPBACK}:{node.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        said = health.Check(health_pb2.HealthCheckRequest(service="kvtier.v1.Peer"), timeout=10)
        assert said.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=10)
        assert "kvtier.v1.Peer" in {service.name for service in answer.list_services_response.service}


def test_programs_of_others_read_blocks_by_the_proto(node):
    node.put(FIRST)
    with grpc.insecure_channel(f"{LOOPBACK}:{node.port}") as channel:
        stub = peer_pb2_grpc.PeerStub(channel)
        keys = peer_pb2.LengthsRequest(namespace=MODEL[:8], keys=FIRST + KEYS[KEY_BYTES : 2 * KEY_BYTES])
        assert list(stub.Lengths(keys, timeout=10).lengths) == [HEADER_BYTES + BLOCK, 0]
        chunks = list(stub.Get(peer_pb2.GetRequest(namespace=MODEL[:8], key=FIRST), timeout=10))
        body = b"".join(chunk.body for chunk in chunks)
        assert body == content_of(FIRST, BLOCK)
        assert envelope.read(chunks[0].header, FIRST, MODEL, np.frombuffer(body, np.uint8)).size == BLOCK
        assert [bool(chunk.header) for chunk in chunks] == [True, False, False, False]


def test_a_setting_that_would_open_it_to_all_ends_the_start(tmp_path):
    node = Node(tmp_path, **{"peer.listen": "0.0.0.0:7070"})
    with pytest.raises(AssertionError, match=r"Set peer\.certificate, peer\.key and peer\.client_ca, or listen on 127"):
        node.start()


def test_a_port_that_is_taken_ends_the_start(node, tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    second = Node(folder, **{"peer.listen": f"{LOOPBACK}:{node.port}"})
    with pytest.raises(AssertionError, match=r"can't listen on .*; set peer\.listen"):
        KVTierd.start(second)
        eventually(lambda: second.process.poll() is not None)
        raise AssertionError(second.said())
    assert not second.socket.exists()


def test_a_node_that_ends_ends_the_calls_of_others(node):
    node.put(FIRST)

    async def hold_on(remote):
        await remote.lengths([name_of(MODEL, FIRST)])
        return await asyncio.to_thread(node.terminate)

    assert node.ask(hold_on) == 0
    assert "fault" not in node.said()
