"""Files of what nobody else may know: the root secret, a password.

The root secret is what all keys are made with: block.py. Nodes that are to find each other's blocks have the same one;
whoever has another finds nothing, and can guess no name.

A setting names a file by its path; by a name alone it means one of $CREDENTIALS_DIRECTORY, where systemd's LoadCredential=
puts them.
"""

import os
import secrets
import stat
from pathlib import Path

from kvtier.block import SECRET_BYTES
from kvtier.errors import ConfigError

FILE_BYTES_MAX = 4096
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # who names a pipe is not waited for


def fresh_root() -> str:
    """As it stands in a file: hex digits."""
    return secrets.token_hex(SECRET_BYTES)


def write_root(path: Path) -> None:
    """A fresh one, for its owner alone. ConfigError: there is a file already, or it can't be written."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as opened:
            opened.write(fresh_root() + "\n")
    except FileExistsError:
        raise ConfigError(
            f"{path} is there already; every kvtierd that reads it would lose its blocks: remove it first"
        ) from None
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from None


def read_root(named: str, setting: str) -> bytes:
    """ConfigError: `setting` names a file that is no root secret, or that others may read."""
    cure = f"`kvtier secret {path_of(named)}` makes one; give all nodes the same"
    text = _read(named, setting, cure)
    try:
        root = bytes.fromhex(text)
    except ValueError:
        root = b""
    if len(root) != SECRET_BYTES:
        raise ConfigError(f"{setting}: {path_of(named)} doesn't hold {2 * SECRET_BYTES} hex digits; {cure}")
    return root


def read_password(named: str, setting: str) -> str:
    """ConfigError: `setting` names a file without one, or that others may read."""
    password = _read(named, setting, "name a file with the password in it")
    if not password:
        raise ConfigError(f"{setting}: {path_of(named)} is empty")
    return password


def path_of(named: str) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(named) if os.sep in named or not folder else Path(folder) / named


def _read(named: str, setting: str, cure: str) -> str:
    path = path_of(named)
    try:
        with open(os.open(path, _FLAGS), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{setting}: {path} is no file; {cure}")
            if _is_shown(found):
                raise ConfigError(f"{setting}: others may read {path}: chmod 600 {path}")
            return opened.read(FILE_BYTES_MAX).decode().strip()
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: {error.strerror}; {cure}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: {path} is no text; {cure}") from None


def _is_shown(found: os.stat_result) -> bool:
    """Of a file of somebody else's, as systemd and Kubernetes give them, a group or an ACL may be how we read it."""
    is_ours = found.st_uid == os.geteuid()
    return bool(found.st_mode & (stat.S_IRWXO | (stat.S_IRWXG if is_ours else 0)))
