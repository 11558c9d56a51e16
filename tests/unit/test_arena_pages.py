"""How an arena takes its pages: all of them, by as many threads as may run, and not to the end when it is interrupted."""

import os
import signal

import pytest
from kvtierd import eventually

from kvtier import _native

MIB = 1 << 20
ODD = 70 * MIB  # a few pieces that threads take, and a rest


class Interrupted(Exception):
    pass


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def taken_pages(descriptor: int) -> int:
    """Bytes of the file that are there."""
    return os.fstat(descriptor).st_blocks * 512


@pytest.fixture
def one_processor():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("size", [2 * MIB, 16 * MIB, 18 * MIB, ODD], ids=lambda size: f"{size // MIB} MiB")
def test_all_pages_are_there_when_it_is(size):
    with _native.Arena.create(size, "kvtier-pages", pin=False) as arena:
        assert taken_pages(arena.fd) == size
        assert not arena.view().any()


def test_and_likewise_where_only_one_thread_may_run(one_processor):
    with _native.Arena.create(ODD, "kvtier-pages", pin=False) as arena:
        assert taken_pages(arena.fd) == ODD


def test_no_thread_stays():
    before = threads()
    with _native.Arena.create(ODD, "kvtier-pages", pin=False):
        eventually(lambda: threads() <= before)  # the kernel counts one a moment longer than its end


def test_a_signal_interrupts_it_and_leaves_nothing_behind():
    def interrupted(*_: object) -> None:
        raise Interrupted

    before, descriptors = threads(), len(os.listdir("/proc/self/fd"))
    handler = signal.signal(signal.SIGPROF, interrupted)
    try:
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_PROF, 0.001)
            while True:  # one may be there before the signal
                _native.Arena.create(512 * MIB, "kvtier-pages", pin=False).close()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    eventually(lambda: threads() <= before)
    assert len(os.listdir("/proc/self/fd")) == descriptors
