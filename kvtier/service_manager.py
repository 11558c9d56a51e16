"""What kvtierd says to the service manager that started it, and gets from it. No other file speaks to systemd.

Datagrams to $NOTIFY_SOCKET say that kvtierd serves, how it is and that it lives; with them go descriptors that the next
kvtierd is to have. Descriptors that it passes are there from the start: sockets to listen on, and what the last kvtierd
asked it to keep. Without a service manager nothing is said, and there is nothing.
"""

import array
import os
import select
import socket
from collections.abc import Callable

from kvtier.config import format_size
from kvtier.store import BlockStore

FIRST_PASSED = 3  # descriptors from this one on, as sd_listen_fds(3) has it
KEPT_WITHIN_S = 2.0  # so long a service manager may take to have taken what it is to keep
STATUS_S = 3.0  # between two status texts


def notify(*lines: str) -> None:
    """Such as READY=1. Nobody waits for it, and it may be lost."""
    _send("\n".join(lines))


def keep(name: str, *fds: int) -> bool:
    """The next kvtierd gets them from passed(). False: nobody keeps them."""
    return _send(f"FDSTORE=1\nFDNAME={name}", *fds) and is_through()


def drop(name: str) -> None:
    """What is kept under this name is kept no longer."""
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def is_through() -> bool:
    """Whether the service manager has done all that was said so far; it gets KEPT_WITHIN_S to do it. It closes what it is
    given with BARRIER=1 when it has."""
    ours, its = os.pipe2(os.O_CLOEXEC)
    try:
        sent = _send("BARRIER=1", its)
    finally:
        os.close(its)
    try:
        waiting = select.poll()
        waiting.register(ours, 0)  # the hang-up alone
        return sent and bool(waiting.poll(KEPT_WITHIN_S * 1e3))
    finally:
        os.close(ours)


def passed() -> dict[str, list[int]]:
    """The descriptors that we were given, by name. They are ours then, and nobody gets them a second time."""
    given = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if given["LISTEN_PID"] != str(os.getpid()) or not given["LISTEN_FDS"].isdecimal():
        return {}
    found: dict[str, list[int]] = {}
    names = given["LISTEN_FDNAMES"].split(":")
    for number in range(int(given["LISTEN_FDS"])):
        name = names[number] if number < len(names) else ""
        os.set_inheritable(FIRST_PASSED + number, False)
        found.setdefault(name, []).append(FIRST_PASSED + number)
    return found


def watchdog_s() -> float:
    """How often the service manager is to hear WATCHDOG=1; 0: never. Half of what it waits for."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    given = os.environ.get("WATCHDOG_USEC", "")
    return int(given) / 2e6 if given.isdecimal() else 0.0


class Pulse:
    """Says that kvtierd lives, and how it is."""

    def __init__(self, status: Callable[[], str]) -> None:
        self._status, self._every_s = status, watchdog_s()
        self._is_heard = "NOTIFY_SOCKET" in os.environ
        self._last_beat = self._last_status = float("-inf")
        self._said = ""

    @property
    def due_at(self) -> float:
        """When it is to be called at the latest."""
        return self._last_beat + self._every_s if self._every_s else float("inf")

    def tick(self, now: float) -> None:
        """To be called now and then by what must not stand still."""
        if self._every_s and now - self._last_beat >= self._every_s:
            self._last_beat = now
            notify("WATCHDOG=1")
        if self._is_heard and now - self._last_status >= STATUS_S:
            self._last_status = now
            if (status := self._status()) != self._said:
                self._said = status
                notify(f"STATUS={status}")

    def end(self, within_s: float) -> None:
        """kvtierd ends, and may take so long. How it is, is no longer told."""
        self._is_heard = False
        notify("STOPPING=1", "STATUS=Ends", f"EXTEND_TIMEOUT_USEC={within_s * 1e6:.0f}")


def status_of(store: BlockStore, clients: int) -> str:
    """In one line: tiers, clients, hit rate. Cheap: it is asked for as long as kvtierd runs."""
    ram = store.ram.slots
    tiers = [("GPU", store.mirror.places.taken_bytes, store.mirror.places.capacity)] if store.mirror is not None else []
    tiers.append(("RAM", ram.taken_bytes, ram.capacity))
    if store.lower is not None:
        tiers.append(("NVMe", store.lower.extents.used_bytes, store.lower.extents.capacity))
    parts = [f"{name} {used / capacity:.0%} of {format_size(capacity)}" for name, used, capacity in tiers]
    parts += ["remote silent" if store.away.is_away else "remote"] if store.away is not None else []
    asked = store.stats["lookup_keys"]
    hits = f"{store.stats['found_keys'] / asked:.0%} of blocks asked for found" if asked else "nothing asked yet"
    return f"{', '.join(parts)}; {clients} client{'s' * (clients != 1)}; {hits}"


def _send(text: str, *fds: int) -> bool:
    """Whether it went out. A name that begins with @ lies in no folder."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        address = "\0" + path[1:] if path.startswith("@") else path
        try:
            sock.sendmsg([text.encode()], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
        except OSError:
            return False
    return True
