"""RemoteTier over real servers, behind a network that fails and beside signals: no wrong byte, and the breaker in time.

Everywhere: what is read without a fault is right, every order is finished, and none twice (tier_bench.py, Orders). Every
other block lies there as a frame, where the kind keeps values as they come.
"""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from coded_blocks import of_bf16
from remote.faulty import Network, behind_proxies, full, read_only
from remote.kinds import Kind
from remote.servers import LOOPBACK, Absent, Cluster
from remote.tier_bench import WAIT_S, Orders

from kvtier.block import KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.codec import RAW, Codec
from kvtier.tiers.remote import envelope, keeps_values, open_remote
from kvtier.tiers.remote import remote as remote_module
from kvtier.tiers.remote.breaker import FAILURES_MAX, Breaker
from kvtier.tiers.remote.redis import key_of
from kvtier.tiers.remote.redis_cluster import slot_of
from kvtier.tiers.remote.remote import Deadlines, RemoteTier
from kvtier.tiers.remote.values import Clear
from kvtier.transfer import Demote, Erase, Finished, Promote, Remember, Seek

UNITS, BLOCKS = 16, 8  # 1 MiB a block
SIZE = UNITS * SLOT_UNIT
DIGEST = b"\x0d" * envelope.DIGEST_BYTES
KEYS = [bytes([n]) * KEY_BYTES for n in range(BLOCKS)]
NAMES = [envelope.name_of(DIGEST, key) for key in KEYS]
BODIES = [of_bf16(SIZE, n) for n in range(BLOCKS)]
CODECS = [RAW, Codec("exp12")] * (BLOCKS // 2)
WELL, NOT_ANSWERED = {""}, {"", "unreachable"}

# All times as shipped, divided by about three: there are many kinds. test_recovery.py has the real ones.
SILENT_S, PROBE_EVERY_S = 0.7, 0.4
DEADLINES = Deadlines(short_s=0.4, value_s=1.0)
RECOVERY_S = 5.0  # as promised
LOADED_S = 1.0  # that a machine with other tests on it may be late


class Bench(Orders):
    """A tier over a kind's server behind its network, with blocks that are there."""

    def __init__(self, network: Network) -> None:
        kind = network.kind
        self.network, self.server = network, kind.server
        self.arena = np.zeros(2 * BLOCKS * SIZE, np.uint8)
        breaker = Breaker(FAILURES_MAX, SILENT_S, PROBE_EVERY_S)
        remote = open_remote(kind.url, kind.settings)
        values = Clear(codes=keeps_values(kind.url))
        super().__init__(RemoteTier(remote, self.arena, deadlines=DEADLINES, breaker=breaker, values=values))
        self.stored = [SIZE] * BLOCKS  # bytes that lie there
        self.do(Remember(0, DIGEST, 7, 0))

    def write(self) -> list[str]:
        orders = []
        for n, body in enumerate(BODIES):
            self.arena[n * SIZE : (n + 1) * SIZE] = body
            orders.append(Demote(self.next(), KEYS[n], n * UNITS, 0, SIZE, 7, 0, codec=CODECS[n], stored=SIZE))
        done = sorted(self.do(*orders), key=lambda one: one.ticket)
        self.stored = [one.stored or before for one, before in zip(done, self.stored)]
        return [one.fault for one in done]

    def read(self, pause_s: float = 0.0) -> list[str]:
        """The fault of each; what has none is right."""
        self.arena[BLOCKS * SIZE :] = 0
        orders = [self.promote(n) for n in range(BLOCKS)]
        done = sorted(self.do(*orders), key=lambda one: one.ticket)
        for n, one in enumerate(done):
            slot = self.arena[(BLOCKS + n) * SIZE : (BLOCKS + n + 1) * SIZE]
            assert one.fault or (slot == BODIES[n]).all(), "wrong bytes"
        time.sleep(pause_s)
        return [one.fault for one in done]

    def promote(self, n: int) -> Promote:
        return Promote(self.next(), KEYS[n], (BLOCKS + n) * UNITS, 0, SIZE, 0, 7, self.stored[n])

    def seek(self) -> Finished:
        return self.do(Seek(self.next(), 7, pack_keys(KEYS)))[0]

    def until_away(self) -> float:
        """Asks until it is left alone. Seconds."""
        begun = time.monotonic()
        while not self.tier.is_away:
            assert time.monotonic() < begun + WAIT_S
            self.seek()
        return time.monotonic() - begun

    def until_back(self) -> float:
        begun = time.monotonic()
        while self.tier.is_away:
            assert time.monotonic() < begun + WAIT_S
            time.sleep(0.01)
        return time.monotonic() - begun

    def until_well(self) -> None:
        """All is there and can be read."""
        until = time.monotonic() + WAIT_S
        while not (set(self.write()) == set(self.read()) == WELL and self.seek().sizes == tuple(self.stored)):
            assert time.monotonic() < until


@pytest.fixture(scope="module")
def network(kind: Kind) -> Iterator[Network]:
    with behind_proxies(kind) as made:
        yield made


@pytest.fixture
def bench(network) -> Iterator[Bench]:
    made = Bench(network)
    try:
        made.until_well()
        yield made
    finally:
        if made.server is not None:
            made.server.thaw()
        network.set("heal")
        made.close()


@pytest.fixture
def faulty(bench) -> Bench:
    if bench.server is None:
        pytest.skip("no server and no network is behind it")
    return bench


@pytest.fixture
def nodes(bench) -> list:
    if not isinstance(bench.server, Cluster):
        pytest.skip("it is no cluster")
    return bench.server.nodes


def test_every_other_block_lies_there_as_a_frame_unless_blocks_are_kept(bench, network):
    frames = [stored for stored in bench.stored if stored < SIZE]
    assert len(frames) == (BLOCKS // 2 if keeps_values(network.kind.url) else 0)
    assert all(stored < 0.8 * SIZE for stored in frames)


# --- a network that fails ----------------------------------------------------------------------------------------


def test_latency_is_waited_for(faulty):
    faulty.network.set("latency", 0.03)
    faulty.until_well()


@pytest.mark.parametrize("fault", ["blackhole", "freeze", "reset"])
def test_who_does_not_answer_is_left_alone_in_time_and_used_again_in_time(faulty, fault):
    faulty.server.freeze() if fault == "freeze" else faulty.network.set(fault)
    assert faulty.until_away() < SILENT_S + LOADED_S
    begun = time.monotonic()
    assert {*faulty.read(), *faulty.write(), faulty.seek().fault} == {"unreachable"}
    assert time.monotonic() - begun < SILENT_S, "not even tried"
    faulty.server.thaw()
    faulty.network.set("heal")
    assert faulty.until_back() < RECOVERY_S
    assert set(faulty.read()) == WELL


def test_the_breaker_needs_no_more_failures_than_it_says(faulty):
    faulty.network.set("reset")
    assert {faulty.seek().fault for _ in range(FAILURES_MAX)} == {"unreachable"} and faulty.tier.is_away


def test_what_is_on_its_way_when_the_answers_stop_is_cut_short(faulty):
    faulty.network.set("throttle", 20e6)
    orders = [faulty.promote(n) for n in range(BLOCKS)]
    faulty.start(*orders)
    time.sleep(0.1)
    faulty.server.freeze()
    begun = time.monotonic()
    assert {one.fault for one in faulty.wait(BLOCKS)} <= NOT_ANSWERED
    assert time.monotonic() - begun < SILENT_S + LOADED_S
    faulty.arena[BLOCKS * SIZE :] = 0
    faulty.server.thaw()
    faulty.network.set("heal")
    faulty.until_back()
    assert not faulty.arena[BLOCKS * SIZE :].any(), "an answer that comes late is nobody's"


def test_a_remote_at_a_megabyte_a_second_holds_nobody_for_long(faulty):
    if faulty.network.kind.is_direct:
        pytest.skip("its values don't come over the proxy")
    faulty.network.set("throttle", 1e6)
    faulty.slowest = 0.0
    assert "unreachable" in faulty.read()
    assert faulty.slowest < SILENT_S + LOADED_S


def test_flipped_bits_are_faults_and_never_wrong_bytes(faulty):
    if faulty.network.kind.is_direct:
        pytest.skip("its values don't come over the proxy")
    faulty.network.set("flip", 0.05)
    faults = [fault for _ in range(6) for fault in faulty.read(0.05)]
    assert faulty.network.flipped and set(faults) <= {*NOT_ANSWERED, "corrupt", "gone"}
    assert set(faults) != WELL


def test_five_percent_of_errors_are_few_faults(faulty):
    faulty.network.set("errors", 0.05)
    faults, until = [], time.monotonic() + WAIT_S
    for _ in range(12):
        faults += faulty.read(0.02)
    while "" not in faults:  # one error may cost it all connections
        assert time.monotonic() < until
        faults += faulty.read(0.02)
    assert set(faults) <= NOT_ANSWERED


def test_flapping_ends_every_order_in_time(faulty):
    faulty.network.set("flap", 1.0)
    faulty.slowest = 0.0
    until = time.monotonic() + 1.8
    while time.monotonic() < until:
        assert set(faulty.read(0.02)) <= NOT_ANSWERED
    assert faulty.slowest < SILENT_S + LOADED_S
    faulty.network.set("heal")
    assert faulty.until_back() < RECOVERY_S
    faulty.until_well()


# --- a server that is not well -----------------------------------------------------------------------------------


def test_a_server_that_is_killed_and_comes_back_is_used_again(faulty):
    faulty.server.kill()
    assert faulty.until_away() < SILENT_S + LOADED_S
    faulty.server.start()
    assert faulty.until_back() < RECOVERY_S
    if faulty.network.kind.keeps:
        assert set(faulty.read()) == WELL
    faulty.until_well()


def test_a_value_that_is_corrupt_is_deleted_and_counted(bench, network):
    if not network.kind.overwrites:
        pytest.skip("it takes no value that is damaged")
    header = envelope.pack(envelope.Header(KEYS[3], SIZE, envelope.checksum_of(KEYS[3], BODIES[3]), DIGEST, 0))
    damaged = BODIES[3].copy()
    damaged[SIZE // 2] ^= 1
    network.kind.run(lambda remote: remote.put(NAMES[3], header, damaged.data))
    assert bench.read() == ["", "", "", "corrupt", "", "", "", ""]
    assert bench.tier.state()["corrupt_blocks"] == 1 and not bench.tier.is_away
    until = time.monotonic() + WAIT_S
    while bench.seek().sizes[3]:
        assert time.monotonic() < until, "it is still there"
    assert bench.read() == ["", "", "", "gone", "", "", "", ""]


@pytest.mark.parametrize(("change", "fault"), [(full, "full"), (read_only, "refused")])
def test_a_remote_that_takes_no_writes_is_read_all_the_same(bench, network, monkeypatch, change, fault):
    monkeypatch.setattr(remote_module, "RETRY_S", PROBE_EVERY_S)
    changing = change(network.kind)
    try:
        changing.__enter__()
    except Absent as reason:
        pytest.skip(str(reason))
    bench.until_back()
    try:
        assert set(bench.write()) == {fault} and bench.tier.read_only
        for _ in range(FAILURES_MAX):
            assert set(bench.read()) == WELL and bench.seek().sizes == tuple(bench.stored)
            bench.write()
        assert not bench.tier.is_away
    finally:
        changing.__exit__(None, None, None)
    bench.until_well()
    assert {one.fault for one in bench.do(*(Erase(bench.next(), 0, SIZE, key, 7) for key in KEYS))} == WELL


# --- one node of a cluster ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_cluster_without_one_of_its_nodes_ends_every_order_in_time_and_serves_when_it_is_back(bench, nodes, fault):
    getattr(nodes[1], fault)()
    bench.slowest = 0.0
    for _ in range(3):
        assert set(bench.read()) <= NOT_ANSWERED
        assert set(bench.write()) <= NOT_ANSWERED
    assert bench.slowest < 2 * DEADLINES.of(SIZE) + LOADED_S, "writes: four at once"
    nodes[1].start() if fault == "kill" else nodes[1].thaw()
    bench.server.wait()
    assert bench.until_back() < RECOVERY_S
    bench.until_well()


def test_slots_that_move_are_followed_while_blocks_are_read(bench, nodes):
    for name in NAMES:
        slot = slot_of(name)
        at = slot * len(nodes) // 16384
        source, target = nodes[at], nodes[(at + 1) % len(nodes)]
        target.say("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source.say("CLUSTER", "MYID"))
        source.say("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target.say("CLUSTER", "MYID"))
        source.say("MIGRATE", LOOPBACK, str(target.port), key_of(name).decode(), "0", "5000")
        assert set(bench.read()) == WELL
        for node in (target, source):
            node.say("CLUSTER", "SETSLOT", str(slot), "NODE", target.say("CLUSTER", "MYID"))
        assert set(bench.read()) == WELL and bench.seek().sizes == tuple(bench.stored)
    bench.until_well()
