"""Codecs in a simulated world: below RAM blocks are frames, of sizes that nobody knows before (codecs_model.py)."""

from collections import Counter

import pytest

from .far_world import FarWorld
from .planted_bugs_coding import BUGS_IN_CODING, BUGS_IN_CODING_FAR
from .simulation import BROKEN, Simulation, has_drives

SEEDS, LONG = 9, 120
FAR_SEEDS, FAR_LONG = 4, 60
# In these much is a frame, much does not fit, and daemons die; so a bug is noticed soon:
TELLING = [16, 20, 40, 34, 28, 2, 5, 22, 19, 17, 13, 14]
TELLING_FAR = [0, 1, 2, 3, 7, 4, 5, 6, 8, 9, 26]


@pytest.fixture
def coded_seeds(seeds: range) -> range:
    return seeds if len(seeds) == 1 else range(SEEDS)


def test_frames_survive_every_seed(coded_seeds):
    for seed in coded_seeds:
        if has_drives(seed):
            Simulation(seed, has_codecs=True).run()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_frames_survive_many_more_seeds():
    for seed in range(SEEDS, LONG):
        if has_drives(seed):
            Simulation(seed, has_gpu=seed % 2 == 0, has_codecs=True).run()


def test_frames_of_two_nodes_survive_every_seed_and_an_upgrade():
    for seed in range(FAR_SEEDS):
        FarWorld(seed, has_upgrades=seed % 2 == 0, has_codecs=True).run()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_frames_of_two_nodes_survive_many_more_seeds():
    for seed in range(FAR_SEEDS, FAR_LONG):
        FarWorld(seed, has_upgrades=seed % 2 == 0, has_codecs=True).run()


def test_a_run_does_what_codecs_are_for():
    """Blocks become frames, on drives and in a remote, and come back; some don't fit."""
    counts: Counter[str] = Counter()
    for seed in TELLING[:7]:
        simulation = Simulation(seed, has_codecs=True)
        simulation.run()
        counts += simulation.counts
    counts += sum((FarWorld(seed, has_codecs=True).run() for seed in range(7)), Counter())
    spared = ("spared_write_bytes", "spared_read_bytes", "remote_spared_write_bytes", "remote_spared_read_bytes")
    larger = ("larger_frames", "remote_larger_frames")
    dull = [name for name in (*spared, *larger) if counts[name] < (2**19 if name in spared else 3)]
    assert not dull, f"the simulated codecs hardly ever cause {dull}: {counts}"


def test_a_seed_with_codecs_repeats_a_run_event_for_event():
    runs = [Simulation(TELLING[0], has_codecs=True) for _ in range(2)]
    for run in runs:
        run.run()
    assert (runs[0].log, runs[0].events) == (runs[1].log, runs[1].events)
    assert runs[0].store.stats.snapshot() == runs[1].store.stats.snapshot()


@pytest.mark.parametrize("plant", BUGS_IN_CODING, ids=lambda plant: plant.__name__)
def test_a_bug_in_what_is_done_with_frames_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant, has_codecs=True)) for seed in TELLING)


@pytest.mark.parametrize("plant", BUGS_IN_CODING_FAR, ids=lambda plant: plant.__name__)
def test_a_bug_in_what_is_done_with_frames_elsewhere_is_noticed(plant):
    assert any(is_noticed(FarWorld(seed, plant, has_codecs=True)) for seed in TELLING_FAR)


def is_noticed(world: Simulation | FarWorld) -> bool:
    try:
        world.run()
    except BROKEN:
        return True
    return False
