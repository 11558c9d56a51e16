"""vLLM's own metrics show kvtier's part of an engine: counted by the scheduler's half, taken once a step."""

import random
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vllm is not installed: make test installs it")

from engine import Engine
from fake_engine import BLOCK, FakeEngine
from kvtier.connectors.vllm.tally import (
    CONNECTED,
    COUNTED,
    LOAD_SECONDS,
    LOADED_TOKENS,
    METRICS,
    NOT_SAVED,
    SAVED_TOKENS,
    Tally,
)
from kvtierd import eventually
from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from kvtier.stats import COUNTERS

TOKENS = 32  # of a block of shared_engine


def reduced(stats: OffloadingConnectorStats | None) -> dict[str, float]:
    return {} if stats is None else stats.reduce()


def test_all_that_is_counted_is_there_from_the_start_but_durations():
    first = reduced(Tally().take(connected=True))
    assert {name.split(":(")[0] for name in first} == set(METRICS) - {LOAD_SECONDS}
    assert {value for name, value in first.items() if name != CONNECTED} == {0}
    assert first[CONNECTED] == 1


def test_what_was_taken_is_not_taken_again():
    tally = Tally()
    tally.take(connected=True)
    tally.count("lookups_late", 1)
    tally.count("lookups_inline", 5)
    tally.count("skipped_no_slot", 3)
    tally.loaded(64, 0.02)
    tally.saved(32)
    assert reduced(tally.take(connected=True)) == {
        "vllm:kvtier_lookups_late": 1,
        f"{NOT_SAVED}:('no_slot',)": 3,
        LOADED_TOKENS: 64,
        SAVED_TOKENS: 32,
        f"{LOAD_SECONDS}_count": 1,
        f"{LOAD_SECONDS}_sum": 0.02,
    }
    assert tally.take(connected=True) is None
    assert reduced(tally.take(connected=False)) == {CONNECTED: 0}


def test_it_counts_under_names_that_there_are():
    assert set(COUNTED) <= set(COUNTERS)
    assert {name for name, _ in COUNTED.values()} <= set(METRICS)
    for name, labels in COUNTED.values():
        assert len(labels) == len(METRICS[name].labelnames)


def test_it_survives_the_way_to_the_frontend():
    tally = Tally()
    tally.count("skipped_away", 2)
    sent = tally.take(connected=True).to_dict()
    received = MsgpackDecoder(dict).decode(MsgpackEncoder().encode(sent))
    assert OffloadingConnectorStats(data=received).reduce() == OffloadingConnectorStats(data=sent).reduce()


class FakeMetric:
    """Of prometheus_client, whose real ones are one a process."""

    def __init__(self, name: str, **_: object) -> None:
        self.name, self.values = name, []

    def labels(self, *_: object) -> "FakeMetric":
        return self

    def inc(self, value: float) -> None:
        self.values.append(value)

    set = observe = inc


def test_a_frontend_with_the_user_s_settings_alone_knows_what_is_sent():
    connector = pytest.importorskip("kvtier.connectors.vllm.connector").KVTierConnector
    config = SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_connector_extra_config={"kvtier": {}}))
    kinds = dict.fromkeys((Counter, Gauge, Histogram), FakeMetric)
    shown = connector.build_prom_metrics(config, kinds, ["engine"], {0: ["0"]})
    tally = Tally()
    tally.loaded(64, 0.02)
    shown.observe(tally.take(connected=True).to_dict(), 0)
    seen = {name: metric.values for (_, name, _), metric in shown.offloading_metrics.items()}
    assert set(seen) == set(METRICS)
    assert (seen[LOADED_TOKENS], seen[LOAD_SECONDS], seen[CONNECTED]) == ([64], [0.02], [1])


def test_the_manager_counts_what_it_saves_and_what_it_can_not():
    engine = FakeEngine(blocks=3)
    engine.manager.get_stats()
    engine.arrive()
    engine.client.ready = False
    engine.manager.prepare_store(engine.keys, engine.context)
    assert reduced(engine.manager.get_stats()) == {f"{NOT_SAVED}:('away',)": 3, CONNECTED: 0}
    engine.client.ready = True
    saved = engine.manager.prepare_store(engine.keys, engine.context)
    engine.manager.settle({saved.store_spec.token: (1, 0)})
    assert reduced(engine.manager.get_stats()) == {SAVED_TOKENS: 3 * BLOCK, CONNECTED: 1}


def test_a_fault_is_one_of_ours_and_is_counted():
    engine = FakeEngine(blocks=1)
    engine.manager.get_stats()
    engine.manager.fault()
    assert reduced(engine.manager.get_stats())["vllm:kvtier_faults"] == 1


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_engine_s_metrics_show_what_it_saved_and_loaded(shared_engine: Engine):
    prompt = [random.Random(77_000 + i).randrange(3, 900) for i in range(4 * TOKENS + 5)]
    before = shared_engine.metrics()
    shared_engine.generate([prompt], 2, salt="tally")
    assert shared_engine.reset()
    back = shared_engine.generate([prompt], 2, salt="tally")[0]
    assert back.external_tokens == 4 * TOKENS

    def grown(name: str) -> float:
        return shared_engine.metrics()[name] - before.get(name, 0)

    eventually(lambda: grown(LOADED_TOKENS) == 4 * TOKENS)
    assert grown(SAVED_TOKENS) == 4 * TOKENS
    after = shared_engine.metrics()
    assert after[CONNECTED] == 1
    assert after["vllm:kvtier_faults"] == after["vllm:kvtier_lookups_late"] == 0
    assert NOT_SAVED + "{reason=no_slot}" in after
