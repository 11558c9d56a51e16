"""How fast does the native copier move KV blocks between an engine's paged layers and the arena, against one memcpy?

    python benchmarks/bench_copy.py            a table
    python benchmarks/bench_copy.py --json     one JSON object: memcpy_gb_s, save_ratio, load_ratio, spreads, machine

An "engine" is 32 layer buffers of [num_blocks, page]; the arena has slots of 1, 2 or 4 MiB = 32 pages. A save job
gathers the 32 pages of each of 16 random blocks into 16 random slots; a load job scatters them back. Both are timed
from submit() to the return of wait(), one job at a time; the address arrays are made before the clock starts.

The limit that the ratios are taken to is generous to memcpy: ONE thread, ctypes.memmove, and *whole contiguous blocks*
(between a flat buffer and the same slots, in the same random order, warm pages): no gathering, 1-4 MiB a call.
All contenders run in every round, in rotating order; a ratio is one round's pair; the median over rounds counts.

Confessions. Written by the authors of kvtier; the thresholds of the copier were tuned on the machine that it was first
run on. No GPU: what goes over PCIe is not shown. A shared virtual machine with 2 noisy cores: where a second thread
helps, part of the gain is the second core, so one copier thread is shown too. Nothing else uses the cores here; beside
a busy engine the second thread brings less. glibc may choose a poor memcpy for a CPU: that flatters the ratio.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import time

import numpy as np

from kvtier import _native

LAYERS = 32
BLOCKS_PER_JOB = 16
REGION_BYTES = 512 << 20  # of the engine, of the flat buffer and of the arena each: far more than any cache
ALIGNMENT = 2 << 20
BLOCK_SIZES = (1 << 20, 2 << 20, 4 << 20)
ROUNDS = 15
JOBS_PER_TIMING = 4
SEED = 20240917


class Layout:
    """Addresses of the same blocks in three places: paged engine, flat buffer, arena slots."""

    def __init__(self, block_bytes: int, engine: np.ndarray, flat: np.ndarray, arena: _native.Arena):
        self.block_bytes = block_bytes
        self.page = block_bytes // LAYERS
        self.num_blocks = REGION_BYTES // block_bytes
        self.layer_bytes = self.num_blocks * self.page
        self.engine, self.flat, self.arena = engine.ctypes.data, flat.ctypes.data, arena.address

    def job(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Random block ids and random slots; neither repeats within a job."""
        blocks = rng.choice(self.num_blocks, BLOCKS_PER_JOB, replace=False).astype(np.uint64)
        slots = rng.choice(self.num_blocks, BLOCKS_PER_JOB, replace=False).astype(np.uint64)
        return blocks, slots

    def fragments(self, blocks: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        layers = np.arange(LAYERS, dtype=np.uint64)
        paged = self.engine + layers * np.uint64(self.layer_bytes) + (blocks * np.uint64(self.page))[:, None]
        packed = self.arena + layers * np.uint64(self.page) + (slots * np.uint64(self.block_bytes))[:, None]
        size = np.full(paged.size, self.page, dtype=np.uint64)
        return paged.ravel(), packed.ravel(), size

    def pairs(self, blocks: np.ndarray, slots: np.ndarray) -> list[tuple[int, int]]:
        return [
            (self.flat + b * self.block_bytes, self.arena + s * self.block_bytes)
            for b, s in zip(blocks.tolist(), slots.tolist())
        ]


def touched_buffer() -> np.ndarray:
    """Aligned like the arena: glibc's memcpy runs at a third of its speed into some unaligned targets on Zen 3."""
    raw = np.ones(REGION_BYTES + ALIGNMENT, dtype=np.uint8)
    return raw[-raw.ctypes.data % ALIGNMENT :][:REGION_BYTES]


def time_copier(copier: _native.Copier, jobs: list) -> float:
    start = time.perf_counter()
    for source, target, size in jobs:
        copier.wait(copier.submit(source, target, size))
    elapsed = time.perf_counter() - start
    copier.poll()
    return elapsed


def time_memcpy(jobs: list, size: int) -> float:
    memmove = ctypes.memmove
    start = time.perf_counter()
    for pairs in jobs:
        for source, target in pairs:
            memmove(target, source, size)
    return time.perf_counter() - start


def run_round(layout: Layout, direction: str, copiers: dict, rng: np.random.Generator, turn: int) -> dict[str, float]:
    """GB/s of each contender, on the same blocks and slots, in an order that rotates with `turn`."""
    picks = [layout.job(rng) for _ in range(JOBS_PER_TIMING)]
    paged = [layout.fragments(*pick) for pick in picks]
    flat = [layout.pairs(*pick) for pick in picks]
    if direction == "load":
        paged = [(packed, engine, size) for engine, packed, size in paged]
        flat = [[(slot, block) for block, slot in pairs] for pairs in flat]
    moved = JOBS_PER_TIMING * BLOCKS_PER_JOB * layout.block_bytes / 1e9
    contenders = ["memcpy", *copiers]
    speeds = {}
    for i in range(len(contenders)):
        name = contenders[(i + turn) % len(contenders)]
        seconds = time_memcpy(flat, layout.block_bytes) if name == "memcpy" else time_copier(copiers[name], paged)
        speeds[name] = moved / seconds
    return speeds


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def measure(rounds: int) -> dict:
    arena = _native.Arena.create(REGION_BYTES, "kvtier-bench-copy")
    engine, flat = touched_buffer(), touched_buffer()
    copiers = {"default": _native.Copier(), "one_thread": _native.Copier(1)}
    rng = np.random.default_rng(SEED)
    cells = []
    speeds: dict[tuple[int, str], list[dict[str, float]]] = {}
    for turn in range(rounds + 1):  # the first one warms up
        for block_bytes in BLOCK_SIZES:
            layout = Layout(block_bytes, engine, flat, arena)
            for direction in ("save", "load"):
                result = run_round(layout, direction, copiers, rng, turn)
                if turn > 0:
                    speeds.setdefault((block_bytes, direction), []).append(result)
    for (block_bytes, direction), results in speeds.items():
        cell = {"block_mib": block_bytes >> 20, "direction": direction}
        cell["memcpy_gb_s"] = spread([r["memcpy"] for r in results])
        for name in copiers:
            cell[f"{name}_gb_s"] = spread([r[name] for r in results])
            cell[f"{name}_ratio"] = spread([r[name] / r["memcpy"] for r in results])
        cells.append(cell)
    facts = {"arena_huge_bytes": arena.huge_bytes, "arena_pinned": arena.pinned, "arena_notes": arena.notes}
    for copier in copiers.values():
        copier.close()
    return {"cells": cells, "arena": facts}


def machine() -> dict:
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "copy_path": _native.cpu_copy_path(),
        "load_average": os.getloadavg()[0],
    }


def report(rounds: int) -> dict:
    result = measure(rounds)
    cells = result["cells"]

    def over_sizes(direction: str, name: str) -> float:
        return statistics.median(c[f"{name}_ratio"]["median"] for c in cells if c["direction"] == direction)

    return {
        "memcpy_gb_s": statistics.median(c["memcpy_gb_s"]["median"] for c in cells),
        "save_ratio": over_sizes("save", "default"),
        "load_ratio": over_sizes("load", "default"),
        "save_ratio_one_thread": over_sizes("save", "one_thread"),
        "load_ratio_one_thread": over_sizes("load", "one_thread"),
        "rounds": rounds,
        "blocks_per_job": BLOCKS_PER_JOB,
        "layers": LAYERS,
        "region_bytes": REGION_BYTES,
        **result,
        "machine": machine(),
    }


def print_table(outcome: dict) -> None:
    facts = outcome["machine"]
    print(
        f"{facts['cpu']}, {facts['cores']} cores, path {facts['copy_path']}, load {facts['load_average']:.1f}, "
        f"{outcome['arena']['arena_huge_bytes'] >> 20} MiB of the arena on 2 MiB pages"
    )
    print(f"{'block':>7} {'':5} {'memcpy GB/s':>20} {'default GB/s':>20} {'ratio':>20} {'ratio, 1 thread':>20}")
    for cell in outcome["cells"]:
        columns = [cell[k] for k in ("memcpy_gb_s", "default_gb_s", "default_ratio", "one_thread_ratio")]
        shown = " ".join(f"{c['median']:6.2f} ({c['min']:5.2f}-{c['max']:5.2f})" for c in columns)
        print(f"{cell['block_mib']:>3} MiB {cell['direction']:>5} {shown}")
    ratios = {name: outcome[name] for name in outcome if "_ratio" in name}
    print("median over block sizes (bar: 1.10):", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often every contender runs")
    options = parser.parse_args()
    outcome = report(options.rounds)
    if options.json:
        print(json.dumps(outcome))
    else:
        print_table(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
