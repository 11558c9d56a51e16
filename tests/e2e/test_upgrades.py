"""A real engine under load while kvtierd is replaced: nobody fails, no token differs, and hits go on without a disk."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from beside import Beside
from engine import Answer, Engine
from kvtierd import eventually
from service_manager import Service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BLOCK = 32
PROMPTS, TOKENS = 6, 300
DELAY_S = 2.0  # the most that an upgrade may add to a request
BUSIER = 2.0  # times as long as before a request may take on a machine that has other things to do, too
BACK_S = 5.0  # so soon hits are back after the next kvtierd is ready
CALM = 2 * PROMPTS  # requests before an upgrade, and after hits are back


def _prompt(number: int) -> list[int]:
    return [random.Random(number * 10_000 + i).randrange(3, 900) for i in range(TOKENS)]


class Request(NamedTuple):
    prompt: int
    begun: float
    seconds: float
    answer: Answer

    @property
    def hits(self) -> bool:
        return (self.answer.external_tokens or 0) > 0


class Load(Beside):
    """Conversations that come back one after the other, and find nothing in the engine itself."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.requests: list[Request] = []
        self.failure: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                prompt = len(self.requests) % PROMPTS
                begun = time.monotonic()
                (answer,) = self.engine.generate([_prompt(prompt)], 8, drain=False)
                self.requests.append(Request(prompt, begun, time.monotonic() - begun, answer))
                self.engine.reset()
        except Exception as failure:
            self.failure = failure

    def go_on(self, requests: int) -> None:
        wanted = len(self.requests) + requests
        eventually(lambda: self.failure or len(self.requests) >= wanted, within=300)
        assert self.failure is None, self.failure

    def hits_again(self, since: float) -> float:
        """How long after this moment the first of PROMPTS requests in a row began that all hit."""

        def found() -> list[Request]:
            later = [request for request in list(self.requests) if request.begun >= since]
            runs = [later[i : i + PROMPTS] for i in range(len(later) - PROMPTS + 1)]
            return next((run for run in runs if all(request.hits for request in run)), [])

        return eventually(lambda: found() or self.failure, within=300)[0].begun - since


def _computed(engine: Engine) -> float:
    """How long the longest of some requests takes that find nothing, with nothing else going on."""
    seconds = []
    for number in range(CALM):
        begun = time.monotonic()
        engine.generate([_prompt(1000 + number)], 8, drain=False)
        seconds.append(time.monotonic() - begun)
    return max(seconds)


def _upgraded(engine: Engine, service: Service, times: int) -> tuple[Load, list[float]]:
    """The load, and for each upgrade how long it took until all hit again."""
    back = []
    with Load(engine) as load:
        load.go_on(PROMPTS)
        load.hits_again(time.monotonic())
        for _ in range(times):
            load.go_on(CALM)
            read = service.snapshot()["tiers"]["nvme"]["read_bytes"]
            assert service.end() == 0, service.said()
            service.start()
            back.append(load.hits_again(time.monotonic()))
            assert service.snapshot()["tiers"]["nvme"]["read_bytes"] == 0, "of this kvtierd"
            assert read == 0
    assert load.failure is None
    return load, back


def _judge(load: Load, computed_s: float) -> None:
    """`computed_s`: so long a request may take that finds nothing; the machine may be busier at another time."""
    first = {request.prompt: request.answer.tokens for request in reversed(load.requests)}
    assert all(len(request.answer.tokens) == 8 for request in load.requests)
    differing = [request.prompt for request in load.requests if request.answer.tokens != first[request.prompt]]
    assert not differing, f"{len(differing)} of {len(load.requests)} answers differ"
    assert max(request.seconds for request in load.requests) < BUSIER * computed_s + DELAY_S


def _service(folder: Path) -> Service:
    path = folder / "kvtierd.sock"
    settings = {"cpu.capacity": "256 MiB", "cost.mode": "always", "server.socket": path, "nvme.paths": folder / "drive",
                "nvme.capacity": "512 MiB"}  # fmt: skip
    return Service(folder, settings, listens={"kvtierd": path})


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with _service(tmp_path) as running:
        yield running


def test_three_upgrades_under_load(start_engine, tiny_llama_path, connector_for: Callable, service, e2e_report):
    connector = connector_for(service, lookup_deadline_ms=1000)
    engine = start_engine(tiny_llama_path, connector=connector, block_size=BLOCK, multiprocess=True)
    computed_s = _computed(engine)
    load, back = _upgraded(engine, service, 3)
    _report(e2e_report, "tiny_llama", load, back, computed_s)
    _judge(load, computed_s)


@pytest.mark.long
def test_ten_upgrades_under_load_with_real_weights(
    start_engine, smollm2_path, connector_for, service, e2e_report, real_dtype
):
    connector = connector_for(service, lookup_deadline_ms=1000)
    engine = start_engine(smollm2_path, connector=connector, block_size=BLOCK, multiprocess=True, dtype=real_dtype)
    computed_s = _computed(engine)
    load, back = _upgraded(engine, service, 10)
    _report(e2e_report, "SmolLM2", load, back, computed_s)
    _judge(load, computed_s)
    assert max(back) < BACK_S + BUSIER * computed_s  # the first that begins after it may have to wait for one before


def _report(e2e_report: Callable[[str], None], model: str, load: Load, back: list[float], computed_s: float) -> None:
    hits = [request.seconds for request in load.requests if request.hits]
    misses = [request.seconds for request in load.requests if not request.hits]
    e2e_report(
        f"{len(back)} upgrades of kvtierd under load ({model}): {len(load.requests)} requests, {len(misses)} computed; "
        f"hit {statistics.median(hits):.3f} s, computed {statistics.median(misses):.3f} s, "
        f"longest {max(hits + misses):.3f} s (before any upgrade, computed: {computed_s:.3f} s); "
        f"all hit again after {max(back):.2f} s at the latest"
    )
