"""What install-service lays out, and what it leaves as it is."""

import argparse
import os
import sys
import tomllib
from pathlib import Path

import pytest

from kvtier import config
from kvtier.cli import install_service
from kvtier.cli.install_service import Piece, pieces
from kvtier.errors import ConfigError, DaemonError
from kvtier.secret_file import read_root

SHIPPED = Path(__file__).parents[2] / "systemd"
KVTIERD = Path("/opt/kvtier/bin/kvtierd")
PROMETHEUS = ("dashboard.json", "kvtier.rules.yml", "scrape.yml")
UNITS = "usr/local/lib/systemd/system"


def laid(root: Path, capsys, *arguments: str, kvtierd: Path | None = KVTIERD) -> dict[str, str]:
    """Runs the command; what it said of each file, by its path below the root."""
    parser = argparse.ArgumentParser()
    install_service.add_parser(parser.add_subparsers())
    given = ["install-service", "--root", str(root), "--key", *arguments]
    install_service.run(parser.parse_args([*given, "--kvtierd", str(kvtierd)] if kvtierd else given))
    lines = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.split("\nNext")[0].splitlines()]
    return {path.removeprefix(f"{root}/"): word.strip() for word, path in lines}


def test_all_that_systemd_needs_is_laid_out(tmp_path, capsys):
    assert set(laid(tmp_path, capsys)) == {
        f"{UNITS}/kvtierd.service",
        f"{UNITS}/kvtierd.socket",
        "usr/local/lib/sysusers.d/kvtier.conf",
        "usr/local/lib/tmpfiles.d/kvtier.conf",
        *(f"usr/local/share/man/{page}" for page in ("man1/kvtier.1", "man1/tier-stats.1", "man8/kvtierd.8")),
        *(f"usr/local/share/bash-completion/completions/{name}" for name in ("kvtier", "kvtierd", "tier-stats")),
        *(f"usr/local/share/zsh/site-functions/_{name}" for name in ("kvtier", "kvtierd", "tier-stats")),
        *(f"usr/local/share/kvtier/prometheus/{name}" for name in PROMETHEUS),
        "etc/kvtier/kvtier.toml",
        "etc/kvtier/key",
    }
    assert (
        "ExecStart=/opt/kvtier/bin/kvtierd --config /etc/kvtier/kvtier.toml\n"
        in (tmp_path / UNITS / "kvtierd.service").read_text()
    )


def test_the_key_is_its_owners_alone_and_the_rest_is_for_all_to_read_whatever_the_umask(tmp_path, capsys):
    before = os.umask(0o077)
    try:
        laid(tmp_path / "root", capsys)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "root").rglob("*")}
    assert modes.pop("key") == 0o600
    modes.pop("root", None)
    assert {mode for name, mode in modes.items() if "." in name and not name.endswith(".d")} == {0o644}
    assert (tmp_path / "root" / "etc" / "kvtier").stat().st_mode & 0o777 == 0o755
    assert len(read_root(str(tmp_path / "root" / "etc" / "kvtier" / "key"), "encryption.key_file")) == 32


def test_what_may_become_a_package_has_no_key_and_is_told_how_to_get_one(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    install_service.add_parser(parser.add_subparsers())
    install_service.run(parser.parse_args(["install-service", "--root", str(tmp_path), "--kvtierd", str(KVTIERD)]))
    assert "kvtier secret /etc/kvtier/key" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "etc" / "kvtier").iterdir()] == ["kvtier.toml"]


def test_settings_and_keys_that_are_there_stay_and_the_rest_is_renewed(tmp_path, capsys):
    laid(tmp_path, capsys)
    settings, key = tmp_path / "etc/kvtier/kvtier.toml", tmp_path / "etc/kvtier/key"
    settings.write_text("# mine\n")
    before = key.read_text()
    (tmp_path / UNITS / "kvtierd.service").write_text("of an older kvtier")
    said = laid(tmp_path, capsys)
    assert (said.pop("etc/kvtier/kvtier.toml"), said.pop("etc/kvtier/key")) == ("kept", "kept")
    assert said.pop(f"{UNITS}/kvtierd.service") == "written"
    assert set(said.values()) == {"unchanged"}
    assert (settings.read_text(), key.read_text()) == ("# mine\n", before)


def test_a_key_that_is_a_link_is_not_written_through(tmp_path, capsys):
    (tmp_path / "etc/kvtier").mkdir(parents=True)
    (tmp_path / "etc/kvtier/key").symlink_to(tmp_path / "elsewhere")
    assert laid(tmp_path, capsys)["etc/kvtier/key"] == "kept"
    assert not (tmp_path / "elsewhere").exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    said = laid(tmp_path / "root", capsys, "--dry-run")
    assert set(said.values()) == {"would be"}
    assert not (tmp_path / "root").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "usr").write_text("a file")
    with pytest.raises(DaemonError, match=r"^can't write .*kvtierd.service: "):
        laid(tmp_path, capsys)


# --- the pieces --------------------------------------------------------------------------------------------------


def piece(name: str, *drop_ins: str, **options: object) -> Piece:
    found = pieces(SHIPPED, "usr", options.pop("executable", KVTIERD), list(drop_ins), **options)  # type: ignore
    return next(piece for piece in found if piece.path.endswith(name))


def test_the_settings_of_a_service_differ_from_the_defaults_where_they_should():
    given = config.parse_toml(piece("kvtier.toml").text, "kvtier.toml")
    assert given == {name: tomllib.loads(line)[name.split(".")[1]] for name, line in install_service.LINES.items()
                     if not line.startswith("#") and name in {option.name for option in config.DAEMON}}  # fmt: skip
    config.Config(config.DAEMON, given)
    assert given["server.group"] == "kvtier" and given["metrics.listen"] == "127.0.0.1:9469"


def test_every_line_of_a_service_is_of_an_option():
    assert set(install_service.LINES) <= {option.name for option in config.DAEMON}


def test_drop_ins_come_when_they_are_asked_for():
    assert "DeviceAllow=char-nvidia*" in piece("kvtierd.service.d/gpu.conf", "gpu").text
    assert "IPAddressAllow=any" in piece("kvtierd.service.d/network.conf", "network").text
    assert not [p for p in pieces(SHIPPED, "usr", KVTIERD, []) if ".d/gpu" in p.path or ".d/network" in p.path]


def test_a_root_secret_that_is_there_is_given_to_kvtierd():
    assert "\n#LoadCredential=root:/etc/kvtier/root\n" in piece("kvtierd.service").text
    assert "\nLoadCredential=root:/etc/kvtier/root\n" in piece("kvtierd.service", with_root=True).text


@pytest.mark.parametrize(
    ("executable", "written"),
    [("/opt/a b/kvtierd", '"/opt/a b/kvtierd"'), ("/opt/50%/kvtierd", "/opt/50%%/kvtierd")],
    ids=["blank", "percent"],
)
def test_an_odd_path_is_written_as_systemd_reads_it(executable, written):
    assert f"ExecStart={written} --config" in piece("kvtierd.service", executable=Path(executable)).text


def test_a_path_that_systemd_would_not_find_is_refused():
    with pytest.raises(ConfigError, match="name it by its whole path"):
        piece("kvtierd.service", executable=Path("bin/kvtierd"))


def test_a_kvtierd_in_somebodys_home_is_refused_with_what_to_do(tmp_path, capsys, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kvtierd").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert laid(tmp_path / "root", capsys, "--dry-run", kvtierd=None)
    monkeypatch.setattr(install_service.pwd, "getpwuid", lambda uid: argparse.Namespace(pw_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"ProtectHome=.*python3 -m venv /opt/kvtier"):
        laid(tmp_path / "root", capsys, "--dry-run", kvtierd=None)


def test_an_installation_without_kvtierd_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="name kvtierd by --kvtierd"):
        laid(tmp_path, capsys, kvtierd=None)
