"""Files of certificates: read, checked against each other, and read again when they have changed.

Certificates are renewed while a daemon runs. Whoever makes connections asks `fresh` before each; files that don't go
together, as while they are being written, leave what there was.
"""

import logging
import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvtier.errors import ConfigError

log = logging.getLogger("kvtierd")

FILE_BYTES_MAX = 1024**2


class Pems(NamedTuple):
    """What the files hold; None where none is named."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


class Certificates:
    def __init__(self, ca: str, certificate: str, key: str, *, settings: tuple[str, str, str]) -> None:
        """Paths; empty where there is none. `settings`: how each is called in an error. ConfigError: they are of no use."""
        self._paths, self._settings = (ca, certificate, key or certificate), settings
        self._seen = self._stamps()
        self.pems = self._read()

    def fresh(self) -> Pems | None:
        """What there is now; None when nothing has changed, or when what has is of no use yet."""
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            self.pems = self._read()
        except ConfigError as error:
            log.warning("certificates have changed and can't be used: %s", error)
            return None
        log.info("certificates have changed and are used from now on")
        return self.pems

    def _stamps(self) -> list[tuple[int, int, int]]:
        stamps = []
        for path in self._paths:
            try:
                found = os.stat(path) if path else None
            except OSError:
                found = None
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else (0, 0, 0))
        return stamps

    def _read(self) -> Pems:
        ca, certificate, key = (self._bytes_of(*named) for named in zip(self._paths, self._settings))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            self._check(0, lambda: context.load_verify_locations(self._paths[0]))
        if certificate is not None:
            self._check(1, lambda: context.load_cert_chain(self._paths[1], self._paths[2]))
        return Pems(ca, certificate, key)

    def _check(self, which: int, load: Callable[[], None]) -> None:
        try:
            load()
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"{self._settings[which]}: {self._paths[which]} is no PEM file of use: {error}") from None

    def _bytes_of(self, path: str, setting: str) -> bytes | None:
        if not path:
            return None
        try:
            with Path(path).open("rb") as opened:
                if setting == self._settings[2] and stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & stat.S_IRWXO:
                    raise ConfigError(f"{setting}: others may read {path}; chmod 600 {path}")
                return opened.read(FILE_BYTES_MAX)
        except OSError as error:
            raise ConfigError(f"{setting}: {path}: {error.strerror}") from None
