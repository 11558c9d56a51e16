"""kvtier simulate and kvtier size, as one types them."""

import argparse
import json
import sys

import pytest
from conversations import lines

from kvtier.cli import simulate, size
from kvtier.errors import ConfigError


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    for command in (simulate, size):
        command.add_parser(commands)
    return parser.parse_args(arguments)


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(lines(seed=5, sessions=60)))
    return str(path)


def simulated(capsys, *arguments: str) -> dict:
    simulate.run(parsed("simulate", *arguments, "--json", "--processes", "1"))
    return json.loads(capsys.readouterr().out)


def test_hit_rates_alone(trace, capsys):
    found = simulated(capsys, trace, "--hits-only", "--capacities", "10%,50%", "--policy", "lru,min,infinite")
    rates = {(row["policy"], row["blocks"]): row["rate"] for row in found["hit_rates"]}
    low, high = sorted({blocks for policy, blocks in rates if policy == "lru"})
    assert rates["lru", low] <= rates["min", low] <= rates["min", high]
    assert not found["arms"]


def test_arms_and_what_if(trace, capsys):
    found = simulated(capsys, trace, "--cpu", "4GiB", "--gpu-cache", "1GiB", "--what-if", "64GiB", "--engines", "2")
    assert list(found["arms"]) == ["none", "always", "static", "kvtier", "oracle"]
    assert found["what_if"]["hit_rate"] > found["arms"]["kvtier"]["hit_rate"]
    assert found["node"]["kv_bytes_per_token"] == 128 * 1024


def test_codecs_of_the_drives(trace, capsys):
    tiers = ("--gpu", "a100", "--cpu", "2GiB", "--gpu-cache", "1GiB", "--nvme", "16GiB", "--nvme-dwpd", "100")
    found = simulated(capsys, trace, *tiers, "--arms", "kvtier", "--codec", "none,exp12,expz", "--what-if", "1GiB")
    assert found["node"]["nvme_codec"] == "none" and list(found["codecs"]) == ["exp12", "expz"]
    raw, exp12 = found["arms"]["kvtier"], found["codecs"]["exp12"]
    assert exp12["nvme_hit_rate"] > raw["nvme_hit_rate"] and exp12["gpu_s_saved"] > raw["gpu_s_saved"]
    assert found["what_if"]["counters"] != exp12["counters"]
    remote = {row["codec"]: row for row in found["break_even"] if row["tier"] == "remote"}
    assert remote["expz"]["tokens"] < remote["exp12"]["tokens"] < remote["none"]["tokens"]
    nvme = {row["codec"]: row for row in found["break_even"] if row["tier"] == "nvme"}
    assert (nvme["none"]["ratio"], nvme["exp12"]["ratio"], remote["exp12"]["ratio"]) == (1.0, 1.3264, 1.33)


def test_one_codec_is_that_of_all_arms(trace, capsys):
    tiers = ("--cpu", "2GiB", "--gpu-cache", "1GiB", "--nvme", "8GiB", "--nvme-dwpd", "100", "--arms", "always")
    found = simulated(capsys, trace, *tiers, "--codec", "exp12")
    assert found["node"]["nvme_codec"] == "exp12" and "codecs" not in found
    assert found["arms"]["always"]["hit_rate"] > simulated(capsys, trace, *tiers)["arms"]["always"]["hit_rate"]


def test_tables_for_people(trace, capsys):
    simulate.run(parsed("simulate", trace, "--arms", "none,kvtier", "--what-if", "64GiB", "--cpu", "20%", "--nvme", "2TiB",
                        "--codec", "exp12,none"))  # fmt: skip
    said = capsys.readouterr()
    assert "infinite" in said.out and "TTFT mean" in said.out and "points)" in said.out
    assert "as kvtierd decides" in said.out
    assert "2 TiB at 6 GB/s with exp12" in said.out and "fetching them pays from" in said.out
    room = [line.split()[:3] for line in said.out.splitlines() if "TiB" in line and line.startswith(("exp12", "none"))]
    assert room == [["exp12", "2.653", "TiB"], ["none", "2", "TiB"]]


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["--model", "gpt-9"], "name a config.json"),
        (["--gpu", "abacus"], "there is h100"),
        (["--cpu", "lots"], "write it like 512GiB"),
        (["--cpu", "1MiB"], "--cpu 1 MiB: less than 32 blocks; give it 2 GiB or more"),
        (["--nvme", "1GiB"], "less than 64 blocks"),
        (["--arms", "always,maybe"], "no arm maybe; there is none, always"),
        (["--policy", ""], "no policy is named"),
        (["--what-if", "1GiB", "--hits-only"], "drop one"),
        (["--what-if", "1GiB", "--arms", "none"], "name it there"),
        (["--codec", "lz4"], "no codec lz4; there is none, exp12"),
        (["--codec", "exp12"], "give them room with --nvme"),
        (["--codec", "none,exp12", "--nvme", "1TiB", "--arms", "none"], "--codec is asked of the arm kvtier"),
        (["--codec", "exp12", "--nvme", "1TiB", "--kv-dtype", "fp8"], "a cache of fp8 is left as it is"),
        (["--remote-gbs", "0"], "it must be above 0"),
        (["--nvme-gbs", "0"], "it must be above 0"),
        (["--engines", "-1"], "it must be 0 or more"),
        (["--tp", "3"], "can't be split over 3"),
        (["--block-tokens", "64"], "try --block-tokens 512"),
        (["--plot", "somewhere.txt"], "end it in .png"),
        (["--plot", "/nowhere/at/all.png"], "make it first"),
    ],
)
def test_what_is_wrong_is_told_with_its_cure(trace, arguments, cure, monkeypatch):
    monkeypatch.setattr("kvtier.replay.picture.importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=cure):
        simulate.run(parsed("simulate", trace, *arguments))


def test_without_matplotlib_the_cure_is_named_before_any_work(trace, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("kvtier.replay.picture.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'kvtier\[plot\]'"):
        simulate.run(parsed("simulate", trace, "--plot", "x.png"))


def test_a_picture(trace, tmp_path, capsys):
    simulated(capsys, trace, "--arms", "none,always", "--plot", str(tmp_path / "x.png"), "--cpu", "4GiB")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_size_as_json(capsys):
    size.run(parsed("size", "llama-3-70b", "deepseek-v3", "--tp", "8", "--json"))
    llama, deepseek = json.loads(capsys.readouterr().out)["models"]
    assert llama["bytes_per_token"] == 320 * 1024 and llama["bytes_per_token_of_rank"] == 40 * 1024
    assert deepseek["bytes_per_token"] == deepseek["bytes_per_token_of_rank"] == 70272
    assert "once, not once a rank" in deepseek["notes"][0]


def test_size_of_all_that_is_known(capsys):
    size.run(parsed("size", "--kv-dtype", "fp8"))
    said = capsys.readouterr().out
    assert "MQA" in said and "MLA" in said and "64 KiB" in said


def test_size_counts_what_a_codec_brings_on_drives(capsys):
    """A block of 16 tokens has 2 MiB, which are 256 steps; exp12 makes 193 of them. fp8 it leaves alone."""
    found = {}
    for codec, dtype in (("none", "auto"), ("exp12", "auto"), ("exp12", "fp8")):
        size.run(parsed("size", "llama-3-8b", "--codec", codec, "--kv-dtype", dtype, "--json"))
        (found[codec, dtype],) = json.loads(capsys.readouterr().out)["models"]
    raw, exp12, fp8 = found.values()
    assert (raw["nvme_bytes_per_block"], exp12["nvme_bytes_per_block"]) == (2 << 20, 193 << 13)
    assert raw["tokens_in_1_tib_nvme"] == 8_388_608
    assert exp12["tokens_in_1_tib_nvme"] == 2**40 // (193 << 13) * 16
    assert (fp8["codec"], fp8["nvme_bytes_per_block"]) == ("none", 1 << 20)


def test_size_with_no_rank(capsys):
    with pytest.raises(ConfigError, match="at least one rank"):
        size.run(parsed("size", "--tp", "0"))
