"""kvtier sessions, warm, park, pin, end, forget and top: most in this process, which saves a start each; the rest as
installed."""

import contextlib
import json
import os
import signal
import termios
from collections.abc import Iterator

import pytest
from kvtierd import SLOT, Engine, KVTierd, eventually, some_keys
from terminal import Terminal, run, run_here

from kvtier import protocol
from kvtier.admin import default_admin_socket
from kvtier.admin.caller import AdminCaller
from kvtier.block import KEY_BYTES
from kvtier.errors import DaemonError

TENANT = bytes(range(16))
TENANT_SHOWN = "000102030405"
EVIL = "\u2028not a line"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """A daemon that knows sessions, of which each test has its own."""
    with KVTierd(tmp_path_factory.mktemp("known")) as daemon, Engine(daemon.socket, lend=64) as engine:
        for blocks, name in enumerate(("to list", "to warm", "to pin", "to end", "to forget", "also listed"), 2):
            turn(engine, name, some_keys(blocks, name))
        turn(engine, "one's", some_keys(2, "one's"), TENANT)
        eventually(lambda: len(sessions_of(daemon)) == 7)
        yield daemon


def turn(engine: Engine, session: str, keys: bytes, tenant: bytes = b"") -> None:
    engine.say(protocol.Begin(session, session, tenant))
    engine.ask(protocol.Lookup(1, keys, request=session), answer=protocol.Found)
    parents = bytes(KEY_BYTES) + keys[:-KEY_BYTES]
    slots = b"".join(engine.lent.pop(0).to_bytes(4, "little") for _ in range(len(keys) // KEY_BYTES))
    engine.say(protocol.Commit(keys, slots, parents, session), protocol.Release(1, 0), protocol.Touch(keys, session))


def sessions_of(daemon: KVTierd) -> list[dict]:
    with contextlib.suppress(DaemonError), AdminCaller(default_admin_socket(daemon.socket)) as admin:
        return [row for row in admin.sessions()[0] if row["state"] == "idle"]
    return []


def kvtier(*words: object) -> tuple[int, str, str]:
    """Exit status, and what it prints to either."""
    ended = run_here("kvtier", *words)
    return ended.returncode, ended.stdout, ended.stderr


def told(daemon: KVTierd, *words: object) -> list[str]:
    """The lines that a command prints when all is good."""
    status, out, err = kvtier(*words, "--socket", daemon.socket)
    assert (status, err) == (0, "")
    return out.splitlines()


# --- sessions ------------------------------------------------------------------------------------------------


def test_sessions_are_listed_one_a_line(known):
    ended = run("kvtier", "sessions", "--sort", "name", "--socket", known.socket)
    assert (ended.returncode, ended.stderr) == (0, "")
    header, *lines = ended.stdout.splitlines()
    assert header.split() == [
        "session", "state", "idle", "turns", "tokens", "cpu", "nvme", "gone", "returns", "chance", "pin", "tool"
    ]  # fmt: skip
    (line,) = [line for line in lines if line.startswith("to list ")]
    assert line.split()[2] == "idle"
    assert line.split()[4:7] == ["1", "32", "128K"]


def test_the_first_are_shown_and_how_many_there_are(known):
    _, *lines = told(known, "sessions", "--sort", "tokens", "--limit", "1")
    assert lines[0].startswith("also listed ")
    assert lines[1].endswith(" sessions; --limit N shows more")


def test_json_has_every_session_as_the_daemon_tells_it(known):
    (line,) = told(known, "sessions", "--json", "--tenant", TENANT_SHOWN)
    (session,) = json.loads(line)["sessions"]
    assert set(session) == {
        "session", "tenant", "model", "state", "idle_s", "turns", "tokens", "bytes", "blocks", "expected_return_s",
        "return_chance", "pinned", "pin_left_s", "ttl_left_s", "no_disk", "tool", "category",
    }  # fmt: skip
    assert (session["session"], session["tenant"]) == ("one's", TENANT_SHOWN)
    assert session["blocks"] == {"cpu": 2, "nvme": 0, "gone": 0}


def test_stats_count_the_sessions(known):
    lines = told(known, "stats", "-1")
    (at,) = [number for number, line in enumerate(lines) if line.startswith("sessions ")]
    shown = dict(zip(lines[at].split(), lines[at + 1].split(), strict=False))
    assert int(shown["sessions"]) >= int(shown["idle"]) >= 3


# --- verbs ---------------------------------------------------------------------------------------------------


def test_warm_and_park_say_how_many_blocks_move(known):
    assert told(known, "warm", "to warm") == ["session to warm: no block is to be read: what is left of it is in RAM"]
    assert told(known, "park", "to warm") == ["session to warm: 3 blocks may leave RAM"]
    (line,) = told(known, "park", "to warm", "--json")
    assert json.loads(line) == {"session": "to warm", "blocks": 3}


def test_a_pin_lasts_as_long_as_is_said_and_can_be_taken_off(known):
    assert told(known, "pin", "to pin", "--for", "7200") == ["session to pin: 4 blocks pinned for 2h"]
    (line,) = [line for line in told(known, "sessions") if line.startswith("to pin ")]
    assert line.split()[-1] == "1h"
    assert told(known, "pin", "to pin", "--off") == ["session to pin: 4 blocks no longer pinned"]


def test_a_session_that_is_over_is_said_to_be(known):
    assert told(known, "end", "to end") == ["session to end: is over"]


def test_forget_prints_the_proof(known):
    assert [line.split() for line in told(known, "forget", "to forget")] == [
        ["forgotten", "blocks", "zeroed"],
        ["cpu", "6", "384", "KiB"],
        ["nvme", "0", "0", "B"],
        ["sessions", "1"],
    ]
    again = run("kvtier", "forget", "to forget", "--socket", known.socket)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "kvtier: no session 'to forget' is known; `kvtier sessions` lists those that are known\n"


def test_a_tenant_is_forgotten_and_what_others_share_is_kept(tmp_path):
    with KVTierd(tmp_path) as daemon, Engine(daemon.socket, lend=16) as engine:
        turn(engine, "other's", some_keys(2))
        turn(engine, "one's", some_keys(3), TENANT)
        eventually(lambda: len(sessions_of(daemon)) == 2)
        (line,) = told(daemon, "forget", "--tenant", TENANT_SHOWN, "--json")
    proof = json.loads(line)
    assert proof == {
        "sessions": 1,
        "blocks": {"cpu": 1, "nvme": 0},
        "bytes_zeroed": {"cpu": SLOT, "nvme": 0},
        "shared_blocks_kept": 2,
        "keys_shredded": 0,
    }


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["warm", "nobody"], 1, "kvtier: no session 'nobody' is known; `kvtier sessions` lists those that are known"),
        (["end", EVIL], 1, "kvtier: no session '\\u2028not a line' is known"),
        (["forget"], 2, "kvtier: name a session, or a tenant with --tenant"),
        (["forget", "--tenant", "me"], 1, "kvtier: tenant: 12 hex digits, as `kvtier sessions` lists it"),
        (["pin", "x", "--for", "-1"], 1, "kvtier: seconds: -1 is not between"),
        (["pin"], 2, "usage: kvtier pin"),
        (["pin", "x", "--for", "1", "--off"], 2, "usage: kvtier pin"),
        (["sessions", "--sort", "size"], 2, "usage: kvtier sessions"),
        (["sessions", "--limit", "0"], 2, "usage: kvtier sessions"),
    ],
)
def test_what_cannot_be_done_is_said_and_how_it_can(known, words, status, complaint):
    ended, out, err = kvtier(*words, "--socket", known.socket)
    assert (ended, out) == (status, "")
    assert err.startswith(complaint)


@pytest.mark.parametrize("words", [["sessions"], ["forget", "x"], ["top"]])
def test_without_a_daemon_it_ends_with_1_and_says_what_to_do(tmp_path, words):
    ended, out, err = kvtier(*words, "--socket", tmp_path / "nobody.sock")
    assert (ended, out) == (1, "")
    assert "No such file or directory; start kvtierd, or name its socket with --socket" in err


# --- top -----------------------------------------------------------------------------------------------------


@pytest.fixture
def top(known: KVTierd) -> Iterator[Terminal]:
    terminal = Terminal("kvtier", "top", "--socket", known.socket, size=(24, 80))
    terminal.read_until("by idle")
    yield terminal
    terminal.close()


def test_without_a_terminal_top_prints_once(known):
    lines = told(known, "top")
    assert lines[0].startswith("kvtierd ")
    assert [line for line in lines if line.startswith("to list ")]
    assert not any("\x1b" in line for line in lines)


def test_top_sorts_by_key_and_q_quits_and_leaves_the_terminal_as_it_was(top):
    assert "\x1b[?1049h" in top.shown  # the other screen, so that the scrollback stays
    assert "to list" in top.shown
    before = top.modes()
    assert not before & termios.ICANON
    top.press(b"s")
    top.read_until("by tokens")
    top.press(b"r")
    top.read_until("by tokens, reversed")
    top.press(b"q")
    assert top.status() == 0
    assert "\x1b[?1049l" in top.shown and "Traceback" not in top.shown


@pytest.mark.parametrize(("ends", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_top_and_the_terminal_is_as_it_was(top, ends, status):
    assert not top.modes() & termios.ICANON
    os.kill(top.pid, ends)
    top.read_until("\x1b[?1049l")
    eventually(lambda: top.modes() & termios.ICANON)
    assert top.status() == status
    assert "Traceback" not in top.shown


def test_top_shows_that_the_daemon_went_away_and_came_back(tmp_path):
    with KVTierd(tmp_path) as daemon:
        eventually(default_admin_socket(daemon.socket).exists)
        terminal = Terminal("kvtier", "top", "--socket", daemon.socket, size=(24, 80))
        terminal.read_until("by idle")
        daemon.kill()
        terminal.read_until("as it was before: no kvtierd on")
        terminal.shown = ""
        daemon.start()
        terminal.read_until("kvtierd 0.")
        terminal.press(b"q")
        assert terminal.status() == 0
        terminal.close()
