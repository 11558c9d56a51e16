"""What a remote's errors mean to a RemoteTier, and what is shown of them."""

from collections.abc import Iterator

import pytest
from remote.memory_remote import never
from remote.tier_bench import Bench

from kvtier.block import KEY_BYTES
from kvtier.tiers.remote import base as base_module
from kvtier.tiers.remote.base import Corrupt, NotOurs, Unreachable

A, B, C = (letter * KEY_BYTES for letter in (b"a", b"b", b"c"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_a_namespace_that_is_not_ours_stops_no_writes_of_others(bench):
    bench.remote.fails = lambda verb: NotOurs("of somebody else") if verb == "put" else None
    assert bench.faults(bench.demote(A)) == ["refused"]
    bench.remote.fails = never
    assert not bench.tier.read_only and bench.faults(bench.demote(B)) == [""]


def test_what_a_server_says_is_shown_short_and_harmless(bench):
    bench.remote.fails = lambda verb: Unreachable("\x1b[31m\n" + "x" * 100_000)
    bench.faults(*(bench.seek(A) for _ in range(3)))
    said = str(bench.tier.state()["reason"])
    assert said.startswith("?[31m?xxx") and len(said) == base_module.SAID_MAX


def test_only_a_value_that_was_read_is_deleted(bench):
    bench.do(bench.demote(A), bench.demote(B))
    bench.remote.fails = lambda verb: Corrupt("one of these is a list") if verb in ("lengths", "put") else None
    assert bench.faults(bench.seek(A, B), bench.demote(C)) == ["unreachable"] * 2
    bench.tier.close()
    assert bench.remote.deleted == [] and len(bench.remote.values) == 2
