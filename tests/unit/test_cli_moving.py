"""kvtier export, import and drain: what they print, write and leave, with a daemon that says what the test wants."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from terminal import run_here

from kvtier.admin import PIECE_BYTES, caller
from kvtier.errors import DaemonError

PARCEL = {"sessions": 1, "blocks": 2, "bytes": 2048, "blocks_missing": 0}
IMPORTED = {"sessions": ["chat"], "blocks": 9, "blocks_new": 4, "bytes_new": 4096, "blocks_known": 3,
            "blocks_without_room": 2}  # fmt: skip
DRAINED = {
    "blocks_left": {"nvme": 0, "remote": 0}, "bytes_left": {"nvme": 0, "remote": 0},
    "blocks_written": {"nvme": 3, "remote": 5}, "bytes_written": {"nvme": 3072, "remote": 5120},
    "blocks_refused": {"no_disk": 2}, "over": True, "safe": True,
}  # fmt: skip


class FakeCaller:
    """In the place of AdminCaller."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.answers: Iterable[dict | Exception] = []
        self.taken = b""
        self.said: dict = IMPORTED

    def __call__(self, path: Path) -> "FakeCaller":
        return self

    def __enter__(self) -> "FakeCaller":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def export(self, *asked: object) -> Iterator[dict]:
        self.asked.append(asked)
        yield from self._said()

    def import_(self, pieces: Iterable[bytes], timeout_s: float) -> dict:
        self.taken = b"".join(pieces)
        return self.said

    def drain(self, timeout_s: float) -> Iterator[dict]:
        yield from self._said()

    def _said(self) -> Iterator[dict]:
        for answer in self.answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeCaller:
    fake = FakeCaller()
    monkeypatch.setattr(caller, "AdminCaller", fake)
    return fake


def pieces(*parts: bytes) -> list[dict | Exception]:
    """As a daemon exports them."""
    last = len(parts) - 1
    return [{"piece": b"", "parcel": PARCEL}] + [
        {"piece": part, "parcel": PARCEL if at == last else None} for at, part in enumerate(parts)
    ]


def kvtier(*words: object) -> tuple[int, str, str]:
    """Exit status, and what it prints to either."""
    ended = run_here("kvtier", *words)
    return ended.returncode, ended.stdout, ended.stderr


# --- export --------------------------------------------------------------------------------------------------


def test_a_file_has_its_name_when_it_is_whole(daemon, tmp_path):
    daemon.answers = pieces(b"one", b"two")
    path = tmp_path / "chat"
    assert kvtier("export", "chat", path) == (0, f"session chat: 2 blocks, 2 KiB, into {path}\n", "")
    assert path.read_bytes() == b"onetwo"
    assert daemon.asked == [("chat", "", 3600.0)]
    assert os.listdir(tmp_path) == ["chat"]


def test_what_was_cut_short_gets_no_name_and_the_former_file_stays(daemon, tmp_path):
    path = tmp_path / "chat"
    path.write_bytes(b"former")
    daemon.answers = [*pieces(b"one", b"two")[:2], DaemonError("it went away")]
    assert kvtier("export", "chat", path) == (1, "", "kvtier: it went away\n")
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["chat"]


def test_a_signal_to_end_removes_what_is_half_written(daemon, tmp_path):
    def ended() -> Iterator[dict]:
        yield from pieces(b"one", b"two")[:2]
        assert len(os.listdir(tmp_path)) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        yield {"piece": b"", "parcel": None}

    daemon.answers = ended()
    assert kvtier("export", "chat", tmp_path / "chat")[0] == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_what_nobody_may_export_leaves_no_trace(daemon, tmp_path):
    daemon.answers = [DaemonError("it stays here")]
    assert kvtier("export", "chat", tmp_path / "chat")[0] == 1
    assert os.listdir(tmp_path) == []


def test_json_says_what_is_in_it(daemon, tmp_path):
    daemon.answers = pieces(b"one")
    _, out, _ = kvtier("export", "chat", tmp_path / "chat", "--tenant", "00" * 6, "--json", "--timeout", "5")
    assert json.loads(out) == {"session": "chat", "file": str(tmp_path / "chat"), **PARCEL}
    assert daemon.asked == [("chat", "00" * 6, 5.0)]


def test_blocks_that_are_missing_are_told(daemon, tmp_path):
    daemon.answers = [{"piece": b"x", "parcel": PARCEL | {"blocks_missing": 1200}}]
    assert "; 1,200 more are neither in RAM nor on a drive" in kvtier("export", "chat", tmp_path / "chat")[1]


def test_a_name_is_never_more_than_a_name(daemon, tmp_path):
    daemon.answers = pieces(b"one")
    assert kvtier("export", "a\x1b[2Jb", tmp_path / "chat")[1].startswith("session a?[2Jb: 2 blocks")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("no/such/folder", "can't write {0}: No such file or directory; name another file"),
        ("", "can't write {0}: Is a directory; name another file"),
        ("/dev/full", "can't write /dev/full: No space left on device; name another file"),
    ],
)
def test_what_cannot_be_written_is_said(daemon, tmp_path, path, complaint):
    daemon.answers = pieces(b"one")
    path = tmp_path / path
    assert kvtier("export", "chat", path) == (1, "", f"kvtier: {complaint.format(path)}\n")


# --- import --------------------------------------------------------------------------------------------------


def test_what_was_new_and_known_and_found_no_room_is_said(daemon, tmp_path):
    path = tmp_path / "chat"
    path.write_bytes(b"x" * (2 * PIECE_BYTES + 1))
    status, out, err = kvtier("import", path)
    assert (status, err) == (1, "")
    assert out == (
        "session chat: 4 blocks are new, 4 KiB, 3 were known, 2 found no room: raise cpu.capacity, or `kvtier end` what is "
        "over\n"
    )
    assert daemon.taken == path.read_bytes()


def test_all_is_good_when_all_found_room(daemon, tmp_path):
    path = tmp_path / "chat"
    path.write_bytes(b"x")
    daemon.said = IMPORTED | {"blocks_without_room": 0, "blocks_known": 0, "sessions": ["chat", "~1"]}
    assert kvtier("import", path) == (0, "session chat, ~1: 4 blocks are new, 4 KiB\n", "")
    assert json.loads(kvtier("import", path, "--json")[1]) == daemon.said


def test_what_comes_through_a_pipe_is_taken(daemon, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"piped"), isatty=lambda: False))
    assert kvtier("import", "-")[0] == 1
    assert daemon.taken == b"piped"


def test_a_terminal_is_no_file(daemon, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b""), isatty=lambda: True))
    status, out, err = kvtier("import", "-")
    assert (status, out) == (2, "")
    assert err == "kvtier: a terminal is no file of `kvtier export`: name one, or a pipe before this\n"


@pytest.mark.parametrize(("path", "why"), [("nothing", "No such file or directory"), ("", "Is a directory")])
def test_what_cannot_be_read_is_said(daemon, tmp_path, path, why):
    status, out, err = kvtier("import", tmp_path / path)
    assert (status, out) == (1, "")
    assert err.startswith("kvtier: can't read ") and f": {why}; name another file" in err


# --- drain ---------------------------------------------------------------------------------------------------


def test_a_node_is_drained_when_all_is_safe(daemon):
    daemon.answers = [DRAINED | {"over": False, "safe": False, "blocks_left": {"nvme": 3, "remote": 5}}, DRAINED]
    status, out, err = kvtier("drain")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["drained", "blocks", "bytes", "left"],
        ["nvme", "3", "3", "KiB", "0"],
        ["remote", "5", "5", "KiB", "0"],
        ["not", "written", "2", "its", "session", "wants", "it", "on", "no", "disk", "(max_tier)"],
    ]


def test_json_is_the_last_that_the_daemon_said(daemon):
    daemon.answers = [DRAINED | {"over": False}, DRAINED]
    assert json.loads(kvtier("drain", "--json")[1]) == DRAINED


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ({"blocks_left": {"nvme": 0, "remote": 7}}, "not written yet: 7 blocks to remote; kvtierd goes on with it"),
        ({}, "not all of it survives kvtierd: a tier is away or read-only"),
        ({"blocks_written": {}}, "nothing is below RAM, what is there ends with kvtierd"),
    ],
)
def test_what_is_not_safe_ends_with_1_and_says_why(daemon, last, why):
    daemon.answers = [DRAINED | {"safe": False} | last]
    status, _, err = kvtier("drain")
    assert status == 1
    assert err.startswith(f"kvtier: {why}")


def test_whose_patience_ends_hears_what_is_left(daemon):
    daemon.answers = [
        DRAINED | {"over": False, "safe": False, "blocks_left": {"nvme": 9}},
        DaemonError("no answer in time"),
    ]
    assert "not written yet: 9 blocks to nvme" in kvtier("drain", "--timeout", "1")[2]


def test_without_a_daemon_nothing_is_drained(daemon):
    daemon.answers = [DaemonError("no kvtierd; start it")]
    assert kvtier("drain") == (1, "", "kvtier: no kvtierd; start it\n")


@pytest.mark.parametrize("words", [["export"], ["export", "chat"], ["import"], ["drain", "now"], ["import", "a", "b"]])
def test_wrong_words_are_shown_the_usage(words):
    status, out, err = kvtier(*words)
    assert (status, out) == (2, "")
    assert err.startswith("usage: kvtier ")
