"""kvtierd as its user meets it: settings, signals, memory that can't be had, what it logs."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kvtierd import PATIENCE_S, Engine, KVTierd, eventually, some_keys

from kvtier import __version__, config

KVTIERD = str(Path(sys.executable).with_name("kvtierd"))
PR_CAPBSET_DROP = 24
CAP_IPC_LOCK = 14


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([KVTIERD, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S, **options)


def refusal(*arguments: object, status: int = 2) -> str:
    """What a kvtierd that doesn't start says: one line on stderr, and this exit status."""
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (status, "")
    *before, last = ended.stderr.splitlines()
    assert last.startswith("kvtierd: ")
    assert not [line for line in before if "Traceback" in line]
    return last


# --- settings ----------------------------------------------------------------------------------------------------


def test_it_says_its_version():
    assert run("--version").stdout == f"kvtierd {__version__}\n"


def test_the_printed_settings_are_toml_with_every_option_at_its_default(tmp_path):
    printed = run("--print-config").stdout
    assert tomllib.loads(printed) == {option.name.partition(".")[0]: {} for option in config.DAEMON}
    # With the marks taken away they are a file that kvtierd takes, and that changes nothing.
    active = "\n".join(line[1:] if line.startswith("#") and line[1:2].isalpha() else line for line in printed.split("\n"))
    given = config.parse_toml(active, "printed")
    assert {option.name for option in config.DAEMON} == set(given)
    defaults = config.Config(config.DAEMON, {})
    assert all(config.Config(config.DAEMON, given)[name] == defaults[name] for name in given)


def test_a_file_gives_settings_and_set_overrides_them(tmp_path):
    (tmp_path / "kvtier.toml").write_text('[cpu]\ncapacity = "34 MiB"\n[server]\nmax_clients = 3\n')
    daemon = KVTierd(tmp_path, {"cpu.capacity": "36 MiB"})
    daemon.extra = [f"--config={tmp_path / 'kvtier.toml'}"]
    with daemon:
        assert daemon.cpu()["capacity_bytes"] == 36 * 1024**2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("cpu.capcity=1GiB", "unknown setting 'cpu.capcity'; did you mean 'cpu.capacity'?"),
        ("qqq=1", "unknown setting 'qqq'; known are server.socket, "),
        ("cpu.capacity", "--set cpu.capacity: write NAME=VALUE"),
        ("cpu.capacity=1MiB", "cpu.capacity = 1 MiB is not between 32 MiB and 64 TiB"),
        ("log.level=loud", "log.level = 'loud' is none of debug, info, warning, error"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(given, says):
    assert says in refusal("--set", given)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[cpu]\ncapicity = 1\n", "unknown setting 'cpu.capicity'; did you mean 'cpu.capacity'?"),
        ("[cpu\n", "kvtier.toml: "),
        ('[cpu]\ncapacity = "1 MiB"\n', "is not between 32 MiB and 64 TiB"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, says):
    file = tmp_path / "kvtier.toml"
    file.write_text(text)
    said = refusal("--config", file)
    assert says in said and str(file) in said


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert f"{tmp_path}/no.toml: No such file or directory" in refusal("--config", tmp_path / "no.toml")


# --- memory ------------------------------------------------------------------------------------------------------


def test_a_capacity_larger_than_the_machine_is_refused_with_the_setting_to_lower(tmp_path):
    # With a status that the service tries again after: what is short now may be there when an engine lets go of it.
    socket = tmp_path / "kvtierd.sock"
    said = refusal("--set", "cpu.capacity=60TiB", "--set", f"server.socket={socket}", status=75)
    assert "can't take cpu.capacity = 60 TiB" in said and said.endswith("lower it")
    assert not socket.exists()


def forbid_pinning() -> None:
    """Takes from a process that is about to exec the right and the allowance to lock memory."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) != 0 and os.geteuid() == 0:
        os._exit(77)


def test_an_arena_that_cannot_be_pinned_is_said_once_and_shown(tmp_path):
    daemon = KVTierd(tmp_path)
    daemon.before_exec = forbid_pinning
    try:
        daemon.start()
    except AssertionError:
        if daemon.process.returncode == 77:
            pytest.skip("cannot drop CAP_IPC_LOCK here, and root may always pin")
        raise
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(1))
        arena = daemon.snapshot()["arena"]
    assert arena["pinned"] is False
    notes = [note for note in arena["notes"] if "not pinned" in note]
    assert len(notes) == 1 and daemon.said().count(notes[0]) == 1
    daemon.kill()


def test_a_daemon_that_was_told_not_to_pin_says_nothing_about_it(tmp_path):
    with KVTierd(tmp_path, {"cpu.pin": "no"}) as daemon:
        assert daemon.snapshot()["arena"]["pinned"] is False
        assert "pinned" not in daemon.said()


# --- its life ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_with_clients_connected(kvtierd, number):
    with Engine(kvtierd.socket) as engine:
        engine.save(some_keys(2))
        engine.lookup(some_keys(2))
        os.kill(kvtierd.pid, number)
        assert kvtierd.process.wait(PATIENCE_S) == 0
        assert engine.end() is None
    assert not kvtierd.socket.exists()
    assert kvtierd.said().endswith("kvtierd ends\n")


def test_a_quiet_daemon_logs_nothing_of_what_goes_well(tmp_path):
    with KVTierd(tmp_path, {"log.level": "error"}) as daemon:
        with Engine(daemon.socket) as engine:
            engine.save(some_keys(1))
        eventually(lambda: daemon.counter("engines_gone") == 1)
        assert daemon.said() == ""


def test_two_daemons_have_nothing_in_common(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with (
        KVTierd(folders[0]) as one,
        KVTierd(folders[1]) as two,
        Engine(one.socket) as here,
        Engine(two.socket) as there,
    ):
        # Neither keys nor generations of one can be meant by the other.
        assert here.welcome.secret != there.welcome.secret
        assert abs(here.welcome.generation - there.welcome.generation) > 1000
