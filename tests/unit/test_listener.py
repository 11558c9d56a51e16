"""Sockets that kvtierd makes, and those that it is passed."""

import os
import socket
from pathlib import Path

import pytest

from kvtier.errors import DaemonError
from kvtier.listener import adopt, bind, make_way


def modes(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_socket_and_its_folder_are_its_owners_alone(tmp_path):
    path = tmp_path / "made" / "kvtierd.sock"
    with bind(path):
        assert (modes(path), modes(path.parent)) == (0o600, 0o700)


def test_with_a_group_they_are_the_groups_too(tmp_path):
    path = tmp_path / "made" / "kvtierd.sock"
    with bind(path, os.getegid()):
        assert (modes(path), modes(path.parent)) == (0o660, 0o750)
        assert (path.stat().st_gid, path.parent.stat().st_gid) == (os.getegid(), os.getegid())


def test_a_folder_that_was_there_is_left_as_it_is_and_shut_to_the_group_said_so(tmp_path, caplog):
    tmp_path.chmod(0o700)
    with bind(tmp_path / "kvtierd.sock", os.getegid()):
        assert modes(tmp_path) == 0o700
    assert f"can't enter {tmp_path}, and so not connect: chgrp" in caplog.text


def test_a_socket_that_nobody_listens_on_is_in_no_ones_way(tmp_path):
    with bind(tmp_path / "kvtierd.sock"):
        pass
    make_way(tmp_path / "kvtierd.sock", "server.socket")
    assert not (tmp_path / "kvtierd.sock").exists()


def test_a_socket_in_use_is_not_taken(tmp_path):
    with bind(tmp_path / "kvtierd.sock"), pytest.raises(DaemonError, match="another kvtierd listens on"):
        bind(tmp_path / "kvtierd.sock")


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(DaemonError, match=r"at most 107 bytes; set server\.socket"):
        bind(tmp_path / ("x" * 200))


# --- passed sockets ----------------------------------------------------------------------------------------------


def test_a_passed_socket_is_taken_with_its_path_and_never_blocks(tmp_path):
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(tmp_path / "passed"))
        passed.listen()
        listener, path = adopt([passed.detach()])
    with listener:
        assert path == tmp_path / "passed"
        assert listener.getblocking() is False


def on_a_port() -> socket.socket:
    made = socket.socket(socket.AF_INET)
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def without_a_folder() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"\0kvtier-test-{os.getpid()}-listener")
    made.listen()
    return made


@pytest.mark.parametrize("make", [on_a_port, without_a_folder])
def test_what_has_no_path_has_no_permissions_and_is_refused(make):
    with make() as passed, pytest.raises(DaemonError, match="has no path"):
        adopt([os.dup(passed.fileno())])


def test_a_socket_for_datagrams_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as passed:
        passed.bind(str(tmp_path / "passed"))
        with pytest.raises(DaemonError, match="nobody can connect"):
            adopt([os.dup(passed.fileno())])


def test_more_than_one_is_refused():
    with pytest.raises(DaemonError, match="more than one socket"):
        adopt([100, 101])
