"""What bench_scale is made of: a store of blocks that nobody saved is one that kvtierd believes, and figures say what was
measured."""

import json

import bench_scale
import numpy as np
import pytest
import scale_store

from kvtier import _native
from kvtier.block import KEY_BYTES, SLOT_UNIT, unpack_keys
from kvtier.extents import Extents
from kvtier.forgetting import session_tag
from kvtier.tiers.catalogue import Catalogue
from kvtier.tiers.drives import BLOCKS, CATALOGUE, FORMAT

MIB = 1024**2
BLOCK = 2 * SLOT_UNIT


def test_keys_are_the_same_for_all_who_make_them_and_no_two_are_alike():
    assert scale_store.keys_of(7, 3) == scale_store.keys_of(0, 10)[7 * KEY_BYTES :]
    assert len(set(unpack_keys(scale_store.keys_of(0, 10_000)))) == 10_000


@pytest.mark.parametrize("block_bytes", [SLOT_UNIT, 3 * SLOT_UNIT])
def test_checksums_of_zeros_are_those_that_a_read_of_a_hole_gives(block_bytes):
    keys = scale_store.keys_of(5, 4)
    read = [_native.crc32c(bytes(block_bytes), _native.crc32c(key)) for key in unpack_keys(keys)]
    assert scale_store.ZeroChecksums(block_bytes).of(keys).tolist() == read


def made(folder, blocks: int, drives: int = 1) -> tuple[list, dict]:
    """A store, and what its format says."""
    folders = [folder / str(drive) for drive in range(drives)]
    scale_store.make(folders, blocks, BLOCK)
    return folders, json.loads((folders[0] / FORMAT).read_text())


@pytest.mark.parametrize("drives", [1, 2])
def test_what_is_made_is_recovered_whole(tmp_path, monkeypatch, drives):
    monkeypatch.setattr(scale_store, "BATCH", 130)
    folders, said = made(tmp_path, 1000, drives)
    extents = scale_store.capacity_for(1000, BLOCK, drives) // said["extent_bytes"]
    units = said["extent_bytes"] // SLOT_UNIT
    catalogue = Catalogue(folders[0] / CATALOGUE, bytes.fromhex(said["store"]), extents, units)
    catalogue.close()
    assert (catalogue.bad_records, catalogue.quarantined) == (0, 0)
    found, index = catalogue.recovered, Extents(extents, said["extent_bytes"], drives)
    assert found.remembered == {scale_store.NAMESPACE: (1, 0)}
    rows = (found.places, found.sizes, found.namespaces, found.checksums, found.origins, found.stored)
    assert index.recover(found.keys, *rows) == 0
    assert len(index) == 1000 and index.used_bytes == 1000 * BLOCK
    places = index.find(scale_store.keys_of(0, 1000))
    assert index.are_of(places, 1, BLOCK).all()
    of_session = places[3 * scale_store.SESSION_BLOCKS : 4 * scale_store.SESSION_BLOCKS]
    assert index.of_origin(session_tag(scale_store.session_name(3)), b"").tolist() == of_session.tolist()


def test_payload_files_have_their_size_and_no_bytes(tmp_path):
    folders, _ = made(tmp_path, 1000, drives=2)
    files = [(folder / BLOCKS).stat() for folder in folders]
    assert sum(file.st_size for file in files) == scale_store.capacity_for(1000, BLOCK, 2)
    assert sum(file.st_blocks for file in files) == 0


def test_a_log_tells_the_longest_step_by_the_loops_own_time():
    log = "kvtierd serves\nstep 0.004000 0.090000 Beat._beat\nstep 0.021000 0.022000 Mover._on_news\n"
    assert bench_scale.pause_figures(log) == {
        "pause_max_ms": 21.0,
        "pause_was": "Mover._on_news",
        "pauses_over_20_ms": 1,
        "step_by_clock_max_ms": 90.0,
    }
    assert bench_scale.pause_figures("")["pause_max_ms"] == 0.0


def test_lookups_are_told_in_microseconds_over_the_rounds():
    rounds = [[0.001] * 10, [0.002] * 10, [0.004] * 10]
    assert bench_scale.percentiles(rounds)["p99"] == {"median": 2000.0, "min": 1000.0, "max": 4000.0}


def found(p99_us: float = 900.0, pause_ms: float = 4.0) -> dict:
    return {
        "bytes_per_block": 84.3,
        "lookup_us": {"256": {"p99": {"median": p99_us, "min": 1.0, "max": 5000.0}}},
        "pause_max_ms": pause_ms,
        "restart_s": {"median": 30.0, "min": 20.0, "max": 59.0},
    }


def test_goals_say_what_was_measured_and_whether_it_holds():
    goals = bench_scale.goals_of(found())
    assert [goal["bar"] for goal in goals] == ["at most 200 B", "at most 1000 us", "at most 20 ms", "at most 60 s"]
    assert [goal["measured"] for goal in goals] == ["84 B", "900 us", "4.0 ms", "59.0 s"]
    assert all(goal["holds"] for goal in goals)
    missed = [goal["goal"] for goal in bench_scale.goals_of(found(p99_us=1001.0, pause_ms=20.5)) if not goal["holds"]]
    assert missed == ["lookup of 256 keys, p99", "longest step of the event loop, its own CPU time"]


def test_spreads_of_pings_are_told_by_whom():
    pinged = {"kvtierd": [0.001] * 99 + [0.1], "echo": [0.0001] * 100}
    figures = bench_scale.ping_figures(pinged)
    assert figures["kvtierd_ping_max_ms"] == 100.0 and figures["echo_ping_max_ms"] == 0.1
    assert np.isclose(figures["echo_ping_p99_ms"], 0.1)
