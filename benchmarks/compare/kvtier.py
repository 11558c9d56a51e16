"""kvtier as its users run it: default settings but for how much room it has and where, and what mode() says besides."""

from importlib.metadata import version
from typing import Any

from kvtierd import KVTierd, eventually

from compare.contender import FIRST, PATIENCE_S, Contender, Rig
from kvtier import observer


class KVTier(Contender):
    name, title = "kvtier", "kvtier"

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig)
        self.daemon = KVTierd(
            self.folder,
            {
                "cpu.capacity": rig.ram_bytes,
                "nvme.paths": self.folder / "drive",
                "nvme.capacity": rig.disk_bytes,
                "nvme.endurance_dwpd": 1000,  # these few GiB are a small part of the drive that wears out
                "cost.holdout": 0,  # by default one request in 100 goes without: in cells of a few it would be all one sees
                "cost.calibrate_s": 2,  # as by default; KVTierd is for tests, which don't want it
            },
        )

    @classmethod
    def version(cls) -> str:
        return f"kvtier {version('kvtier')}"

    def mode(self) -> str:
        room = f"RAM {self.rig.ram_bytes >> 20} MiB, drive {self.rig.disk_bytes >> 30} GiB"
        return f"defaults; {room}, nvme.endurance_dwpd=1000, cost.holdout=0"

    def engine_settings(self) -> dict[str, Any]:
        connector = {
            "kv_connector": "KVTierConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"kvtier": {"socket": str(self.daemon.socket)}},
        }
        return {"connector": connector}

    def start_daemon(self) -> None:
        if self.daemon.process is not None and self.daemon.process.poll() is not None:
            self.daemon.kill()  # somebody else did: it is only reaped
        self.daemon.start()

    def stop_daemon(self) -> None:
        if self.daemon.process is not None:
            self.daemon.terminate()
            self.daemon.process = None

    def daemon_pids(self) -> list[int]:
        return [] if self.daemon.process is None else [self.daemon.pid]

    def drop_ram(self) -> None:
        """By a restart of kvtierd; returns when the engine can load from it."""
        self.stop_daemon()
        self.start_daemon()
        eventually(self._is_joined, PATIENCE_S)

    def _is_joined(self) -> bool:
        """The engine's worker has mapped the arena. An engine hears that only while it steps."""
        assert self.engine is not None
        self.engine.generate([FIRST], 1, logprobs=0)
        return any(engine["copies"] for engine in self.daemon.snapshot()["engines"])

    def settle(self) -> None:
        assert observer.flush(self.daemon.socket, PATIENCE_S)
