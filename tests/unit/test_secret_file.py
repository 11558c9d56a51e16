"""The root secret's file: what nobody else may read, and what each mistake is cured by."""

import os
import re
from pathlib import Path

import pytest

from kvtier import secret_file
from kvtier.errors import ConfigError
from kvtier.secret_file import fresh_root, read_password, read_root, write_root

SETTING = "remote.secret_file"


def file_of(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(path: Path | str, read=read_root) -> str:
    with pytest.raises(ConfigError) as caught:
        read(str(path), SETTING)
    return str(caught.value)


def test_a_fresh_secret_is_read_as_it_was_written_and_only_its_owner_may(tmp_path):
    write_root(tmp_path / "secret")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert read_root(str(tmp_path / "secret"), SETTING).hex() == (tmp_path / "secret").read_text().strip()


def test_no_two_fresh_secrets_are_the_same():
    assert re.fullmatch("[0-9a-f]{64}", fresh_root())
    assert fresh_root() != fresh_root()


def test_a_secret_that_is_there_is_never_written_over(tmp_path):
    path = file_of(tmp_path, "something")
    with pytest.raises(ConfigError, match=r"is there already.*remove it first"):
        write_root(path)
    assert path.read_text() == "something"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"can't write .*no/secret: No such file or directory"):
        write_root(tmp_path / "no" / "secret")


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o666, 0o602])
def test_a_file_that_others_may_read_is_refused_with_the_command_that_cures_it(tmp_path, mode):
    path = file_of(tmp_path, fresh_root(), mode)
    assert refusal(path) == f"{SETTING}: others may read {path}: chmod 600 {path}"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_file_for_its_owner_alone_is_taken(tmp_path, mode):
    assert len(read_root(str(file_of(tmp_path, fresh_root(), mode)), SETTING)) == 32


def test_of_somebody_elses_file_the_group_may_be_how_we_read_it(tmp_path, monkeypatch):
    owner = os.geteuid()
    monkeypatch.setattr(secret_file.os, "geteuid", lambda: owner + 1)
    assert len(read_root(str(file_of(tmp_path, fresh_root(), 0o440)), SETTING)) == 32
    assert "others may read" in refusal(file_of(tmp_path, fresh_root(), 0o444))


def test_a_file_that_is_not_there_is_cured_by_kvtier_secret(tmp_path):
    path = tmp_path / "no"
    said = refusal(path)
    assert (
        said == f"{SETTING}: {path}: No such file or directory; `kvtier secret {path}` makes one; give all nodes the same"
    )


@pytest.mark.parametrize("text", ["", "hunter2", "ab" * 31, "ab" * 33, "zz" * 32, "ab" * 5000])
def test_what_is_no_secret_is_cured_by_kvtier_secret_and_not_shown(tmp_path, text):
    said = refusal(file_of(tmp_path, text))
    assert "doesn't hold 64 hex digits; `kvtier secret " in said
    assert not text or text not in said


def test_what_is_no_text_and_what_is_no_file_is_said(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"\xff" * 32)
    path.chmod(0o600)
    assert "is no text" in refusal(path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refusal(tmp_path / "pipe")


def test_a_name_alone_means_a_credential_of_systemd(tmp_path, monkeypatch):
    file_of(tmp_path, fresh_root())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert len(read_root("secret", SETTING)) == 32
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.chdir(tmp_path)
    assert len(read_root("secret", SETTING)) == 32


def test_a_password_is_what_stands_in_its_file(tmp_path):
    assert read_password(str(file_of(tmp_path, " p@ss word\n")), SETTING) == "p@ss word"
    assert "is empty" in refusal(file_of(tmp_path, "\n"), read_password)
    assert "others may read" in refusal(file_of(tmp_path, "p", 0o644), read_password)
