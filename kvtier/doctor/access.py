"""Who may come near: the sockets, the files of secrets, the ports, and what lies unencrypted below RAM."""

import ipaddress
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from kvtier.config import DAEMON
from kvtier.doctor.engines import engines_of
from kvtier.doctor.facts import Facts
from kvtier.doctor.findings import Finding, bad, ok, warn
from kvtier.secret_file import path_of

SECRETS = tuple(
    option.name
    for option in DAEMON
    if option.unit == "path" and option.name.endswith(("secret_file", "password_file", "key_file", ".key"))
)
LISTENS = ("peer.listen", "metrics.listen")
LISTEN_STATE = "0A"  # of /proc/net/tcp
TCP_FILES = ("tcp", "tcp6")


def sockets(facts: Facts) -> Iterator[Finding]:
    """Whoever gets there reads everybody's blocks; the admin socket tells of all sessions."""
    for path, what in ((facts.socket, "server.socket"), (facts.admin_socket, "admin.socket")):
        found = facts.system.stat(path)
        if found is None or not stat.S_ISSOCK(found.st_mode):
            continue
        folder = facts.system.stat(path.parent)
        may_enter = folder is None or folder.st_mode & stat.S_IXOTH
        if found.st_mode & stat.S_IWOTH and may_enter:
            yield bad(
                f"anybody may connect to {path} (mode {found.st_mode & 0o777:04o})",
                f"`chmod o-rwx {path}`, and {what} in a folder with mode 0700",
            )
        elif folder is not None and folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
            yield bad(
                f"anybody may replace {path}: its folder has mode {folder.st_mode & 0o777:04o}",
                f"`chmod 0700 {path.parent}`",
            )
        else:
            yield ok(f"{path}: mode {found.st_mode & 0o777:04o}, of user {found.st_uid}, group {found.st_gid}")
    if facts.system.stat(facts.socket) is None:
        yield ok(f"{facts.socket} is not there: no kvtierd listens")


def group(facts: Facts) -> Iterator[Finding]:
    """Whether the engines of other users are members of server.group."""
    named = facts.settings.text("server.group")
    gid = group_id(facts, named)
    if named and gid is None:
        yield bad(f"server.group = {named}: there is no such group", f"`groupadd --system {named}`")
        return
    others = [one for one in engines_of(facts.system) if one.uses_kvtier and one.uid not in (0, facts.owner, -1)]
    for engine in others:
        groups = {int(word) for word in facts.status("Groups", engine.pid).split()}
        groups |= {int(word) for word in facts.status("Gid", engine.pid).split()[:1]}
        if gid is None:
            cure = "set server.group to a group of both users"
            yield warn(f"vLLM, process {engine.pid}, is of user {engine.uid}, and may not connect", cure)
        elif gid not in groups:
            cure = f"`usermod -aG {named} USER`, and start the engine again"
            yield warn(f"vLLM, process {engine.pid}, of user {engine.uid}, is no member of {named}", cure)
        else:
            yield ok(f"vLLM, process {engine.pid}, is a member of {named}")
    if not others:
        yield ok(f"members of {named} may connect" if named else "root and the user of kvtierd may connect")


def secrets(facts: Facts) -> Iterator[Finding]:
    """The files of secrets. Of one of another owner's, its group may be how kvtierd reads it."""
    named = {name: facts.settings.text(name) for name in SECRETS if facts.settings.text(name)}
    if not named:
        yield ok("no setting names one")
    for setting, file in named.items():
        path = path_of(file)
        if path == Path(file) and "/" not in file:
            yield ok(f"{setting} = {file}: a credential of the service, which only it sees")
            continue
        found = facts.system.stat(path)
        if found is None:
            yield bad(f"{setting}: {path} is not there, or not for this user to see", "`kvtier secret FILE` makes a secret")
        elif not stat.S_ISREG(found.st_mode):
            yield bad(f"{setting}: {path} is no file", "name a file")
        elif found.st_mode & (stat.S_IRWXO | (stat.S_IRWXG if found.st_uid == facts.owner else 0)):
            yield bad(f"{setting}: others may read {path} (mode {found.st_mode & 0o777:04o})", f"`chmod 600 {path}`")
        else:
            yield ok(f"{setting}: {path}, mode {found.st_mode & 0o777:04o}")


def encryption(facts: Facts) -> Iterator[Finding]:
    """Blocks can be turned into the prompts that they were made of."""
    below = [name for name, is_on in (("drives", facts.drives), ("the remote", facts.settings.text("remote.url"))) if is_on]
    if not below:
        yield ok("nothing is written below RAM")
    elif facts.settings.text("encryption.key_file"):
        yield ok(f"blocks on {' and '.join(below)} are encrypted")
    else:
        cure = "`kvtier secret FILE`, and encryption.key_file = FILE; what lies there unencrypted is forgotten then"
        yield warn(f"blocks on {' and '.join(below)} are not encrypted: whoever has them has the conversations", cure)


def ports(facts: Facts) -> Iterator[Finding]:
    """What kvtierd listens on besides its unix sockets: as settings say, and as the kernel does."""
    wide = {f"{name} = {text}" for name in LISTENS if is_wide(text := facts.settings.text(name))}
    wide |= {f"process {facts.pid} on {address}" for address in listening(facts)}
    has_tls = bool(facts.settings.text("peer.certificate"))
    if not wide:
        yield ok("nothing that other machines reach")
    for said in sorted(wide):
        if said.startswith("metrics"):
            yield warn(f"{said}: anybody there sees how busy this node is", "127.0.0.1, with a proxy that asks who it is")
        elif has_tls:
            yield ok(f"{said}: TLS, and nodes show certificates")
        else:
            yield bad(f"{said}, without TLS", "set peer.certificate, peer.key and peer.client_ca")


def is_wide(listen: str) -> bool:
    """Whether HOST:PORT is reached from other machines. A name that stands for this one is not asked for anywhere."""
    host = listen.rpartition(":")[0].strip("[]")
    if not host or "/" in listen:
        return listen.startswith(":")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def listening(facts: Facts) -> list[str]:
    """Addresses, with ports, where the kvtierd that runs listens and that are not loopback's."""
    if facts.pid is None:
        return []
    fds = f"{facts.proc}/fd"
    inodes = {facts.system.target(f"{fds}/{fd}").removeprefix("socket:[").rstrip("]") for fd in facts.system.names(fds)}
    found = []
    for file in TCP_FILES:
        for line in facts.system.read(f"{facts.proc}/net/{file}").splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == LISTEN_STATE and words[9] in inodes:
                address, port = words[1].split(":")
                host = address_of(address)
                if not host.is_loopback:
                    found.append(f"{host}:{int(port, 16)}")
    return sorted(found)


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Hex digits of 32-bit words in this processor's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))


def group_id(facts: Facts, named: str) -> int | None:
    if named.isdecimal():
        return int(named)
    for line in facts.system.read("/etc/group").splitlines():
        words = line.split(":")
        if words[0] == named and len(words) > 2:
            return int(words[2])
    return None
