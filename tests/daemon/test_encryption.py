"""Encryption at rest, with a real kvtierd: what leaves RAM can be read by those alone who have the key file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from admin_caller import caller_of
from arena_bytes import content_of
from chat import BLOCK, Chat, nvme_settings, turn
from kvtierd import KVTierd, eventually, root_file, some_keys
from remote.servers import Redis
from terminal import run, run_here

from kvtier.block import KEY_BYTES, unpack_keys

TENANT = b"a salt" + bytes(10)


def key_file(folder: Path, name: str = "key") -> Path:
    file = folder / name
    assert run_here("kvtier", "secret", file).returncode == 0
    return file


def settings(tmp_path: Path, **more: object) -> dict[str, object]:
    return nvme_settings(tmp_path) | {"encryption.key_file": key_file(tmp_path)} | more


@pytest.fixture
def kvtierd(tmp_path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path, settings(tmp_path)) as daemon:
        yield daemon


def flush(daemon: KVTierd) -> None:
    ended = run_here("kvtier", "flush", "--socket", daemon.socket)
    assert ended.returncode == 0, ended.stderr


def stands_in(folder: Path, packed: bytes) -> bool:
    """Whether anything of these blocks can be read there."""
    on_disk = b"".join(file.read_bytes() for file in folder.iterdir() if file.is_file())
    return any(content_of(key, BLOCK)[:32] in on_disk for key in unpack_keys(packed))


def test_blocks_survive_a_restart_and_no_byte_of_them_stands_on_the_drive(kvtierd, tmp_path):
    keys = some_keys(20)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        flush(kvtierd)
    assert not stands_in(tmp_path / "nvme", keys)
    kvtierd.restart()
    assert kvtierd.snapshot()["tiers"]["nvme"]["encrypted"] is True
    with Chat(kvtierd) as chat:
        assert chat.load(keys[: 12 * KEY_BYTES]) == 12
    assert kvtierd.snapshot()["tiers"]["nvme"]["corrupt_blocks"] == 0


def test_a_tenant_that_is_forgotten_has_no_key_any_more_and_the_proof_says_so(kvtierd):
    with Chat(kvtierd) as chat:
        turn(chat, "theirs", some_keys(3, "theirs"), TENANT)
        turn(chat, "ours", some_keys(4, "ours"))
        flush(kvtierd)
        eventually(lambda: kvtierd.snapshot()["tiers"]["nvme"]["tenant_keys"] == 2)
        with caller_of(kvtierd) as admin:
            assert admin.forget("ours")["keys_shredded"] == 0, "a session has no key of its own"
        said = run_here("kvtier", "forget", "--tenant", TENANT.hex()[:12], "--socket", kvtierd.socket)
    assert said.returncode == 0, said.stderr
    assert "data keys shredded: 1" in said.stdout
    nvme = kvtierd.snapshot()["tiers"]["nvme"]
    assert (nvme["shredded_keys"], nvme["tenant_keys"], nvme["blocks"]) == (1, 0, 0)


@pytest.mark.parametrize("with_another", [True, False], ids=["another key", "no key"])
def test_without_its_key_a_tier_is_not_opened_and_nothing_is_lost(tmp_path, with_another):
    mine, keys = settings(tmp_path), some_keys(5)
    with KVTierd(tmp_path, mine) as daemon, Chat(daemon) as chat:
        chat.save(keys)
        flush(daemon)
        assert daemon.terminate() == 0
    wrong = mine | {"encryption.key_file": key_file(tmp_path, "other") if with_another else ""}
    ended = run("kvtierd", *(f"--set={name}={value}" for name, value in wrong.items()))
    assert ended.returncode != 0 and "encryption.key_file" in ended.stderr
    with KVTierd(tmp_path, mine) as daemon, Chat(daemon) as chat:
        assert chat.load(keys) == 5


def test_verify_needs_the_key_file_and_finds_what_is_damaged(tmp_path):
    mine, keys = settings(tmp_path) | {"nvme.codec": "none"}, some_keys(5)  # so that one lies at byte 0
    with KVTierd(tmp_path, mine) as daemon, Chat(daemon) as chat:
        chat.save(keys)
        flush(daemon)
        assert daemon.terminate() == 0
    folder, key = tmp_path / "nvme", mine["encryption.key_file"]
    without = run_here("kvtier", "verify", folder)
    assert without.returncode == 1 and "--key-file" in without.stderr
    sound = run_here("kvtier", "verify", folder, "--key-file", key, "--json")
    assert sound.returncode == 0, sound.stderr
    assert json.loads(sound.stdout) == {
        "blocks": 5, "bytes": 5 * BLOCK, "frames": 0, "corrupt": 0, "unreadable": 0, "bad_records": 0, "notes": [],
    }  # fmt: skip
    with (folder / "blocks").open("r+b") as payload:
        payload.write(bytes(16))
    damaged = run_here("kvtier", "verify", folder, "--key-file", key, "--json")
    assert damaged.returncode == 1 and json.loads(damaged.stdout)["corrupt"] == 1


def test_verify_deletes_nothing_of_a_tier_that_is_in_the_clear(tmp_path):
    with KVTierd(tmp_path, nvme_settings(tmp_path)) as daemon, Chat(daemon) as chat:
        chat.save(some_keys(3))
        flush(daemon)
        assert daemon.terminate() == 0
    ended = run_here("kvtier", "verify", tmp_path / "nvme", "--key-file", key_file(tmp_path))
    assert ended.returncode == 1 and "is not encrypted" in ended.stderr
    assert "3 blocks" in run_here("kvtier", "verify", tmp_path / "nvme").stdout


def test_a_key_file_that_others_may_read_ends_the_start(tmp_path):
    mine = settings(tmp_path)
    Path(str(mine["encryption.key_file"])).chmod(0o644)
    ended = run("kvtierd", *(f"--set={name}={value}" for name, value in mine.items()))
    assert ended.returncode == 2 and "others may read" in ended.stderr


def test_what_is_in_a_remote_is_legible_to_nodes_with_the_same_key_alone(tmp_path, remote):
    keys, key = some_keys(4), key_file(tmp_path)
    far = {"cpu.capacity": "64 MiB", "cost.holdout": 0, "cost.mode": "always", "remote.url": remote.url,
           "remote.secret_file": root_file(tmp_path), "encryption.key_file": key}  # fmt: skip
    with KVTierd(tmp_path, far) as daemon, Chat(daemon) as chat:
        for _ in range(2):
            turn(chat, "chat", keys)
        eventually(lambda: remote.say("DBSIZE") == "4")
        assert daemon.snapshot()["tiers"]["remote"]["encrypted"] is True
    there = dumped(remote)
    assert len(there) > 4 * BLOCK and not any(content_of(one, BLOCK)[:32] in there for one in unpack_keys(keys))
    for folder, its_key, found in (("same", key, 4), ("other", key_file(tmp_path, "another"), 0), ("none", "", 0)):
        (tmp_path / folder).mkdir()
        with KVTierd(tmp_path / folder, far | {"encryption.key_file": its_key}) as daemon, Chat(daemon) as chat:
            assert chat.load(keys) == found, folder
    assert remote.say("DBSIZE") == "4", "what can't be read is nobody's to delete"


def dumped(remote: Redis) -> bytes:
    """All that the server has, as it writes it to a file of its own."""
    assert remote.say("CONFIG", "SET", "rdbcompression", "no") == "OK"
    assert remote.say("SAVE") == "OK"
    return (remote.folder / "dump.rdb").read_bytes()
