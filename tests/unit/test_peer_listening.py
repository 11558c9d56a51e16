"""Where a kvtierd serves its peers: what is wrong is said before anything listens."""

import os
from pathlib import Path

import pytest
from remote.certificates import Authority
from remote.servers import Absent

from kvtier import config
from kvtier.config import Config
from kvtier.errors import ConfigError
from kvtier.peer.listening import listening


def listens(**given: object) -> object:
    named = {f"peer.{name}": str(value) for name, value in given.items()}
    return listening(Config(config.DAEMON, {"remote.secret_file": "secret", **named}))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    try:
        authority = Authority(tmp_path_factory.mktemp("certificates"))
    except Absent as reason:
        pytest.skip(str(reason))
    mine = authority.sign("server")
    return {"certificate": mine.certificate, "key": mine.key, "client_ca": authority.certificate}


def test_it_serves_nobody_unless_it_is_told():
    assert listens() is None


@pytest.mark.parametrize("address", ["127.0.0.1:7070", "localhost:7070", "[::1]:7070", "127.8.9.1:7070"])
def test_without_tls_it_serves_this_machine(address):
    assert listens(listen=address) == (address, None)


@pytest.mark.parametrize("address", ["0.0.0.0:7070", "[::]:7070", "10.1.2.3:7070", "node-a:7070", "127.0.0.1.org:7070"])
def test_without_tls_it_serves_no_other(address):
    with pytest.raises(ConfigError, match=r"without TLS.*Set peer\.certificate, peer\.key and peer\.client_ca"):
        listens(listen=address)


def test_with_tls_it_serves_all(files):
    found = listens(listen="0.0.0.0:7070", **files)
    assert found.address == "0.0.0.0:7070"
    assert found.certificates.pems == (
        files["client_ca"].read_bytes(), files["certificate"].read_bytes(), files["key"].read_bytes()
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["certificate", "key", "client_ca"])
def test_with_tls_it_needs_all_three_files(files, missing):
    with pytest.raises(ConfigError, match=rf"needs peer\.{missing}, too"):
        listens(listen="127.0.0.1:7070", **{name: file for name, file in files.items() if name != missing})


@pytest.mark.parametrize(
    "address", ["7070", ":7070", "127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "::1:7070", "a:0", "a:65536"]
)
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(ConfigError, match="write HOST:PORT"):
        listens(listen=address)


def test_nodes_share_a_secret():
    with pytest.raises(ConfigError, match="`kvtier secret FILE` makes one"):
        listening(Config(config.DAEMON, {"peer.listen": "127.0.0.1:7070"}))


def test_files_without_an_address_are_a_mistake(files):
    with pytest.raises(ConfigError, match=r"for peer\.listen, and that is not set"):
        listens(certificate=files["certificate"])


def test_a_key_that_others_may_read_is_refused(files, tmp_path):
    key = tmp_path / "open.key"
    key.write_bytes(files["key"].read_bytes())
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=rf"peer\.key: others may read .*chmod 600 {key}"):
        listens(listen="127.0.0.1:7070", **{**files, "key": key})


@pytest.mark.parametrize("which", ["certificate", "key", "client_ca"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_of_no_use_is_named(files, tmp_path, which, content):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(ConfigError, match=str(file) if which != "key" or content is None else r"peer\.(key|certificate)"):
        listens(listen="127.0.0.1:7070", **{**files, which: file})


def test_files_that_changed_are_read_again_once_they_go_together(files, tmp_path):
    mine = {name: tmp_path / file.name for name, file in files.items()}
    for name, file in mine.items():
        file.write_bytes(files[name].read_bytes())
        file.chmod(0o600)
    certificates = listens(listen="127.0.0.1:7070", **mine).certificates
    assert certificates.fresh() is None
    renewed = Authority(tmp_path / "renewed").sign("server")
    mine["certificate"].write_bytes(renewed.certificate.read_bytes())
    assert certificates.fresh() is None, "the key is still the former one's"
    mine["key"].write_bytes(renewed.key.read_bytes())
    os.utime(mine["key"], ns=(1, 1))
    fresh = certificates.fresh()
    assert (fresh.certificate, fresh.key) == (renewed.certificate.read_bytes(), renewed.key.read_bytes())
    assert certificates.fresh() is None
