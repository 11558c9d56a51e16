"""The copier: every byte arrives, nothing else is touched, every job is reported once."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import _native

KIB = 1 << 10
MIB = 1 << 20
GUARD = 96  # bytes around each target that must stay as they were: more than the widest store
GUARD_BYTE = 0xA5


@pytest.fixture
def copier():
    made = _native.Copier()
    yield made
    made.close()


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def submit_whole(copier, source: np.ndarray, target: np.ndarray) -> int:
    return copier.submit(column(address(source)), column(address(target)), column(source.nbytes))


def random_bytes(size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@functools.cache
def large_source() -> np.ndarray:
    return random_bytes(64 * MIB)


def slow_job(copier) -> tuple[int, np.ndarray, np.ndarray]:
    """A job that lasts many times longer than the call that submits it (the target's pages are not there yet)."""
    source, target = large_source(), np.zeros(64 * MIB, dtype=np.uint8)
    return submit_whole(copier, source, target), source, target


def test_the_copy_path_is_one_that_this_module_knows():
    assert _native.cpu_copy_path() in {"avx512", "avx2", "memcpy"}


def test_one_fragment_arrives_and_is_reported_with_its_bytes_and_a_duration(copier):
    source, target = random_bytes(1000), np.zeros(1000, dtype=np.uint8)
    ticket = submit_whole(copier, source, target)
    assert copier.wait(ticket) is True
    assert np.array_equal(source, target)
    [(reported, size, seconds, error)] = copier.poll()
    assert (reported, size, error) == (ticket, 1000, "")
    assert seconds >= 0


def test_tickets_count_from_one_in_the_order_of_submission(copier):
    source, target = random_bytes(8), np.zeros(8, dtype=np.uint8)
    assert [submit_whole(copier, source, target) for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_job_without_fragments_and_one_without_bytes_are_finished_at_once(copier):
    assert copier.submit(column(), column(), column()) == 1
    assert copier.submit(column(0), column(0), column(0)) == 2
    assert copier.pending == 0
    assert copier.poll() == [(1, 0, 0.0, ""), (2, 0, 0.0, "")]


def test_the_arrays_of_addresses_may_be_reused_after_submit(copier):
    ticket, source, target = slow_job(copier)
    second, copied = random_bytes(5000), np.zeros(5000, dtype=np.uint8)
    columns = column(address(second)), column(address(copied)), column(5000)
    last = copier.submit(*columns)
    for array in columns:
        array[:] = 1
    assert copier.wait(ticket) and copier.wait(last)
    assert np.array_equal(second, copied) and np.array_equal(source, target)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_fragment_of_any_size_around_the_thresholds_arrives_exactly(threads):
    copier = _native.Copier(threads)
    sizes = [s + d for s in (64, 320, 4 * KIB, 32 * KIB, 256 * KIB, 1 * MIB) for d in (-1, 0, 1)]
    for size in sizes:
        copied, room = copied_with_guards(copier, [(random_bytes(size, seed=size), size % 64, 3)])
        assert copied, size
        assert room, size
    copier.close()


def copied_with_guards(copier, fragments: list[tuple[np.ndarray, int, int]]) -> tuple[bool, bool]:
    """One job of (bytes, misalignment of source, of target). Whether all arrived, and whether every guard is intact."""
    sources, targets, inner = [], [], []
    for content, source_shift, target_shift in fragments:
        source = np.zeros(content.size + 64, dtype=np.uint8)
        source = source[source_shift : source_shift + content.size]
        source[:] = content
        room = np.full(content.size + 64 + 2 * GUARD, GUARD_BYTE, dtype=np.uint8)
        sources.append(source)
        targets.append(room)
        inner.append(room[GUARD + target_shift : GUARD + target_shift + content.size])
    ticket = copier.submit(column(*map(address, sources)), column(*map(address, inner)), column(*(s.size for s in sources)))
    assert copier.wait(ticket)
    arrived = all(np.array_equal(content, place) for (content, _, _), place in zip(fragments, inner))
    for place in inner:
        place[:] = GUARD_BYTE
    return arrived, all((room == GUARD_BYTE).all() for room in targets)


@settings(max_examples=60, deadline=None)
@given(
    fragments=st.lists(
        st.tuples(st.one_of(st.integers(0, 600), st.integers(0, 300 * KIB)), st.integers(0, 63), st.integers(0, 63)),
        max_size=12,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_fragments_arrive_exactly_and_nothing_around_their_targets_changes(fragments, seed):
    content = random_bytes(300 * KIB, seed)
    copier = _native.Copier(3)
    arrived, guarded = copied_with_guards(copier, [(content[:size], s, t) for size, s, t in fragments])
    copier.close()
    assert arrived
    assert guarded


def test_a_paged_layout_is_gathered_into_slots_and_scattered_back(copier):
    layers, blocks, page = 32, 24, 4 * KIB
    engine = random_bytes(layers * blocks * page).reshape(layers, blocks, page)
    slots = np.zeros((blocks, layers, page), dtype=np.uint8)
    order = np.random.default_rng(5).permutation(blocks)
    paged = [address(engine[layer, block]) for block in order for layer in range(layers)]
    packed = [address(slots[slot, layer]) for slot in range(blocks) for layer in range(layers)]
    size = np.full(len(paged), page, dtype=np.uint64)
    assert copier.wait(copier.submit(column(*paged), column(*packed), size))
    assert np.array_equal(slots, engine.transpose(1, 0, 2)[order])
    restored = np.zeros_like(engine)
    back = [address(restored[layer, block]) for block in order for layer in range(layers)]
    assert copier.wait(copier.submit(column(*packed), column(*back), size))
    assert np.array_equal(restored, engine)


def test_many_jobs_are_all_copied_and_each_is_reported_exactly_once(copier):
    count, size = 500, 3001
    source = random_bytes(count * size).reshape(count, size)
    target = np.zeros_like(source)
    reports, tickets = [], []
    for i in range(count):
        tickets.append(submit_whole(copier, source[i], target[i]))
        reports += copier.poll()
    assert all(copier.wait(ticket) for ticket in tickets)
    reports += copier.poll()
    assert copier.poll() == []
    assert sorted(ticket for ticket, _, _, _ in reports) == tickets
    assert {size for _, size, _, _ in reports} == {3001}
    assert np.array_equal(source, target)
    assert copier.pending == 0


def test_jobs_may_be_submitted_from_several_python_threads(copier):
    source = random_bytes(4 * 50 * KIB).reshape(4, 50, KIB)
    target = np.zeros_like(source)
    tickets: list[int] = []

    def submit_row(row: int) -> None:
        tickets.extend(submit_whole(copier, source[row, i], target[row, i]) for i in range(50))

    threads = [threading.Thread(target=submit_row, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tickets) == list(range(1, 201))
    assert all(copier.wait(ticket) for ticket in tickets)
    assert np.array_equal(source, target)


def test_waiting_with_a_time_limit_says_whether_the_job_made_it(copier):
    ticket, source, target = slow_job(copier)
    assert copier.wait(ticket, 0) is False
    assert copier.wait(ticket, -1.0) is False
    assert copier.pending == 1
    assert copier.wait(ticket, 1e300) is True
    assert np.array_equal(source, target)


def test_waiting_consumes_nothing_and_a_polled_job_is_still_finished(copier):
    source, target = random_bytes(100), np.zeros(100, dtype=np.uint8)
    ticket = submit_whole(copier, source, target)
    assert copier.wait(ticket) and copier.wait(ticket)
    assert [done for done, _, _, _ in copier.poll()] == [ticket]
    assert copier.wait(ticket, 0) is True


@pytest.mark.parametrize("ticket", [-1, 0, 1, 2**62])
def test_waiting_for_a_job_that_was_never_submitted_is_an_error(copier, ticket):
    with pytest.raises(ValueError, match="ticket"):
        copier.wait(ticket)


def test_other_python_threads_run_while_one_waits(copier):
    ticket, _source, _target = slow_job(copier)
    finished = threading.Event()
    threading.Thread(target=lambda: (copier.wait(ticket), finished.set())).start()
    steps = 0
    while not finished.is_set():
        steps += 1
    assert steps > 0


def test_closing_finishes_what_is_in_flight_and_refuses_what_comes_after(copier):
    jobs = [slow_job(copier) for _ in range(3)]
    copier.close()
    assert all(np.array_equal(source, target) for _, source, target in jobs)
    assert copier.pending == 0
    assert copier.wait(jobs[0][0], 0) is True
    assert sorted(ticket for ticket, _, _, _ in copier.poll()) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="closed"):
        copier.submit(column(), column(), column())
    copier.close()


def test_dropping_the_copier_finishes_what_is_in_flight():
    copier = _native.Copier()
    _, source, target = slow_job(copier)
    del copier
    assert np.array_equal(source, target)


def test_a_queue_of_results_that_nobody_polls_is_full_some_day_and_polling_makes_room(copier):
    for _ in range(copier.MAX_JOBS):
        copier.submit(column(), column(), column())
    with pytest.raises(RuntimeError, match="queue full"):
        copier.submit(column(), column(), column())
    assert [ticket for ticket, _, _, _ in copier.poll()] == list(range(1, copier.MAX_JOBS + 1))
    assert copier.submit(column(), column(), column()) == copier.MAX_JOBS + 1


@pytest.mark.parametrize("threads", [-1, 17, 1000])
def test_a_number_of_threads_out_of_range_is_refused(threads):
    with pytest.raises(ValueError, match="threads"):
        _native.Copier(threads)


def test_columns_of_unequal_length_are_refused_and_use_up_no_ticket(copier):
    for lengths in ((1, 2, 2), (2, 1, 2), (2, 2, 1), (0, 1, 1)):
        with pytest.raises(ValueError, match="same length"):
            copier.submit(*(np.ones(n, dtype=np.uint64) for n in lengths))
    assert copier.submit(column(), column(), column()) == 1


@pytest.mark.parametrize(
    "bad",
    [
        np.ones(1, dtype=np.int64),
        np.ones(1, dtype=np.float64),
        np.ones((1, 1), dtype=np.uint64),
        np.ones(4, dtype=np.uint64)[::4],
        [1],
        None,
    ],
    ids=["int64", "float64", "two dimensions", "strided", "list", "None"],
)
def test_anything_but_a_flat_array_of_uint64_is_a_typeerror(copier, bad):
    good = np.ones(1, dtype=np.uint64)
    if isinstance(bad, np.ndarray) and bad.dtype == np.uint64 and bad.ndim == 1:
        bad, good = np.ones(8, dtype=np.uint64)[::4], np.ones(2, dtype=np.uint64)  # one element counts as contiguous
    for position in range(3):
        columns = [good, good, good]
        columns[position] = bad
        with pytest.raises(TypeError):
            copier.submit(*columns)


def test_impossible_fragments_are_refused_before_a_byte_moves(copier):
    with pytest.raises(ValueError, match="add up"):
        copier.submit(column(1, 1), column(1, 1), column(2**63, 2**63))
    for source, target in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="address 0"):
            copier.submit(column(source), column(target), column(1))
    assert copier.pending == 0 and copier.poll() == []


def threads_of_this_process() -> dict[int, str]:
    found = {}
    for thread in os.listdir("/proc/self/task"):
        # A thread that has been joined stays listed for a moment.
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/comm") as comm:
            found[int(thread)] = comm.read().strip()
    return found


def blocked_signals(thread: int) -> int:
    with open(f"/proc/self/task/{thread}/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("SigBlk")), 16)


def eventually(happens) -> bool:
    deadline = time.monotonic() + 10
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.001)
    return happens()


def test_threads_carry_names_and_leave_signals_to_the_main_thread():
    before = set(threads_of_this_process())
    copier = _native.Copier(2)
    mine = {tid: name for tid, name in threads_of_this_process().items() if tid not in before}
    assert sorted(mine.values()) == ["kvtier-copy-0", "kvtier-copy-1"]
    for tid in mine:
        # A thread that is being born blocks all signals, faults too.
        assert eventually(lambda tid=tid: not blocked_signals(tid) >> (signal.SIGSEGV - 1) & 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
            assert blocked_signals(tid) >> (number - 1) & 1
    copier.close()
    assert eventually(lambda: not set(mine) & set(threads_of_this_process()))


def test_a_forked_child_that_drops_the_copier_does_not_hang():
    program = (
        "import os, sys\n"
        "from kvtier import _native\n"
        "copier = _native.Copier()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    del copier\n"
        "    sys.exit(5)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    folder = os.path.dirname(os.path.dirname(_native.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode == 5


def test_memory_copied_into_an_arena_is_what_another_mapping_of_it_shows(copier):
    with _native.Arena.create(2 * MIB, "kvtier-copied", pin=False) as arena:
        source = random_bytes(2 * MIB)
        ticket = copier.submit(column(address(source)), column(arena.address), column(arena.size))
        assert copier.wait(ticket)
        with _native.Arena.attach(arena.fd, arena.size) as guest:
            assert ctypes.string_at(guest.address, guest.size) == source.tobytes()
