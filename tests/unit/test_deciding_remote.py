"""Decisions where a remote stands below the drives: what is fetched from there, and what it is asked."""

from dataclasses import replace

import pytest
from one_engine import ENGINE, LEASE, MIB, TOKENS, ask, decisions_of, last, matched, outcome

from kvtier.block import block_key
from kvtier.cost import ASK_ALWAYS_S, ASK_S_MIN
from kvtier.deciding import Decisions
from kvtier.decision import Matched
from kvtier.estimators import Link
from kvtier.ghosts import Ghosts
from kvtier.guard import Guard


@pytest.fixture
def decisions() -> Decisions:
    return decisions_of()


def with_remote(decisions: Decisions, bytes_per_s: float = 5e9) -> Decisions:
    decisions.remote = Link(0.002, bytes_per_s)
    return decisions


def test_what_only_the_remote_has_is_fetched_when_that_is_faster(decisions):
    with_remote(decisions)
    assert decisions.decide(LEASE, ask(256), matched(cpu=64, away=192), 0.0) == "remote"
    assert last(decisions)["matched"] == {"cpu": 64 * TOKENS, "nvme": 0, "remote": 192 * TOKENS}


def test_a_slow_remote_leaves_the_drives_as_they_were(decisions):
    with_remote(decisions, bytes_per_s=0.2e9)
    assert decisions.decide(LEASE, ask(256), matched(cpu=8, nvme=200, away=48), 0.0) == "nvme"
    assert last(decisions)["reason"] == "too_dear"


def test_a_queue_at_the_remote_is_no_queue_at_the_drives(decisions):
    with_remote(decisions)
    decisions.remote.ask(60 * 1024 * MIB, 0.0)
    assert decisions.decide(LEASE, ask(256), matched(nvme=128, away=128), 0.0) == "nvme"
    assumed = last(decisions)["assumed"]
    assert (assumed["nvme_queued_bytes"], assumed["remote_queued_bytes"]) == (0, 60 * 1024 * MIB)
    assert assumed["remote_bytes_per_s"] == 5_000_000_000


def test_what_needs_a_tier_that_is_off_is_passed_over(decisions):
    class Off(Guard):
        def is_on(self, tier: str, now: float) -> bool:
            return tier not in off

    decisions.guard = Off(0.0)
    found = Matched(64, 64, 256, 0, 64, 128, 16 * MIB, TOKENS, None)  # in RAM, in the remote, on the drives
    with_remote(decisions)
    for off in ("nvme",), ("remote",):
        assert decisions.decide(LEASE, ask(256), found, 0.0) == "cpu"
        assert (last(decisions)["reason"], last(decisions)["detail"]) == ("tier_off", off[0])
    off = ("nvme",)
    assert decisions.decide(LEASE, ask(256), matched(cpu=64, away=192), 0.0) == "remote"


def test_a_load_of_both_speaks_against_the_deeper_and_for_both(decisions):
    with_remote(decisions)
    judged = decisions.guard.snapshot
    for request, ttft_s in ("slow", 6.0), ("fast", 0.1):
        assert decisions.decide(LEASE, ask(256, request), matched(nvme=128, away=128), 0.0) == "remote"
        decisions.answered(LEASE, {"nvme": 128, "remote": 128}, 0.1)
        assert last(decisions)["offered"] == {"nvme": 128 * TOKENS, "remote": 128 * TOKENS}
        decisions.outcome(ENGINE, request, outcome(ttft_s), 0.1)
        if request == "slow":
            assert judged()["tiers"]["remote"]["saved_s"] < 0 and "nvme" not in judged()["tiers"]
    assert judged()["tiers"]["nvme"]["saved_s"] > 0


def test_what_a_remote_may_have_that_is_away_is_not_called_new():
    decisions = decisions_of(ghosts := Ghosts())
    missing = block_key(b"s", b"1")
    ghosts.add(missing, "its room in RAM was needed by engine b")
    decisions.decide(LEASE, ask(8), replace(matched(missing=missing), is_remote_away=True), 0.0)
    assert last(decisions)["reason"] == "remote_away"


# --- whether an answer of the remote is worth waiting for ----------------------------------------------------------


def patience(decisions: Decisions, blocks: int, ask_s: float = 0.002, hit_share: float = 0.5, **more: object) -> float:
    return decisions.patience_to_ask(ENGINE, ask(blocks, **more), blocks * TOKENS, ask_s, hit_share, blocks * MIB)


def test_an_answer_that_may_save_much_is_waited_for_and_one_that_may_save_little_is_not(decisions):
    with_remote(decisions)
    assert ASK_S_MIN < patience(decisions, 64) < 0.05  # of 0.29 s to compute it, which half of the answers save
    assert patience(decisions, 64, ask_s=0.02) == pytest.approx(0.08)
    assert patience(decisions, 64, ask_s=0.2) == 0.0
    assert patience(decisions, 64, hit_share=0.01) == 0.0
    assert patience(decisions, 1) == 0.0


def test_without_a_remote_there_is_nothing_to_ask(decisions):
    assert patience(decisions, 64) == 0.0


def test_where_fetching_would_not_pay_an_answer_does_not_either(decisions):
    with_remote(decisions, bytes_per_s=0.1e9)
    assert patience(decisions, 64) == 0.0


def test_an_answer_is_waited_for_while_others_are_ahead(decisions):
    with_remote(decisions)
    assert patience(decisions, 64, ask_s=0.3, hit_share=0.0, backlog_s=0.5) == 0.5
    assert patience(decisions, 64, ask_s=0.6, hit_share=0.0, backlog_s=0.5) == 0.0


def test_nobody_waits_for_what_is_not_taken_in_any_case(decisions):
    with_remote(decisions)
    decisions.guard = Guard(1.0)
    assert patience(decisions, 64) == 0.0
    decisions.mode = "shadow"
    assert patience(decisions, 64) == 0.0


def test_always_waits_for_an_answer_as_it_waits_for_a_load(decisions):
    with_remote(decisions).mode = "always"
    assert patience(decisions, 1, ask_s=0.1) == ASK_ALWAYS_S
    assert patience(decisions, 1, ask_s=0.2) == pytest.approx(0.8)


def test_where_the_engine_is_not_known_yet_an_answer_on_what_is_long_is_waited_for(decisions):
    with_remote(decisions).join("new", "red", 0.0)
    assert decisions.patience_to_ask("new", ask(1), TOKENS, 0.002, 0.5) == 0.0
    assert decisions.patience_to_ask("new", ask(16), 16 * TOKENS, 0.002, 0.5) > ASK_S_MIN
