"""How much of the link's speed do kvtier's copies between a GPU and its arena reach, and what do they cost a decode?

    python benchmarks/bench_gpu.py [--json] [--device N] [--gib N] [--driver PATH]

Written by the authors of kvtier. Needs an NVIDIA GPU, 3 N GiB of its memory, 2 N of the machine's (N: 8 if not given),
and PyTorch with CUDA for some of it; what is left out is named in `skipped`. Exit code 3: there is no GPU to use.
`--driver` takes another library than libcuda.so.1; with the double of tests/fake_cuda everything runs, tiny, and its
figures mean nothing.

An engine's cache lies in device memory, blocks of 16 tokens, in the layouts of Llama-3-8B and of one rank of
Llama-3-70B in eight: a page a layer and block, 64 and 8 KiB, or all layers of a block together (packed), 2 MiB and
640 KiB. A contender moves N/2 GiB in jobs of 64 random blocks from or to random slots, timed by the wall from the first
submit() to the last completion; addresses are computed before. The limit is ONE contiguous cuMemcpyAsync of as many
bytes: from and to the registered arena, and memory that the driver allocated; whichever is faster on the median. All
contenders run in every round, in rotating order; a share is a quotient of one round; the median over rounds counts.

    d2h_share, h2d_share   saves and loads, by the copy path that kvtier chose; the least of the layouts
    d2d_share              loads from a GPU tier on the same GPU; the limit is one copy within the device
    store_under_compute_differing_bytes    pages are written late, the save waits for that stream: 0. Without `after`
                           (store_without_after_...) bytes must differ, or the test would see nothing
    decode_slowdown_p50, _p99   how much longer a decode-like step takes beside copies both ways, 0.03 is 3 %; the worse
                           of both models' per-layer pages; also one way at a time, and saves held to copy.decode_budget
    loaded_bits_equal      all blocks saved, the cache cleared, all loaded: by every path, in every layout
    pinned_s_per_gib       registering the arena with the driver

Where it flatters: nothing else uses link and processors; jobs are queued ahead (one_job_share is one at a time); paths
that were not chosen move a quarter of the bytes. Where it is hard on kvtier: in an engine blocks often lie in a row,
and those merge; here they are random. Copies take some 3 % of an H100's memory bandwidth, so a decode that is bound by
it can't be free of them. What it doesn't show: a real engine, several GPUs, NVLink, another NUMA node.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_copy import machine
from gpu_compute import Decode, DriverWriter, Saturation, TorchWriter, collected
from gpu_rig import GIB, PATHS, TINY, Rig, full
from gpu_shapes import SHAPES, Blocks, Job, Shape
from raw_cuda import RawCuda, driver_version, link

from kvtier import _native
from kvtier.config import CONNECTOR

LATE_BLOCKS, CHECKED_BLOCKS = 4, 64
ENDLESS_JOBS = 32
DECODE_BUDGET = int(next(option.default for option in CONNECTOR if option.name == "copy.decode_budget"))
SEED = 20241122
TIMEOUT_S = 60.0
NO_GPU = 3
BARS = {"d2h_share": ">= 0.95", "h2d_share": ">= 0.95", "d2d_share": ">= 0.90", "loaded_bits_equal": "True"}
BARS |= {"store_under_compute_differing_bytes": "0", "store_without_after_differing_bytes": "> 0"}
BARS |= {"decode_slowdown_p50": "<= 0.03", "decode_slowdown_p99": "<= 0.10"}


# --- shares of the limit -----------------------------------------------------------------------------------------

Contender = Callable[[], float]  # moves its bytes, returns GB/s


def timed_jobs(copier: _native.CudaCopier, jobs: list[Job], *, one_by_one: bool = False) -> float:
    """GB/s from the first submit to the last completion; RuntimeError when a job failed."""
    begun = time.perf_counter()
    for job in jobs:
        ticket = copier.submit(*job)
        if one_by_one:
            await_job(copier, ticket)
    await_job(copier, ticket)
    seconds = time.perf_counter() - begun
    moved = collected(copier)
    assert moved == sum(int(size.sum()) for _, _, size in jobs), "a job was not reported"
    return moved / 1e9 / seconds


def await_job(copier: _native.CudaCopier, ticket: int) -> None:
    if not copier.wait(ticket, TIMEOUT_S):
        raise RuntimeError(f"a job is not over after {TIMEOUT_S:.0f} s, by {copier.path}")


def timed_copy(rig: Rig, source: int, target: int, size: int) -> float:
    begun = time.perf_counter()
    rig.raw.copy(rig.stream, source, target, size)
    rig.raw.finish(rig.stream)
    return size / 1e9 / (time.perf_counter() - begun)


def contenders(rig: Rig, shape: Shape, verb: str, rng: np.random.Generator) -> dict[str, Contender]:
    """What moves blocks of this shape: "save", "load", or "gpu_load", which loads from the GPU tier."""
    saving, scale = verb == "save", rig.scale
    memory = rig.tier.address if verb == "gpu_load" else rig.arena.address
    blocks = Blocks(shape, rig.cache, memory, scale.region // shape.block_bytes)
    number = max(4, blocks.count // 2 // scale.job_blocks)
    jobs = blocks.jobs(rng, saving=saving, number=number, size=scale.job_blocks)
    moved = min(scale.region // 2, number * scale.job_blocks * shape.block_bytes)
    copiers = rig.by_path(shape, saving)
    chosen = next(iter(copiers))

    def limit(other: int) -> Contender:
        ends = (rig.cache, other) if saving else (other, rig.cache)
        return lambda: timed_copy(rig, *ends, moved)

    def path(name: str) -> Contender:
        return lambda: timed_jobs(copiers[name], jobs if name == chosen else jobs[: number // 4])

    if verb == "gpu_load":
        made = {"limit_device": limit(memory)}
    else:
        made = {"limit_arena": limit(memory), "limit_allocated": limit(rig.allocated.ctypes.data)}
    made |= {name: path(name) for name in copiers}
    made["one_job"] = lambda: timed_jobs(copiers[chosen], jobs[: number // 4], one_by_one=True)
    return made


def shares(rig: Rig) -> dict[str, dict[str, dict[str, Any]]]:
    """By layout and verb: limit, chosen path, its share, and how fast each path was."""
    speeds: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(rig.scale.rounds + 1):  # the first one warms up
        progress(f"shares of the link, round {turn} of {rig.scale.rounds}")
        for shape in SHAPES:
            for verb in ("save", "load", "gpu_load"):
                made = contenders(rig, shape, verb, np.random.default_rng([SEED, turn]))
                names = list(made)
                order = names[turn % len(names) :] + names[: turn % len(names)]
                result = {name: made[name]() for name in order}
                if turn:
                    speeds.setdefault((shape.name, verb), []).append(result)
    found: dict[str, dict[str, dict[str, Any]]] = {shape.name: {} for shape in SHAPES}
    for shape in SHAPES:
        for verb in ("save", "load", "gpu_load"):
            path = rig.chosen(shape, verb == "save").path
            found[shape.name][verb] = share(speeds[shape.name, verb], path)
    return found


def share(results: list[dict[str, float]], path: str) -> dict[str, Any]:
    medians = {name: statistics.median(r[name] for r in results) for name in results[0]}
    limit = max((name for name in medians if name.startswith("limit_")), key=lambda name: medians[name])
    return {
        "path": path,
        "share": spread([r[path] / r[limit] for r in results]),
        "one_job_share": spread([r["one_job"] / r[limit] for r in results]),
        "limit": limit,
        "limit_gb_s": spread([r[limit] for r in results]),
        "gb_s": {name: round(speed, 3) for name, speed in medians.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


# --- right bytes -------------------------------------------------------------------------------------------------


def round_trips(rig: Rig) -> dict[str, int]:
    """By layout and path: how many bytes differ after a save of all blocks and a load of all."""
    found = {}
    rng = np.random.default_rng(SEED)
    for shape in SHAPES:
        count = min(CHECKED_BLOCKS, rig.scale.region // 4 // shape.block_bytes)
        blocks = Blocks(shape, rig.cache, rig.arena.address, count)
        before, after = rig.allocated[: blocks.bytes], rig.allocated[blocks.bytes : 2 * blocks.bytes]
        loaders = rig.by_path(shape, saving=False)
        for path, saver in rig.by_path(shape, saving=True).items():
            before[:] = rng.integers(0, 256, blocks.bytes, dtype=np.uint8)
            rig.raw.copy(rig.stream, before.ctypes.data, rig.cache, blocks.bytes)
            rig.raw.finish(rig.stream)
            timed_jobs(saver, [blocks.all(np.random.default_rng(SEED), saving=True)])
            rig.raw.fill(rig.stream, rig.cache, 0, blocks.bytes)
            rig.raw.finish(rig.stream)
            timed_jobs(loaders.get(path, rig.chosen(shape, False)), [blocks.all(np.random.default_rng(SEED), saving=False)])
            rig.raw.copy(rig.stream, rig.cache, after.ctypes.data, blocks.bytes)
            rig.raw.finish(rig.stream)
            found[f"{shape.name}/{path}"] = int(np.count_nonzero(before != after))
    return found


def late_writes(rig: Rig, iterations: int, *, ordered: bool) -> int:
    """Bytes that differ when a save is submitted while a stream has yet to write the pages, over all iterations."""
    sets = [Blocks(shape, rig.cache, rig.arena.address, LATE_BLOCKS) for shape in SHAPES]
    writers: list[TorchWriter | DriverWriter] = []
    for blocks in sets:
        if rig.torch is not None:
            writers.append(TorchWriter(rig.torch, rig.pages(blocks.bytes)))
        else:
            scratch = (rig.tier.address, rig.scale.region // 4)
            writers.append(DriverWriter(rig.raw, (rig.cache, blocks.bytes), scratch))
    differing = 0
    for number in range(iterations):
        if number % 100 == 0:
            progress(f"store under compute{'' if ordered else ', not ordered'}: {number} of {iterations}")
        blocks, writer = sets[number % len(sets)], writers[number % len(sets)]
        job = blocks.all(np.random.default_rng(number), saving=True)
        saver, value = rig.chosen(blocks.shape, True), number % 251 + 1
        writer.write_late(value)
        await_job(saver, saver.submit(*job, after=writer.stream if ordered else None))
        collected(saver)
        differing += int(np.count_nonzero(rig.arena.view()[: blocks.bytes] != value))
        writer.finish()
    return differing


# --- beside a decode ---------------------------------------------------------------------------------------------

BESIDE = {"idle": (), "both": ("save", "load"), "load": ("load",), "save": ("save",), "save_paced": ("save",)}


def decode_beside_copies(rig: Rig) -> dict[str, Any]:
    """By layout and what goes on beside: how long decode-like steps take, against idle ones of the same rounds."""
    scale, decode = rig.scale, Decode(rig.torch, rig.ordinal, rig.scale.region)
    decode.seconds(scale.decode_steps)  # warms up
    found: dict[str, Any] = {"weight_bytes": decode.bytes}
    for shape in (shape for shape in SHAPES if not shape.packed):
        steps: dict[str, list[float]] = {name: [] for name in BESIDE}
        speeds: dict[str, list[float]] = {name: [] for name in BESIDE}
        for turn in range(scale.decode_rounds):
            progress(f"decode beside copies, {shape.name}, round {turn + 1} of {scale.decode_rounds}")
            names = [*BESIDE][turn % len(BESIDE) :] + [*BESIDE][: turn % len(BESIDE)]
            for name in names:
                rig.chosen(shape, True).pace(DECODE_BUDGET if name == "save_paced" else 0)
                with Saturation([endless(rig, shape, verb) for verb in BESIDE[name]]) as copies:
                    steps[name] += decode.seconds(scale.decode_steps)
                speeds[name].append(copies.gb_s)
        rig.chosen(shape, True).pace(0)
        found[shape.name] = {name: slowdown(steps[name], steps["idle"], speeds[name]) for name in BESIDE}
    return found


def endless(rig: Rig, shape: Shape, verb: str) -> tuple[_native.CudaCopier, list[Job]]:
    """Saves and loads each have half of the cache and of the arena."""
    half = rig.scale.region // 2
    offset = 0 if verb == "save" else half
    blocks = Blocks(shape, rig.cache + offset, rig.arena.address + offset, half // shape.block_bytes)
    saving, size = verb == "save", min(rig.scale.job_blocks, blocks.count // ENDLESS_JOBS)
    jobs = blocks.jobs(np.random.default_rng(SEED), saving=saving, number=ENDLESS_JOBS, size=size)
    return rig.chosen(shape, saving), jobs


def slowdown(steps: list[float], idle: list[float], speeds: list[float]) -> dict[str, float]:
    def quotient(percentile: int) -> float:
        return round(float(np.percentile(steps, percentile) / np.percentile(idle, percentile)) - 1, 4)

    return {
        "slowdown_p50": quotient(50),
        "slowdown_p99": quotient(99),
        "step_p50_ms": round(float(np.percentile(steps, 50)) * 1e3, 4),
        "step_p99_ms": round(float(np.percentile(steps, 99)) * 1e3, 4),
        "copies_gb_s": round(statistics.median(speeds), 3),
    }


# --- the report --------------------------------------------------------------------------------------------------


def measure(driver: _native.CudaDriver, path: str, ordinal: int, gib: int) -> dict[str, Any]:
    raw = RawCuda(path, ordinal)
    progress("memory")
    rig = Rig(driver, raw, ordinal, TINY if raw.fake else full(gib))
    pci = driver.devices[ordinal]["pci"]
    skipped = {}
    layouts = shares(rig)
    found_link = link(pci)  # while it is awake
    differing = round_trips(rig)
    late = late_writes(rig, rig.scale.late, ordered=True)
    unordered = late_writes(rig, rig.scale.unordered, ordered=False)
    decode = {}
    if rig.torch is None:
        skipped["decode"] = "the driver is a double" if raw.fake else "there is no PyTorch that can use this GPU"
    else:
        decode = decode_beside_copies(rig)
    outcome = {
        **headline(layouts, decode),
        "store_under_compute_differing_bytes": late,
        "store_without_after_differing_bytes": unordered,
        "late_writer": "the driver's fills" if rig.torch is None else "torch kernels",
        "loaded_bits_equal": not any(differing.values()),
        "differing_bytes": differing,
        "path": {name: {verb: cell["path"] for verb, cell in verbs.items()} for name, verbs in layouts.items()},
        "pinned_s_per_gib": round(rig.pin_seconds / (rig.arena.size / GIB), 4),
        "arena_huge_share": round(rig.arena.huge_bytes / rig.arena.size, 4),
        "driver": "fake" if raw.fake else driver_version(pci),
        "cuda": f"{driver.version // 1000}.{driver.version % 1000 // 10}",
        "card": driver.devices[ordinal]["name"],
        "link": found_link,
        "torch": None if rig.torch is None else rig.torch.__version__,
        "skipped": skipped,
        "notes": sorted(rig.notes),
        "layouts": layouts,
        "decode": decode,
        "scale": vars(rig.scale),
        "machine": machine(),
    }
    rig.close()
    return outcome


def headline(layouts: dict[str, dict[str, dict[str, Any]]], decode: dict[str, Any]) -> dict[str, float | None]:
    def least(verb: str) -> float:
        return min(verbs[verb]["share"]["median"] for verbs in layouts.values())

    def worst(what: str) -> float | None:
        return max((cell["both"][what] for name, cell in decode.items() if name in layouts), default=None)

    return {
        "d2h_share": least("save"),
        "h2d_share": least("load"),
        "d2d_share": least("gpu_load"),
        "decode_slowdown_p50": worst("slowdown_p50"),
        "decode_slowdown_p99": worst("slowdown_p99"),
    }


def progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


def print_tables(outcome: dict[str, Any]) -> None:
    print(f"{outcome['card']}, driver {outcome['driver']}, CUDA {outcome['cuda']}, link {outcome['link'] or 'unknown'}")
    for name in BARS:
        print(f"{name:>36} {outcome[name]!s:>10}   bar: {BARS[name]}")
    print(f"\n{'layout':>22} {'':8} {'share':>22} {'one job':>8} {'limit GB/s':>10}  GB/s by path, * chosen")
    for layout, verbs in outcome["layouts"].items():
        for verb, cell in verbs.items():
            of = cell["share"]
            paths = (f"{path}{'*' * (path == cell['path'])} {cell['gb_s'][path]}" for path in PATHS if path in cell["gb_s"])
            shown = f"{of['median']:6.3f} ({of['min']:.3f}-{of['max']:.3f})"
            ends = f"{cell['one_job_share']['median']:8.3f} {cell['limit_gb_s']['median']:10.1f}  {', '.join(paths)}"
            print(f"{layout:>22} {verb:8} {shown:>22} {ends}")
    for layout, beside in outcome["decode"].items():
        for what, cell in beside.items() if layout in outcome["layouts"] else ():
            print(f"decode, {layout}, {what:>10}: {', '.join(f'{name} {value}' for name, value in cell.items())}")
    for line in (*outcome["notes"], *(f"skipped {what}: {why}" for what, why in outcome["skipped"].items())):
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--device", type=int, default=0, help="which GPU, as the driver counts")
    parser.add_argument("--gib", type=int, default=8, help="of cache, arena and GPU tier each; at least 1")
    parser.add_argument("--driver", default="", help="a library with the driver's symbols instead of libcuda.so.1")
    given = parser.parse_args()
    driver = _native.CudaDriver.open(given.driver)
    if driver.reason:
        print(f"bench_gpu: {driver.reason}", file=sys.stderr)
        return NO_GPU
    if not 0 <= given.device < len(driver.devices) or given.gib < 1:
        parser.error(f"--device must be 0 to {len(driver.devices) - 1} and --gib at least 1")
    try:
        outcome = measure(driver, given.driver, given.device, given.gib)
    except (RuntimeError, MemoryError, OSError) as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return 1
    print(json.dumps(outcome)) if given.json else print_tables(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
