"""An authority that signs certificates for tests, by the openssl program."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from remote.servers import Absent

ALL = "kvtier:namespace:*"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Signed(NamedTuple):
    certificate: Path
    key: Path


class Authority:
    def __init__(self, folder: Path, name: str = "nodes") -> None:
        self._program = shutil.which("openssl") or ""
        if not self._program:
            raise Absent("no openssl to make certificates with")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = folder / f"{name}-ca.crt", folder / f"{name}-ca.key"
        self._say(
            "req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate
        )

    def sign(self, name: str, *uris: str, hosts: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> Signed:
        """For a node, as client and as server. Over what there is of that name."""
        key, request, certificate = (self._folder / f"{name}.{ending}" for ending in ("key", "csr", "crt"))
        names = ",".join((hosts, *(f"URI:{uri}" for uri in uris)))
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._say("req", *_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        self._say("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
                  "-days", str(days), "-extfile", extensions, "-out", certificate)  # fmt: skip
        return Signed(certificate, key)

    def _say(self, *words: object) -> None:
        subprocess.run([self._program, *map(str, words)], check=True, capture_output=True)
