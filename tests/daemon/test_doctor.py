"""kvtier doctor, as installed, on this machine: what it prints, and with which exit status."""

import json
import os

import pytest
from kvtierd import KVTierd, root_file
from terminal import Terminal, run

from kvtier import __version__
from kvtier.doctor.checks import CHECKS

KEYS = {"subject", "check", "level", "said", "cure"}


@pytest.fixture(scope="module")
def kvtierd(tmp_path_factory):
    """With drives."""
    folder = tmp_path_factory.mktemp("doctor")
    with KVTierd(folder, {"nvme.paths": folder / "drive", "nvme.capacity": "64 MiB"}) as daemon:
        yield daemon


def examined(*options: object, **environ: str) -> tuple[dict, int]:
    """The report, and the exit status."""
    done = run("kvtier", "doctor", "--json", *options, env={**os.environ, **environ})
    assert done.stderr == ""
    return json.loads(done.stdout), done.returncode


def found(report: dict, check: str) -> dict:
    (row,) = [row for row in report["checks"] if row["check"] == check]
    return row


def test_of_a_daemon_that_is_well_nothing_is_bad(kvtierd):
    report, status = examined("--socket", kvtierd.socket)
    assert [row for row in report["checks"] if row["level"] == "bad"] == []
    assert status == 0
    assert report["version"] == __version__
    assert sum(report["counts"].values()) == len(report["checks"])


def test_every_check_has_its_say(kvtierd):
    report, _ = examined("--socket", kvtierd.socket)
    assert all(set(row) == KEYS for row in report["checks"])
    said = list(dict.fromkeys((row["subject"], row["check"]) for row in report["checks"]))
    assert said == [(check.subject, check.name) for check in CHECKS]


def test_what_is_not_good_comes_with_a_cure_and_what_is_without(kvtierd):
    report, _ = examined("--socket", kvtierd.socket)
    assert all(bool(row["cure"]) == (row["level"] != "ok") for row in report["checks"])


def test_it_looks_with_the_settings_that_the_daemon_was_started_with(kvtierd):
    report, _ = examined("--socket", kvtierd.socket)
    assert found(report, "kvtierd")["said"].startswith(f"answers on {kvtierd.socket}, process {kvtierd.pid}, up ")
    assert found(report, "settings")["said"] == f"those of kvtierd, process {kvtierd.pid}"
    assert str(kvtierd.socket.parent / "drive") in found(report, "direct I/O")["said"]


def test_the_socket_is_found_as_engines_find_it(kvtierd):
    report, _ = examined(KVTIER_SOCKET=str(kvtierd.socket))
    assert found(report, "kvtierd")["level"] == "ok"


def test_it_leaves_nothing_behind(kvtierd):
    folder = kvtierd.socket.parent
    before = sorted(path.name for path in (*folder.iterdir(), *(folder / "drive").iterdir()))
    examined("--socket", kvtierd.socket)
    assert sorted(path.name for path in (*folder.iterdir(), *(folder / "drive").iterdir())) == before


def test_blocks_on_drives_without_a_key_are_a_warning_and_with_strict_a_failure(kvtierd):
    report, _ = examined("--socket", kvtierd.socket)
    assert (found(report, "encryption")["level"], report["level"]) == ("warn", "warn")
    assert examined("--strict", "--socket", kvtierd.socket)[1] == 1


def test_a_socket_that_anybody_may_use_is_bad(tmp_path):
    with KVTierd(tmp_path) as daemon:
        tmp_path.chmod(0o755)
        daemon.socket.chmod(0o666)
        report, status = examined("--socket", daemon.socket)
        (row,) = [row for row in report["checks"] if row["check"] == "sockets" and str(daemon.socket) in row["said"]]
        assert (row["level"], status) == ("bad", 1)


# --- without a daemon ----------------------------------------------------------------------------------------


def test_without_a_daemon_it_says_so_and_looks_at_the_rest(tmp_path):
    report, status = examined("--socket", tmp_path / "none.sock")
    assert found(report, "kvtierd")["level"] == "warn"
    assert found(report, "settings")["said"].startswith("the defaults")
    assert status in (0, 1)  # this machine may be too small for them


def test_the_settings_of_a_file_are_looked_at(tmp_path):
    secret = root_file(tmp_path)
    file = tmp_path / "kvtier.toml"
    file.write_text(
        f'[server]\nsocket = "{tmp_path}/none.sock"\n[cpu]\ncapacity = "32 MiB"\n'
        f'[remote]\nurl = "redis://127.0.0.1:1"\nsecret_file = "{secret}"\n'
    )
    report, _ = examined("--config", file)
    assert found(report, "settings")["said"] == f"those of {file}"
    assert found(report, "secrets")["level"] == "ok"
    secret.chmod(0o644)
    report, status = examined("--config", file)
    assert (found(report, "secrets")["level"], found(report, "secrets")["cure"]) == ("bad", f"`chmod 600 {secret}`")
    assert status == 1


def test_a_file_that_is_wrong_is_no_report(tmp_path):
    file = tmp_path / "kvtier.toml"
    file.write_text('[cpu]\ncapacty = "1 GiB"\n')
    done = run("kvtier", "doctor", "--config", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'cpu.capacity'" in done.stderr


# --- for people ----------------------------------------------------------------------------------------------


def test_each_line_is_ok_warn_or_bad_and_ends_with_the_counts(kvtierd):
    done = run("kvtier", "doctor", "--socket", kvtierd.socket)
    lines = done.stdout.splitlines()
    subjects = {check.subject for check in CHECKS}
    assert {line.split()[0] for line in lines[:-1]} <= {"ok", "warn", "bad", "->", *subjects}
    assert lines[-1].endswith(" bad") and " ok, " in lines[-1]
    assert "\x1b" not in done.stdout


def test_only_what_is_not_good_where_that_is_wished(kvtierd):
    done = run("kvtier", "doctor", "--quiet", "--socket", kvtierd.socket)
    assert "\nok " not in done.stdout
    assert "warn encryption" in done.stdout


def test_colours_are_for_terminals(kvtierd, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal("kvtier", "doctor", "--socket", kvtierd.socket)
    assert terminal.status() == 0
    assert "\x1b[32mok" in terminal.shown


def test_and_not_where_nobody_wants_them(kvtierd, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal("kvtier", "doctor", "--socket", kvtierd.socket)
    assert terminal.status() == 0
    assert "\x1b[32m" not in terminal.shown
    assert "ok " in terminal.shown
