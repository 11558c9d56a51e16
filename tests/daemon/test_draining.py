"""kvtier drain, with a real kvtierd: what it was good for survives, and the exit code says whether all of it does."""

import json

from admin_caller import caller_of, listed
from chat import BLOCK, Chat, nvme_settings, turn
from kvtierd import PATIENCE_S, KVTierd, eventually, root_file, some_keys
from remote.servers import Redis
from terminal import run_here

from kvtier import observer

FAR = {"cpu.capacity": "64 MiB", "cost.holdout": 0}


def drained(daemon: KVTierd, status: int = 0) -> tuple[dict, str]:
    """What it says as JSON, and what it complains of."""
    ended = run_here("kvtier", "drain", "--json", "--socket", daemon.socket)
    assert ended.returncode == status, ended.stderr
    return json.loads(ended.stdout), ended.stderr


def settings(tmp_path, remote: Redis) -> dict[str, object]:
    return {**FAR, "remote.url": remote.url, "remote.secret_file": root_file(tmp_path)}


def test_what_was_drained_is_on_the_drive_when_kvtierd_is_killed(tmp_path):
    with KVTierd(tmp_path, {**nvme_settings(tmp_path), "cost.holdout": 0}) as daemon:
        with Chat(daemon) as chat:
            turn(chat, "chat", some_keys(6))
            said, _ = drained(daemon)
            assert (said["safe"], said["over"]) == (True, True)
            assert said["blocks_left"] == said["bytes_left"] == {"nvme": 0}
            assert said["blocks_written"]["nvme"] <= 6  # some of them were already
            assert said["bytes_written"]["nvme"] == said["blocks_written"]["nvme"] * BLOCK
        daemon.restart()
        with Chat(daemon) as chat:
            assert chat.load(some_keys(6)) == 6


def test_what_was_drained_is_in_the_remote_for_the_other_node(tmp_path, remote):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    mine = settings(tmp_path, remote)
    with KVTierd(tmp_path / "one", mine) as one, Chat(one) as chat:
        turn(chat, "chat", some_keys(6))
        said, _ = drained(one)
        assert said["safe"] and said["blocks_written"] == {"remote": 6}
        assert drained(one)[0]["blocks_written"] == {"remote": 0}  # it is there already
    with KVTierd(tmp_path / "other", {**mine, "cost.mode": "always"}) as other, Chat(other) as chat:
        assert eventually(lambda: chat.load(some_keys(6))) == 6  # its first question may be answered late
        assert other.counter("remote_promoted_blocks") == 6


def test_what_only_the_drive_has_goes_to_the_remote_too(tmp_path, remote):
    (tmp_path / "other").mkdir()
    mine = settings(tmp_path, remote)
    with KVTierd(tmp_path, mine | nvme_settings(tmp_path)) as daemon, Chat(daemon) as chat, caller_of(daemon) as admin:
        turn(chat, "chat", some_keys(6))
        assert observer.flush(daemon.socket, PATIENCE_S)
        turn(chat, "others", some_keys(30, "other"))  # more than there is room for
        eventually(lambda: listed(admin, "chat")["blocks"]["cpu"] < 6)
        said, _ = drained(daemon)
    assert said["safe"] and said["blocks_left"] == {"nvme": 0, "remote": 0}
    with KVTierd(tmp_path / "other", {**mine, "cost.mode": "always"}) as other, Chat(other) as chat:
        assert eventually(lambda: chat.load(some_keys(6))) == 6  # its first question may be answered late


def test_what_is_not_to_be_written_is_told_by_its_reason(tmp_path):
    with KVTierd(tmp_path, {**nvme_settings(tmp_path), "cost.holdout": 0}) as daemon, Chat(daemon) as chat:
        turn(chat, "chat", some_keys(2))
        turn(chat, "secret", some_keys(3, "secret"), no_disk=1)
        said, _ = drained(daemon)
    assert said["safe"] and said["blocks_refused"] == {"no_disk": 3}


def test_with_nothing_below_ram_nothing_is_safe(tmp_path):
    with KVTierd(tmp_path) as daemon, Chat(daemon) as chat:
        turn(chat, "chat", some_keys(2))
        said, complaint = drained(daemon, status=1)
    assert not said["safe"]
    assert complaint.startswith(
        "kvtier: nothing is below RAM, what is there ends with kvtierd: set nvme.paths or remote.url"
    )


def test_a_remote_that_is_away_is_said_and_nothing_hangs(tmp_path, remote):
    with KVTierd(tmp_path, settings(tmp_path, remote)) as daemon, Chat(daemon) as chat:
        turn(chat, "chat", some_keys(3))
        remote.kill()
        said, complaint = drained(daemon, status=1)
    assert said["blocks_left"] == {"remote": 3}
    assert complaint.startswith("kvtier: not written yet: 3 blocks to remote")
