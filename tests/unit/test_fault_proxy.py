"""The proxy that the remotes' fault tests stand on, over a server that says back what it hears."""

import contextlib
import itertools
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest
from remote.proxy import FaultProxy

MIB = 1024**2


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := self.request.recv(MIB):
                self.request.sendall(piece)


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    with server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    with serving(server), FaultProxy(*server.server_address[:2]) as made:
        yield made


@pytest.fixture
def unix_proxy(tmp_path) -> Iterator[FaultProxy]:
    where = str(tmp_path / "echo.sock")
    server = socketserver.ThreadingUnixStreamServer(where, _Echo)
    server.daemon_threads = True
    with serving(server), FaultProxy(where) as made:
        yield made


def connect(proxy: FaultProxy, timeout_s: float = 5.0) -> socket.socket:
    if proxy.path:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(timeout_s)
        peer.connect(proxy.path)
        return peer
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)


def say(link: socket.socket, said: bytes = b"hello") -> bytes:
    def send() -> None:
        with contextlib.suppress(OSError):  # who listens hears of it
            link.sendall(said)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    heard = b""
    while len(heard) < len(said):
        if not (piece := link.recv(MIB)):
            raise ConnectionResetError
        heard += piece
    sender.join()
    return heard


def took(proxy: FaultProxy, said: bytes = b"hello") -> float:
    with connect(proxy) as link:
        begun = time.monotonic()
        assert say(link, said) == said
        return time.monotonic() - begun


def test_what_is_well_passes_unchanged(proxy):
    with connect(proxy) as link:
        for n in (1, 1000, 3 * MIB):
            said = bytes(range(256)) * (n // 256 + 1)
            assert say(link, said) == said
    assert proxy.connections == 1


def test_latency_is_paid_each_way_and_costs_no_bandwidth(proxy):
    proxy.latency(0.1)
    assert 0.2 <= took(proxy) < 0.5
    assert took(proxy, bytes(2 * MIB)) < 1.5


def test_in_a_blackhole_nothing_is_heard_until_it_heals(proxy):
    with connect(proxy, timeout_s=0.2) as link:
        assert say(link) == b"hello"
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            say(link)
        with connect(proxy, timeout_s=0.2) as other, pytest.raises(TimeoutError):
            say(other)
        proxy.heal()
        link.settimeout(5)
        assert link.recv(5) == b"hello", "it was only late"


def test_a_reset_ends_open_connections_and_new_ones(proxy):
    with connect(proxy) as link:
        assert say(link) == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionError):
            say(link)
    with pytest.raises(ConnectionError), connect(proxy) as other:
        say(other)
    proxy.heal()
    assert took(proxy) < 1


def test_where_nobody_listens_a_connection_is_refused(proxy):
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    assert took(proxy) < 1


def test_a_throttle_gives_so_many_bytes_a_second(proxy):
    proxy.throttle(1e6)
    assert 0.3 < took(proxy, bytes(200_000)) < 1.0, "there and back, over one line"


def test_flipped_bits_are_one_a_piece_and_only_on_the_way_back(proxy):
    proxy.flip(1.0)
    said = bytes(MIB)
    with connect(proxy) as link:
        heard = say(link, said)
        assert say(link, b"small") == b"small"
    wrong = [byte for byte in heard if byte]
    assert len(wrong) == proxy.flipped > 0 and all(byte.bit_count() == 1 for byte in wrong)


def test_a_share_of_requests_ends_in_a_reset(proxy):
    proxy.errors(0.2)
    failed = 0
    for _ in range(100):
        try:
            took(proxy)
        except ConnectionError:
            failed += 1
    assert failed == proxy.failed and 8 <= failed <= 35


def test_flapping_is_half_the_time_up(proxy):
    proxy.flap(5.0)
    seen = []
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        try:
            took(proxy)
            seen.append(True)
        except ConnectionError:
            seen.append(False)
        time.sleep(0.01)
    assert 0.2 < sum(seen) / len(seen) < 0.8
    assert sum(a != b for a, b in itertools.pairwise(seen)) >= 6
    proxy.heal()
    assert all(took(proxy) < 1 for _ in range(5))


def test_nothing_is_left_after_close(proxy):
    link = connect(proxy)
    say(link)
    proxy.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fault-proxy"]
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.close()  # again
    link.close()


def test_a_unix_socket_has_the_same_faults(unix_proxy):
    with connect(unix_proxy) as link:
        assert say(link, bytes(MIB)) == bytes(MIB)
        unix_proxy.reset()
        with pytest.raises(ConnectionError):
            say(link)
    unix_proxy.refuse()
    with pytest.raises(OSError):
        connect(unix_proxy)
    unix_proxy.heal()
    with connect(unix_proxy) as link:
        assert say(link) == b"hello"
