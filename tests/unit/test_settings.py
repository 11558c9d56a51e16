"""Settings as the daemon is given them: a file, then --set."""

from pathlib import Path

import pytest

from kvtier.config import DAEMON, Config
from kvtier.errors import ConfigError
from kvtier.settings import WORDS, drive_folders, load


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "kvtier.toml"
    file.write_text('[cpu]\ncapacity = "1 GiB"\npin = false\n')
    return file


def test_without_anything_they_are_the_defaults():
    assert load(None, [])["cpu.pin"] is True


def test_those_of_the_file_count(file):
    assert (load(file, [])["cpu.capacity"], load(file, [])["cpu.pin"]) == (1 << 30, False)


def test_and_over_them_those_of_the_arguments(file):
    settings = load(file, ["cpu.capacity=2GiB", " log.level = debug "])
    assert (settings["cpu.capacity"], settings["cpu.pin"], settings["log.level"]) == (2 << 30, False, "debug")


def test_an_argument_without_a_value_is_an_error():
    with pytest.raises(ConfigError, match=r"--set cpu\.pin: write NAME=VALUE"):
        load(None, ["cpu.pin"])


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "missing", [])


@pytest.mark.parametrize("name", sorted(WORDS))
def test_a_word_that_nobody_knows_is_an_error_with_those_that_are(name):
    with pytest.raises(ConfigError, match=f"{name} = 'odd' is none of [a-z]"):
        load(None, [f"{name}=odd"])


def test_a_word_that_is_like_one_that_is_known_is_an_error_with_that_one():
    with pytest.raises(
        ConfigError, match=r"nvme\.codec = 'exp-12' is none of auto, none, exp12, expz; did you mean 'exp12'\?"
    ):
        load(None, ["nvme.codec=exp-12"])
    with pytest.raises(ConfigError, match=r"did you mean 'expz'\?"):
        load(None, ["remote.codec=exp_z"])


@pytest.mark.parametrize("name", ["nvme.codec", "remote.codec"])
def test_how_blocks_are_made_smaller_is_a_setting_but_not_with_loss(name):
    assert load(None, []).text(name) == "auto"
    for codec in ("none", "exp12", "expz"):
        assert load(None, [f"{name}={codec}"]).text(name) == codec
    with pytest.raises(
        ConfigError, match=rf'^{name} = .int8. would lose .* "codec": "int8" in .*kv_connector_extra_config'
    ):
        load(None, [f"{name}=int8"])


def test_what_is_wrong_in_a_file_names_it(file):
    file.write_text("[log]\nlevel = 'odd'\n")
    with pytest.raises(ConfigError, match=r"kvtier\.toml: log\.level = 'odd'"):
        load(file, [])


def test_drives_are_named_one_after_the_other():
    named = Config(DAEMON, {"nvme.paths": "/mnt/a , /mnt/b,"})
    assert drive_folders(named) == [Path("/mnt/a"), Path("/mnt/b")]
    assert drive_folders(Config(DAEMON, {})) == []
