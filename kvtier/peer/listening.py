"""Where a kvtierd serves its peers, as its settings say."""

from typing import NamedTuple

from kvtier.config import Config
from kvtier.errors import ConfigError
from kvtier.peer import is_loopback
from kvtier.peer.certificates import Certificates

FILES = ("peer.client_ca", "peer.certificate", "peer.key")


class Listening(NamedTuple):
    address: str  # as gRPC names it
    certificates: Certificates | None  # None: without TLS


def listening(settings: Config) -> Listening | None:
    """None: nowhere. ConfigError names the setting and the cure."""
    address = settings.text("peer.listen")
    ca, certificate, key = files = [settings.text(name) for name in FILES]
    if not address:
        if any(files):
            raise ConfigError("peer.certificate, peer.key and peer.client_ca are for peer.listen, and that is not set")
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536 or (":" in host and host[0] != "["):
        raise ConfigError(f"peer.listen = {address!r}: write HOST:PORT, or [IPV6]:PORT")
    if not settings.text("remote.secret_file"):
        raise ConfigError(
            "peer.listen needs remote.secret_file: nodes find each other's blocks by a secret that they share; "
            "`kvtier secret FILE` makes one"
        )
    if all(files):
        return Listening(address, Certificates(ca, certificate, key, settings=FILES))
    if any(files):
        missing = " and ".join(name for name, file in zip(FILES, files) if not file)
        raise ConfigError(f"peer.listen: with TLS it needs {missing}, too")
    if not is_loopback(host.strip("[]")):
        raise ConfigError(
            f"peer.listen = {address!r} without TLS: whoever gets there could read and write blocks. Set peer.certificate, "
            "peer.key and peer.client_ca, or listen on 127.0.0.1"
        )
    return Listening(address, None)
