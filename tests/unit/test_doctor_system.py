"""What kvtier doctor finds out of this machine; and that each check says something of any machine."""

import os
from pathlib import Path

import pytest
from made_up_machine import Machine, facts_of, running

from kvtier.doctor.checks import CHECKS, examine
from kvtier.doctor.findings import LEVELS, worst
from kvtier.doctor.system import Space, System


def test_files_that_are_not_there_are_empty(tmp_path):
    system = System(tmp_path)
    assert (system.read("/missing"), system.names("/missing"), system.target("/missing")) == ("", [], "")
    assert (system.number("/missing"), system.stat("/missing"), system.space("/missing")) == (None, None, None)


@pytest.mark.parametrize(("text", "number"), [("7\n", 7), ("-1", -1), ("max", 2**63), ("", None), ("no", None)])
def test_numbers_in_files(tmp_path, text, number):
    (tmp_path / "file").write_text(text)
    assert System(tmp_path).number("/file") == number


def test_a_file_that_is_no_text_is_read_too(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff\x00a")
    assert System(tmp_path).read("/file") == "\ufffd\x00a"


def test_of_this_machine():
    system = System()
    assert system.clock_is_synced() in (True, False, None)
    assert isinstance(system.io_uring(), str)
    assert system.libcrypto() == "" or system.libcrypto().startswith("OpenSSL 3")
    assert system.libzstd() == "" or system.libzstd().startswith("1.")
    assert system.kernel() and system.python() and system.user() == os.geteuid()
    assert system.package("no-such-package") == ""
    found = system.space(Path("/"))
    assert found is not None and 0 <= found.free <= found.size


@pytest.mark.parametrize("state", [None, running()], ids=["no daemon", "a daemon"])
def test_every_check_says_something_of_an_empty_machine(tmp_path, state):
    machine = Machine(tmp_path)
    for file in ("proc/meminfo", "proc/self/mountinfo", "proc/self/limits", "proc/self/status"):
        (tmp_path / file).unlink()
    machine.all_space = Space(0, 0)
    facts = facts_of(machine, state, "no kvtierd", nvme__paths="/mnt/nvme0", remote__url="redis://host")
    said = list(examine(facts))
    assert list(dict.fromkeys(check for check, _ in said)) == list(CHECKS)
    assert all(bool(finding.cure) == (finding.level != "ok") and finding.said for _, finding in said)


def test_names_of_checks_are_their_own():
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_the_worst_level_is_that_of_all():
    assert [worst([]), worst(["ok", "warn"]), worst(["bad", "warn"])] == list(LEVELS)
