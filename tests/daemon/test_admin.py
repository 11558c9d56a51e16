"""The admin API of a real kvtierd: what is said of sessions happens to their blocks, in RAM and on drives."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from admin_caller import caller_of, is_served, listed
from arena_bytes import content_of
from chat import BLOCK, Chat, nvme_settings, save, turn
from kvtierd import PATIENCE_S, KVTierd, eventually, some_keys

from kvtier import observer, protocol
from kvtier.admin import default_admin_socket
from kvtier.admin.caller import AdminCaller
from kvtier.block import unpack_keys
from kvtier.errors import DaemonError

TENANT = bytes(range(16))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[KVTierd]:
    """With a drive."""
    with KVTierd(tmp_path, {**nvme_settings(tmp_path), "cost.holdout": 0}) as started:
        yield started


@pytest.fixture
def admin(daemon: KVTierd) -> Iterator[AdminCaller]:
    with caller_of(daemon) as caller:
        yield caller


# --- what there is -------------------------------------------------------------------------------------------


def test_a_session_is_listed_with_what_it_has(daemon, admin):
    with Chat(daemon) as chat:
        turn(chat, "mine", some_keys(2))
        turn(chat, "mine", some_keys(3))
        row = eventually(lambda: (row := listed(admin, "mine"))["turns"] == 2 and row)
    assert (row["state"], row["tokens"], row["tenant"]) == ("idle", 3 * 16, "")
    assert row["blocks"]["cpu"] == 3 and row["bytes"]["cpu"] == 3 * BLOCK
    assert row["blocks"]["gone"] == 0
    assert row["ttl_left_s"] is None
    assert admin.sessions()[1] == 1


def test_of_a_session_that_nobody_named_it_is_listed_what_to_call_it(daemon, admin):
    with Chat(daemon) as chat:
        turn(chat, "", some_keys(2))
        (row,) = eventually(lambda: admin.sessions()[0])
        assert row["session"].startswith("~")
        assert admin.end(row["session"]) == {"sessions": 1}


# --- where its blocks are ------------------------------------------------------------------------------------


def test_a_parked_session_is_written_to_the_drive(daemon, admin):
    with Chat(daemon) as chat:
        turn(chat, "mine", some_keys(3))
        eventually(lambda: listed(admin, "mine")["state"] == "idle")
        assert admin.park("mine") == {"blocks": 3}
        eventually(lambda: listed(admin, "mine")["blocks"]["nvme"] == 3)
        assert listed(admin, "mine")["state"] == "parked"


def test_a_warmed_session_is_read_back_into_ram(tmp_path):
    with KVTierd(tmp_path, nvme_settings(tmp_path)) as daemon, caller_of(daemon) as admin, Chat(daemon) as chat:
        turn(chat, "mine", some_keys(4))
        assert observer.flush(daemon.socket, PATIENCE_S)
        turn(chat, "others", some_keys(28, "other"))
        eventually(lambda: listed(admin, "mine")["blocks"]["cpu"] < 4)
        assert observer.flush(daemon.socket, PATIENCE_S)
        missing = 4 - listed(admin, "mine")["blocks"]["cpu"]
        assert admin.warm("mine") == {"blocks": missing}
        eventually(lambda: listed(admin, "mine")["blocks"]["cpu"] == 4)
        assert chat.load(some_keys(4)) == 4
        assert admin.warm("mine") == {"blocks": 0}


def test_a_pinned_session_stays_in_ram_until_it_is_unpinned(daemon, admin):
    with Chat(daemon) as chat:
        turn(chat, "mine", some_keys(4))
        eventually(lambda: listed(admin, "mine")["state"] == "idle")
        assert admin.pin("mine", seconds=500) == {"blocks": 4}
        row = listed(admin, "mine")
        assert row["pinned"] and 490 < row["pin_left_s"] <= 500
        assert daemon.snapshot()["retention"]["pinned_bytes"] == 4 * BLOCK
        turn(chat, "others", some_keys(60, "other"))
        assert listed(admin, "mine")["blocks"]["cpu"] == 4
        assert admin.pin("mine", seconds=0) == {"blocks": 4}
        assert not listed(admin, "mine")["pinned"]


def test_pins_are_held_to_the_quota_that_is_set(tmp_path):
    with (
        KVTierd(tmp_path, {"cpu.capacity": "32 MiB", "policy.pin_share": 0.125, "policy.pin_s": 50}) as daemon,
        caller_of(daemon) as admin,
        Chat(daemon) as chat,
    ):
        turn(chat, "mine", some_keys(6))
        eventually(lambda: listed(admin, "mine")["state"] == "idle")
        assert daemon.snapshot()["retention"]["pin_quota_bytes"] == 4 * BLOCK
        assert admin.pin("mine") == {"blocks": 4}
        assert 40 < listed(admin, "mine")["pin_left_s"] <= 50


# --- what is to be forgotten ---------------------------------------------------------------------------------


def test_what_is_forgotten_is_zeroed_in_ram_and_on_the_drive(daemon, admin):
    with Chat(daemon) as chat:
        request = "the one"
        chat.engine.say(protocol.Begin(request, "mine"))
        slots = save(chat, request, some_keys(3))
        chat.engine.say(protocol.Touch(some_keys(3), request))
        assert observer.flush(daemon.socket, PATIENCE_S)
        secret = content_of(unpack_keys(some_keys(1))[0], BLOCK)
        assert chat.arena.read(slots[0], BLOCK) == secret
        assert on_drive(daemon, secret)
        proof = admin.forget("mine")
        assert proof == {
            "sessions": 1,
            "blocks": {"cpu": 3, "nvme": 3},
            "bytes_zeroed": {"cpu": 3 * BLOCK, "nvme": 3 * BLOCK},
            "shared_blocks_kept": 0,
            "keys_shredded": 0,
        }
        assert not on_drive(daemon, secret)
        assert [chat.arena.read(slot, BLOCK) == bytes(BLOCK) for slot in slots] == [True] * 3
        assert chat.load(some_keys(3)) == 0
        with pytest.raises(DaemonError, match=r"no session 'mine' is known; `kvtier sessions` lists"):
            admin.forget("mine")


def on_drive(daemon: KVTierd, content: bytes) -> bool:
    return content[:4096] in next((daemon.socket.parent / "nvme").glob("blocks*")).read_bytes()


def test_a_tenant_is_forgotten_and_the_others_keep_theirs(daemon, admin):
    with Chat(daemon) as chat:
        turn(chat, "one", some_keys(2, "one"), TENANT)
        turn(chat, "two", some_keys(3, "two"), TENANT)
        turn(chat, "other's", some_keys(2, "other"))
        eventually(lambda: len(admin.sessions()[0]) == 3)
        tenant = listed(admin, "one")["tenant"]
        assert tenant == TENANT.hex()[:12]
        proof = admin.forget("", tenant)
        assert (proof["sessions"], proof["blocks"]["cpu"]) == (2, 5)
        assert [row["session"] for row in admin.sessions()[0]] == ["other's"]
        assert chat.load(some_keys(2, "other")) == 2


def test_what_a_former_daemon_wrote_is_forgotten_by_name(daemon, admin):
    with Chat(daemon) as chat:
        turn(chat, "mine", some_keys(3))
        assert observer.flush(daemon.socket, PATIENCE_S)
    daemon.restart()
    with caller_of(daemon) as admin_after:
        assert admin_after.sessions() == ([], 0)
        proof = admin_after.forget("mine")
    assert (proof["sessions"], proof["blocks"]) == (0, {"cpu": 0, "nvme": 3})
    assert not on_drive(daemon, content_of(unpack_keys(some_keys(1))[0], BLOCK))


def test_while_much_is_forgotten_lookups_are_answered(tmp_path):
    with (
        KVTierd(tmp_path, {"cpu.capacity": "512 MiB", "lend.max_share": 0.5}) as daemon,
        caller_of(daemon) as admin,
        Chat(daemon, lend=64) as chat,
    ):
        turn(chat, "mine", some_keys(400))
        eventually(lambda: listed(admin, "mine")["state"] == "idle")
        took = []
        forgetting = subprocess.Popen(
            [str(Path(sys.executable).with_name("kvtier")), "forget", "mine", "--socket", str(daemon.socket)],
            stdout=subprocess.PIPE,
        )
        while forgetting.poll() is None:
            begun = time.monotonic()
            chat.load(some_keys(1, "other"))
            took.append(time.monotonic() - begun)
        assert forgetting.wait() == 0
        assert sorted(took)[len(took) // 2] < 0.02


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "arc"])
def test_under_every_policy_sessions_are_known(tmp_path, policy):
    with (
        KVTierd(tmp_path, {"cpu.capacity": "32 MiB", "policy.name": policy}) as daemon,
        caller_of(daemon) as admin,
        Chat(daemon) as chat,
    ):
        turn(chat, "mine", some_keys(2))
        turn(chat, "others", some_keys(60, "other"))  # more than there is room for
        eventually(lambda: listed(admin, "others")["state"] == "idle")
        assert daemon.counter("evicted_blocks") > 0
        assert admin.forget("others")["sessions"] == 1


def test_a_policy_that_nobody_knows_is_refused():
    command = [str(Path(sys.executable).with_name("kvtierd")), "--set", "policy.name=best"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert ended.stderr == "kvtierd: policy.name = 'best' is none of value, lru, s3fifo, arc\n"


# --- its life ------------------------------------------------------------------------------------------------


def test_without_a_daemon_the_caller_says_so_and_it_hears_the_next_one(tmp_path):
    daemon = KVTierd(tmp_path)
    with AdminCaller(default_admin_socket(daemon.socket)) as admin:
        with pytest.raises(DaemonError, match=r"no kvtierd on .*admin.sock: No such file or directory; start kvtierd"):
            admin.sessions()
        with daemon:
            assert caller_of(daemon).sessions() == ([], 0)
            daemon.kill()
            with pytest.raises(DaemonError, match=r"Connection refused; start kvtierd"):
                admin.sessions()
            daemon.start()
            eventually(lambda: said(admin) == ([], 0))


def said(admin: AdminCaller) -> object:
    try:
        return admin.sessions()
    except DaemonError as error:
        return str(error)


def test_a_daemon_that_stands_still_is_waited_for_no_longer_than_is_said(tmp_path):
    with KVTierd(tmp_path) as daemon:
        caller_of(daemon).sessions()
        daemon.stop_()
        with pytest.raises(DaemonError, match=r"doesn't answer within 0.3 s"):
            AdminCaller(default_admin_socket(daemon.socket), 0.3).sessions()
        daemon.cont()
        assert caller_of(daemon).sessions() == ([], 0)


def test_at_its_end_its_socket_is_gone(tmp_path):
    with KVTierd(tmp_path) as daemon:
        caller_of(daemon).sessions()
        assert daemon.terminate() == 0
        assert not default_admin_socket(daemon.socket).exists()
        assert "Traceback" not in daemon.said()


def test_it_ends_also_before_its_admin_api_has_begun(tmp_path):
    with KVTierd(tmp_path) as daemon:
        assert daemon.terminate() == 0
        assert "Traceback" not in daemon.said()


def test_the_socket_can_be_elsewhere(tmp_path):
    path = tmp_path / "somewhere" / "else.sock"
    with KVTierd(tmp_path, {"admin.socket": path}):
        eventually(lambda: is_served(path))
        with AdminCaller(path) as admin:
            assert admin.sessions() == ([], 0)
    assert not default_admin_socket(tmp_path / "kvtierd.sock").exists()


def test_the_machine_is_measured_beside_it(tmp_path):
    """A process is started for that, and gRPC has threads by then."""
    with KVTierd(tmp_path, {"cost.calibrate_s": 0.2}) as daemon:
        with caller_of(daemon) as admin:
            while not (tmp_path / "state" / "calibration.json").exists():
                assert admin.sessions() == ([], 0)
                time.sleep(0.05)
        assert daemon.terminate() == 0
        assert "not measured" not in daemon.said() and "nothing was measured" not in daemon.said()
