"""How much smaller do codecs make KV, and how fast, against one memcpy of the same blocks? One core.

    python benchmarks/bench_codec.py [--json] [--rounds N] [--kv FILE]

Written by the authors of kvtier. Blocks are K and V of SmolLM2-135M in bf16 on four real texts (real_kv.py), 128 tokens
each; and as many of normally distributed values ("random"), which is what a model of random weights has. FILE keeps the
former from one run to the next, since computing them takes longer than measuring.

    ratio          bytes of the blocks by bytes of their frames, table and trailer included
    place_ratio    the same if each has a place on a drive, whole steps of PLACE_GRAIN, that half of the frames fit into
    fp16_ratio     of the same values in fp16
    encode_share   speed of block to frame by that of memcpy from block to block; checksums are made on the way, which
                   memcpy does not
    decode_share   of frame to block; checksums are compared
    by_isa         the shares with each set of instructions that this CPU has. What stands above is the best one's

Everything lies in an arena on 2 MiB pages, if there are any, and memcpy is glibc's. In a round each block is copied,
encoded and decoded once, but never the same one after another: a block and its frame were last touched half of all blocks
ago, which is several times the cache, so they come from memory as memcpy's do. Seconds are those in which the thread ran:
what else this machine does counts only as far as it takes memory's speed. A share is a quotient of one round's sums; the
median over rounds counts; spreads are from least to most.

Where kvtier loses: a block whose values are no bf16 or fp16 becomes no smaller, and a core that does nothing but expz is
slower than most drives. What this doesn't show: several cores at once, which share the memory that one has for itself
here; a busy engine beside; other models, whose exponents may spread more. A CPU without AVX-512 can't show its figures.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import real_kv
from bench_copy import machine
from rich.console import Console
from rich.table import Table

from kvtier import _native
from kvtier.block import PLACE_GRAIN, SLOT_UNIT
from kvtier.codec import LOSSLESS, LOSSY

BLOCKS = 32
ROUNDS = 9
ROW = 64  # values of a lossy codec that share a scale: the head's size
BARS = {
    "exp12": {"ratio": 1.32, "encode_share": 0.45, "decode_share": 0.80},
    "expz": {"ratio": 1.44},
    "int8": {"ratio": 1.9},
}
SEED = 20241123


class Memory:
    """Blocks, their frames and room to copy to, each block in a place of its own."""

    def __init__(self, blocks: np.ndarray) -> None:
        self.count, self.block_bytes = blocks.shape
        self._place = -(-self.block_bytes // SLOT_UNIT) * SLOT_UNIT
        self._arena = _native.Arena.create(3 * self.count * self._place, "kvtier-bench-codec", pin=False)
        self.blocks, self.frames, self.copies = (self._places(part) for part in range(3))
        self.stored = [0] * self.count
        self.huge_pages = self._arena.huge_bytes > 0
        for place in (*self.frames, *self.copies):
            place[:] = 1
        for place, block in zip(self.blocks, blocks):
            place[:] = block

    def _places(self, part: int) -> list[np.ndarray]:
        starts = [(part * self.count + number) * self._place for number in range(self.count)]
        return [self._arena.view()[start : start + self.block_bytes] for start in starts]


def codec_of(name: str, isa: str, element: str = "bf16") -> _native.Codec:
    return _native.Codec(name, isa=isa) if name in LOSSLESS else _native.Codec(name, element, ROW, isa)


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    begun = time.thread_time()
    result = call(*arguments)
    return time.thread_time() - begun, result


def one_round(memory: Memory, codec: _native.Codec, isa: str) -> dict[str, float]:
    """Seconds of this thread that each took. Frames are those of the round before, and of the same bytes."""
    seconds = dict.fromkeys(("memcpy", "encode", "decode"), 0.0)
    count, size = memory.count, memory.block_bytes
    for number in range(count):
        copied, decoded = (number + count // 4) % count, (number + count // 2) % count
        pair = memory.copies[copied].ctypes.data, memory.blocks[copied].ctypes.data, size
        seconds["memcpy"] += timed(ctypes.memmove, *pair)[0]
        took, done = timed(codec.encode, memory.blocks[number], memory.frames[number])
        seconds["encode"] += took
        assert done is not None and done[0] == memory.stored[number]
        frame = memory.frames[decoded][: memory.stored[decoded]]
        took, (verdict, _) = timed(_native.decode_frame, frame, memory.copies[decoded], 0, isa)
        seconds["decode"] += took
        assert verdict == "good", verdict
    return seconds


def shares(memory: Memory, name: str, isa: str, rounds: int) -> dict[str, Any]:
    codec = codec_of(name, isa)
    for number, (block, frame) in enumerate(zip(memory.blocks, memory.frames)):
        done = codec.encode(block, frame)
        assert done is not None, f"{name} can't write block {number}"
        memory.stored[number] = done[0]
    found = [one_round(memory, codec, isa) for _ in range(rounds)]
    size = memory.count * memory.block_bytes
    measured: dict[str, Any] = {}
    for way in ("encode", "decode"):
        values = [one["memcpy"] / one[way] for one in found]
        measured[f"{way}_share"] = round(statistics.median(values), 3)
        measured[f"{way}_share_spread"] = [round(min(values), 3), round(max(values), 3)]
    for way in ("memcpy", "encode", "decode"):
        measured[f"{way}_gb_s"] = round(statistics.median(size / one[way] for one in found) / 1e9, 2)
    return measured


def ratios(memory: Memory) -> dict[str, float]:
    place = -(-statistics.median_high(memory.stored) // PLACE_GRAIN) * PLACE_GRAIN
    return {
        "ratio": round(memory.count * memory.block_bytes / sum(memory.stored), 4),
        "place_ratio": round(memory.block_bytes / place, 4),
    }


def fp16_ratio(memory: Memory, name: str) -> float:
    codec, stored, room = codec_of(name, "auto", "fp16"), 0, np.empty(memory.block_bytes, np.uint8)
    for block in memory.blocks:
        values = (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        done = codec.encode(values.astype(np.float16).view(np.uint8), room)
        stored += memory.block_bytes if done is None else done[0]
    return round(memory.count * memory.block_bytes / stored, 4)


def of_codec(memory: Memory, name: str, rounds: int) -> dict[str, Any]:
    try:
        codec_of(name, "auto")
    except RuntimeError as why:
        return {"absent": str(why)}
    by_isa = {isa: shares(memory, name, isa, rounds) for isa in _native.codec_isas()}
    best = _native.codec_isas()[0]
    return {**ratios(memory), "fp16_ratio": fp16_ratio(memory, name), **by_isa[best], "by_isa": by_isa}


def random_blocks(like: np.ndarray) -> np.ndarray:
    values = np.random.default_rng(SEED).standard_normal(like.size // 2, np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(like.shape)


def real_blocks(kept: Path | None) -> np.ndarray:
    if kept is not None and kept.exists():
        return np.fromfile(kept, np.uint8).reshape(BLOCKS, -1)
    found = real_kv.blocks(models.smollm2(models.cache_root()), BLOCKS)
    if kept is not None:
        found.tofile(kept)
    return found


def measure(blocks: np.ndarray, rounds: int) -> dict[str, Any]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    gc.disable()
    outcome: dict[str, Any] = {}
    for kind, made in (("real", blocks), ("random", random_blocks(blocks))):
        memory = Memory(made)
        for name in (*LOSSLESS, *LOSSY):
            print(f"bench_codec: {name}, {kind}", file=sys.stderr)
            cell = of_codec(memory, name, rounds)
            if kind == "real":
                outcome[name] = cell
            else:
                outcome[name][kind] = cell
        pages = memory.huge_pages
    memcpy = [cell["memcpy_gb_s"] for name, cell in outcome.items() if "absent" not in cell]
    return {
        **outcome,
        "memcpy_gb_s": statistics.median(memcpy),
        "isa": _native.codec_isas()[0],
        "bars": BARS,
        "blocks": BLOCKS,
        "block_bytes": blocks.shape[1],
        "rounds": rounds,
        "row": ROW,
        "huge_pages": pages,
        "machine": machine(),
    }


def show(outcome: dict[str, Any]) -> None:
    columns = ("codec", "KV", "ratio", "on a drive", "of fp16", "with", "encode / memcpy", "decode / memcpy", "GB/s")
    table = Table(*columns, title=f"{outcome['machine']['cpu']}, one core, memcpy {outcome['memcpy_gb_s']} GB/s")
    for name in (*LOSSLESS, *LOSSY):
        for kind in ("real", "random"):
            cell = outcome[name] if kind == "real" else outcome[name]["random"]
            if "absent" in cell:
                table.add_row(name, kind, cell["absent"])
                continue
            sizes = (f"{cell['ratio']:.3f}", f"{cell['place_ratio']:.3f}", f"{cell['fp16_ratio']:.3f}")
            for isa, found in cell["by_isa"].items():
                both = []
                for way in ("encode", "decode"):
                    least, most = found[f"{way}_share_spread"]
                    both.append(f"{found[f'{way}_share']:.2f} ({least:.2f}-{most:.2f})")
                table.add_row(name, kind, *sizes, isa, *both, f"{found['encode_gb_s']:.1f} / {found['decode_gb_s']:.1f}")
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    for name, bars in BARS.items():
        for key, bar in bars.items():
            print(f"{name}.{key}: {outcome[name].get(key, 'absent')} (bar: {bar})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each block goes through each codec")
    parser.add_argument("--kv", type=Path, metavar="FILE", help="where real blocks are kept; made if it isn't there")
    options = parser.parse_args()
    outcome = measure(real_blocks(options.kv), options.rounds)
    if options.json:
        print(json.dumps(outcome))
    else:
        show(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
