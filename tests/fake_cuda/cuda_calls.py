"""The fake driver's entry points as plain calls, for tests of the fake itself."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_CONTEXT, MAP_FAILED, INVALID_PTX = 1, 2, 3, 201, 205, 218
INVALID_HANDLE, NOT_FOUND, NOT_READY, ILLEGAL_ADDRESS, CONTEXT_IS_DESTROYED = 400, 500, 600, 700, 709
ALREADY_REGISTERED, NOT_REGISTERED = 712, 713
IN_STREAM_ORDER, DURING_THE_CALL, IN_ANY_ORDER = 1, 2, 3
PTX = b".visible .entry kvtier_copy(\0"


class IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * 64)]


class Cuda:
    """A library of build.library(), on this thread. Integers are passed as 64 bits, which serves every parameter."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.fake_cuda_get.restype = ctypes.c_long

    def call(self, symbol: str, *arguments: object) -> int:
        words = [ctypes.c_uint64(word) if isinstance(word, int) else word for word in arguments]
        return self._library[symbol](*words)

    def must(self, symbol: str, *arguments: object) -> None:
        result = self.call(symbol, *arguments)
        assert result == 0, f"{symbol}: {result}"

    def made(self, symbol: str, *arguments: object) -> int:
        """What a call puts where its first parameter points."""
        out = ctypes.c_uint64()
        self.must(symbol, ctypes.byref(out), *arguments)
        return out.value

    def set(self, name: str, value: int) -> None:
        self._library.fake_cuda_set(name.encode(), ctypes.c_long(value))

    def get(self, name: str) -> int:
        return self._library.fake_cuda_get(name.encode())

    def fail(self, symbol: str, code: int, at: int = 1) -> None:
        self.set(f"fail_code:{symbol}", code)
        self.set(f"fail_at:{symbol}", at)

    def reset(self) -> None:
        self._library.fake_cuda_reset()

    # --- what most tests need ---------------------------------------------------------------------------------

    def enter(self, device: int = 0) -> None:
        self.must("cuInit", 0)
        self.must("cuCtxPushCurrent_v2", self.made("cuDevicePrimaryCtxRetain", device))

    def stream(self, flags: int = 1) -> int:
        return self.made("cuStreamCreateWithPriority", flags, 0)

    def event(self, flags: int = 0) -> int:
        return self.made("cuEventCreate", flags)

    def device_memory(self, size: int, byte: int = 0) -> int:
        address = self.made("cuMemAlloc_v2", size)
        ctypes.memset(address, byte, size)
        return address

    def host_memory(self, size: int, byte: int = 0) -> int:
        address = self.made("cuMemHostAlloc", size, 0)
        ctypes.memset(address, byte, size)
        return address

    def batch(self, copies: Sequence[tuple[int, int, int]], stream: int, order: int = IN_STREAM_ORDER) -> int:
        """`copies`: target, source, size."""
        columns = [(ctypes.c_uint64 * len(copies))(*column) for column in zip(*copies)]
        attributes = (ctypes.c_int * 6)(order)
        first = ctypes.c_uint64(0)
        return self.call("cuMemcpyBatchAsync_v2", *columns, len(copies), attributes, ctypes.byref(first), 1, stream)

    def function(self) -> int:
        module = self.made("cuModuleLoadData", ctypes.c_char_p(PTX))
        return self.made("cuModuleGetFunction", module, ctypes.c_char_p(b"kvtier_copy"))

    def launch(self, function: int, table: int, count: int, stream: int) -> int:
        words = ctypes.c_uint64(table), ctypes.c_uint32(count)
        parameters = (ctypes.c_void_p * 2)(*(ctypes.addressof(word) for word in words))
        return self.call("cuLaunchKernel", function, 1, 1, 1, 256, 1, 1, 0, stream, parameters, None)

    def is_over(self, event: int) -> bool:
        result = self.call("cuEventQuery", event)
        assert result in (0, NOT_READY)
        return result == 0


def at(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def put(address: int, written: bytes) -> None:
    ctypes.memmove(address, written, len(written))
