"""How soon a remote is left alone, and used again, with the times that kvtierd has."""

import time
from pathlib import Path

import numpy as np
import pytest
from remote.kinds import opened
from remote.proxy import FaultProxy
from remote.servers import LOOPBACK, Absent
from remote.tier_bench import WAIT_S, Orders

from kvtier.block import KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.tiers.remote import open_remote
from kvtier.tiers.remote.breaker import FAILURES_MAX, PROBE_EVERY_S, SILENT_S
from kvtier.tiers.remote.remote import DEADLINES, RemoteTier
from kvtier.transfer import Remember, Seek

OPEN_S, RECOVERY_S, FAILURES = 2.0, 5.0, 3  # as promised
LOADED_S = 0.7


@pytest.fixture
def kind(tmp_path):
    opening = opened("valkey", Path(tmp_path))
    try:
        kind = opening.__enter__()
    except Absent as reason:
        pytest.skip(str(reason))
    yield kind
    opening.__exit__(None, None, None)


def test_the_times_add_up_to_what_is_promised():
    assert SILENT_S <= OPEN_S and FAILURES_MAX <= FAILURES
    assert PROBE_EVERY_S + DEADLINES.short_s <= RECOVERY_S, "a probe that began just before, and the next one"


def test_a_frozen_remote_is_left_alone_within_two_seconds_and_used_within_five_of_its_return(kind):
    with FaultProxy(LOOPBACK, kind.server.port) as proxy:
        url = kind.url.replace(str(kind.server.port), str(proxy.port))
        orders = Orders(RemoteTier(open_remote(url, kind.settings), np.zeros(SLOT_UNIT, np.uint8)))
        orders.do(Remember(0, b"\x0d" * 32, 7, 0))

        def seek() -> str:
            return orders.do(Seek(orders.next(), 7, pack_keys([bytes(KEY_BYTES)])))[0].fault

        assert seek() == ""
        proxy.blackhole()
        begun = time.monotonic()
        while not orders.tier.is_away:
            assert seek() == "unreachable"
        assert time.monotonic() - begun < OPEN_S + LOADED_S
        time.sleep(0.3)
        proxy.heal()
        begun = time.monotonic()
        while orders.tier.is_away:
            assert time.monotonic() < begun + WAIT_S
            time.sleep(0.01)
        assert time.monotonic() - begun < RECOVERY_S + LOADED_S
        assert seek() == ""
        orders.close()
