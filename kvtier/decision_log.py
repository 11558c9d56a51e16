"""The decision log: each decision of the cost model and what came of it, one JSON object a line, newest last.

    decisions.jsonl      the newest
    decisions.1.jsonl    before that, and so on; the oldest file goes when a new one begins

It is for people and their scripts; the daemon never needs it. So nothing here raises because of a disk: what can't be
written is dropped, counted, and said once.
"""

import contextlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("kvtierd")

FILES = 4
WAITING_MAX = 4096  # records between two flushes, or while a disk hangs
APPLICATION = "kvtier"


def state_folder(configured: str = "") -> Path:
    """Where what kvtierd remembers of its own work lies: cost.state, or where the system keeps such things."""
    given = configured or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]  # systemd's, perhaps several
    if given:
        return Path(given).absolute()
    home = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):  # relative ones don't count, says its specification
        home = os.path.expanduser("~/.local/state")
    return Path(home if os.path.isabs(home) else "/var/lib") / APPLICATION


def make_folder(folder: Path) -> None:
    """For nobody else: what is in it tells who asked what, and when. OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def line_of(record: object) -> str:
    """As JSON has it: there "endless" is no number."""
    try:
        return json.dumps(record, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(record), separators=(",", ":"))


def read_last(folder: Path, n: int) -> list[dict[str, Any]]:
    """The newest `n` records, newest last. A line that was torn by a crash is passed over. OSError: it can't be read."""
    found: list[dict[str, Any]] = []
    seen: set[tuple[int, int]] = set()
    for number in range(FILES):
        try:
            with _file(folder, number).open("rb") as opened:
                of = os.fstat(opened.fileno())
                if (of.st_dev, of.st_ino) in seen:  # it was renamed while we looked
                    continue
                seen.add((of.st_dev, of.st_ino))
                lines = opened.read().split(b"\n")
        except FileNotFoundError:
            continue
        for record in _records(reversed(lines)):
            if len(found) == n:
                return found[::-1]
            found.append(record)
    return found[::-1]


class DecisionLog:
    """One writer's end. `add` only remembers; `flush` writes, and may run on a thread of its own, one after the other."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """`limit_bytes`: of all files together."""
        self.folder = folder
        self.written = self.dropped = 0  # records
        self._file_bytes = limit_bytes // FILES
        self._waiting: deque[Mapping[str, object]] = deque()
        self._complained = False

    def add(self, record: Mapping[str, object]) -> None:
        """`record` doesn't change any more."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(record)
        else:
            self.dropped += 1

    def flush(self) -> None:
        """Writes what was added. Each second, and before the end."""
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        lines = [(line_of(record) + "\n").encode() for record in taken]
        fitting = [line for line in lines if len(line) <= self._file_bytes]
        self.dropped += len(lines) - len(fitting)
        while fitting:
            try:
                count = self._append(fitting)
            except OSError as error:
                self.dropped += len(fitting)
                self._complain(error)
                return
            self.written += count
            del fitting[:count]

    def _append(self, lines: list[bytes]) -> int:
        """As many of them as the file takes, at least one; a full file makes room first. OSError: perhaps not all."""
        make_folder(self.folder)
        newest = _file(self.folder, 0)
        with contextlib.suppress(FileNotFoundError):
            if newest.stat().st_size + len(lines[0]) > self._file_bytes:
                self._rotate()
        with open(newest, "a+b", opener=_for_nobody_else) as opened:
            end, count = opened.seek(0, os.SEEK_END), 0
            if end:
                opened.seek(end - 1)
                if opened.read(1) != b"\n":  # torn by a crash, or by a full disk
                    opened.write(b"\n")
            while count < len(lines) and (count == 0 or end + len(lines[count]) <= self._file_bytes):
                opened.write(lines[count])
                end += len(lines[count])
                count += 1
        return count

    def _rotate(self) -> None:
        for number in reversed(range(FILES - 1)):
            with contextlib.suppress(FileNotFoundError):
                _file(self.folder, number).replace(_file(self.folder, number + 1))

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            cure = "free space, or set cost.state"
            log.warning("decisions are not logged: can't write to %s: %s; %s", self.folder, error.strerror, cure)


def _file(folder: Path, number: int) -> Path:
    return folder / (f"decisions.{number}.jsonl" if number else "decisions.jsonl")


def _for_nobody_else(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _records(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
