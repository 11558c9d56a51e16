"""The fake driver keeps to what the CUDA driver API's documentation says, where kvtier relies on it."""

import ctypes
import mmap
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_cuda import build
from fake_cuda.cuda_calls import (
    ALREADY_REGISTERED,
    CONTEXT_IS_DESTROYED,
    DURING_THE_CALL,
    ILLEGAL_ADDRESS,
    IN_ANY_ORDER,
    INVALID_CONTEXT,
    INVALID_HANDLE,
    INVALID_PTX,
    INVALID_VALUE,
    NOT_FOUND,
    NOT_INITIALIZED,
    NOT_REGISTERED,
    OUT_OF_MEMORY,
    Cuda,
    IpcHandle,
    at,
    put,
)

PAGE = 4096


def child(library: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Another process, with `cuda` as the fixture has it, but before cuInit."""
    start = f"from pathlib import Path\nfrom fake_cuda.cuda_calls import *\ncuda = Cuda(Path({str(library)!r}))\n"
    command = [sys.executable, "-c", start + program]
    environment = {"PYTHONPATH": str(build.HERE.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


# --- what is refused -------------------------------------------------------------------------------------------


def test_nothing_works_before_it_is_initialized(library):
    said = child(library, "print(cuda.call('cuDeviceGet', (ctypes.c_int * 1)(), 0))")
    assert said.stdout == f"{NOT_INITIALIZED}\n"


def test_nothing_works_in_a_forked_child(library):
    said = child(library, "cuda.enter()\nimport os\nif os.fork() == 0: print(cuda.call('cuCtxPopCurrent_v2', 0))")
    assert said.stdout == f"{NOT_INITIALIZED}\n"


def test_a_call_without_a_context_is_refused(cuda):
    stream = cuda.stream()
    cuda.must("cuCtxPopCurrent_v2", 0)
    assert cuda.call("cuStreamSynchronize", stream) == INVALID_CONTEXT
    assert cuda.call("cuCtxPopCurrent_v2", 0) == INVALID_CONTEXT


def test_an_unknown_handle_is_refused_and_so_is_a_destroyed_one(cuda):
    stream, event = cuda.stream(), cuda.event()
    assert cuda.call("cuEventRecord", event, 99) == INVALID_HANDLE
    assert cuda.call("cuEventRecord", 99, stream) == INVALID_HANDLE
    cuda.must("cuEventDestroy_v2", event)
    assert cuda.call("cuEventQuery", event) == INVALID_HANDLE


def test_a_stream_of_another_device_is_refused(cuda):
    stream = cuda.stream()
    cuda.enter(device=1)
    assert cuda.call("cuStreamSynchronize", stream) == INVALID_HANDLE
    assert cuda.call("cuEventRecord", cuda.event(), stream) == INVALID_HANDLE


def test_it_has_the_versioned_names_only(library):
    driver = ctypes.CDLL(str(library))
    assert not [
        name for name in ("cuMemAlloc", "cuMemFree", "cuStreamDestroy", "cuMemHostRegister") if hasattr(driver, name)
    ]


def test_what_is_hidden_is_not_there_and_the_rest_is(library):
    driver = ctypes.CDLL(str(build.library(hide=["cuLaunchKernel"])))
    assert (hasattr(driver, "cuLaunchKernel"), hasattr(driver, "cuMemAlloc_v2")) == (False, True)


def test_an_ordered_error_is_that_of_one_call(cuda):
    cuda.fail("cuEventCreate", 2, at=2)
    out = ctypes.c_uint64()
    assert [cuda.call("cuEventCreate", ctypes.byref(out), 0) for _ in range(3)] == [0, OUT_OF_MEMORY, 0]


# --- streams and events ----------------------------------------------------------------------------------------


def test_a_copy_reads_its_source_in_its_turn_and_not_when_it_is_called(cuda):
    stream, source, target = cuda.stream(), cuda.host_memory(PAGE, 1), cuda.device_memory(PAGE)
    cuda.set("hold", stream)
    cuda.must("cuMemcpyAsync", target, source, PAGE, stream)
    put(source, b"\2" * PAGE)
    assert at(target, PAGE) == bytes(PAGE)
    cuda.set("let_go", stream)
    cuda.must("cuStreamSynchronize", stream)
    assert at(target, PAGE) == b"\2" * PAGE


def test_a_stream_keeps_its_order_whatever_the_delays(cuda):
    cuda.set("max_delay_us", 200)
    stream, first, second = cuda.stream(), cuda.device_memory(PAGE), cuda.device_memory(PAGE)
    cuda.must("fake_cuda_fill", stream, first, PAGE, 7)
    cuda.must("cuMemcpyAsync", second, first, PAGE, stream)
    cuda.must("cuMemsetD8Async", first, 9, PAGE, stream)
    cuda.must("cuStreamSynchronize", stream)
    right = ctypes.create_string_buffer(PAGE)
    cuda.call("fake_cuda_pattern", right, PAGE, 7)
    assert (at(second, PAGE), at(first, PAGE)) == (right.raw, b"\x09" * PAGE)


def test_a_copy_is_seen_half_done(cuda):
    cuda.set("max_delay_us", 3000)
    source, target = cuda.host_memory(PAGE, 1), cuda.device_memory(PAGE)
    seen = set()
    for seed in range(100):
        cuda.set("seed", seed)
        ctypes.memset(target, 0, PAGE)
        stream, event = cuda.stream(), cuda.event()
        cuda.must("cuMemcpyAsync", target, source, PAGE, stream)
        cuda.must("cuEventRecord", event, stream)
        while not cuda.is_over(event):
            seen.add(sum(at(target, PAGE)))
        if seen - {0, PAGE}:
            return
    pytest.fail("no copy was ever seen half done")


def test_an_event_that_was_never_recorded_is_over_and_nobody_waits_for_it(cuda):
    stream, event = cuda.stream(), cuda.event()
    assert cuda.is_over(event)
    cuda.must("cuStreamWaitEvent", stream, event, 0)
    cuda.must("cuStreamSynchronize", stream)
    assert cuda.call("cuEventElapsedTime", ctypes.byref(ctypes.c_float()), event, event) == INVALID_HANDLE


def test_an_event_is_over_when_its_stream_gets_there(cuda):
    stream, event = cuda.stream(), cuda.event()
    cuda.set("hold", stream)
    cuda.must("cuEventRecord", event, stream)
    assert not cuda.is_over(event)
    cuda.set("let_go", stream)
    cuda.must("cuStreamSynchronize", stream)
    assert cuda.is_over(event)


def test_a_wait_is_for_the_record_that_was_the_last_when_it_was_called(cuda):
    engine, ours, other, event, done = cuda.stream(), cuda.stream(), cuda.stream(), cuda.event(), cuda.event()
    cuda.set("hold", engine)
    cuda.must("cuEventRecord", event, engine)
    cuda.must("cuStreamWaitEvent", ours, event, 0)
    cuda.must("cuEventRecord", done, ours)
    cuda.must("cuEventRecord", event, other)  # replaces the record, but not for who waits already
    cuda.must("cuStreamSynchronize", other)
    time.sleep(0.01)
    assert (cuda.is_over(event), cuda.is_over(done)) == (True, False)
    cuda.set("let_go", engine)
    cuda.must("cuStreamSynchronize", ours)
    assert cuda.is_over(done)


def test_a_record_after_the_wait_is_not_waited_for(cuda):
    engine, ours, event = cuda.stream(), cuda.stream(), cuda.event()
    cuda.must("cuStreamWaitEvent", ours, event, 0)
    cuda.set("hold", engine)
    cuda.must("cuEventRecord", event, engine)
    cuda.must("cuStreamSynchronize", ours)


def test_the_time_between_two_records(cuda):
    stream, start, end, untimed = cuda.stream(), cuda.event(), cuda.event(), cuda.event(2)
    cuda.must("cuEventRecord", start, stream)
    time.sleep(0.02)
    cuda.must("cuEventRecord", end, stream)
    cuda.must("cuEventRecord", untimed, stream)
    cuda.must("cuStreamSynchronize", stream)
    milliseconds = ctypes.c_float()
    cuda.must("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
    assert 15 < milliseconds.value < 2000
    assert cuda.call("cuEventElapsedTime", ctypes.byref(milliseconds), start, untimed) == INVALID_HANDLE


def test_a_stream_and_an_event_may_go_with_work_pending_which_is_done(cuda):
    stream, event, target = cuda.stream(), cuda.event(), cuda.device_memory(PAGE)
    cuda.set("max_delay_us", 500)
    cuda.must("cuMemsetD8Async", target, 5, PAGE, stream)
    cuda.must("cuEventRecord", event, stream)
    cuda.must("cuEventDestroy_v2", event)
    cuda.must("cuStreamDestroy_v2", stream)
    assert (cuda.get("live_streams"), cuda.get("live_events")) == (0, 0)
    while at(target, PAGE) != b"\5" * PAGE:
        time.sleep(0.001)


@pytest.mark.parametrize(("flags", "waits"), [(0, True), (1, False)], ids=["blocking", "non-blocking"])
def test_only_a_blocking_stream_waits_for_the_legacy_one(cuda, flags, waits):
    stream, event, target = cuda.stream(flags), cuda.event(), cuda.device_memory(PAGE)
    cuda.must("cuMemsetD8Async", target, 1, PAGE, 0)
    cuda.must("cuStreamSynchronize", 0)
    cuda.set("hold", 0)
    cuda.must("cuMemsetD8Async", target, 2, PAGE, 0)
    cuda.must("cuEventRecord", event, stream)
    time.sleep(0.01)
    assert cuda.is_over(event) is not waits
    cuda.set("let_go", 0)
    cuda.must("cuStreamSynchronize", stream)


# --- copies ------------------------------------------------------------------------------------------------------


def test_a_copy_of_memory_that_is_not_registered_is_done_on_return(cuda):
    cuda.set("max_delay_us", 500)
    stream, target, source = cuda.stream(), cuda.device_memory(PAGE), ctypes.create_string_buffer(b"\3" * PAGE, PAGE)
    cuda.must("cuMemcpyAsync", target, ctypes.addressof(source), PAGE, stream)
    assert at(target, PAGE) == b"\3" * PAGE
    assert cuda.get("pageable_copies") == 1


def test_the_copies_of_a_batch_have_no_order(cuda):
    target, one, two = cuda.device_memory(8), cuda.device_memory(8, 1), cuda.device_memory(8, 2)
    last = set()
    for seed in range(40):
        cuda.set("seed", seed)
        stream = cuda.stream()
        assert cuda.batch([(target, one, 8), (target, two, 8)], stream) == 0
        cuda.must("cuStreamSynchronize", stream)
        last.add(at(target, 8)[0])
    assert last == {1, 2}


@pytest.mark.parametrize("order", [DURING_THE_CALL, IN_ANY_ORDER])
def test_a_batch_that_does_not_ask_for_the_streams_order_does_not_get_it(cuda, order):
    stream, source, target = cuda.stream(), cuda.device_memory(PAGE, 1), cuda.host_memory(PAGE)
    cuda.set("hold", stream)
    assert cuda.batch([(target, source, PAGE)], stream, order) == 0
    ctypes.memset(source, 3, PAGE)
    cuda.set("let_go", stream)
    cuda.must("cuStreamSynchronize", stream)
    assert at(target, PAGE) == b"\1" * PAGE


def test_a_batch_wants_attributes_and_a_stream_of_its_own(cuda):
    copies = [(cuda.device_memory(8), cuda.device_memory(8), 8)]
    assert cuda.batch(copies, cuda.stream(), order=0) == INVALID_VALUE
    assert cuda.batch(copies, 0) == INVALID_VALUE


def test_a_copy_must_lie_within_one_range(cuda):
    stream, device = cuda.stream(), cuda.device_memory(2 * PAGE)
    with mmap.mmap(-1, 4 * PAGE) as host:
        base = ctypes.addressof(ctypes.c_char.from_buffer(host))
        for page in (0, 1):
            cuda.must("cuMemHostRegister_v2", base + page * PAGE, PAGE, 3)
        assert cuda.call("cuMemcpyAsync", device, base + PAGE - 8, 16, stream) == INVALID_VALUE
        assert cuda.call("cuMemcpyAsync", device, base + 2 * PAGE - 8, 16, stream) == INVALID_VALUE
        assert cuda.call("cuMemcpyAsync", device + 2 * PAGE - 8, base, 16, stream) == INVALID_VALUE
        for page in (0, 1):
            cuda.must("cuMemHostUnregister", base + page * PAGE)


def test_the_kernel_reads_its_table_in_its_turn(cuda):
    stream, table, target = cuda.stream(), cuda.host_memory(PAGE), cuda.device_memory(PAGE)
    one, two = cuda.host_memory(PAGE, 1), cuda.host_memory(PAGE, 2)
    put(table, bytes((ctypes.c_uint64 * 3)(one, target, PAGE)))
    cuda.set("hold", stream)
    assert cuda.launch(cuda.function(), table, 1, stream) == 0
    put(table, bytes((ctypes.c_uint64 * 3)(two, target, PAGE)))
    cuda.set("let_go", stream)
    cuda.must("cuStreamSynchronize", stream)
    assert at(target, PAGE) == b"\2" * PAGE


def test_the_kernel_breaks_the_context_on_memory_that_is_not_registered(cuda):
    stream, table, target = cuda.stream(), cuda.host_memory(PAGE), cuda.device_memory(PAGE)
    loose = ctypes.create_string_buffer(PAGE)
    put(table, bytes((ctypes.c_uint64 * 3)(ctypes.addressof(loose), target, PAGE)))
    assert cuda.launch(cuda.function(), table, 1, stream) == 0
    assert cuda.call("cuStreamSynchronize", stream) == ILLEGAL_ADDRESS


def test_only_the_one_kernel_is_known(cuda):
    out = ctypes.c_uint64()
    module = cuda.made("cuModuleLoadData", ctypes.c_char_p(b".entry kvtier_copy("))
    assert cuda.call("cuModuleGetFunction", ctypes.byref(out), module, ctypes.c_char_p(b"other")) == NOT_FOUND
    assert cuda.call("cuModuleLoadData", ctypes.byref(out), ctypes.c_char_p(b"nothing")) == INVALID_PTX


# --- memory, contexts ----------------------------------------------------------------------------------------------


def test_fresh_device_memory_holds_rubbish_and_there_is_only_so_much(cuda):
    cuda.set("memory_limit", 2 * PAGE)
    assert at(cuda.made("cuMemAlloc_v2", 2 * PAGE), 2 * PAGE) != bytes(2 * PAGE)
    assert cuda.call("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), 1) == OUT_OF_MEMORY


def test_a_range_is_registered_once_and_within_the_limit(cuda):
    cuda.set("lockable_limit", PAGE)
    with mmap.mmap(-1, 4 * PAGE) as host:
        base = ctypes.addressof(ctypes.c_char.from_buffer(host))
        assert cuda.call("cuMemHostRegister_v2", base, 2 * PAGE, 3) == OUT_OF_MEMORY
        cuda.must("cuMemHostRegister_v2", base, PAGE, 3)
        assert cuda.call("cuMemHostRegister_v2", base, 8, 3) == ALREADY_REGISTERED
        assert cuda.call("cuMemHostUnregister", base + 8) == NOT_REGISTERED
        cuda.must("cuMemHostUnregister", base)


def test_a_copy_that_touches_freed_memory_ends_the_program(library):
    said = child(
        library,
        "cuda.enter()\nstream, a, b = cuda.stream(), cuda.device_memory(8), cuda.device_memory(8)\n"
        "cuda.set('hold', stream)\n"
        "cuda.must('cuMemcpyAsync', a, b, 8, stream)\ncuda.must('cuMemFree_v2', b)\ncuda.set('let_go', stream)\n"
        "cuda.must('cuStreamSynchronize', stream)",
    )
    assert said.returncode == -6
    assert "fake_cuda: a copy touches freed memory" in said.stderr


def test_an_error_that_breaks_the_context_is_what_every_call_answers(cuda):
    stream, event, memory = cuda.stream(), cuda.event(), cuda.device_memory(PAGE)
    cuda.set("hold", stream)
    cuda.must("cuMemsetD8Async", memory, 1, PAGE, stream)
    cuda.must("cuEventRecord", event, stream)
    cuda.set("poison", ILLEGAL_ADDRESS)
    cuda.set("let_go", stream)
    calls = [("cuStreamSynchronize", stream), ("cuEventQuery", event), ("cuMemsetD8Async", memory, 1, PAGE, stream)]
    ends = [("cuEventDestroy_v2", event), ("cuStreamDestroy_v2", stream), ("cuMemFree_v2", memory)]
    assert {cuda.call(*call) for call in calls} == {ILLEGAL_ADDRESS}
    assert at(memory, PAGE) == bytes(PAGE)
    assert {cuda.call(*call) for call in ends} == {ILLEGAL_ADDRESS}
    assert [cuda.get(f"live_{kind}") for kind in ("streams", "events", "allocations")] == [0, 0, 0]


def test_a_context_ends_with_its_last_holder_and_all_that_is_left_in_it(cuda):
    cuda.made("cuDevicePrimaryCtxRetain", 0)
    cuda.stream(), cuda.event(), cuda.device_memory(8)
    cuda.must("cuDevicePrimaryCtxRelease_v2", 0)
    assert (cuda.get("live_streams"), cuda.get("leaked_at_reset")) == (1, 0)
    cuda.must("cuDevicePrimaryCtxRelease_v2", 0)
    assert (cuda.get("live_streams"), cuda.get("leaked_at_reset")) == (0, 3)
    assert cuda.call("cuEventCreate", ctypes.byref(ctypes.c_uint64()), 0) == CONTEXT_IS_DESTROYED
    assert cuda.call("cuDevicePrimaryCtxRelease_v2", 0) == INVALID_CONTEXT


# --- memory of other processes -----------------------------------------------------------------------------------


def exported(cuda: Cuda, address: int) -> bytes:
    handle = ctypes.create_string_buffer(64)
    cuda.must("cuIpcGetMemHandle", handle, address)
    return handle.raw


def test_a_handle_is_refused_where_it_was_made(cuda):
    handle = exported(cuda, cuda.device_memory(PAGE))
    opened = ctypes.byref(ctypes.c_uint64())
    assert cuda.call("cuIpcOpenMemHandle_v2", opened, IpcHandle.from_buffer_copy(handle), 1) == INVALID_CONTEXT
    assert cuda.call("cuIpcOpenMemHandle_v2", opened, IpcHandle.from_buffer_copy(handle), 0) == INVALID_VALUE


def test_another_process_maps_the_same_memory(cuda, library):
    address = cuda.device_memory(PAGE, 4)
    said = child(
        library,
        f"cuda.enter()\nhandle = IpcHandle.from_buffer_copy({exported(cuda, address)!r})\n"
        "one, two = (cuda.made('cuIpcOpenMemHandle_v2', handle, 1) for _ in range(2))\n"
        "stream = cuda.stream()\ncuda.must('cuMemsetD8Async', one + 8, 6, 8, stream)\n"
        "cuda.must('cuStreamSynchronize', stream)\nseen = at(one, 4)\n"
        "print(one == two, seen, [cuda.call('cuIpcCloseMemHandle', one) for _ in range(3)], cuda.get('live_ipc_maps'))",
    )
    assert said.stdout == rf"True b'\x04\x04\x04\x04' [0, 0, {INVALID_VALUE}] 0" + "\n", said.stderr
    assert at(address, 24) == b"\4" * 8 + b"\6" * 8 + b"\4" * 8
