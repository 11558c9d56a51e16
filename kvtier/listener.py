"""The unix sockets that kvtierd listens on: made by itself, or passed to it by the service manager."""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from kvtier.errors import DaemonError

log = logging.getLogger("kvtierd")

BACKLOG = 1024  # connections that may wait for accept
PATH_BYTES_MAX = 107  # the kernel's
FOLDER_MODE, FOLDER_MODE_OF_A_GROUP = 0o700, 0o750
SOCKET_MODE_OF_A_GROUP = 0o660


def bind(path: Path, gid: int | None = None, setting: str = "server.socket", backlog: int = BACKLOG) -> socket.socket:
    """A listening socket with mode 0600 in a directory with mode 0700 (made when missing). `gid`: a group that may
    connect, too; then they are 0660 and 0750, and the group's. `setting`: what names the path."""
    make_way(path, setting, gid)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with only_the_owner():
            listener.bind(os.fspath(path))
        open_to(path, gid, SOCKET_MODE_OF_A_GROUP, "server.group")
        listener.listen(backlog)
    except OSError as error:
        raise _refusal(path, error, setting) from error
    return listener


def adopt(fds: list[int]) -> tuple[socket.socket, Path]:
    """The one listening socket that the service manager passed, and where it is. Its modes are the service manager's, and
    so is its path: nobody removes it. DaemonError: it is none on which we would listen."""
    if len(fds) != 1:
        raise DaemonError("the service manager passes more than one socket: give its socket unit one ListenStream=")
    listener = socket.socket(fileno=fds[0])
    name = listener.getsockname() if listener.family == socket.AF_UNIX else ""
    if not isinstance(name, str) or not name.startswith("/"):  # files have permissions; ports and abstract names don't
        raise DaemonError("the service manager passes a socket that has no path: give its socket unit a ListenStream=/PATH")
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise DaemonError(f"the service manager passes {name}, on which nobody can connect: write ListenStream=, Accept=no")
    listener.setblocking(False)
    return listener, Path(name)


def make_way(path: Path, setting: str, gid: int | None = None) -> None:
    """For a socket of this path, which `setting` names: its folder is there, and nobody listens on it. DaemonError."""
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise DaemonError(f"{path}: a unix socket's path has at most {PATH_BYTES_MAX} bytes; set {setting}")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            open_to(path.parent, gid, FOLDER_MODE_OF_A_GROUP, "server.group")
        elif gid is not None and not _lets_in(path.parent, gid):
            log.warning("group %d can't enter %s, and so not connect: chgrp %d %s; chmod 750 %s", gid, path.parent, gid,
                        path.parent, path.parent)  # fmt: skip
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


def open_to(path: Path, gid: int | None, mode: int, setting: str) -> None:
    """For that group, if there is one: to it first, then the mode. DaemonError: it can't be given to it."""
    if gid is None:
        return
    try:
        if path.stat().st_gid != gid:
            os.chown(path, -1, gid)
    except PermissionError:
        cure = f"make kvtierd's user a member of it, or change {setting}"
        raise DaemonError(f"can't give {path} to group {gid}: {cure}") from None
    path.chmod(mode)


def _lets_in(folder: Path, gid: int) -> bool:
    found = folder.stat()
    return bool(found.st_mode & (stat.S_IXGRP if found.st_gid == gid else stat.S_IXOTH))


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
