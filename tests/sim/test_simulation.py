"""The store in a simulated world: it never lies and it loses nothing. simulation.py says what the world is like."""

from collections import Counter

import pytest

from .planted_bugs import HABIT_BUGS, STORE_BUGS
from .planted_bugs_below import BUGS_BELOW
from .planted_bugs_deciding import BUGS_IN_DECIDING
from .planted_bugs_gpu import BUGS_ON_THE_GPU
from .planted_bugs_sessions import BUGS_IN_SESSIONS
from .simulation import BROKEN, Simulation, has_drives

# Found only after many seeds: noticed in `make test-long`.
LATE = {
    "a_session_whose_time_is_up_leaves_its_blocks",
    "to_unpin_one_session_unpins_another",
    "what_nobody_asked_for_takes_the_room_of_something_dearer",
    "an_erasure_that_failed_is_taken_for_done",
    "what_is_below_is_staged_though_only_ram_is_chosen",
    "that_a_request_could_run_is_forgotten",
    "what_an_engine_has_is_staged_too",
    "every_block_may_take_the_whole_budget",
    "a_write_of_a_reset_namespace_is_added",
    "what_a_forgotten_session_had_once_stays",
    "the_policy_forgets_what_was_put_aside",
    "what_is_on_its_way_of_a_forgotten_session_arrives",
    "the_budget_is_not_asked",
    "an_extent_is_filled_again_before_it_is_forgotten",
    "a_forget_that_failed_is_taken_for_done",
}
# In these much is read back from the drives, forgotten there, cut off, held out; so a bug is noticed soon:
WITH_DRIVES = [59, 8, 43, 14, 70, 68, 148, 85, 92, 58, 139, 7, 10, 32, 98, 61, 64, 62, 2, 65, 4, 11, 13, 71, 134, 20, 67, 5]
WITHOUT = [
    183,
    198,
    *(seed for seed in range(99) if not has_drives(seed)),
]  # drives bring help where a bug left somebody without
WITH_GPU = [40, 12, 0, 2, 8, 11, 10, 5, 37]
LONG = 10
# What the simulated engines are to cause in some dozens of seeds, each often.
TELLING = (
    "loaded_blocks", "saved_blocks", "known_blocks", "evicted_blocks", "reset_blocks", "refused_leases",
    "demoted_blocks", "promoted_blocks", "staged_lookups", "forgotten_blocks", "decided_fetch", "decided_recompute",
    "staged_short", "forgotten_sessions", "refused_orphans", "refused_forgotten", "refused_no_disk", "erased_blocks",
    "mirrored_blocks", "found_gpu_keys", "dropped_gpu_copies", "refused_gpu", "failed_gpu_copies",
)  # fmt: skip
OFTEN, SEEDS_TELLING = 10, 20


def marked(plants: list) -> list:
    return [pytest.param(plant, marks=pytest.mark.long) if plant.__name__ in LATE else plant for plant in plants]


def has_gpu(seed: int) -> bool:
    return seed % 2 == 0


def test_a_seed_repeats_a_run_event_for_event():
    runs = [Simulation(7, has_gpu=True), Simulation(7, has_gpu=True)]
    for run in runs:
        run.run()
    assert runs[0].log == runs[1].log
    assert runs[0].events == runs[1].events
    assert runs[0].store.stats.snapshot() == runs[1].store.stats.snapshot()


@pytest.mark.timeout(1800)  # --sim-seeds may ask for many
def test_the_store_survives_every_seed(seeds):
    """And in them it does what a store is for."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        simulation = Simulation(seed, has_gpu=has_gpu(seed))
        simulation.run()
        counts += simulation.counts
    dull = [name for name in TELLING if counts[name] < OFTEN]
    assert not dull or len(seeds) < SEEDS_TELLING, f"the simulated engines hardly ever cause {dull}: {counts}"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_store_survives_ten_times_as_many_seeds(seeds):
    for seed in range(seeds.stop, seeds.stop + LONG * len(seeds)):
        Simulation(seed, has_gpu=has_gpu(seed)).run()


@pytest.mark.parametrize("plant", marked(STORE_BUGS), ids=lambda plant: plant.__name__)
def test_a_bug_in_the_store_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant)) for seed in WITHOUT)


@pytest.mark.parametrize("plant", marked(BUGS_BELOW), ids=lambda plant: plant.__name__)
def test_a_bug_below_the_arena_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant)) for seed in WITH_DRIVES)


@pytest.mark.parametrize("plant", marked(BUGS_IN_DECIDING), ids=lambda plant: plant.__name__)
def test_a_bug_in_what_follows_from_decisions_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant)) for seed in WITH_DRIVES)


@pytest.mark.parametrize("plant", marked(BUGS_IN_SESSIONS), ids=lambda plant: plant.__name__)
def test_a_bug_in_what_sessions_mean_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant)) for seed in WITH_DRIVES)


@pytest.mark.parametrize("plant", marked(BUGS_ON_THE_GPU), ids=lambda plant: plant.__name__)
def test_a_bug_in_the_mirror_is_noticed(plant):
    assert any(is_noticed(Simulation(seed, plant=plant, has_gpu=True)) for seed in WITH_GPU)


@pytest.mark.parametrize("name", HABIT_BUGS)
def test_a_bug_around_the_store_is_noticed(name):
    assert any(is_noticed(Simulation(seed, habits=HABIT_BUGS[name])) for seed in WITHOUT)


def test_a_failing_seed_says_how_to_repeat_it():
    with pytest.raises(BROKEN) as caught:
        Simulation(3, plant=STORE_BUGS[0]).run()
    note = caught.value.__notes__[-1]
    assert "--sim-seed=3" in note
    assert "engine-" in note, "the last events stand there"


def is_noticed(simulation: Simulation) -> bool:
    try:
        simulation.run()
    except BROKEN:
        return True
    return False
