"""kvtier verify and kvtier flush, as an operator runs them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat import Chat, nvme_settings
from kvtierd import KVTierd, some_keys

BLOCKS = 12


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("kvtier")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def drives(tmp_path: Path) -> Iterator[list[Path]]:
    """Two drives with some blocks, which no kvtierd uses any more."""
    folders = [tmp_path / "one", tmp_path / "two"]
    with KVTierd(tmp_path, nvme_settings(tmp_path, nvme_paths=f"{folders[0]}, {folders[1]}")) as daemon:
        with Chat(daemon) as chat:
            chat.save(some_keys(BLOCKS))
        assert run("flush", "--socket", daemon.socket).returncode == 0
        assert daemon.terminate() == 0
    yield folders


def test_a_sound_tier_is_said_to_be_sound(drives):
    ended = run("verify", *drives, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "blocks": BLOCKS, "bytes": BLOCKS * 1024**2, "corrupt": 0, "unreadable": 0, "bad_records": 0, "notes": [],
    }  # fmt: skip


def test_a_flipped_bit_is_found_once_and_then_forgotten(drives):
    with (drives[0] / "blocks").open("r+b") as payload:
        payload.seek(4096)
        byte = payload.read(1)[0]
        payload.seek(4096)
        payload.write(bytes([byte ^ 16]))
    first, second = run("verify", *drives, "--json"), run("verify", *drives)
    assert first.returncode == 1
    assert json.loads(first.stdout)["corrupt"] == 1
    assert second.returncode == 0
    assert f"{BLOCKS - 1} blocks" in second.stdout


def test_a_tier_in_use_is_left_alone(tmp_path):
    with KVTierd(tmp_path, nvme_settings(tmp_path)):
        ended = run("verify", tmp_path / "nvme")
    assert ended.returncode == 1
    assert "in use by another kvtierd" in ended.stderr


def test_a_folder_without_a_tier_is_refused_with_the_cure(tmp_path):
    ended = run("verify", tmp_path)
    assert ended.returncode == 1
    assert "name the folders of nvme.paths" in ended.stderr
    assert not list(tmp_path.iterdir()), "nothing was made there"


def test_flush_says_when_there_is_nothing_that_survives(tmp_path):
    with KVTierd(tmp_path) as daemon:
        ended = run("flush", "--socket", daemon.socket)
    assert ended.returncode == 1
    assert "the NVMe tier is off or read-only" in ended.stderr
