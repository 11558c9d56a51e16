"""kvtier top: what stands on the screen, and what its keys do. The terminal itself is tested with the commands."""

from io import StringIO
from typing import Any

import pytest
from retention_fake import row
from rich.console import Console, RenderableType

from kvtier.cli.page import short_count, short_size, short_time
from kvtier.cli.sessions import table_of
from kvtier.cli.top import HELP, Seen, View, screen_of
from kvtier.listing import SORTS
from kvtier.stats import COUNTERS

GIB = 1024**3


def state(**other: Any) -> dict[str, Any]:
    """A snapshot, as far as `top` looks at it."""
    tiers = {
        "cpu": {"capacity_bytes": 64 * GIB, "used_bytes": 48 * GIB, "blocks": 123_456},
        "nvme": {"capacity_bytes": 1024 * GIB, "used_bytes": 0, "blocks": 0},
    }
    return {
        "version": "1.2.3", "generation": 7, "uptime_s": 3700.0, "engines": [{"engine": "one"}], "tiers": tiers,
        "counters": dict.fromkeys(COUNTERS, 0),
        "decisions": {"mode": "decide", "saved_gpu_s": 12.5, "guard": {"tiers": {"nvme": {"on": True}}}},
        "retention": {"sessions": {"active": 2, "idle": 40, "ended": 0}, "pinned_bytes": 3 * GIB},
        **other,
    }  # fmt: skip


def with_remote(**other: Any) -> dict[str, Any]:
    """A snapshot with a remote that is well, unless told otherwise."""
    remote = {
        "url": "redis://far:6379", "breaker": "closed", "breaker_seconds": 0.0, "breaker_reason": "", "read_only": False,
        "is_away": False, "reason": "", "known_there": 1234, "hit_share": 0.4, "ask_ms": 1.25, **other,
    }  # fmt: skip
    return {**state()["tiers"], "remote": remote}


def decision(request: str = "a-request", reason: str = "evicted") -> dict[str, Any]:
    return {
        "at": 0.0, "request": request, "reason": reason, "prompt_tokens": 32_768, "matched_tokens": 1024,
        "offered_tokens": 512, "actual": {"ttft_ms": 123.4},
    }  # fmt: skip


def seen(n: int = 40, **other: Any) -> Seen:
    """`n` sessions, and the daemon's state."""
    now = state(**other)
    return Seen(now, now, [row(f"chat {i}") for i in range(n)], n, [decision()] * 4)


def lines_of(shown: RenderableType, width: int = 80, height: int = 24) -> list[str]:
    """As they stand on a terminal of this size."""
    console = Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system=None, markup=False)
    console.print(shown)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def screen(told: Seen, view: View | None = None, width: int = 80, height: int = 24) -> list[str]:
    return lines_of(screen_of(told, view or View(), width, height), width, height)


def line_of(lines: list[str], begin: str) -> str:
    (line,) = [line for line in lines if line.startswith(begin)]
    return line.rstrip()


# --- what stands there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 10), (100, 50), (200, 24), (60, 24)])
def test_the_screen_is_never_larger_than_the_terminal(width, height):
    lines = screen(seen(), width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_at_80_columns_it_tells_of_tiers_sessions_and_decisions():
    lines = screen(seen())
    assert len(lines) == 24
    assert lines[0].rstrip() == "kvtierd 1.2.3  up 1h  1 engine"
    assert line_of(lines, "cpu").split() == ["cpu", "64.0G", "48.0G", "75%", "123k", "0.00", "0.00"]
    assert line_of(lines, "nvme").split() == ["nvme", "1.0T", "0", "0%", "0", "0.00", "0.00"]
    assert line_of(lines, "sessions:") == "sessions: 2 active, 40 idle; 3.0G pinned"
    assert line_of(lines, "decisions:") == "decisions: 0 fetched, 0 computed; 0 tokens saved, 12.5 GPU s net"
    assert line_of(lines, "session ").split() == [
        "session", "state", "idle", "turns", "tokens", "cpu", "nvme", "returns", "chance", "pin"
    ]  # fmt: skip
    assert line_of(lines, "chat 0 ").split() == ["chat", "0", "idle", "1m", "3", "12.3k", "3.0M", "1.0M", "1m", "62%"]
    decisions = [line.split() for line in lines if "a-request" in line]
    assert decisions == [decisions[0]] * 4
    assert decisions[0][1:] == ["32.8k", "1.0k", "512", "123ms", "a-request", "evicted"]
    assert lines[-1].rstrip() == f"1-9 of 40 by idle  {HELP}"


def test_a_remote_has_a_row_and_a_line_of_its_own():
    lines = screen(seen(tiers=with_remote()))
    assert len(lines) == 24
    assert line_of(lines, "remote ").split() == ["remote", "1.2k", "0.00", "0.00"]
    assert line_of(lines, "remote:") == "remote: redis://far:6379, 40% hits, asked in 1.2 ms"


def test_a_remote_that_is_away_or_takes_no_writes_says_why():
    silent = {"breaker": "open", "breaker_seconds": 75.0, "breaker_reason": "no answer\x1b for 2 s", "is_away": True}
    lines = screen(seen(tiers=with_remote(read_only=True, **silent)))
    assert line_of(lines, "remote:") == "remote: redis://far:6379, left alone for 1m15s: no answer? for 2 s"
    lines = screen(seen(tiers=with_remote(read_only=True, reason="OOM")))
    assert line_of(lines, "remote:") == "remote: redis://far:6379, 40% hits, asked in 1.2 ms; no writes: OOM"


def test_a_codec_that_is_used_has_a_line_too():
    coding = {"wanted": "auto", "codec": "exp12", "why": "", "codecs": {"exp12": {"ratio": 1.28}}}
    nvme = {**state()["tiers"]["nvme"], "used_bytes": 100, "block_bytes": 128, "blocks": 64, "coding": coding}
    lines = screen(seen(tiers={**with_remote(), "nvme": nvme}))
    assert len(lines) == 24
    assert line_of(lines, "codecs:") == "codecs: nvme exp12 1.28x, 14 blocks more fit"


def test_rates_are_what_has_grown_since_the_last_look():
    counters = dict.fromkeys(COUNTERS, 0) | {"saved_bytes": 3_000_000_000, "promoted_bytes": 500_000_000}
    told = seen()
    told.now = state(uptime_s=3702.0, counters=counters)
    lines = screen(told)
    assert line_of(lines, "cpu").split()[-2:] == ["1.50", "0.00"]
    assert line_of(lines, "nvme").split()[-2:] == ["0.00", "0.25"]


def test_after_a_restart_nothing_seems_to_have_shrunk():
    told = seen()
    told.before = state(counters=dict.fromkeys(COUNTERS, 10**12))
    told.now = state(generation=8, uptime_s=1.0)
    assert line_of(screen(told), "cpu").split()[-2:] == ["0.00", "0.00"]


def test_a_daemon_that_went_away_is_said_to_have_and_the_last_that_was_known_stays():
    told = seen()
    told.trouble = "no kvtierd on /run/kvtier/kvtierd.sock: Connection refused; start kvtierd"
    lines = screen(told)
    assert lines[0].startswith("as it was before: no kvtierd on /run/kvtier/kvtierd.sock: Connection refused")
    assert line_of(lines, "chat 0 ")


def test_a_tier_that_is_off_is_named():
    off = {"mode": "decide", "saved_gpu_s": 0.0, "guard": {"tiers": {"nvme": {"on": False}}}}
    assert line_of(screen(seen(decisions=off)), "decisions:").endswith("; off: nvme")


def test_without_sessions_and_decisions_it_says_so():
    now = state(retention={"sessions": {}, "pinned_bytes": 0, "pin_quota_bytes": 0})
    lines = screen(Seen(now, now))
    assert line_of(lines, "sessions:") == "sessions: none"
    assert line_of(lines, "none") == "none"
    assert lines[-1].startswith("0-0 of 0 by idle")


def test_a_name_from_a_request_is_no_command_to_the_terminal():
    evil = "\x1b[2J\x07[red]evil\nnext\u202e"
    now = state()
    lines = screen(Seen(now, now, [row(evil, state=evil, tool=evil)], 1, [decision(evil, evil)]), width=200)
    assert not any(letter in "".join(lines) for letter in "\x1b\x07\u202e")
    assert [line for line in lines if line.startswith("?[2J?[red]evil?next")]


def test_a_long_name_is_cut_and_the_numbers_stay():
    now = state()
    (line,) = [line for line in screen(Seen(now, now, [row("x" * 128)], 1)) if line.startswith("xxx")]
    assert "…" in line and line.split()[-1] == "62%"


# --- the table of sessions -----------------------------------------------------------------------------------


def test_where_there_is_room_all_columns_are_shown():
    told = row(tool="search", pinned=True, pin_left_s=3500.0, state="waiting", expected_return_s=-1.0)
    header, line = lines_of(table_of([told], 160), 160)
    assert header.split()[7:] == ["gone", "returns", "chance", "pin", "tool"]
    assert line.split() == ["chat", "waiting", "1m", "3", "12.3k", "3.0M", "1.0M", "2", "now", "62%", "58m", "search"]


@pytest.mark.parametrize("width", range(60, 130, 7))
def test_what_finds_no_room_is_left_out_whole(width):
    header, line = lines_of(table_of([row(tool="search")], width), width)
    assert len(header) <= width and "…" not in header
    assert "3.0M" in line and "62%" in line


def test_what_lies_in_a_remote_has_a_column_where_there_is_some():
    there = {"cpu": 0, "nvme": 1024**2, "remote": 5 * 1024**2}
    header, *lines = lines_of(table_of([row(), row(bytes=there)], 160), 160)
    assert header.split()[5:9] == ["cpu", "nvme", "remote", "gone"]
    assert [line.split()[5:8] for line in lines] == [["3.0M", "1.0M", "2"], ["1.0M", "5.0M", "2"]]
    header, _ = lines_of(table_of([row()], 160), 160)
    assert "remote" not in header


def test_nobody_knows_when_it_returns():
    _, line = lines_of(table_of([row(expected_return_s=None)], 80), 80)
    assert line.split() == ["chat", "idle", "1m", "3", "12.3k", "3.0M", "1.0M", "62%"]


# --- keys ----------------------------------------------------------------------------------------------------


def test_s_goes_through_all_orders_and_comes_back():
    view = View()
    orders = [(view.press(b"s"), view.sort)[1] for _ in SORTS]
    assert orders == [*SORTS[1:], SORTS[0]]


def test_r_reverses_what_is_shown():
    view = View()
    view.press(b"r")
    lines = screen(seen(3), view)
    assert [line.split()[1] for line in lines if line.startswith("chat ")] == ["2", "1", "0"]
    assert "by idle, reversed" in lines[-1]


def test_p_pauses_and_goes_on():
    view = View()
    assert view.press(b"p") and view.is_paused
    assert "paused" in screen(seen(), view)[0]
    assert view.press(b"p") and not view.is_paused


@pytest.mark.parametrize(("down", "up"), [(b"j", b"k"), (b"\x1b[B", b"\x1b[A"), (b"\x1bOB", b"\x1bOA")])
def test_scrolling_stops_at_both_ends(down, up):
    view, told = View(), seen(10)
    view.press(up)
    assert view.first == 0
    for _ in range(30):
        view.press(down)
    lines = screen(told, view)
    assert lines[-1].startswith("2-10 of 10")
    view.press(up)
    assert view.first == 0


def test_q_quits_and_other_keys_mean_nothing():
    view = View()
    assert not view.press(b"x") and not view.is_over
    assert view.press(b"q") and view.is_over


# --- short words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (short_size(0), ""),
        (short_size(1023), "1023"),
        (short_size(1536), "1.5K"),
        (short_size(1000 * 1024**2), "1000M"),
        (short_size(99.97 * GIB), "100G"),
        (short_size(5 * 1024**4), "5.0T"),
        (short_count(0), "0"),
        (short_count(999), "999"),
        (short_count(12_345), "12.3k"),
        (short_count(1_500_000), "1.5M"),
        (short_time(-3), "0s"),
        (short_time(59.9), "59s"),
        (short_time(75), "1m"),
        (short_time(7 * 3600 + 59), "7h"),
        (short_time(12 * 86_400), "12d"),
    ],
)
def test_a_number_is_told_in_few_letters(shown, expected):
    assert shown == expected
