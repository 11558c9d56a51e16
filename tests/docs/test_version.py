"""The version comes from git's tags, and a tree without them has one all the same."""

import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import make_words
import pytest

import kvtier

ROOT = make_words.ROOT
SETTINGS = ("pyproject.toml", ".git_archival.txt", ".gitattributes")
OURS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": "/nonexistent"}


def git(folder: Path, *words: str) -> bytes:
    who = ("-c", "user.name=kvtier", "-c", "user.email=kvtier@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *who, *words], cwd=folder, env=os.environ | OURS, capture_output=True, check=True)
    return done.stdout


def version_of(tree: Path, **environment: str) -> str:
    """As a build of this tree would have it."""
    ask = "from setuptools_scm import get_version; print(get_version(root='.', **SETTINGS))"
    settings = tomllib.loads((tree / "pyproject.toml").read_text())["tool"]["setuptools_scm"]
    command = [sys.executable, "-W", "ignore", "-c", ask.replace("SETTINGS", repr(settings))]
    told = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "SETUPTOOLS_SCM", "PYTHONPATH"))}
    done = subprocess.run(command, cwd=tree, env=told | OURS | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What decides, without git."""
    made = tmp_path / "tree"
    made.mkdir()
    for name in SETTINGS:
        shutil.copy(ROOT / name, made / name)
    return made


@pytest.fixture
def checkout(tree: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "one")
    return tree


def unpacked(checkout: Path, to: Path) -> Path:
    """What `git archive` makes of it."""
    packed = to.with_suffix(".tar")
    packed.write_bytes(git(checkout, "archive", "HEAD"))
    with tarfile.open(packed) as archive:
        archive.extractall(to, filter="data")
    return to


def test_a_tag_is_the_version(checkout):
    git(checkout, "tag", "v1.2.3")
    assert version_of(checkout) == "1.2.3"


def test_a_commit_after_a_tag_is_a_development_version_of_the_next_and_names_itself(checkout):
    git(checkout, "tag", "v1.2.3")
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "two")
    short = git(checkout, "rev-parse", "--short", "HEAD").decode().strip()
    assert re.fullmatch(rf"1\.2\.4\.dev1\+g{short}\w*", version_of(checkout))


def test_without_a_tag_it_is_a_development_version_that_names_its_commit(checkout):
    assert re.fullmatch(r"0\.1(\.0)?\.dev1\+g[0-9a-f]{7,}", version_of(checkout))


def test_without_git_there_is_one_too(tree):
    assert version_of(tree) == "0.1.0.dev0"


def test_a_checkout_where_there_is_no_git_to_ask_has_one_too(checkout):
    assert version_of(checkout, PATH="/nonexistent") == "0.1.0.dev0"


def test_an_archive_of_a_tag_has_its_version(checkout, tmp_path):
    git(checkout, "tag", "v1.2.3")
    assert version_of(unpacked(checkout, tmp_path / "unpacked")) == "1.2.3"


def test_an_archive_without_a_tag_has_one_too(checkout, tmp_path):
    assert version_of(unpacked(checkout, tmp_path / "unpacked")) == "0.1.0.dev0"


def test_a_source_distribution_keeps_the_version_that_it_was_made_with(tree):
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.2\nName: kvtier\nVersion: 1.2.3\n")
    assert version_of(tree) == "1.2.3"


def test_what_is_installed_says_the_version_that_it_was_built_with():
    try:
        built = importlib.import_module("kvtier._version")
    except ModuleNotFoundError:
        pytest.skip("kvtier runs from its source here, and was not built")
    assert kvtier.__version__ == built.__version__ == importlib.metadata.version("kvtier")


def test_to_say_it_costs_no_look_at_what_is_installed():
    ask = (
        "import sys; before = set(sys.modules); import kvtier; print(kvtier.__version__, LOOK in set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask.replace("LOOK", "'importlib.metadata'")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [kvtier.__version__, "False"]
