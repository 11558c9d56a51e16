"""A conversation moves from one kvtierd to another: `kvtier export` and `kvtier import`, as installed, and what may go
wrong on the way."""

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from admin_caller import caller_of, listed
from arena_bytes import content_of
from chat import BLOCK, Chat, nvme_settings, turn
from kvtierd import KVTierd, eventually, root_file, some_keys
from terminal import COMMANDS, run_here

from kvtier import observer, protocol
from kvtier.block import KEY_BYTES, Kind, unpack_keys
from kvtier.moving import Carried
from kvtier.parcel import Head, Namespace, pack_head, witness_of
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.envelope import HEADER_BYTES

SMALL = "32 MiB"
BLOCKS = 6
KEYS = some_keys(BLOCKS, "chat")
TENANT = bytes(range(16))
ROOT, OTHER_ROOT = "ab" * 32, "cd" * 32


@contextmanager
def node(folder: Path, name: str, root: str = ROOT, **more: object) -> Iterator[KVTierd]:
    """One of several kvtierds, in a folder of its own."""
    mine = folder / name
    mine.mkdir()
    settings = {"remote.secret_file": root_file(mine, root), "cost.holdout": 0, **more}
    with KVTierd(mine, settings) as daemon:
        caller_of(daemon).__exit__()
        yield daemon


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """Where the session `chat` is, of three turns; tests leave it as it is."""
    with node(tmp_path_factory.mktemp("home"), "home") as daemon, Chat(daemon) as chat:
        for blocks in (2, 4, BLOCKS):
            turn(chat, "chat", KEYS[: KEY_BYTES * blocks], TENANT)
        eventually(lambda: row(daemon)["turns"] == 3 and row(daemon)["state"] == "idle")
        yield daemon


@pytest.fixture(scope="module")
def file(home: KVTierd) -> bytes:
    """What is exported of it."""
    path = home.socket.with_name("exported")
    kvtier("export", "chat", path, daemon=home)
    return path.read_bytes()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[KVTierd]:
    """A node that knows nothing yet."""
    with node(tmp_path, "other") as daemon:
        yield daemon


def row(daemon: KVTierd, session: str = "chat") -> dict:
    with caller_of(daemon) as admin:
        return listed(admin, session)


def sessions(daemon: KVTierd) -> list[str]:
    with caller_of(daemon) as admin:
        return [row["session"] for row in admin.sessions()[0]]


def kvtier(*words: object, daemon: KVTierd, status: int = 0) -> subprocess.CompletedProcess:
    ended = run_here("kvtier", *words, "--socket", daemon.socket)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def taken(daemon: KVTierd, content: bytes, status: int = 0) -> str:
    """What `kvtier import` says of such a file."""
    path = daemon.socket.with_name("to import")
    path.write_bytes(content)
    ended = kvtier("import", path, daemon=daemon, status=status)
    return ended.stdout if not status else ended.stderr


# --- it arrives ----------------------------------------------------------------------------------------------


def test_a_session_goes_through_a_pipe_and_its_next_request_is_served(home, other):
    sent, took = (
        [str(COMMANDS / "kvtier"), *words, "--socket", str(daemon.socket)]
        for words, daemon in ((["export", "chat", "-"], home), (["import", "-", "--json"], other))
    )
    exporting = subprocess.Popen(sent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    importing = subprocess.run(took, stdin=exporting.stdout, capture_output=True, text=True)
    assert (exporting.wait(), importing.returncode) == (0, 0), importing.stderr
    assert exporting.stderr.read() == "session chat: 6 blocks, 6 MiB, into a pipe\n"
    assert json.loads(importing.stdout) == {
        "sessions": ["chat"], "blocks": 6, "blocks_new": 6, "bytes_new": 6 * BLOCK, "blocks_known": 0,
        "blocks_without_room": 0,
    }  # fmt: skip
    here, there = row(home), row(other)
    for same in ("session", "tenant", "model", "state", "turns", "tokens", "bytes", "blocks"):
        assert there[same] == here[same], same
    with Chat(other) as chat:
        turn(chat, "chat", some_keys(BLOCKS + 1, "chat"), TENANT)  # goes on where it was
        assert eventually(lambda: row(other)["turns"] == 4)
        assert row(other)["blocks"]["cpu"] == BLOCKS + 1
        assert other.counter("saved_blocks") == BLOCKS + 1  # six by the file, one by the engine
        assert chat.load(KEYS) == BLOCKS
    assert sessions(other) == ["chat"]


def test_a_file_is_for_its_owner_alone_and_says_what_is_in_it(home, tmp_path):
    path = tmp_path / "chat.kvtier"
    said = json.loads(kvtier("export", "chat", path, "--json", daemon=home).stdout)
    assert said == {
        "session": "chat", "file": str(path), "sessions": 1, "blocks": 6, "bytes": 6 * BLOCK, "blocks_missing": 0
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["chat.kvtier"]
    assert content_of(unpack_keys(KEYS)[0], BLOCK) in path.read_bytes()


def test_what_is_known_already_is_said_and_is_no_second_session(other, file):
    assert taken(other, file) == "session chat: 6 blocks are new, 6 MiB\n"
    assert taken(other, file) == "session chat: 0 blocks are new, 0 B, 6 were known\n"
    assert sessions(other) == ["chat"]
    assert row(other)["turns"] == 3


def test_a_session_that_went_on_here_meanwhile_stays_as_it_is(other, file):
    taken(other, file)
    with Chat(other) as chat:
        turn(chat, "chat", some_keys(9, "chat"), TENANT)
        eventually(lambda: row(other)["turns"] == 4 and row(other)["state"] == "idle")
    taken(other, file)
    assert row(other)["turns"] == 4
    assert row(other)["blocks"] | {"nvme": 0} == {"cpu": 9, "nvme": 0, "gone": 0}


def test_what_only_the_drives_have_goes_along(tmp_path, other):
    with node(tmp_path, "home", **nvme_settings(tmp_path)) as home, Chat(home) as chat:
        turn(chat, "chat", KEYS)
        assert observer.flush(home.socket, 30)
        turn(chat, "others", some_keys(30, "other"))
        eventually(lambda: row(home)["blocks"]["cpu"] < BLOCKS)
        assert taken(other, exported(home)) == "session chat: 6 blocks are new, 6 MiB\n"
    with Chat(other) as chat:
        assert chat.load(KEYS) == BLOCKS


def test_a_session_that_nobody_named_gets_a_name_there(tmp_path, other):
    with node(tmp_path, "home") as home, Chat(home) as chat:
        turn(chat, "", KEYS)
        (name,) = eventually(lambda: sessions(home))
        said = taken(other, exported(home, name))
    (there,) = sessions(other)
    assert said == f"session {there}: 6 blocks are new, 6 MiB\n"
    assert there.startswith("~")


def test_all_that_clients_take_for_one_session_goes_along(tmp_path, other):
    with node(tmp_path, "home") as home, Chat(home) as chat:
        turn(chat, "chat", KEYS)
        turn(chat, "chat", some_keys(2, "a title for it"))
        eventually(lambda: sessions(home) == ["chat", "chat"])
        assert taken(other, exported(home)) == "session chat, chat: 8 blocks are new, 8 MiB\n"
    assert sessions(other) == ["chat", "chat"]


def exported(daemon: KVTierd, name: str = "chat") -> bytes:
    path = daemon.socket.with_name("exported")
    kvtier("export", name, path, daemon=daemon)
    return path.read_bytes()


# --- a file that isn't good ----------------------------------------------------------------------------------


def at(block: int) -> int:
    """Somewhere in the bytes of that block, the first is 1; counted from the end of the file."""
    return -(BLOCK + HEADER_BYTES) * (BLOCKS - block) - 1000


@pytest.mark.parametrize(("end", "whole"), [(10, 0), (100, 0), (at(1), 0), (at(3), 2), (at(6), 5), (-28, 6), (-1, 6)])
def test_a_file_that_was_cut_leaves_no_session_and_the_whole_one_is_taken_afterwards(other, file, end, whole):
    said = taken(other, file[:end], status=1)
    blocks = BLOCKS if whole or end < 0 else 0  # the head wasn't read
    assert f"the file is damaged: it ends too early, after {whole} of {blocks} blocks; export it again" in said
    assert sessions(other) == []
    assert other.cpu()["blocks"] == whole
    eventually(lambda: other.cpu()["used_bytes"] == whole * BLOCK)
    assert taken(other, file).startswith(f"session chat: {BLOCKS - whole} blocks are new, ")
    assert sessions(other) == ["chat"]


def test_an_empty_file_is_said_to_be_one(other):
    assert taken(other, b"", status=1) == "kvtier: there is nothing in the file; look at what `kvtier export` said\n"


def test_another_file_is_said_to_be_none_of_ours(other):
    assert taken(other, os.urandom(100_000), status=1) == "kvtier: this is no file of `kvtier export`\n"


@pytest.mark.parametrize(
    ("flipped", "complaint", "stays"),
    [
        (100, "its head is not what was written", 0),
        (at(1), "block 1 is not what was written", 0),
        (at(4), "block 4 is not what was written", 3),
        (-10, "its end is not what was written", BLOCKS),
    ],
)
def test_one_flipped_bit_is_seen_and_nothing_behind_it_is_taken(other, file, flipped, complaint, stays):
    damaged = bytearray(file)
    damaged[flipped] ^= 1
    assert complaint in taken(other, bytes(damaged), status=1)
    assert sessions(other) == []
    assert other.cpu()["blocks"] == stays
    eventually(lambda: other.cpu()["used_bytes"] == stays * BLOCK)
    assert "traceback" not in other.said().lower()
    assert taken(other, file).startswith(f"session chat: {BLOCKS - stays} blocks are new")


def test_a_frame_is_no_block_of_a_parcel(other, file):
    first = len(file) - 28 - BLOCKS * (BLOCK + HEADER_BYTES)
    header = envelope.unpack(file[first : first + HEADER_BYTES])
    frame = envelope.pack(header._replace(stored=BLOCK - 1, codec=b"\x01\x01\0\0"))
    said = taken(other, file[:first] + frame + file[first + HEADER_BYTES :], status=1)
    assert "block 1: a block comes here as it is in RAM, not in a frame" in said
    assert (other.cpu()["blocks"], sessions(other)) == (0, [])


def test_a_block_that_is_left_out_is_missed(other, file):
    block = BLOCK + HEADER_BYTES
    without = file[: -28 - block] + file[-28:]
    assert "its end tells of 6 blocks" in taken(other, without, status=1)
    assert sessions(other) == []


def test_what_stands_behind_the_end_is_no_part_of_it(other, file):
    assert "something stands behind its end" in taken(other, file + b"\0", status=1)


def test_a_node_with_another_root_takes_nothing_and_says_why(tmp_path, file):
    with node(tmp_path, "stranger", OTHER_ROOT) as stranger:
        said = taken(stranger, file, status=1)
        assert "another root secret" in said and "remote.secret_file" in said and "`kvtier secret`" in said
        assert (stranger.cpu()["blocks"], sessions(stranger)) == (0, [])


# --- room ----------------------------------------------------------------------------------------------------


def test_what_finds_no_room_is_said_and_the_rest_is_of_use(tmp_path):
    many = some_keys(60, "chat")
    with node(tmp_path, "home", **{"cpu.capacity": "128 MiB"}) as home, Chat(home) as chat:
        turn(chat, "chat", many)
        content = exported(home)
    with node(tmp_path, "small", **{"cpu.capacity": SMALL}) as small:
        path = small.socket.with_name("to import")
        path.write_bytes(content)
        said = json.loads(kvtier("import", path, "--json", daemon=small, status=1).stdout)
        assert said["blocks"] == 60 == said["blocks_new"] + said["blocks_without_room"]
        assert 20 <= said["blocks_new"] == row(small)["blocks"]["cpu"] <= 32
        assert row(small)["blocks"]["gone"] == said["blocks_without_room"]
        assert "found no room: raise cpu.capacity" in kvtier("import", path, daemon=small, status=1).stdout
        with Chat(small) as chat:
            assert chat.load(many[: 10 * KEY_BYTES]) == 10


def test_blocks_larger_than_this_node_can_hold_are_refused_with_the_reason(other):
    kind = Kind(2**40, 16, True)
    carried = Carried("chat", b"", 0, KEYS, BLOCKS, 1, "", 0.0, 0.0, 0.0)
    head = Head(witness_of(bytes.fromhex(ROOT)), (Namespace(bytes(32), kind),), (carried,), BLOCKS, BLOCKS * 2**40)
    said = taken(other, b"".join(pack_head(head)), status=1)
    assert said.startswith("kvtier: its blocks can't be kept here: ") and "raise cpu.capacity" in said


# --- what doesn't leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hint", "where"), [("no_disk", "disk"), ("no_remote", "other machine")])
def test_what_its_client_wants_to_stay_here_stays_here(tmp_path, other, hint, where):
    path = tmp_path / "file"
    with Chat(other) as chat:
        turn(chat, "secret", KEYS, b"", **{hint: 1})
        eventually(lambda: row(other, "secret")["state"] == "idle")
        said = kvtier("export", "secret", path, daemon=other, status=1).stderr
    assert said == f"kvtier: its client wants it on no {where} (max_tier): it stays here\n"
    assert not path.exists()


def test_a_name_of_several_tenants_is_asked_for_with_its_tenant(tmp_path, other):
    with Chat(other) as chat:
        turn(chat, "chat", KEYS, TENANT)
        turn(chat, "chat", some_keys(2, "other"), TENANT[::-1])
        eventually(lambda: len(sessions(other)) == 2)
        path = tmp_path / "file"
        said = kvtier("export", "chat", path, daemon=other, status=1).stderr
        assert "several tenants have a session of this name (000102030405, 0f0e0d0c0b0a): name one with --tenant" in said
        assert not path.exists()
        said = kvtier("export", "chat", path, "--tenant", "0f0e0d0c0b0a", daemon=other).stdout
        assert said == f"session chat: 2 blocks, 2 MiB, into {path}\n"


def test_a_namespace_that_was_reset_here_has_nothing_for_others_and_takes_nothing(other, file, tmp_path):
    with Chat(other) as chat:
        chat.engine.say(protocol.Reset())
        turn(chat, "chat", KEYS)
        eventually(lambda: sessions(other) == ["chat"])
        said = kvtier("export", "chat", tmp_path / "file", daemon=other, status=1).stderr
        assert "its engine's weights were changed while it ran" in said
        assert "changed its weights while it ran here" in taken(other, file, status=1)


# --- commands ------------------------------------------------------------------------------------------------


def test_who_exports_what_nobody_knows_hears_it_and_leaves_no_file(home, tmp_path):
    said = kvtier("export", "nobody", tmp_path / "file", daemon=home, status=1).stderr
    assert said == "kvtier: no session 'nobody' is known; `kvtier sessions` lists those that are known\n"
    assert list(tmp_path.iterdir()) == []


def test_a_former_file_is_replaced_when_the_new_one_is_whole(home, tmp_path, file):
    path = tmp_path / "file"
    path.write_text("former")
    kvtier("export", "nobody", path, daemon=home, status=1)
    assert path.read_text() == "former"
    kvtier("export", "chat", path, daemon=home)
    assert len(path.read_bytes()) == len(file)


def test_a_device_is_written_to_and_stays_one(home):
    kvtier("export", "chat", os.devnull, daemon=home)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_who_takes_the_pipe_and_goes_is_said_to_have_gone(home):
    words = [str(COMMANDS / "kvtier"), "export", "chat", "-", "--socket", str(home.socket)]
    exporting = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    exporting.stdout.close()
    assert exporting.wait(30) == 1
    assert exporting.stderr.read() == "kvtier: whoever was to take it has gone: look at what stands behind the pipe\n"


@pytest.mark.parametrize("who", ["the daemon is killed", "the command is ended"])
def test_an_export_that_is_cut_short_leaves_no_file(tmp_path, who):
    with node(tmp_path, "home") as home, Chat(home) as chat:
        turn(chat, "chat", KEYS)
        eventually(lambda: row(home)["state"] == "idle")
        home.stop_()  # it takes the call, and says nothing
        words = [str(COMMANDS / "kvtier"), "export", "chat", str(tmp_path / "file"), "--socket", str(home.socket)]
        exporting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        if who == "the daemon is killed":
            home.kill()
            said = exporting.communicate(timeout=30)[1]
            assert exporting.returncode == 1
            assert said.startswith("kvtier: ") and ("went away" in said or "no kvtierd on" in said)
        else:
            time.sleep(0.5)
            exporting.terminate()
            assert exporting.wait(30) in (143, -signal.SIGTERM)
    assert [each.name for each in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("verb", ["export", "import"])
def test_without_a_daemon_it_ends_with_1_and_says_what_to_do(tmp_path, verb):
    path = tmp_path / "file"
    path.write_bytes(b"")
    words = ["chat", path] if verb == "export" else [path]
    ended = run_here("kvtier", verb, *words, "--socket", tmp_path / "nobody.sock")
    assert ended.returncode == 1
    assert "start kvtierd, or name its socket with --socket" in ended.stderr
