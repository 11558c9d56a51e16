"""What nobody should say to a kvtierd, 300,000 times: frames, admin calls, calls of other nodes, and HTTP. It goes on, an
engine that behaves finds its blocks as it saved them, and its memory stays.

A failure names the seed of its batch: --fuzz-seed begins with that. One part runs in make test, all in test-long.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from admin_caller import caller_of
from chat import Chat, nvme_settings, turn
from kvtierd import KVTierd, root_file, some_keys
from remote.servers import LOOPBACK, free_ports
from security.hostile import batch
from security.hostile_calls import ADMIN, PEER, HostileCaller, Words
from security.hostile_visits import batch as batch_of_visits

from kvtier.admin import default_admin_socket, target_of
from kvtier.block import KEY_BYTES
from kvtier.peer import STREAMS_MAX

FRAMES, ADMIN_CALLS, PEER_CALLS, VISITS = 240_000, 40_000, 20_000, 10_000
PART = 40  # so much less in make test
BATCH, CALLS = 500, 100
WARM_BATCHES = 4  # until everything was used once
GROWTH_MAX = 50 * 1024**2
KEPT = some_keys(4, "kept")


def anonymous_bytes(pid: int) -> int:
    """Of its memory, what is neither the arena nor a file."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


class Attacked:
    """A daemon with everything on, and beside it an engine that behaves."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        more = {"cpu.capacity": "64 MiB", "peer.listen": f"{LOOPBACK}:{self.port}", "log.level": "warning",
                "peer.write_rate": "100 GiB", "remote.secret_file": root_file(folder)}  # fmt: skip
        self.daemon = KVTierd(folder, {**nvme_settings(folder), **more})
        self._pid = 0

    def __enter__(self) -> "Attacked":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.daemon)
            self._pid = self.daemon.pid
            self._admin = stack.enter_context(caller_of(self.daemon))
            self._chat = stack.enter_context(Chat(self.daemon, "its own"))
            self.check()
            pieces = self._admin.export("mine", "", 30)
            words = Words(b"".join(answer["piece"] for answer in pieces), (bytes(8), b"their...", b"its own."))
            self.admin = HostileCaller(target_of(default_admin_socket(self.daemon.socket)), ADMIN, words, 48)
            self.peer = HostileCaller(f"{LOOPBACK}:{self.port}", PEER, words, STREAMS_MAX // 2)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """It is the same, and serves. What is found is right; what hostile calls forgot or displaced is saved anew."""
        assert self.daemon.process is not None and self.daemon.process.poll() is None, self.daemon.said()[-4000:]
        turn(self._chat, "mine", KEPT)
        assert self._chat.load(KEPT) == len(KEPT) // KEY_BYTES
        assert self.daemon.snapshot()["pid"] == self._pid


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with Attacked(tmp_path_factory.mktemp("attacked")) as daemon:
        yield daemon


def attack(attacked: Attacked, first: int, of: int, each: int, one: Callable[[int, int], None]) -> None:
    """`of` things in batches; memory may grow by so much, after the first have made it use everything once."""
    before = 0
    for number in range(first, first + max(of // each, 2 * WARM_BATCHES)):
        try:
            one(number, each)
            attacked.check()
        except BaseException as error:
            error.add_note(f"seed {number}; again: pytest {__file__} --fuzz-seed={number}, or from {first} on")
            raise
        if number == first + WARM_BATCHES:
            before = anonymous_bytes(attacked.daemon.pid)
    grown = anonymous_bytes(attacked.daemon.pid) - before
    print(f"{of:,} in {of // each} batches: grown by {grown / 1024**2:.1f} MiB from {before / 1024**2:.1f} MiB")
    assert grown < GROWTH_MAX
    assert "fault" not in attacked.daemon.said()


@pytest.mark.parametrize("part", [PART, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_whatever_frames_come_it_serves_on(attacked, first_seed, part):
    attack(attacked, first_seed, FRAMES // part, BATCH, lambda number, n: batch(attacked.daemon.socket, number, n))
    counters = attacked.daemon.snapshot()["counters"]
    print(
        {
            name: counters[name]
            for name in ("clients_joined", "clients_refused", "protocol_errors", "saved_blocks", "lookups")
        }
    )
    assert min(counters["clients_joined"], counters["protocol_errors"]) > FRAMES // part // 100


@pytest.mark.parametrize("part", [PART, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_whatever_is_asked_of_its_admin_api_it_serves_on(attacked, first_seed, part):
    attack(attacked, first_seed, ADMIN_CALLS // part, CALLS, attacked.admin.batch)
    print(attacked.admin.answers)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DATA_LOSS"} <= set(attacked.admin.answers)


@pytest.mark.parametrize("part", [PART, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_whatever_other_nodes_ask_it_serves_on(attacked, first_seed, part):
    attack(attacked, first_seed, PEER_CALLS // part, CALLS, attacked.peer.batch)
    print(attacked.peer.answers)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= set(attacked.peer.answers)
    assert attacked.peer.answers.get("UNAVAILABLE", 0) < PEER_CALLS // part // 10, "it wasn't asked"


@pytest.mark.parametrize("part", [PART, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_whoever_visits_its_metrics_it_serves_on(attacked, first_seed, part):
    answers: Counter[bytes] = Counter()
    path = attacked.daemon.socket.with_name("metrics.sock")
    attack(attacked, first_seed, VISITS // part, CALLS, lambda number, n: answers.update(batch_of_visits(path, number, n)))
    print(dict(answers))
    assert {b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 400 Bad Request"} <= set(answers)
