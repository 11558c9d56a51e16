"""The scheduler's half of the connector by itself: its hooks are called as vLLM does, its client is a fake."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vllm is not installed: make test installs it")

from fake_engine import ATTENTION, BLOCK, HIT, LEND, MISS, RETRY, FakeEngine
from kvtier.connectors.vllm import manager, questions
from vllm.v1.kv_offload.base import ReqContext

from kvtier.block import ABSENT, BELOW

# --- the question ------------------------------------------------------------------------------------------------


def test_the_question_goes_out_when_the_request_arrives_beyond_what_the_engine_has():
    engine = FakeEngine(blocks=4, cached=2)
    engine.arrive()
    (asked,) = engine.client.asked
    assert (asked["keys"], asked["skip"], asked["request"]) == (4, 2, "request")
    assert (asked["prompt_tokens"], asked["resident_tokens"]) == (4 * BLOCK + 5, 2 * BLOCK)
    assert len(asked["witness"]) == 16 and asked["backlog_us"] == 0


@pytest.mark.parametrize("cached", range(5))
def test_what_the_engine_s_own_cache_has_is_found_at_every_length(cached):
    assert FakeEngine(4).own_cache(cached).tokens(FakeEngine(4).request) == cached * BLOCK


def test_the_own_cache_never_has_the_last_token():
    request = FakeEngine(4).request
    request.num_tokens = 4 * BLOCK
    assert FakeEngine(4).own_cache(4).tokens(request) == 3 * BLOCK


def test_a_vllm_whose_cache_can_t_be_asked_is_no_fault():
    engine = FakeEngine(watched=False)
    engine.manager.watch(SimpleNamespace(), ATTENTION)
    other = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=None)])
    engine.manager.watch(engine.pool(1), other)
    engine.arrive()
    assert not engine.client.asked and not engine.client.words("abandon")


def test_an_answer_that_is_there_when_vllm_looks_needs_no_other_word():
    engine = FakeEngine(blocks=3)
    engine.arrive()
    engine.client.answers_to[1] = [7, BELOW, ABSENT]
    assert engine.look() == [HIT, MISS, MISS]
    assert len(engine.client.asked) == 1 and not engine.client.words("due")


def test_a_request_whose_answer_is_not_there_is_due_once():
    engine = FakeEngine(blocks=3)
    engine.arrive()
    for _ in range(5):
        assert engine.look() == [RETRY] * 3
        engine.next_step()
    assert [lease for lease, _ in engine.client.words("due")] == [1]
    engine.client.answers_to[1] = [7, 8, 9]
    assert engine.look() == [HIT] * 3


def test_without_a_look_into_the_engine_s_cache_it_is_asked_when_scheduled_as_before():
    engine = FakeEngine(blocks=3, watched=False)
    engine.arrive()
    assert not engine.client.asked
    assert engine.look(cached=1) == [RETRY] * 2
    (asked,) = engine.client.asked
    assert (asked["skip"], asked["resident_tokens"]) == (1, BLOCK)
    assert [lease for lease, _ in engine.client.words("due")] == [1]


def test_no_more_requests_are_asked_for_ahead_than_the_daemon_bears(monkeypatch):
    monkeypatch.setattr(questions, "AHEAD_MAX", 0)
    engine = FakeEngine(blocks=3)
    engine.arrive()
    assert not engine.client.asked
    engine.look()
    assert len(engine.client.asked) == 1


def test_a_daemon_that_came_after_the_request_is_asked_when_it_is_scheduled():
    engine = FakeEngine(blocks=3)
    engine.client.ready = False
    engine.arrive()
    engine.client.ready = True
    assert engine.look() == [RETRY] * 3
    assert len(engine.client.asked) == 1


def test_a_daemon_that_has_just_come_is_waited_for_until_the_deadline():
    engine = FakeEngine(blocks=3)
    engine.client.ready = False
    engine.arrive()
    assert engine.look() == [RETRY] * 3
    engine.next_step()
    engine.client.ready = True
    assert engine.look() == [RETRY] * 3
    assert len(engine.client.asked) == 1
    engine = FakeEngine(blocks=3)
    engine.client.ready, engine.client.joining_s = False, 0.3
    engine.arrive()
    assert engine.look() == [MISS] * 3


def test_an_engine_that_has_less_than_it_had_asks_again_for_what_was_not_staged():
    engine = FakeEngine(blocks=4, cached=3)
    engine.arrive()
    engine.client.answers_to[1] = [BELOW, BELOW, BELOW, 9]
    engine.look(cached=1)
    assert [asked["skip"] for asked in engine.client.asked] == [3, 1]
    assert engine.client.words("release")[0][0] == 1


def test_a_silent_daemon_is_a_miss_after_the_deadline_and_then_at_once():
    engine = FakeEngine(blocks=2)
    engine.arrive()
    assert engine.look() == [RETRY] * 2
    engine.next_step()
    engine.client.silent = 0.3
    assert engine.look() == [MISS] * 2
    engine.client.silent = 0.0
    engine.request.request_id = "next"
    engine.context = ReqContext(req_id="next")
    engine.arrive()
    assert engine.manager.lookup(engine.keys[0], engine.context) == MISS


def test_an_answer_that_nobody_uses_is_given_back_and_asked_for_again():
    engine = FakeEngine(blocks=2)
    engine.arrive()
    engine.client.answers_to[1] = [7, 8]
    engine.now += questions.LEASE_UNUSED_S + 1
    engine.next_step()
    assert engine.client.words("release")[0][:2] == (1, 0)
    engine.client.answers_to[2] = [7, 8]
    assert engine.look() == [HIT, HIT]


def test_a_request_that_the_engine_has_whole_needs_no_second_question():
    engine = FakeEngine(blocks=2, cached=2)
    engine.arrive()
    engine.client.answers_to[1] = [7, 8]
    engine.manager.local_hit("request", 2 * BLOCK)
    engine.manager.admitted("request", 0)
    assert len(engine.client.asked) == 1
    assert engine.manager.prepare_store(engine.keys, engine.context).keys_to_store == []


def test_what_is_here_but_not_offered_is_not_saved_again():
    engine = FakeEngine(blocks=3)
    engine.arrive()
    engine.client.answers_to[1] = [BELOW, BELOW, ABSENT]
    assert engine.look() == [MISS] * 3
    engine.manager.admitted("request", 0)
    assert engine.manager.prepare_store(engine.keys, engine.context).keys_to_store == engine.keys[2:]


def test_a_request_that_ignores_caches_is_asked_for_only_to_know():
    engine = FakeEngine(blocks=3, cached=3)
    engine.request.skip_reading_prefix_cache = True
    engine.arrive()
    assert not engine.client.asked
    engine.manager.local_hit("request", 0)
    engine.manager.admitted("request", 0)
    assert engine.client.asked == [{"keys": 3, "skip": 3}]


# --- what came of it ---------------------------------------------------------------------------------------------


def test_a_load_s_lease_ends_with_the_time_that_it_took():
    engine = FakeEngine(blocks=2)
    engine.arrive()
    engine.client.answers_to[1] = [7, 8]
    engine.look()
    order = engine.manager.prepare_load(engine.keys, engine.context)
    engine.manager.admitted("request", 2 * BLOCK)
    assert order.slots.tolist() == [7, 8]
    engine.now += 0.125
    engine.manager.settle({order.token: (1, 0)})
    lease, loaded, _, load_us = engine.client.words("release")[-1]
    assert (lease, loaded, load_us) == (1, 2, 125_000)


def test_the_outcome_is_said_once_when_the_prompt_s_last_step_is_over():
    engine = FakeEngine(blocks=2)
    engine.arrive()
    for tokens in (BLOCK, BLOCK + 5, 1, 1):
        output = SimpleNamespace(
            num_scheduled_tokens={"request": tokens}, total_num_scheduled_tokens=tokens,
            scheduled_spec_decode_tokens={}, has_sync_kv_loads=False,
        )  # fmt: skip
        engine.manager.step_begins(output)
        engine.request.num_computed_tokens += tokens
        engine.now += 0.1
        engine.manager.step_ends()
    ((req_id, counts, _),) = engine.client.words("outcome")
    assert req_id == "request"
    assert (counts["ttft_us"], counts["computed_tokens"]) == (200_000, 2 * BLOCK + 5)


def test_the_pace_is_told_at_most_twice_a_second():
    engine = FakeEngine()
    engine.arrive()
    empty = SimpleNamespace(
        num_scheduled_tokens={}, total_num_scheduled_tokens=0, scheduled_spec_decode_tokens={}, has_sync_kv_loads=False
    )
    for _ in range(200):
        engine.manager.step_begins(empty)
        engine.manager.step_ends()
        engine.now += 0.01
    counts, _ = engine.client.words("pace")[0]
    assert {"chunk_tokens", "arrivals_mhz", "busy_permille", "running"} <= set(counts)
    assert 4 <= len(engine.client.words("pace")) <= 5


# --- slots -------------------------------------------------------------------------------------------------------


def absent(blocks: int) -> FakeEngine:
    engine = FakeEngine(blocks)
    engine.arrive()
    engine.client.answers_to[1] = [ABSENT] * blocks
    engine.look()
    engine.manager.admitted("request", 0)
    return engine


def test_blocks_wait_for_slots_that_come_back_soon():
    engine = absent(LEND)
    engine.client.lent = [1, 2]
    assert engine.manager.prepare_store(engine.keys[:4], engine.context) is None
    engine.now += 0.1
    engine.client.lent = list(range(6))
    saved = engine.manager.prepare_store(engine.keys[:5], engine.context)
    assert saved.keys_to_store == engine.keys[:5]
    engine.client.lent = []
    engine.now += 0.2
    assert engine.manager.prepare_store(engine.keys[5:], engine.context) is None, "another shortage waits anew"


def test_after_a_while_what_there_are_slots_for_is_saved_and_the_rest_counted():
    engine = absent(LEND)
    engine.client.lent = [1, 2]
    assert engine.manager.prepare_store(engine.keys[:4], engine.context) is None
    engine.now += manager.SLOTS_WAIT_S + 0.01
    assert engine.manager.prepare_store(engine.keys[:4], engine.context).keys_to_store == engine.keys[:2]
    assert engine.manager._counts["skipped_no_slot"] == 2
    assert engine.manager.prepare_store(engine.keys[4:], engine.context).keys_to_store == [], "it has waited enough"


def test_what_has_ended_or_never_fits_does_not_wait():
    engine = absent(LEND + 1)
    assert len(engine.manager.prepare_store(engine.keys, engine.context).keys_to_store) == LEND
    engine = absent(4)
    engine.client.lent = [1]
    engine.request.is_finished = lambda: True
    assert engine.manager.prepare_store(engine.keys, engine.context).keys_to_store == engine.keys[:1]


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_no_fault_of_the_engine_s():
    engine = FakeEngine()
    engine.arrive()
    engine.manager.step_begins(None)
    assert len(engine.client.words("abandon")) == 1
    engine.manager.step_ends()
    assert engine.look() == [MISS] * 4
