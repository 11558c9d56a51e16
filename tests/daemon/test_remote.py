"""The remote tier through the socket, with a real server and real bytes: what one node saved another finds, or nobody."""

import time
from pathlib import Path

import pytest
from chat import Chat, nvme_settings
from kvtierd import KVTierd, eventually
from remote.servers import Absent, Redis, redis_or_valkey
from terminal import run

from kvtier import observer
from kvtier.block import ABSENT, block_key, pack_keys
from kvtier.secret_file import write_root

BLOCKS = 12
DRAIN_S = 25  # of a node; what takes less did not wait for all of it
PASSWORD = "a p@ss/word"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    write_root(tmp_path / "secret")
    return tmp_path / "secret"


def node(folder: Path, url: str, secret: Path, **more: object) -> KVTierd:
    """A kvtierd with a state of its own. `more` are settings."""
    folder.mkdir(exist_ok=True)
    mine = {"cpu.capacity": "32 MiB", "remote.url": url, "remote.secret_file": secret, "nvme.drain_s": DRAIN_S}
    return KVTierd(folder, mine | more)


def keys_of(chat: Chat, name: str = "key", n: int = BLOCKS) -> bytes:
    """As an engine makes them of what it was told."""
    return pack_keys(block_key(chat.engine.welcome.secret, f"{name} {i}".encode()) for i in range(n))


def share(chat: Chat, name: str = "key") -> bytes:
    """Saved, and used again, so that they are worth a write; and written."""
    keys = keys_of(chat, name)
    before = chat.daemon.counter("remote_demoted_blocks")
    chat.save(keys)
    assert chat.load(keys) == BLOCKS
    eventually(lambda: chat.daemon.counter("remote_demoted_blocks") >= before + BLOCKS)
    return keys


def finds(chat: Chat, keys: bytes) -> bool:
    """All of them, now: the first who asks may go on without the answer."""
    return chat.load(keys) == BLOCKS


def asked(chat: Chat, keys: bytes) -> int:
    """How many were found when the remote had answered."""
    found = chat.load(keys)
    eventually(lambda: chat.daemon.counter("remote_asked_keys") and not state_of(chat.daemon)["asked"])
    return found + chat.load(keys)


def state_of(daemon: KVTierd) -> dict:
    return daemon.snapshot()["tiers"]["remote"]


# --- two nodes ---------------------------------------------------------------------------------------------------


def test_what_one_node_saved_another_finds(tmp_path, remote, secret):
    with node(tmp_path / "a", remote.url, secret) as here, node(tmp_path / "b", remote.url, secret) as there:
        with Chat(here) as chat, Chat(there) as other:
            keys = share(chat)
            assert keys_of(other) == keys
            eventually(lambda: finds(other, keys))
        assert there.counter("remote_promoted_blocks") == BLOCKS
        assert here.counter("remote_promoted_blocks") == 0
        seen = state_of(there)
    assert (seen["url"], seen["breaker"], seen["read_only"]) == (remote.url, "closed", False)
    assert seen["known_there"] == BLOCKS and seen["read_bytes"] == BLOCKS * 1024**2


def test_a_node_with_another_secret_finds_nothing(tmp_path, remote, secret):
    write_root(tmp_path / "another")
    with (
        node(tmp_path / "a", remote.url, secret) as here,
        node(tmp_path / "b", remote.url, tmp_path / "another") as there,
        Chat(here) as chat,
        Chat(there) as other,
    ):
        keys = share(chat)
        assert keys_of(other) != keys
        assert asked(other, keys_of(other)) == 0


def test_an_engine_of_another_model_finds_nothing_even_by_the_same_keys(tmp_path, remote, secret):
    with (
        node(tmp_path / "a", remote.url, secret) as here,
        node(tmp_path / "b", remote.url, secret) as there,
        Chat(here, "one") as chat,
        Chat(there, "two") as other,
    ):
        keys = share(chat)
        assert keys_of(other) != keys
        assert asked(other, keys_of(other)) == 0
        assert asked(other, keys) == 0, "a namespace is part of a name"


def test_a_node_that_lost_its_ram_finds_what_it_had_shared(tmp_path, remote, secret):
    with node(tmp_path / "a", remote.url, secret) as daemon:
        with Chat(daemon) as chat:
            keys = share(chat)
        daemon.restart()
        with Chat(daemon) as chat:
            eventually(lambda: finds(chat, keys))


# --- a remote that is not well -----------------------------------------------------------------------------------


def test_a_remote_that_is_not_there_at_the_start_is_said_and_used_when_it_comes(tmp_path, server, secret):
    with node(tmp_path / "a", server.url, secret) as daemon, Chat(daemon) as chat:
        keys = keys_of(chat)
        chat.save(keys)
        assert chat.load(keys) == BLOCKS
        eventually(lambda: (chat.load(keys_of(chat, "nobody's")), state_of(daemon)["breaker"] != "closed")[1])
        assert "left alone for " in run("kvtier", "stats", "-1", "--socket", daemon.socket).stdout
        server.start()
        eventually(lambda: state_of(daemon)["breaker"] == "closed")
        share(chat, "later")


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_what_is_local_is_served_as_ever_by_a_node_whose_remote_fails(tmp_path, remote, secret, fault):
    with node(tmp_path / "a", remote.url, secret) as daemon, Chat(daemon) as chat:
        keys = share(chat)
        getattr(remote, fault)()
        for n in range(50):
            assert chat.load(keys) == BLOCKS
            slots = chat.engine.lookup(keys_of(chat, f"nobody's {n}", 2))
            assert slots == [ABSENT] * 2
        eventually(lambda: state_of(daemon)["is_away"])
        assert chat.load(keys) == BLOCKS
        remote.thaw() if fault == "freeze" else remote.start()
        eventually(lambda: not state_of(daemon)["is_away"])
        share(chat, "later")


# --- the end -----------------------------------------------------------------------------------------------------


def test_at_sigterm_what_is_worth_it_is_written_to_the_remote(tmp_path, remote, secret):
    with node(tmp_path / "a", remote.url, secret) as here, node(tmp_path / "b", remote.url, secret) as there:
        with Chat(here) as chat:
            keys = keys_of(chat)
            chat.save(keys)
            assert chat.load(keys) == BLOCKS
            assert here.terminate() == 0
        assert "could not be written" not in here.said()
        with Chat(there) as other:
            eventually(lambda: finds(other, keys))


@pytest.mark.parametrize("drives", [False, True])
def test_sigterm_with_a_frozen_remote_ends_before_its_time_is_up(tmp_path, remote, secret, drives):
    """And what the drives take is written."""
    more = nvme_settings(tmp_path) if drives else {}
    with node(tmp_path / "a", remote.url, secret, **more) as daemon, Chat(daemon) as chat:
        share(chat)
        remote.freeze()
        keys = keys_of(chat, "never shared")
        chat.save(keys)
        assert chat.load(keys) == BLOCKS
        begun = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - begun < DRAIN_S
        assert "kvtierd ends" in daemon.said()
        assert "could not be written to the remote" in daemon.said()
        assert "to the drives; raise" not in daemon.said()
        daemon.start()
        with Chat(daemon) as later:
            assert later.load(keys) == (BLOCKS if drives else 0)


def test_a_full_remote_stops_writes_only_and_holds_up_no_end(tmp_path, server, secret):
    server._settings = ("--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
    server.start()
    with node(tmp_path / "a", server.url, secret) as daemon, Chat(daemon) as chat:
        keys = keys_of(chat)
        chat.save(keys)
        assert chat.load(keys) == BLOCKS
        eventually(lambda: state_of(daemon)["read_only"])
        seen = state_of(daemon)
        assert (seen["is_away"], seen["breaker"]) == (False, "closed")
        assert asked(chat, keys_of(chat, "nobody's")) == 0, "it is asked all the same"
        assert daemon.counter("remote_failed_demotions") > 0
        begun = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - begun < DRAIN_S
        assert "could not be written to the remote" in daemon.said()


# --- secrets -----------------------------------------------------------------------------------------------------


def refusal(daemon: KVTierd) -> str:
    """What it says before it ends with status 2."""
    ended = run(*daemon.command)
    assert (ended.returncode, ended.stdout) == (2, "")
    return ended.stderr


def test_a_remote_without_a_secret_is_refused_and_the_cure_works(tmp_path):
    daemon = KVTierd(tmp_path, {"remote.url": "redis://127.0.0.1:1"})
    assert "remote.url needs remote.secret_file" in refusal(daemon)
    file = tmp_path / "secret"
    daemon._settings["remote.secret_file"] = file
    assert f"`kvtier secret {file}` makes one" in refusal(daemon)
    made = run("kvtier", "secret", file)
    assert (made.returncode, made.stdout, file.stat().st_mode & 0o777) == (0, "", 0o600)
    with daemon:
        assert state_of(daemon)["known_there"] == 0
    again = run("kvtier", "secret", file)
    assert again.returncode == 2 and "is there already" in again.stderr
    file.chmod(0o644)
    assert f"others may read {file}: chmod 600 {file}" in refusal(daemon)


def test_a_secret_that_is_printed_is_another_one_each_time():
    printed = [run("kvtier", "secret").stdout.strip() for _ in range(2)]
    assert [len(bytes.fromhex(secret)) for secret in printed] == [32, 32] and printed[0] != printed[1]


def test_drives_that_are_of_another_secret_begin_empty_and_say_so_once(tmp_path, remote, secret):
    daemon = KVTierd(tmp_path, nvme_settings(tmp_path))
    with daemon:
        with Chat(daemon) as chat:
            of_old = keys_of(chat)
            chat.save(of_old)
            assert observer.flush(daemon.socket, 30)
        daemon.kill()
        daemon._settings |= {"remote.url": remote.url, "remote.secret_file": secret}
        for life in range(2):
            daemon.start()
            assert daemon.said().count("is of another root secret: 12 blocks there are forgotten") == 1
            with Chat(daemon) as chat:
                assert keys_of(chat) != of_old
                assert chat.load(of_old) == 0
                keys = keys_of(chat, "new")
                if not life:
                    assert daemon.snapshot()["tiers"]["nvme"]["blocks"] == 0
                    chat.save(keys)
                    assert observer.flush(daemon.socket, 30)
                assert chat.load(keys) == BLOCKS
            daemon.kill()


def test_a_password_is_used_and_shown_nowhere(tmp_path, secret):
    try:
        server = Redis(tmp_path / "server", redis_or_valkey(), password=PASSWORD)
    except Absent as reason:
        pytest.skip(str(reason))
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    file.chmod(0o600)
    url = server.url.partition("@")[2]
    with server, node(tmp_path / "a", f"redis://{url}", secret, **{"remote.password_file": file}) as daemon:
        with Chat(daemon) as chat:
            share(chat)
        command = Path(f"/proc/{daemon.pid}/cmdline").read_text()
        shown = [
            command,
            daemon.said(),
            str(daemon.snapshot()),
            run("kvtier", "stats", "-1", "--socket", daemon.socket).stdout,
        ]
        server.kill()
        server.password = "another"
        server.start()
        with Chat(daemon) as chat:
            eventually(lambda: (chat.load(keys_of(chat, "nobody's")), state_of(daemon)["breaker"] != "closed")[1])
        state = state_of(daemon)
        shown += [str(state), daemon.said()]
    assert not any(PASSWORD in text for text in shown)
    assert not any(bytes.fromhex(secret.read_text().strip()).hex() in text for text in shown)
    assert "WRONGPASS" in state["breaker_reason"] or "invalid" in state["breaker_reason"]


# --- what people see ---------------------------------------------------------------------------------------------


def test_stats_and_top_show_the_remote(tmp_path, remote, secret):
    with node(tmp_path / "a", remote.url, secret) as daemon:
        with Chat(daemon) as chat:
            share(chat)
        stats = run("kvtier", "stats", "-1", "--socket", daemon.socket).stdout
        top = run("kvtier", "top", "--socket", daemon.socket).stdout
    (line,) = [line for line in stats.splitlines() if line.startswith(remote.url)]
    assert line.split()[1:3] == ["good", "12"] and "12 MiB" in line
    assert f"remote: {remote.url}, " in top
    assert "remote_demoted_blocks" in stats
