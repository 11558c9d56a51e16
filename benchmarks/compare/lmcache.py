"""LMCache as a server beside the engine, in the mode that was fastest here.

Its server holds L1 in shared memory, from which the engine's own process copies ("engine driven"), and L2 as a file a
chunk. Tried too and not taken: chunks of 256 tokens, its default, which leave up to one of the engine's blocks more to
compute; lazy offload, which stores what the engine is about to evict, and lost up to half of the hits here; the prefetch
policy `default`, which reads from disk at every hit.
"""

import contextlib
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from remote.servers import LOOPBACK, free_ports

from compare.contender import BLOCK_TOKENS, Contender, Rig
from compare.environments import LMCACHE, LMCACHE_VERSION, NotMade
from compare.peer_server import PeerServer, until_still

# Of L1: above the one it evicts the other, once a second. By default 0.8 and 0.2; what comes in faster finds no room and is
# neither stored nor loaded, which took a fifth of its hits.
WATERMARK, EVICTED_SHARE = 0.6, 0.5
QUIET_S = 0.5
SHARED_MEMORY = Path("/dev/shm")
SHIMS = Path(__file__).with_name("shims")
QUIET = {"LMCACHE_TRACK_USAGE": "false", "LMCACHE_DISABLE_BANNER": "1"}  # by default it reports to its makers


class CacheServer(PeerServer):
    """`lmcache server`, all on loopback, with these many bytes of L1 and of L2."""

    name = "LMCache's server"

    def __init__(self, folder: Path, ram_bytes: int, disk_bytes: int) -> None:
        super().__init__(folder)
        self._ram_bytes, self._disk_bytes = ram_bytes, disk_bytes
        self._drive = folder / "l2"
        self._drive.mkdir(exist_ok=True)
        self.port, self._http_port, self._metrics_port = free_ports(3)
        self._segment = f"peer-{os.getpid()}-{self.port}"

    def command(self) -> list[str]:
        l2 = {
            "type": "fs_native", "base_path": str(self._drive), "use_odirect": True,
            "max_capacity_gb": self._disk_bytes / 2**30, "eviction": {"eviction_policy": "LRU"},
        }  # fmt: skip
        return [
            "env", *(f"{name}={value}" for name, value in QUIET.items()),
            str(LMCACHE.program("lmcache")), "server", "--host", LOOPBACK, "--port", str(self.port),
            "--http-host", LOOPBACK, "--http-port", str(self._http_port), "--prometheus-port", str(self._metrics_port),
            "--supported-transfer-mode", "auto", "--shm-name", self._segment, "--no-l1-use-lazy",
            "--l1-size-gb", str(self._ram_bytes / 2**30), "--chunk-size", str(BLOCK_TOKENS),
            "--eviction-policy", "LRU", "--eviction-trigger-watermark", str(WATERMARK),
            "--eviction-ratio", str(EVICTED_SHARE), "--l2-prefetch-policy", "retain", "--l2-adapter", json.dumps(l2),
        ]  # fmt: skip

    def serves(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("healthcheck")["status"] == "healthy"
        return False

    def ask(self, path: str, method: str = "GET") -> dict[str, Any]:
        request = urllib.request.Request(f"http://{LOOPBACK}:{self._http_port}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def under_way(self) -> tuple[int, int]:
        """Chunks that are still to be written to L2, and bytes that are there."""
        storage = self.ask("status")["storage_manager"]
        stores, disks = storage["store_controller"], storage["l2_eviction_controller"]["adapters"]
        return stores["pending_keys_count"] + stores["in_flight_task_count"], disks[0]["total_bytes_used"]

    def kill(self) -> None:
        """Nobody else takes away the memory of a server that was killed."""
        super().kill()
        for left in SHARED_MEMORY.glob(f"*{self._segment}*"):
            left.unlink()


class LMCache(Contender):
    name, title = "lmcache", "LMCache"

    @classmethod
    def absent(cls) -> str | None:
        try:
            LMCACHE.make()
        except NotMade as why:
            return str(why)
        return None

    @classmethod
    def version(cls) -> str:
        return f"lmcache {LMCACHE_VERSION}"

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig)
        self.server = CacheServer(self.folder, rig.ram_bytes, rig.disk_bytes)

    def mode(self) -> str:
        return (
            f"server; engine-driven by shared memory; chunks of {BLOCK_TOKENS} tokens; L1 LRU, {EVICTED_SHARE:.0%} "
            f"of it above {WATERMARK:.0%}; L2 fs_native, O_DIRECT, LRU; policy retain; stores at once; telemetry off"
        )

    def engine_settings(self) -> dict[str, Any]:
        return {
            "python": LMCACHE.python,
            "env": QUIET | {"PYTHONPATH": str(SHIMS)},
            "connector": {
                "kv_connector": "LMCacheMPConnector",
                "kv_connector_module_path": "lmcache_connector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {
                    "lmcache.mp.host": f"tcp://{LOOPBACK}",
                    "lmcache.mp.port": self.server.port,
                    "lmcache.mp.mp_transfer_mode": "engine_driven",
                },
            },
        }

    def start_daemon(self) -> None:
        self.server.start()

    def stop_daemon(self) -> None:
        self.server.stop()

    def daemon_pids(self) -> list[int]:
        return [self.server.process.pid] if self.server.process else []

    def drop_ram(self) -> None:
        self.settle()  # what is not yet in L2 would be gone
        self.server.ask("cache/clear", "POST")

    def settle(self) -> None:
        until_still(self.server.under_way, QUIET_S)
