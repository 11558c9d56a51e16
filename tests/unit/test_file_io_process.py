"""FileIo and its surroundings: signals, forked children, kernels that forbid io_uring."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from kvtier._native import FileIo

from kvtier import _native


def blocked_signals(thread: int) -> int:
    with open(f"/proc/self/task/{thread}/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("SigBlk")), 16)


@pytest.mark.parametrize("backend, threads", [("auto", 3), ("threads", 8)])
def test_threads_carry_names_and_leave_signals_to_the_main_thread(backend, threads):
    io = FileIo(8, 3, backend)
    names = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/comm") as comm:
            names[int(thread)] = comm.read().strip()
    mine = [thread for thread, name in names.items() if name.startswith("kvtier-io-")]
    assert len(mine) == (threads if io.backend == "io_uring" else 8)
    for thread in mine:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ, signal.SIGUSR1):
            assert blocked_signals(thread) >> (number - 1) & 1
    io.close()


def run_alone(program: str) -> str:
    folder = os.path.dirname(os.path.dirname(_native.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, timeout=60, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_a_forked_child_that_drops_it_does_not_hang(backend):
    program = f"""
import os, sys
from kvtier import _native
io = _native.FileIo(backend={backend!r})
child = os.fork()
if child == 0:
    del io
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_alone(program) == "5\n"


def test_where_io_uring_is_forbidden_threads_do_it():
    """A filter of system calls, as containers have them: io_uring_setup (425) is EPERM."""
    program = """
import ctypes, struct
from kvtier import _native
load, jump_if_equal, end = (0x20, 0, 0, 0), (0x15, 0, 1, 425), 0x06
steps = [load, jump_if_equal, (end, 0, 0, 0x00050000 | 1), (end, 0, 0, 0x7FFF0000)]
filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
whole = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(filter)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, whole) == 0  # no new privileges; filter
io = _native.FileIo()
print(io.backend, "|", io.fallback)
try:
    _native.FileIo(backend="io_uring")
except PermissionError as refused:
    print(refused)
"""
    auto, asked = run_alone(program).splitlines()
    assert auto == "threads | io_uring_setup: Operation not permitted"
    assert "io_uring_setup" in asked
