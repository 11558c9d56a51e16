"""A KVTierWorker on a fake GPU, beside a fake kvtierd: the test is the engine and says what the daemon does.

The engine has LAYERS layers of BLOCKS blocks in device memory; CHUNK of its blocks make one of ours, which a slot holds.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_driver import FakeDriver
from kvtier.connectors.vllm import copies
from kvtier.connectors.vllm.spec import ArenaSpec
from kvtier.connectors.vllm.worker import KVTierWorker
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec

from kvtier import _native
from kvtier.block import SLOT_UNIT
from kvtier.config import CONNECTOR, Config
from kvtier.protocol import Memory

LAYERS, BLOCKS, CHUNK = 3, 16, 2
PAGE = 8192  # bytes
WHOLE = LAYERS * PAGE * CHUNK  # of one of our blocks; fits a slot unit
MIB = 1 << 20
ARENA = 2 * MIB
PATIENCE_S = 5.0


def eventually(happens: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE_S
    while not (result := happens()):
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.001)
    return result


class FakeGpu:
    """The driver's symbols, and a stream that the engine launches its work on."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self._symbols = ctypes.CDLL(driver.path)
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)
        stream = ctypes.c_void_p()
        self.call("cuStreamCreateWithPriority", ctypes.byref(stream), 1, 0)
        self.stream = int(stream.value or 0)
        driver.set(engine_stream=self.stream)

    def call(self, symbol: str, *arguments: Any) -> None:
        result = self._symbols[symbol](*arguments)
        assert result == 0, f"{symbol}: {result}"

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def compute(self, address: int, size: int, seed: int) -> bytes:
        """A kernel on the engine's stream that will have written the returned bytes."""
        self.call("fake_cuda_fill", ctypes.c_uint64(self.stream), ctypes.c_uint64(address), ctypes.c_uint64(size),
                  ctypes.c_uint64(seed))  # fmt: skip
        written = ctypes.create_string_buffer(size)
        self._symbols.fake_cuda_pattern(written, ctypes.c_size_t(size), ctypes.c_uint64(seed))
        return written.raw

    def close(self) -> None:
        self.call("cuStreamDestroy_v2", ctypes.c_void_p(self.stream))
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        self.call("cuDevicePrimaryCtxRelease_v2", 0)


class FakeDaemon:
    """A WorkerClient: `arenas` are the memories it will be welcomed with, one a connection."""

    path = Path("/")

    def __init__(self) -> None:
        self.arenas: list[Memory] = []
        self.draining = False
        self.said: list[tuple[Any, ...]] = []

    def poll(self, now: float) -> None: ...

    def take_arena(self) -> Memory | None:
        return self.arenas.pop(0) if self.arenas else None

    def mapped(self, now: float, pinned: int, maps_gpu: bool, copies: str) -> None:
        self.said.append(("mapped", pinned, maps_gpu, copies))

    def hang_up(self, now: float) -> None:
        self.draining = False
        self.said.append(("hung up",))

    def close(self) -> None:
        self.said.append(("closed",))


class GpuEngine:
    def __init__(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        self.gpu, self.daemon = gpu, FakeDaemon()
        monkeypatch.setattr(copies, "open_driver", gpu.driver.open)
        monkeypatch.setattr(copies, "engine_stream", lambda device: gpu.stream)
        self.cache = gpu.allocate(LAYERS * BLOCKS * PAGE)
        tensors = [CanonicalKVCacheTensor(self._tensor(layer), PAGE) for layer in range(LAYERS)]
        refs = [CanonicalKVCacheRef(layer, PAGE) for layer in range(LAYERS)]
        parallel = SimpleNamespace(parallel=SimpleNamespace(rank=0))
        spec = SimpleNamespace(config=parallel, blocks_per_chunk=CHUNK, rank_bytes=WHOLE)
        self.worker = KVTierWorker(spec, CanonicalKVCaches(tensors, [refs]))
        self.settings = Config(CONNECTOR, {"start_wait_ms": 0, **settings})
        self._jobs = 0
        self._tokens: dict[int, int] = {}  # job -> token

    def _tensor(self, layer: int) -> SimpleNamespace:
        return SimpleNamespace(
            device=torch.device("cuda", 0), data_ptr=lambda: self.cache + layer * BLOCKS * PAGE,
            stride=lambda dimension: PAGE, element_size=lambda: 1,
        )  # fmt: skip

    def open(self, **more: Any) -> "GpuEngine":
        """The daemon is there, and the worker has begun to map its arena. `more`: further fields of its Memory."""
        self.welcome(1, **more)
        self.worker.open(self.daemon, self.settings)
        self.step()
        return self

    def opened(self, **more: Any) -> "GpuEngine":
        """And is ready to copy."""
        self.open(**more)
        eventually(lambda: self.step() or "mapped" in str(self.daemon.said))
        return self

    def welcome(self, generation: int, **gpu: Any) -> None:
        self.arena = _native.Arena.create(ARENA, "kvtier-gpu-engine", pin=False)
        self.generation = generation
        no_gpu = Memory(generation, os.dup(self.arena.fd), ARENA, b"", 0, b"", b"")
        self.daemon.arenas.append(replace(no_gpu, **gpu))

    def step(self) -> list[int]:
        """Jobs that vLLM hears are over."""
        return [result.job_id for result in self.worker.get_finished()]

    def save(self, blocks: list[int], slots: list[int]) -> int:
        return self._submit(blocks, slots, "")

    def load(self, blocks: list[int], slots: list[int], request: str = "request") -> int:
        return self._submit(blocks, slots, request)

    def _submit(self, blocks: list[int], slots: list[int], request: str) -> int:
        self._jobs += 1
        engine = GPULoadStoreSpec(blocks, [len(blocks)], [0])
        arena = ArenaSpec(self._jobs, self.generation, np.array(slots, np.uint32), request)
        if request:
            assert self.worker.submit_load(self._jobs, arena, engine)
        else:
            assert self.worker.submit_store(self._jobs, engine, arena)
        return self._jobs

    def ends(self, job: int) -> bool:
        """Waits for it; whether it succeeded, by what the scheduler will hear."""
        eventually(lambda: job in self.step())
        _, failed = self.worker.take_settled()[job]
        return not failed

    def settled(self, count: int) -> dict[int, tuple[int, int]]:
        """Waits for so many jobs; what the scheduler will hear of them."""
        settled: dict[int, tuple[int, int]] = {}

        def all_are() -> bool:
            self.step()
            settled.update(self.worker.take_settled())
            return len(settled) == count

        eventually(all_are)
        return settled

    def page(self, layer: int, block: int) -> int:
        return self.cache + (layer * BLOCKS + block) * PAGE

    def compute(self, blocks: list[int], seed: int) -> bytes:
        """The engine computes these blocks. Returns what a slot with them will hold."""
        return b"".join(
            self.gpu.compute(self.page(layer, block), PAGE, seed * 1000 + block * LAYERS + layer)
            for block in blocks
            for layer in range(LAYERS)
        )

    def block(self, blocks: list[int]) -> bytes:
        """What lies in the GPU's memory now."""
        return b"".join(ctypes.string_at(self.page(layer, block), PAGE) for block in blocks for layer in range(LAYERS))

    def slot(self, number: int) -> bytes:
        return bytes(self.arena.view()[number * SLOT_UNIT :][:WHOLE])

    def fill_slot(self, number: int, seed: int) -> bytes:
        content = np.random.default_rng(seed).bytes(WHOLE)
        self.arena.view()[number * SLOT_UNIT :][:WHOLE] = np.frombuffer(content, np.uint8)
        return content
