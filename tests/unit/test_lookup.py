"""What a lookup matches, tier by tier. RAM, drives and remote as a string of letters, r d a, and . for nowhere."""

import numpy as np
import pytest

from kvtier.block import ABSENT, BELOW, Kind
from kvtier.decision import Ask, Matched
from kvtier.lookup import Lookup

BYTES, TOKENS = 65536, 16


def matched(where: str, skip: int = 0, is_chain: bool = True) -> tuple[Matched, int]:
    """And how many of the first may be offered."""
    keys = b"".join(n.to_bytes(16, "big") for n in range(len(where)))
    ask = Ask("r", len(where) * TOKENS, skip * TOKENS)
    one = Lookup(("a", 1), keys, Kind(BYTES, TOKENS, is_chain), 0, None, skip, ask, 0.0)
    slots = np.array([n if c == "r" else BELOW if c == "d" else ABSENT for n, c in enumerate(where)], np.uint32)
    away = np.array([n for n, c in enumerate(where) if c == "a" and n >= skip], np.intp)
    found = one.matched(slots, (away, np.full(len(away), BYTES)), is_remote_away=False)
    return found, one.end(slots, away)


@pytest.mark.parametrize(
    ("where", "skip", "cpu", "lower", "all_", "drives", "all_drives", "away"),
    [
        ("", 0, 0, 0, 0, 0, 0, 0),
        ("rrr", 0, 3, 3, 3, 0, 0, 0),
        ("rrd", 0, 2, 3, 3, 1, 1, 0),
        ("rda", 0, 1, 2, 3, 1, 1, 1),
        ("add", 0, 0, 0, 3, 0, 2, 1),
        ("dra.da", 0, 0, 2, 3, 1, 1, 1),
        ("rr.dda", 0, 2, 2, 2, 0, 0, 0),
        ("rr.dda", 3, 0, 2, 3, 2, 2, 1),
        ("...", 0, 0, 0, 0, 0, 0, 0),
    ],
)
def test_in_a_chain_what_leads_counts(where, skip, cpu, lower, all_, drives, all_drives, away):
    found, end = matched(where, skip)
    assert (found.cpu_blocks, found.lower_blocks, found.all_blocks) == (cpu, lower, all_)
    assert (found.drive_blocks, found.all_drive_blocks, found.away_blocks) == (drives, all_drives, away)
    assert end == skip + all_ and found.block_tokens == TOKENS


def test_without_a_chain_all_count_wherever_they_stand():
    found, end = matched("a.rd", is_chain=False)
    assert (found.cpu_blocks, found.lower_blocks, found.all_blocks, end) == (1, 2, 3, 4)
    assert (found.drive_blocks, found.all_drive_blocks, found.away_blocks) == (1, 1, 1)


@pytest.mark.parametrize(("where", "first"), [("rda", None), ("ra.", 2), (".ra", 0), ("r.a.", 1)])
def test_what_is_missing_is_the_first_that_is_nowhere(where, first):
    found, _ = matched(where)
    assert found.missing == (None if first is None else first.to_bytes(16, "big"))


def test_of_tokens_without_a_chain_only_the_mean_is_known():
    found, _ = matched("rr", skip=1, is_chain=False)
    assert found.block_tokens == TOKENS and found.cpu_blocks == 1
