"""The unix socket that kvtierd listens on."""

import os
import socket
from pathlib import Path

from kvtier.errors import DaemonError

BACKLOG = 1024  # connections that may wait for accept


def bind(path: Path) -> socket.socket:
    """A listening socket with mode 0600 in a directory with mode 0700 (made when missing)."""
    if len(os.fsencode(path)) > 107:
        raise DaemonError(f"{path}: a unix socket's path has at most 107 bytes; set server.socket")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_socket():
            _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        raise DaemonError(f"can't listen on {path}: {error.strerror}; set server.socket") from error
    return listener


def _remove_stale(path: Path) -> None:
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
    raise DaemonError(f"another kvtierd listens on {path}; stop it, or set server.socket")
