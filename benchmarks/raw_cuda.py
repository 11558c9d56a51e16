"""The driver by ctypes: the plain calls that bench_gpu.py takes its limits from, with nothing of kvtier in between."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np

LIBRARY = "libcuda.so.1"
NON_BLOCKING, PORTABLE = 1, 1
REGISTERED = 1 << 30  # memory is registered piece by piece; pieces end at multiples of this or of a multiple


class RawCuda:
    """One device's primary context, the one that kvtier and torch work in, current on the thread that made this.

    Every method raises RuntimeError with the call and the driver's number when the call fails."""

    def __init__(self, path: str, ordinal: int) -> None:
        self._library = ctypes.CDLL(path or LIBRARY)
        self.fake = hasattr(self._library, "fake_cuda_set")  # the double of tests/fake_cuda: its figures mean nothing
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(ordinal))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxPushCurrent_v2", self._context)
        self._streams: list[int] = []
        self._buffers: list[int] = []

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            raise RuntimeError(f"{name}: error {result}")

    def stream(self) -> int:
        made = ctypes.c_void_p()
        self._call("cuStreamCreateWithPriority", ctypes.byref(made), ctypes.c_uint(NON_BLOCKING), ctypes.c_int(0))
        assert made.value is not None
        self._streams.append(made.value)
        return made.value

    def host_buffer(self, size: int) -> np.ndarray:
        """uint8[size] that the driver allocated pinned. It is gone after close()."""
        made = ctypes.c_void_p()
        self._call("cuMemHostAlloc", ctypes.byref(made), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE))
        assert made.value is not None
        self._buffers.append(made.value)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(made.value))

    def copy(self, stream: int, source: int, target: int, size: int) -> None:
        """Queues it. Either address may be the device's; host memory must be pinned.

        One call, but for cuts where the arena's registration may have them: no copy may cross those."""
        done = 0
        while done < size:
            piece = min(size - done, REGISTERED - (source + done) % REGISTERED, REGISTERED - (target + done) % REGISTERED)
            addresses = (ctypes.c_uint64(target + done), ctypes.c_uint64(source + done))
            self._call("cuMemcpyAsync", *addresses, ctypes.c_size_t(piece), ctypes.c_void_p(stream))
            done += piece

    def fill(self, stream: int, address: int, value: int, size: int) -> None:
        """Queues it: `size` bytes of device memory become `value`."""
        arguments = (ctypes.c_uint64(address), ctypes.c_ubyte(value), ctypes.c_size_t(size))
        self._call("cuMemsetD8Async", *arguments, ctypes.c_void_p(stream))

    def finish(self, stream: int) -> None:
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def close(self) -> None:
        for stream in self._streams:
            self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))
        for buffer in self._buffers:
            self._call("cuMemFreeHost", ctypes.c_void_p(buffer))
        self._streams, self._buffers = [], []
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)


def queried(pci: str, *fields: str) -> dict[str, str]:
    """What nvidia-smi says of the card at this bus address. Empty where there is no nvidia-smi or it fails."""
    command = ["nvidia-smi", f"--id={pci}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in run.stdout.strip().split(","))))


def driver_version(pci: str) -> str:
    """Such as "580.159.04"."""
    version = queried(pci, "driver_version").get("driver_version")
    if version:
        return version
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in first.split() if word.replace(".", "").isdigit() and "." in word), "unknown")


def link(pci: str) -> dict[str, str]:
    """PCIe generation and width, now and at most. Ask right after copies: an idle link is slowed down to save power."""
    fields = ("pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max")
    found = queried(pci, *fields)
    if found:
        return {name.removeprefix("pcie.link."): value for name, value in found.items()}
    folder = Path("/sys/bus/pci/devices") / pci.lower()
    attributes = ("current_link_speed", "max_link_speed", "current_link_width", "max_link_width")
    present = (name for name in attributes if (folder / name).exists())
    return {name: (folder / name).read_text().strip() for name in present}
