"""The store in a simulated world: it never lies and it loses nothing. simulation.py says what the world is like."""

import pytest

from .planted_bugs import HABIT_BUGS, STORE_BUGS
from .simulation import BROKEN, Simulation

SEEDS_FOR_A_BUG = 25  # the first of those that the sound store survives
LONG = 10


def test_a_run_does_what_the_store_is_for():
    counts: dict[str, int] = {}
    for seed in range(10):
        simulation = Simulation(seed)
        simulation.run()
        for name, n in simulation.store.stats.snapshot().items():
            counts[name] = counts.get(name, 0) + n
    dull = [
        name
        for name in (
            "loaded_blocks",
            "saved_blocks",
            "known_blocks",
            "evicted_blocks",
            "reset_blocks",
            "refused_leases",
        )
        if counts[name] < 20
    ]
    assert not dull, f"the simulated engines hardly ever cause {dull}: {counts}"


def test_a_seed_repeats_a_run_event_for_event():
    runs = [Simulation(7), Simulation(7)]
    for run in runs:
        run.run()
    assert runs[0].log == runs[1].log
    assert runs[0].events == runs[1].events
    assert runs[0].store.stats.snapshot() == runs[1].store.stats.snapshot()


@pytest.mark.timeout(1800)  # --sim-seeds may ask for many
def test_the_store_survives_every_seed(seeds):
    for seed in seeds:
        Simulation(seed).run()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_store_survives_ten_times_as_many_seeds(seeds):
    for seed in range(seeds.stop, seeds.stop + LONG * len(seeds)):
        Simulation(seed).run()


@pytest.mark.parametrize("plant", STORE_BUGS, ids=lambda plant: plant.__name__)
def test_a_bug_in_the_store_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant)) for seed in range(SEEDS_FOR_A_BUG))


@pytest.mark.parametrize("name", HABIT_BUGS)
def test_a_bug_around_the_store_is_noticed(name):
    assert any(is_noticed(Simulation(seed, habits=HABIT_BUGS[name])) for seed in range(SEEDS_FOR_A_BUG))


def test_a_failing_seed_says_how_to_repeat_it():
    with pytest.raises(BROKEN) as caught:
        Simulation(3, plant=STORE_BUGS[0]).run()
    note = caught.value.__notes__[-1]
    assert "--sim-seed=3" in note
    assert "engine-0" in note, "the last events stand there"


def is_noticed(simulation: Simulation) -> bool:
    try:
        simulation.run()
    except BROKEN:
        return True
    return False
