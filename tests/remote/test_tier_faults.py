"""RemoteTier over real servers, behind a network that fails and beside signals: no wrong byte, and the breaker in time."""

import random
import select
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from remote.kinds import Kind, opened
from remote.proxy import FaultProxy
from remote.servers import Absent, SeaweedFS

from kvtier.block import KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.breaker import FAILURES_MAX, SILENT_S
from kvtier.tiers.remote.remote import RemoteTier
from kvtier.transfer import Demote, Finished, Promote, Remember, Seek, Transfer

UNITS, BLOCKS, SLOTS = 32, 8, 16  # 2 MiB a block
SIZE = UNITS * SLOT_UNIT
WAIT_S = 30.0
RECOVERY_S = 5.5  # five, and a loaded machine
KEYS = [bytes([n]) * KEY_BYTES for n in range(BLOCKS)]
BODIES = [np.frombuffer(random.Random(n).randbytes(SIZE), np.uint8) for n in range(BLOCKS)]


def port_of(kind: Kind) -> int:
    server = kind.server
    return server.ports["s3.port"] if isinstance(server, SeaweedFS) else server.port


class Bench:
    """A tier, the way to its server, and blocks that are there."""

    def __init__(self, kind: Kind, proxy: FaultProxy) -> None:
        self.kind, self.proxy = kind, proxy
        port = str(port_of(kind))
        settings = {name: text.replace(port, str(proxy.port)) if isinstance(text, str) else text
                    for name, text in kind.settings.items()}  # fmt: skip
        self.arena = np.zeros(SLOTS * SIZE, np.uint8)
        self.tier = RemoteTier(open_remote(kind.url.replace(port, str(proxy.port)), settings), self.arena)
        self.ticket = 0
        self.slowest = 0.0  # s: an order
        self.do(Remember(0, b"\x0d" * 32, 7, 0))

    def do(self, *orders: Transfer) -> list[Finished]:
        begun, done = time.monotonic(), []
        for order in orders:
            self.tier.start(order)
        while len(done) < len(orders):
            assert select.select([self.tier.fileno()], [], [], WAIT_S)[0], "never finished"
            done += self.tier.poll()
        self.slowest = max(self.slowest, time.monotonic() - begun)
        return sorted(done, key=lambda one: one.ticket)

    def next(self) -> int:
        self.ticket += 1
        return self.ticket

    def write(self) -> list[str]:
        orders = []
        for n in range(BLOCKS):
            self.arena[n * SIZE : (n + 1) * SIZE] = BODIES[n]
            orders.append(Demote(self.next(), KEYS[n], n * UNITS, 0, SIZE, 7, 0))
        return [done.fault for done in self.do(*orders)]

    def read(self) -> list[str]:
        """The fault of each; what has none is right."""
        self.arena[BLOCKS * SIZE :] = 0
        done = self.do(*(Promote(self.next(), KEYS[n], (BLOCKS + n) * UNITS, 0, SIZE, 0, 7) for n in range(BLOCKS)))
        for n, one in enumerate(done):
            slot = self.arena[(BLOCKS + n) * SIZE : (BLOCKS + n + 1) * SIZE]
            assert one.fault or (slot == BODIES[n]).all(), "wrong bytes"
        return [one.fault for one in done]

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


@pytest.fixture(scope="module", params=["valkey", "s3-seaweedfs"])
def kind(request, tmp_path_factory) -> Iterator[Kind]:
    opening = opened(request.param, Path(tmp_path_factory.mktemp("r")))
    try:
        kind = opening.__enter__()
    except Absent as reason:
        pytest.skip(str(reason))
    yield kind
    opening.__exit__(None, None, None)


@pytest.fixture
def bench(kind) -> Iterator[Bench]:
    with FaultProxy("127.0.0.1", port_of(kind)) as proxy:
        made = Bench(kind, proxy)
        assert set(made.write()) == {""} and made.seek().sizes == (SIZE,) * BLOCKS and set(made.read()) == {""}
        yield made
        kind.server.thaw()
        proxy.heal()
        made.tier.close()


def test_latency_is_waited_for(bench):
    bench.proxy.latency(0.1)
    assert bench.seek().sizes == (SIZE,) * BLOCKS and set(bench.read()) == {""}


@pytest.mark.parametrize("fault", ["blackhole", "frozen", "reset", "refuse"])
def test_who_does_not_answer_is_left_alone_in_time_and_used_again_in_time(bench, fault):
    server = bench.kind.server
    server.freeze() if fault == "frozen" else getattr(bench.proxy, fault)()
    assert bench.until_away() < SILENT_S + 0.7
    begun = time.monotonic()
    assert set(bench.read()) == {"unreachable"} and bench.seek().fault == "unreachable"
    assert time.monotonic() - begun < 0.1
    time.sleep(0.5)
    server.thaw()
    bench.proxy.heal()
    assert bench.until_back() < RECOVERY_S
    assert set(bench.read()) == {""}


def test_a_remote_at_a_megabyte_a_second_holds_nobody_for_long(bench):
    bench.proxy.throttle(1e6)
    bench.slowest = 0.0
    assert "unreachable" in bench.read()
    assert bench.slowest < SILENT_S + 0.7


def test_flipped_bits_are_faults_and_never_wrong_bytes(bench):
    bench.proxy.flip(0.05)
    faults = [fault for _ in range(6) for fault in bench.read()]
    assert bench.proxy.flipped and set(faults) <= {"", "corrupt", "gone", "unreachable"}
    assert len([fault for fault in faults if fault]) > 0


def test_five_percent_of_errors_are_few_faults(bench):
    bench.proxy.errors(0.05)
    faults = [fault for _ in range(20) for fault in bench.read()]
    assert "" in faults and set(faults) <= {"", "unreachable"}


def test_flapping_ends_every_order_in_time(bench):
    bench.proxy.flap(1.0)
    bench.slowest = 0.0
    until = time.monotonic() + 4.0
    while time.monotonic() < until:
        assert set(bench.read()) <= {"", "unreachable"}
        time.sleep(0.02)
    assert bench.slowest < SILENT_S + 0.7
    bench.proxy.heal()
    assert bench.until_back() < RECOVERY_S and set(bench.read()) == {""}


def test_a_server_that_is_killed_and_comes_back_is_used_again(bench):
    server = bench.kind.server
    server.kill()
    assert bench.until_away() < SILENT_S + 0.7
    server.start()
    assert bench.until_back() < RECOVERY_S
    kept = (SIZE,) * BLOCKS if bench.kind.keeps else (0,) * BLOCKS
    assert bench.seek().sizes == kept
    assert set(bench.write()) == {""} and set(bench.read()) == {""}


def test_the_breaker_needs_no_more_failures_than_it_says(bench):
    bench.proxy.reset()
    faults = [bench.seek().fault for _ in range(FAILURES_MAX)]
    assert set(faults) == {"unreachable"} and bench.tier.is_away
