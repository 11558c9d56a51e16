"""kvtier doctor on the node, of machines that are made up; and on whose settings it looks at."""

import pytest
from made_up_machine import PID, Machine, facts_of, only, running

from kvtier import __version__, protocol
from kvtier.doctor import facts as facts_module
from kvtier.doctor import node
from kvtier.doctor.facts import SERVICE_FOLDER, SERVICE_SETTINGS, gather, given_to, is_kvtierd
from kvtier.doctor.findings import ok
from kvtier.errors import ConfigError, DaemonError


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_a_daemon_that_answers_is_good(machine):
    assert only(node.daemon, facts_of(machine, running())) == ok(
        f"answers on /run/kvtier/kvtierd.sock, process {PID}, up 5 s"
    )


def test_no_daemon_is_a_warning(machine):
    found = only(node.daemon, facts_of(machine, trouble="no kvtierd on x: No such file or directory; start kvtierd"))
    assert (found.level, found.said) == ("warn", "no kvtierd on x: No such file or directory")


def test_a_daemon_of_another_protocol_is_bad(machine):
    trouble = "kvtierd on x refuses: this kvtierd speaks version 4 of the protocol, not 5"
    assert only(node.daemon, facts_of(machine, trouble=trouble)).level == "bad"


def test_the_installed_version_may_be_another_than_the_one_that_runs(machine):
    found, _ = node.versions(facts_of(machine, running(version="0.0.1")))
    assert found.level == "warn" and found.said == f"kvtierd 0.0.1 runs, and {__version__} is installed here"


def test_versions_that_are_one_are_good(machine):
    mine, engine = node.versions(facts_of(machine, running()))
    assert mine == ok(f"kvtier {__version__}, protocol {protocol.VERSION}: installed and running")
    assert engine == ok("vllm 0.32.0")


@pytest.mark.parametrize(("release", "level"), [("6.1.0", "ok"), ("5.15.0", "warn")])
def test_the_kernel(machine, release, level):
    machine.release = release
    assert only(node.kernel, facts_of(machine)).level == level


def test_without_encryption_no_libcrypto_is_needed(machine):
    machine.crypto = ""
    assert only(node.libcrypto, facts_of(machine)).level == "ok"


def test_for_encryption_it_is(machine):
    machine.crypto = ""
    assert only(node.libcrypto, facts_of(machine, encryption__key_file="key")).level == "bad"


# --- codecs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isas", "said"),
    [
        (["avx512", "avx2", "portable"], "with AVX-512; zstandard 1.5.4"),
        (["avx2", "portable"], "with AVX2; zstandard 1.5.4"),
        (["portable"], "with no vector instructions, which is slow; zstandard 1.5.4"),
    ],
)
def test_codecs_use_the_best_instructions_of_the_processor(machine, isas, said):
    machine.isas = isas
    assert only(node.codecs, facts_of(machine)) == ok(said)


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, "ok"),
        ({"remote__url": "redis://host"}, "warn"),
        ({"remote__url": "grpcs://host:1"}, "ok"),
        ({"remote__url": "redis://host", "remote__codec": "exp12"}, "ok"),
        ({"nvme__codec": "expz"}, "bad"),
        ({"remote__url": "redis://host", "remote__codec": "expz"}, "bad"),
    ],
    ids=["alone", "auto", "peer", "exp12", "expz below", "expz far"],
)
def test_without_zstandard_there_is_no_expz(machine, settings, level):
    machine.zstd = ""
    found = only(node.codecs, facts_of(machine, **settings))
    assert found.level == level and "libzstd.so.1" in found.said
    assert ("Debian: libzstd1" in found.cure) == (level != "ok")


# --- the clock -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, "ok"),
        ({"remote__url": "redis://host"}, "ok"),
        ({"remote__url": "rediss://host"}, "warn"),
        ({"remote__url": "s3://bucket/prefix"}, "warn"),
        ({"peer__listen": "0.0.0.0:1234"}, "warn"),
    ],
    ids=["alone", "redis", "rediss", "s3", "peers"],
)
def test_a_clock_that_nobody_sets_matters_where_certificates_are_checked(machine, settings, level):
    machine.synced = False
    assert only(node.clock, facts_of(machine, **settings)).level == level


@pytest.mark.parametrize("synced", [True, None])
def test_a_clock_that_is_right_or_unknown_is_good(machine, synced):
    machine.synced = synced
    assert only(node.clock, facts_of(machine, remote__url="rediss://host")).level == "ok"


# --- whose settings ------------------------------------------------------------------------------------------


def asked(monkeypatch, answer: object) -> None:
    def ask(path: object, timeout_s: float) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(facts_module.observer, "ask", ask)


def test_settings_are_those_that_the_running_daemon_was_started_with(machine, monkeypatch, tmp_path):
    asked(monkeypatch, running())
    file = tmp_path / "kvtier.toml"
    file.write_text('[cpu]\ncapacity = "1 GiB"\n')
    machine.process(
        PID, "python3", "/usr/bin/kvtierd", "--config", str(file), "--set=cpu.pin=no", "--set", "nvme.io=threads"
    )
    found = gather(machine)
    assert (found.settings["cpu.capacity"], found.settings["cpu.pin"]) == (1 << 30, False)
    assert found.settings["nvme.io"] == "threads"
    assert only(node.settings, found) == ok(f"those of kvtierd, process {PID}")


def test_a_file_that_is_named_counts_more(machine, monkeypatch, tmp_path):
    asked(monkeypatch, running())
    machine.process(PID, "python3", "/usr/bin/kvtierd", "--set=cpu.capacity=1GiB")
    file = tmp_path / "other.toml"
    file.write_text('[cpu]\ncapacity = "2 GiB"\n')
    found = gather(machine, file)
    assert found.settings["cpu.capacity"] == 2 << 30
    assert only(node.settings, found) == ok(f"those of {file}")


def test_a_daemon_whose_process_is_not_to_be_seen_has_the_defaults(machine, monkeypatch):
    asked(monkeypatch, running())
    found = gather(machine)
    assert found.pid is None and found.settings["cpu.capacity"] == 4 << 30
    assert only(node.settings, found).level == "warn"


def test_a_number_that_is_another_process_here_is_no_daemon(machine, monkeypatch):
    asked(monkeypatch, running())
    machine.process(PID, "/usr/bin/sleep", "1000")
    assert gather(machine).pid is None


def test_a_daemon_with_a_file_that_is_not_for_us_has_the_defaults(machine, monkeypatch, tmp_path):
    asked(monkeypatch, running())
    machine.process(PID, "kvtierd", "--config", str(tmp_path / "missing.toml"))
    found = gather(machine)
    assert only(node.settings, found).level == "warn"


def test_without_a_daemon_the_reason_is_kept(machine, monkeypatch):
    asked(monkeypatch, DaemonError("no kvtierd on x"))
    found = gather(machine)
    assert (found.state, found.trouble) == (None, "no kvtierd on x")
    assert only(node.settings, found).level == "ok"


def test_those_of_the_service_are_next_to_what_it_was_started_with(machine, monkeypatch):
    asked(monkeypatch, DaemonError("no kvtierd on x"))
    machine.put(SERVICE_SETTINGS, '[cpu]\ncapacity = "3 GiB"\n')
    found = gather(machine, socket=SERVICE_FOLDER / "kvtierd.sock")
    assert found.settings["cpu.capacity"] == 3 << 30
    assert only(node.settings, found) == ok(f"those of {SERVICE_SETTINGS}")


def test_they_are_no_other_daemons(machine, monkeypatch, tmp_path):
    asked(monkeypatch, DaemonError("no kvtierd on x"))
    machine.put(SERVICE_SETTINGS, '[cpu]\ncapacity = "3 GiB"\n')
    assert gather(machine, socket=tmp_path / "kvtierd.sock").settings["cpu.capacity"] == 4 << 30


def test_a_file_that_is_wrong_is_an_error(machine, tmp_path):
    file = tmp_path / "kvtier.toml"
    file.write_text("[cpu]\ncapacty = 1\n")
    with pytest.raises(ConfigError, match=r"did you mean 'cpu\.capacity'"):
        gather(machine, file)


def test_what_a_daemon_was_given():
    command = ["kvtierd", "--config=a.toml", "--set", "x.y=1", "--set=z.w=2", "--config", "b.toml"]
    assert given_to(command) == ("b.toml", ["x.y=1", "z.w=2"])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["kvtierd"], True),
        (["python3", "/venv/bin/kvtierd"], True),
        (["python3", "-P", "-c", "from kvtier.daemon import main; main()"], True),
        (["kvtier", "stats", "--socket", "x", "kvtierd"], False),
        ([], False),
    ],
    ids=["name", "script", "code", "argument", "nothing"],
)
def test_a_daemon_is_known_by_its_arguments(command, expected):
    assert is_kvtierd(command) == expected
