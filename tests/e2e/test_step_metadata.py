"""What workers are told of a step, beside vLLM's own orders: whether it decodes, and whether it overwrites blocks early."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from kvtier.connectors.vllm.connector import KVTierConnector
from kvtier.connectors.vllm.spec import KVTierMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingConnectorMetadata


def told(second_runner: bool = True, outputs: tuple[int, ...] = (), **of_step: Any) -> KVTierMetadata:
    """The metadata of a step whose known requests have so many output tokens, as a worker gets it."""
    connector = KVTierConnector.__new__(KVTierConnector)
    own = OffloadingConnectorMetadata({1: "load"}, {2: "store"}, {3})
    connector.connector_scheduler = SimpleNamespace(build_connector_meta=lambda output: own)
    connector._manager = SimpleNamespace(step_begins=lambda output: None)
    connector._overwrites_first = second_runner
    step = {"new_block_ids_to_zero": None, "kv_cache_block_copies": None, **of_step}
    output = SimpleNamespace(scheduled_cached_reqs=SimpleNamespace(num_output_tokens=list(outputs)), **step)
    return pickle.loads(pickle.dumps(connector.build_connector_meta(output)))  # noqa: S301


def test_vllm_s_own_orders_are_as_they_were():
    assert told() == KVTierMetadata({1: "load"}, {2: "store"}, {3}, decodes=False, overwrites=False)


@pytest.mark.parametrize(("outputs", "decodes"), [((), False), ((0, 0), False), ((0, 5), True)])
def test_a_step_decodes_when_any_of_its_requests_has_output(outputs, decodes):
    assert told(outputs=outputs).decodes is decodes


@pytest.mark.parametrize("step", [{"new_block_ids_to_zero": [7]}, {"kv_cache_block_copies": ["copy"]}])
def test_only_the_second_model_runner_writes_to_blocks_before_saves_are_waited_for(step):
    assert told(**step).overwrites is True
    assert told(second_runner=False, **step).overwrites is False


def test_the_worker_hears_of_the_step_before_its_saves_and_of_what_is_spoiled_after_them(monkeypatch):
    heard: list[object] = []
    connector = KVTierConnector.__new__(KVTierConnector)
    worker = SimpleNamespace(
        step_begins=lambda decodes: heard.append(("begins", decodes)), spoil=lambda jobs: heard.append(("spoil", jobs))
    )
    connector.connector_worker = SimpleNamespace(worker=worker, handle_preemptions=lambda meta: heard.append("vLLM's"))
    monkeypatch.setattr(KVTierConnector, "_worker", worker)
    connector.handle_preemptions(KVTierMetadata({}, {}, {3}, decodes=True, overwrites=True))
    connector.handle_preemptions(KVTierMetadata({}, {}, {4}))
    assert heard == [("begins", True), "vLLM's", ("spoil", {3}), ("begins", False), "vLLM's"]
