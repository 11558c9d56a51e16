"""Whatever happens to kvtierd, the engine serves: no failed request, none delayed over 2 s, and the next daemon is used
without a restart."""

import random
import statistics
import time

import pytest
from beside import Beside
from engine import Engine
from kvtierd import KVTierd, eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK = 32
DELAY_S = 2.0  # the most that trouble may add to a request


def _prompt(seed: int, length: int = 300) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory) -> KVTierd:
    with KVTierd(tmp_path_factory.mktemp("trouble"), {"cpu.capacity": "256 MiB", "cost.mode": "always"}) as running:
        yield running


@pytest.fixture(scope="module")
def engine(start_engine, tiny_llama_path, daemon, connector_for) -> Engine:
    """Starts while kvtierd is absent."""
    daemon.kill()
    return start_engine(tiny_llama_path, connector=connector_for(daemon), block_size=BLOCK, multiprocess=True)


class Load(Beside):
    """Requests, one call after another, of conversations that are new and of some that come back."""

    def __init__(self, engine: Engine, seed: int) -> None:
        super().__init__()
        self.engine, self.seed = engine, seed
        self.seconds: list[float] = []
        self.answers = 0

    def _run(self) -> None:
        while not self._over.is_set():
            seed = self.seed + len(self.seconds) % 7
            begun = time.monotonic()
            answers = self.engine.generate([_prompt(seed, 200), _prompt(seed + 50, 260)], 8, drain=False)
            self.seconds.append(time.monotonic() - begun)
            self.answers += sum(len(answer.tokens) == 8 for answer in answers)

    def run_for(self, seconds: float) -> None:
        time.sleep(seconds)


def test_an_engine_that_starts_without_kvtierd_serves_and_uses_one_that_comes_later(engine, daemon):
    prompt = _prompt(1)
    assert engine.generate([prompt])[0].external_tokens == 0
    daemon.start()
    _until_it_is_used(engine, daemon)


def test_kill_9_under_load_delays_nobody_and_the_next_daemon_is_used(engine, daemon):
    with Load(engine, 100) as load:
        load.run_for(3)
        calm = len(load.seconds)
        for _ in range(3):
            daemon.kill()
            load.run_for(1)
            daemon.start()
            load.run_for(2)
    assert calm > 0 and len(load.seconds) > calm
    assert load.answers == 2 * len(load.seconds)
    assert max(load.seconds) < statistics.median(load.seconds) + DELAY_S
    _until_it_is_used(engine, daemon)


@pytest.mark.long
def test_a_frozen_daemon_delays_nobody_and_is_used_again_afterwards(engine, daemon):
    _until_it_is_used(engine, daemon)
    with Load(engine, 200) as load:
        load.run_for(3)
        calm = len(load.seconds)
        daemon.stop_()
        load.run_for(30)
        frozen = load.seconds[calm:]
        daemon.cont()
        load.run_for(2)
    assert load.answers == 2 * len(load.seconds)
    assert max(load.seconds) < statistics.median(load.seconds) + DELAY_S
    # After the first late answer nobody waits: the rest of the half minute runs at the engine's own speed.
    assert statistics.median(frozen) < 2 * statistics.median(load.seconds[:calm]) + 0.1
    _until_it_is_used(engine, daemon)


def test_a_daemon_of_another_protocol_version_is_left_alone(engine, daemon):
    daemon.kill()
    with KVTierd(daemon.socket.parent, version=99), Load(engine, 300) as load:
        load.run_for(4)
    assert load.answers == 2 * len(load.seconds) > 0
    assert max(load.seconds) < statistics.median(load.seconds) + DELAY_S


def _until_it_is_used(engine: Engine, daemon: KVTierd) -> None:
    """A conversation that is saved and comes back: soon after the engine has found the daemon."""
    seeds = iter(range(100_000, 200_000))

    def comes_back() -> bool:
        prompt = _prompt(next(seeds))
        engine.generate([prompt], 2)
        assert engine.reset()
        return engine.generate([prompt], 2)[0].external_tokens > 0

    eventually(comes_back)
    assert daemon.counter("loaded_blocks") > 0
