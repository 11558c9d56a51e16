"""How much of the disk does the NVMe tier leave to the blocks, and what do a read, a GB, a restart and an entry cost?

    python benchmarks/bench_nvme.py [--json] [--folder DIR] [--seconds N]

Written by the authors of kvtier. DIR, the system's folder for temporary files if it is not given, must lie on the drive
that is meant, with 5 GB free and O_DIRECT. N: how long the rounds go on, 45 if not given; no less than 5 rounds.

The limit is O_DIRECT on the same disk in the same round, 8 requests at once, by two loops without checksum or record
(contenders.py), one of threads and one of io_uring; for each size and direction the one that is faster on the median is
the limit. Every buffer is in one arena on 2 MiB pages, or huge_pages says that it isn't. In a round each of them moves
a CELL of 384 MiB in blocks of 1, 2 and 4 MiB, in an order that changes; a share is a quotient of one round, the median
over rounds counts, then the median over sizes. Spreads are from the least to the most of a round.

    write_share       Demotes, 64 MiB under way as in the store, then a Flush; the limit ends with an fdatasync. Written
                      before; another cell is forgotten meanwhile, as extents are reclaimed. _first_pass: never written
    read_share        Promotes in random order, 256 MiB under way as in the store; each block's checksum is compared
    threads_...       the same shares with nvme.io = "threads", 2 MiB
    ..encrypted       with encryption.key_file: the shares of the limit; what of the shares in the clear is kept, as a
                      quotient of one round; seconds of processor a GB in all, and how many more than in the clear
    ..exp12..         the same with frames, blocks that look like KV, and 1 or 2 threads of I/O; of the limit for blocks as
                      large, in bytes of blocks; capacity_exp12 is what fits more. coded_shares.py says how
    cpu_s_per_gb      seconds of processor that the whole process took for that, the loop that drives the tier included
    ..read_p99_ms     one 2 MiB read after the other, cold, and while blocks of 2 MiB are written at WRITE_GB_S: kvtier
                      (O_DIRECT is always cold), values inside LMDB, a file a block; contenders.py says how
    restart_..._s     from opening the tier, its catalogue not in the page cache, until the first lookup is answered
    index_bytes_...   resident memory that a fresh process gains by filling the index; and its columns alone

Where kvtier loses: space that was never written takes half the limit, which is measured where it was; and when
something else keeps the cores busy, checksums cost a share of the disk that the limit, without any, doesn't pay. What
this doesn't show: a real SSD, its own cache and wear; power loss; several drives; the payload of the restart (its file
is sparse: nothing reads it); a busy engine beside.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import lmdb
import numpy as np
from bench_copy import machine
from coded_shares import CodedShares
from contenders import DrivenTier, FilePerBlock, LmdbValues, drop_pages, raw_limits, shuffled, timed_reads
from rich.console import Console
from rich.table import Table

from kvtier import _native
from kvtier.block import ABSENT, KEY_BYTES, SLOT_UNIT
from kvtier.extents import EXTENT_BYTES_MAX, Extents
from kvtier.tiers import drives
from kvtier.tiers.catalogue import Catalogue, record_of
from kvtier.tiers.nvme import NvmeTier
from kvtier.transfer import Demote, Remember

MIB = 1 << 20
CELL = 384 * MIB
SIZES = {"1m": MIB, "2m": 2 * MIB, "4m": 4 * MIB}
ROUNDS_MIN, FIRST_PASS_ROUNDS = 5, 3
LATENCY_ROUNDS, LATENCY_BYTES, READS, REWRITTEN = 5, 2 * MIB, 96, 64
WRITE_GB_S = 0.3  # beside the reads that are timed
RESTARTED = {"100k": 100_000, "1m": 1_000_000}  # blocks of 64 KiB
RESTARTS, COMMIT = 3, 10_000
BARS = {
    "write_share": ">= 0.85",
    "read_share": ">= 0.9",
    "cpu_s_per_gb": "<= 0.15",
    "encrypt_cpu_s_per_gb": "<= 0.15",
    "write_kept_encrypted": ">= 0.9",
    "read_kept_encrypted": ">= 0.9",
    "capacity_exp12": ">= 1.32",
    "read_share_exp12_1_thread": ">= 0.9",
    "read_share_exp12": ">= 1.1",
    "restart_1m_blocks_s": "<= 5",
    "index_bytes_per_block": "<= 200",
}


def middle(values: Iterable[float]) -> float:
    return round(float(statistics.median(values)), 4)


def spread(values: Iterable[float]) -> list[float]:
    found = list(values)
    return [round(min(found), 4), round(max(found), 4)]


# --- shares of the limit -----------------------------------------------------------------------------------------

Cell = tuple[str, str, str]  # who, what, size


class Shares:
    """Rounds of all contenders, and how fast each was in each of them."""

    def __init__(self, folder: Path, arena: _native.Arena) -> None:
        self.folder, self.arena = folder, arena
        self.fd = os.open(folder / "raw", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self.fd, 0, CELL)
        self.limits = raw_limits(self.fd, memoryview(arena.view()))
        self.tier = DrivenTier(folder / "kvtier", arena, CELL)
        self.encrypted = DrivenTier(folder / "encrypted", arena, CELL, encrypted=True)
        self.by_threads = DrivenTier(folder / "by_threads", arena, CELL, io="threads")
        self.speeds: dict[Cell, list[float]] = {}  # GB/s
        self.cpu: dict[Cell, list[float]] = {}  # s/GB

    def run(self, seconds: float) -> int:
        """Returns the number of rounds. Two more, before, write all that was never written, and don't count."""
        for _ in range(2):
            self.round(0)
        self.speeds.clear()
        self.cpu.clear()
        begun = time.monotonic()
        for number in itertools.count(1):
            self.round(number)
            if number >= ROUNDS_MIN and time.monotonic() - begun >= seconds:
                return number
        raise AssertionError

    def round(self, number: int) -> None:
        for name, size in SIZES.items():
            tiers = {"kvtier": self.tier, "encrypted": self.encrypted} | (
                {"kvtier_threads": self.by_threads} if name == "2m" else {}
            )
            for what in ("write", "read"):
                for who, contender in shuffled((tiers | self.limits).items()):
                    self.time((who, what, name), getattr(contender, what), size)
            if 0 < number <= FIRST_PASS_ROUNDS:
                fresh = DrivenTier(self.folder / "fresh", self.arena, CELL, cells=1)
                self.time(("fresh", "write", name), fresh.write, size)
                fresh.close()

    def time(self, cell: Cell, move: Callable[[int], None], size: int) -> None:
        cpu, begun = time.process_time(), time.perf_counter()
        move(size)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        self.speeds.setdefault(cell, []).append(CELL / 1e9 / seconds)
        self.cpu.setdefault(cell, []).append(cpu / (CELL / 1e9))

    def limit_by(self, what: str, name: str) -> str:
        return max(self.limits, key=lambda who: statistics.median(self.speeds[who, what, name]))

    def shares(self, who: str, what: str, name: str) -> list[float]:
        limit = self.speeds[self.limit_by(what, name), what, name]
        return [speed / of for speed, of in zip(self.speeds[who, what, name], limit)]

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for what in ("write", "read"):
            shares = {name: self.shares("kvtier", what, name) for name in SIZES}
            found[f"{what}_share"] = middle(map(statistics.median, shares.values()))
            found[f"{what}_share_spread"] = spread(itertools.chain(*shares.values()))
            found |= {f"{what}_share_{name}": middle(values) for name, values in shares.items()}
            limits = {name: self.limit_by(what, name) for name in SIZES}
            of_size = (statistics.median(self.speeds[by, what, name]) for name, by in limits.items())
            found[f"limit_{what}_gb_s"] = middle(of_size)
            found[f"limit_{what}_by"] = limits
            found[f"threads_{what}_share"] = middle(self.shares("kvtier_threads", what, "2m"))
            cpu = (statistics.median(self.cpu["kvtier", what, name]) for name in SIZES)
            found[f"cpu_s_per_gb_{what}"] = middle(cpu)
            found |= self.encrypted_outcome(what)
        fresh = (statistics.median(self.shares("fresh", "write", name)) for name in SIZES)
        found["write_share_first_pass"] = middle(fresh)
        for name in ("cpu_s_per_gb", "cpu_s_per_gb_encrypted", "encrypt_cpu_s_per_gb"):
            found[name] = max(found[f"{name}_write"], found[f"{name}_read"])
        return found

    def encrypted_outcome(self, what: str) -> dict[str, Any]:
        """Beside the same in the clear, round by round."""
        kept, more, cpu = [], [], []
        for name in SIZES:
            clear, mine = ("kvtier", what, name), ("encrypted", what, name)
            kept.append(statistics.median(a / b for a, b in zip(self.speeds[mine], self.speeds[clear])))
            more.append(statistics.median(a - b for a, b in zip(self.cpu[mine], self.cpu[clear])))
            cpu.append(statistics.median(self.cpu[mine]))
        return {
            f"{what}_share_encrypted": middle(statistics.median(self.shares("encrypted", what, name)) for name in SIZES),
            f"{what}_kept_encrypted": middle(kept),
            f"encrypt_cpu_s_per_gb_{what}": middle(more),
            f"cpu_s_per_gb_encrypted_{what}": middle(cpu),
        }

    def close(self) -> None:
        for contender in (self.tier, self.encrypted, self.by_threads, *self.limits.values()):
            contender.close()
        os.close(self.fd)
        (self.folder / "raw").unlink()


# --- one read after the other ------------------------------------------------------------------------------------


def latencies(folder: Path, arena: _native.Arena) -> dict[str, Any]:
    memory, blocks = memoryview(arena.view()), CELL // LATENCY_BYTES
    tier = DrivenTier(folder / "kvtier", arena, CELL)
    for _ in range(2):
        tier.write(LATENCY_BYTES)
    others = {
        "lmdb_": LmdbValues(folder / "lmdb", memory, LATENCY_BYTES, blocks),
        "file_": FilePerBlock(folder / "files", memory, LATENCY_BYTES, blocks),
    }
    rewritten = range(blocks, blocks + REWRITTEN)
    reads: dict[str, list[float]] = {}
    written: dict[str, list[float]] = {}
    for _ in range(LATENCY_ROUNDS):
        for name in shuffled(["", *others]):
            for state, gb_s in (("idle", 0.0), ("while_writing", WRITE_GB_S)):
                blocks_per_s = gb_s * 1e9 / LATENCY_BYTES
                if name:
                    others[name].make_cold()
                    seconds, pace = timed_reads(others[name], shuffled(range(blocks))[:READS], rewritten, blocks_per_s)
                else:
                    seconds, pace = tier.timed_reads(LATENCY_BYTES, READS, blocks_per_s)
                reads.setdefault(f"{name}read_{{}}_ms_{state}", []).extend(seconds)
                if gb_s:
                    written.setdefault(f"{name}written_gb_s", []).append(pace * LATENCY_BYTES / 1e9)
    for each in (tier, *others.values()):
        each.close()
    percentiles = {"p50": 50, "p99": 99}
    found = {
        name.format(percentile): round(float(np.percentile(seconds, at)) * 1e3, 3)
        for name, seconds in reads.items()
        for percentile, at in percentiles.items()
    }
    return found | {name: middle(paces) for name, paces in written.items()}


# --- in processes of their own -----------------------------------------------------------------------------------


def sparse(blocks: Path, size: int) -> None:
    """Instead of drives._allocate: a payload that nobody reads takes no room."""
    blocks.touch()
    os.truncate(blocks, size)


def capacity_for(blocks: int) -> int:
    return -(-blocks * SLOT_UNIT // EXTENT_BYTES_MAX) * EXTENT_BYTES_MAX


def fill_catalogue(folder: Path, blocks: int) -> dict[str, float]:
    """As a tier does that has written this many blocks one after the other."""
    files = drives.Drives([folder], capacity_for(blocks))
    catalogue = Catalogue(folder / drives.CATALOGUE, files.store, files.extents, files.extent_bytes // SLOT_UNIT)
    catalogue.commit([Remember(0, b"n" * 32, 0, 0)])
    for first in range(0, blocks, COMMIT):
        numbers = range(first, min(blocks, first + COMMIT))
        demotes = [Demote(0, os.urandom(KEY_BYTES), 0, number, SLOT_UNIT, 0, 0) for number in numbers]
        catalogue.commit([record_of(demote, demote.place, demote.place + 1) for demote in demotes])
    catalogue.close()
    files.close()
    return {}


def restart(folder: Path, blocks: int) -> dict[str, float]:
    drop_pages(folder / drives.CATALOGUE)
    begun = time.perf_counter()
    tier = NvmeTier([folder], capacity_for(blocks), SLOT_UNIT)
    found = tier.recovered
    index = Extents(tier.extents, tier.extent_bytes, tier.drives, _native.KeyTable())
    index.recover(found.keys, found.places, found.sizes, found.namespaces, found.checksums)
    assert (index.find(found.keys[: 256 * KEY_BYTES]) != ABSENT).all()
    seconds = time.perf_counter() - begun
    assert len(index) == blocks and not tier.notes
    tier.close()
    return {"seconds": seconds}


def fill_index(folder: Path, blocks: int) -> dict[str, float]:
    """One block after the other, as at run time. `folder` is not used."""
    keys = [os.urandom(KEY_BYTES) for _ in range(blocks)]
    gc.collect()
    before, table = resident_bytes(), _native.KeyTable()
    index = Extents(capacity_for(blocks) // EXTENT_BYTES_MAX, EXTENT_BYTES_MAX, 1, table)
    for key in keys:
        place = index.take(SLOT_UNIT)
        assert place is not None
        index.add(place, key, 0, place)
    gc.collect()
    columns = sum(column.nbytes for column in vars(index).values() if isinstance(column, np.ndarray))
    return {"resident": (resident_bytes() - before) / blocks, "columns": (columns + table.memory_bytes) / blocks}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


CHILDREN: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "fill_catalogue": fill_catalogue,
    "restart": restart,
    "fill_index": fill_index,
}


def in_child(what: str, folder: Path, blocks: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, str(blocks), "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def restarts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, blocks in RESTARTED.items():
        store = folder / name
        in_child("fill_catalogue", store, blocks)
        seconds = [in_child("restart", store, blocks)["seconds"] for _ in range(RESTARTS)]
        found[f"restart_{name}_blocks_s"], found[f"restart_{name}_blocks_s_spread"] = middle(seconds), spread(seconds)
    size = in_child("fill_index", folder, RESTARTED["1m"])
    return found | {
        "index_bytes_per_block": round(size["resident"], 1),
        "index_column_bytes_per_block": round(size["columns"], 1),
    }


# --- the report --------------------------------------------------------------------------------------------------


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    load = os.getloadavg()[0]
    arena = _native.Arena.create(CELL, "kvtier-bench-nvme", pin=False)
    arena.view()[:] = np.frombuffer(np.random.default_rng().bytes(CELL), np.uint8)
    progress("shares of what O_DIRECT reaches")
    shares = Shares(folder, arena)
    facts = {"rounds": shares.run(seconds), "io": shares.tier.tier.io_backend}
    found = shares.outcome()
    shares.close()
    progress("the same with frames")
    coded = CodedShares(folder, arena, CELL)
    coded.run(seconds)
    found |= coded.outcome()
    coded.close()
    progress("one read after the other, beside writes and not")
    found |= latencies(folder, arena)
    progress("restarts")
    found |= restarts(folder)
    return {
        **found,
        **facts,
        "huge_pages": arena.huge_bytes == CELL,
        "load_average": round((load + os.getloadavg()[0]) / 2, 2),
        "cell_bytes": CELL,
        "write_gb_s": WRITE_GB_S,
        "machine": machine() | {"filesystem": filesystem(folder), "lmdb": ".".join(map(str, lmdb.version()))},
    }


def filesystem(folder: Path) -> str:
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    rows = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return next((row[row.index("-") + 1] for row in rows if row[2] == name), "unknown")


def progress(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


def print_table(outcome: dict[str, Any]) -> None:
    facts = outcome["machine"]
    title = f"{facts['cpu']}, {facts['cores']} cores, load {outcome['load_average']}, {facts['filesystem']}"
    table = Table("what", "measured", "spread", "bar", title=title)
    for name, value in outcome.items():
        if name != "machine" and not name.endswith("_spread"):
            least_most = outcome.get(f"{name}_spread")
            table.add_row(name, str(value), " to ".join(map(str, least_most or [])), BARS.get(name, ""))
    Console().print(table)
    if not outcome["huge_pages"]:
        Console().print("the arena is not on 2 MiB pages: the disk is slower for all of them")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where there are 5 GB free")
    parser.add_argument("--seconds", type=float, default=45, help="how long the rounds go on")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        with mock.patch.object(drives, "_allocate", sparse):
            print(json.dumps(CHILDREN[given.child[0]](given.folder, int(given.child[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-nvme-", dir=given.folder) as name:
        outcome = measure(Path(name), given.seconds)
    print(json.dumps(outcome)) if given.json else print_table(outcome)


if __name__ == "__main__":
    main()
