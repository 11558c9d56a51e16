"""What matched, by tier, and which candidates that makes."""

import pytest
from one_engine import MIB, TOKENS, matched

from kvtier.decision import Matched
from kvtier.estimators import Link


def boundaries(found: Matched) -> dict[str, tuple[int, float]]:
    """Blocks of each candidate, and for how long they are loaded, by its tier: from the engine's link at 16 blocks a
    second, the drives at 8, the remote at 2."""
    link = {tier: Link(0.0, blocks_per_s * found.block_bytes) for tier, blocks_per_s in (("nvme", 8), ("remote", 2))}
    made = found.candidates(Link(0.0, 16 * found.block_bytes), link, 0.0)
    return {c.tier: (c.tokens // TOKENS, pytest.approx(c.load_s, rel=1e-3)) for c in made if c.tier}


def test_each_tier_that_adds_blocks_is_a_boundary():
    assert boundaries(matched(cpu=4, nvme=4, away=4)) == {"cpu": (4, 0.25), "nvme": (8, 1.0), "remote": (12, 2.75)}
    assert boundaries(matched(cpu=4, away=4)) == {"cpu": (4, 0.25), "remote": (8, 2.5)}
    assert boundaries(matched(away=4)) == {"remote": (4, 2.25)}
    assert boundaries(matched()) == {}


def test_drives_and_remote_are_read_side_by_side():
    assert boundaries(matched(nvme=40, away=2)) == {"nvme": (40, 7.5), "remote": (42, 5.0 + 42 / 16)}


def test_what_the_drives_have_behind_a_block_of_the_remote_needs_both():
    found = Matched(2, 2, 6, 0, 3, 1, MIB, TOKENS, None)  # in RAM 2, then 1 in the remote, then 3 on the drives
    assert boundaries(found) == {"cpu": (2, 0.125), "remote": (6, 0.5 + 6 / 16)}
    (all_of_it,) = [c for c in found.candidates(Link(0, 1), {"nvme": Link(0, 1), "remote": Link(0, 1)}, 0.0) if c.also]
    assert (all_of_it.tier, all_of_it.also) == ("remote", ("nvme",))


def test_a_block_counts_for_one_tier_alone():
    assert matched(cpu=1, nvme=2, away=3).tokens == {"cpu": 128, "nvme": 256, "remote": 384}
    assert matched(cpu=1, nvme=2).tokens == {"cpu": 128, "nvme": 256}


def test_where_frames_lie_it_is_known_how_much_smaller_they_are():
    raw = Matched(2, 2, 6, 0, 3, 1, MIB, TOKENS, None)
    assert raw.frames == {}
    coded = Matched(2, 2, 6, 0, 3, 1, MIB, TOKENS, None, False, 0, 2 * MIB, MIB)
    assert coded.frames == {"nvme": [3 * MIB, 2 * MIB]}  # what the remote has is no frame
