"""What kvtier stats and kvtier top say of codecs: the ratio, what it bought, and why a codec is used or isn't."""

from rich.console import Console

from kvtier.cli.codecs import line_of, more_blocks, spared_bytes, tables_of
from kvtier.codec import LOSSLESS, RAW, Codec
from kvtier.coding import Coding
from kvtier.estimators import Link

MIB, GIB = 1024**2, 1024**3


def done(blocks: int = 0, size: int = 0, stored: int = 0, encode: int = 0, decode: int = 0, why_not: str = "") -> dict:
    return {
        "blocks": blocks,
        "bytes": size,
        "stored_bytes": stored,
        "ratio": round(size / stored, 3) if stored else 0.0,
        "encode_bytes_per_s": encode,
        "decode_bytes_per_s": decode,
        "why_not": why_not,
    }


EXP12 = done(800, 1600 * MIB, 1250 * MIB, 9_700_000_000, 15_000_000_000)
EXPZ = done(0, why_not="decodes 2.5 GB/s with 2 threads; 7.8 are needed")


def coding(codec: str = "exp12", **codecs: dict) -> dict:
    return {
        "wanted": "auto",
        "codec": codec,
        "why": "the largest ratio",
        "codecs": codecs or {"exp12": EXP12, "expz": EXPZ},
    }


def state(**tiers: dict) -> dict:
    counters = {"spared_read_bytes": GIB, "spared_write_bytes": 350 * MIB, "remote_spared_read_bytes": 3 * GIB}
    return {"tiers": {"cpu": {}, **tiers}, "counters": counters}


NVME = {"blocks": 1000, "block_bytes": 2000 * MIB, "used_bytes": 1600 * MIB, "coding": coding()}


def lines_of(now: dict) -> list[str]:
    console = Console(width=160, markup=False, highlight=False)
    with console.capture() as shown:
        console.print(*tables_of(now))
    return [" ".join(line.split()) for line in shown.get().splitlines()]


def test_the_table_has_what_each_codec_did_and_why():
    header, exp12, expz = lines_of(state(nvme=NVME))
    assert header == "codecs blocks ratio encode GB/s decode GB/s more blocks fit not moved"
    assert exp12 == "exp12 for nvme 800 1.280 9.70 15.00 200 1.342 GiB used: the largest ratio"
    assert expz == "expz for nvme not used: decodes 2.5 GB/s with 2 threads; 7.8 are needed"


def test_where_nothing_pays_it_says_why():
    slow = done(why_not="it makes blocks 1.00 times smaller, which is too little")
    remote = {"coding": coding("none", exp12=slow) | {"why": "none pays"}}
    _, none, exp12 = lines_of(state(remote=remote))
    assert none == "none for remote 3 GiB used: none pays"
    assert exp12 == "exp12 for remote not used: it makes blocks 1.00 times smaller, which is too little"


def test_nothing_is_said_where_nobody_wants_a_codec_and_none_was_used():
    nobody = Coding("none").snapshot()
    assert tables_of(state(nvme={"coding": nobody}, remote={"coding": nobody})) == []
    assert tables_of(state(nvme={}, remote={})) == [] and line_of(state(nvme={})) == ""


def test_what_coding_says_can_be_shown():
    _, none, exp12, expz = lines_of(state(nvme={"coding": Coding("auto", 2, 65536, Link(0.001, 3e9)).snapshot()}))
    assert none.startswith("none for nvme") and exp12.startswith("exp12 for nvme") and expz.startswith("expz for nvme")


def test_a_tier_that_takes_blocks_as_they_are_hears_no_wish_and_says_so():
    coding = Coding()
    coding.wish(3, Codec("int8", "bf16", 64))
    assert coding.choose(3, MIB) == (RAW, MIB) and coding.expected(3, MIB) == MIB
    said = coding.snapshot()
    assert (said["codec"], said["why"]) == ("none", "it takes blocks as they are")
    assert {name: row["why_not"] for name, row in said["codecs"].items()} == dict.fromkeys(LOSSLESS, "nobody wants it")


def test_a_lossy_codec_stands_there_by_its_name():
    lossy = done(10, 20 * MIB, 10 * MIB)
    assert lines_of(state(nvme=NVME | {"coding": coding("int8:bf16:64", int8=lossy)}))[1].startswith(
        "int8 for nvme 10 2.000"
    )


def test_top_has_one_line_of_it():
    assert line_of(state(nvme=NVME)) == "codecs: nvme exp12 1.28x, 200 blocks more fit, 1.3G not moved"
    both = state(nvme=NVME, remote={"coding": coding("expz", expz=done(1, 290, 200))})
    assert line_of(both).endswith("; remote expz 1.45x, 3.0G not moved")
    assert line_of(state(nvme=NVME | {"coding": coding("none")})) == ""


def test_more_blocks_fit_where_they_take_less_than_in_ram():
    assert more_blocks(NVME) == 200
    assert more_blocks({"blocks": 5, "used_bytes": 10, "block_bytes": 10}) == 0
    assert more_blocks({}) == 0


def test_bytes_that_are_not_moved_are_those_of_reads_and_writes():
    assert spared_bytes(state(), "nvme") == GIB + 350 * MIB
    assert spared_bytes(state(), "remote") == 3 * GIB
