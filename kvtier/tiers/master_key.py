"""The master key: the secret in encryption.key_file, and what is made from it. It encrypts no block by itself.

    wrapping     wraps the data keys of the drives: vault.py
    remote_key   the data key of one value in a remote: every node that has the same master key can make it
    root_mask    hides the root secret in the catalogue: whoever knows it can find out whether he has guessed a prompt
    id           names the master key without telling anything of it

AES-256-GCM is OpenSSL's, found at run time.
"""

import hashlib

from kvtier import _native
from kvtier.block import SECRET_BYTES
from kvtier.errors import DaemonError

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16  # of AES-256-GCM
ID_BYTES = 8
SALT_BYTES = 16  # chooses the data key of a value in a remote
INSTALL = "install it (Debian: apt install libssl3, Ubuntu: libssl3t64, Fedora: dnf install openssl-libs)"


class MasterKey:
    def __init__(self, secret: bytes, library: str = "") -> None:
        """DaemonError: there is no libcrypto.so.3 here. `library`: another file than that."""
        assert len(secret) == SECRET_BYTES
        self.crypto = _native.Crypto.open(library)
        if self.crypto.reason:
            raise DaemonError(
                f"encryption.key_file needs OpenSSL 3: {self.crypto.reason}; {INSTALL}, or unset encryption.key_file"
            )
        self._secret = secret
        self.wrapping = self._derived(b"kvtier wrapping", KEY_BYTES)
        self.id = self._derived(b"kvtier key's id", ID_BYTES)

    def remote_key(self, tenant: bytes, salt: bytes) -> bytes:
        return self._derived(b"kvtier remote", KEY_BYTES, salt + tenant)

    def root_mask(self, store: bytes) -> bytes:
        return self._derived(b"kvtier root", SECRET_BYTES, store)

    def _derived(self, use: bytes, size: int, of: bytes = b"") -> bytes:
        return hashlib.blake2b(of, key=self._secret, person=use, digest_size=size).digest()
