"""What kvtierd and the service manager say to each other, at the level of datagrams and descriptors."""

import os
import socket
from pathlib import Path

import pytest

from kvtier import service_manager

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@pytest.fixture(autouse=True)
def nothing_is_said(monkeypatch):
    """No service manager of the one who runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def manager(address: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.settimeout(10)
    bound.bind(address)
    return bound


@pytest.fixture
def heard(tmp_path: Path, monkeypatch):
    """The end that listens."""
    with manager(str(tmp_path / "notify")) as bound:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield bound


# --- what is said ------------------------------------------------------------------------------------------------


def test_lines_arrive_as_one_message(heard):
    service_manager.notify("READY=1", "STATUS=serves")
    assert heard.recv(100) == b"READY=1\nSTATUS=serves"


def test_a_name_that_begins_with_an_at_lies_in_no_folder(monkeypatch):
    with manager(f"\0kvtier-test-{os.getpid()}") as bound:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@kvtier-test-{os.getpid()}")
        service_manager.notify("READY=1")
        assert bound.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_is_said_and_nothing_kept():
    service_manager.notify("READY=1")
    service_manager.drop("arena")
    assert service_manager.keep("arena", 0) is False


@pytest.mark.parametrize("address", ["/no/such/folder/notify", "vsock:2:1234", "relative"])
def test_a_service_manager_that_cannot_be_reached_is_no_error(monkeypatch, address):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    service_manager.notify("READY=1")
    assert service_manager.keep("arena", 0) is False


def test_one_that_does_not_listen_does_not_hold_us_up(heard):
    for _ in range(5000):  # more than any queue of datagrams takes
        service_manager.notify("WATCHDOG=1")
    assert heard.recv(100) == b"WATCHDOG=1"


# --- what is kept ------------------------------------------------------------------------------------------------


def test_a_kept_descriptor_goes_with_its_name(heard, monkeypatch):
    monkeypatch.setattr(service_manager, "is_through", lambda: True)
    memory = os.memfd_create("kept")
    os.write(memory, b"what is in it")
    assert service_manager.keep("arena", memory) is True
    os.close(memory)
    words, fds, _, _ = socket.recv_fds(heard, 100, 4)
    assert words == b"FDSTORE=1\nFDNAME=arena"
    assert os.pread(fds[0], 100, 0) == b"what is in it"
    os.close(fds[0])


def test_who_takes_it_but_never_says_so_does_not_keep_it(heard, monkeypatch):
    monkeypatch.setattr(service_manager, "KEPT_WITHIN_S", 0.05)
    assert service_manager.keep("arena", 0) is False
    assert [heard.recv(100) for _ in range(2)] == [b"FDSTORE=1\nFDNAME=arena", b"BARRIER=1"]


def test_a_name_is_dropped(heard):
    service_manager.drop("arena")
    assert heard.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=arena"


# --- what is passed ----------------------------------------------------------------------------------------------


@pytest.fixture
def passing(monkeypatch):
    """Says that three descriptors were passed, from some number on that we have; which, comes back."""
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]

    def say(names: str, pid: int | None = None) -> list[int]:
        first = next(a for a, b in zip(opened, opened[2:], strict=False) if b == a + 2)  # three beside each other
        monkeypatch.setattr(service_manager, "FIRST_PASSED", first)
        monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "3")
        monkeypatch.setenv("LISTEN_FDNAMES", names)
        for fd in opened:
            os.set_inheritable(fd, True)
        return [first, first + 1, first + 2]

    yield say
    for fd in opened:
        os.close(fd)


def test_descriptors_come_by_name_once_and_no_child_gets_them(passing):
    first, second, third = passing("kvtierd:arena:arena")
    assert service_manager.passed() == {"kvtierd": [first], "arena": [second, third]}
    assert not any(os.get_inheritable(fd) for fd in (first, second, third))
    assert service_manager.passed() == {}
    assert "LISTEN_FDS" not in os.environ


def test_what_was_meant_for_another_process_is_not_ours(passing):
    passing("a:b:c", pid=1)
    assert service_manager.passed() == {}


def test_descriptors_without_a_name_have_none(passing):
    first, second, third = passing("kvtierd")
    assert service_manager.passed() == {"kvtierd": [first], "": [second, third]}


# --- that we live ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "pid", "every_s"),
    [("30000000", None, 15.0), ("30000000", "ours", 15.0), ("30000000", "1", 0.0), ("", None, 0.0), ("soon", None, 0.0)],
    ids=["no-pid", "ours", "of-another", "none", "no-number"],
)
def test_the_watchdog_is_fed_at_twice_its_pace(monkeypatch, given, pid, every_s):
    monkeypatch.setenv("WATCHDOG_USEC", given)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert service_manager.watchdog_s() == every_s


def said(heard: socket.socket) -> list[bytes]:
    heard.setblocking(False)
    found = []
    while True:
        try:
            found.append(heard.recv(1000))
        except BlockingIOError:
            return found


def test_the_pulse_feeds_the_watchdog_and_tells_a_status_only_when_it_changes(heard, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    texts = iter(["one", "one", "two"])
    pulse = service_manager.Pulse(lambda: next(texts))
    pulse.tick(10.0)
    assert said(heard) == [b"WATCHDOG=1", b"STATUS=one"]
    assert pulse.due_at == 11.0
    pulse.tick(10.9)
    assert said(heard) == []
    pulse.tick(11.0)
    assert said(heard) == [b"WATCHDOG=1"]
    pulse.tick(10.0 + service_manager.STATUS_S)
    assert said(heard) == [b"WATCHDOG=1"]
    pulse.tick(10.0 + 2 * service_manager.STATUS_S)
    assert said(heard) == [b"WATCHDOG=1", b"STATUS=two"]


def test_at_the_end_it_says_how_long_that_may_take_and_no_status_any_more(heard):
    pulse = service_manager.Pulse(lambda: pytest.fail("that is over"))
    pulse.end(50)
    pulse.tick(10.0)
    assert said(heard) == [b"STOPPING=1\nSTATUS=Ends\nEXTEND_TIMEOUT_USEC=50000000"]


def test_without_a_service_manager_nobody_is_asked_how_it_is():
    pulse = service_manager.Pulse(lambda: pytest.fail("nobody hears it"))
    pulse.tick(10.0)
    assert pulse.due_at == float("inf")
