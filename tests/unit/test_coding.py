"""Which codec blocks are written with, as it is learnt from what came of them."""

from itertools import pairwise

import pytest

from kvtier.block import PLACE_GRAIN, SLOT_UNIT
from kvtier.codec import RAW, Codec
from kvtier.coding import LOOKED_AT_EVERY, TRY_EVERY, Coding
from kvtier.estimators import Link
from kvtier.transfer import Demote, Finished, Promote

GB = 1e9
BLOCK = 45 * SLOT_UNIT  # SmolLM2's, of 128 tokens
STEP = 3 * PLACE_GRAIN  # places for such blocks are multiples of this: 240 of them are a block
EXP12, EXPZ, INT8 = Codec("exp12"), Codec("expz"), Codec("int8", "bf16", 64)
# As measured on one core: bytes a second encoded and decoded, and the ratio
MEASURED = {"exp12": (9.7 * GB, 16 * GB, 1.327), "expz": (0.75 * GB, 2.5 * GB, 1.45), "int8": (5.9 * GB, 6.3 * GB, 1.94)}
NVME, REMOTE = PLACE_GRAIN, 1


class Tier:
    """Blocks are written and read as `coding` has it, at the speeds and ratios that are set."""

    def __init__(self, link: float = 3 * GB, threads: int = 2, unit: int = NVME, wanted: str = "auto", **more) -> None:
        self.link = Link(0.0, link)
        self.coding = Coding(wanted, threads, unit, self.link, **more)
        self.facts = dict(MEASURED)
        self.written: list[Codec] = []  # but "none" where a frame did not fit

    def choose(self, namespace: int = 0, size: int = BLOCK) -> tuple[str, int]:
        codec, stored = self.coding.choose(namespace, size)
        return codec.name, stored

    def write(self, blocks: int = 1, namespace: int = 0, size: int = BLOCK) -> list[str]:
        """What each was tried with."""
        return [self._write_one(namespace, size) for _ in range(blocks)]

    def _write_one(self, namespace: int, size: int) -> str:
        codec, place = self.coding.choose(namespace, size)
        demote = Demote(1, b"k" * 16, 0, 0, size, namespace, 0, codec=codec, stored=place if codec != RAW else 0)
        self.coding.begun(namespace, size, codec)
        if codec == RAW:
            self.coding.wrote(demote, Finished(1))
            return "none"
        encode, _, ratio = self.facts[codec.name]
        needed = int(size / ratio)
        is_larger = needed > place or needed >= size
        self.coding.wrote(demote, Finished(1, "larger" if is_larger else "", 7, 0.01, stored=needed, coded_s=size / encode))
        return codec.name

    def read(self, codec: str, blocks: int = 1, namespace: int = 0, size: int = BLOCK) -> None:
        _, decode, ratio = self.facts[codec]
        stored = int(size / ratio)
        for _ in range(blocks):
            promote = Promote(1, b"k" * 16, 0, 0, size, 7, namespace, stored)
            self.coding.read(promote, Finished(1, stored=stored, coded_s=size / decode, codec=codec))

    def use(self, blocks: int = 200) -> str:
        """Writes so many and reads as many; what the last ones were written with."""
        for _ in range(blocks):
            for tried in self.write():
                if tried != "none":
                    self.read(tried)
        return self.choose()[0]

    def why_not(self, codec: str) -> str:
        return self.coding.snapshot()["codecs"][codec]["why_not"]

    def run_at(self, bytes_per_s: float) -> None:
        """The link is so fast from now on."""
        for _ in range(50):
            self.link.observe(BLOCK, BLOCK / bytes_per_s)


# --- auto: by tier ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "link", "threads", "codec"),
    [
        (NVME, 3 * GB, 1, "exp12"),
        (NVME, 3 * GB, 2, "exp12"),
        (NVME, 7 * GB, 1, "exp12"),
        (NVME, 14 * GB, 2, "exp12"),
        (REMOTE, 0.05 * GB, 1, "expz"),
        (REMOTE, 0.3 * GB, 1, "expz"),
        (REMOTE, 1.25 * GB, 1, "exp12"),
        (REMOTE, 1.25 * GB, 2, "expz"),
        (REMOTE, 3.1 * GB, 2, "exp12"),
        (REMOTE, 12.5 * GB, 2, "exp12"),
        (REMOTE, 55 * GB, 2, "none"),
    ],
)
def test_each_tier_gets_what_was_measured_to_pay_there(unit, link, threads, codec):
    assert Tier(link, threads, unit).use() == codec


def test_a_remote_whose_writes_are_limited_needs_no_fast_encoder():
    assert Tier(1 * GB, 1, REMOTE).use() == "exp12"
    assert Tier(1 * GB, 1, REMOTE, write_rate=64 * 2**20).use() == "expz"


def test_on_a_slow_processor_nothing_pays():
    tier = Tier(3 * GB, 1)
    tier.facts = {"exp12": (0.9 * GB, 1.5 * GB, 1.327), "expz": (0.1 * GB, 0.3 * GB, 1.45)}
    assert tier.use() == "none"
    assert tier.why_not("exp12") == "it decodes 1.5 GB/s with 1 thread; 4.9 are needed"


def test_before_anything_was_measured_it_is_believed_to_pay():
    assert Tier(3 * GB).choose() == ("exp12", 185 * STEP)
    assert Tier(1.25 * GB, 2, REMOTE, write_rate=64 * 2**20).choose() == ("expz", BLOCK)


def test_what_this_machine_can_not_run_is_not_chosen():
    tier = Tier(0.3 * GB, 2, REMOTE, without={"expz": "libzstd.so.1 isn't here"})
    assert tier.use() == "exp12"
    assert tier.why_not("expz") == "libzstd.so.1 isn't here"
    assert Tier(wanted="exp12", without={"exp12": "no"}).choose()[0] == "none"


# --- auto: as things change ---------------------------------------------------------------------------------------------


def test_it_goes_off_when_decoding_becomes_slow_and_on_again_when_it_is_fast(monkeypatch):
    monkeypatch.setattr("kvtier.coding.TRY_EVERY", 64)
    tier = Tier()
    assert tier.use() == "exp12"
    tier.facts["exp12"] = 9.7 * GB, 1 * GB, 1.327
    assert tier.use(60) == "none"
    tier.facts["exp12"] = MEASURED["exp12"]
    assert tier.use(64 * 20) == "exp12"


def test_it_goes_off_when_encoding_becomes_slow():
    tier = Tier()
    tier.use()
    tier.facts["exp12"] = 0.5 * GB, 16 * GB, 1.327
    assert tier.use(60) == "none"
    assert tier.why_not("exp12") == "it encodes 1.0 GB/s with 2 threads; 3.3 are needed"


def test_one_slow_block_changes_nothing():
    tier = Tier()
    tier.use()
    tier.facts["exp12"] = 0.01 * GB, 0.01 * GB, 1.327
    tier.use(5)
    tier.facts["exp12"] = MEASURED["exp12"]
    assert tier.write(LOOKED_AT_EVERY) == ["exp12"] * LOOKED_AT_EVERY


def test_another_one_pays_when_the_link_becomes_slow_and_less_when_it_is_fast_again():
    tier = Tier(3 * GB, 2, REMOTE)
    assert tier.use() == "exp12"
    tier.run_at(0.3 * GB)
    assert tier.use() == "expz"
    tier.run_at(3 * GB)
    assert tier.use() == "exp12"


def test_a_link_that_decoding_holds_up_is_noticed():
    """Of a link that could do 20 GB/s one sees what decoders leave of it."""
    tier = Tier(2 * GB, 1)
    tier.facts["exp12"] = 50 * GB, 8 * GB, 1.327
    assert tier.use() == "exp12"
    tier.run_at(8 * GB / 1.327)
    assert tier.use() == "none"
    tier.run_at(20 * GB)
    assert tier.use() == "none"


@pytest.mark.parametrize("speed", [1.05, 1.17, 1.3])
def test_where_it_hardly_pays_it_stays_as_it_is(speed):
    """Threads that do `speed` times what is needed, by measurements that are off by 5 % now and then."""
    tier = Tier(3 * GB, 1)
    needed, chosen = 1.327 * 3 * GB, []
    for turn in range(400):
        noise = (0.95, 1.0, 1.05)[turn * 7 % 3]
        tier.facts["exp12"] = 9.7 * GB, needed * speed * noise, 1.327
        tried = tier.write()[0]
        if tried != "none":
            tier.read(tried)
        chosen.append(tier.coding.snapshot()["codec"])
    changes = sum(a != b for a, b in pairwise(chosen))
    assert changes <= 1


# --- ratio --------------------------------------------------------------------------------------------------------------


def test_pages_that_no_codec_makes_smaller_are_written_as_they_are():
    tier = Tier()
    tier.facts = {"exp12": (9.7 * GB, 16 * GB, 1.0), "expz": (0.75 * GB, 2.5 * GB, 1.0)}
    tried = tier.write(TRY_EVERY - 1)
    assert set(tried[32:]) == {"none"} and 0 < sum(one != "none" for one in tried) <= 16
    assert tier.coding.snapshot()["codecs"]["exp12"]["blocks"] == 0
    assert "which is too little" in tier.why_not("exp12")


def test_then_one_block_in_so_many_is_tried_and_when_it_becomes_smaller_all_are():
    tier = Tier()
    tier.facts = {"exp12": (9.7 * GB, 16 * GB, 1.0), "expz": (0.75 * GB, 2.5 * GB, 1.0)}
    tier.write(100)
    tried = tier.write(4 * TRY_EVERY)
    assert sum(one != "none" for one in tried) == 4
    tier.facts = dict(MEASURED)
    tier.write(3 * TRY_EVERY)
    assert tier.write() == ["exp12"]


def test_namespaces_don_t_learn_from_each_other_what_becomes_smaller():
    tier = Tier()
    tier.facts = {"exp12": (9.7 * GB, 16 * GB, 1.0), "expz": (0.75 * GB, 2.5 * GB, 1.0)}
    tier.write(100, namespace=1)
    assert tier.choose(1)[0] == "none" and tier.choose(2)[0] == "exp12"


def test_a_remote_s_ratio_is_the_mean_of_what_came():
    tier = Tier(0.3 * GB, 2, REMOTE)
    tier.use()
    assert tier.coding.expected(0, BLOCK) == pytest.approx(BLOCK / 1.45, rel=1e-3)
    assert tier.coding.expected(9, BLOCK) == BLOCK
    assert tier.choose() == ("expz", BLOCK)


# --- how large a place --------------------------------------------------------------------------------------------------


def test_a_place_is_as_large_as_frames_turn_out_to_need():
    """And a step larger: one that needs more will come."""
    tier = Tier()
    tier.use()
    assert tier.choose() == ("exp12", 182 * STEP)
    for size, pages in ((2**20, 194), (2 * SLOT_UNIT, 25), (SLOT_UNIT, 16)):
        tier.write(100, size=size)
        assert tier.choose(size=size)[1] == pages * PLACE_GRAIN


def test_what_seldom_fits_gets_a_larger_place_and_what_often_does_not_the_one_that_is_cheapest():
    for ratios, least, most in (
        ([1.327] * 400 + [1.29], 182, 182),
        ([1.327] * 9 + [1.29], 187, 189),
        ([1.327, 1.2], 200, 202),
    ):
        tier = Tier()
        for turn in range(600):
            tier.facts["exp12"] = 9.7 * GB, 16 * GB, ratios[turn % len(ratios)]
            tier.write()
        name, place = tier.choose()
        assert name == "exp12" and least <= place // STEP <= most


def test_places_don_t_change_with_every_frame():
    """Each size of place begins an extent of its own."""
    tier, places = Tier(), []
    for turn in range(1000):
        tier.facts["exp12"] = 9.7 * GB, 16 * GB, 1.327 + 0.002 * (turn * 7 % 5 - 2)
        places.append(tier.choose()[1])
        tier.write()
    assert len(set(places)) <= 4 and len(set(places[200:])) == 1


def test_where_a_frame_did_not_fit_the_next_place_is_larger_at_once_and_more_so_after_the_next():
    tier = Tier()
    tier.facts["exp12"] = 9.7 * GB, 16 * GB, 1.1
    places = [tier.choose()[1] // STEP]
    for _ in range(4):
        tier.write()
        places.append(tier.choose()[1] // STEP)
    assert places == [185, 189, 195, 206, 224]
    tier.write(300)
    assert 219 <= tier.choose()[1] // STEP <= 221


def test_the_smallest_blocks_stay_as_they_are():
    """A place has at least a unit, which is all that they have."""
    tier = Tier()
    assert tier.choose(size=SLOT_UNIT)[0] == "none" and tier.choose(size=2 * SLOT_UNIT)[0] == "exp12"
    assert tier.write(TRY_EVERY + 1, size=SLOT_UNIT) == ["none"] * (TRY_EVERY + 1)


def test_what_is_left_at_the_end_of_an_extent_counts():
    """5 places of 6.4 units in an extent of 32, instead of 4. With 6.7 units there are 4 all the same."""
    tier = Tier(extent_bytes=32 * SLOT_UNIT)
    tier.facts["exp12"] = 9.7 * GB, 16 * GB, 1.27
    tier.write(20, size=8 * SLOT_UNIT)
    name, place = tier.choose(size=8 * SLOT_UNIT)
    assert name == "exp12" and 6.3 * SLOT_UNIT < place <= 6.4 * SLOT_UNIT
    tier.facts["exp12"] = 9.7 * GB, 16 * GB, 1.2
    tier.write(200, namespace=1, size=8 * SLOT_UNIT)
    assert tier.choose(1, 8 * SLOT_UNIT) == ("none", 8 * SLOT_UNIT)


# --- what somebody wants ------------------------------------------------------------------------------------------------


def test_none_writes_all_as_it_is():
    assert Tier(wanted="none").write(2 * TRY_EVERY) == ["none"] * 2 * TRY_EVERY
    assert Coding().choose(0, BLOCK) == (RAW, BLOCK)


def test_a_codec_that_is_named_is_used_however_slow_it_is():
    tier = Tier(14 * GB, 1, wanted="expz")
    assert tier.use() == "expz"
    assert tier.coding.snapshot()["why"] == "so it is set"


def test_but_not_for_what_it_makes_no_smaller():
    tier = Tier(wanted="exp12")
    tier.facts["exp12"] = 9.7 * GB, 16 * GB, 1.0
    assert tier.write(200)[32:] == ["none"] * 168
    assert tier.coding.snapshot()["why"] == "exp12 makes these blocks no smaller"


@pytest.mark.parametrize("wanted", ["auto", "none", "exp12"])
def test_a_wish_is_for_its_namespace_and_for_no_other(wanted):
    tier = Tier(wanted=wanted)
    before = tier.choose(2)
    tier.coding.wish(1, INT8)
    assert set(tier.write(2 * TRY_EVERY, namespace=1)) == {"int8"}
    assert tier.choose(2) == before and tier.choose(3)[0] != "int8"


def test_what_a_wish_can_not_do_is_written_as_it_is_and_by_nothing_else():
    tier = Tier()
    tier.coding.wish(1, INT8)
    tier.facts["int8"] = 5.9 * GB, 6.3 * GB, 1.0
    assert set(tier.write(2 * TRY_EVERY, namespace=1)) == {"int8", "none"}
    assert tier.coding.snapshot()["why"] == "its engine's wish makes these blocks no smaller"


def test_a_wish_changes_what_was_chosen_before():
    tier = Tier()
    assert tier.choose(1)[0] == "exp12"
    tier.coding.wish(1, INT8)
    assert tier.choose(1)[0] == "int8"


# --- what there is ------------------------------------------------------------------------------------------------------


def test_it_says_what_each_codec_did_and_why_another_is_not_used():
    tier = Tier()
    assert tier.coding.snapshot()["why"] == "nothing was written yet"
    tier.use(100)
    said = tier.coding.snapshot()
    assert (said["wanted"], said["codec"], said["why"]) == (
        "auto", "exp12", "it makes blocks smallest of those that slow nothing down"
    )  # fmt: skip
    row = said["codecs"]["exp12"]
    assert row["blocks"] == 100 and row["bytes"] == 100 * BLOCK
    assert row["ratio"] == pytest.approx(45 / 34, rel=0.01)
    assert row["encode_bytes_per_s"] == pytest.approx(9.7 * GB, rel=0.01)
    assert row["decode_bytes_per_s"] == pytest.approx(16 * GB, rel=0.01)
    assert row["why_not"] == ""
    assert said["codecs"]["expz"] == {
        "blocks": 0, "bytes": 0, "stored_bytes": 0, "ratio": 0.0, "encode_bytes_per_s": 0, "decode_bytes_per_s": 0,
        "why_not": "it decodes 4.4 GB/s with 2 threads; 5.3 are needed",
    }  # fmt: skip


def test_what_is_said_to_be_used_is_what_most_bytes_get_and_not_the_block_before():
    tier = Tier()
    tier.coding.wish(3, Codec("int8", "bf16", 64))
    tier.use(100)
    tier.write(20, namespace=3)
    assert tier.coding.snapshot()["codec"] == "exp12"
    assert tier.why_not("int8") == "only engines of 1 other namespace wish it"


def test_reads_of_frames_whose_codec_nobody_knows_count_for_the_present_one():
    tier = Tier()
    tier.write(20)
    promote = Promote(1, b"k" * 16, 0, 0, BLOCK, 7, 0, 34 * SLOT_UNIT)
    for _ in range(20):
        tier.coding.read(promote, Finished(1, stored=33 * SLOT_UNIT, coded_s=BLOCK / 7e9))
    assert tier.coding.snapshot()["codecs"]["exp12"]["decode_bytes_per_s"] == pytest.approx(7e9, rel=0.01)


def test_writes_that_failed_teach_nothing():
    tier = Tier()
    codec, place = tier.coding.choose(0, BLOCK)
    for _ in range(50):
        tier.coding.wrote(Demote(1, b"k" * 16, 0, 0, BLOCK, 0, 0, b"", codec, place), Finished(1, "io"))
    assert tier.choose() == ("exp12", place)


def test_so_many_namespaces_are_remembered_at_most(monkeypatch):
    monkeypatch.setattr("kvtier.coding.PLANS_MAX", 4)
    tier = Tier()
    for namespace in range(8):
        tier.write(namespace=namespace)
    assert len(tier.coding._plans) == 4
