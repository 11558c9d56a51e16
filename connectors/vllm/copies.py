"""Which copiers carry out a worker's jobs, by where the engine's KV cache lies.

    cpu     HostCopies: memcpy by threads
    cuda    CudaCopies: by the GPU, on streams of their own, beside the forward pass. The arena must be registered with the
            driver, which takes long and is done by a thread; what it refuses is copied too, but slowly

Two copiers of each, because a copier works first in, first out: a request that waits for a load must not queue behind
saves. The saver's stream has the least priority, and it can be told how fast it may go.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from kvtier.connectors.vllm.layout import Fragments

from kvtier import _native
from kvtier.config import Config
from kvtier.errors import KVTierError
from kvtier.protocol import GPU_STAMP_BYTES, gpu_stamp_of

if TYPE_CHECKING:
    import torch
    from vllm.v1.kv_offload.base import CanonicalKVCaches

log = logging.getLogger("kvtier")

PATHS = ("auto", "batch", "async", "kernel")


class CantCopy(KVTierError):
    """Nothing can be copied from and to where this engine's KV cache lies; the message says why."""


class Copies(Protocol):
    saver: Any
    loader: Any

    @property
    def name(self) -> str:
        """How: one of protocol.COPIES."""

    def save(self, pieces: Fragments) -> int: ...

    def load(self, pieces: Fragments) -> int: ...

    def pace(self, bytes_per_s: int) -> None:
        """No faster than this from now on, together, shall saves be; 0: as fast as can be."""

    def register(self, address: int, size: int) -> Any:
        """Make host memory known to what copies. None: needless; else a _native.CudaPin, which is ready later."""

    def registered(self, is_whole: bool) -> None:
        """That is over. To be called before anything is copied."""

    def attach_gpu(self, handle: bytes, size: int, uuid: bytes, stamp: bytes) -> Any:
        """Map the GPU tier's `size` bytes and the stamp behind them, and see whether that arrives right. Takes some ms, on
        any thread. None: these bytes can't be read from here anyway. CantCopy says why it failed."""

    def close(self) -> None:
        """When all that was submitted is done."""


class HostCopies:
    name = "memcpy"

    def __init__(self, threads: int) -> None:
        self.saver, self.loader = _native.Copier(threads), _native.Copier(threads)

    def save(self, pieces: Fragments) -> int:
        return int(self.saver.submit(pieces.engine, pieces.arena, pieces.size))

    def load(self, pieces: Fragments) -> int:
        return int(self.loader.submit(pieces.arena, pieces.engine, pieces.size))

    def pace(self, bytes_per_s: int) -> None: ...

    def register(self, address: int, size: int) -> None: ...

    def registered(self, is_whole: bool) -> None: ...

    def attach_gpu(self, handle: bytes, size: int, uuid: bytes, stamp: bytes) -> None: ...

    def close(self) -> None:
        self.saver.close()
        self.loader.close()


class CudaCopies:
    """Every job waits for what the engine's stream holds when it is submitted, so it must be submitted by the thread that
    launches the engine's work. A save then never reads what isn't computed yet; a load never writes to a block that is
    still being read for whoever had it before, or zeroed for whom it is now. Whoever learns that a load is over may
    launch what reads it: by then its bytes are there."""

    def __init__(
        self, driver: _native.CudaDriver, device: int, page_bytes: int, path: str, stream: Callable[[], int]
    ) -> None:
        """`page_bytes`: of the smallest piece. `stream` tells the engine's current stream. ValueError when `path` can't be
        had, RuntimeError when the GPU can't be used."""
        self._driver, self._device, self._page_bytes, self._stream = driver, device, page_bytes, stream
        self._pace = 0
        self._open(path)
        for note in self.loader.notes:
            log.info("copies of GPU %d: %s", device, note)

    @property
    def name(self) -> str:
        return str(self.loader.path)

    def save(self, pieces: Fragments) -> int:
        return int(self.saver.submit(pieces.engine, pieces.arena, pieces.size, after=self._stream()))

    def load(self, pieces: Fragments) -> int:
        return int(self.loader.submit(pieces.arena, pieces.engine, pieces.size, after=self._stream()))

    def pace(self, bytes_per_s: int) -> None:
        self._pace = bytes_per_s
        self.saver.pace(bytes_per_s)

    def register(self, address: int, size: int) -> Any:
        return _native.CudaPin(self._driver, self._device, address, size)

    def registered(self, is_whole: bool) -> None:
        """A kernel that reads memory the driver doesn't know ends the engine's context, and only for the plainest copy does
        the driver promise to go through buffers of its own."""
        if is_whole or {self.saver.path, self.loader.path} == {"async"}:
            return
        log.warning("not all of the arena could be registered: GPU %d copies piece by piece", self._device)
        self.close()
        self._open("async")

    def attach_gpu(self, handle: bytes, size: int, uuid: bytes, stamp: bytes) -> Any:
        if uuid.hex() not in {device["uuid"] for device in self._driver.devices}:
            raise CantCopy("the GPU with the GPU tier is hidden from this engine, perhaps by CUDA_VISIBLE_DEVICES")
        try:
            with contextlib.ExitStack() as undone:
                tier = _native.DeviceArena.attach(self._driver, self._device, handle, size + GPU_STAMP_BYTES)
                undone.callback(tier.close)
                self._check(tier.address + size, gpu_stamp_of(stamp))
                undone.pop_all()
                return tier
        except (RuntimeError, MemoryError, ValueError) as error:
            raise CantCopy(f"the GPU tier can't be mapped: {error}") from None

    def close(self) -> None:
        self.saver.close()
        self.loader.close()

    def _check(self, address: int, wanted: np.ndarray) -> None:
        """By copiers like the loader and like the one it may become: they are this call's own, for it may not be the
        engine's thread. To the host a copy needs no registered memory only on the path async."""
        for path in sorted({self.loader.path, "async"}):
            read = np.zeros_like(wanted)
            with _native.DeviceArena.create(self._driver, self._device, wanted.nbytes) as here:
                self._copy(path, address, here.address, wanted.nbytes)
                self._copy("async", here.address, read.ctypes.data, wanted.nbytes)
            if not np.array_equal(read, wanted):
                raise CantCopy("the GPU tier's bytes arrive wrong at this GPU (IOMMU or ACS?)")

    def _copy(self, path: str, *ends_and_size: int) -> None:
        copier = _native.CudaCopier(self._driver, self._device, path=path, page_bytes=self._page_bytes)
        with contextlib.closing(copier):
            copier.wait(copier.submit(*(np.array([number], np.uint64) for number in ends_and_size)))
            ((_, _, _, error),) = copier.poll()
        if error:
            raise RuntimeError(error)

    def _open(self, path: str) -> None:
        common = {"path": path, "page_bytes": self._page_bytes}
        self.saver = _native.CudaCopier(self._driver, self._device, low_priority=True, **common)
        self.loader = _native.CudaCopier(self._driver, self._device, **common)
        self.saver.pace(self._pace)


def copies_for(caches: "CanonicalKVCaches", page_bytes: int, settings: Config) -> Copies:
    """For an engine's KV cache, whose smallest page has `page_bytes`. CantCopy."""
    devices = {tensor.tensor.device for tensor in caches.tensors}
    kinds = {device.type for device in devices}
    if kinds == {"cpu"}:
        return HostCopies(settings.count("copy_threads"))
    if kinds != {"cuda"} or len(devices) > 1:
        raise CantCopy(f"kvtier doesn't know {', '.join(sorted(map(str, devices)))} memory")
    (device,) = devices
    driver = open_driver()
    if driver.reason:
        raise CantCopy(driver.reason)
    ordinal = device.index or 0
    try:
        return CudaCopies(driver, ordinal, page_bytes, settings.text("copy.path"), lambda: engine_stream(device))
    except (ValueError, RuntimeError) as error:
        raise CantCopy(f"GPU {ordinal}: {error}") from None


def open_driver() -> _native.CudaDriver:
    return _native.CudaDriver.open()


def engine_stream(device: "torch.device") -> int:
    """The stream that this thread launches the engine's work on."""
    import torch

    return int(torch.cuda.current_stream(device).cuda_stream)
