"""kvtier verify and kvtier flush, as an operator runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arena_bytes import values_of
from chat import Chat, nvme_settings
from coded_blocks import forged
from kvtierd import KVTierd, some_keys

from kvtier import _native
from kvtier.block import KEY_BYTES
from kvtier.tiers.nvme import NvmeTier

BLOCKS = 12


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("kvtier")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def saved(folder: Path, **settings: str) -> Path:
    """Some blocks on drives that no kvtierd uses any more. The folder of the drive, if the settings name no others."""
    with KVTierd(folder, nvme_settings(folder, **settings)) as daemon:
        with Chat(daemon, content=values_of) as chat:
            chat.save(some_keys(BLOCKS))
        assert run("flush", "--socket", daemon.socket).returncode == 0
        assert daemon.terminate() == 0
    return folder / "nvme"


@pytest.fixture
def drives(tmp_path: Path) -> list[Path]:
    """Two drives with some blocks, which no kvtierd uses any more."""
    folders = [tmp_path / "one", tmp_path / "two"]
    # Not coded, so that a block lies at the beginning.
    saved(tmp_path, nvme_paths=f"{folders[0]}, {folders[1]}", nvme_codec="none")
    return folders


def test_a_sound_tier_is_said_to_be_sound(drives):
    ended = run("verify", *drives, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "blocks": BLOCKS, "bytes": BLOCKS * 1024**2, "frames": 0, "corrupt": 0, "unreadable": 0, "bad_records": 0,
        "notes": [],
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


def test_frames_are_verified_as_well_and_what_they_take_is_said(tmp_path):
    folder = saved(tmp_path, nvme_codec="exp12")
    first = json.loads(run("verify", folder, "--json").stdout)
    assert (first["blocks"], first["frames"], first["corrupt"]) == (BLOCKS, BLOCKS, 0)
    assert BLOCKS * 1024**2 > 1.2 * first["bytes"] > 0
    with (folder / "blocks").open("r+b") as payload:
        while not any(payload.read(4096)):
            pass  # nothing lies here: a frame was too large for it
        payload.seek(-4096, os.SEEK_CUR)
        payload.write(bytes(4096))
    second, third = run("verify", folder, "--json"), run("verify", folder)
    assert (second.returncode, json.loads(second.stdout)["corrupt"]) == (1, 1)
    assert third.returncode == 0 and f"{BLOCKS - 1} blocks" in third.stdout


def test_a_frame_of_another_kvtier_is_left_alone_and_the_reason_is_said(tmp_path):
    folder = saved(tmp_path, nvme_codec="exp12")
    tier = NvmeTier([folder], (folder / "blocks").stat().st_size, 0)
    found, (_, offset) = tier.recovered, tier._files.locate(int(tier.recovered.places[0]), int(tier.recovered.stored[0]))
    tier.close()
    frame = np.fromfile(folder / "blocks", np.uint8, int(found.stored[0]), offset=offset)
    for version in (9, 1):  # and then it is whole again
        other = forged(frame, _native.crc32c(found.keys[:KEY_BYTES]), version=version)
        with (folder / "blocks").open("r+b") as payload:
            payload.seek(offset)
            payload.write(other.tobytes())
        ended = run("verify", folder, "--json")
        report = json.loads(ended.stdout)
        notes = ["frames by exp12 can't be read here: another kvtier wrote them"] if version == 9 else []
        assert (report["blocks"], report["corrupt"], report["unreadable"]) == (BLOCKS, 0, len(notes))
        assert report["notes"] == notes and ended.returncode == len(notes)


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
