"""A kvtierd with all its tiers at work, seen by the kernel: it opens connections to sockets of this machine, and to nothing
else. Ten seconds of traffic under strace; what the source may do stands in test_lint.py."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from admin_caller import caller_of
from chat import Chat, nvme_settings, turn
from kvtierd import PATIENCE_S, KVTierd, some_keys

from kvtier import observer

SECONDS = 10.0
CALLS = "connect,sendto,sendmsg,sendmmsg"
# What a call names as the other end: none of it is on another machine.
ADDRESS = re.compile(r"sa_family=(AF_\w+)(.*)")
AT_HOME = re.compile(r'inet_addr\("127\.|"::1"')


class Traced(KVTierd):
    """All its threads and children, from the first call on."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        super().__init__(folder, settings)
        self.trace = folder / "trace"

    @property
    def command(self) -> list[str]:
        return ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", str(self.trace), *super().command]

    def kill(self) -> None:
        """strace ends with the daemon."""
        if self.process is not None:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            subprocess.run(["kill", "-KILL", *children], check=True)
            self.process.wait(PATIENCE_S)
            self.process = None


def can_trace(tmp_path: Path) -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", tmp_path / "try", "true"], capture_output=True, check=False).returncode == 0


def abroad(trace: str) -> list[str]:
    """Calls whose other end is not a unix socket, the kernel, or this machine."""
    lines = []
    for line in trace.splitlines():
        match = ADDRESS.search(line)
        if match and match[1] not in ("AF_UNIX", "AF_NETLINK", "AF_UNSPEC") and not AT_HOME.search(match[2]):
            lines.append(line)
    return lines


def test_nothing_leaves_this_machine(tmp_path):
    if not can_trace(tmp_path):
        pytest.skip("strace isn't there, or may not trace")
    with Traced(tmp_path, nvme_settings(tmp_path)) as daemon:
        until, rounds = time.monotonic() + SECONDS, 0
        with caller_of(daemon) as admin, Chat(daemon) as chat:
            while time.monotonic() < until:
                turn(chat, f"session {rounds % 5}", some_keys(12, f"conversation {rounds}"))
                assert chat.load(some_keys(12, f"conversation {rounds}")) >= 0
                assert observer.flush(daemon.socket, PATIENCE_S)
                assert admin.sessions()[1] > 0
                rounds += 1
        assert daemon.counter("demoted_blocks") > 0
    trace = daemon.trace.read_text()
    assert not abroad(trace), "\n".join(abroad(trace)[:20])
    print(f"{rounds} rounds, {len(trace.splitlines())} calls")


def test_a_connection_to_elsewhere_would_be_seen(tmp_path):
    if not can_trace(tmp_path):
        pytest.skip("strace isn't there, or may not trace")
    # No packet leaves for 192.0.2.1: a datagram socket only remembers whom it would send to.
    program = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9)); s.connect(('127.0.0.1', 9))"
    )
    subprocess.run(
        ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", tmp_path / "trace", "python3", "-c", program], check=False
    )
    assert len(abroad((tmp_path / "trace").read_text())) == 1
