"""kvtier doctor on engines, of machines that are made up."""

import pytest
from made_up_machine import Machine, facts_of, only, running

from kvtier.doctor import engines
from kvtier.doctor.findings import ok

VLLM = ("/venv/bin/python", "/venv/bin/vllm", "serve", "model")
KVTIER = ("--kv-transfer-config", '{"kv_connector":"KVTierConnector","kv_role":"kv_both"}')
CHECKS = (engines.hashes, engines.seeds)


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_where_no_engine_runs_there_is_nothing_to_say(machine):
    machine.process(7, "/usr/bin/python3", "-m", "http.server")
    assert [only(check, facts_of(machine)) for check in CHECKS] == [ok(engines.NONE)] * 2


@pytest.mark.parametrize(
    "command",
    [
        VLLM,
        ("vllm", "serve", "model"),
        ("python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "model"),
    ],
    ids=["script", "name", "module"],
)
def test_an_engine_is_known_by_its_arguments(command):
    assert engines.is_vllm(list(command))


@pytest.mark.parametrize(
    "command",
    [("VLLM::EngineCore",), ("vllm", "bench"), ("vi", "vllm.py"), ("grep", "vllm")],
    ids=["child", "bench", "editor", "grep"],
)
def test_other_processes_are_none(command):
    assert not engines.is_vllm(list(command))


# --- hashes --------------------------------------------------------------------------------------------------


def test_the_usual_hash_is_good_on_one_node(machine):
    machine.process(7, *VLLM, *KVTIER)
    assert only(engines.hashes, facts_of(machine)) == ok("vLLM, process 7: sha256")


def test_with_a_remote_it_is_a_warning(machine):
    machine.process(7, *VLLM, *KVTIER)
    found = only(engines.hashes, facts_of(machine, remote__url="redis://host"))
    assert found.level == "warn" and "sha256_cbor" in found.cure


@pytest.mark.parametrize(
    "option",
    [("--prefix-caching-hash-algo", "sha256_cbor"), ("--prefix_caching_hash_algo=sha256_cbor",)],
    ids=["dashes", "underscores"],
)
def test_the_hash_that_is_equal_everywhere_is_good_with_a_remote(machine, option):
    machine.process(7, *VLLM, *option)
    assert only(engines.hashes, facts_of(machine, remote__url="redis://host")) == ok("vLLM, process 7: sha256_cbor")


def test_a_hash_that_can_be_forged_is_bad(machine):
    machine.process(7, *VLLM, *KVTIER, "--prefix-caching-hash-algo=xxhash")
    found = only(engines.hashes, facts_of(machine))
    assert (found.level, found.cure) == ("bad", "start it with --prefix-caching-hash-algo sha256_cbor")


def test_of_an_engine_without_kvtier_it_is_a_warning(machine):
    machine.process(7, *VLLM, "--prefix-caching-hash-algo=xxhash")
    assert only(engines.hashes, facts_of(machine)).level == "warn"


def test_the_last_of_two_options_counts(machine):
    machine.process(7, *VLLM, "--prefix-caching-hash-algo=xxhash", "--prefix-caching-hash-algo", "sha256")
    assert only(engines.hashes, facts_of(machine)).said == "vLLM, process 7: sha256"


def test_an_option_without_a_value_ends_nothing(machine):
    machine.process(7, *VLLM, "--prefix-caching-hash-algo")
    assert only(engines.hashes, facts_of(machine)).said == "vLLM, process 7: sha256"


# --- seeds ---------------------------------------------------------------------------------------------------


def test_engines_with_one_seed_are_good(machine):
    machine.process(7, *VLLM, environ="HOME=/\0PYTHONHASHSEED=0")
    machine.process(8, *VLLM, environ="PYTHONHASHSEED=0\0")
    assert only(engines.seeds, facts_of(machine)) == ok("PYTHONHASHSEED: process 7: 0, process 8: 0")


def test_engines_with_different_seeds_are_a_warning(machine):
    machine.process(7, *VLLM, environ="HOME=/")
    machine.process(8, *VLLM, environ="PYTHONHASHSEED=0")
    found = only(engines.seeds, facts_of(machine))
    assert found.level == "warn"
    assert found.said == "PYTHONHASHSEED differs (process 7: not set, process 8: 0): these engines share no blocks"


def test_a_seed_that_changes_at_each_start_is_bad(machine):
    machine.process(7, *VLLM, environ="PYTHONHASHSEED=random")
    assert only(engines.seeds, facts_of(machine)).level == "bad"


def test_an_environment_that_is_not_for_us_is_said_to_be_so(machine):
    machine.process(7, *VLLM, environ=None)
    found = only(engines.seeds, facts_of(machine))
    assert found.level == "ok" and "run as root" in found.said


# --- connected -----------------------------------------------------------------------------------------------


def test_engines_that_connected_are_named(machine):
    machine.process(7, *VLLM, *KVTIER)
    state = running(engines=[{"engine": "a", "unpinned_bytes": 0}])
    assert only(engines.connected, facts_of(machine, state)) == ok("1 connected: a")


def test_an_engine_that_is_to_use_kvtier_and_does_not_is_a_warning(machine):
    machine.process(7, *VLLM, *KVTIER, uid=1234)
    found = only(engines.connected, facts_of(machine, running()))
    assert found.level == "warn"
    assert found.said == "vLLM (process 7 of user 1234) is to use kvtier, and none is connected"
    assert "/run/kvtier/kvtierd.sock" in found.cure


def test_an_engine_without_kvtier_is_not_missed(machine):
    machine.process(7, *VLLM)
    assert only(engines.connected, facts_of(machine, running())) == ok("none is connected")


def test_an_engine_that_finds_no_daemon_is_a_warning(machine):
    machine.process(7, *VLLM, *KVTIER)
    assert only(engines.connected, facts_of(machine)).level == "warn"
