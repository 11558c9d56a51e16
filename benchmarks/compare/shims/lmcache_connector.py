"""LMCache's connector as it is, for an engine that runs inside of its driver's process.

There the connector, and with it numba, is imported before vLLM 0.32 looks through all loaded modules for its kernels;
that look ends at llvmlite's library, which takes any attribute for the name of a function, `__dict__` too. Here it is told
that it has none. Imported by the engine of LMCache's environment; nothing else of it is changed.
"""

from llvmlite.binding import ffi
from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector

__all__ = ["LMCacheMPConnector"]

ffi.lib._fntab["__dict__"] = {}
