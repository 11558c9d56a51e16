"""The fake CUDA driver of tests/fake_cuda for tests in Python: what they set, what they ask, how they open it."""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cuda import build

from kvtier import _native

NOTHING_LEFT = dict.fromkeys(
    ("live_contexts", "live_streams", "live_events", "live_allocations", "live_registrations", "live_ipc_maps"), 0
)


class FakeDriver:
    """The library at `path`, as this process has it. Names and their meaning: tests/fake_cuda/control.cpp."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        self._library.fake_cuda_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
        self._library.fake_cuda_set.restype = None
        self._library.fake_cuda_get.argtypes = [ctypes.c_char_p]
        self._library.fake_cuda_get.restype = ctypes.c_long

    def set(self, **settings: int) -> None:
        for name, value in settings.items():
            self._library.fake_cuda_set(name.encode(), value)

    def fail(self, symbol: str, code: int, at: int = 1) -> None:
        """The call of `symbol` that is the `at`-th from now on answers `code`."""
        self._library.fake_cuda_set(f"fail_code:{symbol}".encode(), code)
        self._library.fake_cuda_set(f"fail_at:{symbol}".encode(), at)

    def get(self, name: str) -> int:
        return self._library.fake_cuda_get(name.encode())

    def calls(self, symbol: str) -> int:
        return self.get(f"calls:{symbol}")

    def live(self) -> dict[str, int]:
        """NOTHING_LEFT when all that was made is gone."""
        return {name: self.get(name) for name in NOTHING_LEFT}

    def open(self) -> "_native.CudaDriver":
        driver = _native.CudaDriver.open(self.path)
        assert driver.reason == ""
        return driver

    def reset(self) -> None:
        self._library.fake_cuda_reset()


@contextlib.contextmanager
def fake_driver(*hide: str) -> Iterator[FakeDriver]:
    """Without the entry points `hide`. Skips the test where there is no compiler; at the end all is as at the start."""
    if build.compiler() is None:
        pytest.skip("the fake driver needs a C++ compiler")
    fake = FakeDriver(build.library(hide=hide))
    try:
        yield fake
    finally:
        fake.reset()
