"""The unix sockets that kvtierd listens on."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from kvtier.errors import DaemonError

BACKLOG = 1024  # connections that may wait for accept
PATH_BYTES_MAX = 107  # the kernel's


def bind(path: Path) -> socket.socket:
    """A listening socket with mode 0600 in a directory with mode 0700 (made when missing)."""
    make_way(path, "server.socket")
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with only_the_owner():
            listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        raise _refusal(path, error, "server.socket") from error
    return listener


def make_way(path: Path, setting: str) -> None:
    """For a socket of this path, which `setting` names: its folder is there, and nobody listens on it. DaemonError."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise DaemonError(f"{path}: a unix socket's path has at most {PATH_BYTES_MAX} bytes; set {setting}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            _remove_stale(path, setting)
    except OSError as error:
        raise _refusal(path, error, setting) from error


@contextlib.contextmanager
def only_the_owner() -> Iterator[None]:
    """A socket that is bound meanwhile has mode 0600 from its first moment on."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _refusal(path: Path, error: OSError, setting: str) -> DaemonError:
    return DaemonError(f"can't listen on {path}: {error.strerror}; set {setting}")


def _remove_stale(path: Path, setting: str) -> None:
    """A socket that nobody listens on is left over from a daemon that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise DaemonError(f"another kvtierd listens on {path}; stop it, or set {setting}")
