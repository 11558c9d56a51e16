"""Mooncake Store by vLLM's own MooncakeStoreConnector, on loopback by TCP, for want of RDMA.

A master knows where values lie; an owner, in a process of its own so that they outlive the engine, keeps them in memory and
on disk. All that is put is written to disk at once; what is read from there goes back into memory. Its pool of connections
is off, as by default: with it one run of three stood still in a transfer.
"""

import contextlib
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from remote.mooncake_servers import MooncakeMaster, MooncakeOwner, mooncake_program
from remote.servers import LOOPBACK, Absent

from compare.contender import Contender, Rig
from compare.environments import MOONCAKE, MOONCAKE_VERSION, NotMade
from compare.peer_server import PeerServer, until, until_still

FORGETS_S = 3  # the master, an owner that has gone
LEASE_MS = 5000  # of what was asked for: so long it isn't evicted, and may be read. 10 s by default
WATERMARK, EVICTED_SHARE = 0.7, 0.2  # of memory. By default 0.9 and 0.05, with which a put may find no room
QUIET_S = 2.5  # an owner tells once a second what it has written
BUFFER_BYTES = 64 << 20
# Each value is a file: of the buckets by default, 256 MiB or 500 values, the last would wait in memory.
DISK = {
    "MOONCAKE_OFFLOAD_STORAGE_BACKEND_DESCRIPTOR": "bucket_storage_backend",
    "MOONCAKE_OFFLOAD_BUCKET_KEYS_LIMIT": "1",
    "MOONCAKE_OFFLOAD_HEARTBEAT_INTERVAL_SECONDS": "1",
}


def installed_program(name: str) -> str:
    program = MOONCAKE.site_packages() / "mooncake" / name
    program.chmod(program.stat().st_mode | 0o111)
    return str(program)


class Master(PeerServer, MooncakeMaster):
    def command(self) -> list[str]:
        return [
            installed_program("mooncake_master"), *super().command()[1:], "-enable_offload=true",
            f"-client_ttl={FORGETS_S}", f"-default_kv_lease_ttl={LEASE_MS}",
            f"-eviction_high_watermark_ratio={WATERMARK}", f"-eviction_ratio={EVICTED_SHARE}",
            "-promotion_on_hit=true", "-promotion_admission_threshold=1", "-promotion_max_per_heartbeat=64",
        ]  # fmt: skip

    def serves(self) -> bool:
        return MooncakeMaster.answers(self)

    def metric(self, name: str) -> int:
        address = f"http://{LOOPBACK}:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=5) as answer:
            values = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
        return int(float(values[name]))

    def has_a_disk(self) -> bool:
        return self.metric("master_total_file_capacity_bytes") > 0


class Owner(PeerServer, MooncakeOwner):
    def __init__(self, folder: Path, master: Master, ram_bytes: int, disk_bytes: int) -> None:
        super().__init__(folder, master, str(ram_bytes))
        self._knows, self._disk_bytes = master, disk_bytes
        self._drive = folder / "ssd"
        self._drive.mkdir(exist_ok=True)

    def command(self) -> list[str]:
        settings = DISK | {
            "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH": str(self._drive),
            "MOONCAKE_OFFLOAD_TOTAL_SIZE_LIMIT_BYTES": str(self._disk_bytes),
            "MOONCAKE_OFFLOAD_BUCKET_MAX_TOTAL_SIZE": str(self._disk_bytes),
        }  # fmt: skip
        return [
            "env", *(f"{name}={value}" for name, value in settings.items()),
            installed_program("mooncake_client"), *super().command()[1:], "-enable_offload=true",
        ]  # fmt: skip

    def serves(self) -> bool:
        """What is put before its disk is known is never written there."""
        with contextlib.suppress(OSError):
            return MooncakeOwner.answers(self) and self._knows.has_a_disk()
        return False


class Mooncake(Contender):
    name, title = "mooncake", "Mooncake Store"

    @classmethod
    def absent(cls) -> str | None:
        try:
            MOONCAKE.make()
            mooncake_program("mooncake_master")
        except (NotMade, Absent) as why:
            return str(why)
        return None

    @classmethod
    def version(cls) -> str:
        return f"mooncake {MOONCAKE_VERSION}"

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig)
        self.master = Master(self.folder / "master")
        self.owner = Owner(self.folder / "owner", self.master, rig.ram_bytes, rig.disk_bytes)

    def mode(self) -> str:
        return (
            "vLLM's MooncakeStoreConnector, standalone store, TCP on loopback; all written to disk at once, a file a "
            "block, promoted when read; what can't be loaded is recomputed"
        )

    def engine_settings(self) -> dict[str, Any]:
        settings = self.folder / "mooncake.json"
        settings.write_text(json.dumps({
            "mode": "standalone-store", "metadata_server": "P2PHANDSHAKE", "protocol": "tcp", "enable_offload": True,
            "master_server_address": f"{LOOPBACK}:{self.master.port}", "global_segment_size": 0,
            "local_buffer_size": BUFFER_BYTES,
        }))  # fmt: skip
        return {
            "python": MOONCAKE.python,
            "env": {
                "PYTHONPATH": "",
                "PYTHONHASHSEED": "0",  # or its keys are others after a restart
                "MOONCAKE_CONFIG_PATH": str(settings),
                "MOONCAKE_REQUESTER_LOCAL_HOSTNAME": LOOPBACK,
            },
            "connector": {
                "kv_connector": "MooncakeStoreConnector",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",  # by default the request fails
            },
        }  # fmt: skip

    def start_daemon(self) -> None:
        self.master.start()
        self.owner.start()

    def stop_daemon(self) -> None:
        self.owner.stop()
        self.master.stop()

    def daemon_pids(self) -> list[int]:
        return [server.process.pid for server in (self.master, self.owner) if server.process]

    def drop_ram(self) -> None:
        """By a new owner on the same disk, once the master has forgotten the former."""
        self.settle()
        self.owner.stop()
        assert until(lambda: not self.master.segments()), "the master doesn't forget an owner"
        self.owner.start()
        time.sleep(FORGETS_S)  # it tells the master what lies on its disk with its next heartbeats

    def settle(self) -> None:
        until_still(lambda: self.master.metric("master_allocated_file_size_bytes"), QUIET_S)
