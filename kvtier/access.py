"""Who may connect to kvtierd: root, its own user, and the members of one group. By the kernel's word, not the client's."""

import grp
import os
import socket
import struct

from kvtier.errors import ConfigError

_UCRED = struct.Struct("3i")
_GID = struct.Struct("I")
_SO_PEERGROUPS = 59  # Python has no name for it
GROUPS_MAX = 256  # of one client: so many fit what Python takes from the kernel


class Access:
    """`group` as server.group names it; empty: none. ConfigError: there is no such group."""

    def __init__(self, group: str = "", setting: str = "server.group") -> None:
        self.gid: int | None = None
        if group:
            try:
                self.gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
            except KeyError:
                raise ConfigError(
                    f"{setting} = {group!r}: there is no such group; `groupadd --system {group}` makes it"
                ) from None

    def allows(self, sock: socket.socket) -> bool:
        """Whoever is at the other end, as it was when it connected."""
        _, uid, gid = peer_of(sock)
        if uid in (0, os.geteuid()):
            return True
        return self.gid is not None and (gid == self.gid or self.gid in groups_of(sock))


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and first group of who is at the other end, by the kernel's word."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def groups_of(sock: socket.socket) -> set[int]:
    """The further groups of who is at the other end. None of one who has more than GROUPS_MAX: those are not looked
    through, and it needs the group as its first one."""
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, GROUPS_MAX * _GID.size)
    except OSError:
        return set()
    return {gid for (gid,) in _GID.iter_unpack(found)}
