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


# --- a rate: of a remote -------------------------------------------------------------------------------------------


def test_a_rate_refuses_nothing_and_lets_wait_what_comes_too_fast():
    budget = Budget.of_rate(100, begun_at=0.0)
    assert budget.refusal(2**40, used_again=False, now=0.0) == ""
    assert budget.is_short(1000, now=0.0) is False, "ten seconds' worth at once"
    budget.spend(1000)
    assert [budget.is_short(100, now) for now in (0.0, 0.9, 1.0)] == [True, True, False]


def test_what_is_larger_than_the_bucket_goes_when_that_is_full():
    budget = Budget.of_rate(100, begun_at=0.0)
    assert budget.is_short(3000, now=0.0) is False
    budget.spend(3000)
    assert [budget.is_short(10, now) for now in (10.0, 20.0, 20.2)] == [True, True, False]


def test_nothing_waits_for_a_budget_of_drives():
    budget = Budget(DAY, begun_at=0.0)
    budget.spend(DAY)
    assert budget.is_short(100, now=0.0) is False


def test_a_network_does_not_wear_out():
    budget = Budget.of_rate(100, begun_at=0.0)
    budget.spend(400)
    assert budget.snapshot(now=2.0) == {
        "budget_bytes_per_day": 100 * 86_400,
        "budget_left_bytes": 800,
        "written_bytes_per_day": 200 * 86_400,
        "days_of_life": None,
    }


def test_what_was_spent_and_not_written_comes_back_and_no_more_than_there_was():
    budget = Budget(DAY, begun_at=0.0)
    budget.spend(300)
    budget.give_back(100)
    assert (budget.left, budget.spent) == (800, 200)
    budget.snapshot(now=DAY_S / 2)
    budget.give_back(200)
    assert (budget.left, budget.spent) == (DAY, 0)
