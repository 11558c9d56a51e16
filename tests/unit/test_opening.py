"""What the settings of a remote mean, before anything is asked of it: whose login, whose secret, and what is shown. And by
which codecs the tiers below write."""

import os
from pathlib import Path

import pytest

from kvtier import opening
from kvtier.block import PLACE_GRAIN
from kvtier.codec import RAW, Codec
from kvtier.config import DAEMON, Config
from kvtier.errors import ConfigError, DaemonError
from kvtier.estimators import Link
from kvtier.secret_file import fresh_root
from kvtier.tiers.remote import KINDS, settings_of, shown
from kvtier.tiers.remote.redis import SETTINGS, RedisRemote

PASSWORD = "a p@ss/word"


def settings(**remote: object) -> Config:
    """settings(url="redis://far") sets remote.url."""
    return Config(DAEMON, {f"remote.{name}": value for name, value in remote.items()})


def file_of(folder: Path, text: str) -> Path:
    path = folder / "file"
    path.write_text(text)
    path.chmod(0o600)
    return path


def refusal(**remote: object) -> str:
    with pytest.raises(ConfigError) as caught:
        opening.remote_store(settings(**remote))
    return str(caught.value)


# --- the root secret ---------------------------------------------------------------------------------------------


def test_without_a_remote_no_secret_is_needed_but_one_that_is_given_counts(tmp_path):
    root = fresh_root()
    assert opening.shared_root(settings()) == b""
    assert opening.shared_root(settings(secret_file=str(file_of(tmp_path, root)))).hex() == root


def test_a_remote_needs_a_secret_and_the_refusal_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"remote\.url needs remote\.secret_file: .*`kvtier secret FILE` makes one"):
        opening.shared_root(settings(url="redis://far"))
    root = fresh_root()
    given = settings(url="redis://far", secret_file=str(file_of(tmp_path, root)))
    assert opening.shared_root(given).hex() == root


# --- who we are there --------------------------------------------------------------------------------------------


def test_no_url_is_no_remote():
    assert opening.remote_store(settings()) is None


def test_a_kind_is_told_what_was_set_in_its_own_words():
    given = {"username": "me", "password": "p", "endpoint": "http://far", "region": ""}
    assert settings_of("s3://bucket", given, {}) == {
        "access_key_id": "me", "secret_access_key": "p", "endpoint": "http://far",
    }  # fmt: skip
    assert settings_of("az://box", given, {}) == {"account_name": "me", "account_key": "p", "endpoint": "http://far"}
    assert settings_of("redis://far", {"username": "me", "password": "p"}, {}) == {"username": "me", "password": "p"}


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster"])
def test_what_is_taken_of_kvtierds_settings_the_kind_knows(scheme):
    assert set(KINDS[scheme].takes.values()) <= set(SETTINGS)


def test_what_a_kind_has_no_use_for_is_refused_with_what_it_takes():
    assert refusal(url="redis://far", region="north") == (
        "remote.region: a remote by redis:// takes remote.username, remote.password_file"
    )
    assert refusal(url="file:///folder", username="me") == "remote.username: a remote by file:// takes none of them"


def test_the_password_is_that_of_its_file_or_else_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(opening.PASSWORD_VARIABLE, "of the environment")
    given: list[object] = []
    monkeypatch.setattr(opening, "open_remote", lambda url, login: given.append(login))
    opening.remote_store(settings(url="redis://far"))
    opening.remote_store(settings(url="redis://far", password_file=str(file_of(tmp_path, PASSWORD))))
    opening.remote_store(settings(url="file:///folder"))
    assert given == [{"password": "of the environment"}, {"password": PASSWORD}, {}], "file:// has no use for one"


def test_a_password_in_the_url_is_refused_and_not_repeated():
    said = refusal(url="redis://me:hunter2@far")
    assert said.startswith("remote.url has a password in it") and said.endswith("remote.password_file")
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "url",
    ["redis://:hunter2/x@far", "redis://:hunter2?x@far", "redis://:hunter2#x@far", "redis://[hunter2", "redis://:hunter2[@far",
     "redis://:hunter2:x@far", "redis://me:hunter2@[far"],
)  # fmt: skip
def test_a_url_that_makes_no_sense_is_refused_without_what_may_be_half_a_password(url):
    assert "hunter2" not in refusal(url=url)


def test_a_kind_that_is_none_is_refused_with_all_that_are():
    assert "no kind of remote is 'http'" in refusal(url="http://far")
    assert "no kind of remote is 'far'" in refusal(url="far:6379")


def test_a_good_remote_is_opened_and_nothing_is_asked_of_it():
    remote = opening.remote_store(settings(url="redis://nobody.invalid:1"))
    assert isinstance(remote, RedisRemote)


# --- what is shown -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://far:6379/3", "redis://far:6379/3"),
        ("redis://me:hunter2@far:6379", "redis://far:6379"),
        ("redis://me:hunter2@/run/its.sock", "redis:///run/its.sock"),
        ("redis+cluster://me@one:1,two:2", "redis+cluster://one:1,two:2"),
        ("s3://bucket/some/prefix?secret=hunter2#hunter2", "s3://bucket/some/prefix"),
        ("file:///folder", "file:///folder"),
    ],
)
def test_who_logs_in_is_not_shown(url, seen):
    assert shown(url) == seen


def test_no_option_holds_a_password():
    """What is set stands in files that others read, and in `ps`."""
    assert [option.name for option in DAEMON if "password" in option.name] == ["remote.password_file"]
    assert os.environ.get(opening.PASSWORD_VARIABLE) is None


# --- codecs --------------------------------------------------------------------------------------------------------------

MIB = 1024**2
FAST = Link(0.001, 1e8)  # a slow one, so that any codec is fast enough


@pytest.fixture
def no_zstd(monkeypatch) -> None:
    """A machine without it."""
    monkeypatch.setattr(opening, "why_not", lambda codec: "libzstd is not here" if codec.name == "expz" else "")


@pytest.mark.usefixtures("no_zstd")
@pytest.mark.parametrize("name", ["nvme.codec", "remote.codec"])
def test_a_codec_that_is_set_and_that_this_machine_lacks_is_an_error_with_the_cure(name):
    with pytest.raises(
        DaemonError, match=rf"can't have {name} = expz: libzstd is not here; install .* or set {name} = auto"
    ):
        opening.require_codecs(Config(DAEMON, {name: "expz"}))


@pytest.mark.usefixtures("no_zstd")
@pytest.mark.parametrize("codec", ["auto", "exp12", "none"])
def test_without_it_everything_else_is_no_error(codec):
    opening.require_codecs(Config(DAEMON, {"nvme.codec": codec, "remote.codec": codec}))


@pytest.mark.usefixtures("no_zstd")
def test_auto_goes_without_what_this_machine_lacks_and_says_why():
    coding = opening.coding_of(Config(DAEMON, {}), "nvme", 2, PLACE_GRAIN, FAST)
    assert coding.choose(0, MIB)[0] == Codec("exp12")
    assert coding.snapshot()["codecs"]["expz"]["why_not"] == "libzstd is not here"


def test_each_tier_has_its_own_setting():
    settings = Config(DAEMON, {"nvme.codec": "none", "remote.codec": "exp12"})
    nvme, remote = (opening.coding_of(settings, tier, 2, 1, FAST) for tier in ("nvme", "remote"))
    assert (nvme.wanted, remote.wanted) == ("none", "exp12")
    assert nvme.choose(0, MIB) == (RAW, MIB)
    assert remote.choose(0, MIB)[0] == Codec("exp12")
