"""Between store and tier: orders go one way, news the other, and how long things took is counted."""

import asyncio
import time

import pytest

from kvtier import mover
from kvtier.mover import Mover
from kvtier.stats import DURATIONS, Stats
from kvtier.transfer import Demote, Finished, Flush, Promote, Transfer


class FakeTier:
    read_only = False

    def __init__(self) -> None:
        self.started: list[Transfer] = []
        self.news: list[Finished] = []

    def start(self, order: Transfer) -> None:
        self.started.append(order)

    def poll(self) -> list[Finished]:
        news, self.news = self.news, []
        return news


def moved(name: str, *orders: Transfer, done: list[Finished]) -> tuple[Stats, list[Finished]]:
    """What the store heard when these were ordered and this was done."""
    stats, tier, heard = Stats(), FakeTier(), []
    waiting = list(orders)

    def give(now: float, writes: bool) -> list[Transfer]:
        given, waiting[:] = list(waiting), []
        return given

    mine = Mover(tier, give, lambda one, now: heard.append(one), lambda: None, name, stats)
    mine.pump()
    assert tier.started == list(orders)
    tier.news = done
    mine._on_news()
    return stats, heard


def counted(stats: Stats) -> dict[str, int]:
    return {name: sum(took["counts"]) for name, took in stats.durations().items() if sum(took["counts"])}


DEMOTE = Demote(1, b"k" * 16, 0, 0, 4096, 1, 0)
PROMOTE = Promote(2, b"k" * 16, 0, 0, 4096, 7)


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        ("nvme", {"nvme_demote": 1, "nvme_promote": 1}),
        ("remote", {"remote_demote": 1, "remote_promote": 1}),
        ("gpu", {"mirror": 1}),
    ],
)
def test_reads_and_writes_of_each_tier_are_counted_apart(tier, expected):
    done = [Finished(1), Finished(2), Finished(3)]
    stats, heard = moved(tier, DEMOTE, PROMOTE, Flush(3), done=done)
    assert heard == done
    assert counted(stats) == expected


def test_what_failed_took_no_time():
    stats, heard = moved("nvme", DEMOTE, PROMOTE, done=[Finished(1, "io"), Finished(2)])
    assert len(heard) == 2
    assert counted(stats) == {"nvme_promote": 1}


def test_it_is_counted_from_the_order_to_the_news(monkeypatch):
    times = iter([10.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    stats, _ = moved("nvme", DEMOTE, done=[Finished(1)])
    assert stats.durations()["nvme_demote"]["sum_s"] == 2.0


def test_its_durations_are_declared():
    names = {name for of_tier in mover.DURATIONS.values() for name in of_tier.values()}
    assert names <= set(DURATIONS)


def test_of_very_much_news_the_store_hears_some_in_each_step_of_the_loop_and_in_order():
    heard: list[int] = []
    steps: list[int] = []
    tier = FakeTier()
    mine = Mover(tier, lambda now, writes: [], lambda one, now: heard.append(one.ticket),
                 lambda: steps.append(len(heard)), "nvme", Stats())  # fmt: skip
    tier.news = [Finished(ticket) for ticket in range(2 * mover.NEWS_MAX + 1)]

    async def hear() -> None:
        mine._on_news()
        while len(heard) < 2 * mover.NEWS_MAX + 1:
            await asyncio.sleep(0)

    asyncio.run(hear())
    assert heard == list(range(2 * mover.NEWS_MAX + 1))
    assert steps == [mover.NEWS_MAX, 2 * mover.NEWS_MAX, 2 * mover.NEWS_MAX + 1]
