"""Users: whose an engine is, and what follows for the keys of its blocks.

An engine's user is who its scheduler's process runs as, by the kernel's word. Engines of kvtierd's own user are as they
always were: what their blocks are called depends on what they are. All others have names of their own, made with the name
of their user. So no user finds another's blocks, hears of them, or drops them by a reset.

The name counts, not the number: where several nodes have a remote in common, the service that all engines run as has one
name on all of them, and its number may differ. A user without a name is meant by its number.
"""

import hashlib
import os
import pwd


class Users:
    def __init__(self, *, are_one: bool = False) -> None:
        """`are_one`: all of them share blocks, as tenant.share_users says."""
        self._are_one = are_one

    def see_all(self, uid: int) -> bool:
        """Whether this user may see what became of others' requests."""
        return uid == 0 or not self.name(uid)

    def name(self, uid: int) -> str:
        """Empty: kvtierd's own, or any, where they are one."""
        if self._are_one or uid == os.geteuid():
            return ""
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"uid {uid}"


def namespace_of(user: str, namespace: bytes) -> bytes:
    """The digest of a namespace as this user's engines have it. 32 bytes."""
    return hashlib.sha256(b"user\0" + user.encode() + b"\0" + namespace).digest() if user else namespace


def root_of(user: str, root: bytes) -> bytes:
    """What this user's witnesses are made with, for they tell who has asked the same. 32 bytes, or the root itself."""
    return hashlib.blake2b(b"user\0" + user.encode(), key=root, digest_size=32).digest() if user else root
