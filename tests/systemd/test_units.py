"""The units as systemd's own tools judge them, without one that runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kvtier.cli.install_service import pieces

SHIPPED = Path(__file__).parents[2] / "systemd"
THRESHOLDS = {(): 15, ("network",): 15, ("gpu",): 20, ("gpu", "network"): 20}  # tenths of systemd's points of exposure

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


def laid(root: Path, drop_ins: tuple[str, ...]) -> Path:
    """The folder of units, all of it below `root`."""
    for piece in pieces(SHIPPED, "usr", Path("/bin/true"), list(drop_ins)):
        (root / piece.path).parent.mkdir(parents=True, exist_ok=True)
        (root / piece.path).write_text(piece.text)
    return root / "usr/lib/systemd/system"


def ran(folder: Path, *command: str) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    return said


@pytest.fixture(params=THRESHOLDS, ids=lambda drop_ins: "+".join(drop_ins) or "cpu")
def drop_ins(request) -> tuple[str, ...]:
    return request.param


def test_systemd_finds_nothing_wrong(tmp_path, drop_ins):
    """Its man page is there when it is installed; here it isn't."""
    units = laid(tmp_path, drop_ins)
    assert ran(units, "systemd-analyze", "verify", "--man=no", "./kvtierd.service", "./kvtierd.socket") == ""


def test_it_is_exposed_to_little(tmp_path, drop_ins):
    threshold = f"--threshold={THRESHOLDS[drop_ins]}"
    said = ran(laid(tmp_path, drop_ins), "systemd-analyze", "security", "--offline=true", threshold, "./kvtierd.service")
    assert "Overall exposure level for kvtierd.service" in said


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="there is no systemd-sysusers")
def test_the_user_and_both_groups_are_made(tmp_path):
    laid(tmp_path, ())
    ran(tmp_path, "systemd-sysusers", f"--root={tmp_path}", "kvtier.conf")
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert groups["kvtier-admin"] == "kvtier"
    users = {line.split(":")[0]: line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    assert users["kvtier"][5] == "/var/lib/kvtier" and users["kvtier"][6].endswith("nologin")
