"""Staging from several sources: side by side, each read once, within bounds. With drives alone: test_lower.py."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from kvtier.block import ABSENT
from kvtier.estimators import Link
from kvtier.ram import Ram
from kvtier.ranking import Lru
from kvtier.staging import Staging, Wanted
from kvtier.stats import Stats
from kvtier.transfer import Finished, Promote

MIB = 1024**2
BLOCK = MIB // 4
ME, OTHER = ("a", 1), ("a", 2)


@dataclass
class Place:
    """A source that has what it is said to have."""

    tier: str
    share: float = 1.0
    keeps: bool = True
    counters: str = ""
    called: str = "place"
    content: set[bytes] = field(default_factory=set)
    held: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.link = Link(0.001, 1e9)

    def has(self, one: Wanted, now: float) -> bool:
        return one.key in self.content

    def begin(self, one: Wanted) -> tuple[int, int]:
        self.held.append(one.key)
        return 0, 0

    def ended(self, order: Promote) -> None:
        self.held.remove(order.key)

    def origin(self, order: Promote, done: Finished) -> bytes:
        return b""


class Bench:
    def __init__(self) -> None:
        self.ram = Ram(16 * MIB, Stats(), Lru())
        self.staging = Staging(self.ram, {0: 0}, Stats())
        self.near, self.far = Place("nvme"), Place("remote", 0.5, keeps=False, counters="remote_")
        self.ram.has_below = self.near.content.__contains__
        self.staging.attach(self.near)
        self.staging.attach(self.far)
        self.tickets = iter(range(1, 1000))

    def begin(self, asker: tuple[str, int], near: str = "", far: str = "", chain: str = "") -> None:
        """Letters are blocks. `chain`: in which order they stand."""
        wanted = []
        for at, letter in enumerate(chain or near + far):
            tier = "nvme" if letter in near else "remote"
            (self.near if tier == "nvme" else self.far).content.add(key(letter))
            before = key(chain[at - 1]) if chain and at else b""
            wanted.append(Wanted(at, key(letter), before, 0, BLOCK, tier))
        self.staging.begin(asker, np.full(len(wanted), ABSENT, np.uint32), wanted, 0.0, 10.0)

    def orders(self, tier: str, now: float = 0.0) -> list[Promote]:
        begun = []
        while (order := self.staging.next(tier, next(self.tickets), now)) is not None:
            begun.append(order)
        return begun

    def finish(self, orders: list[Promote], fault: str = "", now: float = 0.0) -> None:
        for order in orders:
            self.staging.finished(order, Finished(order.ticket, fault), now)

    def arrived(self) -> str:
        """And they are waited for no more, as a lookup has it."""
        arrived, self.staging.arrived = self.staging.arrived, []
        for asker, one in arrived:
            if asker in self.staging.waiting and one in self.staging.waiting[asker].positions:
                self.staging.waiting[asker].take(one)
        return "".join(one[:1].decode() for _, one in arrived)

    def here(self, letters: str) -> str:
        return "".join(letter for letter in letters if key(letter) in self.ram.index)


def key(letter: str) -> bytes:
    return letter.encode().ljust(16)


def letters(orders: list[Promote]) -> str:
    return "".join(order.key[:1].decode() for order in orders)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_each_source_is_asked_only_for_what_it_has(bench):
    bench.begin(ME, near="ab", far="cd")
    assert letters(bench.orders("remote")) == "cd" and letters(bench.orders("nvme")) == "ab"


def test_a_source_that_is_full_does_not_keep_another_from_reading(bench):
    bench.begin(ME, far="abcdefgh")
    bench.begin(OTHER, near="ijklmnop")
    assert letters(bench.orders("remote")) == "abcd", "half of what all reads may take"
    assert letters(bench.orders("nvme")) == "ijklmnop"


def test_what_is_read_for_one_is_not_read_again_for_another_from_elsewhere(bench):
    bench.begin(ME, near="a")
    near = bench.orders("nvme")
    bench.begin(OTHER, far="a")
    assert bench.orders("remote") == []
    assert bench.staging.waiting[OTHER].tiers == {key("a"): "nvme"}
    assert bench.far.link.queued_bytes == 0
    bench.finish(near)
    assert bench.arrived() == "aa" and bench.here("a") == "a"


def test_each_link_learns_of_its_own_bytes(bench):
    bench.begin(ME, near="ab", far="c")
    assert (bench.near.link.queued_bytes, bench.far.link.queued_bytes) == (2 * BLOCK, BLOCK)
    bench.finish(bench.orders("remote"))
    assert (bench.near.link.queued_bytes, bench.far.link.queued_bytes) == (2 * BLOCK, 0)


def test_how_long_it_takes_is_said_tier_by_tier(bench):
    bench.begin(ME, near="a", far="b")
    bench.begin(OTHER, near="c")
    (me, mine), (other, theirs) = bench.staging.outlook(0.0)
    assert (me, other) == (ME, OTHER)
    assert mine.keys() == {"nvme", "remote"} and theirs.keys() == {"nvme"}
    assert theirs["nvme"] > mine["nvme"] > 0


def test_a_source_that_is_silent_stalls_alone(bench):
    bench.begin(ME, near="ab", far="c")
    near, _ = bench.orders("nvme"), bench.orders("remote")
    bench.finish(near[:1], now=0.9)
    bench.arrived()
    ((_, remaining),) = bench.staging.outlook(1.0)
    assert remaining["remote"] == float("inf") and remaining["nvme"] < 1.0


def test_what_is_given_up_is_not_read_any_more_and_the_rest_is(bench):
    bench.begin(ME, near="a", far="b")
    bench.staging.give_up(ME, [key("b")], 0.0)
    assert bench.orders("remote") == [] and letters(bench.orders("nvme")) == "a"
    assert bench.far.link.queued_bytes == 0 and list(bench.staging.waiting[ME].positions) == [key("a")]


def test_what_was_forgotten_while_it_waited_for_its_turn_is_not_read(bench):
    bench.begin(ME, far="ab")
    bench.far.content.discard(key("a"))
    assert letters(bench.orders("remote")) == "b" and bench.arrived() == "a"


def test_a_block_may_come_before_the_one_before_it(bench):
    bench.begin(ME, far="abc", chain="abc")
    orders = bench.orders("remote")
    bench.finish(orders[::-1])
    assert bench.here("abc") == "abc"


def test_what_stands_behind_a_block_that_never_comes_is_dropped(bench):
    bench.begin(ME, far="abc", chain="abc")
    first, second, third = bench.orders("remote")
    bench.finish([second, third])
    assert bench.here("abc") == "bc"
    bench.finish([first], "gone")
    assert bench.here("abc") == ""
    assert bench.staging._stats["remote_gone_blocks"] == 1 and bench.staging._stats["dropped_orphans"] == 2


def test_what_comes_behind_a_block_that_did_not_come_is_not_kept(bench):
    bench.begin(ME, far="ab", chain="ab")
    first, second = bench.orders("remote")
    bench.finish([first], "gone")
    bench.arrived()
    bench.finish([second])
    assert bench.here("ab") == ""


def test_the_drives_block_behind_one_that_the_remote_is_to_give_waits_in_ram(bench):
    bench.begin(ME, near="b", far="a", chain="ab")
    bench.finish(bench.orders("nvme"))
    assert bench.here("ab") == "b"
    bench.arrived()
    bench.finish(bench.orders("remote"))
    assert bench.here("ab") == "ab"


@pytest.mark.parametrize("end", ["forget", "give_up"])
def test_it_is_dropped_when_nobody_waits_for_the_one_before_it_any_more(bench, end):
    bench.begin(ME, near="b", far="a", chain="ab")
    bench.finish(bench.orders("nvme"))
    bench.arrived()
    if end == "forget":
        bench.staging.forget(ME, 0.0)
    else:
        bench.staging.give_up(ME, [key("a")], 0.0)
    assert bench.here("b") == ""


def test_it_stays_while_another_waits_for_the_one_before_it(bench):
    bench.begin(ME, near="b", far="a", chain="ab")
    bench.begin(OTHER, far="a")
    bench.finish(bench.orders("nvme"))
    bench.arrived()
    bench.staging.forget(ME, 0.0)
    assert bench.here("b") == "b"


def test_only_what_a_source_keeps_is_said_to_be_below(bench):
    bench.begin(ME, near="a", far="b")
    bench.finish(bench.orders("nvme") + bench.orders("remote"))
    below = [bool(bench.ram.is_below[bench.ram.index.find(key(letter))[0]]) for letter in "ab"]
    assert below == [True, False]


def test_what_is_coming_is_being_read_or_will_be(bench):
    bench.near.content.add(key("a"))
    bench.staging.begin_ahead([Wanted(0, key("a"), b"", 0, BLOCK)], due=1.0, worth=float("inf"))
    assert bench.staging.is_coming(key("a")) and not bench.staging.is_coming(key("b"))
    assert bench.orders("remote") == [], "the drives read ahead"
    orders = bench.orders("nvme")
    assert letters(orders) == "a" and bench.staging.is_coming(key("a"))
    bench.finish(orders)
    assert not bench.staging.is_coming(key("a")) and bench.near.held == []


# --- frames ------------------------------------------------------------------------------------------------------------


def frames(bench: Bench, asker: tuple[str, int], tier: str, *stored: int) -> None:
    """Blocks a, b, ... of which so many bytes lie there."""
    letters = "abcdef"[: len(stored)]
    (bench.near if tier == "nvme" else bench.far).content.update(map(key, letters))
    wanted = [Wanted(at, key(one), b"", 0, BLOCK, tier, 0, n) for at, (one, n) in enumerate(zip(letters, stored))]
    bench.staging.begin(asker, np.full(len(wanted), ABSENT, np.uint32), wanted, 0.0, 10.0)


def test_the_link_carries_what_lies_there_and_ram_gives_room_for_the_blocks(bench):
    frames(bench, ME, "nvme", 1000, 3000, 0)
    assert bench.near.link.queued_bytes == 4000 + BLOCK
    orders = bench.orders("nvme")
    assert [order.stored for order in orders] == [1000, 3000, 0]
    assert bench.staging.reading_bytes("nvme") == 3 * BLOCK
    bench.finish(orders[1:])
    assert bench.near.link.queued_bytes == 1000


def test_what_somebody_waits_for_is_as_large_as_it_lies_where_it_is_read_from(bench):
    """The remote has a smaller frame of what is being read from the drives already."""
    frames(bench, ME, "nvme", 8000)
    (order,) = bench.orders("nvme")
    frames(bench, OTHER, "remote", 5000)
    assert bench.orders("remote") == [] and bench.far.link.queued_bytes == 0
    parts = bench.staging.waiting[OTHER].parts
    assert [(tier, part.left, part.left_bytes) for tier, part in parts.items()] == [("remote", 0, 0), ("nvme", 1, 8000)]
    bench.finish([order])
    bench.arrived()
    assert parts["nvme"].left_bytes == 0
