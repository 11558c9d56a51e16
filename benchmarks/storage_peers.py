"""LMCache's and Mooncake's stores, as storage_engines.py has it: in environments of theirs, by their own interfaces.

    lmcache             StorageManager, which its server has: reserve, copy, finish; prefetch, read, finish
    lmcache_inprocess   LocalCPUBackend, which its former connector has: allocate, copy, submit_put_task; get_blocking, copy
    lmcache_fs_native   its adapter of files, written in C++, from and to objects of the StorageManager
    lmcache_raw_block   its adapter of one file or device, written in Rust, likewise
    mooncake            put_from and get_into; the memory is that of another process, by TCP on loopback
    mooncake_local      the same; the memory is this process's own, as where each engine lends some

LMCache's copies are those of the limit: torch's, with one thread or two, are no faster. Its server's messages aren't
there, nor its connector's.
"""

import ctypes
import os
import random
import select
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from remote import servers
from remote.mooncake_servers import MooncakeMaster, MooncakeOwner, mooncake_program
from storage_engines import CELL, DISK, PATIENCE_S, ROOM, InMemory, Storage, requests, some_bytes

DISK_WORKERS = 8
CLIENT_TTL_S = 60
SLOT_HEADER, INDEX_BYTES = 4096, 16 << 20  # of raw_block


# --- LMCache -----------------------------------------------------------------------------------------------------


def storage_manager(size: int) -> Any:
    """Evicts nothing: what was put is deleted in time."""
    from lmcache.v1.distributed import config
    from lmcache.v1.distributed.storage_manager import StorageManager

    memory = config.L1MemoryManagerConfig(size, use_lazy=False)
    eviction = config.EvictionConfig("LRU", trigger_watermark=1.0)
    return StorageManager(config.StorageManagerConfig(config.L1ManagerConfig(memory), eviction))


def layout(size: int) -> Any:
    import torch
    from lmcache.v1.distributed.api import MemoryLayoutDesc

    return MemoryLayoutDesc([torch.Size([size])], [torch.uint8])


def object_key() -> Any:
    from lmcache.v1.distributed.api import ObjectKey

    return ObjectKey(os.urandom(32), "model", 0)


class LMCache(InMemory):
    mode = "StorageManager's L1 in the process that asks, without its server's messages; eager, in POSIX shared memory"

    def __init__(self, folder: Path) -> None:
        from lmcache.v1.distributed.api import GroupedObjectKeys, PrefetchTaskSpec

        super().__init__()
        self.version = f"lmcache {version('lmcache')}"
        self._manager, self._keys = storage_manager(ROOM), {}
        self._task = lambda keys, of: PrefetchTaskSpec([GroupedObjectKeys(keys, 0, of)])

    def clear(self, size: int) -> None:
        deleted, kept = self._manager.delete_l1_keys(list(self._keys.values()))
        assert (deleted, kept) == (len(self._keys), 0)
        self._keys = {start: object_key() for start in range(0, CELL, size)}
        self._layout = layout(size)

    def put(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            keys = [self._keys[start] for start in starts]
            objects = self._manager.reserve_write(keys, self._layout)
            for start, key in zip(starts, keys, strict=True):
                ctypes.memmove(objects[key].data_ptr, self.from_ + start, size)
            self._manager.finish_write(keys)

    def get(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            keys = [self._keys[start] for start in starts]
            handle = self._manager.submit_prefetch_task(self._task(keys, self._layout), skip_l2=True)
            found = self._manager.query_prefetch_status(handle)
            assert found.l1_hit_count == len(keys)
            with self._manager.read_prefetched_results(keys) as objects:
                for start, each in zip(starts, objects, strict=True):
                    ctypes.memmove(self.to + start, each.data_ptr, size)
            self._manager.finish_read_prefetched(keys)

    def close(self) -> None:
        self._manager.close()


class LMCacheInProcess(InMemory):
    mode = "LocalCPUBackend in the process that asks, a call a block; deprecated, and without a connector for CPUs"

    def __init__(self, folder: Path) -> None:
        import torch
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

        super().__init__()
        self.version = f"lmcache {version('lmcache')}"
        given = LMCacheEngineConfig.from_defaults(local_cpu=True, max_local_cpu_size=ROOM / (1 << 30))
        facts = LMCacheMetadata("model", 1, 1, 0, 0, torch.uint8, (1, 2, 256, 1, 64))
        self._backend = LocalCPUBackend(given, facts, dst_device="cpu")
        self._key = lambda: CacheEngineKey("model", 1, 0, random.getrandbits(64), torch.uint8)
        self._keys: dict[int, Any] = {}
        self._dtype, self._shape = torch.uint8, torch.Size

    def clear(self, size: int) -> None:
        for key in self._keys.values():
            assert self._backend.remove(key)
        self._keys = {start: self._key() for start in range(0, CELL, size)}

    def put(self, size: int, at_once: int) -> None:
        shape = self._shape([size])
        for starts in requests(size, at_once):
            for start in starts:
                each = self._backend.allocate(shape, self._dtype)
                ctypes.memmove(each.data_ptr, self.from_ + start, size)
                self._backend.submit_put_task(self._keys[start], each)
                each.ref_count_down()

    def get(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            for start in starts:
                each = self._backend.get_blocking(self._keys[start])
                ctypes.memmove(self.to + start, each.data_ptr, size)
                each.ref_count_down()


class LMCacheDisk(Storage):
    """Between objects of a StorageManager and the disk."""

    def __init__(self, folder: Path) -> None:
        self.version = f"lmcache {version('lmcache')}"
        folder.mkdir()
        self._folder, self._manager = folder, storage_manager(CELL + (64 << 20))
        self._memory: dict[int, Any] = {}  # start -> object
        self._reserved: list[Any] = []
        self._keys: dict[int, Any] = {}
        self._size, self._adapter = 0, None

    def _open(self, size: int) -> Any:
        """An adapter for blocks of this size."""
        raise NotImplementedError

    def clear(self, size: int) -> None:
        if self._adapter is not None:
            self._adapter.delete(list(self._keys.values()))
        if size != self._size:
            self._manager.delete_l1_keys(self._reserved, force=True)
            keys = [object_key() for _ in range(0, CELL, size)]
            objects = self._manager.reserve_write(keys, layout(size))
            self._manager.finish_write(keys)
            self._memory = dict(zip(range(0, CELL, size), (objects[key] for key in keys), strict=True))
            content = some_bytes(size)
            for each in self._memory.values():
                ctypes.memmove(each.data_ptr, content.ctypes.data, size)
            self._adapter, self._size, self._reserved = self._open(size), size, keys
        self._keys = {start: object_key() for start in range(0, CELL, size)}

    def put(self, size: int, at_once: int) -> None:
        tasks = {self._adapter.submit_store_task(*self._of(starts)) for starts in requests(size, at_once)}
        while tasks:
            wait(self._adapter.get_store_event_fd())
            for task, result in self._adapter.pop_completed_store_tasks().items():
                assert result.is_successful(), result
                tasks.remove(task)

    def get(self, size: int, at_once: int) -> None:
        tasks = {self._adapter.submit_load_task(*self._of(starts)): len(starts) for starts in requests(size, at_once)}
        while tasks:
            wait(self._adapter.get_load_event_fd())
            for task in list(tasks):
                if (loaded := self._adapter.query_load_result(task)) is not None:
                    assert loaded.popcount() == tasks.pop(task)

    def _of(self, starts: Sequence[int]) -> tuple[list[Any], list[Any]]:
        return [self._keys[start] for start in starts], [self._memory[start] for start in starts]

    def close(self) -> None:
        if self._adapter is not None:
            self._adapter.close()
        self._manager.close()


def wait(event_fd: int) -> None:
    assert select.select([event_fd], [], [], PATIENCE_S)[0], "LMCache doesn't answer"
    os.eventfd_read(event_fd)


class FsNative(LMCacheDisk):
    mode = f"fs_native, use_odirect, {DISK_WORKERS} workers, a file a block"
    durable = "no: written by O_DIRECT and renamed, never synced; no checksum"

    def _open(self, size: int) -> Any:
        from lmcache.v1.distributed.l2_adapters import create_l2_adapter
        from lmcache.v1.distributed.l2_adapters.fs_native_l2_adapter import FSNativeL2AdapterConfig

        if self._adapter is not None:
            return self._adapter
        given = FSNativeL2AdapterConfig(str(self._folder), num_workers=DISK_WORKERS, use_odirect=True)
        return create_l2_adapter(given, self._manager.l1_memory_desc)


class RawBlock(LMCacheDisk):
    mode = f"raw_block, O_DIRECT, {DISK_WORKERS} workers each way, on one file of a fixed size"
    durable = "no: written by O_DIRECT, and the index only each 60 s; no checksum of the blocks"

    def _open(self, size: int) -> Any:
        from lmcache.v1.distributed.l2_adapters import create_l2_adapter
        from lmcache.v1.distributed.l2_adapters.raw_block_l2_adapter import RawBlockL2AdapterConfig

        if self._adapter is not None:
            self._adapter.close()
        device, slot = self._folder / "device", size + SLOT_HEADER
        with device.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, INDEX_BYTES + DISK // size * slot + (1 << 20))
        given = RawBlockL2AdapterConfig(
            device_path=str(device), slot_bytes=slot, meta_total_bytes=INDEX_BYTES, load_checkpoint_on_init=False,
            num_store_workers=DISK_WORKERS, num_load_workers=DISK_WORKERS,
        )  # fmt: skip
        return create_l2_adapter(given, self._manager.l1_memory_desc)


# --- Mooncake ----------------------------------------------------------------------------------------------------


class PatientMaster(MooncakeMaster):
    """Whose clients may be starved of the processor for a while without losing all that they keep."""

    def command(self) -> list[str]:
        return [*super().command(), f"-client_ttl={CLIENT_TTL_S}"]


class Mooncake(InMemory):
    def __init__(self, folder: Path, local: bool) -> None:
        super().__init__()
        try:
            mooncake_program("mooncake_master")
        except servers.Absent as reason:
            raise OSError(str(reason)) from None
        from mooncake.store import MooncakeDistributedStore

        self.version = f"mooncake {version('mooncake-transfer-engine-non-cuda')}"
        where = "of this process" if local else "of another process, by TCP on loopback"
        self.mode = f"a master; the memory is {where}; batch_put_from and batch_get_into, one block: put_from and get_into"
        self._master = PatientMaster(folder / "master")
        self._master.start()
        self._daemons = [self._master]
        if not local:
            self._daemons.append(MooncakeOwner(folder / "owner", self._master, str(ROOM)))
            self._daemons[-1].start()
        self.pids = tuple(daemon.process.pid for daemon in self._daemons)
        self._store, self._names = MooncakeDistributedStore(), {}
        here = servers.LOOPBACK
        lent = ROOM if local else 0
        assert self._store.setup(here, "P2PHANDSHAKE", lent, 0, "tcp", "", f"{here}:{self._master.port}") == 0
        for buffer in (self.source, self.target):
            assert self._store.register_buffer(buffer.ctypes.data, CELL) == 0

    def clear(self, size: int) -> None:
        for name in self._names.values():
            self._store.remove(name, True)
        self._names = {start: os.urandom(16).hex() for start in range(0, CELL, size)}

    def put(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            names = [self._names[start] for start in starts]
            if at_once == 1:
                assert self._store.put_from(names[0], self.from_ + starts[0], size) == 0
                continue
            done = self._store.batch_put_from(names, [self.from_ + start for start in starts], [size] * len(starts))
            assert set(done) == {0}, set(done)

    def get(self, size: int, at_once: int) -> None:
        for starts in requests(size, at_once):
            names = [self._names[start] for start in starts]
            if at_once == 1:
                assert self._store.get_into(names[0], self.to + starts[0], size) == size
                continue
            found = self._store.batch_get_into(names, [self.to + start for start in starts], [size] * len(starts))
            assert set(found) == {size}, set(found)

    def close(self) -> None:
        self._store.close()
        for daemon in reversed(self._daemons):
            daemon.kill()


MAKERS: dict[str, Callable[[Path], Storage]] = {
    "lmcache": LMCache,
    "lmcache_inprocess": LMCacheInProcess,
    "lmcache_fs_native": FsNative,
    "lmcache_raw_block": RawBlock,
    "mooncake": lambda folder: Mooncake(folder, local=False),
    "mooncake_local": lambda folder: Mooncake(folder, local=True),
}
