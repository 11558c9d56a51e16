"""Do no harm: a tier that makes requests wait longer than they would without it is turned off. Pure.

A prediction alone can't judge a tier, for it may be the prediction that is wrong. So a small share of the requests is
held out: they are served without loads, and what they take beside what was predicted for them is the yardstick.

    saving of a loaded request = yardstick * what was predicted without loads - what it took

on    a minute in which all savings of a tier sum up to a loss turns it off, if there were enough of them to say so
off   now and then, for a moment, requests may use it: probes. The last few of them saved: it is on again
"""

from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

JUDGED_S = 60.0  # a tier is judged by its last minute
LOADS_MIN, SPAN_MIN_S = 20, 54.0  # in that minute, and from the first of them to the last
PROBE_EVERY_S, PROBE_S = 10.0, 1.0  # while off: so often, and for so long from the first request on
PROBES_MIN = 5  # that saved on the whole: it is on again
MARGIN = 0.05  # share of what was predicted: a smaller loss or saving says nothing
LOSS_MAX = 10.0  # times what was predicted: one request doesn't speak for a minute
HELD_OUT_MIN = 8  # before the yardstick is one
HELD_OUT_KEPT = 0.98  # of the yardstick's weight, by one more request
YARDSTICK_MAX = 4.0


@dataclass(slots=True)
class _Second:
    """The loads that ended within one second."""

    at: int
    loads: int = 0
    without_s: float = 0.0
    saved_s: float = 0.0


@dataclass(slots=True)
class _Judged:
    """A tier before the judge."""

    is_on: bool = True
    seconds: deque[_Second] = field(default_factory=deque)
    probe_at: float = 0.0  # while off: when the next probe begins at the earliest, or the present one did

    def sums(self) -> tuple[int, float, float]:
        """Loads, seconds predicted without them, seconds saved."""
        return (
            sum(s.loads for s in self.seconds),
            sum(s.without_s for s in self.seconds),
            sum(s.saved_s for s in self.seconds),
        )

    def forget(self, before: float) -> None:
        while self.seconds and self.seconds[0].at < before:
            self.seconds.popleft()

    def add(self, without_s: float, saved_s: float, now: float) -> None:
        if not self.seconds or self.seconds[-1].at < int(now):
            self.seconds.append(_Second(int(now)))
        last = self.seconds[-1]
        last.loads += 1
        last.without_s += without_s
        last.saved_s += saved_s


class Guard:
    def __init__(self, holdout: float) -> None:
        self.holdout = min(max(holdout, 0.0), 1.0)
        self._tiers: dict[str, _Judged] = {}
        self._changes: list[tuple[str, bool, float]] = []
        self._held_out = 0
        self._took_s = self._predicted_s = 0.0

    def is_held_out(self, request: str) -> bool:
        """By the request's name alone: asked again, the answer is the same."""
        return crc32(request.encode(errors="replace")) < self.holdout * 2**32

    def is_on(self, tier: str, now: float) -> bool:
        """Whether a request may load from this tier; while it is off, true for a moment now and then."""
        judged = self._tiers.get(tier)
        if judged is None or judged.is_on:
            return True
        if now >= judged.probe_at + PROBE_S + PROBE_EVERY_S:
            judged.probe_at = now
        return 0 <= now - judged.probe_at < PROBE_S

    def note_held_out(self, actual_s: float, predicted_s: float, now: float) -> None:
        """A held-out request came to its first token."""
        if predicted_s <= 0 or actual_s < 0:
            return
        self._held_out += 1
        self._took_s = self._took_s * HELD_OUT_KEPT + min(actual_s, LOSS_MAX * predicted_s)
        self._predicted_s = self._predicted_s * HELD_OUT_KEPT + predicted_s

    def note_loaded(self, tier: str, actual_s: float, predicted_without_s: float, now: float) -> None:
        """A request that took blocks from this tier came to its first token."""
        if predicted_without_s <= 0 or actual_s < 0:
            return
        without_s = self.yardstick * predicted_without_s
        judged = self._tiers.setdefault(tier, _Judged())
        judged.add(without_s, max(without_s - actual_s, -LOSS_MAX * without_s), now)
        if judged.is_on:
            judged.forget(now - JUDGED_S)
        loads, without_s, saved_s = judged.sums()
        is_enough = loads >= LOADS_MIN and now - judged.seconds[0].at >= SPAN_MIN_S
        if judged.is_on and is_enough and saved_s < -MARGIN * without_s:
            self._turn(tier, judged, False, saved_s, now)
        elif not judged.is_on and loads >= PROBES_MIN and saved_s > MARGIN * without_s:
            self._turn(tier, judged, True, saved_s, now)
        elif not judged.is_on and loads >= 2 * PROBES_MIN:
            judged.seconds.popleft()  # only the last probes count

    @property
    def yardstick(self) -> float:
        """What doing without takes beside what is predicted for it."""
        if self._held_out < HELD_OUT_MIN:
            return 1.0
        return min(max(self._took_s / self._predicted_s, 1 / YARDSTICK_MAX), YARDSTICK_MAX)

    def changes(self) -> list[tuple[str, bool, float]]:
        """Tiers that went on (True) or off since the last call, with the seconds they had saved: said once."""
        changes, self._changes = self._changes, []
        return changes

    def snapshot(self) -> dict[str, object]:
        """As JSON values, for observers."""
        tiers = {}
        for name, judged in self._tiers.items():
            loads, _, saved_s = judged.sums()
            tiers[name] = {"on": judged.is_on, "loads": loads, "saved_s": round(saved_s, 3)}
        return {
            "holdout": self.holdout,
            "held_out": self._held_out,
            "yardstick": round(self.yardstick, 3),
            "tiers": tiers,
        }

    def _turn(self, tier: str, judged: _Judged, on: bool, saved_s: float, now: float) -> None:
        judged.is_on = on
        judged.seconds.clear()
        judged.probe_at = now - PROBE_S
        self._changes.append((tier, on, saved_s))
