"""Where kvtierd listens, and where its clients look for it."""

from pathlib import Path

from kvtier import client
from kvtier.client import default_socket, usual_socket


def test_the_socket_is_the_variable_s_or_the_session_s_or_the_system_s(monkeypatch):
    monkeypatch.setenv("KVTIER_SOCKET", "/some/where.sock")
    assert default_socket() == Path("/some/where.sock")
    monkeypatch.delenv("KVTIER_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket() == Path("/run/user/7/kvtier/kvtierd.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket() == Path("/run/kvtier/kvtierd.sock")


def test_a_user_without_a_daemon_of_its_own_finds_the_systems_service(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "SYSTEM_FOLDER", str(tmp_path / "system"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    monkeypatch.delenv("KVTIER_SOCKET", raising=False)
    assert usual_socket() == tmp_path / "user/kvtier/kvtierd.sock"
    (tmp_path / "system/kvtier").mkdir(parents=True)
    assert usual_socket() == tmp_path / "system/kvtier/kvtierd.sock"
    (tmp_path / "user/kvtier").mkdir(parents=True)
    assert usual_socket() == tmp_path / "user/kvtier/kvtierd.sock"
    monkeypatch.setenv("KVTIER_SOCKET", "/some/where.sock")
    assert usual_socket() == Path("/some/where.sock")
