"""What bench_gpu.py measures on: memory of every kind that a copy of kvtier's begins or ends in, and copiers."""

import time
from dataclasses import dataclass
from typing import Any

from gpu_compute import usable_torch
from gpu_shapes import Shape
from raw_cuda import RawCuda

from kvtier import _native

MIB, GIB = 1 << 20, 1 << 30
PATHS = ("batch", "async", "kernel")


@dataclass(frozen=True)
class Scale:
    region: int  # bytes of cache, of arena and of GPU tier
    job_blocks: int
    rounds: int
    late: int  # iterations of store under compute
    unordered: int  # of the same without `after`
    decode_rounds: int
    decode_steps: int


TINY = Scale(16 * MIB, 2, 2, 20, 20, 1, 4)


def full(gib: int) -> Scale:
    return Scale(gib * GIB, 64, 8, 1000, 50, 15, 50)


class Rig:
    """Everything that is measured on: a cache in device memory, a registered arena, a GPU tier, copiers."""

    def __init__(self, driver: _native.CudaDriver, raw: RawCuda, ordinal: int, scale: Scale) -> None:
        self.driver, self.raw, self.ordinal, self.scale = driver, raw, ordinal, scale
        self.stream = self.raw.stream()
        self.torch = None if self.raw.fake else usable_torch(ordinal)
        self.arena = _native.Arena.create(scale.region, "kvtier-bench-gpu")
        self.pin, self.pin_seconds = registered(driver, ordinal, self.arena)
        self.allocated = self.raw.host_buffer(scale.region // 2)
        self.tier = _native.DeviceArena.create(driver, ordinal, scale.region)
        self._cache: Any = None
        if self.torch is None:
            self._cache = _native.DeviceArena.create(driver, ordinal, scale.region)
            self.cache = self._cache.address
        else:
            device = self.torch.device("cuda", ordinal)
            self._cache = self.torch.zeros(scale.region, dtype=self.torch.uint8, device=device)
            self.torch.cuda.synchronize(device)
            self.cache = self._cache.data_ptr()
        self._copiers: dict[tuple[str, int, bool], _native.CudaCopier] = {}
        self.notes: set[str] = set(self.arena.notes)

    def pages(self, size: int) -> Any:
        """The cache's first bytes as torch has them."""
        return self._cache[:size]

    def copier(self, path: str, shape: Shape, saving: bool) -> _native.CudaCopier | None:
        """As kvtier's connector makes it. None, with a note, when this path can't be had."""
        key = (path, shape.fragment, saving)
        if key not in self._copiers:
            arguments = {"path": path, "page_bytes": shape.fragment, "low_priority": saving}
            try:
                self._copiers[key] = _native.CudaCopier(self.driver, self.ordinal, **arguments)
            except ValueError as error:
                self.notes.add(f"{path}: {error}")
                return None
            self.notes.update(self._copiers[key].notes)
        return self._copiers[key]

    def chosen(self, shape: Shape, saving: bool) -> _native.CudaCopier:
        """Loads go the way that saves chose, as in the connector."""
        made = self.copier("auto" if saving else self.chosen(shape, True).path, shape, saving)
        assert made is not None
        return made

    def by_path(self, shape: Shape, saving: bool) -> dict[str, _native.CudaCopier]:
        """The chosen one first, under the name of the path that it chose, and all others that can be had."""
        chosen = self.chosen(shape, saving)
        others = {path: self.copier(path, shape, saving) for path in PATHS if path != chosen.path}
        return {chosen.path: chosen} | {path: made for path, made in others.items() if made is not None}

    def close(self) -> None:
        for copier in self._copiers.values():
            copier.close()
        self.pin.close()
        self.tier.close()
        if self.torch is None:
            self._cache.close()
        self.raw.close()
        self.arena.close()


def registered(driver: _native.CudaDriver, ordinal: int, arena: _native.Arena) -> tuple[_native.CudaPin, float]:
    """With the seconds that it took. RuntimeError: not all of it could be registered."""
    begun = time.perf_counter()
    pin = _native.CudaPin(driver, ordinal, arena.address, arena.size)
    while not pin.ready:
        time.sleep(0.0005)
    seconds = time.perf_counter() - begun
    if pin.pinned_bytes < arena.size:  # the kernel can't reach the rest, and no copy of it is fast
        raise RuntimeError(pin.note)
    return pin, seconds
