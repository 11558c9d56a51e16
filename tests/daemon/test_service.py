"""kvtierd under a service manager: what it says, how it gets its socket, and who may use it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from kvtierd import PATIENCE_S, Engine, KVTierd, Peer, eventually, observer_hello, some_keys
from service_manager import Service

from kvtier import protocol

GROUP, OTHER_USER = 64123, 64124  # of nobody on this machine

# Connects as another user, and says what came of it. Arguments: the socket; uid, gid, further groups as JSON.
AS_ANOTHER = """
import contextlib, json, os, socket, sys
path, uid, gid, groups = sys.argv[1], *json.loads(sys.argv[2])
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
    sock.settimeout(30)
    try:
        sock.connect(path)
    except PermissionError:
        print("no permission")
        sys.exit()
    with contextlib.suppress(BrokenPipeError):  # refused without a word of it having been heard
        sock.sendall(bytes.fromhex(sys.argv[3]))
    print("refused" if b"may not use" in sock.recv(65536) else "welcome")
"""


def as_another(path: Path, uid: int, gid: int, groups: list[int]) -> str:
    hello = protocol.encode(observer_hello()).hex()
    given = [sys.executable, "-S", "-P", "-c", AS_ANOTHER, str(path), json.dumps([uid, gid, groups]), hello]
    ended = subprocess.run(given, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def is_welcome(path: Path) -> bool:
    with Peer(path) as peer:
        return isinstance(peer.ask(observer_hello(), answer=protocol.Welcome), protocol.Welcome)


# --- what it says ------------------------------------------------------------------------------------------------


def test_it_says_how_it_is_and_then_that_it_is_ready(tmp_path):
    with Service(tmp_path) as service:
        assert service.said_now[:2] == ["STATUS=RAM 0% of 64 MiB; 0 clients; nothing asked yet", "READY=1"]
        assert is_welcome(service.socket)


def test_the_status_follows_what_it_does(tmp_path):
    with Service(tmp_path, {"nvme.paths": tmp_path / "drive", "nvme.capacity": "64 MiB"}) as service:
        with Engine(service.socket) as engine:
            engine.save(some_keys(4))
            engine.lookup(some_keys(8))
            eventually(lambda: "50% of blocks asked for found" in service.status)
            assert "NVMe 0% of 64 MiB; 1 client;" in service.status
        eventually(lambda: "; 0 clients;" in service.status)


def test_an_end_is_told_with_the_time_that_it_may_take(tmp_path):
    with Service(tmp_path, {"nvme.drain_s": 7}) as service:
        assert service.end() == 0
        begun = service.said_now.index("STOPPING=1")
        assert service.said_now[begun:][:3] == ["STOPPING=1", "STATUS=Ends", "EXTEND_TIMEOUT_USEC=37000000"]


def test_the_watchdog_is_fed_by_the_loop_and_by_nothing_else(tmp_path):
    with Service(tmp_path, watchdog_s=0.4) as service:
        eventually(lambda: service.said_now.count("WATCHDOG=1") > 3)
        service.stop_()
        service.catch_up()
        fed = service.said_now.count("WATCHDOG=1")
        time.sleep(0.5)  # in which it would be fed twice
        service.catch_up()
        assert service.said_now.count("WATCHDOG=1") == fed
        service.cont()
        eventually(lambda: service.said_now.count("WATCHDOG=1") > fed)


# --- its socket --------------------------------------------------------------------------------------------------


def test_a_socket_that_it_was_passed_is_served_and_stays(tmp_path):
    path = tmp_path / "passed.sock"
    with Service(tmp_path, {"server.socket": path}, listens={"kvtierd": path}) as service:
        assert is_welcome(path)
        assert service.end() == 0
        with Peer(path) as early:  # nobody is there; it waits
            early.say(observer_hello())
            service.start()
            assert early.hear(protocol.Welcome)
        eventually((tmp_path / "admin.sock").is_socket)


def test_the_passed_socket_says_where_it_is_whatever_the_settings_say(tmp_path):
    path = tmp_path / "passed.sock"
    service = Service(tmp_path, listens={"kvtierd": path})
    service.socket = path
    with service:
        assert is_welcome(path)
        assert not (tmp_path / "kvtierd.sock").exists()


def test_a_second_socket_of_that_name_ends_the_start(tmp_path):
    service = Service(tmp_path, listens={"kvtierd": tmp_path / "passed.sock"})
    service.keep("kvtierd", os.dup(0))
    with pytest.raises(AssertionError, match="kvtierd: the service manager passes more than one socket"), service:
        pass
    service.forget()


# --- who may use it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_a_group():
    """A kvtierd of root that a group may use. Not below pytest's folder: that is shut to others."""
    if os.geteuid() != 0:
        pytest.skip("only root can become other users")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o711)
        settings = {"server.socket": folder / "run" / "kvtierd.sock", "server.group": GROUP, "admin.group": GROUP + 1}
        with KVTierd(folder, settings) as daemon:
            yield daemon


def modes(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mode & 0o777, found.st_gid


def admin_modes(daemon: KVTierd) -> tuple[int, int]:
    """It is made a moment after the other."""
    path = daemon.socket.with_name("admin.sock")
    return modes(path) if path.exists() else (0, 0)


def test_socket_and_folder_are_the_groups(of_a_group):
    assert modes(of_a_group.socket) == (0o660, GROUP)
    assert modes(of_a_group.socket.parent) == (0o750, GROUP)


def test_the_admin_socket_is_another_groups(of_a_group):
    eventually(lambda: admin_modes(of_a_group) == (0o660, GROUP + 1))


@pytest.mark.parametrize("groups", [[GROUP], [1, 2, GROUP, 64999]], ids=["alone", "among-others"])
def test_a_member_is_welcome(of_a_group, groups):
    assert as_another(of_a_group.socket, OTHER_USER, OTHER_USER, groups) == "welcome"


def test_whose_first_group_it_is_is_welcome(of_a_group):
    assert as_another(of_a_group.socket, OTHER_USER, GROUP, []) == "welcome"


def test_others_do_not_even_reach_it(of_a_group):
    assert as_another(of_a_group.socket, OTHER_USER, OTHER_USER, [1]) == "no permission"


def test_who_reaches_it_all_the_same_is_refused(of_a_group):
    """The folder's mode is one wall, the kernel's word on who connects another."""
    of_a_group.socket.parent.chmod(0o755)
    of_a_group.socket.chmod(0o666)
    try:
        assert as_another(of_a_group.socket, OTHER_USER, OTHER_USER, [1]) == "refused"
        assert as_another(of_a_group.socket, 0, 0, []) == "welcome"
    finally:
        of_a_group.socket.parent.chmod(0o750)
        of_a_group.socket.chmod(0o660)


def test_without_a_group_there_is_none(tmp_path):
    with KVTierd(tmp_path, {"server.socket": tmp_path / "run" / "kvtierd.sock"}) as daemon:
        assert modes(daemon.socket)[0] == 0o600
        eventually(lambda: admin_modes(daemon)[0] == 0o600)
        assert modes(daemon.socket.parent)[0] == 0o700
