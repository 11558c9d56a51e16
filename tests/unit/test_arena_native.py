"""The shared memory region: what its owner gets, what a guest may map, what happens when the machine says no."""

import ctypes
import errno
import fcntl
import gc
import multiprocessing
import os
import resource
import socket
import subprocess
import sys

import numpy as np
import pytest

from kvtier import _native

MIB = 1 << 20
HUGE = 2 * MIB
PR_CAPBSET_DROP = 24
CAP_IPC_LOCK = 14


@pytest.fixture
def arena():
    with _native.Arena.create(4 * HUGE, "kvtier-test", pin=False) as created:
        yield created


def test_a_new_arena_is_zeroed_writable_and_as_large_as_asked(arena):
    view = arena.view()
    assert (arena.size, view.shape, view.dtype) == (4 * HUGE, (4 * HUGE,), np.uint8)
    assert not view.any()
    view[:] = 7
    assert int(view.sum()) == 7 * 4 * HUGE


def test_an_arena_lies_on_a_boundary_of_2_mib_where_its_view_is(arena):
    assert arena.address % HUGE == 0
    assert arena.view().ctypes.data == arena.address


def test_the_bytes_on_huge_pages_never_exceed_the_arena_and_less_than_all_is_explained(arena):
    assert 0 <= arena.huge_bytes <= arena.size
    assert (arena.huge_bytes < arena.size) == any("2 MiB pages" in note for note in arena.notes)


def test_an_arena_that_nobody_asked_to_pin_is_not_pinned_and_says_nothing_about_it(arena):
    assert arena.pinned is False
    assert not [note for note in arena.notes if "pinned" in note]


@pytest.mark.parametrize("size", [0, -HUGE, 1, HUGE - 1, HUGE + 4096])
def test_a_size_that_is_no_positive_multiple_of_2_mib_is_refused(size):
    with pytest.raises(ValueError, match="multiple of 2 MiB"):
        _native.Arena.create(size, "kvtier-test")


def test_an_arena_on_a_numa_node_that_the_machine_has_lies_there_or_says_why_not():
    with _native.Arena.create(4 * HUGE, "kvtier-test", pin=False, numa_node=0) as arena:
        not_there = [note for note in arena.notes if "NUMA node 0" in note]
        with open("/proc/self/numa_maps") as maps:
            (mine,) = [line.split() for line in maps if line.startswith(f"{arena.address:x} ")]
        assert mine[1] == "prefer:0" or not_there
        assert not arena.view().any()


@pytest.mark.parametrize("node", [1023, 1024, 1 << 20])
def test_a_numa_node_that_the_machine_has_not_becomes_a_note(node):
    with _native.Arena.create(HUGE, "kvtier-test", pin=False, numa_node=node) as arena:
        (note,) = [note for note in arena.notes if "NUMA" in note]
        assert f"not placed on NUMA node {node}" in note
        assert arena.view().shape == (HUGE,)


def test_an_arena_larger_than_the_machine_is_refused_before_anything_is_taken():
    with pytest.raises(MemoryError, match="does not fit"):
        _native.Arena.create(1 << 50, "kvtier-test")


def test_a_name_that_the_kernel_refuses_is_an_oserror_with_its_errno():
    with pytest.raises(OSError) as raised:
        _native.Arena.create(HUGE, "x" * 300)
    assert raised.value.errno == errno.EINVAL


def test_the_file_can_neither_shrink_nor_grow_nor_lose_its_seals(arena):
    for size in (0, arena.size - HUGE, arena.size + HUGE):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(arena.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_the_descriptor_is_not_inherited_by_programs_that_are_started(arena):
    assert os.get_inheritable(arena.fd) is False


def test_a_guest_sees_the_bytes_of_the_owner_and_the_owner_those_of_the_guest(arena):
    with _native.Arena.attach(arena.fd, arena.size) as guest:
        assert guest.address != arena.address and guest.address % HUGE == 0
        assert guest.fd != arena.fd
        arena.view()[HUGE] = 42
        assert guest.view()[HUGE] == 42
        guest.view()[-1] = 43
        assert arena.view()[-1] == 43


def answer_from_another_process(conversation: socket.socket) -> None:
    """Receives an arena, reports the sum of what it sees and leaves a mark in its last byte."""
    message, (fd,), _, _ = socket.recv_fds(conversation, 64, 1)
    with _native.Arena.attach(fd, int(message)) as guest:
        os.close(fd)
        view = guest.view()
        conversation.sendall(str(int(view.sum())).encode())
        view[-1] = 99


def test_another_process_maps_the_arena_that_it_got_over_a_socket(arena):
    arena.view()[:1000] = 5
    here, there = socket.socketpair()
    child = multiprocessing.get_context("fork").Process(target=answer_from_another_process, args=(there,))
    child.start()
    socket.send_fds(here, [str(arena.size).encode()], [arena.fd])
    assert here.recv(64) == b"5000"
    child.join(30)
    assert child.exitcode == 0
    assert arena.view()[-1] == 99


def test_a_guest_outlives_the_owner():
    owner = _native.Arena.create(HUGE, "kvtier-test", pin=False)
    owner.view()[3] = 8
    guest = _native.Arena.attach(owner.fd, HUGE)
    owner.close()
    assert guest.view()[3] == 8
    guest.close()


def test_a_file_of_another_size_is_not_attached(arena):
    with pytest.raises(ValueError, match=f"{arena.size} bytes, not {arena.size + HUGE}"):
        _native.Arena.attach(arena.fd, arena.size + HUGE)


def test_a_file_that_could_shrink_is_not_attached():
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, HUGE)
    with pytest.raises(ValueError, match="not sealed"):
        _native.Arena.attach(fd, HUGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    _native.Arena.attach(fd, HUGE).close()
    os.close(fd)


def test_an_ordinary_file_is_not_attached(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(HUGE)
        with pytest.raises(ValueError, match="not sealed"):
            _native.Arena.attach(file.fileno(), HUGE)


def test_a_descriptor_that_is_not_open_is_an_oserror():
    with pytest.raises(OSError) as raised:
        _native.Arena.attach(10_000_000, HUGE)
    assert raised.value.errno == errno.EBADF


def test_a_failed_attach_leaves_no_descriptor_behind(arena):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ValueError):
            _native.Arena.attach(arena.fd, HUGE)
    assert len(os.listdir("/proc/self/fd")) == before


def mapped(name: str) -> int:
    with open("/proc/self/maps") as maps:
        return sum(name in line for line in maps)


def test_who_takes_an_arena_over_finds_it_as_it_was_left(arena):
    arena.view()[:] = 7
    fd = os.dup(arena.fd)
    huge_bytes = arena.huge_bytes
    arena.close()
    with _native.Arena.adopt(fd, 4 * HUGE, pin=False) as adopted:
        os.close(fd)
        assert int(adopted.view().sum()) == 7 * 4 * HUGE
        assert (adopted.size, adopted.pinned, adopted.huge_bytes) == (4 * HUGE, False, huge_bytes)
        with _native.Arena.attach(adopted.fd, 4 * HUGE) as guest:  # as from its first owner
            assert int(guest.view()[-1]) == 7


def test_an_arena_that_is_taken_over_is_pinned_or_says_why_not(arena):
    with _native.Arena.adopt(arena.fd, 4 * HUGE, pin=True) as adopted:
        assert adopted.pinned != any("not pinned" in note for note in adopted.notes)


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_what_is_not_sealed_like_an_arena_is_not_taken_over(seals):
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, HUGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(ValueError, match="not sealed"):
        _native.Arena.adopt(fd, HUGE)
    os.close(fd)


def test_an_arena_of_another_size_is_not_taken_over(arena):
    with pytest.raises(ValueError, match=f"arena has {4 * HUGE} bytes, not {HUGE}"):
        _native.Arena.adopt(arena.fd, HUGE)


def test_closing_twice_unmaps_once_and_what_follows_is_a_valueerror():
    arena = _native.Arena.create(HUGE, "kvtier-closing", pin=False)
    fd = arena.fd
    assert mapped("kvtier-closing") == 1
    arena.close()
    arena.close()
    assert mapped("kvtier-closing") == 0
    with pytest.raises(OSError):
        os.fstat(fd)
    for name in ("fd", "address", "size", "huge_bytes", "pinned", "notes"):
        with pytest.raises(ValueError, match="closed"):
            getattr(arena, name)
    with pytest.raises(ValueError, match="closed"):
        arena.view()


def test_a_view_keeps_the_memory_mapped_until_it_is_gone():
    arena = _native.Arena.create(HUGE, "kvtier-viewed", pin=False)
    view = arena.view()
    view[5] = 6
    arena.close()
    del arena
    gc.collect()
    assert view[5] == 6 and mapped("kvtier-viewed") == 1
    del view
    gc.collect()
    assert mapped("kvtier-viewed") == 0


def forbid_pinning() -> None:
    """Takes from a process that is about to exec the right and the allowance to lock memory."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) != 0 and os.geteuid() == 0:
        os._exit(77)


def run_python(program: str, **options) -> subprocess.CompletedProcess:
    folder = os.path.dirname(os.path.dirname(_native.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)


def test_an_arena_that_cannot_be_pinned_works_and_its_notes_name_the_cure():
    program = (
        "from kvtier import _native\n"
        "arena = _native.Arena.create(2 << 20, 'kvtier-unpinned')\n"
        "arena.view()[0] = 1\n"
        "print(arena.pinned, [n for n in arena.notes if 'not pinned' in n])\n"
    )
    child = run_python(program, preexec_fn=forbid_pinning)
    if child.returncode == 77:
        pytest.skip("cannot drop CAP_IPC_LOCK here, and root may always pin")
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("False ['arena is not pinned")
    assert "LimitMEMLOCK" in child.stdout and "CAP_IPC_LOCK" in child.stdout


def test_pinning_raises_the_soft_limit_to_the_hard_one_first():
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    program = (
        "import resource\n"
        "from kvtier import _native\n"
        f"resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, {hard}))\n"
        "_native.Arena.create(2 << 20, 'kvtier-limit')\n"
        f"assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == ({hard}, {hard})\n"
    )
    child = run_python(program)
    assert child.returncode == 0, child.stderr


def test_a_pinned_arena_counts_as_locked_memory():
    with _native.Arena.create(2 * HUGE, "kvtier-pinned") as arena:
        if not arena.pinned:
            pytest.skip(f"this machine does not let us pin: {arena.notes}")
        with open("/proc/self/status") as status:
            locked_kib = next(int(line.split()[1]) for line in status if line.startswith("VmLck"))
        assert locked_kib * 1024 >= arena.size


def test_nothing_of_an_arena_goes_into_a_core_file():
    with _native.Arena.create(HUGE, "kvtier-nodump", pin=False), open("/proc/self/smaps") as smaps:
        lines = iter(smaps)
        next(line for line in lines if "kvtier-nodump" in line)
        flags = next(line for line in lines if line.startswith("VmFlags"))
        assert "dd" in flags.split()
