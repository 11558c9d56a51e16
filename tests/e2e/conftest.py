"""Real vLLM engines and the models they run. Starting one takes 15 to 60 seconds: share them."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from engine import Engine
from kvtierd import KVTierd

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "benchmarks"

CAPACITY = "2 GiB"

StartEngine = Callable[..., Engine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vllm") is None:
        skip = pytest.mark.skip(reason="vllm is not installed: make test installs it")
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def model_cache() -> Path:
    return models.cache_root()


def _model(name: str, cache: Path) -> Path:
    # In a process of its own: torch would take a quarter of a gigabyte and seconds in this one
    command = [sys.executable, str(BENCHMARKS / "models.py"), "--cache", str(cache), name]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


@pytest.fixture(scope="session")
def smollm2_path(model_cache: Path) -> Path:
    return _model("smollm2", model_cache)


@pytest.fixture(scope="session")
def tiny_llama_path(model_cache: Path) -> Path:
    return _model("tiny_llama", model_cache)


@pytest.fixture(scope="session")
def other_llama_path(model_cache: Path) -> Path:
    return _model("other_llama", model_cache)


@pytest.fixture(scope="session")
def tiny_gemma2_path(model_cache: Path) -> Path:
    return _model("tiny_gemma2", model_cache)


@pytest.fixture(scope="session")
def engine_log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


def _engines(log_dir: Path, name: str) -> Iterator[StartEngine]:
    started: list[Engine] = []
    numbers = itertools.count(1)

    def start(model: Path, **options: Any) -> Engine:
        log = options.pop("log", None) or log_dir / f"{name}-{next(numbers)}.log"
        started.append(Engine(model, log=log, **options))
        return started[-1]

    yield start
    for engine in started:
        engine.stop()


@pytest.fixture(scope="module")
def start_engine(engine_log_dir: Path, request: pytest.FixtureRequest) -> Iterator[StartEngine]:
    """Engine(model, **options) that is stopped at the end of the module."""
    yield from _engines(engine_log_dir, Path(request.node.name).stem)


# --- kvtier beside the engines ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kvtierd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    """The daemon that all engines share, unless a test has one of its own to maltreat. Tiny models compute sooner than
    anything is loaded; here hits are asserted."""
    with KVTierd(tmp_path_factory.mktemp("kvtierd"), {"cpu.capacity": CAPACITY, "cost.mode": "always"}) as running:
        yield running


def _connector(daemon: KVTierd, **settings: object) -> dict[str, Any]:
    return {
        "kv_connector": "KVTierConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"kvtier": {"socket": str(daemon.socket), **settings}},
    }


@pytest.fixture(scope="session")
def connector_for() -> Callable[[KVTierd], dict[str, Any]]:
    """vLLM's kv_transfer_config for an engine beside this daemon, with the deadlines that users have."""
    return _connector


@pytest.fixture(scope="session")
def with_kvtier(kvtierd: KVTierd) -> dict[str, Any]:
    """On a machine that tests keep busy an answer may be late, which is a miss; here hits are asserted."""
    return _connector(kvtierd, lookup_deadline_ms=10_000)


@pytest.fixture(scope="session")
def with_kvtier_unjoined(kvtierd: KVTierd) -> dict[str, Any]:
    """One of kvtier's blocks is one of the engine's, however small, so that both hit the same lengths."""
    connector = _connector(kvtierd, lookup_deadline_ms=10_000)
    connector["kv_connector_extra_config"]["blocks_per_chunk"] = 1
    return connector


@pytest.fixture(scope="session")
def shared_engine(engine_log_dir: Path, tiny_llama_path: Path, with_kvtier_unjoined: dict[str, Any]) -> Iterator[Engine]:
    """tiny_llama with blocks of 32 tokens beside `kvtierd`, for tests that leave it as they found it. Prompts that one test
    uses no other does, or under another salt."""
    engine = Engine(tiny_llama_path, connector=with_kvtier_unjoined, block_size=32, log=engine_log_dir / "shared.log")
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def real_dtype() -> str:
    """What this CPU multiplies at speed."""
    return models.fastest_dtype()


_report: list[str] = []


@pytest.fixture(scope="session")
def e2e_report() -> Callable[[str], None]:
    """Lines that stand at the end of the run, whatever the outcome."""
    return _report.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _report:
        terminalreporter.section("with the real engine")
        for line in _report:
            terminalreporter.write_line(line)
