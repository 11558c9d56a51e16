"""One decision after the other: what is offered, how long it is waited for, what is said of it afterwards."""

import pytest
from one_engine import ENGINE, LEASE, MIB, PACE, TOKENS, ask, decisions_of, last, matched, outcome

from kvtier.block import block_key
from kvtier.deciding import KEPT, OPEN_MAX, WASTE_BURST_S, Decisions
from kvtier.decision import REASONS
from kvtier.estimators import Link
from kvtier.ghosts import Ghosts
from kvtier.guard import Guard

INF = float("inf")


@pytest.fixture
def decisions() -> Decisions:
    return decisions_of()


# --- what is offered ---------------------------------------------------------------------------------------------


def test_what_is_in_ram_is_fetched_when_that_is_faster(decisions):
    assert decisions.decide(LEASE, ask(64), matched(cpu=64), 0.0) == "cpu"


def test_a_deeper_tier_is_used_when_all_of_it_together_is_faster(decisions):
    assert decisions.decide(LEASE, ask(256), matched(cpu=8, nvme=248), 0.0) == "nvme"


def test_what_a_slow_drive_has_is_computed_and_what_is_in_ram_is_fetched(decisions):
    decisions.drives = Link(0.001, 0.2e9)
    assert decisions.decide(LEASE, ask(96), matched(cpu=64, nvme=32), 0.0) == "cpu"


def test_a_queue_at_the_drive_turns_fetching_into_computing(decisions):
    assert decisions.decide(LEASE, ask(256), matched(nvme=256), 0.0) == "nvme"
    decisions.drives.ask(60 * 1024 * MIB, 0.0)
    assert decisions.decide(LEASE, ask(256, "late"), matched(nvme=256), 0.0) == ""
    assert last(decisions)["reason"] == "too_dear"


def test_a_few_tokens_are_too_short_for_any_link(decisions):
    assert decisions.decide(LEASE, ask(1), matched(cpu=1), 0.0) == ""
    assert last(decisions)["reason"] == "too_short"


def test_where_the_engine_is_not_known_yet_only_what_is_long_is_fetched(decisions):
    decisions.join("new", "red", 0.0)
    assert decisions.decide(("new", 1), ask(1), matched(cpu=1), 0.0) == ""
    assert decisions.decide(("new", 2), ask(16), matched(cpu=16), 0.0) == "cpu"
    assert not last(decisions)["calibrated"]


def test_a_model_that_knows_less_does_not_replace_one_that_knows_more(decisions):
    decisions.pace(ENGINE, {**PACE, "steps": 0, "token_ps": 1})
    assert decisions.prefill(ENGINE).steps == 100


def test_always_takes_whatever_there_is(decisions):
    decisions.mode = "always"
    assert decisions.decide(LEASE, ask(1), matched(cpu=1), 0.0) == "cpu"
    assert decisions.decide(LEASE, ask(2, "b"), matched(cpu=1, nvme=1), 0.0) == "nvme"


def test_shadow_decides_and_takes_nothing(decisions):
    decisions.mode = "shadow"
    assert decisions.decide(LEASE, ask(64), matched(cpu=64), 0.0) == ""
    assert last(decisions)["assumed"]["tier"] == "cpu"


def test_a_held_out_request_goes_without(decisions):
    decisions.guard = Guard(0.5)
    held = [name for name in map(str, range(100)) if decisions.guard.is_held_out(name)]
    assert 20 < len(held) < 80
    assert decisions.decide(LEASE, ask(64, held[0]), matched(cpu=64), 0.0) == ""
    assert last(decisions)["reason"] == "hold_out"


def test_a_tier_that_is_off_is_passed_over_and_named(decisions):
    class NvmeOff(Guard):
        def is_on(self, tier: str, now: float) -> bool:
            return tier != "nvme"

    decisions.guard = NvmeOff(0.0)
    assert decisions.decide(LEASE, ask(256), matched(cpu=64, nvme=192), 0.0) == "cpu"
    assert (last(decisions)["reason"], last(decisions)["detail"]) == ("tier_off", "nvme")


# --- why something is missing --------------------------------------------------------------------------------------


def test_what_nobody_saved_was_never_stored(decisions):
    decisions.decide(LEASE, ask(8), matched(missing=block_key(b"s", b"1")), 0.0)
    assert last(decisions)["reason"] == "never_stored"


def test_what_went_names_who_took_its_room():
    decisions = decisions_of(ghosts := Ghosts())
    missing = block_key(b"s", b"1")
    ghosts.add(missing, "its room in RAM was needed by engine b")
    decisions.decide(LEASE, ask(8), matched(missing=missing), 0.0)
    assert (last(decisions)["reason"], last(decisions)["detail"]) == ("evicted", "its room in RAM was needed by engine b")


def test_the_same_tokens_of_another_namespace_are_told_apart_from_new_ones(decisions):
    witness = block_key(b"w", b"1")
    missing = block_key(b"s", b"1")
    decisions.decide(LEASE, ask(8, "a", witness=witness), matched(missing=missing), 0.0)
    assert last(decisions)["reason"] == "never_stored"
    decisions.join("other", "blue", 0.0)
    decisions.decide(("other", 1), ask(8, "b", witness=witness), matched(missing=missing), 0.0)
    assert (last(decisions)["reason"], last(decisions)["detail"]) == ("namespace_differs", "red has met them")


def test_every_reason_is_counted_under_its_name(decisions):
    stats = decisions._stats
    assert {f"missed_{reason}" for reason in REASONS} == {name for name in stats.snapshot() if name.startswith("missed_")}
    decisions.decide(LEASE, ask(1), matched(cpu=1), 0.0)
    decisions.answered(LEASE, {"cpu": 0}, 0.0)
    assert stats["missed_too_short"] == stats["decided_recompute"] == 1


# --- waiting -------------------------------------------------------------------------------------------------------


def stage(decisions: Decisions, blocks: int = 256, backlog_s: float = 0.0) -> None:
    assert decisions.decide(LEASE, ask(blocks, backlog_s=backlog_s), matched(nvme=blocks), 0.0) == "nvme"


def test_it_waits_while_the_rest_is_expected_sooner_than_it_is_computed(decisions):
    stage(decisions)
    assert decisions.keeps_waiting(LEASE, 0, 0.3, 0.1)


def test_it_goes_on_without_the_rest_when_computing_is_faster(decisions):
    stage(decisions)
    assert not decisions.keeps_waiting(LEASE, 0, 60.0, 0.1)


def test_what_has_arrived_makes_the_rest_less_worth_waiting_for(decisions):
    stage(decisions)
    assert decisions.keeps_waiting(LEASE, 0, 1.5, 0.1)
    assert not decisions.keeps_waiting(LEASE, 250, 1.5, 0.1)


def test_while_others_are_ahead_there_is_nothing_to_lose_by_waiting(decisions):
    stage(decisions, backlog_s=5.0)
    assert decisions.keeps_waiting(LEASE, 0, INF, 4.0)
    assert not decisions.keeps_waiting(LEASE, 0, INF, 5.1)


def test_what_others_are_to_load_is_no_backlog(decisions):
    stage(decisions)  # 32,768 tokens, which the engine counts as 1.5 s of work until they are loaded
    ahead_s = decisions.prefill(ENGINE).seconds(0, 256 * TOKENS)
    decisions.decide((ENGINE, 2), ask(256, "second", backlog_s=ahead_s), matched(nvme=256), 0.0)
    assert last(decisions)["assumed"]["backlog_us"] == 0
    decisions.answered(LEASE, {"cpu": 0, "nvme": 0}, 0.0, "timed_out")
    decisions.decide((ENGINE, 3), ask(256, "third", backlog_s=2 * ahead_s), matched(nvme=256), 0.0)
    assert last(decisions)["assumed"]["backlog_us"] == pytest.approx(ahead_s * 1e6, rel=0.01)


def test_when_it_could_run_it_no_longer_waits_for_what_stands_still(decisions):
    stage(decisions, backlog_s=5.0)
    decisions.due(LEASE, 1.0)
    assert not decisions.keeps_waiting(LEASE, 0, INF, 1.1)


def test_what_is_given_up_may_waste_only_so_much_of_the_engines_time(decisions):
    stage(decisions)
    computed_s = decisions.prefill(ENGINE).seconds(0, 256 * TOKENS)
    given_up = 0
    while not decisions.keeps_waiting(LEASE, 0, 60.0, 0.0):
        given_up += 1
    assert given_up == int(WASTE_BURST_S / computed_s)
    assert not decisions.keeps_waiting(LEASE, 0, 60.0, 10 * computed_s + 0.1), "time gives new room"


def test_what_stands_still_is_given_up_whatever_was_wasted(decisions):
    stage(decisions)
    while not decisions.keeps_waiting(LEASE, 0, 60.0, 0.0):
        pass
    assert not decisions.keeps_waiting(LEASE, 0, INF, 0.0)


def test_where_the_engine_is_not_known_it_waits_a_fixed_time(decisions):
    decisions.join("new", "red", 0.0)
    decisions.decide(("new", 1), ask(16), matched(nvme=16), 0.0)
    assert decisions.keeps_waiting(("new", 1), 0, 60.0, 0.44)
    assert not decisions.keeps_waiting(("new", 1), 0, 60.0, 0.46)


# --- what came of it -------------------------------------------------------------------------------------------------


def test_a_record_says_what_was_offered_and_what_became_of_it(decisions):
    decisions.epoch_s = 1e9
    decisions.decide(LEASE, ask(64), matched(cpu=16, nvme=48), 10.0)
    decisions.answered(LEASE, {"cpu": 16, "nvme": 48}, 10.2)
    decisions.outcome(ENGINE, "request", outcome(0.25, loaded=8192), 10.3)
    record = last(decisions)
    assert record["request"] == "request" and record["engine"] == ENGINE and record["at"] == 1e9 + 10
    assert record["matched"] == record["offered"] == {"cpu": 2048, "nvme": 6144}
    assert record["arm"] == "fetch" and record["reason"] == ""
    assert record["actual"] == {"ttft_ms": 250.0, "wait_ms": 0.0, "load_ms": 0.0, "prefill_ms": 10.0, "staged_ms": 200.0}
    assert 250 < record["predicted"]["recompute_ms"] < 350
    assert record["saved_tokens"] == 8192
    assert 240 < record["saved_gpu_ms"] < 340


def test_what_was_cut_off_is_told_with_what_had_come(decisions):
    stage(decisions)
    decisions.answered(LEASE, {"cpu": 0, "nvme": 100}, 0.5, "timed_out")
    record = last(decisions)
    assert record["offered_tokens"] == 100 * TOKENS < record["matched_tokens"]
    assert (record["reason"], record["detail"]) == ("timed_out", "12800 tokens had come")


def test_a_request_that_waited_and_got_nothing_speaks_against_its_tier(decisions):
    stage(decisions)
    decisions.answered(LEASE, {"cpu": 0, "nvme": 0}, 5.0, "timed_out")
    decisions.outcome(ENGINE, "request", outcome(6.0, prefill_s=1.5), 6.0)
    assert decisions.guard.snapshot()["tiers"]["nvme"]["saved_s"] < 0


def test_time_lost_by_the_wrong_choice_is_counted_as_regret(decisions):
    decisions.decide(LEASE, ask(64), matched(cpu=64), 0.0)
    decisions.answered(LEASE, {"cpu": 64}, 0.0)
    decisions.outcome(ENGINE, "request", outcome(2.0, loaded=8192), 2.0)
    assert 1600 < last(decisions)["regret_ms"] < 1800
    assert decisions.regret_s == pytest.approx(last(decisions)["regret_ms"] / 1e3)


def test_what_had_no_choice_is_predicted_too_and_regrets_nothing(decisions):
    decisions.decide(LEASE, ask(64), matched(), 0.0)
    decisions.answered(LEASE, {}, 0.0)
    decisions.outcome(ENGINE, "request", outcome(2.0), 2.0)
    assert 250 < last(decisions)["predicted"]["recompute_ms"] < 350
    assert last(decisions)["regret_ms"] == 0


def test_a_request_is_found_by_the_name_that_its_user_knows(decisions):
    decisions.decide(LEASE, ask(8, "chatcmpl-1-a04aae38"), matched(), 0.0)
    assert len(decisions.explain("chatcmpl-1", 1)) == len(decisions.explain("chatcmpl-1-a04aae38", 1)) == 1
    assert decisions.explain("chatcmpl", 1) != [] and decisions.explain("chat", 1) == []


def test_an_outcome_nobody_asked_for_is_passed_over(decisions):
    decisions.outcome(ENGINE, "unknown", outcome(1.0), 0.0)
    assert decisions.explain("last", 1) == []


def test_each_record_is_handed_to_the_log_once_when_it_is_complete(decisions):
    decisions.decide(LEASE, ask(64), matched(cpu=64), 0.0)
    assert decisions.take_ended() == []
    decisions.outcome(ENGINE, "request", outcome(0.1), 0.1)
    assert [record["request"] for record in decisions.take_ended()] == ["request"]
    assert decisions.take_ended() == []


def test_an_engine_that_leaves_ends_its_records(decisions):
    decisions.decide(LEASE, ask(64), matched(cpu=64), 0.0)
    decisions.leave(ENGINE)
    assert [record["actual"] for record in decisions.take_ended()] == [None]


def test_a_request_that_asks_again_has_one_record_for_each_question(decisions):
    for lease in (1, 2):
        decisions.decide((ENGINE, lease), ask(64), matched(cpu=64), float(lease))
    decisions.outcome(ENGINE, "request", outcome(0.1), 3.0)
    assert [record["actual"] is None for record in decisions.explain("request", 1)] == [True, False]


def test_only_so_many_records_are_kept_and_so_many_are_open(decisions):
    for i in range(OPEN_MAX + KEPT):
        decisions.decide((ENGINE, i), ask(1, str(i)), matched(), 0.0)
        decisions.answered((ENGINE, i), {}, 0.0)
    assert len(decisions.explain("last", 10**6)) == KEPT
    assert len(decisions.take_ended()) == KEPT


def test_a_snapshot_is_of_json_values(decisions):
    import json

    json.dumps(decisions.snapshot())
