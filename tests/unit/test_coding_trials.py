"""What is not used now is tried now and then: when such a trial counts, and where it goes."""

from kvtier.codec import RAW
from kvtier.coding import TRY_EVERY

from .test_coding import BLOCK, GB, STEP, Tier


def test_however_often_it_is_asked_a_trial_is_used_up_only_when_it_begins():
    tier = Tier(20 * GB)
    assert {tier.choose() for _ in range(2 * TRY_EVERY)} == {("exp12", 185 * STEP)}
    assert tier.write() == ["exp12"] and tier.choose()[0] == "none"


def test_where_there_is_no_place_for_a_trial_the_next_one_comes_as_late_as_ever():
    tier = Tier(20 * GB)
    assert tier.choose()[0] == "exp12"
    tier.coding.begun(0, BLOCK, RAW)
    assert tier.choose()[0] == "none"


def test_a_trial_goes_where_frames_go_now():
    tier = Tier(3 * GB)
    tier.use()
    place, chosen = tier.choose()[1], set()
    for _ in range(TRY_EVERY):
        chosen.add(tier.choose())
        tier.write()
    assert chosen == {("exp12", place), ("expz", place)}


def test_what_was_left_for_slow_decoding_is_used_again_in_time_though_nobody_reads_its_trials():
    tier = Tier(3 * GB, wanted="auto", without={"expz": "no"})
    tier.facts["exp12"] = (9.7 * GB, 1 * GB, 1.327)
    assert tier.use() == "none"
    assert tier.write(20 * TRY_EVERY)[-1] == "exp12"
