"""Two namespaces at one kvtierd: what the one has, the other can't tell from how long its answers take.

Half of its questions are for what the first has saved, half for what nobody has, in an order made from a seed. Chance finds
a difference in one audit of a hundred, a leak in each: it is one when three in a row find it.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chat import nvme_settings
from kvtierd import Engine, KVTierd
from security.timing import answer_s, p_value

from kvtier import observer, protocol
from kvtier.block import KEY_BYTES, block_key, pack_keys

PROBES, AUDITS, P = 2000, 3, 0.01
PROMPT_BLOCKS = 4
PROMPTS = PROBES // 2 * AUDITS
LEAK_S = 200e-6  # a planted one; on a quiet machine far less is found, too
# A kvtierd that looks longer where the first block of a prompt was asked for before, by whomever.
PLANTED = f"""
import time
from kvtier import daemon
from kvtier.store import BlockStore
seen, lookup = set(), BlockStore.lookup
def slow(store, engine, number, keys, skip, now, ask):
    if ask.witness in seen:
        until = time.perf_counter() + {LEAK_S}
        while time.perf_counter() < until:
            pass
    seen.add(ask.witness)
    return lookup(store, engine, number, keys, skip, now, ask)
BlockStore.lookup = slow
daemon.main()
"""


def settings(folder: Path) -> dict[str, object]:
    """Two thirds of what the first saves leave RAM."""
    return {
        **nvme_settings(folder),
        "cpu.capacity": "64 MiB",
        "cpu.pin": "no",
        "nvme.capacity": "256 MiB",
        "cost.holdout": 0,
    }


class Planted(KVTierd):
    @property
    def command(self) -> list[str]:
        return [sys.executable, "-P", "-c", PLANTED, *super().command[1:]]


class Namespaces:
    """One that has prompts, and one that is curious: an engine each, of the same node."""

    def __init__(self, daemon: KVTierd) -> None:
        self.daemon = daemon
        self.first = Engine(daemon.socket, "first", model="first", lend=64)
        self.other = Engine(daemon.socket, "curious", model="other", lend=1)
        self.leases = 0
        self.prompts = [b"prompt %d" % at for at in range(PROMPTS)]
        for prompt in self.prompts:
            self.serve(prompt)
        random.Random(7).shuffle(self.prompts)  # else each audit is of one tier

    def keys(self, engine: Engine, prompt: bytes) -> bytes:
        """What this engine calls the blocks of a prompt."""
        secret = engine.welcome.secret
        return pack_keys(block_key(secret, b"%s, block %d" % (prompt, i)) for i in range(PROMPT_BLOCKS))

    def witness(self, prompt: bytes) -> bytes:
        """The same for both of them."""
        return block_key(self.first.welcome.witness_secret, prompt)

    def serve(self, prompt: bytes) -> None:
        """A request of the first, whose first block is saved."""
        self.leases += 1
        keys, request = self.keys(self.first, prompt), f"request {self.leases}"
        witness = self.witness(prompt)
        self.first.ask(protocol.Lookup(self.leases, keys, 0, request, 70, witness=witness), answer=protocol.Found)
        self.first.say(protocol.Release(self.leases, 0))
        while not self.first.lent:
            self.first.passed_over(self.first.hear_any())
        self.first.save(keys[:KEY_BYTES])

    def ask(self, prompt: bytes, very_keys: bool) -> float:
        """The curious one does, by what it calls them itself, or by the keys of the first, should it have learnt them."""
        self.leases += 1
        keys = self.keys(self.first if very_keys else self.other, prompt)
        request = {"request": f"request {self.leases}", "prompt_tokens": 70, "witness": self.witness(prompt)}
        return answer_s(self.other, self.leases, keys, **request)

    def audit(self, number: int, very_keys: bool) -> tuple[float, float]:
        """How likely it is that there is no difference, and how large that is."""
        chance = random.Random(number)
        kinds = [True, False] * (PROBES // 2)
        chance.shuffle(kinds)
        known = self.prompts[number * PROBES // 2 :][: PROBES // 2]
        times: dict[bool, list[float]] = {True: [], False: []}
        for i, is_there in enumerate(kinds):
            prompt = known.pop() if is_there else b"unheard of %d" % (number * PROBES + i)
            times[is_there].append(self.ask(prompt, very_keys))
        there, nowhere = times[True], times[False]
        return p_value(there, nowhere), float(np.median(there) - np.median(nowhere))

    def audits(self, very_keys: bool = False) -> list[float]:
        found = [self.audit(number, very_keys) for number in range(AUDITS)]
        print([f"p = {p:.3g}, {difference * 1e6:+.2f} us" for p, difference in found])
        return [p for p, _ in found]


@pytest.fixture
def namespaces(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Namespaces]:
    with request.param(tmp_path, settings(tmp_path)) as daemon:
        both = Namespaces(daemon)
        assert observer.flush(daemon.socket, 60)
        yield both
        both.first.close()
        both.other.close()


@pytest.mark.parametrize("namespaces", [KVTierd], indirect=True, ids=["kvtierd"])
@pytest.mark.parametrize("very_keys", [False, True], ids=["prompts", "keys"])
def test_what_another_namespace_has_shows_in_no_time(namespaces, very_keys):
    tiers = namespaces.daemon.snapshot()["tiers"]
    assert tiers["nvme"]["blocks"] == PROMPTS and 0 < tiers["cpu"]["blocks"] < PROMPTS, "some of it lies here, some there"
    assert max(namespaces.audits(very_keys)) > P


@pytest.mark.parametrize("namespaces", [Planted], indirect=True, ids=["planted"])
def test_an_answer_that_takes_a_little_longer_for_them_is_found(namespaces):
    assert max(namespaces.audits()) < P


def test_the_rank_sum_test_knows_chance_from_difference():
    chance = np.random.default_rng(1)
    same = [p_value(chance.exponential(size=400), chance.exponential(size=500)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(same) < 0.05) < 0.09
    assert np.mean(same) == pytest.approx(0.5, abs=0.05)
    assert p_value(chance.exponential(size=1000), 1.2 * chance.exponential(size=1000)) < 0.01
    # Of known samples: U = 3 of 5 x 5, and all equal.
    assert p_value([1, 2, 3, 4, 7], [5, 6, 8, 9, 10]) == pytest.approx(0.0283, abs=1e-3)
    assert p_value([1.0] * 20, [1.0] * 20) == 1.0
