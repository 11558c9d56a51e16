"""Codecs with a real kvtierd: what lies below RAM is smaller, and comes back as it was; or nearly so, where an engine asked
for that."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from arena_bytes import values_of
from chat import BLOCK, Chat, nvme_settings, turn
from kvtierd import KVTierd, Peer, eventually, root_file, scheduler_hello, some_keys
from remote.servers import LOOPBACK, free_ports
from service_manager import Service
from terminal import run, run_here

from kvtier import observer, protocol
from kvtier.block import KEY_BYTES, unpack_keys
from kvtier.codec import Codec
from kvtier.tiers.encoders import why_not

MIB = 1024**2
KEYS = some_keys(40)  # in RAM there is room for some 30
OLDEST = KEYS[: 8 * KEY_BYTES]  # that left it
HASTY = some_keys(40, "hasty")  # of another namespace, for keys are made with its secret
INT8 = "int8:bf16:64"

NEEDS_ZSTD = pytest.mark.skipif(bool(why_not(Codec("expz"))), reason="libzstd is not here")
LOSSLESS = ["exp12", pytest.param("expz", marks=NEEDS_ZSTD)]


def settings(folder: Path, **more: object) -> dict[str, object]:
    return {**nvme_settings(folder), "nvme.codec": "exp12", **{n.replace("_", ".", 1): v for n, v in more.items()}}


@pytest.fixture
def kvtierd(tmp_path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path, settings(tmp_path)) as daemon:
        yield daemon


def chat_of(daemon: KVTierd, model: str = "model", codec: str = "") -> Chat:
    """Its blocks are such as codecs make smaller."""
    return Chat(daemon, model, content=values_of, codec=codec)


def flush(daemon: KVTierd) -> None:
    assert observer.flush(daemon.socket, 30)


def state(daemon: KVTierd, tier: str = "nvme") -> dict:
    return daemon.snapshot()["tiers"][tier]


def saved(daemon: KVTierd, keys: bytes = KEYS, **chat: str) -> None:
    """By an engine that is gone then; and written."""
    with chat_of(daemon, **chat) as engine:
        engine.save(keys)
        flush(daemon)


def numbers(block: bytes) -> np.ndarray:
    return (np.frombuffer(block, np.uint16).astype(np.uint32) << 16).view(np.float32)


# --- without loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", LOSSLESS)
def test_blocks_that_left_ram_lie_there_smaller_and_come_back_as_they_were(tmp_path, codec):
    with KVTierd(tmp_path, settings(tmp_path, nvme_codec=codec)) as daemon, chat_of(daemon) as chat:
        chat.save(KEYS)
        flush(daemon)
        held, coding = state(daemon), state(daemon)["coding"]
        assert held["blocks"] == 40
        assert held["block_bytes"] == 40 * BLOCK
        assert held["used_bytes"] * 1.2 < held["block_bytes"]
        assert (coding["wanted"], coding["codec"]) == (codec, codec)
        assert coding["codecs"][codec]["ratio"] > 1.2
        before = daemon.counter("promoted_blocks")
        assert chat.load(OLDEST) == 8
        assert daemon.counter("promoted_blocks") - before == 8
        assert state(daemon)["corrupt_blocks"] == 0


@pytest.mark.parametrize("later", ["none", "auto", "exp12"])
def test_after_kill_9_they_are_read_whatever_is_written_by_then(tmp_path, later):
    with KVTierd(tmp_path, settings(tmp_path)) as daemon:
        saved(daemon)
        used = state(daemon)["used_bytes"]
        daemon._settings["nvme.codec"] = later
        daemon.restart()
        assert (state(daemon)["blocks"], state(daemon)["used_bytes"]) == (40, used)
        with chat_of(daemon) as chat:
            assert chat.load(KEYS[: 12 * KEY_BYTES]) == 12


def test_blocks_of_before_codecs_were_wanted_are_read_beside_frames(tmp_path):
    with KVTierd(tmp_path, settings(tmp_path, nvme_codec="none")) as daemon:
        saved(daemon, KEYS[: 20 * KEY_BYTES])
        assert state(daemon)["used_bytes"] == 20 * BLOCK
        daemon._settings["nvme.codec"] = "exp12"
        daemon.restart()
        saved(daemon, KEYS[20 * KEY_BYTES :])
        assert 20 * BLOCK < state(daemon)["used_bytes"] < 38 * BLOCK
        daemon.restart()
        with chat_of(daemon) as chat:
            assert chat.load(KEYS[14 * KEY_BYTES : 26 * KEY_BYTES]) == 12


def test_what_nothing_makes_smaller_is_written_as_it_is(kvtierd):
    with Chat(kvtierd) as chat:  # of random bytes
        chat.save(KEYS)
        flush(kvtierd)
        assert state(kvtierd)["blocks"] == 40
        assert state(kvtierd)["used_bytes"] == 40 * BLOCK
        assert chat.load(OLDEST) == 8
    assert state(kvtierd)["coding"]["codec"] == "none"


def test_on_a_drive_that_is_full_lie_more_blocks_than_have_room_as_they_are(tmp_path):
    with KVTierd(tmp_path, settings(tmp_path)) as daemon, chat_of(daemon) as chat:
        for part in range(5):
            chat.save(some_keys(40, f"part {part}"))
            flush(daemon)
        held = state(daemon)
        assert held["used_bytes"] <= held["capacity_bytes"] == 128 * MIB
        assert held["block_bytes"] > 1.2 * held["used_bytes"] > 64 * MIB
        assert chat.load(some_keys(40, "part 4")[: 12 * KEY_BYTES]) == 12


def test_frames_are_encrypted_like_blocks(tmp_path):
    assert run_here("kvtier", "secret", tmp_path / "key").returncode == 0
    with KVTierd(tmp_path, settings(tmp_path, encryption_key_file=tmp_path / "key")) as daemon:
        saved(daemon)
        assert state(daemon)["used_bytes"] * 1.2 < 40 * BLOCK
        daemon.restart()
        assert state(daemon)["encrypted"] is True
        with chat_of(daemon) as chat:
            assert chat.load(KEYS[: 12 * KEY_BYTES]) == 12
    assert state_is_sound(tmp_path, "--key-file", tmp_path / "key")


def state_is_sound(folder: Path, *more: object) -> bool:
    return run_here("kvtier", "verify", folder / "nvme", *more).returncode == 0


def test_verify_looks_into_frames_and_finds_what_is_damaged(tmp_path):
    with KVTierd(tmp_path, settings(tmp_path)) as daemon:
        saved(daemon)
        assert daemon.terminate() == 0
    assert state_is_sound(tmp_path)
    with (tmp_path / "nvme" / "blocks").open("r+b") as payload:
        payload.seek(4096)
        payload.write(bytes(64))
    assert not state_is_sound(tmp_path)


def test_a_damaged_frame_is_a_miss_and_no_wrong_block(tmp_path):
    with KVTierd(tmp_path, settings(tmp_path)) as daemon:
        saved(daemon)
        daemon.kill()
        with (tmp_path / "nvme" / "blocks").open("r+b") as payload:  # a byte of each place, and of what lies between
            for offset in range(0, 64 * MIB, 64 * 1024):
                payload.seek(offset + offset // 65536 % 60000)
                payload.write(b"\x55\xaa")
        daemon.start()
        with chat_of(daemon) as chat:
            eventually(lambda: chat.load(OLDEST) == 0 and state(daemon)["corrupt_blocks"] > 0)


def test_auto_chooses_by_itself_and_what_it_wrote_comes_back(tmp_path):
    with KVTierd(tmp_path, settings(tmp_path, nvme_codec="auto")) as daemon, chat_of(daemon) as chat:
        chat.save(KEYS)
        flush(daemon)
        coding = state(daemon)["coding"]
        assert coding["wanted"] == "auto" and coding["codec"] in ("none", "exp12", "expz") and coding["why"]
        assert chat.load(OLDEST) == 8


# --- in a remote ------------------------------------------------------------------------------------------------------


def node(folder: Path, url: str, secret: Path, **more: object) -> KVTierd:
    folder.mkdir(exist_ok=True)
    named = {name.replace("_", ".", 1): value for name, value in more.items()}
    return KVTierd(folder, {"cpu.capacity": "32 MiB", "cost.holdout": 0, "cost.mode": "always", "remote.url": url,
                            "remote.secret_file": secret, **named})  # fmt: skip


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["clear", "encrypted"])
def test_what_one_node_wrote_smaller_another_reads_whatever_it_writes_itself(tmp_path, remote, codec, is_encrypted):
    secret, keys, more = root_file(tmp_path), some_keys(12), {}
    if is_encrypted:
        assert run_here("kvtier", "secret", tmp_path / "key").returncode == 0
        more = {"encryption_key_file": tmp_path / "key"}
    with (
        node(tmp_path / "a", remote.url, secret, remote_codec=codec, **more) as here,
        node(tmp_path / "b", remote.url, secret, remote_codec="none", **more) as there,
    ):
        with chat_of(here) as chat:
            for _ in range(2):
                turn(chat, "chat", keys)
            eventually(lambda: here.counter("remote_demoted_blocks") == 12)
            assert state(here, "remote")["written_bytes"] * 1.25 < 12 * BLOCK
            assert state(here, "remote")["coding"]["codecs"][codec]["blocks"] == 12
        with chat_of(there) as chat:
            eventually(lambda: chat.load(keys) == 12)
        assert state(there, "remote")["read_bytes"] * 1.25 < 12 * BLOCK


@pytest.mark.parametrize("codec", ["", INT8], ids=["no wish", "int8"])
def test_another_node_gets_blocks_as_they_are_whatever_is_wished(tmp_path, codec):
    (port,), secret, keys = free_ports(1), root_file(tmp_path), some_keys(12)
    with (
        node(tmp_path / "a", "", secret, peer_listen=f"{LOOPBACK}:{port}") as there,
        node(tmp_path / "b", f"grpc://{LOOPBACK}:{port}", secret, remote_codec="exp12") as here,
    ):
        with chat_of(here, "model", codec) as chat:
            for _ in range(2):
                turn(chat, "chat", keys)
            eventually(lambda: here.counter("remote_demoted_blocks") == 12)
            assert state(here, "remote")["written_bytes"] == 12 * BLOCK
        with chat_of(there, "model", codec) as chat:
            assert chat.load(keys) == 12


# --- with loss, where an engine asked for it --------------------------------------------------------------------------


def assert_nearly(found: list[bytes | None], keys: bytes) -> None:
    """They went through int8: no number is far from what it was, and some are not the same."""
    assert len(found) == len(keys) // KEY_BYTES
    for key, block in zip(unpack_keys(keys), found):
        assert block is not None
        before, after = numbers(values_of(key, BLOCK)), numbers(block)
        assert 0 < np.abs(before - after).max() < 0.06


def test_what_an_engine_wished_is_done_to_its_blocks_and_to_no_others(kvtierd):
    with chat_of(kvtierd, "hasty", INT8) as hasty, chat_of(kvtierd, "exact") as exact:
        hasty.save(HASTY)
        exact.save(KEYS)
        flush(kvtierd)
        assert_nearly(hasty.read(HASTY[: 8 * KEY_BYTES]), HASTY[: 8 * KEY_BYTES])
        assert exact.load(OLDEST) == 8
    codecs = state(kvtierd)["coding"]["codecs"]
    assert codecs["int8"]["blocks"] == 40 and codecs["int8"]["ratio"] > 1.6
    assert codecs["exp12"]["blocks"] == 40


def test_it_is_done_though_nothing_else_is_made_smaller(tmp_path):
    with KVTierd(tmp_path, settings(tmp_path, nvme_codec="none")) as daemon:
        saved(daemon, HASTY, model="hasty", codec=INT8)
        saved(daemon, model="exact")
        daemon.restart()
        with chat_of(daemon, "exact") as chat:
            assert chat.load(OLDEST) == 8
        with chat_of(daemon, "hasty", INT8) as chat:
            assert_nearly(chat.read(HASTY[: 8 * KEY_BYTES]), HASTY[: 8 * KEY_BYTES])


def test_in_ram_its_blocks_are_as_they_were(kvtierd):
    with chat_of(kvtierd, "hasty", INT8) as chat:
        chat.save(KEYS[: 10 * KEY_BYTES])
        flush(kvtierd)
        assert chat.load(KEYS[: 10 * KEY_BYTES]) == 10
        assert kvtierd.counter("promoted_blocks") == 0


def test_after_an_upgrade_its_blocks_lose_nothing_until_an_engine_wishes_again(tmp_path):
    """A wish allows to lose precision, and never asks for it."""
    mine, keys = settings(tmp_path, remote_secret_file=root_file(tmp_path)), KEYS[: 10 * KEY_BYTES]
    with Service(tmp_path, mine | {"nvme.paths": ""}) as service:
        with chat_of(service, "hasty", INT8) as chat:
            chat.save(keys)
        assert service.end() == 0
        service._settings["nvme.paths"] = mine["nvme.paths"]
        service.start()
        drained = run_here("kvtier", "drain", "--socket", service.socket)
        assert drained.returncode == 0, drained.stderr
        codecs = state(service)["coding"]["codecs"]
        assert (state(service)["blocks"], codecs["exp12"]["blocks"]) == (10, 10)
        service.kill()
        service.forget()
        service.start()
        with chat_of(service, "hasty", INT8) as chat:
            assert chat.load(keys) == 10


@pytest.mark.parametrize(("codec", "said"), [("int8:bf16:63", "unknown codec"), ("exp12", "loses nothing")])
def test_a_wish_that_makes_no_sense_is_refused_with_the_reason(kvtierd, codec, said):
    with Peer(kvtierd.socket) as peer:
        peer.say(scheduler_hello("engine", codec=codec))
        error = peer.end()
    assert isinstance(error, protocol.Error)
    assert error.code == "bad_codec" and said in error.message


def test_engines_of_one_namespace_can_not_wish_for_different_things(kvtierd):
    with chat_of(kvtierd, "model", INT8), Peer(kvtierd.socket) as peer:
        peer.say(scheduler_hello("another", "model"))
        error = peer.end()
    assert isinstance(error, protocol.Error)
    assert error.code == "bad_codec" and INT8 in error.message


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nvme.codec", "remote.codec"])
def test_what_loses_precision_is_no_setting_of_kvtierd(tmp_path, name):
    ended = run("kvtierd", f"--set={name}=int8", f"--set=server.socket={tmp_path / 'sock'}")
    assert ended.returncode == 2
    assert f"{name} = 'int8' would lose precision" in ended.stderr and "kv_connector_extra_config" in ended.stderr


def test_a_codec_that_nobody_knows_ends_the_start_with_the_nearest(tmp_path):
    ended = run("kvtierd", "--set=nvme.codec=exp-12", f"--set=server.socket={tmp_path / 'sock'}")
    assert ended.returncode == 2
    assert "nvme.codec = 'exp-12' is none of auto, none, exp12, expz; did you mean 'exp12'?" in ended.stderr
