"""kvtier verify: reads every block of an NVMe tier that no kvtierd uses, and says which are not what was written.

What is corrupt is forgotten, so that nobody comes upon it again. It was never served: a kvtierd verifies each read. What
can't be read now is left alone: another time or another kvtier may have it.
"""

import json
import select
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.config import MIB, format_size
from kvtier.errors import DaemonError
from kvtier.secret_file import read_root
from kvtier.tiers.base import Recovered
from kvtier.tiers.drives import BLOCKS, FORMAT, is_encrypted
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.nvme import NvmeTier
from kvtier.transfer import Finished, Forget, Promote

READS = 8  # under way
PAGE_BYTES = 2 * MIB
WAIT_S = 1.0


@dataclass
class Report:
    """What was found."""

    blocks: int = 0
    bytes: int = 0  # that they take there
    frames: int = 0  # of the blocks
    corrupt: int = 0  # bytes are not those that were written
    unreadable: int = 0  # and left alone: the drive reported an error, or nobody here knows the frame's codec
    bad_records: int = 0  # of the catalogue: dropped
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.corrupt or self.unreadable or self.bad_records)


def run(paths: list[Path], *, as_json: bool, key_file: str = "") -> bool:
    """`paths`: those of nvme.paths, in their order; `key_file`: encryption.key_file, where they are encrypted. Prints to
    stdout, progress to stderr. Whether all is good."""
    for path in paths:
        if not (path / FORMAT).is_file() or not (path / BLOCKS).is_file():
            raise DaemonError(f"{path} holds no part of an NVMe tier; name the folders of nvme.paths, in their order")
        if key_file and not is_encrypted(path):
            raise DaemonError(f"{path} is not encrypted: leave --key-file out")
    report = _scrub(paths, MasterKey(read_root(key_file, "--key-file")) if key_file else None)
    if as_json:
        print(json.dumps(asdict(report)))
        return report.is_good
    table = Table("checked", "frames", "corrupt, forgotten", "unreadable", "bad records, dropped", box=None, pad_edge=False)
    table.add_row(
        f"{report.blocks:,} blocks, {format_size(report.bytes)}",
        f"{report.frames:,}",
        f"{report.corrupt:,}",
        f"{report.unreadable:,}",
        f"{report.bad_records:,}",
    )
    Console().print(table)
    for note in report.notes:
        print(note)
    return report.is_good


def _scrub(paths: list[Path], master: MasterKey | None) -> Report:
    capacity = sum((path / BLOCKS).stat().st_size for path in paths)
    tier = NvmeTier(paths, capacity, 0, master=master)
    found, report = tier.recovered, Report(bad_records=tier.bad_records)
    pages = -(-int(found.sizes.max(initial=1)) // PAGE_BYTES)  # for the largest block
    arena = _native.Arena.create(READS * pages * PAGE_BYTES, "kvtier-verify", pin=False)
    tier.move_arena(arena.address)
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("reading", total=int(found.stored.sum()))
        for row, done in _reads(tier, found, arena.size // READS // SLOT_UNIT):
            stored = int(found.stored[row])
            report.blocks += 1
            report.bytes += stored
            report.frames += stored < int(found.sizes[row])
            report.corrupt += done.fault == "corrupt"
            report.unreadable += done.fault not in ("", "corrupt")
            if done.fault == "corrupt":
                place = int(found.places[row])
                tier.start(Forget(-1 - row, place, place + stored // SLOT_UNIT))
            progress.advance(task, stored)
    report.notes = tier.notes  # and what the reads have shown
    tier.close()
    return report


def _reads(tier: NvmeTier, found: Recovered, units: int) -> Iterator[tuple[int, Finished]]:
    """Every block read once, in the order in which they lie on the drives; `units`: of a buffer."""
    free = [buffer * units for buffer in range(READS)]
    rows = iter(np.argsort(found.places).tolist())
    under_way: dict[int, int] = {}  # row -> slot
    row = next(rows, None)
    while row is not None or under_way:
        while row is not None and free:
            under_way[row] = slot = free.pop()
            key = found.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES]
            columns = found.places, found.sizes, found.checksums, found.namespaces, found.stored
            tier.start(Promote(row, key, slot, *(int(column[row]) for column in columns)))
            row = next(rows, None)
        select.select([tier], [], [], WAIT_S)
        for done in tier.poll():
            if done.ticket >= 0:
                free.append(under_way.pop(done.ticket))
                yield done.ticket, done
