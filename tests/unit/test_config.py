"""Settings: checked at once, and a wrong one is named together with the cure."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import (
    CONNECTOR,
    DAEMON,
    GIB,
    KIB,
    MIB,
    TIB,
    Config,
    example_toml,
    format_size,
    parse_size,
    parse_toml,
)
from kvtier.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "systemd" / "kvtier.toml"


def daemon(**given: object) -> Config:
    """daemon(cpu__capacity="1GiB") sets cpu.capacity."""
    return Config(DAEMON, {name.replace("__", "."): value for name, value in given.items()})


def test_without_settings_everything_is_as_declared():
    config = daemon()
    assert config["cpu.capacity"] == 4 * GIB
    assert config["cpu.pin"] is True
    assert config.text("log.level") == "info"
    assert all(config[option.name] == option.default for option in DAEMON)


def test_every_default_is_within_its_own_range_and_says_why_one_would_change_it():
    for options in (DAEMON, CONNECTOR):
        Config(options, {})
        assert all(option.why.endswith(".") for option in options)
        assert len({option.name for option in options}) == len(options)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1048576", MIB),
        ("64 KiB", 64 * KIB),
        ("512MiB", 512 * MIB),
        ("1.5gib", 3 * GIB // 2),
        (" 2 TB ", 2 * TIB),
        ("0B", 0),
    ],
)
def test_a_size_is_written_with_or_without_a_unit(written, size):
    assert parse_size(written) == size


@pytest.mark.parametrize("written", ["", "GiB", "4 GiB more", "-1", "4 gigs", "0x10"])
def test_what_is_no_size_is_refused(written):
    with pytest.raises(ValueError, match=r".*"):
        parse_size(written)


@given(st.integers(1, 9999), st.sampled_from([1, KIB, MIB, GIB, TIB]))
def test_a_size_is_shown_as_one_can_write_it(n, scale):
    shown = parse_size(format_size(n * scale))
    assert shown == pytest.approx(n * scale, rel=1e-3)


def test_settings_are_taken_in_the_type_of_their_option():
    config = daemon(cpu__capacity="1GiB", cpu__pin="no", lend__max_share="0.25", server__max_clients="7")
    assert config["cpu.capacity"] == GIB
    assert config["cpu.pin"] is False
    assert config.number("lend.max_share") == 0.25
    assert config.count("server.max_clients") == 7


def test_a_whole_number_is_a_share_too():
    with pytest.raises(ConfigError, match=r"lend.max_share = 1 is not between 0.001 and 0.5"):
        daemon(lend__max_share=1)


def test_an_unknown_setting_is_refused_with_the_nearest_that_is_known():
    with pytest.raises(ConfigError, match=r"unknown setting 'cpu.capcity'; did you mean 'cpu.capacity'\?"):
        Config(DAEMON, {"cpu.capcity": 1})


def test_a_setting_that_is_like_no_other_is_refused_with_all_that_are_known():
    with pytest.raises(ConfigError, match=r"unknown setting 'zzz'; known are server.socket, .*log.level"):
        Config(DAEMON, {"zzz": 1})


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("cpu.capacity", "1 MiB", "cpu.capacity = 1 MiB is not between 32 MiB and 64 TiB"),
        ("cpu.capacity", "much", "cpu.capacity = 'much' is no bytes"),
        ("cpu.capacity", 1.5, "cpu.capacity = 1.5 must be bytes"),
        ("cpu.pin", "perhaps", "cpu.pin = 'perhaps' is no yes/no"),
        ("cpu.pin", 1, "cpu.pin = 1 must be yes/no"),
        ("server.max_clients", True, "server.max_clients = True must be count"),
        ("server.max_clients", 0, "server.max_clients = 0 is not between 1 and 65536"),
        ("server.socket", 5, "server.socket = 5 must be path"),
        ("lend.max_share", float("nan"), "lend.max_share = nan is not between 0.001 and 0.5"),
        ("log.level", None, "log.level = None must be text"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value, complaint):
    with pytest.raises(ConfigError) as caught:
        Config(DAEMON, {name: value}, where="file.toml: ")
    assert str(caught.value).startswith(f"file.toml: {complaint}")


def test_a_toml_file_has_one_table_a_subject():
    assert parse_toml('[cpu]\ncapacity = "1GiB"\npin = false\n', "f") == {"cpu.capacity": "1GiB", "cpu.pin": False}


def test_a_setting_outside_a_table_is_kept_so_that_it_is_refused_by_name():
    assert parse_toml("capacity = 1", "f") == {"capacity": 1}
    with pytest.raises(ConfigError, match=r"unknown setting 'capacity'; did you mean 'gpu\.capacity'"):
        Config(DAEMON, parse_toml("capacity = 1", "f"))


def test_a_broken_toml_file_is_named():
    with pytest.raises(ConfigError, match=r"^etc/kvtier.toml: .*line 1"):
        parse_toml("cpu.capacity = = 1", "etc/kvtier.toml")


def test_the_example_sets_nothing_as_it_stands():
    assert parse_toml(example_toml(), "example") == {}


def test_the_example_shows_every_option_with_its_default():
    uncommented = re.sub(r"^#(?=[a-z_]+ = )", "", example_toml(), flags=re.MULTILINE)
    shown = parse_toml(uncommented, "example")
    assert list(shown) == [option.name for option in DAEMON]
    config = Config(DAEMON, shown)
    assert {option.name: config[option.name] for option in DAEMON} == {o.name: o.default for o in DAEMON}


def test_the_example_that_is_installed_is_the_one_of_this_version():
    """When not: kvtierd --print-config > systemd/kvtier.toml"""
    assert EXAMPLE.read_text().rstrip() == example_toml().rstrip()
