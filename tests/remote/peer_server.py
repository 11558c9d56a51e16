"""A kvtierd that serves its peers, as a server for the tests of remotes; and values that are blocks."""

import os
import socket
import sys
from pathlib import Path

import numpy as np
from kvtierd import root_file
from remote.certificates import ALL, Authority, Signed
from remote.kinds import Value
from remote.servers import LOOPBACK, Server, free_ports

from kvtier.block import SLOT_UNIT
from kvtier.tiers.remote import envelope
from kvtier.tiers.remote.envelope import DIGEST_BYTES, HEADER_BYTES, Header

SIZES = 7


class PeerServer(Server):
    """`with_tls`: it shows a certificate and wants one. `settings` as --set takes them."""

    name = "kvtierd"

    def __init__(self, folder: Path, with_tls: bool = False, **settings: object) -> None:
        super().__init__(folder)
        (self.port,) = free_ports(1)
        self.socket = folder / "kvtierd.sock"
        self.authority = Authority(folder / "certificates") if with_tls else None
        self._settings: dict[str, object] = {
            "cpu.capacity": "256 MiB", "server.socket": self.socket, "cost.state": folder / "state", "cost.calibrate_s": 0,
            "remote.secret_file": root_file(folder), "peer.listen": f"{LOOPBACK}:{self.port}", "peer.write_rate": "100 GiB",
        }  # fmt: skip
        if self.authority is not None:
            mine = self.authority.sign("server")
            self._settings |= {"peer.client_ca": self.authority.certificate, "peer.certificate": mine.certificate,
                               "peer.key": mine.key}  # fmt: skip
        self._settings |= settings

    def command(self) -> list[str]:
        program = [sys.executable, "-P", "-c", "from kvtier.daemon import main; main()"]
        return program + [f"--set={name}={value}" for name, value in self._settings.items()]

    def answers(self) -> bool:
        with socket.socket() as probe:  # it listens for its engines before
            return probe.connect_ex((LOOPBACK, self.port)) == 0

    @property
    def url(self) -> str:
        return f"grpc://{LOOPBACK}:{self.port}" if self.authority is None else f"grpcs://localhost:{self.port}"

    def settings_of(self, client: Signed | None = None) -> dict[str, object]:
        """With a client's certificate; one that may do all if none is given."""
        if self.authority is None:
            return {}
        client = client or self.authority.sign("client", ALL)
        return {"ca_file": str(self.authority.certificate), "cert_file": str(client.certificate),
                "key_file": str(client.key)}  # fmt: skip


class BlockValue(Value):
    """A block: its size is one of a slot, its header says whose it is."""

    @classmethod
    def random(cls, size: int) -> "BlockValue":
        """Two of different sizes are of different sizes mostly."""
        size = rounded(size)
        return cls(b"", bytearray(os.urandom(size)), bytearray(HEADER_BYTES), bytearray(size))

    def head(self, name: str) -> bytes:
        namespace, _, key = name.partition("/")
        digest, content = bytes.fromhex(namespace).ljust(DIGEST_BYTES, b"."), np.frombuffer(self.body, np.uint8)
        checksum = envelope.checksum_of(bytes.fromhex(key), content)
        self.header = envelope.pack(Header(bytes.fromhex(key), len(self.body), checksum, digest, 0))
        return self.header


def rounded(size: int) -> int:
    """To a block's: small ones to so many sizes, for an arena has few slabs."""
    units = -(-size // SLOT_UNIT)
    return SLOT_UNIT * (units if units > SIZES else 1 + size % SIZES)
