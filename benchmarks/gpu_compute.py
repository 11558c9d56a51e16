"""What an engine does with its GPU while bench_gpu.py copies: pages written late, decoding, and copies without end."""

import itertools
import threading
import time
from typing import Any

import numpy as np
from gpu_shapes import Job
from raw_cuda import RawCuda

from kvtier import _native

SLEEP_CYCLES = (200_000, 2_000_000)  # 0.1 to 1 ms on an H100
DELAYING_FILLS = 8
LAYER_ROWS, LAYER_COLUMNS = 8192, 16384  # a layer's weights, bfloat16: 256 MiB
SUBMITTED = 16  # jobs that keep a copier busy while Python does something else


def usable_torch(ordinal: int) -> Any:
    """The module, or None where it isn't or has no such GPU."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() and ordinal < torch.cuda.device_count() else None


class TorchWriter:
    """Writes an engine's pages late: a kernel of torch that only passes time, then one that writes."""

    def __init__(self, torch: Any, pages: Any) -> None:
        self._torch, self._pages = torch, pages
        self._made = torch.cuda.Stream(pages.device)
        self.stream = self._made.cuda_stream
        self._rng = np.random.default_rng(1)

    def write_late(self, value: int) -> None:
        with self._torch.cuda.stream(self._made):
            self._torch.cuda._sleep(int(self._rng.integers(*SLEEP_CYCLES)))
            self._pages.fill_(value)

    def finish(self) -> None:
        self._made.synchronize()


class DriverWriter:
    """The same by the driver alone: fills of a scratch region pass the time."""

    def __init__(self, raw: RawCuda, pages: tuple[int, int], scratch: tuple[int, int]) -> None:
        self._raw, self._pages, self._scratch = raw, pages, scratch
        self.stream = raw.stream()

    def write_late(self, value: int) -> None:
        for _ in range(DELAYING_FILLS):
            self._raw.fill(self.stream, self._scratch[0], 0, self._scratch[1])
        self._raw.fill(self.stream, self._pages[0], value, self._pages[1])

    def finish(self) -> None:
        self._raw.finish(self.stream)


class Decode:
    """Steps bound by memory, as decoding is: every layer's weights are read once, for one token."""

    def __init__(self, torch: Any, ordinal: int, weight_bytes: int) -> None:
        self._torch, device = torch, torch.device("cuda", ordinal)
        layer_bytes = LAYER_ROWS * LAYER_COLUMNS * 2
        self.bytes = weight_bytes // layer_bytes * layer_bytes
        kind = {"dtype": torch.bfloat16, "device": device}
        self._layers = [torch.randn(LAYER_ROWS, LAYER_COLUMNS, **kind) for _ in range(weight_bytes // layer_bytes)]
        self._token, self._result = torch.randn(LAYER_COLUMNS, **kind), torch.empty(LAYER_ROWS, **kind)
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def seconds(self, steps: int) -> list[float]:
        """How long each of them took, by events on its stream. All are queued before the first is over."""
        torch = self._torch
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        with torch.cuda.stream(self._stream):
            marks[0].record()
            for mark in marks[1:]:
                for layer in self._layers:
                    torch.mv(layer, self._token, out=self._result)
                mark.record()
        self._stream.synchronize()
        return [begun.elapsed_time(ended) / 1e3 for begun, ended in itertools.pairwise(marks)]


class Saturation:
    """Copies beside something else: a thread submits a copier's jobs over and over, so that it is never without.

    Use it in a with statement. Of a copier's jobs no two may have a target in common, and there must be more than
    SUBMITTED of them. `gb_s` is what was copied, from the first completion to the end."""

    def __init__(self, work: list[tuple[_native.CudaCopier, list[Job]]]) -> None:
        assert all(len(jobs) > SUBMITTED for _, jobs in work)
        self._work = [(copier, itertools.cycle(jobs)) for copier, jobs in work]
        self._stop, self._moving = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure = ""
        self.gb_s = 0.0

    def __enter__(self) -> "Saturation":
        if self._work:
            self._thread.start()
            self._moving.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._work:
            self._stop.set()
            self._thread.join()
        if self._failure:
            raise RuntimeError(self._failure)

    def _run(self) -> None:
        moved, begun = 0, 0.0
        try:
            while not self._stop.wait(0.0002):
                for copier, jobs in self._work:
                    moved += collected(copier)
                    while copier.pending < SUBMITTED:
                        copier.submit(*next(jobs))
                if moved and not begun:
                    moved, begun = 0, time.perf_counter()
                    self._moving.set()
            self.gb_s = moved / 1e9 / (time.perf_counter() - begun)
            for copier, _ in self._work:
                finish(copier)
        except RuntimeError as failure:  # told by the thread that asked for the copies
            self._failure = str(failure)
        finally:
            self._moving.set()


def collected(copier: _native.CudaCopier) -> int:
    """Bytes of the jobs that are over. RuntimeError when one of them failed."""
    moved = 0
    for _, size, _, error in copier.poll():
        if error:
            raise RuntimeError(error)
        moved += size
    return moved


def finish(copier: _native.CudaCopier) -> None:
    while copier.pending:
        time.sleep(0.0005)
    collected(copier)
