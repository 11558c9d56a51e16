"""kvtier stats and tier-stats, as installed: what they print, where, and with which exit status."""

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest
from chat import BLOCK, Chat, nvme_settings
from kvtierd import PATIENCE_S, SLOT, Engine, KVTierd, Worker, some_keys
from terminal import COMMANDS, Terminal, run

from kvtier import __version__, observer, protocol
from kvtier.errors import DaemonError
from kvtier.observer import ask
from kvtier.stats import COUNTERS


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """A daemon with one engine: 3 blocks saved, one lease on 2 of them, 2 loaded before. Its worker could register 48 of
    the arena's 64 MiB."""
    with (
        KVTierd(tmp_path_factory.mktemp("busy")) as daemon,
        Engine(daemon.socket, "my-engine") as engine,
        Worker(daemon.socket, "my-engine") as worker,
    ):
        worker.say(protocol.Mapped(48 << 20, 0, "async"))
        engine.save(some_keys(3))
        engine.lookup(some_keys(2))
        engine.release(loaded=2)
        engine.lookup(some_keys(2))
        yield daemon


def row(text: str, name: str) -> list[str]:
    """The words of the one line that begins with this name."""
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return line.split()


# --- once --------------------------------------------------------------------------------------------------------


def test_stats_show_the_tier_the_engines_and_what_was_counted(busy):
    shown = run("kvtier", "stats", "-1", "--socket", busy.socket)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"kvtierd {__version__}  up ")
    assert f"pid {busy.pid}" in shown.stdout
    tier = row(shown.stdout, "cpu")
    assert tier[1:3] == ["64", "MiB"]
    assert " 3  " in shown.stdout and tier[-3:] == ["32", "0.00", "0.00"]  # hit tokens, GB/s in, GB/s out
    engine = row(shown.stdout, "my-engine")
    assert engine[1:3] == [str(os.getpid())] * 2  # the scheduler's process and the worker's
    assert engine[3:-1] == ["64", "KiB", "16", "5/8", "1", "2"]
    assert row(shown.stdout, "saved_blocks") == ["saved_blocks", "3", *COUNTERS["saved_blocks"].split()]


def test_a_worker_that_may_lock_too_little_memory_is_marked(busy):
    shown = run("kvtier", "stats", "-1", "--socket", busy.socket).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("workers of my-engine")]
    assert line.split()[3:8] == ["async", "48", "MiB", "no", "!"]
    assert line.endswith("! too little locked memory: 16 MiB of the arena copied slowly")


def test_what_was_never_counted_is_not_shown(busy):
    shown = run("kvtier", "stats", "-1", "--socket", busy.socket).stdout
    assert "evicted_blocks" not in shown and "connector_faults" not in shown


def test_without_a_terminal_it_prints_once_without_being_told_to(busy):
    shown = run("kvtier", "stats", "--socket", busy.socket)
    assert shown.returncode == 0
    assert row(shown.stdout, "my-engine")[0] == "my-engine"
    assert "\x1b" not in shown.stdout


def test_tier_stats_is_kvtier_stats(busy):
    env = {**os.environ, "KVTIER_SOCKET": str(busy.socket)}
    outputs = [run("tier-stats", "-1", env=env).stdout, run("kvtier", "stats", "-1", env=env).stdout]
    steady = [re.sub(r"\d+m\d+s|\d+s", "", output) for output in outputs]  # all but how long it has been up
    shown = [[line.split() for line in output.splitlines()[:5]] for output in steady]
    assert shown[0] == shown[1]
    assert "my-engine" in outputs[0]


def test_an_idle_daemon_says_that_no_engine_is_connected(tmp_path):
    with KVTierd(tmp_path) as daemon:
        assert "none is connected" in run("kvtier", "stats", "-1", "--socket", daemon.socket).stdout


def test_stats_show_the_drives_what_was_refused_and_how_long_they_last(tmp_path):
    with KVTierd(tmp_path, nvme_settings(tmp_path, nvme_endurance_dwpd=2)) as daemon, Chat(daemon) as chat:
        chat.save(some_keys(4))
        assert observer.flush(daemon.socket, PATIENCE_S)
        nvme = daemon.snapshot()["tiers"]["nvme"]
        shown = run("kvtier", "stats", "-1", "--socket", daemon.socket).stdout
    assert nvme["written_bytes"] == 4 * BLOCK and nvme["durable_blocks"] == 4
    rated = nvme["budget_bytes_per_day"]
    assert nvme["days_of_life"] == pytest.approx(rated * 5 * 365 / nvme["written_bytes_per_day"], rel=0.01)
    assert row(shown, "nvme")[1:4] == ["128", "MiB", "4"]
    (drives,) = [line for line in shown.splitlines() if line.startswith(str(tmp_path / "nvme")[:40])]
    assert " good " in drives and nvme["io"] in drives


def test_json_is_one_object_with_everything(busy):
    state = json.loads(run("kvtier", "stats", "--json", "--socket", busy.socket).stdout)
    assert set(state) == {
        "version", "generation", "uptime_s", "arena", "pid", "tiers", "engines", "decisions", "retention", "counters",
        "clients", "durations", "process", "tenants",
    }  # fmt: skip
    assert set(state["counters"]) == set(COUNTERS)
    assert state["tiers"]["cpu"] == {
        "capacity_bytes": 64 * 1024**2,
        "used_bytes": 8 * SLOT,
        "lent_bytes": 5 * SLOT,
        "leased_bytes": 2 * SLOT,
        "blocks": 3,
        "hit_tokens": 32,
    }
    (engine,) = state["engines"]
    assert engine.pop("connected_s") >= 0
    assert engine == {
        "engine": "my-engine",
        "lent_slots": 5,
        "lend_target": 8,
        "leases": 1,
        "leased_blocks": 2,
        "slot_bytes": SLOT,
        "block_tokens": 16,
        "copies": ["async"],
        "maps_gpu": False,
        "pinned_bytes": 48 * 1024**2,
        "unpinned_bytes": 16 * 1024**2,
    }
    assert [client["role"] for client in state["clients"]] == ["scheduler", "worker", "observer"]
    assert set(state["arena"]) == {"huge_bytes", "pinned", "notes"}


# --- no daemon, wrong usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["kvtier", "stats"], ["kvtier", "stats", "--json"], ["tier-stats", "-1"]])
def test_without_a_daemon_it_ends_with_1_and_says_what_to_do(tmp_path, command):
    ended = run(*command, "--socket", tmp_path / "nobody.sock")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"{command[0]}: no kvtierd on {tmp_path}/nobody.sock: No such file or directory; "
        "start kvtierd, or name its socket with --socket or KVTIER_SOCKET\n"
    )


def test_a_command_that_asks_learns_why_there_is_no_answer(tmp_path):
    daemon = KVTierd(tmp_path)
    with pytest.raises(DaemonError, match=r"no kvtierd on .*: No such file or directory; start kvtierd, or name"):
        ask(daemon.socket)
    with daemon:
        assert ask(daemon.socket)["pid"] == daemon.pid
        daemon.stop_()
        with pytest.raises(DaemonError, match=r"doesn't answer within 0.1 s"):
            ask(daemon.socket, timeout_s=0.1)
        daemon.kill()
        with pytest.raises(DaemonError, match=r"Connection refused"):
            ask(daemon.socket)


def test_a_daemon_of_another_version_is_said_to_be_one(tmp_path):
    with KVTierd(tmp_path, version=99) as daemon:
        ended = run("kvtier", "stats", "--socket", daemon.socket)
        assert ended.returncode == 1
        assert f"protocol 99, the client {protocol.VERSION}; install the same kvtier" in ended.stderr


@pytest.mark.parametrize("words", [[], ["stat"], ["stats", "--interval", "soon"]])
def test_wrong_usage_ends_with_2(words):
    ended = run("kvtier", *words)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: kvtier")


def test_a_reader_that_goes_away_ends_it_quietly(busy):
    command = f"{COMMANDS / 'kvtier'} stats --json --socket {busy.socket} | true"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S)
    assert "Traceback" not in ended.stderr


# --- on a terminal -----------------------------------------------------------------------------------------------


@pytest.fixture
def live(busy: KVTierd) -> Iterator[Terminal]:
    terminal = Terminal("kvtier", "stats", "--interval", "0.1", "--socket", busy.socket)
    yield terminal
    terminal.close()


def test_on_a_terminal_it_redraws_until_ctrl_c_and_leaves_the_terminal_as_it_was(live):
    live.read_until("my-engine", times=4)
    assert "\x1b[?1049h" in live.shown  # the other screen, so that the scrollback stays
    live.press(b"\x03")
    assert live.status() == 130
    assert "\x1b[?1049l" in live.shown
    assert "Traceback" not in live.shown


def test_when_the_daemon_ends_the_live_view_ends_with_1_and_says_why(tmp_path):
    with KVTierd(tmp_path) as daemon:
        terminal = Terminal("tier-stats", "--interval", "0.1", "--socket", daemon.socket)
        terminal.read_until("none is connected")
        assert daemon.terminate() == 0
        assert terminal.status() == 1
        assert "start kvtierd" in terminal.shown and "Traceback" not in terminal.shown
        terminal.close()


def test_once_on_a_terminal_prints_and_ends(busy):
    terminal = Terminal("kvtier", "stats", "-1", "--socket", busy.socket)
    assert terminal.status() == 0
    assert "my-engine" in terminal.shown and "\x1b[?1049h" not in terminal.shown
    terminal.close()
