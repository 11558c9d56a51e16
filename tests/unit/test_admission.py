"""The budget of writes to a drive."""

from kvtier.admission import DAY_S, Budget

DAY = 1000  # bytes


def test_a_full_bucket_is_for_every_block():
    assert Budget(DAY, begun_at=0.0).refusal(100, used_again=False, now=0.0) == ""


def test_below_half_it_is_for_blocks_that_were_used_again():
    budget = Budget(DAY, begun_at=0.0)
    budget.spend(450)
    assert budget.refusal(50, used_again=False, now=0.0) == ""
    assert budget.refusal(51, used_again=False, now=0.0) == "refused_first_use"
    assert budget.refusal(51, used_again=True, now=0.0) == ""


def test_an_empty_bucket_is_for_none():
    budget = Budget(DAY, begun_at=0.0)
    budget.spend(960)
    assert budget.refusal(50, used_again=True, now=0.0) == "refused_budget"
    assert budget.refusal(40, used_again=True, now=0.0) == ""


def test_it_fills_within_a_day_and_never_above_its_brim():
    budget = Budget(DAY, begun_at=0.0)
    budget.spend(DAY)
    assert budget.snapshot(now=DAY_S / 4)["budget_left_bytes"] == DAY // 4
    assert budget.snapshot(now=DAY_S * 9)["budget_left_bytes"] == DAY


def test_a_clock_that_goes_back_takes_nothing():
    budget = Budget(DAY, begun_at=100.0)
    budget.spend(500)
    assert budget.snapshot(now=50.0)["budget_left_bytes"] == 500
