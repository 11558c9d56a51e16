"""What bench_policy.py derives: agents' sessions from a trace, and what they have alive."""

import itertools
import random

import bench_policy
import pytest
import tool_calls
from made_up import MAKERS, made_up
from tool_calls import Step

from kvtier.errors import ConfigError
from kvtier.replay.trace import Request, Trace


def agents() -> Trace:
    """Two sessions that share block 0, three requests each, at 2, 3 and 6 s of each ten."""
    requests = []
    for session, first in (("a", 10), ("b", 20)):
        for turn, at in enumerate((2.0, 3.0, 6.0)):
            blocks = (0, *range(first, first + 1 + turn))
            requests.append(Request(first + at, len(blocks) * 64 + 5, 50, (*blocks, 100 + len(requests)), session))
    return Trace("agents", 64, tuple(requests))


def test_gaps_and_whole_blocks_are_the_traces():
    first, second = tool_calls.sessions_of(agents())
    assert [step.gap_s for step in first] == [1.0, 3.0, 0.0] and [step.gap_s for step in second] == [1.0, 3.0, 0.0]
    assert first[1] == Step((0, 10, 11), 50, 3.0)


def test_copies_share_what_the_sessions_share_and_nothing_else():
    sessions = tool_calls.sessions_of(agents())
    four = list(itertools.islice(tool_calls.copies(sessions, 0, random.Random(1)), 4))
    assert set.intersection(*({b for step in session for b in step.blocks} for session in four)) == {0}
    assert len({b for session in four for step in session for b in step.blocks}) == 1 + 4 * 3


def test_who_is_alive_already_is_in_the_midst_of_its_life():
    sessions = tool_calls.sessions_of(agents())
    lengths = [len(session) for session in itertools.islice(tool_calls.copies(sessions, 60, random.Random(1)), 64)]
    assert set(lengths[:60]) == {1, 2, 3} and lengths[60:] == [3, 3, 3, 3]


def test_alive_is_what_will_be_asked_for_again():
    """Each session has 1, 2, then 3 blocks of its own, for 2, 4 and 1 s; all share one."""
    live = tool_calls.live_blocks(tool_calls.sessions_of(agents()), alive=50, seconds=200.0, seed=1)
    assert live == pytest.approx(1 + 50 * (1 * 2 + 2 * 4 + 3 * 1) / 7, rel=0.05)


def test_with_room_for_all_every_return_is_in_ram(monkeypatch):
    monkeypatch.setattr(tool_calls, "RAM_SHARE", 4.0)
    found = tool_calls.measure(agents(), "lru", alive=20, seconds=60.0)
    assert found["in_ram"] == 1.0 and found["returns"] > 100 and found["wait_ms_mean"] == 0.0


def test_the_hint_is_the_gap_and_wrong_by_a_factor():
    for name, within in (("exact", True), ("too_long_10x", True), ("too_short_10x", False), ("no_hint", True)):
        scene = tool_calls.Scene(agents(), tool_calls.VARIANTS[name], 1000, 4, 60.0, 1, 14e9).run()
        assert scene.returns and {one.within for one in scene.returns} == {within}


def test_the_typical_hint_holds_for_half_of_the_returns():
    scene = tool_calls.Scene(agents(), tool_calls.VARIANTS["typical"], 1000, 4, 60.0, 1, 14e9).run()
    assert sum(one.within for one in scene.returns) / len(scene.returns) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", MAKERS)
def test_made_up_traces_are_in_order_and_the_same_for_a_seed(name):
    trace = made_up(name)
    times = [request.at for request in trace.requests]
    assert times == sorted(times) and trace == made_up(name) and 2000 < len(times) < 8000
    assert all(len(trace.whole(request)) == len(request.blocks) for request in trace.requests)


def test_the_worst_case_over_lru():
    found = {"one": {"lru": {"5": 0.5, "10": 0.0}, "no_hints": {"5": 0.45, "10": 0.0}, "end_hints": {"5": 0.6, "10": 1.0}}}
    assert bench_policy.worst_over(found, "lru") == 0.1


def test_where_there_are_no_traces_both_ways_to_name_them_are_told(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--traces or KVTIER_TRACES"):
        bench_policy.read_all(tmp_path, [])
    monkeypatch.delenv("KVTIER_TRACES", raising=False)
    monkeypatch.setattr("sys.argv", ["bench_policy.py"])
    with pytest.raises(SystemExit, match="--traces or KVTIER_TRACES"):
        bench_policy.main()
