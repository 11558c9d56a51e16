"""The NVMe tier through the socket, with real bytes: what leaves RAM comes back, after a restart too, or not at all."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat import BLOCK, Chat, nvme_settings
from kvtierd import KVTierd, eventually, some_keys

from kvtier import observer, protocol
from kvtier.block import ABSENT, BELOW, KEY_BYTES, unpack_slots

MIB = 1024**2


@pytest.fixture
def kvtierd(tmp_path: Path) -> Iterator[KVTierd]:
    with KVTierd(tmp_path, nvme_settings(tmp_path)) as daemon:
        yield daemon


def flush(daemon: KVTierd) -> None:
    assert observer.flush(daemon.socket, 30)


def nvme(daemon: KVTierd) -> dict:
    return daemon.snapshot()["tiers"]["nvme"]


def test_a_block_that_left_ram_comes_back_from_the_drive(kvtierd):
    keys = some_keys(60)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        flush(kvtierd)
        before = kvtierd.counter("promoted_blocks")
        assert chat.load(keys[: 10 * KEY_BYTES]) == 10
        assert kvtierd.counter("promoted_blocks") - before == 10, "RAM has room for the newest half only"
        assert chat.load(keys[: 10 * KEY_BYTES]) == 10
        assert kvtierd.counter("promoted_blocks") - before == 10, "now they are in RAM"


def test_blocks_survive_kill_9_once_they_are_flushed(kvtierd):
    keys = some_keys(40)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        flush(kvtierd)
    kvtierd.restart()
    assert nvme(kvtierd)["blocks"] == 40
    with Chat(kvtierd) as chat:
        assert chat.load(keys[: 12 * KEY_BYTES]) == 12


def test_at_sigterm_what_is_in_ram_is_written(kvtierd):
    keys = some_keys(20)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        chat.load(keys[:KEY_BYTES])
        assert kvtierd.terminate() == 0
    assert "not all blocks could be written" not in kvtierd.said()
    kvtierd.start()
    with Chat(kvtierd) as chat:
        assert chat.load(keys[: 12 * KEY_BYTES]) == 12


def test_an_engine_of_another_model_finds_nothing_after_the_restart(kvtierd):
    with Chat(kvtierd, "one") as chat:
        chat.save(some_keys(4))
        flush(kvtierd)
        secret = chat.engine.welcome.secret
    kvtierd.restart()
    with Chat(kvtierd, "two") as other, Chat(kvtierd, "one") as same:
        assert other.engine.welcome.secret != secret
        assert same.engine.welcome.secret == secret, "the same keys name the same blocks"


def test_after_a_reset_nothing_older_comes_back_from_the_drive_either(kvtierd):
    keys = some_keys(40)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        flush(kvtierd)
        secret = chat.engine.welcome.secret
        chat.engine.say(protocol.Reset())
        assert chat.load(keys) == 0
        flush(kvtierd)
    assert nvme(kvtierd)["blocks"] == 0
    kvtierd.restart()
    with Chat(kvtierd) as chat:
        assert chat.engine.welcome.secret != secret
        assert chat.load(keys) == 0


def test_keys_that_the_engine_has_itself_are_not_read(kvtierd):
    keys = some_keys(60)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        flush(kvtierd)
        found = chat.engine.ask(protocol.Lookup(1, keys[: 8 * KEY_BYTES], 8), answer=protocol.Found)
        assert unpack_slots(found.slots).tolist() == [BELOW] * 8, "they need not be saved"
        assert kvtierd.counter("promoted_bytes") == 0


def test_behind_a_hole_nothing_is_read(kvtierd):
    keys = some_keys(60)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        flush(kvtierd)
        asked = keys[: 2 * KEY_BYTES] + some_keys(1, "never saved") + keys[2 * KEY_BYTES : 6 * KEY_BYTES]
        slots = chat.engine.lookup(asked)
        assert slots[2:] == [ABSENT] + [BELOW] * 4
        assert kvtierd.counter("promoted_blocks") == 2


def test_two_engines_that_want_the_same_block_cause_one_read(kvtierd):
    keys = some_keys(60)
    with Chat(kvtierd) as chat, Chat(kvtierd) as other:
        chat.save(keys)
        flush(kvtierd)
        wanted = keys[: 6 * KEY_BYTES]
        for engine in (chat.engine, other.engine):
            engine.say(protocol.Lookup(1, wanted))
        answers = [engine.hear(protocol.Found).slots for engine in (chat.engine, other.engine)]
        assert answers[0] == answers[1]
        assert kvtierd.counter("promoted_blocks") == 6


def test_blocks_used_once_are_not_written_when_endurance_is_short(tmp_path):
    with KVTierd(tmp_path, nvme_settings(tmp_path, nvme_endurance_dwpd=0)) as daemon, Chat(daemon) as chat:
        chat.save(some_keys(10))
        flush(daemon)
        assert daemon.counter("demoted_blocks") == 0
        assert daemon.counter("refused_budget") == 10
        assert nvme(daemon)["blocks"] == 0


def test_the_drive_holds_no_more_than_its_capacity(kvtierd, tmp_path):
    with Chat(kvtierd) as chat:
        for part in range(6):
            chat.save(some_keys(50, f"part {part}"))
            flush(kvtierd)
        assert chat.load(some_keys(50, "part 5")[: 12 * KEY_BYTES]) == 12
    held = nvme(kvtierd)
    assert held["used_bytes"] <= held["capacity_bytes"] == 128 * MIB
    assert kvtierd.counter("forgotten_blocks") > 100
    on_disk = sum(file.stat().st_blocks * 512 for file in (tmp_path / "nvme").iterdir())
    assert held["disk_bytes"] == on_disk


def test_a_lookup_is_answered_in_time_though_the_drive_is_slow(tmp_path):
    with KVTierd(tmp_path, nvme_settings(tmp_path, nvme_stage_deadline_ms=1)) as daemon, Chat(daemon) as chat:
        keys = some_keys(60)
        chat.save(keys)
        flush(daemon)
        chat.load(keys[: 12 * KEY_BYTES])  # perhaps less than all
        eventually(lambda: chat.load(keys[: 12 * KEY_BYTES]) == 12), "a read that nobody waits for warms RAM"


@pytest.mark.parametrize("times", [2, 4])
def test_a_burst_of_several_times_ram_keeps_all_of_the_newest(kvtierd, times):
    keys = some_keys(32 * times)
    with Chat(kvtierd) as chat:
        chat.save(keys)
        slots = kvtierd.cpu()["capacity_bytes"] // BLOCK
        lent = kvtierd.engine(kvtierd.snapshot()["engines"][0]["engine"])["lent_slots"]
        newest = keys[-(slots - lent) * KEY_BYTES :]
        found = chat.engine.ask(protocol.Lookup(1, newest, len(newest) // KEY_BYTES), answer=protocol.Found)
        missing = unpack_slots(found.slots).tolist().count(ABSENT) + unpack_slots(found.slots).tolist().count(BELOW)
        leasable = slots // 2
        assert missing == max(0, len(newest) // KEY_BYTES - leasable), "all that a lease may pin is there"
        assert kvtierd.counter("saved_blocks") == len(keys) // KEY_BYTES


def test_three_quarters_of_ram_a_second_are_taken_whole(kvtierd):
    blocks = 32 * 3 // 4
    with Chat(kvtierd, lend=8) as chat:
        for second in range(3):
            begun = time.monotonic()
            chat.save(some_keys(blocks, f"second {second}"))
            time.sleep(max(0.0, 1 - (time.monotonic() - begun)))
        assert kvtierd.counter("saved_blocks") == 3 * blocks
        assert chat.load(some_keys(12, "second 2")) == 12


def test_a_folder_that_another_daemon_uses_is_refused_with_the_reason(kvtierd, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(AssertionError, match="in use by another kvtierd"):
        KVTierd(other, {**nvme_settings(tmp_path), "server.socket": other / "sock"}).start()


def test_a_capacity_that_the_drive_has_not_is_refused_with_the_cure(tmp_path):
    with pytest.raises(AssertionError, match=r"lower nvme\.capacity"):
        KVTierd(tmp_path, nvme_settings(tmp_path, nvme_capacity="200 TiB")).start()


def test_slots_are_as_free_as_before_when_all_is_over(kvtierd):
    with Chat(kvtierd) as chat:
        chat.save(some_keys(60))
        flush(kvtierd)
        chat.load(some_keys(12))
        chat.engine.say(protocol.Reset())
    eventually(lambda: kvtierd.cpu()["used_bytes"] == 0)
