"""How long a start takes on what the last daemon left: 100,000 blocks, and none."""

import hashlib
import itertools
import shutil
from pathlib import Path

import pytest
from kvtierd import SLOT, Engine
from victim import Victim

from kvtier.block import ABSENT, KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.tiers.catalogue import Catalogue, record_of
from kvtier.tiers.drives import CATALOGUE, Drives
from kvtier.transfer import Demote, Remember

BLOCKS = 100_000
CAPACITY = BLOCKS * SLOT + 512 * 1024**2
TIMES, FACTOR = 5, 4


def settings(tier: Path) -> dict[str, object]:
    return {"nvme.paths": tier, "nvme.capacity": CAPACITY, "nvme.stage_deadline_ms": 1000}


def key_of(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=KEY_BYTES).digest()


def fill(tier: Path, namespace: bytes) -> None:
    """Records of blocks as a daemon would have left them; their bytes nobody reads here."""
    drives = Drives([tier], CAPACITY)
    units = drives.extent_bytes // SLOT_UNIT
    catalogue = Catalogue(tier / CATALOGUE, drives.store, drives.extents, units)
    catalogue.commit([Remember(0, namespace, 0, 0)])
    records = (record_of(Demote(0, key_of(i), 0, i, SLOT, 0, 0), i, i + 1) for i in range(BLOCKS))
    while some := list(itertools.islice(records, 10_000)):
        catalogue.commit(some)
    catalogue.close()
    drives.close()


def best_start(victim: Victim) -> float:
    """Seconds from the exec to the first Welcome."""
    seconds = []
    for _ in range(TIMES):
        victim.kill()
        ready = victim.begin()
        assert ready is not None, victim.said()
        seconds.append(ready)
    return min(seconds)


@pytest.mark.long
def test_a_start_with_100_000_blocks_takes_little_longer_than_one_without(tmp_path):
    if shutil.disk_usage(tmp_path).free < 2.5 * CAPACITY:
        pytest.skip("too little room")
    seconds = {}
    for name in ("empty", "full"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "full":
            fill(folder / "nvme", b"model".ljust(32, b"."))
        with Victim(folder, settings(folder / "nvme")) as victim:
            seconds[name] = best_start(victim)
            assert victim.snapshot()["tiers"]["nvme"]["blocks"] == (BLOCKS if name == "full" else 0)
            with Engine(victim.socket, model="model") as engine:
                slots = engine.lookup(pack_keys(key_of(i) for i in range(0, BLOCKS, BLOCKS // 50)))
                assert len(slots) == 50
                if name == "empty":
                    assert set(slots) == {ABSENT}
        shutil.rmtree(folder)
    print(f"ready after {seconds['full']:.2f} s with {BLOCKS:,} blocks, after {seconds['empty']:.2f} s with none")
    assert seconds["full"] < FACTOR * seconds["empty"]
