"""One way to serve conversations: an engine, and what keeps KV for it, if anything does.

All contenders have the same engine, model, arithmetic and core, the same room in the engine's own cache, in RAM and on
disk, and a folder of their own; what differs is engine_settings() and the daemon. Who writes one for another peer gives
it the best mode that runs here, and says in mode() which that is.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import Engine

BLOCK_TOKENS = 128
BLOCK_BYTES_BF16 = 2_949_120  # of SmolLM2: 30 layers, K and V, 3 heads of 64
FIRST = [5, 6, 7]  # a first request, which pays for what an engine sets up once
PATIENCE_S = 60.0


class CannotDo(Exception):
    """This contender can't; the message is the exact reason, for the table."""


@dataclass(frozen=True)
class Rig:
    """What all contenders of a run share."""

    model: Path
    dtype: str
    folder: Path
    engine_blocks: int = 65  # 8,192 tokens, the model's context, and the one that vLLM keeps for itself
    # kvtier lets loads pin half of its RAM, and LMCache begins to evict at 60 %: the hit of 46 blocks fits into both.
    ram_blocks: int = 93
    disk_bytes: int = 4 << 30

    @property
    def block_bytes(self) -> int:
        return BLOCK_BYTES_BF16 * (1 if self.dtype == "bfloat16" else 2)

    @property
    def ram_bytes(self) -> int:
        """A multiple of 8 MiB."""
        return -(-self.ram_blocks * self.block_bytes // (8 << 20)) * (8 << 20)


class Contender:
    name: str
    title: str

    def __init__(self, rig: Rig) -> None:
        self.rig, self.folder = rig, rig.folder / self.name
        self.folder.mkdir(parents=True)
        self.engine: Engine | None = None

    @classmethod
    def absent(cls) -> str | None:
        """Why it can't run on this machine, in the words of who refuses; None: it can."""
        return None

    @classmethod
    def version(cls) -> str:
        raise NotImplementedError

    def mode(self) -> str:
        raise NotImplementedError

    def engine_settings(self) -> dict[str, Any]:
        """Arguments of Engine over those that all contenders share."""
        return {}

    # --- what keeps KV outside of the engine -------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Nothing, where there is none."""

    def stop_daemon(self) -> None:
        """In order."""

    def daemon_pids(self) -> list[int]:
        return []

    def drop_ram(self) -> None:
        """What is in its RAM tier goes, what is on disk stays."""
        raise CannotDo("it keeps nothing outside of the engine")

    def settle(self) -> None:
        """Returns when nothing is being written behind any more."""

    # --- the same for all ----------------------------------------------------------------------------------------

    def start_engine(self) -> None:
        settings = {"num_gpu_blocks": self.rig.engine_blocks, "dtype": self.rig.dtype} | self.engine_settings()
        self.engine = Engine(self.rig.model, log=self.folder / "engine.log", **settings)
        self.engine.generate([FIRST], 2, logprobs=0)

    def stop_engine(self) -> None:
        if self.engine is not None:
            self.engine.stop()
            self.engine = None

    def start(self) -> None:
        self.start_daemon()
        self.start_engine()

    def stop(self) -> None:
        self.stop_engine()
        self.stop_daemon()

    def restart_engine(self) -> None:
        self.stop_engine()
        self.start_engine()

    def restart_node(self) -> None:
        self.stop()
        self.start()

    def discard(self) -> None:
        """Stopped, and its folder is gone."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pids(self) -> list[int]:
        assert self.engine is not None
        return [pid for pids in self.engine.pids().values() for pid in pids] + self.daemon_pids()
