"""A real Prometheus scrapes a live kvtierd: what the dashboard asks is answered, and what the alerts look at is there."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat import nvme_settings
from kvtierd import PATIENCE_S, KVTierd, eventually
from metrics.prometheus import MISSING, PROMETHEUS, Prometheus, queries_of_dashboard, served_on
from metrics.traffic import Traffic

pytestmark = [
    pytest.mark.skipif(PROMETHEUS is None, reason=f"prometheus {MISSING}"),
    pytest.mark.timeout(10 * PATIENCE_S),
]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder: Path = tmp_path_factory.mktemp("metrics")
    settings = nvme_settings(folder) | {"metrics.listen": "127.0.0.1:0", "cost.mode": "always"}
    with KVTierd(folder, settings) as daemon:
        running = Prometheus(folder, served_on(daemon))
        try:
            with Traffic(daemon):
                yield running
        finally:
            running.stop()


def numbers(prometheus: Prometheus, query: str) -> list[float]:
    return [float(sample["value"][1]) for sample in prometheus.ask(query)]


def test_every_query_of_the_dashboard_answers(prometheus):
    silent = queries_of_dashboard()
    assert len(silent) > 40

    def all_answer() -> bool:
        for panel, query in list(silent.items()):
            if (seen := numbers(prometheus, query)) and not any(map(math.isnan, seen)):
                del silent[panel]
        return not silent

    try:
        eventually(all_answer, 3 * PATIENCE_S)
    except AssertionError:
        pytest.fail("\n".join(f"{panel}: {query}" for panel, query in silent.items()))


def test_what_the_dashboard_says_of_the_traffic_is_so(prometheus):
    eventually(lambda: numbers(prometheus, 'kvtier_transfer_blocks_total{src="nvme", dst="cpu"} > 20'))
    eventually(lambda: numbers(prometheus, "kvtier_load_duration_seconds_count > 20"))
    assert numbers(prometheus, "kvtier_engine_connected") == [1]
    assert numbers(prometheus, 'kvtier_clients{role="worker"}') == [1]
    assert numbers(prometheus, 'kvtier_tier_capacity_bytes{tier="nvme"}') == [128 * 1024**2]
    assert numbers(prometheus, "sum(kvtier_blocks_corrupt_total)") == [0]
    assert numbers(prometheus, "process_resident_memory_bytes")[0] > 32 * 1024**2


def test_every_rule_is_evaluated_and_none_fires_at_a_node_that_is_well(prometheus):
    def rules() -> list[dict]:
        groups = prometheus.get("/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    eventually(lambda: rules() and all(rule["health"] != "unknown" for rule in rules()))
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules() if rule.get("state") == "firing"] == []
    assert len(rules()) >= 17
